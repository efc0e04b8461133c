//! Ollama: `/api/ps` lists the models in memory. It tells no counts of requests.

use modelrelay_protocol::frame::LoadReport;
use serde::Deserialize;

pub(super) const PATH: &str = "/api/ps";

#[derive(Deserialize)]
struct Loaded {
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
}

/// Lists the loaded models.
pub(super) fn read(body: &[u8]) -> Option<LoadReport> {
    let loaded: Loaded = serde_json::from_slice(body).ok()?;
    let loaded_models = loaded.models.into_iter().map(|model| model.name).collect();
    Some(LoadReport { loaded_models, ..LoadReport::default() })
}

#[cfg(test)]
mod tests {
    #[test]
    fn loaded_models_are_listed() {
        let body = br#"{"models":[{"name":"qwen3:8b","model":"qwen3:8b","size_vram":5137025024}]}"#;
        assert_eq!(super::read(body).unwrap().loaded_models, ["qwen3:8b"]);
        assert!(super::read(br#"{"models":[]}"#).unwrap().loaded_models.is_empty());
        assert_eq!(super::read(b"404 page not found"), None);
    }
}
