//! How many relay replicas there are: what the settings say, or how many addresses their host name has.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use modelrelay_protocol::config::RelayConfig;
use tokio::sync::watch;

/// A lookup that takes longer has failed.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// The settings allow no more, so a strange answer of a name server cannot say more either.
const MOST: u32 = 1000;

/// The number of replicas, as far as it is known.
#[derive(Debug)]
pub struct Replicas {
    known: Mutex<Known>,
    now: watch::Sender<u32>,
}

#[derive(Debug, Default)]
struct Known {
    configured: u32,
    name: Option<String>,
    /// Addresses of that name when it last resolved.
    counted: Option<u32>,
}

impl Known {
    fn number(&self) -> u32 {
        self.counted.unwrap_or(self.configured).clamp(1, MOST)
    }
}

impl Default for Replicas {
    fn default() -> Self {
        Self { known: Mutex::default(), now: watch::Sender::new(1) }
    }
}

impl Replicas {
    /// Returns how many there are; at least one.
    pub fn get(&self) -> u32 {
        *self.now.borrow()
    }

    /// Tells each change from here on.
    pub fn subscribe(&self) -> watch::Receiver<u32> {
        self.now.subscribe()
    }

    /// Puts settings in force. What was counted stays as long as the name does.
    pub fn configure(&self, config: &RelayConfig) {
        self.update(|known| {
            known.configured = config.replicas;
            if known.name != config.replicas_from {
                known.name.clone_from(&config.replicas_from);
                known.counted = None;
            }
        });
    }

    /// Returns the name to count, if the settings have one.
    pub fn name(&self) -> Option<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).name.clone()
    }

    /// Notes how many addresses a name has now.
    pub fn counted(&self, name: &str, replicas: u32) {
        self.update(|known| {
            if known.name.as_deref() == Some(name) {
                known.counted = Some(replicas);
            }
        });
    }

    fn update(&self, change: impl FnOnce(&mut Known)) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut known);
        let number = known.number();
        self.now.send_if_modified(|now| std::mem::replace(now, number) != number);
    }
}

/// Looks a name up and counts its addresses.
///
/// # Errors
/// It does not resolve.
pub async fn count(name: &str) -> io::Result<u32> {
    let looking = tokio::time::timeout(LOOKUP_LIMIT, tokio::net::lookup_host((name, 0)));
    let found = looking.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))??;
    Ok(replicas_among(found.map(|address| address.ip())))
}

/// A replica has one address, or one of each family.
fn replicas_among(addresses: impl Iterator<Item = IpAddr>) -> u32 {
    let (four, six): (BTreeSet<IpAddr>, BTreeSet<IpAddr>) = addresses.partition(IpAddr::is_ipv4);
    u32::try_from(four.len().max(six.len())).unwrap_or(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(yaml: &str) -> RelayConfig {
        RelayConfig::parse_strictly(yaml).unwrap()
    }

    #[test]
    fn what_was_counted_last_stands_until_the_name_changes() {
        let replicas = Replicas::default();
        assert_eq!(replicas.get(), 1);
        replicas.configure(&config("{replicas: 2, replicasFrom: a}"));
        let mut changes = replicas.subscribe();
        assert_eq!((replicas.get(), replicas.name().as_deref()), (2, Some("a")));
        replicas.counted("a", 5);
        assert_eq!(replicas.get(), 5);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        replicas.configure(&config("{replicas: 3, replicasFrom: a}"));
        assert_eq!(replicas.get(), 5);
        assert!(!changes.has_changed().unwrap(), "nothing changed");
        replicas.counted("b", 9);
        assert_eq!(replicas.get(), 5, "an answer that comes too late");
        replicas.configure(&config("{replicas: 3, replicasFrom: b}"));
        assert_eq!(replicas.get(), 3);
        replicas.counted("b", 0);
        assert_eq!(replicas.get(), 1, "this one is there");
        replicas.configure(&config("{replicas: 4}"));
        assert_eq!(replicas.get(), 4);
    }

    #[test]
    fn addresses_of_both_families_are_not_counted_twice() {
        let count = |list: &[&str]| replicas_among(list.iter().map(|text| text.parse().unwrap()));
        assert_eq!(count(&["10.0.0.1", "10.0.0.2", "10.0.0.1"]), 2);
        assert_eq!(count(&["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"]), 2);
        assert_eq!(count(&["fd00::1", "fd00::2", "fd00::3", "10.0.0.1"]), 3);
        assert_eq!(count(&[]), 0);
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_counts_nothing() {
        assert_eq!(count("localhost").await.unwrap(), 1);
        assert!(count("no-such-host.invalid").await.is_err());
    }
}
