//! The grammar of the multipath target's table line, both ways (drivers/md/dm-mpath.c: multipath_ctr, parse_features,
//! parse_hw_handler, parse_priority_group).
//!
//! Pure. Tables are compared by what they mean, never as text: the kernel prints features in its own order and adds some.

use std::fmt;

use crate::{
    host::DevNo,
    policy::{NoPathRetry, PathSelector, Policy, QueueMode},
};

/// What a multipath table says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MultipathTable {
    /// Feature words, each with its argument if it has one.
    pub features: Vec<Feature>,
    /// Hardware handler and its arguments; empty: none named.
    pub hardware_handler: Vec<String>,
    /// Number of the group to start with, counted from 1; 0 without groups.
    pub initial_group: u32,
    /// Path groups in order of preference.
    pub groups: Vec<PathGroup>,
}

/// A feature of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Hold I/O while no path is usable.
    QueueIfNoPath,
    /// Keep a hardware handler that the device has already.
    RetainAttachedHwHandler,
    /// `pg_init_retries`, 1 to 50.
    PgInitRetries(u32),
    /// `pg_init_delay_msecs`, 0 to 60000.
    PgInitDelayMsecs(u32),
    /// `queue_mode`: `bio`, `rq` or `mq`.
    QueueMode(String),
}

/// Paths that are used together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathGroup {
    /// Path selector, for example `round-robin`.
    pub selector: String,
    /// Its arguments.
    pub selector_args: Vec<String>,
    /// The paths.
    pub paths: Vec<TablePath>,
}

/// One path with the selector's arguments for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePath {
    /// The SCSI disk.
    pub devno: DevNo,
    /// Arguments, for example the repeat count of round-robin.
    pub args: Vec<String>,
}

impl MultipathTable {
    /// One group over these paths, round-robin, holding I/O while none is usable. Without paths: a table that only holds I/O.
    #[must_use]
    pub fn round_robin(paths: impl IntoIterator<Item = DevNo>) -> Self {
        Self::of_policy(&Policy::default(), &[paths.into_iter().collect()])
    }

    /// These groups, best first, as a policy says; empty ones are left out.
    #[must_use]
    pub fn of_policy(policy: &Policy, groups: &[Vec<DevNo>]) -> Self {
        let (selector, args) = match policy.selector {
            // Repeat count 1: the next request takes the next path (dm-ps-round-robin.c clamps it to 1 anyway).
            PathSelector::RoundRobin | PathSelector::QueueLength => (policy.selector, &["1"][..]),
            // Repeat count, and a relative throughput that is the same for all (dm-ps-service-time.c).
            PathSelector::ServiceTime => (policy.selector, &["1", "1"][..]),
        };
        let path = |devno: &DevNo| TablePath {
            devno: *devno,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        };
        let groups: Vec<PathGroup> = groups
            .iter()
            .filter(|paths| !paths.is_empty())
            .map(|paths| PathGroup {
                selector: selector.to_string(),
                selector_args: vec![],
                paths: paths.iter().map(path).collect(),
            })
            .collect();
        let mut features = Vec::new();
        if policy.no_path_retry != NoPathRetry::Fail {
            features.push(Feature::QueueIfNoPath);
        }
        if policy.queue_mode == QueueMode::Bio {
            features.push(Feature::QueueMode("bio".to_owned()));
        }
        Self {
            features,
            hardware_handler: vec![],
            initial_group: u32::from(!groups.is_empty()),
            groups,
        }
    }

    /// The paths of each group.
    #[must_use]
    pub fn layout(&self) -> Vec<Vec<DevNo>> {
        self.groups
            .iter()
            .map(|group| group.paths.iter().map(|path| path.devno).collect())
            .collect()
    }

    /// The map takes bios.
    #[must_use]
    pub fn queue_mode(&self) -> QueueMode {
        let bio = Feature::QueueMode("bio".to_owned());
        if self.features.contains(&bio) {
            QueueMode::Bio
        } else {
            QueueMode::Request
        }
    }

    /// All paths, in the order of the table.
    pub fn paths(&self) -> impl Iterator<Item = DevNo> + '_ {
        self.groups
            .iter()
            .flat_map(|group| group.paths.iter().map(|path| path.devno))
    }

    /// True when I/O is held while no path is usable.
    #[must_use]
    pub fn queues_if_no_path(&self) -> bool {
        self.features.contains(&Feature::QueueIfNoPath)
    }
}

impl fmt::Display for MultipathTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.features.iter().flat_map(Feature::words).collect();
        counted(f, &words)?;
        f.write_str(" ")?;
        counted(f, &self.hardware_handler)?;
        write!(f, " {} {}", self.groups.len(), self.initial_group)?;
        for group in &self.groups {
            write!(f, " {} ", group.selector)?;
            counted(f, &group.selector_args)?;
            let args = group.paths.first().map_or(0, |path| path.args.len());
            write!(f, " {} {args}", group.paths.len())?;
            for path in &group.paths {
                write!(f, " {}", path.devno)?;
                for arg in &path.args {
                    write!(f, " {arg}")?;
                }
            }
        }
        Ok(())
    }
}

