//! What the stub writes at the end of each streamed event, and how a reader gets it back.
//!
//! Every figure has a fixed width (padded with spaces, which JSON allows before a number), so that the
//! writer patches bytes in place and the reader looks at fixed places from the event's end. The member is
//! the last one of the event's object, so an event ends like this:
//!
//! ```text
//! ,"stub":{"seq":         7,"at":1767225600000000}}\n\n
//! ,"stub":{"count":        20,"crc32":3421780262}}\n\n
//! ```

const SEQ: &[u8] = b",\"stub\":{\"seq\":";
const AT: &[u8] = b",\"at\":";
const COUNT: &[u8] = b",\"stub\":{\"count\":";
const CRC: &[u8] = b",\"crc32\":";
const CLOSE: &[u8] = b"}}\n\n";
const SMALL: usize = 10;
const LARGE: usize = 16;

/// Where the two figures of a data event start, counted from the end of the event.
pub(crate) const SEQ_FROM_END: usize = SMALL + AT.len() + AT_FROM_END;
pub(crate) const AT_FROM_END: usize = LARGE + CLOSE.len();
/// Bytes that a data event's mark takes.
pub(crate) const MARK_LEN: usize = SEQ.len() + SEQ_FROM_END;

/// The mark at the end of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A data event: its number from 0 and when it was written, in microseconds since the epoch.
    Event { seq: u32, at_micros: u64 },
    /// The closing event: how many data events came before it and the CRC32 of all bytes before it.
    End { count: u32, crc32: u32 },
}

impl Mark {
    /// Reads the mark of one whole event, its two line ends included.
    pub fn read(event: &[u8]) -> Option<Self> {
        if !event.ends_with(CLOSE) {
            return None;
        }
        if let Some((seq, at_micros)) = figures(event, SEQ, AT, LARGE) {
            return Some(Self::Event { seq: seq as u32, at_micros });
        }
        let (count, crc32) = figures(event, COUNT, CRC, SMALL)?;
        Some(Self::End { count: count as u32, crc32: crc32 as u32 })
    }

    /// Returns the text to close an event's object with, in place of its last `}` and line ends.
    pub(crate) fn tail(self) -> String {
        match self {
            Self::Event { seq, at_micros } => {
                format!(",\"stub\":{{\"seq\":{seq:>SMALL$},\"at\":{at_micros:>LARGE$}}}}}\n\n")
            }
            Self::End { count, crc32 } => {
                format!(",\"stub\":{{\"count\":{count:>SMALL$},\"crc32\":{crc32:>SMALL$}}}}}\n\n")
            }
        }
    }
}

fn figures(event: &[u8], first: &[u8], second: &[u8], second_width: usize) -> Option<(u64, u64)> {
    let second_end = event.len() - CLOSE.len();
    let second_start = second_end.checked_sub(second_width)?;
    let first_end = second_start.checked_sub(second.len())?;
    let first_start = first_end.checked_sub(SMALL)?;
    let name_start = first_start.checked_sub(first.len())?;
    if &event[name_start..first_start] != first || &event[first_end..second_start] != second {
        return None;
    }
    Some((number(&event[first_start..first_end])?, number(&event[second_start..second_end])?))
}

fn number(padded: &[u8]) -> Option<u64> {
    padded
        .trim_ascii_start()
        .iter()
        .try_fold(0u64, |sum, &byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0')))
}

/// Writes `value` right-aligned over `place`, whose length is the figure's width.
pub(crate) fn patch(place: &mut [u8], mut value: u64) {
    for byte in place.iter_mut().rev() {
        *byte = if value == 0 { b' ' } else { b'0' + (value % 10) as u8 };
        value /= 10;
    }
    if let Some(last) = place.last_mut().filter(|last| **last == b' ') {
        *last = b'0';
    }
}

/// Widths of the figures that [`patch`] writes in a data event.
pub(crate) const SEQ_WIDTH: usize = SMALL;
pub(crate) const AT_WIDTH: usize = LARGE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_as_they_were_written() {
        for mark in [
            Mark::Event { seq: 0, at_micros: 1_767_225_600_000_000 },
            Mark::Event { seq: u32::MAX, at_micros: 0 },
            Mark::End { count: 0, crc32: u32::MAX },
            Mark::End { count: 20, crc32: 7 },
        ] {
            let event = format!("data: {{\"a\":1{}", mark.tail());
            assert_eq!(Mark::read(event.as_bytes()), Some(mark));
            serde_json::from_str::<serde_json::Value>(event[6..].trim_end()).unwrap();
        }
    }

    #[test]
    fn patched_figures_read_like_formatted_ones() {
        let mut event =
            format!("data: {{\"a\":1{}", Mark::Event { seq: 0, at_micros: 0 }.tail()).into_bytes();
        assert_eq!(Mark::Event { seq: 0, at_micros: 0 }.tail().len(), MARK_LEN);
        let end = event.len();
        patch(&mut event[end - SEQ_FROM_END..][..SEQ_WIDTH], 41);
        patch(&mut event[end - AT_FROM_END..][..AT_WIDTH], 1_767_225_600_000_001);
        assert_eq!(Mark::read(&event), Some(Mark::Event { seq: 41, at_micros: 1_767_225_600_000_001 }));
        patch(&mut event[end - SEQ_FROM_END..][..SEQ_WIDTH], 0);
        assert!(matches!(Mark::read(&event), Some(Mark::Event { seq: 0, .. })));
    }

    #[test]
    fn other_events_have_no_mark() {
        for event in ["data: [DONE]\n\n", ": waiting\n\n", "", "}}\n\n", "data: {\"a\":{\"b\":1}}\n\n"] {
            assert_eq!(Mark::read(event.as_bytes()), None, "{event:?}");
        }
    }
}
