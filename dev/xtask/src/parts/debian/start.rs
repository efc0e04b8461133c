//! How a program of an unpacked package finds the loader and the libraries that came with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Launch, Package};
use crate::process;

/// A program and what starts it, all below one folder.
#[derive(Debug)]
pub(crate) struct Start {
    root: PathBuf,
    loader: PathBuf,
    searched: Vec<PathBuf>,
    program: PathBuf,
    plugins: Option<PathBuf>,
}

impl Start {
    /// Puts a copy of the loader where the program looks for its plugins, and finds everything.
    pub(super) fn prepare(root: &Path, package: &Package) -> Result<Self> {
        let start = Self::find(root, package)?;
        if start.plugins.is_some() {
            fs::copy(packaged_loader(&library_folders(root))?, &start.loader).context("copy the loader")?;
        }
        Ok(start)
    }

    /// Finds everything in a folder that was prepared.
    pub(super) fn find(root: &Path, package: &Package) -> Result<Self> {
        let libraries = library_folders(root);
        let plugins = package.plugins.map(|plugins| {
            let folder = libraries.iter().map(|folder| folder.join(plugins)).find(|folder| folder.is_dir());
            folder.context("the packages hold no plugins")
        });
        let plugins = plugins.transpose()?;
        let loader = match &plugins {
            Some(plugins) => plugins.join("loader"),
            None => packaged_loader(&libraries)?,
        };
        let inner =
            |folder: &PathBuf| package.libraries.iter().map(|name| folder.join(name)).collect::<Vec<_>>();
        let searched = libraries.iter().flat_map(|folder| [vec![folder.clone()], inner(folder)].concat());
        let searched = searched.filter(|folder| folder.is_dir()).collect();
        let (root, program) = (root.to_owned(), root.join(package.program));
        Ok(Self { root, loader, searched, program, plugins })
    }

    /// Returns a script that starts the program when it stands beside the folder `root`.
    pub(super) fn script(&self, launch: Launch) -> String {
        let searched = self.search_path("$root");
        let start = match launch {
            Launch::Loader => {
                format!("exec \"$root{}\" --library-path \"{searched}\"", self.inside(&self.loader))
            }
            Launch::Variable | Launch::Machine => format!("LD_LIBRARY_PATH=\"{searched}\" exec"),
        };
        format!(
            "#!/bin/sh\n\
             # Starts the program with the libraries it was packaged for, whatever the machine's are.\n\
             root=$(CDPATH= cd -- \"$(dirname -- \"$0\")\" && pwd)/root\n\
             {start} \"$root{}\" \"$@\"\n",
            self.inside(&self.program)
        )
    }

    /// Returns what starts the program in an image that holds [`Start::files`].
    pub(crate) fn entrypoint(&self) -> Vec<String> {
        let flag = "--library-path".to_owned();
        vec![self.inside(&self.loader), flag, self.search_path(""), self.inside(&self.program)]
    }

    /// Returns the files without which the program does not start, and where they stand in an image.
    ///
    /// # Errors
    /// When the loader cannot list them.
    pub(crate) fn files(&self) -> Result<Vec<(PathBuf, String)>> {
        let plugins = self.plugins.iter().map(|folder| fs::read_dir(folder).context("list the plugins"));
        let plugins = plugins.collect::<Result<Vec<_>>>()?.into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = plugins.map(|entry| entry.path()).collect();
        files.push(self.program.clone());
        let started: Vec<PathBuf> = files.iter().filter(|file| **file != self.loader).cloned().collect();
        files.push(self.loader.clone());
        for file in started {
            let mut list = Command::new(&self.loader);
            list.arg("--library-path").arg(self.search_path(&self.root.display().to_string()));
            let listed = process::capture("the loader", list.arg("--list").arg(file), || {})?;
            files.extend(below(&self.root, &listed));
        }
        files.sort();
        files.dedup();
        let placed = files.into_iter().map(|file| {
            let inside = self.inside(&file);
            (file, inside)
        });
        Ok(placed.collect())
    }

    /// Returns where the libraries are, as the loader's flag has it, with something else for the root.
    fn search_path(&self, root: &str) -> String {
        let searched = self.searched.iter().map(|folder| format!("{root}{}", self.inside(folder)));
        searched.collect::<Vec<_>>().join(":")
    }

    fn inside(&self, path: &Path) -> String {
        let inside = path.strip_prefix(&self.root).expect("the path was found below the root");
        format!("/{}", inside.display())
    }
}

/// Finds the files below a folder in what a loader lists: lines of the form `NAME => FILE (ADDRESS)`.
fn below(root: &Path, listed: &str) -> Vec<PathBuf> {
    let files = listed.lines().filter_map(|line| {
        let file = line.split_once(" => ").map_or(line, |(_, file)| file).trim();
        Some(PathBuf::from(file.rsplit_once(" (")?.0))
    });
    files.filter(|file| file.starts_with(root)).collect()
}

fn packaged_loader(libraries: &[PathBuf]) -> Result<PathBuf> {
    let loader = libraries.iter().find_map(|folder| file_starting_with(folder, "ld-linux"));
    loader.context("the packages hold no loader")
}

/// Returns the folders of an architecture's libraries (`x86_64-linux-gnu`).
fn library_folders(root: &Path) -> Vec<PathBuf> {
    let bases = ["usr/lib", "lib"].map(|base| root.join(base));
    let entries = bases.iter().flat_map(|base| fs::read_dir(base).into_iter().flatten().flatten());
    let folders = entries.map(|entry| entry.path());
    folders.filter(|path| path.is_dir() && path.to_string_lossy().contains("-linux-gnu")).collect()
}

fn file_starting_with(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    entries
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_loader_lists_is_read_whatever_the_folders_are_called() {
        let listed = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                      \tlibllama.so.0 => /a (b)/root/usr/lib/libllama.so.0 (0x00007f01)\n\
                      \tlibm.so.6 => /usr/lib/libm.so.6 (0x00007f02)\n\
                      \tlibgone.so.1 => not found\n\
                      \t/a (b)/root/usr/lib/loader (0x00007f03)\n";
        let found = below(Path::new("/a (b)/root"), listed);
        let expected = ["libllama.so.0", "loader"].map(|name| Path::new("/a (b)/root/usr/lib").join(name));
        assert_eq!(found, expected);
    }
}
