//! What a request asks of the API server, read from its method and its path as the API server itself reads them.

use std::fmt;

use bytes::Bytes;
use http::{Method, Uri};

/// What is done, in the words of RBAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Reads one object, or something that is no object.
    Get,
    /// Reads a list.
    List,
    /// Follows a list or an object.
    Watch,
    /// Creates an object.
    Create,
    /// Replaces an object.
    Update,
    /// Changes an object; server-side apply is a patch too.
    Patch,
    /// Deletes an object.
    Delete,
    /// Deletes a list.
    DeleteCollection,
}

impl Verb {
    /// Returns RBAC's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    /// Returns whether it changes something.
    #[must_use]
    pub fn writes(self) -> bool {
        match self {
            Self::Get | Self::List | Self::Watch => false,
            Self::Create | Self::Update | Self::Patch | Self::Delete | Self::DeleteCollection => true,
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Who asks, when the proxy gave them their token.
    pub user: Option<String>,
    /// What is done.
    pub verb: Verb,
    /// The API group; empty for the core group.
    pub group: String,
    /// The kind in plural (`deployments`), with the part of it after a slash (`deployments/status`); empty for what is no
    /// object, such as `/healthz`.
    pub resource: String,
    /// The namespace, when there is one.
    pub namespace: Option<String>,
    /// The object's name, when there is one.
    pub name: Option<String>,
    /// The path with its query.
    pub path: String,
    /// The body of a request that changes something.
    pub body: Bytes,
}

impl Call {
    /// Returns whether it changes something. Questions that are asked by creating an object, such as whether one may do
    /// something, change nothing.
    #[must_use]
    pub fn writes(&self) -> bool {
        let asks = matches!(self.group.as_str(), "authorization.k8s.io" | "authentication.k8s.io");
        self.verb.writes() && !asks
    }

    pub(crate) fn read(method: &Method, uri: &Uri) -> Self {
        let mut call = Self {
            user: None,
            verb: verb(method, false, false),
            group: String::new(),
            resource: String::new(),
            namespace: None,
            name: None,
            path: uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string),
            body: Bytes::new(),
        };
        let mut parts = uri.path().split('/').filter(|part| !part.is_empty());
        // Discovery asks for the paths above the objects.
        match (parts.next(), parts.next(), parts.next()) {
            (Some("api"), Some(_version), Some(first)) => call.read_object(first, parts),
            (Some("apis"), Some(group), Some(_version)) => {
                let Some(first) = parts.next() else { return call };
                call.group = group.to_owned();
                call.read_object(first, parts);
            }
            _ => return call,
        }
        call.verb = verb(method, call.name.is_none(), watches(uri.query().unwrap_or_default()));
        call
    }

    fn read_object<'a>(&mut self, first: &'a str, mut rest: impl Iterator<Item = &'a str>) {
        let mut resource = first;
        let mut name = rest.next();
        let mut part = rest.next();
        // A namespace's own parts are not objects inside of it.
        if let ("namespaces", Some(namespace)) = (resource, name) {
            self.namespace = Some(namespace.to_owned());
            if let Some(inner) = part.filter(|part| !matches!(*part, "status" | "finalize")) {
                resource = inner;
                name = rest.next();
                part = rest.next();
            }
        }
        self.resource = part.map_or_else(|| resource.to_owned(), |part| format!("{resource}/{part}"));
        self.name = name.map(str::to_owned);
    }
}

fn verb(method: &Method, list: bool, watch: bool) -> Verb {
    match *method {
        Method::POST => Verb::Create,
        Method::PUT => Verb::Update,
        Method::PATCH => Verb::Patch,
        Method::DELETE if list => Verb::DeleteCollection,
        Method::DELETE => Verb::Delete,
        _ if watch => Verb::Watch,
        _ if list => Verb::List,
        _ => Verb::Get,
    }
}

fn watches(query: &str) -> bool {
    query.split('&').any(|pair| matches!(pair, "watch=1" | "watch=true"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &Method, path: &str) -> (String, String, String, Option<String>, Option<String>) {
        let call = Call::read(method, &path.parse().unwrap());
        (call.verb.to_string(), call.group, call.resource, call.namespace, call.name)
    }

    #[test]
    fn calls_are_named_as_rbac_names_them() {
        let some = |text: &str| Some(text.to_owned());
        let cases = [
            (Method::GET, "/api/v1/pods?watch=1", ("watch", "", "pods", None, None)),
            (Method::GET, "/api/v1/namespaces", ("list", "", "namespaces", None, None)),
            (Method::GET, "/api/v1/namespaces/a", ("get", "", "namespaces", some("a"), some("a"))),
            (
                Method::PUT,
                "/api/v1/namespaces/a/finalize",
                ("update", "", "namespaces/finalize", some("a"), some("a")),
            ),
            (Method::POST, "/api/v1/namespaces/a/secrets", ("create", "", "secrets", some("a"), None)),
            (
                Method::DELETE,
                "/api/v1/namespaces/a/secrets",
                ("deletecollection", "", "secrets", some("a"), None),
            ),
            (
                Method::DELETE,
                "/api/v1/namespaces/a/secrets/s",
                ("delete", "", "secrets", some("a"), some("s")),
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/d/status?fieldManager=m",
                ("patch", "apps", "deployments/status", some("a"), some("d")),
            ),
            (
                Method::GET,
                "/apis/apps/v1/namespaces/a/deployments?limit=5&watch=true",
                ("watch", "apps", "deployments", some("a"), None),
            ),
            (Method::GET, "/apis/apps/v1", ("get", "", "", None, None)),
            (Method::GET, "/readyz?verbose", ("get", "", "", None, None)),
        ];
        for (method, path, (verb, group, resource, namespace, name)) in cases {
            let expected = (verb.to_owned(), group.to_owned(), resource.to_owned(), namespace, name);
            assert_eq!(read(&method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn a_question_that_is_asked_by_creating_an_object_is_no_write() {
        let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".parse().unwrap();
        assert!(!Call::read(&Method::POST, &review).writes());
        assert!(Call::read(&Method::POST, &"/api/v1/namespaces".parse().unwrap()).writes());
    }
}
