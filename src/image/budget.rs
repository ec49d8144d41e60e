//! A budget of bytes: memory is taken after its share is, so that what is in memory at a time stays below a bound.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Shares are counted in this many bytes.
const UNIT: u64 = 1024;

/// Bytes that may be in memory at a time; clones draw on the same.
#[derive(Debug, Clone)]
pub struct Budget {
    units: u32,
    free: Arc<Semaphore>,
}

/// A share of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Share {
    permit: OwnedSemaphorePermit,
}

impl Budget {
    /// A budget of so many bytes, rounded up.
    pub fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1);
        Self { units, free: Arc::new(Semaphore::new(units as usize)) }
    }

    /// Waits for a share, in turn. What is larger than the whole budget passes when it is alone, or it could never pass.
    pub async fn take(&self, bytes: u64) -> Share {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units);
        let permit = Arc::clone(&self.free).acquire_many_owned(units).await;
        Share { permit: permit.expect("the semaphore is never closed. This is a bug.") }
    }
}

impl Share {
    /// Gives back what is above so many bytes.
    pub fn shrink_to(&mut self, bytes: u64) {
        let units = usize::try_from(bytes.div_ceil(UNIT)).unwrap_or(usize::MAX);
        let above = self.permit.num_permits().saturating_sub(units);
        drop(self.permit.split(above));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn shares_never_exceed_the_budget_and_the_larger_one_passes_alone() {
        let budget = Budget::new(10 * UNIT);
        let mut first = budget.take(8 * UNIT).now_or_never().expect("room");
        assert!(budget.take(3 * UNIT).now_or_never().is_none(), "11 of 10");
        first.shrink_to(7 * UNIT);
        let second = budget.take(3 * UNIT).now_or_never().expect("exactly the budget");
        assert!(budget.take(1).now_or_never().is_none(), "a byte more");
        drop(first);
        assert!(budget.take(100 * UNIT).now_or_never().is_none(), "not beside another");
        drop(second);
        let large = budget.take(100 * UNIT).now_or_never().expect("alone");
        assert!(budget.take(1).now_or_never().is_none());
        drop(large);
    }
}
