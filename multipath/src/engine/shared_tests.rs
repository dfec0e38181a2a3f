//! Several nodes on one simulated kernel: each sees, adopts, watches and removes its own maps only.

use super::{
    tests::{GIB, LUN, SHORT, TARGET, VOLUME, hctl, spec, wwid},
    *,
};
use crate::{host::sim::SimKernel, names::Names};

struct Node {
    engine: Engine,
    sessions: Vec<u32>,
}

impl Node {
    /// A node of this name, or one that knows of no others, with two sessions of its own.
    async fn on(kernel: &SimKernel, name: Option<&str>) -> Self {
        let names = name.map(|name| Names::of_node(name).unwrap()).unwrap_or_default();
        let host = Host {
            names,
            ..kernel.host()
        };
        let sessions: Vec<u32> = (1..=2)
            .map(|n| kernel.login(TARGET, &format!("192.0.2.{n}"), 3260))
            .collect();
        for session in &sessions {
            scsi_device::scan(&host, &hctl(*session), SHORT).await.unwrap();
        }
        Self {
            engine: Engine::new(host),
            sessions,
        }
    }

    async fn build(&self) -> Map {
        let mut paths = Vec::new();
        for session in &self.sessions {
            paths.push(self.engine.prove(hctl(*session), &wwid(), SHORT).await.unwrap());
        }
        self.engine.build(spec(), paths).await.unwrap()
    }

    async fn map(&self) -> Map {
        self.engine
            .find(&wwid())
            .await
            .unwrap()
            .expect("its map is there")
    }
}

/// Two nodes that share the kernel and one that does not know of it, all with the same volume.
async fn three() -> (SimKernel, [Node; 3]) {
    let kernel = SimKernel::new();
    kernel.set_lun(TARGET, LUN, &wwid(), GIB);
    let nodes = [
        Node::on(&kernel, Some("n1")).await,
        Node::on(&kernel, Some("n1.b")).await,
        Node::on(&kernel, None).await,
    ];
    for node in &nodes {
        node.build().await;
    }
    (kernel, nodes)
}

#[tokio::test]
async fn each_node_has_a_map_of_its_own_over_its_own_sessions() {
    let (kernel, nodes) = three().await;
    assert_eq!(kernel.maps().len(), 3);
    for node in &nodes {
        let maps = node.engine.maps().await.unwrap();
        assert_eq!(maps.len(), 1, "{maps:?}");
        assert_eq!((maps[0].volume.as_str(), &maps[0].wwid), (VOLUME, &wwid()));
        let over: Vec<u32> = maps[0].paths().filter_map(|path| path.session).collect();
        assert_eq!(over, node.sessions);
        assert_eq!(
            node.engine.find_by_volume(VOLUME).await.unwrap().as_ref(),
            Some(&maps[0])
        );
        assert_eq!(node.build().await, maps[0], "staged again, nothing changes");
    }
}

#[tokio::test]
async fn removing_and_adopting_stop_at_the_neighbours_map() {
    let (kernel, [one, other, alone]) = three().await;
    let theirs = [other.map().await, alone.map().await];
    kernel.suspend(&theirs[0].name);
    let adopted = one.engine.adopt().await.unwrap();
    assert_eq!(adopted, [one.map().await]);
    assert!(
        other.map().await.suspended,
        "another node's half-made map is its own affair"
    );
    other.engine.adopt().await.unwrap();
    assert!(!other.map().await.suspended);

    let disks = one.engine.remove(&wwid(), SHORT).await.unwrap();
    let hosts: Vec<u32> = disks.iter().map(|disk| disk.hctl.host).collect();
    assert_eq!(
        hosts, one.sessions,
        "only its own disks are given back to be deleted"
    );
    assert_eq!(one.engine.remove(&wwid(), SHORT).await.unwrap(), []);
    assert_eq!(one.engine.maps().await.unwrap(), []);
    assert_eq!([other.map().await, alone.map().await], theirs);
}

#[tokio::test]
async fn a_lost_path_is_put_back_by_its_own_node_only() {
    let (kernel, [one, other, alone]) = three().await;
    let failed = |map: &Map| map.paths().filter(|path| !path.active).count();
    for node in [&one, &other, &alone] {
        kernel.cut(node.sessions[0], "transport-offline");
        kernel.heal(node.sessions[0]);
        assert_eq!(failed(&node.map().await), 1);
    }
    let monitor = one.engine.monitor(std::future::pending());
    let seen = async {
        while failed(&one.map().await) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = monitor => unreachable!("it is never stopped"),
        seen = tokio::time::timeout(Duration::from_secs(10), seen) => seen.expect("its path is put back"),
    }
    assert_eq!(failed(&other.map().await) + failed(&alone.map().await), 2);
    assert_eq!(
        one.engine.ledger().maps().len(),
        1,
        "nothing is told of others' maps"
    );
}

#[tokio::test]
async fn a_silent_connection_is_ended_by_its_own_node_only_although_all_are_between_the_same_addresses() {
    let (kernel, [one, other, alone]) = three().await;
    kernel.share_address();
    for node in [&one, &other, &alone] {
        kernel.silence(node.sessions[0]);
    }
    let monitor = one.engine.monitor(std::future::pending());
    let ended = async {
        while one.engine.connections_ended() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = monitor => unreachable!("it is never stopped"),
        ended = tokio::time::timeout(Duration::from_secs(10), ended) => ended.expect("it is ended"),
    }
    let state = |node: &Node| crate::iscsi_session::state(node.engine.host(), node.sessions[0]).unwrap();
    assert_eq!(
        [&one, &other, &alone].map(state),
        ["FAILED", "LOGGED_IN", "LOGGED_IN"]
    );
    assert_eq!(one.engine.connections_ended(), 1);
}
