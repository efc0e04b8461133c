//! Log lines on their way out: those of requests together, warnings at once.
//!
//! A line for each request is a write for each request, which costs a small one a tenth of its time. So lines wait a
//! moment for others. Nothing is held back longer, and a warning takes along what waits before it.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long a line waits for others.
const GATHER: Duration = Duration::from_millis(20);

/// What waits is written when it is this much.
const MOST_BYTES: usize = 32 * 1024;

struct State {
    waiting: Vec<u8>,
    out: Box<dyn Write + Send>,
    /// Nobody comes to write what waits any more.
    closed: bool,
}

impl State {
    fn flush(&mut self) {
        // There is nowhere left to say that a log cannot be written.
        let _ = self.out.write_all(&self.waiting).and_then(|()| self.out.flush());
        self.waiting.clear();
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    /// A panic of whoever held the lock left whole lines.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8], at_once: bool) {
        let mut state = self.lock();
        let is_first = state.waiting.is_empty();
        state.waiting.extend_from_slice(line);
        if at_once || state.closed || state.waiting.len() >= MOST_BYTES {
            state.flush();
        } else if is_first {
            self.changed.notify_one();
        }
    }

    /// Writes what waits, a moment after its first line came, until the end.
    fn write_on(&self, gather: Duration) {
        let mut state = self.lock();
        while !state.closed {
            if state.waiting.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = self.changed.wait_timeout_while(state, gather, |state| !state.closed);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.flush();
        }
    }
}

/// Gathers lines until it is dropped, which writes the last ones.
pub struct Lines {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

impl Lines {
    /// Writes to standard error.
    pub(super) fn to_stderr() -> Self {
        Self::gathering(GATHER, Box::new(io::stderr()))
    }

    fn gathering(gather: Duration, out: Box<dyn Write + Send>) -> Self {
        let state = State { waiting: Vec::new(), out, closed: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let theirs = shared.clone();
        let writer = std::thread::Builder::new().name("log".into()).spawn(move || theirs.write_on(gather));
        // Without a thread each line is written as it comes.
        if writer.is_err() {
            shared.lock().closed = true;
        }
        Self { shared, writer: writer.ok() }
    }

    /// Makes what hands lines over.
    pub(super) fn sender(&self) -> Sender {
        Sender(self.shared.clone())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.flush();
        drop(state);
        self.shared.changed.notify_one();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Hands lines over.
#[derive(Clone)]
pub(super) struct Sender(Arc<Shared>);

impl<'a> MakeWriter<'a> for Sender {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { shared: &self.0, at_once: true }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        Line { shared: &self.0, at_once: *meta.level() <= Level::WARN }
    }
}

/// One line; it comes in one piece.
pub(super) struct Line<'a> {
    shared: &'a Shared,
    at_once: bool,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.shared.add(line, self.at_once);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Gives each write away.
    struct Out(mpsc::Sender<String>);

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(String::from_utf8_lossy(bytes).into_owned()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(gather: Duration) -> (Lines, mpsc::Receiver<String>) {
        let (sender, writes) = mpsc::channel();
        (Lines::gathering(gather, Box::new(Out(sender))), writes)
    }

    const NEVER: Duration = Duration::from_secs(3600);
    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_warning_is_written_at_once_behind_what_waited() {
        let (lines, writes) = lines(NEVER);
        for (line, at_once) in [("one\n", false), ("two\n", false), ("bad\n", true), ("three\n", false)] {
            lines.shared.add(line.as_bytes(), at_once);
        }
        assert_eq!(writes.try_iter().collect::<Vec<_>>(), ["one\ntwo\nbad\n"]);
        drop(lines);
        assert_eq!(writes.iter().collect::<Vec<_>>(), ["three\n"], "the end writes the rest");
    }

    #[test]
    fn a_lone_line_is_written_a_moment_later() {
        let (lines, writes) = lines(Duration::from_millis(1));
        for line in ["one\n", "two\n"] {
            lines.shared.add(line.as_bytes(), false);
            assert_eq!(writes.recv_timeout(SOON).unwrap(), line);
        }
    }

    #[test]
    fn what_waits_is_bounded() {
        let (lines, writes) = lines(NEVER);
        let line = [b'x'; 1000];
        for _ in 0..100 {
            lines.shared.add(&line, false);
        }
        let written: Vec<_> = writes.try_iter().map(|write| write.len()).collect();
        assert_eq!(written, [33_000, 33_000, 33_000]);
    }

    #[test]
    fn a_line_after_the_end_is_written_as_it_comes() {
        let (lines, writes) = lines(NEVER);
        let sender = lines.sender();
        drop(lines);
        sender.0.add(b"late\n", false);
        assert_eq!(writes.recv_timeout(SOON).unwrap(), "late\n");
    }
}
