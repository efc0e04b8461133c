//! The running requests of one session, by the name that its relay gave them.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::job::mailbox::{Abort, Mailbox};

/// Running requests and the mailbox of each.
#[derive(Debug)]
pub(crate) struct Jobs<K>(Mutex<HashMap<K, Arc<Mailbox>>>);

impl<K: Eq + Hash> Jobs<K> {
    /// Starts empty.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    /// Adds a request, unless one of that name runs.
    pub(crate) fn insert(&self, id: K, mailbox: Arc<Mailbox>) -> bool {
        match self.lock().entry(id) {
            std::collections::hash_map::Entry::Occupied(_) => false,
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(mailbox);
                true
            }
        }
    }

    /// Finds a running request.
    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&self, id: &Q) -> Option<Arc<Mailbox>>
    where
        K: Borrow<Q>,
    {
        self.lock().get(id).cloned()
    }

    /// Forgets a request. Before its last frame is queued: the relay may use its name again after that.
    pub(crate) fn remove<Q: Eq + Hash + ?Sized>(&self, id: &Q)
    where
        K: Borrow<Q>,
    {
        self.lock().remove(id);
    }

    /// Says whether nothing runs.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Ends all that runs.
    pub(crate) fn abort_all(&self, why: Abort) {
        for mailbox in self.lock().values() {
            mailbox.abort(why);
        }
    }

    /// A map is whole between its calls, so a poisoned lock holds nothing half done.
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Arc<Mailbox>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
