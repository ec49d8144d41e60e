//! Makes the plan's faults happen, and ends them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::audit::Auditor;
use crate::findings::Findings;
use crate::host::{Host, Mode};
use crate::plan::{Disruption, Fault, Plan};
use crate::proxy::{Line, Proxy};
use crate::services::Services;
use crate::watch::{RESUME_WITHIN, Watch};
use crate::workers::{Ended, Worker};

/// What can go wrong.
pub struct Scene {
    /// The last one joins and leaves only.
    pub workers: Vec<Arc<Worker>>,
    /// How many of them are there from the beginning.
    pub regular: usize,
    /// One for each worker; none where the store is inside the worker.
    pub lines: Vec<Proxy>,
    pub host: Host,
    pub services: Services,
    pub watch: Arc<Watch>,
    pub findings: Arc<Findings>,
    pub auditor: Arc<Auditor>,
    /// The folder of the embedded store.
    pub embedded: Option<PathBuf>,
}

/// A fault as it happened.
pub struct Happened {
    pub fault: Fault,
    /// Seconds since the beginning of the run.
    pub from: f64,
    pub to: f64,
}

impl std::fmt::Display for Happened {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let when = if self.fault.waits { "once resumed" } else { "at once" };
        write!(formatter, "{:6.1} s to {:6.1} s  {when}: {:?}", self.from, self.to, self.fault.first)?;
        if let Some((second, delay)) = &self.fault.second {
            write!(formatter, ", {:.1} s later {second:?}", delay.as_secs_f64())?;
        }
        Ok(())
    }
}

impl Scene {
    /// Faults until the time is over; the one under way is ended properly.
    pub async fn run(
        &self,
        mut plan: Plan,
        began: Instant,
        until: Instant,
        happened: &mut Vec<Happened>,
    ) -> Result<()> {
        // Where the fault before was one of the group's membership alone: how many rebalances were undrained before it.
        let mut membership = None;
        loop {
            let fault = plan.next();
            let resumed = Instant::now() + RESUME_WITHIN + Duration::from_secs(5);
            while fault.waits && !self.watch.has_resumed() && Instant::now() < resumed {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            tokio::time::sleep(fault.quiet).await;
            if Instant::now() >= until {
                return Ok(());
            }
            let from = began.elapsed().as_secs_f64();
            self.watch.fault_begins();
            // Nothing else is out of order, and what is in flight can be finished.
            let calm = fault.second.is_none() && (fault.waits || happened.is_empty());
            let undrained = self.undrained();
            if let Some(before) = membership.filter(|before| fault.waits && undrained > *before) {
                let count = undrained - before;
                self.findings.add(format!("{count} calm rebalances took partitions away before they were drained"));
            }
            self.begin(&fault.first, calm).await?;
            match &fault.second {
                Some((second, delay)) => {
                    tokio::time::sleep(*delay).await;
                    self.begin(second, false).await?;
                    tokio::time::sleep(fault.lasts - *delay).await;
                    self.end(second, false).await?;
                }
                None => tokio::time::sleep(fault.lasts).await,
            }
            self.end(&fault.first, calm).await?;
            self.watch.fault_ends();
            membership = (calm && fault.first.is_of_membership()).then_some(undrained);
            let fault = Happened { fault, from, to: began.elapsed().as_secs_f64() };
            println!("chaos: {fault}");
            happened.push(fault);
        }
    }

    async fn begin(&self, disruption: &Disruption, calm: bool) -> Result<()> {
        match disruption {
            Disruption::Kill { worker } => {
                self.workers[*worker].kill();
                self.audit_embedded().await?;
            }
            Disruption::Crashes { worker, lives } => {
                let worker = &self.workers[*worker];
                for life in lives {
                    worker.kill();
                    self.audit_embedded().await?;
                    worker.start()?;
                    // What else is out of order may keep it from being ready.
                    let patience = Instant::now() + Duration::from_secs(5);
                    while !worker.is_ready() && Instant::now() < patience {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    tokio::time::sleep(*life).await;
                }
                worker.kill();
                self.audit_embedded().await?;
            }
            Disruption::KillAll => self.workers.iter().for_each(|worker| worker.kill()),
            Disruption::Terminate { worker } => self.terminate(&self.workers[*worker], calm).await?,
            Disruption::Freeze { worker } => {
                self.workers[*worker].freeze().await?;
                self.audit_embedded().await?;
            }
            Disruption::Join { .. } => self.workers[self.regular].start()?,
            Disruption::Broker => self.services.crash("kafka").await?,
            Disruption::Store => self.services.crash("qdrant").await?,
            Disruption::DeadLetters => self.auditor.kafka.refuse_dead_letters(true).await?,
            Disruption::Network { line, worker } => self.set_lines(*line, *worker),
            Disruption::Host { mode } => self.host.set(*mode),
        }
        Ok(())
    }

    async fn end(&self, disruption: &Disruption, calm: bool) -> Result<()> {
        match disruption {
            Disruption::Kill { worker } | Disruption::Crashes { worker, .. } | Disruption::Terminate { worker } => {
                self.workers[*worker].start()?;
            }
            Disruption::KillAll => self.workers[..self.regular].iter().try_for_each(|worker| worker.start())?,
            Disruption::Freeze { worker } => self.workers[*worker].thaw()?,
            Disruption::Join { killed: true } => self.workers[self.regular].kill(),
            Disruption::Join { killed: false } => self.terminate(&self.workers[self.regular], calm).await?,
            Disruption::Broker => self.services.resume("kafka").await?,
            Disruption::Store => self.services.resume("qdrant").await?,
            Disruption::DeadLetters => self.auditor.kafka.refuse_dead_letters(false).await?,
            Disruption::Network { worker, .. } => self.set_lines(Line::Open, *worker),
            Disruption::Host { .. } => self.host.set(Mode::Serves),
        }
        Ok(())
    }

    /// A worker that is told to stop while all else is in order finishes what it has, commits it, and says so.
    pub async fn terminate(&self, worker: &Worker, calm: bool) -> Result<()> {
        let Ended { code, log, was_ready } = match worker.terminate().await {
            Ok(Some(ended)) => ended,
            Ok(None) => return Ok(()),
            Err(error) => {
                self.findings.add(format!("{error:#}"));
                worker.kill();
                return Ok(());
            }
        };
        let stopped = log.lines().rev().find(|line| line.contains("ingest stopped"));
        let clean = stopped.is_some_and(|line| line.contains("\"abandoned\":0") && line.contains("\"committed\":true"));
        if calm && was_ready && (code != Some(0) || !clean) {
            self.findings.add(format!("{}: a calm SIGTERM ended with {code:?} and {stopped:?}", worker.name));
        }
        Ok(())
    }

    fn undrained(&self) -> usize {
        self.workers.iter().map(|worker| worker.undrained()).sum()
    }

    /// Its only worker does nothing now.
    async fn audit_embedded(&self) -> Result<()> {
        match &self.embedded {
            Some(folder) => self.auditor.embedded(folder).await,
            None => Ok(()),
        }
    }

    fn set_lines(&self, line: Line, worker: Option<usize>) {
        for (place, proxy) in self.lines.iter().enumerate() {
            if worker.is_none_or(|worker| worker == place) {
                proxy.set(line);
            }
        }
    }
}
