//! Images that are packed by hand: one layer, nothing below it, the same bytes every time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const BLOCK: usize = 512;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image to be packed.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name with a tag, such as `localhost/pause:1`.
    pub name: String,
    /// What it runs.
    pub entrypoint: Vec<String>,
    /// The user as whom it runs, such as `65532:65532`.
    pub user: String,
    /// Files, and where they stand in the image.
    pub files: Vec<(PathBuf, String)>,
}

impl Image {
    /// Writes it to a file that `ctr images import` reads.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn pack(&self, file: &Path) -> Result<()> {
        let layer = self.layer()?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Entrypoint": self.entrypoint, "User": self.user, "Env": ["PATH=/"], "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": [descriptor(LAYER, &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = descriptor(MANIFEST, &manifest);
        let tag = self.name.rsplit_once(':').with_context(|| format!("{} has no tag", self.name))?.1;
        entry["annotations"] =
            json!({ "io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });

        let file = File::create(file).with_context(|| format!("create {}", file.display()))?;
        let mut tar = Tar(io::BufWriter::new(file));
        tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        tar.file("index.json", 0o644, index.to_string().as_bytes())?;
        for blob in [&layer, &config, &manifest] {
            let sum = digest(blob);
            tar.file(&format!("blobs/sha256/{}", sum.trim_start_matches("sha256:")), 0o644, blob)?;
        }
        tar.finish()?.flush().context("write an image")
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = Tar(Vec::new());
        let mut folders = BTreeSet::from(["tmp".to_owned()]);
        for (_, inside) in &self.files {
            let parents = Path::new(inside.trim_start_matches('/')).ancestors().skip(1);
            folders.extend(parents.map(|path| path.display().to_string()).filter(|path| !path.is_empty()));
        }
        for folder in &folders {
            tar.folder(folder, if folder == "tmp" { 0o1777 } else { 0o755 })?;
        }
        for (outside, inside) in &self.files {
            let bytes = fs::read(outside).with_context(|| format!("read {}", outside.display()))?;
            tar.file(inside.trim_start_matches('/'), 0o755, &bytes)?;
        }
        tar.finish()
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}

fn digest(bytes: &[u8]) -> String {
    let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{sum}")
}

/// A tape archive in the format of POSIX, without times and owners.
struct Tar<W>(W);

impl<W: Write> Tar<W> {
    fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.0.write_all(&header(name, mode, bytes.len(), b'0')?).context("write an archive")?;
        self.0.write_all(bytes).context("write an archive")?;
        let rest = bytes.len().next_multiple_of(BLOCK) - bytes.len();
        self.0.write_all(&[0; BLOCK][..rest]).context("write an archive")
    }

    fn folder(&mut self, name: &str, mode: u32) -> Result<()> {
        self.0.write_all(&header(&format!("{name}/"), mode, 0, b'5')?).context("write an archive")
    }

    fn finish(mut self) -> Result<W> {
        self.0.write_all(&[0; 2 * BLOCK]).context("write an archive")?;
        Ok(self.0)
    }
}

fn header(name: &str, mode: u32, size: usize, kind: u8) -> Result<[u8; BLOCK]> {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    if name.len() > 100 {
        bail!("{name} is too long a name");
    }
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"00000000000");
    // The sum is taken over blanks in its own place.
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn image(folder: &Path) -> Image {
        fs::write(folder.join("program"), "the program").unwrap();
        Image {
            name: "localhost/program:1".to_owned(),
            entrypoint: vec!["/bin/program".to_owned()],
            user: "65532:65532".to_owned(),
            files: vec![(folder.join("program"), "/bin/program".to_owned())],
        }
    }

    #[test]
    fn tar_unpacks_what_was_packed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("layer.tar");
        fs::write(&file, image(folder.path()).layer().unwrap()).unwrap();
        let listed = Command::new("tar").arg("-tvf").arg(&file).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let listed = String::from_utf8(listed.stdout).unwrap();
        let modes_and_names: Vec<_> = listed
            .lines()
            .map(|line| (line.split(' ').next().unwrap(), line.rsplit(' ').next().unwrap()))
            .collect();
        let expected = [("drwxr-xr-x", "bin/"), ("drwxrwxrwt", "tmp/"), ("-rwxr-xr-x", "bin/program")];
        assert_eq!(modes_and_names, expected);
        let shown = Command::new("tar").arg("-xOf").arg(&file).arg("bin/program").output().unwrap();
        assert_eq!(shown.stdout, b"the program");
    }

    #[test]
    fn an_image_has_the_same_bytes_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| {
            image(folder.path()).pack(&folder.path().join(name)).unwrap();
            fs::read(folder.path().join(name)).unwrap()
        });
        assert!(one == two);
    }
}
