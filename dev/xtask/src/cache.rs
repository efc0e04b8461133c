//! The cache folder: each part in a folder of its own, made once, whole or not at all.

use std::env;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::clock;

// One run may have to wait for another that downloads on a slow line.
const OTHER_RUN: Duration = Duration::from_secs(1800);

/// Returns the folder that holds the parts.
///
/// # Errors
/// When the user has none.
pub(crate) fn root() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(path) => path,
        None => env::home_dir().context("neither XDG_CACHE_HOME nor a home directory is set")?.join(".cache"),
    };
    Ok(base.join("modelrelay"))
}

/// Returns the folder called `name`, and when it is not there yet, lets `make` fill it first.
///
/// The name says the version: a folder never changes once it is there. `make` works in a
/// folder that is renamed when it succeeds, and only one run at a time makes a folder.
///
/// # Errors
/// When `make` fails or the cache cannot be written.
pub(crate) fn folder(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let root = root()?;
    let finished = root.join(name);
    if finished.exists() {
        return Ok(finished);
    }
    fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
    let _lock = lock(&root.join(format!("{name}.lock")))?;
    if finished.exists() {
        return Ok(finished);
    }
    let partial = root.join(format!("{name}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial).context("remove what an interrupted run left")?;
    }
    fs::create_dir(&partial).with_context(|| format!("create {}", partial.display()))?;
    let made =
        make(&partial).and_then(|()| fs::rename(&partial, &finished).context("rename the finished folder"));
    if made.is_err() {
        // The error that is returned says more than a failure to clean up after it.
        let _ = fs::remove_dir_all(&partial);
    }
    made.map(|()| finished).with_context(|| format!("fetch {name}"))
}

fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut told = false;
    clock::poll("the run that fetches the same", Duration::from_millis(200), OTHER_RUN, || {
        match file.try_lock() {
            Ok(()) => Ok(Some(())),
            Err(TryLockError::WouldBlock) => {
                if !told {
                    eprintln!("waiting for another run that fetches the same …");
                    told = true;
                }
                Ok(None)
            }
            Err(TryLockError::Error(error)) => Err(error).context("lock the cache"),
        }
    })?;
    Ok(file)
}

/// Returns the SHA-256 of what is read, in hexadecimal digits.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn sha256_of(source: &mut impl Read) -> Result<String> {
    let mut digest = Digester(Sha256::new());
    io::copy(source, &mut digest).context("read what is to be summed")?;
    Ok(digest.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Lets `io::copy` feed the digest, whatever `std::io` support its crate was built with.
struct Digester(Sha256);

impl Write for Digester {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
