//! How the map of one volume is laid out and behaves: path selector, path groups, queueing, and how many paths a stage asks for.
//!
//! Pure. Owns the names of these settings and of their values, as a StorageClass spells them; everything that carries a policy carries it by
//! [`Policy::to_map`]. A value that is not known is refused with the name of its key, never replaced by a default.

use std::{collections::HashMap, fmt, str::FromStr, time::Duration};

/// Which path of a group takes the next request (drivers/md/dm-ps-*.c).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathSelector {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight.
    QueueLength,
    /// The one that will probably be done first, by the bytes in flight.
    ServiceTime,
}

/// Which paths are used together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathGrouping {
    /// As [`Self::Alua`] where the device reports access states, else as [`Self::Multibus`].
    #[default]
    Auto,
    /// All of them.
    Multibus,
    /// Those with the same asymmetric access state; a device that reports none is one group.
    Alua,
    /// One at a time.
    Failover,
}

/// At which layer the map takes I/O (`queue_mode` of dm-mpath.c). A map keeps the one that it was made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueMode {
    /// Requests, after merging and scheduling.
    #[default]
    Request,
    /// Bios, before them.
    Bio,
}

/// What becomes of I/O while no path is usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPathRetry {
    /// It fails at once.
    Fail,
    /// It is held for so long, then it fails.
    For(Duration),
    /// It is held without end.
    Queue,
}

/// The limit of [`NoPathRetry::For`]: a day.
const LONGEST: u64 = 86_400;

impl Default for NoPathRetry {
    /// A minute: longer than any failover of an array, shorter than the patience of whoever waits for a file system.
    fn default() -> Self {
        Self::For(Duration::from_secs(60))
    }
}

/// All settings of one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Path selector.
    pub selector: PathSelector,
    /// Path groups.
    pub grouping: PathGrouping,
    /// Queue mode.
    pub queue_mode: QueueMode,
    /// Queueing without a path.
    pub no_path_retry: NoPathRetry,
    /// Paths that must be usable before the volume counts as staged, 1 to [`MOST_PATHS`].
    pub min_paths: u32,
}

/// The most paths that a stage can be asked to wait for.
pub const MOST_PATHS: u32 = 32;

impl Default for Policy {
    fn default() -> Self {
        Self {
            selector: PathSelector::default(),
            grouping: PathGrouping::default(),
            queue_mode: QueueMode::default(),
            no_path_retry: NoPathRetry::default(),
            min_paths: 1,
        }
    }
}

/// A value that is not one of a setting's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {allowed}")]
pub struct PolicyError {
    /// The setting.
    pub key: &'static str,
    /// What was there.
    pub value: String,
    /// What may be there.
    pub allowed: &'static str,
}

/// Key of [`Policy::selector`].
pub const PATH_SELECTOR: &str = "pathSelector";
/// Key of [`Policy::grouping`].
pub const PATH_GROUPING: &str = "pathGrouping";
/// Key of [`Policy::queue_mode`].
pub const QUEUE_MODE: &str = "queueMode";
/// Key of [`Policy::no_path_retry`].
pub const NO_PATH_RETRY: &str = "noPathRetry";
/// Key of [`Policy::min_paths`].
pub const MIN_PATHS: &str = "minPaths";
/// All keys.
pub const KEYS: [&str; 5] = [PATH_SELECTOR, PATH_GROUPING, QUEUE_MODE, NO_PATH_RETRY, MIN_PATHS];

impl Policy {
    /// The policy that a map of settings says; other keys are left alone, settings that are not there have their defaults.
    ///
    /// # Errors
    /// A value that is not allowed.
    pub fn from_map(map: &HashMap<String, String>) -> Result<Self, PolicyError> {
        Ok(Self {
            selector: setting(map, PATH_SELECTOR, "round-robin, queue-length or service-time")?,
            grouping: setting(map, PATH_GROUPING, "auto, multibus, alua or failover")?,
            queue_mode: setting(map, QUEUE_MODE, "request or bio")?,
            no_path_retry: setting(map, NO_PATH_RETRY, "1 to 86400 (seconds), fail or queue")?,
            min_paths: setting::<Paths>(map, MIN_PATHS, "1 to 32")?.0,
        })
    }

    /// The settings that are not the default, by their keys.
    #[must_use]
    pub fn to_map(&self) -> HashMap<String, String> {
        let (default, paths) = (Self::default(), Paths(self.min_paths));
        [
            (
                PATH_SELECTOR,
                self.selector.to_string(),
                self.selector == default.selector,
            ),
            (
                PATH_GROUPING,
                self.grouping.to_string(),
                self.grouping == default.grouping,
            ),
            (
                QUEUE_MODE,
                self.queue_mode.to_string(),
                self.queue_mode == default.queue_mode,
            ),
            (
                NO_PATH_RETRY,
                self.no_path_retry.to_string(),
                self.no_path_retry == default.no_path_retry,
            ),
            (MIN_PATHS, paths.0.to_string(), paths == Paths::default()),
        ]
        .into_iter()
        .filter(|(_, _, is_default)| !is_default)
        .map(|(key, value, _)| (key.to_owned(), value))
        .collect()
    }
}

