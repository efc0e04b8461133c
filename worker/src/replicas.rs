//! Which relay replicas the worker holds sessions with, whatever address it reached them by.
//!
//! A replica is held once: an address that leads to one that is held already is left before the worker registers. What
//! each way in has shown so far says whether there are more behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The relay at the other end is one that the worker holds a session with already.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AlreadyHeld;

#[derive(Clone, Copy, Debug)]
struct Held {
    /// Said goodbye: it counts as gone when it comes to looking for others.
    leaving: bool,
    /// How many replicas there are, by its own words.
    told: u32,
}

#[derive(Debug, Default)]
struct Inner {
    held: BTreeMap<String, Held>,
    /// Names those that have none: plain v1 relays.
    nameless: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Replicas {
    inner: Mutex<Inner>,
    /// Counts what makes it worth looking for replicas again: one was lost or leaves, or their number changed.
    news: watch::Sender<u64>,
}

impl Default for Replicas {
    fn default() -> Self {
        Self { inner: Mutex::default(), news: watch::Sender::new(0) }
    }
}

/// How far a way in has been explored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// Replicas that it has shown, that are held, and that stay.
    pub(crate) held: usize,
    /// How many there are, as they say.
    pub(crate) wanted: usize,
    /// Replicas that are held and stay, by whatever way.
    pub(crate) everywhere: usize,
}

impl Coverage {
    /// Whether replicas may be missing that this way leads to.
    pub(crate) fn lacks(&self) -> bool {
        self.held < self.wanted
    }

    /// Whether those that are missing here may well be held by another way.
    pub(crate) fn may_be_complete(&self) -> bool {
        self.held.max(self.everywhere) >= self.wanted
    }
}

impl Replicas {
    /// Reserves a replica for one session. Those without a name are never the same.
    ///
    /// # Errors
    /// It is held already.
    pub(crate) fn claim(self: &Arc<Self>, name: Option<&str>, told: u32) -> Result<Claim, AlreadyHeld> {
        let mut inner = self.lock();
        let name = match name {
            Some(name) => name.to_owned(),
            None => {
                inner.nameless += 1;
                format!("nameless {}", inner.nameless)
            }
        };
        if inner.held.contains_key(&name) {
            return Err(AlreadyHeld);
        }
        inner.held.insert(name.clone(), Held { leaving: false, told });
        Ok(Claim { replicas: Arc::clone(self), name })
    }

    /// Says how far a way in has been explored that has shown these replicas.
    pub(crate) fn coverage(&self, seen: &BTreeSet<String>) -> Coverage {
        let inner = self.lock();
        let staying = || inner.held.iter().filter(|(_, held)| !held.leaving);
        let here = || staying().filter(|(name, _)| seen.contains(*name)).map(|(_, held)| held);
        let told = here().map(|held| held.told).max().unwrap_or(1).max(1);
        Coverage {
            held: here().count(),
            wanted: usize::try_from(told).unwrap_or(usize::MAX),
            everywhere: staying().count(),
        }
    }

    /// Forgets of what a way in has shown all that is not held any more.
    pub(crate) fn retain_held(&self, seen: &mut BTreeSet<String>) {
        let inner = self.lock();
        seen.retain(|name| inner.held.contains_key(name));
    }

    /// Tells when it is worth looking for replicas again.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Held) -> bool) {
        let changed = self.lock().held.get_mut(name).is_some_and(change);
        if changed {
            self.news.send_modify(|count| *count += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One session's hold on a replica; given up when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    replicas: Arc<Replicas>,
    name: String,
}

impl Claim {
    /// Returns what the replica is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The replica leaves: others have to be held before it is gone.
    pub(crate) fn leaves(&self) {
        self.replicas.change(&self.name, |held| !std::mem::replace(&mut held.leaving, true));
    }

    /// Says whether the replica stays.
    pub(crate) fn stays(&self) -> bool {
        self.replicas.lock().held.get(&self.name).is_some_and(|held| !held.leaving)
    }

    /// The replica said how many there are.
    pub(crate) fn told(&self, replicas: u32) {
        self.replicas.change(&self.name, |held| std::mem::replace(&mut held.told, replicas) != replicas);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.replicas.lock().held.remove(&self.name);
        self.replicas.news.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn coverage(held: usize, wanted: usize, everywhere: usize) -> Coverage {
        Coverage { held, wanted, everywhere }
    }

    #[test]
    fn a_replica_is_held_once_and_again_when_it_was_let_go() {
        let replicas = Arc::new(Replicas::default());
        let first = replicas.claim(Some("a"), 2).unwrap();
        assert_eq!(replicas.claim(Some("a"), 2).unwrap_err(), AlreadyHeld);
        drop(first);
        assert!(replicas.claim(Some("a"), 2).is_ok());
    }

    #[test]
    fn relays_without_a_name_are_all_different() {
        let replicas = Arc::new(Replicas::default());
        let both = [replicas.claim(None, 1).unwrap(), replicas.claim(None, 1).unwrap()];
        assert_eq!(replicas.coverage(&seen(&[])).everywhere, 2);
        assert_ne!(both[0].name(), both[1].name());
    }

    #[test]
    fn a_way_is_explored_when_it_has_shown_as_many_as_there_are() {
        let replicas = Arc::new(Replicas::default());
        assert_eq!(replicas.coverage(&seen(&[])), coverage(0, 1, 0));
        let _a = replicas.claim(Some("a"), 2).unwrap();
        assert_eq!(replicas.coverage(&seen(&["a"])), coverage(1, 2, 1));
        // Another way holds b; this one has been led there as well.
        let b = replicas.claim(Some("b"), 2).unwrap();
        assert!(replicas.coverage(&seen(&["a"])).may_be_complete());
        assert!(replicas.coverage(&seen(&["a"])).lacks());
        assert!(!replicas.coverage(&seen(&["a", "b"])).lacks());
        // One that leaves does not count, and neither does what it says.
        b.told(7);
        assert_eq!(replicas.coverage(&seen(&["a", "b"])), coverage(2, 7, 2));
        b.leaves();
        assert_eq!(replicas.coverage(&seen(&["a", "b"])), coverage(1, 2, 1));
        assert!(!b.stays());
    }

    #[test]
    fn only_what_is_lost_or_changes_is_news() {
        let replicas = Arc::new(Replicas::default());
        let mut news = replicas.news();
        let claim = replicas.claim(Some("a"), 2).unwrap();
        claim.told(2);
        assert!(!news.has_changed().unwrap());
        let is_news = |what: &str, news: &mut watch::Receiver<u64>| {
            assert!(news.has_changed().unwrap(), "{what}");
            news.mark_unchanged();
        };
        claim.told(3);
        is_news("another number", &mut news);
        claim.leaves();
        is_news("a goodbye", &mut news);
        claim.leaves();
        assert!(!news.has_changed().unwrap());
        drop(claim);
        is_news("a loss", &mut news);
    }

    #[test]
    fn what_is_not_held_any_more_is_forgotten() {
        let replicas = Arc::new(Replicas::default());
        let mut shown = seen(&["a", "b"]);
        let _a = replicas.claim(Some("a"), 2).unwrap();
        replicas.retain_held(&mut shown);
        assert_eq!(shown, seen(&["a"]));
    }
}
