//! Answers that go on for long, and what can be done to them.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::Broken;
use super::call::Call;

/// The watches that are open.
#[derive(Debug, Default)]
pub(crate) struct Watches(Mutex<Vec<Weak<Watch>>>);

#[derive(Debug)]
struct Watch {
    call: Call,
    silent: AtomicBool,
    cut: CancellationToken,
}

impl Watches {
    /// Makes the body of a watch's answer, which hands on what comes until it is told otherwise.
    pub(crate) fn open(&self, call: Call, inner: Incoming, silent: bool) -> WatchBody {
        let watch = Arc::new(Watch { call, silent: silent.into(), cut: CancellationToken::new() });
        let mut open = self.lock();
        open.retain(|watch| watch.strong_count() > 0);
        open.push(Arc::downgrade(&watch));
        let cut = Box::pin(watch.cut.clone().cancelled_owned());
        WatchBody { inner, cut, watch }
    }

    pub(crate) fn count(&self, matches: impl Fn(&Call) -> bool) -> usize {
        self.matching(matches).len()
    }

    pub(crate) fn silence(&self, matches: impl Fn(&Call) -> bool) -> usize {
        let watches = self.matching(matches);
        watches.iter().for_each(|watch| watch.silent.store(true, Ordering::SeqCst));
        watches.len()
    }

    pub(crate) fn cut(&self, matches: impl Fn(&Call) -> bool) -> usize {
        let watches = self.matching(matches);
        watches.iter().for_each(|watch| watch.cut.cancel());
        watches.len()
    }

    fn matching(&self, matches: impl Fn(&Call) -> bool) -> Vec<Arc<Watch>> {
        self.lock().iter().filter_map(Weak::upgrade).filter(|watch| matches(&watch.call)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Watch>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a client gets of a watch.
#[derive(Debug)]
pub(crate) struct WatchBody {
    inner: Incoming,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    watch: Arc<Watch>,
}

impl Body for WatchBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Broken)));
        }
        if self.watch.silent.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        frame.map(|frame| frame.map(|frame| frame.map_err(|_| Broken)))
    }
}
