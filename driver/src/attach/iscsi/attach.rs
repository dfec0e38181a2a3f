//! From a publish context to SCSI devices: all portals at once, the first one decides.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use storagelink_multipath::{ProvenPath, engine::PROOF};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use super::{
    error::{AttachError, PortalError},
    initiator::Initiator,
    lun::Lun,
};
use crate::publish_context::{Portal, PublishContext};

/// What an attach brought.
#[derive(Debug)]
pub struct Attached {
    /// Paths to the LUN, each proven by its live identity within the last [`PROOF`]. At least one.
    pub paths: Vec<ProvenPath>,
    /// The portals that gave none yet, and why: [`Initiator::attach_one`] tries one again.
    pub missing: Vec<(Portal, PortalError)>,
}

/// How long a portal that has not even answered is waited for once the first path is there.
const SILENT_GRACE: Duration = Duration::from_millis(200);

/// What a path's task and its attach tell each other: whether a device is still wanted (exactly one side wins), and
/// whether the portal answered.
#[derive(Default)]
struct Wanted {
    state: AtomicU8,
    answered: Arc<AtomicBool>,
}

const UNDECIDED: u8 = 0;
const SCANNING: u8 = 1;
const ABANDONED: u8 = 2;

impl Wanted {
    /// The task's side: from here on a device may appear. False when nobody wants one any more.
    fn scan(&self) -> bool {
        self.state
            .compare_exchange(UNDECIDED, SCANNING, Ordering::SeqCst, Ordering::SeqCst)
            != Err(ABANDONED)
    }
    /// The attach's side. False when the task is scanning already.
    fn abandon(&self) -> bool {
        self.state
            .compare_exchange(UNDECIDED, ABANDONED, Ordering::SeqCst, Ordering::SeqCst)
            != Err(SCANNING)
    }
}

/// The tasks of one attach. However the attach ends, a task that has not come to its scan never makes a device any
/// more, and is not stopped in the middle of a login: it lets go of the session by itself.
struct Tasks {
    set: JoinSet<(usize, Result<ProvenPath, PortalError>)>,
    wanted: Vec<Arc<Wanted>>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for wanted in &self.wanted {
            wanted.abandon();
        }
        self.set.detach_all();
    }
}

impl Initiator {
    /// Brings up as many of the LUN's paths as come within the grace period after the first, all portals at once, each
    /// with its own budget. One path is success; none within `deadline` is an error, and then no device is left.
    pub async fn attach(
        &self,
        context: &PublishContext,
        deadline: Duration,
    ) -> Result<Attached, AttachError> {
        let begun = Instant::now();
        let mut until = begun + deadline;
        if context.portals.is_empty() {
            return Err(AttachError::NoPortals);
        }
        let mut tasks = Tasks {
            set: JoinSet::new(),
            wanted: Vec::new(),
        };
        for (i, portal) in context.portals.iter().enumerate() {
            let wanted = Arc::new(Wanted::default());
            tasks.wanted.push(Arc::clone(&wanted));
            let (this, portal, context) = (self.clone(), portal.clone(), context.clone());
            let budget = deadline.min(self.0.config.portal_budget);
            tasks
                .set
                .spawn(async move { (i, this.path(&portal, &context, budget, &wanted).await) });
        }
        let mut results: Vec<Option<(Instant, Result<ProvenPath, PortalError>)>> =
            context.portals.iter().map(|_| None).collect();
        let mut silent_until = until;
        loop {
            let answered = |i: usize| tasks.wanted[i].answered.load(Ordering::SeqCst);
            let hopeful = (0..results.len()).any(|i| results[i].is_none() && answered(i));
            let limit = if hopeful { until } else { silent_until };
            match timeout_at(limit, tasks.set.join_next()).await {
                Ok(Some(joined)) => {
                    let (i, result) = joined.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
                    if result.is_ok() {
                        until = until.min(Instant::now() + self.0.config.grace);
                        silent_until = silent_until.min(Instant::now() + SILENT_GRACE);
                    }
                    results[i] = Some((Instant::now(), result));
                }
                Ok(None) => break,
                // A portal may have answered while the limit for silent ones ran.
                Err(_)
                    if limit < until && (0..results.len()).any(|i| results[i].is_none() && answered(i)) =>
                {
                    silent_until = until;
                }
                Err(_) => break,
            }
        }
        // Time is up, or all are there. Only those that are scanning now are waited for, within the scan's own limit:
        // their device must not appear behind our back.
        let scanning: Vec<_> = (0..results.len())
            .filter(|&i| !tasks.wanted[i].abandon())
            .collect();
        while scanning.iter().any(|&i| results[i].is_none())
            && let Some(joined) = tasks.set.join_next().await
        {
            let (i, result) = joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            results[i] = Some((Instant::now(), result));
        }
        let (mut paths, mut missing) = (Vec::new(), Vec::new());
        for (portal, result) in context.portals.iter().zip(results) {
            let result = match result {
                // It has waited for the others.
                Some((proven, Ok(_))) if proven.elapsed() > PROOF => {
                    Some(self.attach_one(portal, context).await)
                }
                result => result.map(|(_, result)| result),
            };
            match result {
                Some(Ok(path)) => paths.push(path),
                Some(Err(error)) => missing.push((portal.clone(), error)),
                None => {
                    let error = PortalError::TimedOut {
                        portal: portal.clone().into(),
                        budget: begun.elapsed(),
                    };
                    missing.push((portal.clone(), error));
                }
            }
        }
        if paths.is_empty() {
            let errors = missing.into_iter().map(|(_, error)| error).collect();
            return Err(AttachError::NoPath {
                lun: context.lun,
                wwid: context.wwid.clone(),
                errors,
            });
        }
        Ok(Attached { paths, missing })
    }

    /// Brings up the path through one portal, for the paths that [`Self::attach`] did not wait for. Wait for its end,
    /// at most the configured budget, before the volume is detached.
    pub async fn attach_one(
        &self,
        portal: &Portal,
        context: &PublishContext,
    ) -> Result<ProvenPath, PortalError> {
        self.path(portal, context, self.0.config.portal_budget, &Wanted::default())
            .await
    }

    async fn path(
        &self,
        portal: &Portal,
        context: &PublishContext,
        budget: Duration,
        wanted: &Wanted,
    ) -> Result<ProvenPath, PortalError> {
        let timed_out = || PortalError::TimedOut {
            portal: portal.clone().into(),
            budget,
        };
        let reach = async {
            let held = match timeout(budget, self.session(portal, Arc::clone(&wanted.answered))).await {
                Ok(held) => held?,
                Err(_) => return Err(timed_out()),
            };
            if !wanted.scan() {
                return Err(timed_out());
            }
            Lun::new(self, portal, &held.session, context)?.reach().await
        };
        let result = reach.await;
        if result.is_err()
            && let Err(error) = self.release(portal).await
        {
            tracing::warn!(portal = %portal, error = %error, "cannot log out after a path failed");
        }
        result
    }
}
