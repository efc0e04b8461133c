//! The routes that go to a worker, and what is known about each before its body is read.

/// Whose dialect a route speaks: decides the shape of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// OpenAI, and what engines offer in its manner.
    OpenAi,
    /// Anthropic.
    Anthropic,
}

impl Api {
    /// Returns the API whose error shape fits a path that is no [`ApiRoute`].
    pub fn of_path(path: &str) -> Self {
        if path == "/v1/messages" || path.starts_with("/v1/messages/") {
            Self::Anthropic
        } else {
            Self::OpenAi
        }
    }

    /// Returns its name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
        }
    }
}

/// How the body of a route says what it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// One JSON object.
    Json,
    /// A `multipart/form-data` form.
    Multipart,
}

/// A `POST` route whose requests are routed by model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "`path` says it")]
pub enum ApiRoute {
    ChatCompletions,
    Completions,
    Responses,
    Embeddings,
    Rerank,
    Score,
    Messages,
    CountTokens,
    Speech,
    Transcriptions,
    Translations,
    ImageGenerations,
}

impl ApiRoute {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::ChatCompletions,
        Self::Completions,
        Self::Responses,
        Self::Embeddings,
        Self::Rerank,
        Self::Score,
        Self::Messages,
        Self::CountTokens,
        Self::Speech,
        Self::Transcriptions,
        Self::Translations,
        Self::ImageGenerations,
    ];

    /// Returns the path, without a query.
    pub fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
            Self::Embeddings => "/v1/embeddings",
            Self::Rerank => "/v1/rerank",
            Self::Score => "/v1/score",
            Self::Messages => "/v1/messages",
            Self::CountTokens => "/v1/messages/count_tokens",
            Self::Speech => "/v1/audio/speech",
            Self::Transcriptions => "/v1/audio/transcriptions",
            Self::Translations => "/v1/audio/translations",
            Self::ImageGenerations => "/v1/images/generations",
        }
    }

    /// Finds the route of a path without a query.
    pub fn from_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|route| route.path() == path)
    }

    /// Returns whose dialect it speaks.
    pub fn api(self) -> Api {
        match self {
            Self::Messages | Self::CountTokens => Api::Anthropic,
            Self::ChatCompletions
            | Self::Completions
            | Self::Responses
            | Self::Embeddings
            | Self::Rerank
            | Self::Score
            | Self::Speech
            | Self::Transcriptions
            | Self::Translations
            | Self::ImageGenerations => Api::OpenAi,
        }
    }

    /// Returns what its body is.
    pub fn body(self) -> BodyKind {
        match self {
            Self::Transcriptions | Self::Translations => BodyKind::Multipart,
            Self::ChatCompletions
            | Self::Completions
            | Self::Responses
            | Self::Embeddings
            | Self::Rerank
            | Self::Score
            | Self::Messages
            | Self::CountTokens
            | Self::Speech
            | Self::ImageGenerations => BodyKind::Json,
        }
    }

    /// Says whether `stream: true` makes the answer an event stream.
    pub fn can_stream_events(self) -> bool {
        match self {
            Self::ChatCompletions
            | Self::Completions
            | Self::Responses
            | Self::Messages
            | Self::Transcriptions
            | Self::ImageGenerations => true,
            Self::Embeddings
            | Self::Rerank
            | Self::Score
            | Self::CountTokens
            | Self::Speech
            | Self::Translations => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_found_by_its_own_path_only() {
        for route in ApiRoute::ALL {
            assert_eq!(ApiRoute::from_path(route.path()), Some(route));
            assert_eq!(Api::of_path(route.path()), route.api());
        }
        assert_eq!(ApiRoute::from_path("/v1/chat/completions/"), None);
        assert_eq!(ApiRoute::from_path("/v1/models"), None);
        assert_eq!(Api::of_path("/v1/messagesque"), Api::OpenAi);
    }
}
