//! The README's tables of metrics, and scrapes in the same form. The worker's tests use this file as well.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Fails unless the scrape has the metrics of one table, with their types and labels, and no others.
pub fn assert_documented(table: &str, scrape: &str) {
    let (documented, scraped) = (documented(table), scraped(scrape));
    let undocumented: Vec<_> = scraped.difference(&documented).collect();
    let missing: Vec<_> = documented.difference(&scraped).collect();
    assert!(
        undocumented.is_empty() && missing.is_empty(),
        "only in the scrape: {undocumented:#?}\nonly in the README's table {table:?}: {missing:#?}"
    );
}

/// Fails when a name stands in both tables, but for those of any process: one name has one set of labels.
pub fn assert_no_name_is_shared() {
    let name = |row: &String| row.split(' ').next().unwrap_or_default().to_owned();
    let names = |table| documented(table).iter().map(name).collect::<BTreeSet<_>>();
    let (relay, worker) = (names("Relay"), names("Worker"));
    let shared: Vec<_> = relay.intersection(&worker).filter(|name| !name.starts_with("process_")).collect();
    assert!(shared.is_empty(), "{shared:?}");
}

/// Runs `promtool check metrics` on a scrape, where there is one.
pub fn lint(scrape: &str) {
    let Some(promtool) = std::env::var_os("MODELRELAY_PROMTOOL") else {
        let text = "SKIPPED: the lint of metrics needs MODELRELAY_PROMTOOL; `cargo xtask test` sets it";
        assert!(std::env::var_os("REQUIRE_ALL").is_none_or(|value| value != "1"), "{text}");
        // Not by a macro: what those print is shown for failed tests only.
        std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
        return;
    };
    let mut lint = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    lint.stdin.take().unwrap().write_all(scrape.as_bytes()).unwrap();
    let output = lint.wait_with_output().unwrap();
    let findings = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && findings.is_empty(), "{}", String::from_utf8_lossy(&findings));
}

/// The rows of a table between the README's markers, in the form of [`row`]. A row may name several metrics.
fn documented(table: &str) -> BTreeSet<String> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let between = readme.split_once("<!-- metrics:begin -->").unwrap().1;
    let between = between.split_once("<!-- metrics:end -->").unwrap().0;
    let (_, section) = between.split_once(&format!("### {table}\n")).expect("the table has a heading");
    let section = section.split("\n### ").next().unwrap();
    let mut rows = BTreeSet::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [names, kind, labels, meaning] = cells[..] else { panic!("not four cells: {line}") };
        assert!(!meaning.is_empty(), "{line}");
        let is_told = |name: &&str| cfg!(target_os = "linux") || !name.starts_with("process_");
        for name in quoted(names).into_iter().filter(is_told) {
            assert!(rows.insert(row(name, kind, &quoted(labels))), "{name} is there twice");
        }
    }
    rows
}

/// What stands between backticks.
fn quoted(cell: &str) -> BTreeSet<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn scraped(scrape: &str) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    let (mut name, mut kind) = ("", "");
    for line in scrape.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            (name, kind) = family.split_once(' ').unwrap();
        } else if !line.starts_with('#') {
            assert!(line.starts_with(name), "{line} stands below {name}");
            rows.insert(row(name, kind, &labels(line)));
        }
    }
    rows
}

/// The names of a sample's labels, but for the bounds of buckets.
fn labels(sample: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut rest = sample.split_once('{').map_or("", |(_, labels)| labels);
    while let Some((name, value)) = rest.split_once("=\"") {
        names.insert(name.trim_start_matches(','));
        let mut escaped = false;
        let end = value.find(|c| {
            let closes = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            closes
        });
        rest = &value[end.expect("a value is closed") + 1..];
    }
    names.remove("le");
    names
}

fn row(name: &str, kind: &str, labels: &BTreeSet<&str>) -> String {
    let labels: Vec<_> = labels.iter().copied().collect();
    format!("{name} {kind} {{{}}}", labels.join(","))
}
