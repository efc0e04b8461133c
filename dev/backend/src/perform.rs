//! Sends a planned answer, at its pace and up to its failure.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::WriteHalf;
use tokio::time::{Instant, sleep, sleep_until};

use crate::clock::micros_now;
use crate::mark::{AT_FROM_END, AT_WIDTH, Mark, SEQ_FROM_END, SEQ_WIDTH, patch};
use crate::plan::{Body, Framing, Plan};
use crate::script::{At, Fail, Script};
use crate::shape::Events;
use crate::stats::{Phase, Running};

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It serves the next request.
    KeepAlive,
    /// It is closed after a whole answer.
    Close,
    /// It is closed because the answer failed as its script says.
    Broken,
    /// The same, with a reset.
    Reset,
}

const GARBAGE: &[u8] = b"\x16\x03\x01\xff\xfe no HTTP in here \x00\r\n\r\n";
/// Bytes to a write of a body whose script sets no pace.
const LARGE_PIECE: usize = 64 * 1024;

/// The writing half of a connection, with what is to go out with the next write.
#[derive(Debug)]
pub(crate) struct Out<'a> {
    socket: WriteHalf<'a>,
    held: Vec<u8>,
}

impl<'a> Out<'a> {
    pub(crate) fn new(socket: WriteHalf<'a>) -> Self {
        Self { socket, held: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.held.is_empty() {
            return self.socket.write_all(bytes).await;
        }
        self.held.extend_from_slice(bytes);
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.socket.write_all(&self.held).await?;
        self.held.clear();
        Ok(())
    }

    /// Adds a piece of the body, framed, to the next write.
    fn hold(&mut self, piece: &[u8], framing: Framing) {
        if framing == Framing::Chunked {
            self.held.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            self.held.extend_from_slice(piece);
            self.held.extend_from_slice(b"\r\n");
        } else {
            self.held.extend_from_slice(piece);
        }
    }

    async fn fail(&mut self, fail: Fail) -> io::Result<Ending> {
        match fail {
            Fail::Reset => Ok(Ending::Reset),
            Fail::Close => Ok(Ending::Broken),
            Fail::Garbage => self.send(GARBAGE).await.map(|()| Ending::Broken),
            // The client's close ends this future from outside.
            Fail::Stall => std::future::pending().await,
        }
    }
}

/// Sends the answer. An error means that the client is gone.
pub(crate) async fn perform(
    plan: Plan,
    server: &str,
    out: &mut Out<'_>,
    running: &Running<'_>,
) -> io::Result<Ending> {
    let script = &*plan.script;
    pause(script.head_delay_ms).await;
    if let Some(fail) = plan.failure(At::BeforeHead) {
        return out.fail(fail).await;
    }
    let head = plan.head(server);
    let fail = plan.failure(At::AfterHead);
    if script.slow_head_ms > 0 {
        for byte in &head {
            out.send(std::slice::from_ref(byte)).await?;
            pause(script.slow_head_ms).await;
        }
        running.enter(Phase::AfterHead);
    } else if matches!(plan.body, Body::Events(_)) || fail.is_some() || script.first_byte_delay_ms > 0 {
        // Engines send their head before they have any token.
        out.send(&head).await?;
        running.enter(Phase::AfterHead);
    } else {
        out.held.extend_from_slice(&head);
    }
    if let Some(fail) = fail {
        return out.fail(fail).await;
    }
    pause(script.first_byte_delay_ms).await;

    let failure = plan.failure(At::MidBody);
    let failed = match &plan.body {
        _ if plan.framing == Framing::None => None,
        Body::Whole(bytes) => {
            let mut rest = &bytes[..];
            let next = |piece: usize| {
                let (first, after) = rest.split_at(piece.min(rest.len()));
                rest = after;
                std::borrow::Cow::Borrowed(first)
            };
            pieces(&plan, bytes.len() as u64, next, out, running).await?
        }
        Body::Filled(filler, bytes) => {
            let (mut filler, mut left, mut buffer) = (filler.clone(), *bytes, Vec::new());
            let next = move |piece: usize| {
                buffer.resize(left.min(piece as u64) as usize, 0);
                left -= buffer.len() as u64;
                filler.fill(&mut buffer);
                std::borrow::Cow::Owned(buffer.clone())
            };
            pieces(&plan, *bytes, next, out, running).await?
        }
        Body::Events(events) => stream(&plan, events, out, running).await?,
    };
    // A failure beyond the last piece still keeps the answer from ending well.
    if let Some(fail) = failed.or(failure) {
        out.flush().await?;
        return out.fail(fail).await;
    }
    out.flush().await?;
    Ok(if plan.keep_alive { Ending::KeepAlive } else { Ending::Close })
}

/// Sends a body that is no event stream; returns the failure it ran into.
async fn pieces<'b>(
    plan: &Plan,
    bytes: u64,
    mut next: impl FnMut(usize) -> std::borrow::Cow<'b, [u8]>,
    out: &mut Out<'_>,
    running: &Running<'_>,
) -> io::Result<Option<Fail>> {
    let script = &*plan.script;
    let failure = plan.failure(At::MidBody);
    let shaped = script.interval_ms > 0 || script.chunked || failure.is_some();
    // Random bytes depend on where the pieces end, because a word is cut at each end.
    let as_scripted = shaped || matches!(plan.body, Body::Filled(..));
    let piece = if as_scripted { script.chunk_bytes } else { LARGE_PIECE };
    let mut pace = Pace::new(script);
    let mut sent = 0;
    let mut number = 0;
    let mut begun = false;
    while sent < bytes {
        if failure.is_some() && number == script.after_chunks {
            return Ok(failure);
        }
        pace.tick().await;
        let mut piece = next(piece);
        if script.omit_chunk != Some(number) {
            if script.corrupt_chunk == Some(number) {
                piece.to_mut()[0] ^= 1;
            }
            out.hold(&piece, plan.framing);
        }
        if shaped || out.held.len() >= LARGE_PIECE {
            out.flush().await?;
            if !begun {
                begun = true;
                running.enter(Phase::MidBody);
            }
        }
        sent += piece.len() as u64;
        number += 1;
    }
    if plan.framing == Framing::Chunked && failure.is_none() {
        out.held.extend_from_slice(b"0\r\n\r\n");
    }
    Ok(None)
}

