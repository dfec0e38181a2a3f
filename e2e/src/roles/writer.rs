//! `lab-writer` in a guest: started, stopped, verified.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{
    guest::Guest,
    lab::Lab,
    wait,
    writer::{verify::Verdict, write::Summary},
};

/// A writer running in a guest.
#[derive(Debug, Clone)]
pub struct Writer {
    name: String,
    program: String,
    target: String,
    seed: String,
}

/// An acknowledged write, as the log has it.
#[derive(Debug, Clone, Copy)]
pub struct Acknowledged {
    /// Microseconds after the writer's start.
    pub began_us: u64,
    /// Microseconds the write took.
    pub took_us: u64,
}

impl Writer {
    /// Starts writing to `target` (file or device) with O_DIRECT, or `mode` "fsync". `name` is free in this guest.
    pub async fn start(lab: &Lab, guest: &Guest, name: &str, target: &str, mode: &str) -> Result<Self> {
        Self::start_with(lab, guest, name, target, &["--mode", mode]).await
    }

    /// [`Writer::start`] with O_DIRECT, each job beginning a write every `pace` at most.
    pub async fn start_paced(
        lab: &Lab,
        guest: &Guest,
        name: &str,
        target: &str,
        pace: Duration,
    ) -> Result<Self> {
        let pace = pace.as_millis().to_string();
        Self::start_with(lab, guest, name, target, &["--every-ms", &pace]).await
    }

    /// [`Writer::start`] with O_DIRECT from this block of 4 KiB on: `target` has other writers too.
    pub async fn start_at(lab: &Lab, guest: &Guest, name: &str, target: &str, first: u64) -> Result<Self> {
        Self::start_with(lab, guest, name, target, &["--first", &first.to_string()]).await
    }

    async fn start_with(lab: &Lab, guest: &Guest, name: &str, target: &str, more: &[&str]) -> Result<Self> {
        let seed = (uuid::Uuid::new_v4().as_u128() as u64).to_string();
        let writer = Self {
            name: name.to_owned(),
            program: lab.program("lab-writer"),
            target: target.to_owned(),
            seed,
        };
        let log = writer.log();
        let mut argv = vec![
            writer.program.as_str(),
            "write",
            "--target",
            target,
            "--log",
            &log,
            "--seed",
            &writer.seed,
            "--blocks",
            "2048",
            "--jobs",
            "4",
        ];
        argv.extend(more);
        guest.spawn(name, &argv, &[]).await?;
        wait::until(
            &format!("{name}: its first write"),
            Duration::from_secs(20),
            async || Ok(!guest.read(&log).await?.is_empty()),
        )
        .await
        .with_context(|| guest.log(name).unwrap_or_default())?;
        Ok(writer)
    }

    /// Its log in the guest.
    fn log(&self) -> String {
        format!("/run/{}.acknowledged", self.name)
    }

    /// The writes acknowledged so far.
    pub async fn acknowledged(&self, guest: &Guest) -> Result<Vec<Acknowledged>> {
        let text = guest.read(&self.log()).await?;
        let line = |line: &str| {
            let mut words = line.split(' ').skip(2).map(str::parse);
            Some(Acknowledged {
                began_us: words.next()?.ok()?,
                took_us: words.next()?.ok()?,
            })
        };
        Ok(text.lines().filter_map(line).collect())
    }

    /// Stops it and waits until its last write is through, at most `limit`.
    pub async fn stop(&self, guest: &Guest, limit: Duration) -> Result<Summary> {
        guest.kill(&self.name, 15).await?;
        guest.wait(&self.name, limit).await?;
        let log = guest.log(&self.name)?;
        let last = log.lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("{}: the writer said {log:?}", self.name))
    }

    /// Reads everything back, from `target` (the same file may be mounted elsewhere by now); a wrong block is an error.
    pub async fn verify(&self, guest: &Guest, target: Option<&str>) -> Result<Verdict> {
        let target = target.unwrap_or(&self.target);
        let log = self.log();
        let argv = [
            &self.program,
            "verify",
            "--target",
            target,
            "--log",
            &log,
            "--seed",
            &self.seed,
        ];
        let done = guest.run(&argv, &[], Duration::from_secs(60)).await?;
        let verdict: Verdict = serde_json::from_slice(&done.stdout)
            .with_context(|| format!("{}: {}", self.name, String::from_utf8_lossy(&done.stderr)))?;
        ensure!(
            verdict.wrong == 0 && verdict.acknowledged > 0,
            "{}: {verdict:?}",
            self.name
        );
        Ok(verdict)
    }
}
