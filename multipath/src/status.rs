//! The grammar of the multipath target's status line, both ways (drivers/md/dm-mpath.c: multipath_status, STATUSTYPE_INFO).
//!
//! Pure.

use std::{fmt, str::FromStr};

use crate::{
    host::DevNo,
    table::{GrammarError, Words},
};

/// What a multipath status says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MultipathStatus {
    /// I/O is held by the target now.
    pub queue_io: bool,
    /// Path group initialisations so far.
    pub pg_init_count: u32,
    /// The group in use, or to be used next, counted from 1; 0 without groups.
    pub current_group: u32,
    /// The groups in the order of the table.
    pub groups: Vec<GroupStatus>,
}

/// State of a path group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupState {
    /// In use.
    Active,
    /// May be used.
    Enabled,
    /// Bypassed.
    Disabled,
}

/// One group of the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// Its state.
    pub state: GroupState,
    /// Words of the selector about the group.
    pub selector_info: Vec<String>,
    /// Its paths.
    pub paths: Vec<PathStatus>,
}

/// One path of the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathStatus {
    /// The SCSI disk.
    pub devno: DevNo,
    /// True when the target sends I/O to it.
    pub active: bool,
    /// How often it was failed since the table was loaded.
    pub fail_count: u32,
    /// Words of the selector about the path.
    pub info: Vec<String>,
}

impl MultipathStatus {
    /// All paths in the order of the table.
    pub fn paths(&self) -> impl Iterator<Item = &PathStatus> {
        self.groups.iter().flat_map(|group| group.paths.iter())
    }
}

impl fmt::Display for MultipathStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "2 {} {} 0 {} {}",
            u8::from(self.queue_io),
            self.pg_init_count,
            self.groups.len(),
            self.current_group
        )?;
        for group in &self.groups {
            let state = match group.state {
                GroupState::Active => "A",
                GroupState::Enabled => "E",
                GroupState::Disabled => "D",
            };
            write!(f, " {state} {}", group.selector_info.len())?;
            group
                .selector_info
                .iter()
                .try_for_each(|word| write!(f, " {word}"))?;
            let info = group.paths.first().map_or(0, |path| path.info.len());
            write!(f, " {} {info}", group.paths.len())?;
            for path in &group.paths {
                write!(
                    f,
                    " {} {} {}",
                    path.devno,
                    if path.active { "A" } else { "F" },
                    path.fail_count
                )?;
                path.info.iter().try_for_each(|word| write!(f, " {word}"))?;
            }
        }
        Ok(())
    }
}

impl FromStr for MultipathStatus {
    type Err = GrammarError;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let mut words = Words::new(line);
        if words.number("number of feature words")? != 2 {
            return Err(words.error("number of feature words"));
        }
        let queue_io = words.number("queue_io")? != 0;
        let pg_init_count = words.number("pg_init count")?;
        words.list("number of hardware handler words", "hardware handler word")?;
        let group_count = words.count("number of path groups")?;
        let current_group = words.number("current path group")?;
        let groups = (0..group_count)
            .map(|_| group(&mut words))
            .collect::<Result<_, _>>()?;
        words.end()?;
        Ok(Self {
            queue_io,
            pg_init_count,
            current_group,
            groups,
        })
    }
}

fn group(words: &mut Words<'_>) -> Result<GroupStatus, GrammarError> {
    let state = match words.word("path group state")? {
        "A" => GroupState::Active,
        "E" => GroupState::Enabled,
        "D" => GroupState::Disabled,
        _ => return Err(words.error("path group state")),
    };
    let selector_info = words.list("number of selector words", "selector word")?;
    let path_count = words.count("number of paths")?;
    let info_count = words.count("number of path words")?;
    let path = |words: &mut Words<'_>| {
        let devno = words.devno()?;
        let active = match words.word("path state")? {
            "A" => true,
            "F" => false,
            _ => return Err(words.error("path state")),
        };
        let fail_count = words.number("fail count")?;
        let info = (0..info_count)
            .map(|_| words.word("path word").map(str::to_owned))
            .collect::<Result<_, _>>()?;
        Ok(PathStatus {
            devno,
            active,
            fail_count,
            info,
        })
    };
    let paths = (0..path_count).map(|_| path(words)).collect::<Result<_, _>>()?;
    Ok(GroupStatus {
        state,
        selector_info,
        paths,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_of_a_real_kernel() {
        let status: MultipathStatus = "2 0 0 0 1 1 A 0 2 0 8:0 A 1 8:16 F 1".parse().unwrap();
        let paths: Vec<_> = status
            .paths()
            .map(|p| (p.devno.to_string(), p.active, p.fail_count))
            .collect();
        assert_eq!(
            paths,
            [("8:0".to_owned(), true, 1), ("8:16".to_owned(), false, 1)]
        );
        assert_eq!(status.to_string(), "2 0 0 0 1 1 A 0 2 0 8:0 A 1 8:16 F 1");
        assert_eq!(
            "2 1 0 0 0 0".parse::<MultipathStatus>().unwrap().paths().count(),
            0
        );
    }

    fn group_status() -> impl Strategy<Value = GroupStatus> {
        let state = prop_oneof![
            Just(GroupState::Active),
            Just(GroupState::Enabled),
            Just(GroupState::Disabled)
        ];
        (state, proptest::collection::vec("[a-z0-9]{1,6}", 0..3), 0..3usize).prop_flat_map(
            |(state, selector_info, info)| {
                let path = (
                    any::<(u32, u32)>(),
                    any::<bool>(),
                    any::<u32>(),
                    proptest::collection::vec("[0-9]{1,6}", info),
                )
                    .prop_map(|((major, minor), active, fail_count, info)| PathStatus {
                        devno: DevNo { major, minor },
                        active,
                        fail_count,
                        info,
                    });
                proptest::collection::vec(path, 1..5).prop_map(move |paths| GroupStatus {
                    state,
                    selector_info: selector_info.clone(),
                    paths,
                })
            },
        )
    }

    proptest! {
        #[test]
        fn round_trip(queue_io: bool, pg_init_count: u32, groups in proptest::collection::vec(group_status(), 0..4)) {
            let status = MultipathStatus { queue_io, pg_init_count, current_group: u32::from(!groups.is_empty()), groups };
            prop_assert_eq!(status.to_string().parse::<MultipathStatus>().unwrap(), status);
        }

        #[test]
        fn never_panics(line in "[AFED0-9: ]{0,120}") {
            let _ = line.parse::<MultipathStatus>();
        }
    }
}
