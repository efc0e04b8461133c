//! Checks an event stream of the stub while it comes: each event in its place, every byte as it was sent.

use dev_backend::Mark;

/// What is wrong with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An event is missing, doubled or out of place.
    #[error("event {got} came where {expected} was due")]
    Sequence { expected: u32, got: u32 },
    /// The bytes are not those that were sent.
    #[error("the bytes do not fit their CRC")]
    Crc,
    /// The closing event counts others than came.
    #[error("{count} events were sent and {got} came")]
    Count { count: u32, got: u32 },
    /// The stream ended without its closing event, or something follows it.
    #[error("the stream has no proper end")]
    End,
}

/// Follows one stream.
#[derive(Debug, Default)]
pub struct StreamCheck {
    /// The start of an event whose rest has not come yet.
    partial: Vec<u8>,
    crc: crc32fast::Hasher,
    events: u32,
    ended: bool,
    /// What came after the closing event.
    rest: Vec<u8>,
    fault: Option<Fault>,
}

/// What may follow the closing event, by API.
const TERMINALS: [&[u8]; 3] =
    [b"data: [DONE]\n\n", b"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n", b""];
const MAX_PARTIAL: usize = 16 * 1024 * 1024;

impl StreamCheck {
    /// Takes the next bytes and reports, for each data event in them, when it was sent.
    pub fn feed(&mut self, bytes: &[u8], mut sent_at_micros: impl FnMut(u64)) {
        let mut bytes = bytes;
        if !self.partial.is_empty() {
            // The two line ends may themselves be apart.
            let seam = self.partial.len().saturating_sub(1);
            self.partial.extend_from_slice(bytes);
            let Some(end) = event_end(&self.partial, seam) else {
                if self.partial.len() > MAX_PARTIAL {
                    self.fault.get_or_insert(Fault::End);
                    self.partial.clear();
                }
                return;
            };
            let taken = end - (self.partial.len() - bytes.len());
            let event = std::mem::take(&mut self.partial);
            self.event(&event[..end], &mut sent_at_micros);
            bytes = &bytes[taken..];
        }
        while let Some(end) = event_end(bytes, 0) {
            self.event(&bytes[..end], &mut sent_at_micros);
            bytes = &bytes[end..];
        }
        self.partial.extend_from_slice(bytes);
    }

    fn event(&mut self, event: &[u8], sent_at_micros: &mut impl FnMut(u64)) {
        // A comment is no part of the stream; an intermediary may add some while it waits.
        if event.starts_with(b":") {
            return;
        }
        if self.ended {
            self.rest.extend_from_slice(event);
            return;
        }
        match Mark::read(event) {
            Some(Mark::Event { seq, at_micros }) => {
                if seq != self.events {
                    self.fault.get_or_insert(Fault::Sequence { expected: self.events, got: seq });
                }
                self.events += 1;
                sent_at_micros(at_micros);
            }
            Some(Mark::End { count, crc32 }) => {
                self.ended = true;
                if self.crc.clone().finalize() != crc32 {
                    self.fault.get_or_insert(Fault::Crc);
                }
                if count != self.events {
                    self.fault.get_or_insert(Fault::Count { count, got: self.events });
                }
            }
            None => {}
        }
        self.crc.update(event);
    }

    /// Data events so far.
    pub fn events(&self) -> u32 {
        self.events
    }

    /// Returns the number of data events of a stream that came whole.
    ///
    /// # Errors
    /// What is wrong with it, the first thing found.
    pub fn finish(self) -> Result<u32, Fault> {
        let Self { partial, crc: _, events, ended, rest, fault } = self;
        if let Some(fault) = fault {
            return Err(fault);
        }
        let whole = ended && partial.is_empty() && TERMINALS.contains(&rest.as_slice());
        if whole { Ok(events) } else { Err(Fault::End) }
    }
}

fn event_end(bytes: &[u8], from: usize) -> Option<usize> {
    memchr::memmem::find(&bytes[from..], b"\n\n").map(|at| from + at + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u32) -> String {
        format!("data: {{\"a\":1,\"stub\":{{\"seq\":{seq:>10},\"at\":{:>16}}}}}\n\n", seq + 100)
    }

    fn stream(events: u32) -> String {
        let body: String = (0..events).map(event).collect();
        let crc32 = crc32fast::hash(body.as_bytes());
        format!(
            "{body}data: {{\"stub\":1,\"stub\":{{\"count\":{events:>10},\"crc32\":{crc32:>10}}}}}\n\ndata: [DONE]\n\n"
        )
    }

    fn check(text: &str, piece: usize) -> Result<u32, Fault> {
        let mut check = StreamCheck::default();
        let mut times = Vec::new();
        for piece in text.as_bytes().chunks(piece) {
            check.feed(piece, |at| times.push(at));
        }
        assert!(times.iter().zip(100..).all(|(at, expected)| *at == expected) || check.fault.is_some());
        check.finish()
    }

    #[test]
    fn a_whole_stream_is_right_however_it_is_cut() {
        for piece in 1..300 {
            assert_eq!(check(&stream(5), piece), Ok(5), "pieces of {piece}");
        }
        assert_eq!(check(&stream(0), 7), Ok(0));
    }

    #[test]
    fn comments_do_not_count() {
        assert_eq!(check(&format!(": waiting\n\n{}", stream(3)), 11), Ok(3));
    }

    #[test]
    fn every_fault_is_found() {
        let good = stream(5);
        for piece in [1, 13, 1000] {
            assert_eq!(check(&good.replacen("\"a\":1", "\"a\":2", 1), piece), Err(Fault::Crc));
            assert_eq!(
                check(&good.replace(&event(2), ""), piece),
                Err(Fault::Sequence { expected: 2, got: 3 })
            );
            let doubled = good.replace(&event(2), &format!("{}{}", event(2), event(2)));
            assert_eq!(check(&doubled, piece), Err(Fault::Sequence { expected: 3, got: 2 }));
            assert_eq!(check(&good.replace("\"count\":         5", "\"count\":         6"), piece), {
                Err(Fault::Count { count: 6, got: 5 })
            });
            assert_eq!(check(good.trim_end(), piece), Err(Fault::End));
            assert_eq!(check(&format!("{good}data: more\n\n"), piece), Err(Fault::End));
            assert_eq!(check(&event(0), piece), Err(Fault::End));
        }
    }
}
