//! The addresses of the backend's host, and those that it had before.
//!
//! A name server that is slow or away for a moment must fail no request: the addresses that were found last are dialled
//! then. Where nobody listens there any more the connection is refused, as it would be without them.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

/// A lookup is waited for no longer where addresses are known.
const PATIENCE: Duration = Duration::from_millis(500);

/// What lookups found.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: Mutex<Vec<SocketAddr>>,
    /// Held by the one lookup that runs where addresses are known, so that a name server that does not answer holds up one
    /// thread every [`PATIENCE`] at most.
    turn: tokio::sync::Mutex<()>,
}

impl Names {
    /// Returns what a lookup finds, or what was found last when it fails, takes long, or another one runs.
    ///
    /// # Errors
    /// The lookup fails, and none has ever succeeded.
    pub(super) async fn find<A: Iterator<Item = SocketAddr>>(
        &self,
        lookup: impl Future<Output = io::Result<A>>,
    ) -> io::Result<Vec<SocketAddr>> {
        let known = self.lock().clone();
        let found = if known.is_empty() {
            lookup.await
        } else {
            let Ok(_turn) = self.turn.try_lock() else { return Ok(known) };
            timeout(PATIENCE, lookup).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        };
        let nothing = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let found = found.map(Vec::from_iter).and_then(|found| match found.is_empty() {
            true => Err(nothing()),
            false => Ok(found),
        });
        match found {
            Ok(found) => {
                self.lock().clone_from(&found);
                Ok(found)
            }
            Err(error) if known.is_empty() => Err(error),
            Err(error) => {
                tracing::debug!(%error, "Cannot look the backend up; its last addresses stand");
                Ok(known)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::Instant;

    use super::*;

    type Found = io::Result<std::vec::IntoIter<SocketAddr>>;

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 8000))
    }

    fn found(last: u8) -> Found {
        Ok(vec![at(last)].into_iter())
    }

    fn failed() -> Found {
        Err(io::ErrorKind::HostUnreachable.into())
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_last_stands_when_a_lookup_fails_or_takes_long() {
        let names = Names::default();
        assert_eq!(names.find(ready(failed())).await.unwrap_err().kind(), io::ErrorKind::HostUnreachable);
        let nothing = || ready(Ok(Vec::new().into_iter()));
        assert_eq!(names.find(nothing()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        for last in [1, 2] {
            assert_eq!(names.find(ready(found(last))).await.unwrap(), [at(last)], "the newest");
            assert_eq!(names.find(ready(failed())).await.unwrap(), [at(last)]);
            assert_eq!(names.find(nothing()).await.unwrap(), [at(last)]);
            let begun = Instant::now();
            assert_eq!(names.find(pending::<Found>()).await.unwrap(), [at(last)]);
            assert_eq!(begun.elapsed(), PATIENCE);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_the_lookup_of_another() {
        let names = Names::default();
        names.find(ready(found(1))).await.unwrap();
        let begun = Instant::now();
        let (slow, other) = tokio::join!(names.find(pending::<Found>()), async {
            let other = names.find(pending::<Found>()).await.unwrap();
            assert_eq!(begun.elapsed(), Duration::ZERO);
            other
        });
        assert_eq!((slow.unwrap(), other), (vec![at(1)], vec![at(1)]));
    }
}
