//! Why a reconcile did not reach its end, where trying again may help.

use crate::apply::ApplyError;
use crate::cache::NotReady;
use crate::context::CallError;

/// Why a reconcile did not reach its end. An invalid spec is none of these: it is reported in the status and waits for a
/// change.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// A child is not as it should be.
    #[error(transparent)]
    Apply(ApplyError),
    /// The API server failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A watch has not told yet what there is.
    #[error(transparent)]
    NotReady(#[from] NotReady),
}

impl From<ApplyError> for ReconcileError {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Call(error) => Self::Call(error),
            ApplyError::NotReady(error) => Self::NotReady(error),
            error @ (ApplyError::NameConflict { .. }
            | ApplyError::Refused { .. }
            | ApplyError::Leftover { .. }) => Self::Apply(error),
        }
    }
}

impl ReconcileError {
    /// One word for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Apply(ApplyError::NameConflict { .. }) => "name_conflict",
            Self::Apply(ApplyError::Refused { .. }) => "refused",
            Self::Apply(ApplyError::Leftover { .. }) => "leftover",
            Self::Apply(ApplyError::Call(error)) | Self::Call(error) => match error {
                CallError::TimedOut { .. } => "timed_out",
                CallError::Failed { .. } => match error.status() {
                    Some(409) => "conflict",
                    Some(403) => "forbidden",
                    Some(429) => "throttled",
                    Some(_) => "api_error",
                    None => "unreachable",
                },
            },
            Self::Apply(ApplyError::NotReady(_)) | Self::NotReady(_) => "not_ready",
        }
    }
}