fn setting<T: FromStr + Default>(
    map: &HashMap<String, String>,
    key: &'static str,
    allowed: &'static str,
) -> Result<T, PolicyError> {
    let Some(text) = map.get(key) else {
        return Ok(T::default());
    };
    text.parse().map_err(|_| PolicyError {
        key,
        value: text.chars().take(80).collect(),
        allowed,
    })
}

/// A text that is none of the values; [`PolicyError`] says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

/// [`Policy::min_paths`] as a text.
#[derive(PartialEq)]
struct Paths(u32);

impl Default for Paths {
    fn default() -> Self {
        Self(1)
    }
}

impl FromStr for Paths {
    type Err = Unknown;
    fn from_str(text: &str) -> Result<Self, Unknown> {
        number(text, u64::from(MOST_PATHS))
            .and_then(|paths| u32::try_from(paths).map(Self).map_err(|_| Unknown))
    }
}

/// Plain decimal digits, 1 to `most`.
fn number(text: &str, most: u64) -> Result<u64, Unknown> {
    match text.parse() {
        Ok(number @ 1..) if number <= most && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(number),
        _ => Err(Unknown),
    }
}

impl NoPathRetry {
    /// What becomes of I/O, for people.
    #[must_use]
    pub fn explained(self) -> String {
        match self {
            Self::Fail => "I/O fails until one is back".to_owned(),
            Self::For(time) => format!("I/O waits {} s for one, then fails", time.as_secs()),
            Self::Queue => "I/O waits until one is back".to_owned(),
        }
    }
}

impl FromStr for NoPathRetry {
    type Err = Unknown;
    fn from_str(text: &str) -> Result<Self, Unknown> {
        match text {
            "fail" => Ok(Self::Fail),
            "queue" => Ok(Self::Queue),
            seconds => number(seconds, LONGEST).map(|seconds| Self::For(Duration::from_secs(seconds))),
        }
    }
}

impl fmt::Display for NoPathRetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fail => f.write_str("fail"),
            Self::For(time) => write!(f, "{}", time.as_secs()),
            Self::Queue => f.write_str("queue"),
        }
    }
}

/// Both directions of an enum whose values have one name each.
macro_rules! named {
    ($type:ty, $($value:ident = $name:literal),+) => {
        impl FromStr for $type {
            type Err = Unknown;
            fn from_str(text: &str) -> Result<Self, Unknown> {
                match text {
                    $($name => Ok(Self::$value),)+
                    _ => Err(Unknown),
                }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$value => $name,)+ })
            }
        }
    };
}

named!(
    PathSelector,
    RoundRobin = "round-robin",
    QueueLength = "queue-length",
    ServiceTime = "service-time"
);
named!(
    PathGrouping,
    Auto = "auto",
    Multibus = "multibus",
    Alua = "alua",
    Failover = "failover"
);
named!(QueueMode, Request = "request", Bio = "bio");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy() -> impl Strategy<Value = Policy> {
        use PathGrouping::{Alua, Auto, Failover, Multibus};
        use PathSelector::{QueueLength, RoundRobin, ServiceTime};
        (
            prop_oneof![Just(RoundRobin), Just(QueueLength), Just(ServiceTime)],
            prop_oneof![Just(Auto), Just(Multibus), Just(Alua), Just(Failover)],
            prop_oneof![Just(QueueMode::Request), Just(QueueMode::Bio)],
            prop_oneof![
                Just(NoPathRetry::Fail),
                Just(NoPathRetry::Queue),
                (1..=LONGEST).prop_map(|seconds| NoPathRetry::For(Duration::from_secs(seconds)))
            ],
            1..=MOST_PATHS,
        )
            .prop_map(
                |(selector, grouping, queue_mode, no_path_retry, min_paths)| Policy {
                    selector,
                    grouping,
                    queue_mode,
                    no_path_retry,
                    min_paths,
                },
            )
    }

    proptest! {
        #[test]
        fn round_trip(policy in policy()) {
            prop_assert_eq!(Policy::from_map(&policy.to_map()), Ok(policy));
        }

        #[test]
        fn any_text_is_a_value_or_refused_by_its_key(key in 0..KEYS.len(), text in "\\PC{0,20}") {
            let map = HashMap::from([(KEYS[key].to_owned(), text.clone())]);
            match Policy::from_map(&map) {
                Ok(policy) => prop_assert!(policy.to_map().values().all(|value| *value == text.trim_start_matches('0'))),
                Err(error) => prop_assert_eq!(error.key, KEYS[key]),
            }
        }
    }

    #[test]
    fn defaults_are_not_written() {
        assert!(Policy::default().to_map().is_empty());
        assert_eq!(Policy::from_map(&HashMap::new()), Ok(Policy::default()));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (key, value) in [
            (NO_PATH_RETRY, "0"),
            (NO_PATH_RETRY, "86401"),
            (NO_PATH_RETRY, "+5"),
            (NO_PATH_RETRY, "60s"),
            (MIN_PATHS, "0"),
            (MIN_PATHS, "33"),
            (QUEUE_MODE, "rq"),
            (PATH_SELECTOR, "Round-Robin"),
            (PATH_GROUPING, ""),
        ] {
            let error = Policy::from_map(&HashMap::from([(key.to_owned(), value.to_owned())])).unwrap_err();
            assert_eq!((error.key, error.value.as_str()), (key, value));
        }
    }
}
