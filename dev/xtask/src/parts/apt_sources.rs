//! Finds out from the machine's own apt sources where it gets Debian packages from.

/// A Debian archive as the machine knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Archive {
    /// Where it is.
    pub(crate) uri: String,
    /// The keyring it is to be checked with, when the sources name one.
    pub(crate) signed_by: Option<String>,
}

impl Archive {
    /// Writes the source entry for another suite of the same archive.
    pub(crate) fn entry(&self, suite: &str) -> String {
        let Self { uri, signed_by } = self;
        let key = signed_by.as_ref().map(|path| format!("Signed-By: {path}\n")).unwrap_or_default();
        format!("Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n{key}")
    }
}

/// Finds the archive that serves `suite` in the one-line format of `sources.list`.
pub(crate) fn in_lines(text: &str, suite: &str) -> Option<Archive> {
    text.lines().find_map(|line| {
        let mut rest = line.trim().strip_prefix("deb ")?.trim_start();
        let mut signed_by = None;
        if let Some((options, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
            rest = after;
        }
        let mut words = rest.split_whitespace();
        let uri = words.next()?;
        let serves = words.next()? == suite && words.any(|component| component == "main");
        serves.then(|| Archive { uri: uri.to_owned(), signed_by: signed_by.map(str::to_owned) })
    })
}

/// Finds the archive that serves `suite` in the paragraphs of a `.sources` file.
pub(crate) fn in_paragraphs(text: &str, suite: &str) -> Option<Archive> {
    text.split("\n\n").find_map(|paragraph| {
        let field = |name: &str| {
            paragraph.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let has = |name: &str, word: &str| {
            field(name).is_some_and(|value| value.split_whitespace().any(|w| w == word))
        };
        let disabled = field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
        if disabled || !has("Types", "deb") || !has("Suites", suite) || !has("Components", "main") {
            return None;
        }
        let uri = field("URIs")?.split_whitespace().next()?.to_owned();
        // A key may also stand in the paragraph itself; only a path can be passed on.
        let signed_by = field("Signed-By").filter(|value| value.starts_with('/')).map(str::to_owned);
        Some(Archive { uri, signed_by })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_of_the_suite_is_found_among_paragraphs() {
        let text = "\
Types: deb
# comment: of the image
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg
";
        let archive = in_paragraphs(text, "bookworm").unwrap();
        assert_eq!(
            archive.entry("forky"),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: forky\nComponents: main\n\
             Signed-By: /usr/share/keyrings/archive.gpg\n"
        );
        assert_eq!(in_paragraphs(text, "trixie"), None);
    }

    #[test]
    fn disabled_paragraphs_do_not_count() {
        let text = "Enabled: no\nTypes: deb\nURIs: http://a.example/\nSuites: sid\nComponents: main\n";
        assert_eq!(in_paragraphs(text, "sid"), None);
    }

    #[test]
    fn the_archive_of_the_suite_is_found_among_lines() {
        let text = "\
# deb http://old.example/debian bookworm main
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm contrib main
";
        let expected =
            Archive { uri: "http://mirror.example/debian".into(), signed_by: Some("/k.gpg".into()) };
        assert_eq!(in_lines(text, "bookworm"), Some(expected));
        assert_eq!(in_lines(text, "bookworm-updates"), None);
    }
}
