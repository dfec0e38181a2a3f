//! The ledger on the simulated kernel, through the monitor.

use super::super::{tests::*, *};
use crate::host::DevNo;

/// Runs the monitor until `wanted` holds of what is known of the map.
async fn until(lab: &Lab, what: &str, wanted: impl Fn(&MapRecord) -> bool) -> MapRecord {
    let mut changes = lab.engine.ledger().changes();
    let watch = async {
        loop {
            if let Some(map) = lab.engine.ledger().of(VOLUME)
                && wanted(&map)
            {
                return map;
            }
            // Counters alone wake nobody.
            let _ = tokio::time::timeout(Duration::from_millis(50), changes.changed()).await;
        }
    };
    tokio::select! {
        map = watch => map,
        () = lab.engine.monitor(std::future::pending()) => unreachable!(),
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("never: {what}: {:?}", lab.engine.ledger().of(VOLUME)),
    }
}

fn path(map: &MapRecord, session: u32) -> &PathRecord {
    let hctl = hctl(session).to_string();
    map.paths.iter().find(|path| path.hctl == hctl).unwrap()
}

#[tokio::test]
async fn a_lost_path_says_why_and_since_when_and_that_it_is_back() {
    let lab = lab(2).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    let well = until(&lab, "well", |map| map.paths.len() == 2).await;
    assert_eq!(well.state, MapState::Well);
    assert!(well.paths.iter().all(|path| path.usable && path.losses == 0));

    lab.kernel.cut(lab.sessions[0], "transport-offline");
    let cut = until(&lab, "degraded", |map| map.state == MapState::Degraded).await;
    let lost = path(&cut, lab.sessions[0]);
    assert!(!lost.usable && lost.losses == 1 && lost.failures >= 1);
    let session = format!("iSCSI session {}: FAILED", lab.sessions[0]);
    assert!(
        lost.reason.contains("transport-offline") && lost.reason.contains(&session),
        "{}",
        lost.reason
    );
    assert!(lost.since >= well.since);

    lab.kernel.heal(lab.sessions[0]);
    let back = until(&lab, "well again", |map| map.state == MapState::Well).await;
    let found = path(&back, lab.sessions[0]);
    assert_eq!((found.usable, found.losses, found.reinstatements), (true, 1, 1));
    assert!(
        found.checks >= 1 && found.failures >= 1,
        "counts outlive the reinstatement"
    );
    assert_eq!(
        back.stalls.iter().sum::<u64>(),
        0,
        "the other path carried all the time"
    );
}

#[tokio::test]
async fn a_time_without_a_path_is_counted_and_so_is_that_its_io_failed() {
    let lab = lab(1).await;
    let mut heard = lab.engine.listen();
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    until(&lab, "seen", |_| true).await;
    lab.kernel.cut(lab.sessions[0], "transport-offline");
    // The tests' time until I/O is failed is short.
    let failing = until(&lab, "failing", |map| map.state == MapState::Failing).await;
    assert!(failing.failed_io.is_some_and(|(_, until)| until.is_none()));
    assert!(failing.held >= Duration::from_millis(100), "{:?}", failing.held);
    lab.kernel.heal(lab.sessions[0]);
    let back = until(&lab, "well", |map| map.state == MapState::Well).await;
    assert!(
        back.failed_io
            .is_some_and(|(from, until)| until.is_some_and(|until| until >= from))
    );
    assert_eq!(back.stalls.iter().sum::<u64>(), 1);
    assert!(back.stalled >= back.held);
    let mut told = Vec::new();
    while let Ok(notice) = heard.try_recv() {
        told.push(notice.change);
    }
    let at = |change| told.iter().position(|c| *c == change);
    assert!(at(Change::Failing).is_some(), "{told:?}");
    assert!(at(Change::Failing) < at(Change::Recovered), "{told:?}");
}

#[tokio::test]
async fn a_path_to_another_disk_is_named_and_a_map_that_is_gone_is_forgotten() {
    let lab = lab(1).await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    until(&lab, "seen", |_| true).await;
    lab.kernel.set_lun(TARGET, LUN, &other(), GIB);
    let misled = until(&lab, "misled", |map| map.mismatches > 0).await;
    let reason = &misled.paths[0].reason;
    assert!(
        reason.contains("another disk") && reason.contains(other().as_str()),
        "{reason}"
    );
    lab.engine.remove(&wwid(), SHORT).await.unwrap();
    lab.engine.ledger().forget(&lab.engine.maps().await.unwrap());
    assert!(lab.engine.ledger().maps().is_empty());
}

#[tokio::test]
async fn a_device_that_comes_anew_continues_the_record_of_its_portal() {
    let lab = lab(2).await;
    let map = lab.engine.build(spec(), lab.proven().await).await.unwrap();
    let ledger = Ledger::default();
    ledger.saw(lab.engine.host(), &map);
    let mut changed = map;
    let old = changed.groups[0].paths[0].devno;
    changed.groups[0].paths[0].devno = DevNo {
        major: 8,
        minor: 4000,
    };
    changed.groups[0].paths[0].active = false;
    ledger.saw(lab.engine.host(), &changed);
    let record = ledger.of(VOLUME).unwrap();
    assert_eq!(record.paths.len(), 2);
    assert!(record.paths.iter().all(|path| path.devno != old));
    assert_eq!(record.paths.iter().map(|path| path.losses).sum::<u64>(), 1);
}
