//! Preference for newer posts; pure.
//!
//! A post's freshness is 2^(-age / half_life), its age counted from the newest candidate's `created_at`: exponential decay
//! has no memory, so only the differences in age between posts matter, and the order does not change while a reader turns
//! pages. Times in the future count as now; a post without `created_at` has freshness 0. With `weight` w, the order is that
//! of (1 - w) relevance + w freshness, where relevance is what ranks the posts otherwise, scaled to 0 (the last candidate)
//! to 1 (the first).

use std::time::Duration;

use chrono::{DateTime, Utc};

/// How much newer posts are preferred.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Freshness {
    /// The age at which a post's freshness is a half; more than 0.
    pub half_life: Duration,
    /// Share of freshness in the order, 0 (none) to 1 (by time alone).
    pub weight: f64,
}

impl Freshness {
    /// Where a request gives none: the newest of equally good posts comes first, and a post in the middle of the candidates
    /// does not pass the best ones by being new.
    pub const DEFAULT_WEIGHT: f64 = 0.3;

    /// 0 to 1; `newest`: the newest candidate's time.
    pub fn of(&self, created_at: Option<DateTime<Utc>>, newest: Option<DateTime<Utc>>) -> f64 {
        let (Some(created_at), Some(newest)) = (created_at, newest) else { return 0.0 };
        let age = (newest - created_at).as_seconds_f64().max(0.0);
        (-age / self.half_life.as_secs_f64()).exp2()
    }

    /// What the order goes by; `relevance` 0 to 1.
    pub fn blend(&self, relevance: f64, freshness: f64) -> f64 {
        (1.0 - self.weight) * relevance + self.weight * freshness
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;
    use proptest::prelude::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    #[test]
    fn each_half_life_halves_and_no_time_is_no_freshness() {
        let freshness = Freshness { half_life: Duration::from_hours(24), weight: 0.3 };
        let newest = Some(at(10 * 86_400));
        for (days, expected) in [(10, 1.0), (9, 0.5), (8, 0.25), (0, 1.0 / 1024.0), (20, 1.0)] {
            let found = freshness.of(Some(at(days * 86_400)), newest);
            assert!((found - expected).abs() < 1e-12, "{days}: {found}");
        }
        assert_eq!(freshness.of(None, newest), 0.0);
        assert_eq!(freshness.of(None, None), 0.0);
    }

    proptest! {
        #[test]
        fn newer_is_never_less_fresh(
            times in (-10_000_000_000i64..10_000_000_000, -10_000_000_000i64..10_000_000_000),
            half_life in 1u64..1_000_000_000, weight in 0.0f64..=1.0, relevance in 0.0f64..=1.0,
        ) {
            let freshness = Freshness { half_life: Duration::from_secs(half_life), weight };
            let (old, new) = (at(times.0.min(times.1)), at(times.0.max(times.1)));
            let [old, new] = [old, new].map(|time| freshness.of(Some(time), Some(new)));
            prop_assert!(0.0 <= old && old <= new && new == 1.0);
            let [old, new] = [old, new].map(|fresh| freshness.blend(relevance, fresh));
            prop_assert!((0.0..=1.0 + 1e-12).contains(&old) && old <= new);
        }
    }
}
