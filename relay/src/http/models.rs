//! What can be asked for: the models of connected workers and the configured aliases.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use modelrelay_protocol::wellknown::header;
use serde_json::{Value, json};

use super::error::RelayError;
use super::headers::RequestId;
use super::route::Api;
use crate::app::Relay;
use crate::keys::{ClientCredential, ClientKey};

/// `GET /v1/models`
pub async fn list(State(relay): State<Arc<Relay>>, headers: HeaderMap) -> Response {
    let (api, request_id) = (api(&headers), RequestId::of(&headers));
    let key = match authenticate(&relay, &headers) {
        Ok(key) => key,
        Err(error) => return error.response(api, &request_id),
    };
    let models: Vec<Value> =
        names(&relay).iter().filter(|name| key.allows(name)).map(|name| entry(api, name)).collect();
    let body = match api {
        Api::OpenAi => json!({ "object": "list", "data": models }),
        Api::Anthropic => {
            let id = |model: Option<&Value>| model.map_or(Value::Null, |model| model["id"].clone());
            json!({ "first_id": id(models.first()), "last_id": id(models.last()), "data": models, "has_more": false })
        }
    };
    answer(body, &request_id)
}

/// `GET /v1/models/{id}`; ids may contain `/` and `:`.
pub async fn one(State(relay): State<Arc<Relay>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let (api, request_id) = (api(&headers), RequestId::of(&headers));
    let key = match authenticate(&relay, &headers) {
        Ok(key) => key,
        Err(error) => return error.response(api, &request_id),
    };
    if names(&relay).contains(id.as_str()) && key.allows(&id) {
        return answer(entry(api, &id), &request_id);
    }
    let model: Arc<str> = id.as_str().into();
    let error = if relay.may_lack_workers() && key.allows(&id) {
        RelayError::NoWorker { model, served: Vec::new() }
    } else {
        RelayError::ModelNotFound { model }
    };
    error.response(api, &request_id)
}

fn api(headers: &HeaderMap) -> Api {
    if headers.contains_key(header::ANTHROPIC_VERSION) { Api::Anthropic } else { Api::OpenAi }
}

fn authenticate(relay: &Relay, headers: &HeaderMap) -> Result<Arc<ClientKey>, RelayError> {
    let presented = ClientCredential::from_headers(headers);
    relay.settings.load().keys.authenticate(presented.as_ref()).cloned().ok_or(RelayError::InvalidApiKey)
}

fn names(relay: &Relay) -> BTreeSet<Arc<str>> {
    let mut names: BTreeSet<Arc<str>> =
        relay.dispatcher.with_scheduler(|scheduler| scheduler.served_models().cloned().collect());
    names.extend(relay.settings.load().config.models.iter().map(|model| Arc::from(model.name.as_str())));
    names
}

fn entry(api: Api, id: &str) -> Value {
    match api {
        Api::OpenAi => json!({ "id": id, "object": "model", "created": 0, "owned_by": "modelrelay" }),
        Api::Anthropic => {
            json!({ "type": "model", "id": id, "display_name": id, "created_at": "1970-01-01T00:00:00Z" })
        }
    }
}

fn answer(body: Value, request_id: &RequestId) -> Response {
    let mut response = Json(body).into_response();
    response.headers_mut().insert(header::REQUEST_ID, request_id.to_header());
    response
}
