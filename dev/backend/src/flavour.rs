//! The routes beside inference, as the engines we know answer them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Which engine the stub resembles beside inference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// Nothing but OpenAI's and Anthropic's own routes.
    #[default]
    Openai,
    /// llama.cpp's `llama-server`: `/slots`, `/props`, `/metrics`.
    LlamaServer,
    /// Ollama: `/api/ps`, `/api/tags`, `/api/version`, and no `/health`.
    Ollama,
    /// vLLM: `/metrics`, `/version`.
    Vllm,
}

impl std::str::FromStr for Flavour {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        serde_json::from_value(Value::from(name))
            .map_err(|_| format!("flavour {name:?} is none of openai, llama-server, ollama, vllm"))
    }
}

/// What the routes report.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) models: &'a [String],
    pub(crate) running: u64,
    pub(crate) slots: u32,
    pub(crate) healthy: bool,
}

/// A short answer: status, content type, body.
pub(crate) type Short = (u16, &'static str, String);

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

impl Flavour {
    /// The `server` header.
    pub(crate) fn server(self) -> &'static str {
        match self {
            Self::Openai | Self::Ollama => "stub",
            Self::LlamaServer => "llama.cpp",
            Self::Vllm => "uvicorn",
        }
    }

    /// Answers a `GET`, or says that there is no such route.
    pub(crate) fn probe(self, path: &str, view: &View<'_>) -> Option<Short> {
        let json = |value: Value| Some((200, JSON, value.to_string()));
        match (self, path) {
            (_, "/v1/models") => json(self.models(view.models)),
            (Self::Ollama, "/") => Some((200, TEXT, "Ollama is running".to_owned())),
            (Self::Ollama, "/api/version") => json(json!({"version": "0.12.6"})),
            (Self::Ollama, "/api/ps" | "/api/tags") => json(ollama_models(view.models)),
            (Self::Ollama, _) => None,
            (_, "/health") => Some(self.health(view.healthy)),
            (Self::LlamaServer, "/slots") => json(llama_slots(view)),
            (Self::LlamaServer, "/props") => json(llama_props(view)),
            (Self::LlamaServer, "/metrics") => Some((200, TEXT, llama_metrics(view))),
            (Self::Vllm, "/version") => json(json!({"version": "0.11.0"})),
            (Self::Vllm, "/metrics") => Some((200, TEXT, vllm_metrics(view))),
            _ => None,
        }
    }

    fn health(self, healthy: bool) -> Short {
        match (self, healthy) {
            (Self::Vllm, true) => (200, TEXT, String::new()),
            (_, true) => (200, JSON, json!({"status": "ok"}).to_string()),
            (Self::LlamaServer, false) => {
                let error = json!({"message": "Loading model", "type": "unavailable_error", "code": 503});
                (503, JSON, json!({"error": error}).to_string())
            }
            (_, false) => (503, TEXT, String::new()),
        }
    }

    fn models(self, models: &[String]) -> Value {
        let owner = match self {
            Self::Openai => "stub",
            Self::LlamaServer => "llamacpp",
            Self::Ollama => "library",
            Self::Vllm => "vllm",
        };
        let entry = |id: &String| {
            let mut entry = json!({"id": id, "object": "model", "created": 1_767_225_600, "owned_by": owner});
            match self {
                Self::LlamaServer => entry["meta"] = json!({"n_ctx_train": 32768, "n_params": 268_098_176}),
                Self::Vllm => entry["max_model_len"] = json!(32768),
                Self::Openai | Self::Ollama => {}
            }
            entry
        };
        let mut answer = json!({"object": "list", "data": models.iter().map(entry).collect::<Vec<_>>()});
        if self == Self::LlamaServer {
            answer["models"] = models.iter().map(|name| json!({"name": name, "model": name})).collect();
        }
        answer
    }

    /// The body of the 404 for a model that is not there.
    pub(crate) fn model_not_found(self, anthropic: bool, model: &str) -> Value {
        if anthropic {
            return crate::shape::error(true, 404, &format!("model: {model}"));
        }
        let error = match self {
            Self::Openai => json!({
                "message": format!("The model `{model}` does not exist or you do not have access to it."),
                "type": "invalid_request_error", "param": null, "code": "model_not_found",
            }),
            Self::LlamaServer => json!({
                "message": format!("model '{model}' not found"), "type": "not_found_error", "code": 404,
            }),
            Self::Ollama => json!({
                "message": format!("model '{model}' not found"),
                "type": "not_found_error", "param": null, "code": null,
            }),
            Self::Vllm => json!({
                "message": format!("The model `{model}` does not exist."),
                "type": "NotFoundError", "param": "model", "code": 404,
            }),
        };
        json!({"error": error})
    }
}

fn llama_slots(view: &View<'_>) -> Value {
    let slot = |id: u32| {
        json!({
            "id": id, "n_ctx": 4096, "speculative": false,
            "is_processing": u64::from(id) < view.running,
            "params": {"n_predict": -1, "temperature": 0.8}, "next_token": [],
        })
    };
    (0..view.slots).map(slot).collect()
}

fn llama_props(view: &View<'_>) -> Value {
    json!({
        "default_generation_settings": {"n_ctx": 4096, "params": {"n_predict": -1}},
        "total_slots": view.slots,
        "model_path": view.models.first().map(|name| format!("{name}.gguf")),
        "modalities": {"vision": false, "audio": false},
        "build_info": "b6000-stub",
    })
}

fn ollama_models(models: &[String]) -> Value {
    let entry = |name: &String| {
        json!({
            "name": name, "model": name, "size": 291_554_930, "digest": "0".repeat(64),
            "details": {"format": "gguf", "family": "gemma3", "parameter_size": "268M", "quantization_level": "Q4_K_M"},
            "expires_at": "2036-01-01T00:00:00Z", "size_vram": 291_554_930, "context_length": 4096,
        })
    };
    json!({"models": models.iter().map(entry).collect::<Vec<_>>()})
}

fn gauge(text: &mut String, name: &str, help: &str, labels: &str, value: u64) {
    text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name}{labels} {value}.0\n"));
}

fn waiting(view: &View<'_>) -> u64 {
    view.running.saturating_sub(u64::from(view.slots))
}

fn llama_metrics(view: &View<'_>) -> String {
    let mut text = String::new();
    let busy = view.running.min(u64::from(view.slots));
    gauge(&mut text, "llamacpp:requests_processing", "Number of requests processing.", "", busy);
    gauge(&mut text, "llamacpp:requests_deferred", "Number of requests deferred.", "", waiting(view));
    text
}

fn vllm_metrics(view: &View<'_>) -> String {
    let mut text = String::new();
    let model = view.models.first().map_or("", String::as_str);
    let labels = format!("{{engine=\"0\",model_name=\"{model}\"}}");
    let busy = view.running.min(u64::from(view.slots));
    let running = "Number of requests in model execution batches.";
    gauge(&mut text, "vllm:num_requests_running", running, &labels, busy);
    gauge(
        &mut text,
        "vllm:num_requests_waiting",
        "Number of requests waiting to be processed.",
        &labels,
        waiting(view),
    );
    let percent = busy * 100 / u64::from(view.slots.max(1));
    text.push_str(&format!(
        "# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.\n\
         # TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{labels} {}.{:02}\n",
        percent / 100,
        percent % 100
    ));
    text
}
