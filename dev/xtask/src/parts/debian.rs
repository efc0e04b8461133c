//! Debian packages unpacked into the cache and started through their own loader, so that a
//! newer release's programs run on an older machine and nothing on the machine changes.
//!
//! apt does the work, with lists, state and downloads of its own beside the machine's: it
//! finds the packages that are needed, checks signatures and sums, and needs no root.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt_sources::{self, Archive};
use crate::{cache, process, progress::Step};

mod start;

pub(crate) use start::Start;

/// A program and the Debian package that has it.
#[derive(Debug)]
pub(crate) struct Package {
    name: &'static str,
    program: &'static str,
    /// The release to take it from; `None` is the machine's own.
    suite: Option<&'static str>,
    /// Folders below the library folder that hold more libraries of the program.
    libraries: &'static [&'static str],
    /// The folder below the library folder from which the program loads plugins, when it
    /// looks for them beside its executable, which to the kernel is the loader.
    plugins: Option<&'static str>,
    launch: Launch,
}

/// How the program finds its libraries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Launch {
    /// By the loader that came with them, whatever the machine's are.
    Loader,
    /// By the machine's loader, in a variable. The program starts itself again, and would start
    /// another loader instead.
    Variable,
    /// They are the machine's, and the program starts itself again.
    Machine,
}

impl Package {
    const fn with_its_libraries(name: &'static str, program: &'static str) -> Self {
        Self { name, program, suite: None, libraries: &[], plugins: None, launch: Launch::Loader }
    }

    const fn direct(name: &'static str, program: &'static str) -> Self {
        Self { launch: Launch::Machine, ..Self::with_its_libraries(name, program) }
    }

    const fn of(self, suite: &'static str) -> Self {
        Self { suite: Some(suite), ..self }
    }
}

pub(crate) const LLAMA_SERVER: Package = Package {
    libraries: &["llama"],
    plugins: Some("ggml/backends0"),
    ..Package::with_its_libraries("llama.cpp-tools", "usr/bin/llama-server").of("forky")
};
pub(crate) const NGINX: Package = Package::with_its_libraries("nginx", "usr/sbin/nginx");
pub(crate) const PROMTOOL: Package = Package::with_its_libraries("promtool", "usr/bin/promtool").of("forky");
pub(crate) const PROMETHEUS: Package =
    Package::with_its_libraries("prometheus", "usr/bin/prometheus").of("forky");
// The version that Argo CD speaks.
pub(crate) const LUA: Package = Package::with_its_libraries("lua5.1", "usr/bin/lua5.1");
pub(crate) const ETCD: Package = Package::with_its_libraries("etcd-server", "usr/bin/etcd").of("forky");
pub(crate) const NFT: Package = Package::with_its_libraries("nftables", "usr/sbin/nft");
pub(crate) const IP: Package = Package::with_its_libraries("iproute2", "bin/ip");
pub(crate) const CONTAINERD: Package = Package::direct("containerd", "usr/bin/containerd").of("forky");
pub(crate) const CNI_PLUGINS: Package =
    Package::direct("containernetworking-plugins", "usr/lib/cni/ptp").of("forky");
// Of the machine's own release: it needs a C library as old as the machine's.
pub(crate) const BUILDAH: Package =
    Package { launch: Launch::Variable, ..Package::with_its_libraries("buildah", "usr/bin/buildah") };
pub(crate) const RUNC: Package = Package::direct("runc", "usr/sbin/runc");
// Without any library, so it also runs in an image that holds nothing else.
pub(crate) const BUSYBOX: Package = Package::direct("busybox-static", "bin/busybox");

/// Returns the package's program, or a script that starts it, unpacking it first when it is not there.
///
/// # Errors
/// When this is no Debian, or the package cannot be downloaded.
pub(crate) fn unpack(package: &Package) -> Result<PathBuf> {
    let folder = folder(package)?;
    Ok(if package.launch == Launch::Machine {
        folder.join("root").join(package.program)
    } else {
        folder.join(file_name(package))
    })
}

/// Returns how the package's program is started with the libraries it was packaged for, unpacking it first when it is
/// not there.
///
/// # Errors
/// As [`unpack`].
pub(crate) fn start(package: &Package) -> Result<Start> {
    Start::find(&folder(package)?.join("root"), package)
}

fn file_name(package: &Package) -> &'static OsStr {
    Path::new(package.program).file_name().expect("every program has a name")
}