fn counted(f: &mut fmt::Formatter<'_>, words: &[String]) -> fmt::Result {
    write!(f, "{}", words.len())?;
    words.iter().try_for_each(|word| write!(f, " {word}"))
}

impl Feature {
    fn words(&self) -> Vec<String> {
        match self {
            Self::QueueIfNoPath => vec!["queue_if_no_path".to_owned()],
            Self::RetainAttachedHwHandler => vec!["retain_attached_hw_handler".to_owned()],
            Self::PgInitRetries(n) => vec!["pg_init_retries".to_owned(), n.to_string()],
            Self::PgInitDelayMsecs(n) => vec!["pg_init_delay_msecs".to_owned(), n.to_string()],
            Self::QueueMode(mode) => vec!["queue_mode".to_owned(), mode.clone()],
        }
    }
}

/// A table line that does not follow the grammar.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("multipath table: {what} at word {word}")]
pub struct GrammarError {
    /// What was expected or wrong.
    pub what: &'static str,
    /// Number of the word, counted from 1.
    pub word: usize,
}

/// The words of a table or status line, taken one after another.
pub(crate) struct Words<'a> {
    words: std::str::SplitAsciiWhitespace<'a>,
    taken: usize,
}

/// The kernel allows 1024 paths in a group and as many arguments (dm-mpath.c, parse_path_selector).
const MAXIMUM_COUNT: u32 = 1024;

impl<'a> Words<'a> {
    pub(crate) fn new(line: &'a str) -> Self {
        Self {
            words: line.split_ascii_whitespace(),
            taken: 0,
        }
    }

    pub(crate) fn error(&self, what: &'static str) -> GrammarError {
        GrammarError {
            what,
            word: self.taken,
        }
    }

    pub(crate) fn word(&mut self, what: &'static str) -> Result<&'a str, GrammarError> {
        self.taken += 1;
        self.words.next().ok_or(GrammarError {
            what,
            word: self.taken,
        })
    }

    pub(crate) fn number(&mut self, what: &'static str) -> Result<u32, GrammarError> {
        let word = self.word(what)?;
        word.parse().map_err(|_| self.error(what))
    }

    pub(crate) fn count(&mut self, what: &'static str) -> Result<u32, GrammarError> {
        let count = self.number(what)?;
        if count > MAXIMUM_COUNT {
            Err(self.error(what))
        } else {
            Ok(count)
        }
    }

    pub(crate) fn devno(&mut self) -> Result<DevNo, GrammarError> {
        let word = self.word("device number")?;
        word.parse().map_err(|_| self.error("device number"))
    }

    pub(crate) fn list(
        &mut self,
        count: &'static str,
        word: &'static str,
    ) -> Result<Vec<String>, GrammarError> {
        let count = self.count(count)?;
        (0..count).map(|_| self.word(word).map(str::to_owned)).collect()
    }

    pub(crate) fn end(mut self) -> Result<(), GrammarError> {
        self.taken += 1;
        match self.words.next() {
            None => Ok(()),
            Some(_) => Err(self.error("end of the line")),
        }
    }
}

impl std::str::FromStr for MultipathTable {
    type Err = GrammarError;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let mut words = Words::new(line);
        let features = features(&mut words)?;
        let hardware_handler = words.list("number of hardware handler words", "hardware handler word")?;
        let group_count = words.count("number of path groups")?;
        let initial_group = words.number("initial path group")?;
        if (group_count == 0) != (initial_group == 0) || initial_group > group_count {
            return Err(words.error("initial path group"));
        }
        let groups = (0..group_count)
            .map(|_| group(&mut words))
            .collect::<Result<_, _>>()?;
        words.end()?;
        Ok(Self {
            features,
            hardware_handler,
            initial_group,
            groups,
        })
    }
}

fn features(words: &mut Words<'_>) -> Result<Vec<Feature>, GrammarError> {
    let mut left = words.count("number of feature words")?;
    let mut features = Vec::new();
    while left > 0 {
        let name = words.word("feature")?.to_ascii_lowercase();
        let (feature, used) = match name.as_str() {
            "queue_if_no_path" => (Feature::QueueIfNoPath, 1),
            "retain_attached_hw_handler" => (Feature::RetainAttachedHwHandler, 1),
            "pg_init_retries" => (Feature::PgInitRetries(words.number("pg_init_retries")?), 2),
            "pg_init_delay_msecs" => (Feature::PgInitDelayMsecs(words.number("pg_init_delay_msecs")?), 2),
            "queue_mode" => (Feature::QueueMode(words.word("queue_mode")?.to_owned()), 2),
            _ => return Err(words.error("feature")),
        };
        left = left
            .checked_sub(used)
            .ok_or_else(|| words.error("number of feature words"))?;
        features.push(feature);
    }
    Ok(features)
}

