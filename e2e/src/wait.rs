//! Waiting for an effect with a deadline, where nothing announces it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// The pause between two looks: five times what a look took, within these.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// Asks `done` again and again until it answers true; returns how long that took. An answer of `Err` counts as "not yet" and
/// is part of the error once `limit` is over.
pub async fn until(
    what: &str,
    limit: Duration,
    mut done: impl AsyncFnMut() -> Result<bool>,
) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let look = Instant::now();
        let late = start.elapsed() >= limit;
        match done().await {
            Ok(true) => return Ok(start.elapsed()),
            Ok(false) if late => bail!("{what}: not within {limit:?}"),
            Err(error) if late => return Err(error).with_context(|| format!("{what}: not within {limit:?}")),
            Ok(false) | Err(_) => {}
        }
        // A look that starts a program must not take the processor from what it waits for.
        let pause = (look.elapsed() * 5).clamp(SHORTEST, LONGEST);
        tokio::time::sleep(pause).await;
    }
}
