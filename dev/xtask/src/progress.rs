//! What the user sees while something takes long, on standard error.

use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::clock::Stopwatch;

/// Something that takes a while: a line in a log, a moving display on a terminal.
#[derive(Debug)]
pub(crate) struct Step {
    what: String,
    bar: ProgressBar,
    watch: Stopwatch,
}

impl Step {
    /// Begins something of unknown length.
    pub(crate) fn begin(what: impl Into<String>) -> Self {
        Self::new(what.into(), ProgressBar::new_spinner(), "{spinner} {msg} ({elapsed})")
    }

    /// Begins the download of about so many bytes.
    pub(crate) fn download(what: &str, bytes: u64) -> Self {
        let what = format!("{what}, {} MB", bytes.div_ceil(1_000_000));
        Self::new(
            what,
            ProgressBar::new(bytes),
            "{msg} {wide_bar} {decimal_bytes} of {decimal_total_bytes}, {eta} left",
        )
    }

    fn new(what: String, bar: ProgressBar, template: &str) -> Self {
        if std::io::stderr().is_terminal() {
            bar.set_style(ProgressStyle::with_template(template).expect("the templates above are valid"));
            bar.set_message(what.clone());
            bar.enable_steady_tick(Duration::from_millis(200));
        } else {
            eprintln!("{what} …");
        }
        Self { what, bar, watch: Stopwatch::start() }
    }

    /// Shows the size of what a folder holds so far.
    pub(crate) fn show_size_of(&self, folder: &Path) {
        self.bar.set_position(size_of(folder));
    }

    /// Ends the display with one line that stays.
    pub(crate) fn done(self) {
        self.bar.finish_and_clear();
        eprintln!("{}: done in {:.1} s", self.what, self.watch.elapsed().as_secs_f64());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn size_of(folder: &Path) -> u64 {
    // Files come and go while they are counted; one that is gone counts nothing.
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, metadata)| if metadata.is_dir() { size_of(&path) } else { metadata.len() })
        .sum()
}
