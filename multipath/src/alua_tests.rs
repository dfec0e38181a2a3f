use proptest::prelude::*;

use super::*;

/// An answer with these (id, first byte, ports) descriptors.
fn report(groups: &[(u16, u8, u8)], extended: bool) -> Vec<u8> {
    let mut body = if extended { vec![0x10, 60, 0, 0] } else { vec![] };
    for (id, first, ports) in groups {
        let [high, low] = id.to_be_bytes();
        body.extend([*first, 0xff, high, low, 0, 0, 0, *ports]);
        for port in 0..*ports {
            body.extend([0, 0, 0, port]);
        }
    }
    let mut answer = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    answer.extend(body);
    answer
}

fn path(minor: u32) -> DevNo {
    DevNo { major: 8, minor }
}

fn member(minor: u32, state: Option<AccessState>) -> Member {
    let group = state.map(|state| TargetPortGroup {
        id: 1,
        state,
        preferred: false,
    });
    Member {
        devno: path(minor),
        group,
    }
}

#[test]
fn both_header_formats_and_all_states_are_read() {
    let groups = [(0, 0x80, 1), (7, 0x01, 0), (0x1234, 0x02, 3), (9, 0x0f, 2)];
    for extended in [false, true] {
        let found = parse_report(&report(&groups, extended)).unwrap();
        let short: Vec<_> = found.iter().map(|g| (g.id, g.state, g.preferred)).collect();
        assert_eq!(
            short,
            [
                (0, AccessState::Optimized, true),
                (7, AccessState::NonOptimized, false),
                (0x1234, AccessState::Standby, false),
                (9, AccessState::Transitioning, false),
            ]
        );
    }
    assert_eq!(parse_report(&[0, 0, 0, 0]), Ok(vec![]));
}

#[test]
fn an_answer_that_is_cut_anywhere_is_an_error() {
    let whole = report(&[(1, 0, 2), (2, 2, 2)], true);
    for length in 0..whole.len() {
        assert!(parse_report(&whole[..length]).is_err(), "{length}");
    }
    // A descriptor that says it has more ports than the answer has room for.
    let mut odd = report(&[(1, 0, 1)], false);
    odd[4 + 7] = 9;
    assert!(parse_report(&odd).is_err());
}

#[test]
fn paths_are_grouped_by_state_best_first() {
    use AccessState::{NonOptimized, Optimized, Standby, Unavailable};
    let members = [
        member(0, Some(Standby)),
        member(1, Some(Optimized)),
        member(2, Some(NonOptimized)),
        member(3, Some(Optimized)),
        member(4, Some(Unavailable)),
    ];
    let (p, auto) = (path, PathGrouping::Auto);
    let alua = arrange(auto, &members, &[]);
    assert_eq!(alua, [vec![p(1), p(3)], vec![p(2)], vec![p(0)], vec![p(4)]]);
    assert_eq!(arrange(PathGrouping::Multibus, &members, &alua).len(), 1);
    let one_by_one = arrange(PathGrouping::Failover, &members, &[]);
    assert_eq!(one_by_one, [[p(1)], [p(3)], [p(2)], [p(0)], [p(4)]]);
    assert!(arrange(auto, &[], &[vec![p(1)]]).is_empty());
}

#[test]
fn a_preferred_group_goes_before_others_of_its_state_but_not_before_optimized_ones() {
    let mut preferred = member(1, Some(AccessState::NonOptimized));
    preferred.group.as_mut().unwrap().preferred = true;
    let members = [
        member(0, Some(AccessState::NonOptimized)),
        preferred,
        member(2, Some(AccessState::Optimized)),
    ];
    let groups = arrange(PathGrouping::Alua, &members, &[]);
    assert_eq!(groups, [[path(2)], [path(1)], [path(0)]]);
}

#[test]
fn a_path_of_which_nothing_is_known_stays_beside_those_it_was_with() {
    let before = [vec![path(0), path(1)], vec![path(2)]];
    let members = [
        member(0, Some(AccessState::NonOptimized)),
        member(1, None),
        member(2, Some(AccessState::Optimized)),
        member(3, None),
    ];
    let groups = arrange(PathGrouping::Auto, &members, &before);
    assert_eq!(groups, [vec![path(2)], vec![path(0), path(1)], vec![path(3)]]);
}

#[test]
fn the_only_group_is_divided_when_no_port_that_answers_takes_io() {
    let before = [vec![path(0), path(1)]];
    let of = |state| {
        let members = [member(0, None), member(1, Some(state))];
        arrange(PathGrouping::Auto, &members, &before)
    };
    assert_eq!(of(AccessState::Standby), [[path(1)], [path(0)]]);
    assert_eq!(of(AccessState::NonOptimized), before);
    // Once divided they stay so, whatever does not answer.
    let members = [member(0, None), member(1, Some(AccessState::Standby))];
    let groups = [vec![path(1)], vec![path(0)]];
    assert_eq!(arrange(PathGrouping::Auto, &members, &groups), groups);
}

#[test]
fn a_group_that_cannot_be_asked_keeps_its_place() {
    use AccessState::{NonOptimized, Optimized};
    let before = [vec![path(0)], vec![path(1)], vec![path(2)]];
    let members = [member(0, None), member(1, None), member(2, Some(NonOptimized))];
    assert_eq!(arrange(PathGrouping::Auto, &members, &before), before);
    // What it was before is the better one now.
    let members = [
        member(0, Some(NonOptimized)),
        member(1, None),
        member(2, Some(Optimized)),
    ];
    let groups = arrange(PathGrouping::Auto, &members, &before);
    assert_eq!(groups, [[path(1)], [path(2)], [path(0)]]);
}

#[test]
fn nothing_moves_while_a_group_is_transitioning_or_nothing_is_known() {
    let before = [vec![path(0)], vec![path(1), path(9)]];
    for state in [None, Some(AccessState::Transitioning)] {
        let members = [member(0, state), member(1, state), member(2, None)];
        let groups = arrange(PathGrouping::Auto, &members, &before);
        assert_eq!(groups, [vec![path(0), path(2)], vec![path(1)]]);
    }
}

proptest! {
    #[test]
    fn never_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_report(&data);
    }

    #[test]
    fn each_path_is_in_exactly_one_group(
        states in proptest::collection::vec(proptest::option::of(0u8..16), 0..8),
        before in proptest::collection::vec(proptest::collection::vec(0u32..10, 0..4), 0..3),
        grouping in 0..4usize,
    ) {
        use PathGrouping::{Alua, Auto, Failover, Multibus};
        let members: Vec<Member> = states
            .iter()
            .zip(0..)
            .map(|(state, minor)| member(minor, state.map(AccessState::of_code)))
            .collect();
        let mut seen = std::collections::HashSet::new();
        let before: Vec<Vec<DevNo>> = before
            .into_iter()
            .map(|group| group.into_iter().filter(|minor| seen.insert(*minor)).map(path).collect())
            .collect();
        let groups = arrange([Auto, Multibus, Alua, Failover][grouping], &members, &before);
        let mut placed: Vec<DevNo> = groups.iter().flatten().copied().collect();
        placed.sort_unstable();
        prop_assert_eq!(placed, members.iter().map(|member| member.devno).collect::<Vec<_>>());
        prop_assert!(groups.iter().all(|group| !group.is_empty()));
    }
}