fn group(words: &mut Words<'_>) -> Result<PathGroup, GrammarError> {
    let selector = words.word("path selector")?.to_owned();
    let selector_args = words.list("number of selector arguments", "selector argument")?;
    let path_count = words.count("number of paths")?;
    if path_count == 0 {
        return Err(words.error("number of paths"));
    }
    let arg_count = words.count("number of path arguments")?;
    let path = |words: &mut Words<'_>| {
        let devno = words.devno()?;
        let args = (0..arg_count)
            .map(|_| words.word("path argument").map(str::to_owned))
            .collect::<Result<_, _>>()?;
        Ok(TablePath { devno, args })
    };
    let paths = (0..path_count).map(|_| path(words)).collect::<Result<_, _>>()?;
    Ok(PathGroup {
        selector,
        selector_args,
        paths,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn word() -> impl Strategy<Value = String> {
        "[a-z0-9_-]{1,12}"
    }

    fn feature() -> impl Strategy<Value = Feature> {
        prop_oneof![
            Just(Feature::QueueIfNoPath),
            Just(Feature::RetainAttachedHwHandler),
            (1..=50u32).prop_map(Feature::PgInitRetries),
            (0..=60000u32).prop_map(Feature::PgInitDelayMsecs),
            prop_oneof![Just("bio"), Just("mq")].prop_map(|mode| Feature::QueueMode(mode.to_owned())),
        ]
    }

    fn path_group() -> impl Strategy<Value = PathGroup> {
        (word(), proptest::collection::vec(word(), 0..3), 0..3usize).prop_flat_map(
            |(selector, selector_args, args)| {
                let path = (any::<(u32, u32)>(), proptest::collection::vec(word(), args)).prop_map(
                    |((major, minor), args)| TablePath {
                        devno: DevNo { major, minor },
                        args,
                    },
                );
                proptest::collection::vec(path, 1..6).prop_map(move |paths| PathGroup {
                    selector: selector.clone(),
                    selector_args: selector_args.clone(),
                    paths,
                })
            },
        )
    }

    proptest! {
        #[test]
        fn round_trip(features in proptest::collection::vec(feature(), 0..4), hardware_handler in proptest::collection::vec(word(), 0..3),
                      groups in proptest::collection::vec(path_group(), 0..4)) {
            let table = MultipathTable { features, hardware_handler, initial_group: u32::from(!groups.is_empty()), groups };
            prop_assert_eq!(table.to_string().parse::<MultipathTable>().unwrap(), table);
        }

        #[test]
        fn never_panics(line in "[a-z0-9_: -]{0,120}") {
            let _ = line.parse::<MultipathTable>();
        }
    }

    #[test]
    fn the_tables_that_we_load() {
        let two = MultipathTable::round_robin([DevNo { major: 8, minor: 0 }, DevNo { major: 8, minor: 16 }]);
        assert_eq!(
            two.to_string(),
            "1 queue_if_no_path 0 1 1 round-robin 0 2 1 8:0 1 8:16 1"
        );
        assert_eq!(
            MultipathTable::round_robin([]).to_string(),
            "1 queue_if_no_path 0 0 0"
        );
        let policy = Policy {
            selector: PathSelector::ServiceTime,
            no_path_retry: NoPathRetry::Fail,
            queue_mode: QueueMode::Bio,
            ..Policy::default()
        };
        let groups = [
            vec![DevNo { major: 8, minor: 0 }],
            vec![DevNo { major: 8, minor: 16 }],
        ];
        let table = MultipathTable::of_policy(&policy, &groups);
        assert_eq!(
            table.to_string(),
            "2 queue_mode bio 0 2 1 service-time 0 1 2 8:0 1 1 service-time 0 1 2 8:16 1 1"
        );
        assert_eq!(
            (table.layout(), table.queue_mode()),
            (groups.to_vec(), QueueMode::Bio)
        );
    }

    #[test]
    fn the_kernels_own_printing_is_understood() {
        let table: MultipathTable =
            "3 queue_if_no_path queue_mode bio 1 alua 2 1 round-robin 0 1 1 8:0 1 service-time 0 1 2 8:16 1 1".parse().unwrap();
        assert!(table.queues_if_no_path());
        assert_eq!(
            table.paths().map(|d| d.to_string()).collect::<Vec<_>>(),
            ["8:0", "8:16"]
        );
    }

    #[test]
    fn refuses_what_the_kernel_would() {
        for line in [
            "",
            "0",
            "0 0 1 0",
            "0 0 0 1",
            "1 nonsense 0 0 0",
            "0 0 1 1 round-robin 0 0 1",
            "0 0 0 0 x",
            "0 0 1 1 rr 0 2 1 8:0 1",
        ] {
            assert!(line.parse::<MultipathTable>().is_err(), "{line}");
        }
    }
}
