//! Volumes are made where a node can reach them, and counted where it can. The portals are 10.0.1.1 and fd00::1.

use storagelink_proto::csi::v1::controller_server::Controller as _;
use storagelink_proto::csi::v1::{
    ControllerGetVolumeRequest, CreateVolumeRequest, GetCapacityRequest, ListVolumesRequest, Topology,
    TopologyRequirement,
};
use tonic::{Code, Request};

use crate::{Lab, create_request, refused, strings};

const FABRICS: &str =
    "[fabrics]\na = \"10.0.1.0/24\"\nb = [\"fd00::/64\", \"10.0.2.0/24\"]\nelsewhere = \"10.0.3.0/24\"\n";

fn node(a: &str, b: &str, elsewhere: &str) -> Topology {
    Topology {
        segments: strings(&[
            ("fabric.storagelink.io/a", a),
            ("fabric.storagelink.io/b", b),
            ("fabric.storagelink.io/elsewhere", elsewhere),
        ]),
    }
}

fn only(name: &str) -> Topology {
    Topology {
        segments: strings(&[(&format!("fabric.storagelink.io/{name}"), "true")]),
    }
}

fn wanted(name: &str, requisite: Vec<Topology>) -> CreateVolumeRequest {
    CreateVolumeRequest {
        accessibility_requirements: Some(TopologyRequirement {
            preferred: requisite.clone(),
            requisite,
        }),
        ..create_request(name)
    }
}

#[tokio::test]
async fn a_volume_is_bound_to_the_fabrics_of_its_portals() {
    let lab = Lab::with(FABRICS).await;
    let made = lab.create(create_request("anywhere")).await.unwrap();
    assert_eq!(made.accessible_topology, [only("a"), only("b")]);
    let nodes = vec![node("false", "true", "true"), node("false", "false", "true")];
    let made = lab.create(wanted("b-only", nodes.clone())).await.unwrap();
    assert_eq!(made.accessible_topology, [only("b")]);
    assert_eq!(lab.create(wanted("b-only", nodes)).await.unwrap(), made);
}

#[tokio::test]
async fn lists_show_every_fabric_of_the_system_and_ask_for_each_system_once() {
    let lab = Lab::with(FABRICS).await;
    let narrow = vec![node("false", "true", "false")];
    let volume = lab.create(wanted("b-only", narrow)).await.unwrap();
    lab.create(create_request("anywhere")).await.unwrap();
    lab.fake.array().calls.clear();
    let list = lab
        .controller
        .list_volumes(Request::new(ListVolumesRequest::default()));
    let entries = list.await.unwrap().into_inner().entries;
    assert_eq!(entries.len(), 2);
    for entry in entries {
        let found = entry.volume.unwrap().accessible_topology;
        assert_eq!(found, [only("a"), only("b")]);
    }
    let asked = |(call, _): &&(&str, String)| *call == "ListTargetPorts";
    assert_eq!(lab.fake.array().calls.iter().filter(asked).count(), 1);
    let request = ControllerGetVolumeRequest {
        volume_id: volume.volume_id,
    };
    let got = lab.controller.controller_get_volume(Request::new(request)).await;
    let found = got.unwrap().into_inner().volume.unwrap().accessible_topology;
    assert_eq!(found, [only("a"), only("b")]);
}

#[tokio::test]
async fn nodes_that_do_not_reach_the_system_get_nothing() {
    let lab = Lab::with(FABRICS).await;
    let request = wanted("pvc-1", vec![node("false", "false", "true")]);
    refused(
        lab.create(request).await,
        Code::ResourceExhausted,
        &["system lab", "fabrics a, b", "a=false b=false elsewhere=true"],
    );
    assert!(lab.fake.array().volumes.is_empty());
    let mut unknown = create_request("pvc-1");
    unknown.parameters.insert("system".to_owned(), "lob".to_owned());
    refused(
        lab.create(unknown).await,
        Code::InvalidArgument,
        &["parameters[system]", "lob", "lab: fast"],
    );
}

#[tokio::test]
async fn a_system_outside_all_fabrics_is_bound_to_none() {
    let lab = Lab::with("[fabrics]\nelsewhere = \"10.0.3.0/24\"\n").await;
    let made = lab
        .create(wanted("pvc-1", vec![node("false", "false", "false")]))
        .await;
    assert!(made.unwrap().accessible_topology.is_empty());
}

#[tokio::test]
async fn capacity_is_nothing_where_the_system_is_out_of_reach() {
    let lab = Lab::with(FABRICS).await;
    let capacity = async |topology: Option<Topology>| {
        let request = GetCapacityRequest {
            parameters: strings(&[("system", "lab"), ("aggregate", "fast")]),
            accessible_topology: topology,
            ..Default::default()
        };
        let answer = lab.controller.get_capacity(Request::new(request)).await.unwrap();
        answer.into_inner().available_capacity
    };
    let all = capacity(None).await;
    assert!(all > 0);
    assert_eq!(capacity(Some(node("true", "false", "false"))).await, all);
    assert_eq!(capacity(Some(node("false", "false", "true"))).await, 0);
}