/// Sends an event stream; returns the failure it ran into.
async fn stream(
    plan: &Plan,
    events: &Events,
    out: &mut Out<'_>,
    running: &Running<'_>,
) -> io::Result<Option<Fail>> {
    let script = &*plan.script;
    let failure = plan.failure(At::MidBody);
    let mut crc = crc32fast::Hasher::new();
    let mut template = Template::new(events, plan.framing);
    let mut pace = Pace::new(script);
    let batch = if script.interval_ms == 0 { script.batch } else { 1 };

    if !events.prologue.is_empty() {
        crc.update(events.prologue.as_bytes());
        out.hold(events.prologue.as_bytes(), plan.framing);
    }
    for number in 0..script.chunks {
        if failure.is_some() && number == script.after_chunks {
            return Ok(failure);
        }
        pace.tick().await;
        template.stamp(number, micros_now());
        crc.update(template.event());
        if script.omit_chunk == Some(number) {
            continue;
        }
        let spoilt = script.corrupt_chunk == Some(number);
        if spoilt {
            template.spoil();
        }
        if script.split {
            let (first, second) = template.framed.split_at(template.cut);
            out.send(first).await?;
            // Long enough for the other side to read the first half alone.
            sleep(Duration::from_millis(1)).await;
            out.send(second).await?;
        } else if (number + 1) % batch == 0 || number + 1 == script.chunks {
            out.send(&template.framed).await?;
        } else {
            out.held.extend_from_slice(&template.framed);
        }
        if spoilt {
            template.spoil();
        }
        if number == 0 {
            running.enter(Phase::MidBody);
        }
    }
    if failure.is_some() {
        return Ok(None);
    }
    if !events.epilogue.is_empty() {
        crc.update(events.epilogue.as_bytes());
        out.hold(events.epilogue.as_bytes(), plan.framing);
    }
    let mark = Mark::End { count: script.chunks, crc32: crc.finalize() };
    out.hold(format!("{}{}", events.end, mark.tail()).as_bytes(), plan.framing);
    if !events.terminal.is_empty() {
        out.hold(events.terminal.as_bytes(), plan.framing);
    }
    if plan.framing == Framing::Chunked {
        out.held.extend_from_slice(b"0\r\n\r\n");
    }
    Ok(None)
}

/// A data event framed once, of which only the mark changes.
struct Template {
    framed: Vec<u8>,
    event: std::ops::Range<usize>,
    text_at: usize,
    /// Where a split event is cut: inside the second character of its text, when that has two bytes.
    cut: usize,
}

impl Template {
    fn new(events: &Events, framing: Framing) -> Self {
        let mut framed = Vec::with_capacity(events.event.len() + 16);
        if framing == Framing::Chunked {
            framed.extend_from_slice(format!("{:x}\r\n", events.event.len()).as_bytes());
        }
        let start = framed.len();
        framed.extend_from_slice(events.event.as_bytes());
        let end = framed.len();
        if framing == Framing::Chunked {
            framed.extend_from_slice(b"\r\n");
        }
        let text_at = start + events.text_at;
        Self { framed, event: start..end, text_at, cut: text_at + 2 }
    }

    fn stamp(&mut self, seq: u32, at_micros: u64) {
        let end = self.event.end;
        patch(&mut self.framed[end - SEQ_FROM_END..][..SEQ_WIDTH], u64::from(seq));
        patch(&mut self.framed[end - AT_FROM_END..][..AT_WIDTH], at_micros);
    }

    fn event(&self) -> &[u8] {
        &self.framed[self.event.clone()]
    }

    /// Changes a byte of the text; a second call changes it back.
    fn spoil(&mut self) {
        self.framed[self.text_at] ^= 1;
    }
}

/// Lets an event through every interval.
struct Pace {
    interval: Duration,
    next: Option<Instant>,
}

impl Pace {
    fn new(script: &Script) -> Self {
        Self { interval: Duration::from_millis(script.interval_ms), next: None }
    }

    async fn tick(&mut self) {
        if self.interval.is_zero() {
            return;
        }
        let due = self.next.unwrap_or_else(Instant::now);
        sleep_until(due).await;
        self.next = Some(due + self.interval);
    }
}

async fn pause(milliseconds: u64) {
    if milliseconds > 0 {
        sleep(Duration::from_millis(milliseconds)).await;
    }
}
