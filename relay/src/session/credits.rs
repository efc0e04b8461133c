//! How many of the slots that a worker lent count.
//!
//! A credential may allow a worker fewer slots than it lends. What is beyond them is kept apart: it goes back first when
//! the worker recalls, and takes the place of a slot that is not lent again.

/// The credits of one worker.
#[derive(Debug)]
pub(super) struct Credits {
    most: u32,
    /// Unspent or running.
    counted: u32,
    beyond: u32,
}

impl Credits {
    /// Starts with nothing lent; at most `most` will count at once.
    pub(super) fn new(most: u32) -> Self {
        Self { most, counted: 0, beyond: 0 }
    }

    /// The worker lent `n`; returns how many of them count.
    pub(super) fn lend(&mut self, n: u32) -> u32 {
        let count = n.min(self.most.saturating_sub(self.counted));
        self.counted += count;
        self.beyond = self.beyond.saturating_add(n - count);
        count
    }

    /// The worker wants `n` back; returns how many can go without touching those that count.
    pub(super) fn give_back(&mut self, n: u32) -> u32 {
        let given = n.min(self.beyond);
        self.beyond -= given;
        given
    }

    /// `n` that counted, and were unspent, went back.
    pub(super) fn gave_back(&mut self, n: u32) {
        self.counted = self.counted.saturating_sub(n);
    }

    /// A request ended; returns whether another may follow in its place.
    pub(super) fn ended(&mut self, regrant: bool) -> bool {
        if regrant || self.give_back(1) == 1 {
            return true;
        }
        self.gave_back(1);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_beyond_the_slots_counts_only_in_place_of_others() {
        let mut credits = Credits::new(2);
        assert_eq!((credits.lend(1), credits.lend(4)), (1, 1));
        assert_eq!(credits.give_back(1), 1);
        assert!(credits.ended(false), "one of the two beyond follows");
        assert!(credits.ended(true));
        assert!(credits.ended(false));
        assert!(!credits.ended(false));
        assert_eq!(credits.give_back(1), 0);
        credits.gave_back(1);
        assert_eq!(credits.lend(3), 2);
    }
}
