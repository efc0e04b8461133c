//! Images for tests only, packed from programs of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use dev_cluster::Image;
use dev_e2e::process::program;

use super::succeeded;

/// An image with busybox and nothing else.
pub(crate) const BUSYBOX: &str = "localhost/busybox:1";
/// An image of the stub backend, which listens at [`STUB_PORT`] of all addresses.
pub(crate) const STUB: &str = "localhost/stub:1";
/// Where the stub listens.
pub(crate) const STUB_PORT: u16 = 8000;
const USER: &str = "65532:65532";

pub(super) fn busybox(program: &Path, folder: &Path) -> PathBuf {
    let image = Image {
        name: BUSYBOX.to_owned(),
        entrypoint: vec!["/bin/busybox".to_owned()],
        user: USER.to_owned(),
        files: vec![(program.to_owned(), "/bin/busybox".to_owned())],
    };
    packed(&image, folder.join("busybox.tar"))
}

/// The stub that tests run as a process, with the libraries that the loader of this machine finds for it.
pub(super) fn stub(folder: &Path) -> PathBuf {
    let (built, stripped) = (program("dev-backend"), folder.join("dev-backend"));
    let mut strip = Command::new("strip");
    strip.arg("--strip-debug").arg("-o").arg(&stripped).arg(built);
    succeeded("strip", &strip.output().unwrap());
    let listed = succeeded("ldd", &Command::new("ldd").arg(&stripped).output().unwrap());
    // Each stands where the loader looked; the kernel's own has no file.
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    let mut files: Vec<_> = libraries.map(|path| (PathBuf::from(path), path.to_owned())).collect();
    files.push((stripped, "/bin/dev-backend".to_owned()));
    let listen = format!("0.0.0.0:{STUB_PORT}");
    let image = Image {
        name: STUB.to_owned(),
        entrypoint: ["/bin/dev-backend", "--listen", &listen].map(str::to_owned).to_vec(),
        user: USER.to_owned(),
        files,
    };
    packed(&image, folder.join("stub.tar"))
}

fn packed(image: &Image, archive: PathBuf) -> PathBuf {
    image.pack(&archive).unwrap();
    archive
}
