//! What the operator was told at start.

use crate::cache::Scope;

/// What the operator was told at start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which namespaces it works in.
    pub scope: Scope,
    /// Its own pod's name, for events and the Lease.
    pub pod_name: Option<String>,
    /// Its own namespace: relays and workers let its pods ask their operations ports.
    pub namespace: String,
    /// The image of relays whose spec names none: `repository:tag` without digest.
    pub relay_image: String,
    /// The image of workers whose spec names none.
    pub worker_image: String,
    /// Pull secrets of every pod that it makes.
    pub image_pull_secrets: Vec<String>,
}

/// Puts an image together: what the spec names goes before the default, part by part; a digest goes before a tag.
pub fn image(spec: Option<&crate::api::ImageSpec>, default: &str) -> String {
    let (default_repository, default_version) = split(default);
    let repository = spec.and_then(|spec| spec.repository.as_deref()).unwrap_or(default_repository);
    if let Some(digest) = spec.and_then(|spec| spec.digest.as_deref()) {
        return format!("{repository}@{digest}");
    }
    match spec.and_then(|spec| spec.tag.as_deref()) {
        Some(tag) => format!("{repository}:{tag}"),
        None => format!("{repository}{default_version}"),
    }
}

/// Splits `registry:5000/name:tag` or `name@sha256:...` before the tag or digest.
fn split(image: &str) -> (&str, &str) {
    if let Some(at) = image.find('@') {
        return image.split_at(at);
    }
    let name = image.rfind('/').map_or(0, |slash| slash + 1);
    match image[name..].find(':') {
        Some(colon) => image.split_at(name + colon),
        None => (image, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ImageSpec;

    #[test]
    fn each_part_of_an_image_comes_from_the_spec_or_else_from_the_default() {
        let default = "localhost:5000/modelrelay/relay:0.1.0";
        let digest = format!("sha256:{}", "0".repeat(64));
        let spec = |repository: Option<&str>, tag: Option<&str>, digest: Option<&str>| ImageSpec {
            repository: repository.map(str::to_owned),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
            pull_policy: None,
        };
        assert_eq!(image(None, default), default);
        assert_eq!(image(Some(&spec(None, Some("1"), None)), default), "localhost:5000/modelrelay/relay:1");
        assert_eq!(image(Some(&spec(Some("r"), None, None)), default), "r:0.1.0");
        assert_eq!(image(Some(&spec(Some("r"), Some("1"), Some(&digest))), default), format!("r@{digest}"));
        assert_eq!(image(None, "relay"), "relay");
    }
}
