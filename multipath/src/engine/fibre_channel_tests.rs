//! Maps over Fibre Channel ports on the simulated kernel.

use super::{tests::*, *};
use crate::{RemotePort, host::sim::SimKernel};

const PORTS: [&str; 2] = ["0x2000020000000002", "0x2000020000000012"];

/// A host that is logged in to both ports of an array, the volume's LUN scanned through each.
async fn lab() -> Lab {
    let kernel = SimKernel::new();
    let mut sessions = Vec::new();
    for port in PORTS {
        kernel.set_lun(port, LUN, &wwid(), GIB);
        let host = kernel.log_in_to_port(port);
        scsi_device::scan(&kernel.host(), &hctl(host), SHORT)
            .await
            .unwrap();
        sessions.push(host);
    }
    Lab {
        engine: Engine::new(kernel.host()),
        kernel,
        sessions,
    }
}

impl Lab {
    fn times(&self) -> Vec<Option<Duration>> {
        let port = |host: &u32| -> RemotePort { format!("rport-{host}:0-0").parse().unwrap() };
        let time = |host| port(host).fast_io_fail(self.engine.host());
        self.sessions.iter().map(time).collect()
    }

    /// As a port that the kernel has made anew.
    fn forget_times(&self) {
        for host in &self.sessions {
            let file = format!("class/fc_remote_ports/rport-{host}:0-0/fast_io_fail_tmo");
            self.engine.host().sysfs.write(&file, "off").unwrap();
        }
    }
}

const SOON: [Option<Duration>; 2] = [Some(Duration::from_secs(1)); 2];

#[tokio::test]
async fn paths_are_shown_by_the_names_of_their_ports_which_give_io_back_soon() {
    let lab = lab().await;
    let mut paths = lab.proven().await;
    let late = paths.pop().unwrap();
    assert_eq!(lab.times(), [None, None]);
    lab.engine.build(spec(), paths).await.unwrap();
    assert_eq!(lab.times(), [SOON[0], None], "only ports with a path of ours");
    let map = lab.engine.join(&wwid(), late).await.unwrap();
    assert_eq!(lab.times(), SOON);
    let shown: Vec<&str> = map.paths().map(|path| path.portal.as_str()).collect();
    assert_eq!(shown, PORTS);
    assert!(map.paths().all(|path| path.session.is_none()));

    lab.forget_times();
    Engine::new(lab.kernel.host()).adopt().await.unwrap();
    assert_eq!(lab.times(), SOON, "an engine that adopts maps sees to it, too");
}

#[tokio::test]
async fn a_port_that_takes_no_time_does_not_keep_a_map_from_being_built() {
    let lab = lab().await;
    let paths = lab.proven().await;
    lab.kernel.fail_next("WRITE", nix::libc::EBUSY);
    let map = lab.engine.build(spec(), paths).await.unwrap();
    assert!(map.paths().all(PathView::is_usable));
    assert_eq!(lab.times().iter().filter(|time| time.is_none()).count(), 1);
}

#[tokio::test]
async fn a_blocked_port_gets_no_new_io_and_its_device_is_not_deleted_before_its_time() {
    let lab = lab().await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.kernel.cut(lab.sessions[0], "blocked");
    // Three times what a path without a time of its own gets in tests.
    lab.engine.monitor(tokio::time::sleep(3 * SHORT)).await;
    let map = lab.map().await;
    let path = map.paths().next().unwrap();
    assert_eq!((path.active, path.device_state.as_str()), (false, "blocked"));
    let record = lab.engine.ledger().of(VOLUME).unwrap();
    let reason = &record.paths[0].reason;
    let port = format!("Fibre Channel port {}: Blocked", PORTS[0]);
    assert!(reason.contains(&port), "{reason}");
    assert_eq!(record.paths[0].label(), path.hctl);

    // A kernel that does not give it back after all.
    lab.watch("its device is gone", |map| {
        map.paths().any(|path| path.device_state == "gone")
    })
    .await;
}

#[tokio::test]
async fn a_port_that_is_back_is_used_again_and_gives_io_back_soon_again() {
    let lab = lab().await;
    lab.engine.build(spec(), lab.proven().await).await.unwrap();
    lab.forget_times();
    lab.kernel.cut(lab.sessions[0], "transport-offline");
    lab.watch("its path is lost", |map| map.paths().any(|path| !path.active))
        .await;
    lab.kernel.heal(lab.sessions[0]);
    lab.watch("both paths are used", |map| map.paths().all(PathView::is_usable))
        .await;
    assert_eq!(lab.times(), [SOON[0], None]);
}
