//! What a command writes down for the docs: median and worst of its rounds, and its own part of a file.
//!
//! Only writes between the two lines of the part that it is told; asserts nothing about a time.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{artifacts::Artifacts, programs::output, report::seconds};

/// Every round of one figure.
#[derive(Debug, Clone, Default)]
pub struct Rounds(Vec<Duration>);

impl Rounds {
    /// One more.
    pub fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The one in the middle; of an even number the later one. Zero without rounds.
    #[must_use]
    pub fn median(&self) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }

    /// The longest; zero without rounds.
    #[must_use]
    pub fn worst(&self) -> Duration {
        self.0.iter().max().copied().unwrap_or_default()
    }

    /// `median / worst` for a table; a dash without rounds.
    #[must_use]
    pub fn cell(&self) -> String {
        if self.0.is_empty() {
            "-".to_owned()
        } else {
            format!("{} / {}", seconds(self.median()), seconds(self.worst()))
        }
    }
}

impl Extend<Duration> for Rounds {
    fn extend<T: IntoIterator<Item = Duration>>(&mut self, more: T) {
        self.0.extend(more);
    }
}

impl FromIterator<Duration> for Rounds {
    fn from_iter<T: IntoIterator<Item = Duration>>(all: T) -> Self {
        Self(all.into_iter().collect())
    }
}

/// Where and on what it was measured, as one paragraph.
pub async fn circumstances(artifacts: &Artifacts) -> Result<String> {
    let date = output(&["date", "-u", "+%F"]).await?;
    let load = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let build = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    let processors = std::thread::available_parallelism().context("count the processors")?;
    Ok(format!(
        "Measured on {}: kernel {} in QEMU guests of 2 emulated processors (tcg), on a machine of {processors} cores with a load of {load} before the start; {build} build.",
        date.trim(),
        artifacts.release,
    ))
}

/// What a command owns of a file in `docs/` of the checkout that this program was built from: all between its two lines
/// `<!-- <command>: begin -->` and `<!-- <command>: end -->`.
#[derive(Debug)]
pub struct Part<'a> {
    /// The file's name.
    pub file: &'static str,
    /// The command that writes it, as a user types it.
    pub command: &'a str,
}

impl<'a> Part<'a> {
    /// The part of a bench.
    #[must_use]
    pub fn of_bench(command: &'a str) -> Self {
        Self {
            file: "benchmarks.md",
            command,
        }
    }

    /// What is there.
    pub fn read(&self) -> Result<String> {
        let text = self.file()?;
        let (_, part, _) = split(&text, self.command).with_context(|| self.missing())?;
        Ok(part.to_owned())
    }

    /// Puts another text there.
    pub fn write(&self, part: &str) -> Result<()> {
        let new = replaced(&self.file()?, self.command, part).with_context(|| self.missing())?;
        fs::write(self.path(), new).with_context(|| format!("write docs/{}", self.file))
    }

    fn path(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../docs")
            .join(self.file)
    }

    fn file(&self) -> Result<String> {
        fs::read_to_string(self.path()).with_context(|| format!("read docs/{}", self.file))
    }

    fn missing(&self) -> String {
        format!("docs/{} has no part of `{}`", self.file, self.command)
    }
}

/// What is before the part of `command`, the part, and what is behind it; `None` where `text` has none.
fn split<'a>(text: &'a str, command: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let (before, rest) = text.split_once(&format!("<!-- {command}: begin -->\n"))?;
    let (part, after) = rest.split_once(&format!("<!-- {command}: end -->"))?;
    Some((before, part, after))
}

/// `text` with another part of `command`; `None` where it has none.
fn replaced(text: &str, command: &str, part: &str) -> Option<String> {
    let (before, _, after) = split(text, command)?;
    Some(format!(
        "{before}<!-- {command}: begin -->\n{}\n<!-- {command}: end -->{after}",
        part.trim_end()
    ))
}

#[cfg(test)]
mod tests {
    use super::{Rounds, replaced};
    use std::time::Duration;

    #[test]
    fn the_middle_and_the_longest_whatever_their_order() {
        let rounds: Rounds = [30, 10, 5000, 20, 40]
            .map(Duration::from_millis)
            .into_iter()
            .collect();
        assert_eq!(rounds.median(), Duration::from_millis(30));
        assert_eq!(rounds.cell(), "30.0 ms / 5.00 s");
        assert_eq!(Rounds::default().cell(), "-");
    }

    #[test]
    fn only_the_own_part_is_replaced() {
        let text = "a\n<!-- make x: begin -->\nold\n<!-- make x: end -->\nb\n<!-- make y: begin -->\nkept\n<!-- make y: end -->\n";
        let new = replaced(text, "make x", "new\n").unwrap();
        assert_eq!(
            new,
            "a\n<!-- make x: begin -->\nnew\n<!-- make x: end -->\nb\n<!-- make y: begin -->\nkept\n<!-- make y: end -->\n"
        );
        assert_eq!(replaced(&new, "make x", "new").unwrap(), new, "again");
        assert!(replaced(text, "make z", "new").is_none());
    }
}
