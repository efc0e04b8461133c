//! How the suites went, said in the last lines.

use std::process::ExitCode;
use std::time::Duration;

/// How one suite went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of it is right.
    Passed,
    /// Some of it is wrong.
    Failed(String),
    /// It could not run for want of something.
    Skipped(String),
}

/// Collects the outcomes in their order.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<(String, Outcome, Duration)>,
}

impl Report {
    /// Adds a suite.
    pub(crate) fn add(&mut self, name: &str, outcome: Outcome, took: Duration) {
        self.rows.push((name.to_owned(), outcome, took));
    }

    /// Prints all outcomes and returns the exit code that they make.
    pub(crate) fn finish(&self, require_all: bool) -> ExitCode {
        print!("\n{}", self.text());
        if self.succeeded(require_all) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn succeeded(&self, require_all: bool) -> bool {
        self.rows.iter().all(|(_, outcome, _)| match outcome {
            Outcome::Passed => true,
            Outcome::Failed(_) => false,
            Outcome::Skipped(_) => !require_all,
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for (name, outcome, took) in &self.rows {
            let took = took.as_secs_f64();
            match outcome {
                Outcome::Passed => {
                    passed += 1;
                    text += &format!("passed   {name} ({took:.1} s)\n");
                }
                Outcome::Failed(why) => {
                    failed += 1;
                    text += &format!("FAILED   {name} ({took:.1} s): {why}\n");
                }
                Outcome::Skipped(why) => {
                    skipped += 1;
                    text += &format!("SKIPPED  {name}: {why}\n");
                }
            }
        }
        text + &format!("suites: {passed} passed, {failed} failed, {skipped} skipped\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: [Outcome; 2]) -> Report {
        let rows = outcomes.into_iter().map(|outcome| ("suite".to_owned(), outcome, Duration::from_secs(1)));
        Report { rows: rows.collect() }
    }

    #[test]
    fn a_skipped_suite_is_named_and_fails_only_where_all_are_required() {
        let report = report([Outcome::Passed, Outcome::Skipped("no engine".into())]);
        assert!(report.succeeded(false));
        assert!(!report.succeeded(true));
        assert_eq!(
            report.text(),
            "passed   suite (1.0 s)\nSKIPPED  suite: no engine\nsuites: 1 passed, 0 failed, 1 skipped\n"
        );
    }

    #[test]
    fn a_failed_suite_fails_the_run() {
        let report = report([Outcome::Failed("fmt failed".into()), Outcome::Passed]);
        assert!(!report.succeeded(false));
        assert!(report.text().ends_with("suites: 1 passed, 1 failed, 0 skipped\n"));
    }
}
