//! `cargo xtask images`: the images of the programs, as archives.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::parts::Part;
use crate::progress::Step;
use crate::{process, workspace};

/// What to build.
#[derive(Debug, Args)]
pub(crate) struct ImagesOptions {
    /// Which images; all of them when none is named.
    #[arg(value_enum)]
    names: Vec<Name>,
    /// Cargo's profile; `dev` builds sooner, and the images are several times as large.
    #[arg(long, default_value = "release")]
    profile: String,
    /// What builds the images; a docker that answers, else buildah, when it is not said.
    #[arg(long, value_enum)]
    with: Option<Builder>,
}

/// An image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    Relay,
    Worker,
    Operator,
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Relay => "relay",
            Self::Worker => "worker",
            Self::Operator => "operator",
        })
    }
}

impl Name {
    /// Returns the image's name with its tag.
    pub(crate) fn reference(self) -> String {
        format!("localhost/modelrelay-{self}:{}", env!("CARGO_PKG_VERSION"))
    }

    fn archive(self) -> PathBuf {
        folder().join(format!("modelrelay-{self}.tar"))
    }
}

/// A program that builds images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Builder {
    Docker,
    Buildah,
}

/// Returns the folder of the archives.
pub(crate) fn folder() -> PathBuf {
    workspace::target().join("images")
}

/// Builds images, and says where their archives are.
///
/// # Errors
/// When something cannot be built.
pub(crate) fn run(options: &ImagesOptions) -> Result<()> {
    let names = if options.names.is_empty() { Name::value_variants() } else { &options.names };
    for archive in build(names, &options.profile, options.with)? {
        let size = fs::metadata(&archive).context("look at the archive")?.len();
        println!("{} ({:.1} MB)", archive.display(), size as f64 / 1e6);
    }
    println!(
        "\nLoad them with `docker load -i FILE`, or on a cluster's nodes with `cargo xtask cluster load-images FILE`."
    );
    Ok(())
}

/// Returns the archives of all images, which were built before.
pub(crate) fn built() -> Vec<PathBuf> {
    Name::value_variants().iter().map(|name| name.archive()).collect()
}

/// Builds images and returns their archives.
///
/// # Errors
/// When something cannot be built.
pub(crate) fn build(names: &[Name], profile: &str, builder: Option<Builder>) -> Result<Vec<PathBuf>> {
    let builder =
        builder.unwrap_or_else(|| if docker_answers() { Builder::Docker } else { Builder::Buildah });
    eprintln!("Building static programs; the first time takes minutes …");
    let mut programs = workspace::script("deploy/programs.sh", ["target/image"]);
    programs.env("PROFILE", profile).args(names.iter().map(ToString::to_string));
    process::run("deploy/programs.sh", &mut programs)?;
    fs::create_dir_all(folder()).context("create the folder of images")?;
    let commit = Commit::read()?;
    let step = Step::begin("Building the images");
    for &name in names {
        match builder {
            Builder::Docker => docker(name, &commit)?,
            Builder::Buildah => buildah(name, &commit)?,
        }
    }
    step.done();
    Ok(names.iter().map(|name| name.archive()).collect())
}

fn docker_answers() -> bool {
    let mut docker = Command::new("docker");
    docker.args(["version", "--format", "{{.Server.Version}}"]).stdout(Stdio::null()).stderr(Stdio::null());
    docker.status().is_ok_and(|status| status.success())
}

/// What the images say about where they come from.
#[derive(Debug)]
struct Commit {
    hash: String,
    /// Seconds since 1970: the age of everything in the images, so that they do not depend on when they are built.
    time: String,
}

impl Commit {
    fn read() -> Result<Self> {
        let mut git = Command::new("git");
        git.current_dir(workspace::root()).args(["log", "-1", "--format=%H %ct"]);
        // An unpacked archive of the sources has no history.
        let printed = process::capture("git log", &mut git, || {}).unwrap_or_else(|_| "unknown 0".to_owned());
        let (hash, time) = printed.trim().split_once(' ').context("git log printed no commit")?;
        Ok(Self { hash: hash.to_owned(), time: time.to_owned() })
    }

    fn arguments(&self) -> [String; 3] {
        let version = env!("CARGO_PKG_VERSION");
        ["PROGRAMS=prebuilt".to_owned(), format!("VERSION={version}"), format!("REVISION={}", self.hash)]
            .map(|argument| format!("--build-arg={argument}"))
    }
}

fn docker(name: Name, commit: &Commit) -> Result<()> {
    let mut build = Command::new("docker");
    build.current_dir(workspace::root()).env("SOURCE_DATE_EPOCH", &commit.time);
    build.args([
        "build",
        "--file=deploy/Dockerfile",
        "--target",
        &name.to_string(),
        "--tag",
        &name.reference(),
    ]);
    process::capture("docker build", build.args(commit.arguments()).arg("."), || {})?;
    let mut save = Command::new("docker");
    save.args(["save", &name.reference(), "--output"]).arg(name.archive());
    process::capture("docker save", &mut save, || {})?;
    Ok(())
}

fn buildah(name: Name, commit: &Commit) -> Result<()> {
    let program = Part::Buildah.path()?;
    let scratch =
        tempfile::Builder::new().prefix("modelrelay-images-").tempdir().context("create a folder")?;
    // There is nothing to trust: no image is taken from anywhere.
    let policy = scratch.path().join("policy.json");
    fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).context("write a policy")?;
    let buildah = |verb: &str| {
        let mut command = Command::new(&program);
        command.current_dir(workspace::root()).arg("--root").arg(scratch.path().join("root"));
        command.arg("--runroot").arg(scratch.path().join("run")).args(["--storage-driver=vfs", verb]);
        command.arg("--signature-policy").arg(&policy);
        command
    };
    let mut build = buildah("build");
    build.args(["--isolation=chroot", "--format=oci", "--file=deploy/Dockerfile"]);
    build
        .arg(format!("--timestamp={}", commit.time))
        .args(["--ignorefile", "deploy/Dockerfile.dockerignore"]);
    build.args(["--target", &name.to_string(), "--tag", &name.reference()]).args(commit.arguments());
    process::capture("buildah build", build.arg("."), || {})?;
    remove_if_there(&name.archive())?;
    let mut push = buildah("push");
    push.args(["--format=oci", "--disable-compression=false", &name.reference()]);
    push.arg(format!("oci-archive:{}:{}", name.archive().display(), name.reference()));
    process::capture("buildah push", &mut push, || {})?;
    Ok(())
}

fn remove_if_there(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("remove {}: {error}", file.display())
        }
        _ => Ok(()),
    }
}