fn folder(package: &Package) -> Result<PathBuf> {
    let own = release().unwrap_or_default();
    let suite = package.suite.unwrap_or(&own);
    cache::folder(&format!("debian-{suite}-{}-1", package.name), |folder| {
        let apt = Apt::set_up(&folder.join("apt"), &machine_archive(&own)?.entry(suite))?;
        apt.download(package.name)?;
        let root = folder.join("root");
        for archive in apt.archives()? {
            let mut extract = Command::new("dpkg-deb");
            process::capture("dpkg-deb", extract.arg("-x").arg(archive).arg(&root), || {})?;
        }
        if package.launch != Launch::Machine {
            let script = folder.join(file_name(package));
            let start = Start::prepare(&root, package)?;
            fs::write(&script, start.script(package.launch)).context("write the launch script")?;
            fs::set_permissions(&script, Permissions::from_mode(0o755))
                .context("make the launch script executable")?;
        }
        fs::remove_dir_all(&apt.folder).context("remove the downloads")
    })
}

fn release() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix("VERSION_CODENAME=")?.trim_matches('"').to_owned()))
}

fn machine_archive(suite: &str) -> Result<Archive> {
    let folder = Path::new("/etc/apt");
    let listed = fs::read_dir(folder.join("sources.list.d")).into_iter().flatten().flatten();
    let files = [folder.join("sources.list")].into_iter().chain(listed.map(|entry| entry.path()));
    let found = files.into_iter().find_map(|file| {
        let text = fs::read_to_string(&file).ok()?;
        match file.extension().and_then(OsStr::to_str)? {
            "list" => apt_sources::in_lines(&text, suite),
            "sources" => apt_sources::in_paragraphs(&text, suite),
            _ => None,
        }
    });
    found.context(
        "the apt sources of this machine name no Debian archive; install the program and put it on PATH",
    )
}

/// An apt of our own: it reads the machine's configuration (proxies, keys), but keeps
/// everything else in one folder.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn set_up(folder: &Path, source: &str) -> Result<Self> {
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part)).context("create apt's folders")?;
        }
        let at = folder.display();
        // Nothing counts as installed, so that every library is fetched. Hooks are for the machine's
        // own apt, and so are indexes that only a desktop reads.
        let settings = format!(
            r#"
            Dir::Etc::sourcelist "{at}/debian.sources";
            Dir::Etc::sourceparts "/dev/null";
            Dir::Etc::preferences "/dev/null";
            Dir::Etc::preferencesparts "/dev/null";
            Dir::State "{at}/state";
            Dir::State::status "{at}/status";
            Dir::Cache "{at}/cache";
            Dir::Cache::archives "{at}/cache/archives";
            Dir::Log "{at}";
            APT::Sandbox::User "root";
            APT::Install-Recommends "false";
            Acquire::Languages "none";
            Acquire::Retries "3";
            #clear APT::Update::Post-Invoke;
            #clear APT::Update::Post-Invoke-Success;
            #clear DPkg::Pre-Install-Pkgs;
            #clear DPkg::Post-Invoke;
            #clear Acquire::IndexTargets::deb::DEP-11;
            "#
        );
        for (name, text) in [("apt.conf", settings.as_str()), ("debian.sources", source), ("status", "")] {
            fs::write(folder.join(name), text).with_context(|| format!("write apt's {name}"))?;
        }
        Ok(Self { folder: folder.to_owned() })
    }

    fn get(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        command.arg("-c").arg(self.folder.join("apt.conf")).args(["--quiet", "--yes"]).args(arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
        command
    }

    fn download(&self, package: &str) -> Result<()> {
        let step = Step::begin("Reading Debian's package lists");
        process::capture("apt-get update", &mut self.get(&["update", "--error-on=any"]), || {})?;
        step.done();
        let plan = process::capture("apt-get", &mut self.get(&["install", "--print-uris", package]), || {})?;
        let step =
            Step::download(&format!("Fetching Debian's {package} with its libraries"), planned_bytes(&plan));
        let archives = self.folder.join("cache/archives");
        let mut install = self.get(&["install", "--download-only", package]);
        process::capture("apt-get", &mut install, || step.show_size_of(&archives))?;
        step.done();
        Ok(())
    }

    fn archives(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.folder.join("cache/archives")).context("list the downloads")?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        if files.is_empty() {
            bail!("apt downloaded nothing");
        }
        Ok(files)
    }
}

/// Adds up the sizes in lines of the form `'URI' NAME SIZE HASH`.
fn planned_bytes(plan: &str) -> u64 {
    let uris = plan.lines().filter(|line| line.starts_with('\''));
    uris.filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planned_bytes_counts_the_downloads_and_nothing_else() {
        let plan = "Reading package lists...\nNeed to get 12 kB\n\
                    'http://m.example/a_1_amd64.deb' a_1_amd64.deb 100 SHA256:00\n\
                    'http://m.example/b_2_all.deb' b_2_all.deb 23 SHA256:01\n";
        assert_eq!(planned_bytes(plan), 123);
    }
}
