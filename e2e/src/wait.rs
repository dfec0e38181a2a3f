//! Waiting for an effect with a deadline, where nothing announces it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::time::MissedTickBehavior;

/// Asks `done` every 50 ms until it answers true; returns how long that took. An answer of `Err` counts as "not yet" and
/// is part of the error once `limit` is over.
pub async fn until(
    what: &str,
    limit: Duration,
    mut done: impl AsyncFnMut() -> Result<bool>,
) -> Result<Duration> {
    let start = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let late = start.elapsed() >= limit;
        match done().await {
            Ok(true) => return Ok(start.elapsed()),
            Ok(false) if late => bail!("{what}: not within {limit:?}"),
            Err(error) if late => return Err(error).with_context(|| format!("{what}: not within {limit:?}")),
            Ok(false) | Err(_) => {}
        }
    }
}
