//! llama.cpp's `llama-server`: `/slots` lists its slots (switched off by `--no-slots`).

use modelrelay_protocol::frame::LoadReport;
use serde::Deserialize;

pub(super) const PATH: &str = "/slots";

#[derive(Deserialize)]
struct Slot {
    is_processing: bool,
}

/// Counts the busy slots. What waits behind them is not told there.
pub(super) fn read(body: &[u8]) -> Option<LoadReport> {
    let slots: Vec<Slot> = serde_json::from_slice(body).ok()?;
    let busy = slots.iter().filter(|slot| slot.is_processing).count();
    Some(LoadReport { running: u32::try_from(busy).ok(), ..LoadReport::default() })
}

#[cfg(test)]
mod tests {
    #[test]
    fn busy_slots_are_counted() {
        let body = br#"[{"id":0,"n_ctx":4096,"is_processing":true},{"id":1,"is_processing":false}]"#;
        assert_eq!(super::read(body).unwrap().running, Some(1));
        assert_eq!(super::read(br#"{"error":"not supported"}"#), None);
    }
}
