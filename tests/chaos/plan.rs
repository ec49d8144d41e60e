//! The schedule of faults: what the seed decides, and nothing else does.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng, SeedableRng};

use crate::host::{self, Mode};
use crate::proxy::{self, Line};
use crate::{StoreKind, WORKERS};

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disruption {
    /// kill -9 of a worker; it starts again at the end.
    Kill { worker: usize },
    /// kill -9 of a worker, again and again: so long it lives each time, once it is ready.
    Crashes { worker: usize, lives: Vec<Duration> },
    /// kill -9 of every worker.
    KillAll,
    /// SIGTERM of a worker; it starts again at the end.
    Terminate { worker: usize },
    /// SIGSTOP, for longer than the group's session: a worker that does not know that it was given up.
    Freeze { worker: usize },
    /// One more member of the group; it leaves at the end, killed or asked to.
    Join { killed: bool },
    /// kill -9 of the broker; it starts again at the end.
    Broker,
    /// kill -9 of the store's server; it starts again at the end.
    Store,
    /// The dead-letter topic takes nothing.
    DeadLetters,
    /// The line between the store and a worker; `None`: of every worker.
    Network { line: Line, worker: Option<usize> },
    /// The pictures' host.
    Host { mode: Mode },
}

impl Disruption {
    /// Whether only members of the group come and go.
    pub fn is_of_membership(&self) -> bool {
        use Disruption::{Join, Kill, KillAll, Terminate};
        matches!(self, Join { .. } | Kill { .. } | KillAll | Terminate { .. })
    }
}

/// One or two disruptions at a time.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Whether ingest must have resumed from the fault before it; else it comes while that one is not yet digested.
    pub waits: bool,
    /// Time without any fault before it.
    pub quiet: Duration,
    pub first: Disruption,
    /// With the time by which it begins later than the first; both end together.
    pub second: Option<(Disruption, Duration)>,
    pub lasts: Duration,
}

/// The faults, without an end.
pub struct Plan {
    random: StdRng,
    store: StoreKind,
    /// Every kind before any comes again.
    kinds: Vec<usize>,
}

impl Plan {
    pub fn new(seed: u64, store: StoreKind) -> Self {
        // Not the sequence of the posts.
        Self { random: StdRng::seed_from_u64(seed ^ 0x5eed_fa17), store, kinds: Vec::new() }
    }

    pub fn next(&mut self) -> Fault {
        let first = self.disruption();
        let second = self.random.random_bool(0.4).then(|| self.disruption());
        let second = second.filter(|second| are_apart(&first, second));
        let frozen =
            [Some(&first), second.as_ref()].into_iter().flatten().any(|it| matches!(it, Disruption::Freeze { .. }));
        // A freeze must outlast the session of 8 s.
        let lasts = self.random.random_range(if frozen { 9_500..12_000 } else { 1_000..6_000 });
        let waits = self.random.random_bool(0.7);
        let quiet = self.random.random_range(if waits { 1_500..4_000 } else { 300..1_500 });
        let delay = Duration::from_millis(self.random.random_range(0..lasts / 2));
        Fault {
            waits,
            quiet: Duration::from_millis(quiet),
            first,
            second: second.map(|second| (second, delay)),
            lasts: Duration::from_millis(lasts),
        }
    }

    fn disruption(&mut self) -> Disruption {
        let kinds = match self.store {
            StoreKind::Edge => 7,
            StoreKind::Qdrant => 12,
        };
        if self.kinds.is_empty() {
            self.kinds = (0..kinds).collect();
            self.kinds.shuffle(&mut self.random);
        }
        let kind = self.kinds.pop().expect("just filled");
        let random = &mut self.random;
        let worker = random.random_range(0..WORKERS[self.store as usize]);
        match kind {
            0 => Disruption::Kill { worker },
            1 => Disruption::Terminate { worker },
            2 => Disruption::Freeze { worker },
            3 => Disruption::Broker,
            4 => Disruption::Host { mode: *host::FAULTS.choose(random).expect("not empty") },
            5 => {
                let life = |_| Duration::from_millis(random.random_range(200..2_000));
                Disruption::Crashes { worker, lives: (0..3).map(life).collect() }
            }
            6 => Disruption::DeadLetters,
            7 => Disruption::KillAll,
            8 => Disruption::Join { killed: random.random_bool(0.5) },
            9 => Disruption::Store,
            _ => Disruption::Network {
                line: *proxy::FAULTS.choose(random).expect("not empty"),
                worker: random.random_bool(0.5).then_some(worker),
            },
        }
    }
}

/// Whether the end of one leaves the other alone.
fn are_apart(one: &Disruption, other: &Disruption) -> bool {
    let part = |disruption: &Disruption| match disruption {
        Disruption::Kill { worker }
        | Disruption::Crashes { worker, .. }
        | Disruption::Terminate { worker }
        | Disruption::Freeze { worker } => (0, *worker),
        Disruption::KillAll => (0, usize::MAX),
        Disruption::Join { .. } => (1, 0),
        // Whether the topic takes letters is asked of the broker.
        Disruption::Broker | Disruption::DeadLetters => (2, 0),
        Disruption::Store => (3, 0),
        Disruption::Network { .. } => (4, 0),
        Disruption::Host { .. } => (5, 0),
    };
    let (one, other) = (part(one), part(other));
    one.0 != other.0 || (one.1 != other.1 && one.1 != usize::MAX && other.1 != usize::MAX)
}
