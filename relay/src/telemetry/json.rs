//! Lines as JSON objects: time, level, the event's fields, target.
//!
//! What they say is what the library's own format says of an event. That one writes a few bytes at a time through three
//! layers, each of which looks at them again: for the line of a small request a quarter of all the instructions that the
//! relay spent on it, between the end of the engine's answer and its way to the client.

use std::fmt;

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// More than the line of a request takes.
const LINE_BYTES: usize = 512;

/// Writes an event as one JSON object in one line.
#[derive(Debug)]
pub(super) struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::with_capacity(32);
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let metadata = event.metadata();
        let mut object = Object { line: Vec::with_capacity(LINE_BYTES), failed: false };
        object.line.push(b'{');
        object.entry("timestamp", &time);
        object.entry("level", metadata.level().as_str());
        event.record(&mut object);
        object.entry("target", metadata.target());
        object.line.extend_from_slice(b"}\n");
        if object.failed {
            return Err(fmt::Error);
        }
        writer.write_str(std::str::from_utf8(&object.line).map_err(|_| fmt::Error)?)
    }
}

/// An object that is being written.
struct Object {
    line: Vec<u8>,
    failed: bool,
}

impl Object {
    fn entry<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        if self.line.len() > 1 {
            self.line.push(b',');
        }
        let written = serde_json::to_writer(&mut self.line, name);
        self.line.push(b':');
        let written = written.and_then(|()| serde_json::to_writer(&mut self.line, value));
        self.failed |= written.is_err();
    }
}

impl Visit for Object {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.entry(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.entry(field.name(), &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.entry(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.entry(field.name(), &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.entry(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.entry(field.name(), &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use serde_json::Value;
    use tracing::{debug, error, info, info_span};
    use tracing_subscriber::fmt::{MakeWriter, SubscriberBuilder, fmt};

    use super::*;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl<'a> MakeWriter<'a> for Out {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    impl io::Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Logs all that fields can be; returns the lines without their times, and the names in their order.
    fn logged<S: Subscriber + Send + Sync>(
        finish: impl FnOnce(
            SubscriberBuilder<
                tracing_subscriber::fmt::format::DefaultFields,
                tracing_subscriber::fmt::format::Format,
                tracing_subscriber::filter::LevelFilter,
                Out,
            >,
        ) -> S,
    ) -> Vec<(Value, Vec<String>)> {
        let out = Out::default();
        let builder = fmt().with_max_level(tracing::Level::DEBUG).with_writer(out.clone());
        tracing::subscriber::with_default(finish(builder), || {
            let none: Option<&str> = None;
            let text = "quotes \" and \\, a line\nand a tab\t, \u{1} and \u{2028}, ü and 🦀";
            info!(text, none, some = Some("thing"), status = 200_u16, below = -1_i64, "Request ended");
            debug!(whole = 3.0, part = 0.125, huge = 1e300, tiny = 1e-7, never = f64::NAN, "Numbers");
            error!(target: "other", yes = true, shown = %"a \"b\"", debugged = ?Some("c"), big = u64::MAX);
            let _span = info_span!("around", secret = "x").entered();
            info!("{} in braces {{}}", 1);
        });
        let lines = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let names = |line: &str| {
            let object: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
            let mut at: Vec<_> =
                object.keys().map(|name| (line.find(&format!("\"{name}\":")), name.clone())).collect();
            at.sort();
            at.into_iter().map(|(_, name)| name).collect()
        };
        let without_time = |line: &str| {
            let mut object: Value = serde_json::from_str(line).unwrap();
            let time = object.as_object_mut().unwrap().remove("timestamp").unwrap();
            assert_eq!(time.as_str().unwrap().len(), "2026-11-26T10:23:53.082937Z".len());
            object
        };
        lines.lines().map(|line| (without_time(line), names(line))).collect()
    }

    #[test]
    fn a_line_says_what_the_library_would_say() {
        let ours = logged(|builder| builder.event_format(Json).finish());
        let theirs = logged(|builder| {
            builder.json().flatten_event(true).with_current_span(false).with_span_list(false).finish()
        });
        assert_eq!(ours.len(), 4);
        assert_eq!(ours, theirs);
    }
}
