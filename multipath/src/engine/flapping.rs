//! Paths that come and go: how long one is left alone before it carries I/O again.
//!
//! Pure: time is passed in. Two losses may be an accident; from the third on the path is held down, each time twice as long. A path that was not
//! lost again for a while starts anew. Whoever asks holds no path down that is the only one.

use std::time::Duration;

use tokio::time::Instant;

/// Losses that cost nothing.
const FREE: u32 = 2;
/// How long the first hold lasts.
#[cfg(not(test))]
const FIRST_HOLD: Duration = Duration::from_secs(5);
#[cfg(test)]
const FIRST_HOLD: Duration = Duration::from_millis(1500);
/// The longest hold.
const LONGEST_HOLD: Duration = Duration::from_secs(300);
/// Without a loss for so long, or for twice the last hold, all is forgotten.
const CALM: Duration = Duration::from_secs(60);

/// The losses of one path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Losses {
    count: u32,
    last: Instant,
}

impl Losses {
    /// The first.
    pub(super) fn first(now: Instant) -> Self {
        Self { count: 1, last: now }
    }

    /// Another one.
    pub(super) fn again(self, now: Instant) -> Self {
        match self.is_forgotten(now) {
            true => Self::first(now),
            false => Self {
                count: self.count.saturating_add(1),
                last: now,
            },
        }
    }

    /// Nothing of them counts any more.
    pub(super) fn is_forgotten(self, now: Instant) -> bool {
        now >= self.last + CALM.max(2 * self.hold())
    }

    /// How long the path is held down after the last loss.
    pub(super) fn hold(self) -> Duration {
        match self.count.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            // 2^16 times the first hold is longer than the longest.
            Some(doublings) => (FIRST_HOLD * 2u32.pow(doublings.min(16))).min(LONGEST_HOLD),
        }
    }

    /// When the path may carry I/O again.
    pub(super) fn held_until(self) -> Instant {
        self.last + self.hold()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_loss_holds_and_each_further_one_twice_as_long_up_to_a_limit() {
        let start = Instant::now();
        let mut losses = Losses::first(start);
        assert_eq!(losses.hold(), Duration::ZERO);
        losses = losses.again(start);
        assert_eq!(losses.held_until(), start);
        let mut holds = Vec::new();
        for _ in 0..20 {
            losses = losses.again(start);
            holds.push(losses.hold());
        }
        assert_eq!(holds[..3], [FIRST_HOLD, FIRST_HOLD * 2, FIRST_HOLD * 4]);
        assert!(holds.is_sorted());
        assert_eq!(holds[19], LONGEST_HOLD);
    }

    #[test]
    fn after_a_calm_time_all_is_forgotten() {
        let start = Instant::now();
        let mut losses = Losses::first(start);
        for _ in 0..30 {
            losses = losses.again(start);
        }
        assert!(!losses.is_forgotten(start + LONGEST_HOLD), "held that long");
        let later = start + 2 * LONGEST_HOLD;
        assert!(losses.is_forgotten(later));
        assert_eq!(losses.again(later).hold(), Duration::ZERO);
        assert!(Losses::first(start).is_forgotten(start + CALM));
    }
}
