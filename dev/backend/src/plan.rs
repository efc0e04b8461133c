//! Decides, from a request that was read whole, what the answer will be.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use crate::backend::{Seen, Shared};
use crate::fill::{Filler, crc32_of};
use crate::request::{Body as RequestBody, Head};
use crate::script::{Answer, Asked, At, Fail, Script, overlay};
use crate::shape::{Events, Route, error, events, whole};

const JSON: &str = "application/json";

/// An answer that is decided and not yet sent.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) script: Arc<Script>,
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) crc32: Option<u32>,
    pub(crate) body: Body,
    pub(crate) framing: Framing,
    /// Whether the connection serves another request afterwards.
    pub(crate) keep_alive: bool,
}

/// Where the bytes of an answer come from.
#[derive(Debug)]
pub(crate) enum Body {
    Whole(Bytes),
    Filled(Filler, u64),
    Events(Events),
}

/// How the client knows where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    Close,
    /// A status that has no body.
    None,
}

impl Plan {
    /// Plans the answer to a request on a model route.
    pub(crate) fn of(shared: &Shared, route: Route, head: &Head, body: &RequestBody) -> Self {
        let multipart = head.header("content-type").is_some_and(|kind| kind.starts_with(b"multipart/"));
        let mut asked = match (multipart, head.skips_body()) {
            (_, true) => Asked::default(),
            (true, false) => Asked::multipart(&body.bytes),
            (false, false) => match Asked::read(&body.bytes) {
                Ok(asked) => asked,
                Err(message) => return Self::refusal(shared, route, head, 400, &message),
            },
        };
        shared.remember(|| Seen::of(head, body, asked.model.as_deref()));
        let base = shared.next_script();
        let script = match overlay(&base, &mut asked, head.headers()) {
            Ok(Some(script)) => Arc::new(script),
            Ok(None) => base,
            Err(message) => return Self::refusal(shared, route, head, 400, &message),
        };
        let model = asked.model.as_deref().unwrap_or_default();
        if !head.skips_body() && !shared.serves(model) {
            let answer = shared.flavour.model_not_found(route.is_anthropic(), model);
            return Self::whole(script, 404, JSON, answer.to_string().into(), head);
        }
        Self::scripted(script, route, model, asked.stream == Some(true), head, body)
    }

    fn scripted(
        script: Arc<Script>,
        route: Route,
        model: &str,
        stream: bool,
        head: &Head,
        body: &RequestBody,
    ) -> Self {
        let status = script.status;
        if let Some(text) = &script.body {
            let bytes = Bytes::copy_from_slice(text.as_bytes());
            return Self::whole(script, status, JSON, bytes, head);
        }
        if script.answer == Answer::Echo {
            let seen = serde_json::to_vec(&Seen::of(head, body, Some(model))).unwrap_or_default();
            return Self::whole(script, status, JSON, seen.into(), head);
        }
        if status >= 400 {
            let answer = error(route.is_anthropic(), status, "the script says so");
            return Self::whole(script, status, JSON, answer.to_string().into(), head);
        }
        if head.skips_body() {
            let answer = json!({"bytes": body.length, "crc32": body.crc32});
            return Self::whole(script, status, JSON, answer.to_string().into(), head);
        }
        if script.answer == Answer::Raw || route == Route::Speech {
            let kind = if route == Route::Speech { "audio/mpeg" } else { "application/octet-stream" };
            let filler = Filler::new(script.fill, script.seed);
            let crc32 = crc32_of(filler.clone(), script.bytes, script.chunk_bytes);
            let bytes = script.bytes;
            return Self {
                crc32: Some(crc32),
                ..Self::with(script, status, kind, Body::Filled(filler, bytes), head)
            };
        }
        if stream && route.streams() {
            let parts = events(route, model, &script);
            return Self::with(script, status, "text/event-stream; charset=utf-8", Body::Events(parts), head);
        }
        let answer = whole(route, model, &script);
        Self::whole(script, status, JSON, answer.into(), head)
    }

    fn refusal(shared: &Shared, route: Route, head: &Head, status: u16, message: &str) -> Self {
        let answer = error(route.is_anthropic(), status, message).to_string();
        // The script that failed to parse cannot have a say in how it is refused.
        let plain = Arc::new(Script::default());
        shared.remember(|| Seen::of(head, &RequestBody::default(), None));
        Self::whole(plain, status, JSON, answer.into(), head)
    }

    /// An answer that stands already.
    pub(crate) fn whole(script: Arc<Script>, status: u16, kind: &str, bytes: Bytes, head: &Head) -> Self {
        let crc32 = crc32fast::hash(&bytes);
        Self { crc32: Some(crc32), ..Self::with(script, status, kind, Body::Whole(bytes), head) }
    }

    fn with(script: Arc<Script>, status: u16, kind: &str, body: Body, head: &Head) -> Self {
        let length = match &body {
            _ if script.chunked => None,
            Body::Whole(bytes) => Some(bytes.len() as u64),
            Body::Filled(_, bytes) => Some(*bytes),
            Body::Events(_) => None,
        };
        let framing = match length {
            _ if matches!(status, 100..=199 | 204 | 304) => Framing::None,
            Some(length) => Framing::Length(length),
            None if head.old => Framing::Close,
            None => Framing::Chunked,
        };
        let content_type = script.content_type.clone().unwrap_or_else(|| kind.to_owned());
        let keep_alive = head.keeps_alive() && framing != Framing::Close;
        Self { script, status, content_type, crc32: None, body, framing, keep_alive }
    }

    /// How the answer fails at this point, if it does.
    pub(crate) fn failure(&self, at: At) -> Option<Fail> {
        self.script.fail.filter(|_| self.script.at == at)
    }

    /// The head as it is sent.
    pub(crate) fn head(&self, server: &str) -> Vec<u8> {
        use std::io::Write;
        let status = http::StatusCode::from_u16(self.status).ok();
        let reason = status.and_then(|status| status.canonical_reason()).unwrap_or("Scripted");
        let mut head = Vec::with_capacity(256);
        // Writing into a `Vec` cannot fail.
        let _ = write!(head, "HTTP/1.1 {} {reason}\r\nserver: {server}\r\n", self.status);
        if self.framing != Framing::None {
            let _ = write!(head, "content-type: {}\r\n", self.content_type);
        }
        if let Some(encoding) = &self.script.content_encoding {
            let _ = write!(head, "content-encoding: {encoding}\r\n");
        }
        if let Some(crc32) = self.crc32 {
            let _ = write!(head, "x-stub-crc32: {crc32}\r\n");
        }
        for (name, values) in &self.script.headers {
            for value in values {
                let _ = write!(head, "{name}: {value}\r\n");
            }
        }
        let _ = match self.framing {
            Framing::Length(length) => write!(head, "content-length: {length}\r\n"),
            Framing::Chunked => write!(head, "transfer-encoding: chunked\r\n"),
            Framing::Close | Framing::None => Ok(()),
        };
        if !self.keep_alive {
            let _ = write!(head, "connection: close\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}
