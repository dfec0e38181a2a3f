//! Fabrics: which nodes a volume is offered to, and what happens when none of those that are asked for reaches it.

use std::collections::BTreeSet;

use storagelink_proto::csi::v1::controller_server::Controller as _;
use storagelink_proto::csi::v1::{
    ControllerGetVolumeRequest, CreateVolumeRequest, GetCapacityRequest, ListVolumesRequest, Topology,
    TopologyRequirement,
};
use tonic::{Code, Request, Status};

use crate::fake::{Fault, GIB, port};
use crate::{Lab, create_request, inner, refused, strings};

/// System `lab` has portals in `a` and `b`, system `other` in `c`.
const FABRICS: &str =
    "[fabrics]\na = \"10.0.1.0/24\"\nb = [\"fd00::/64\", \"10.9.0.0/24\"]\nc = \"10.0.2.0/24\"";

/// A node that reaches these fabrics and no other.
fn node(reaches: &[&str]) -> Topology {
    let segments = ["a", "b", "c"].map(|name| {
        let key = format!("fabric.storagelink.io/{name}");
        (key, reaches.contains(&name).to_string())
    });
    Topology {
        segments: segments.into(),
    }
}

fn asked(name: &str, requisite: &[&[&str]], preferred: &[&[&str]]) -> CreateVolumeRequest {
    let nodes = |all: &[&[&str]]| all.iter().map(|reaches| node(reaches)).collect();
    CreateVolumeRequest {
        accessibility_requirements: Some(TopologyRequirement {
            requisite: nodes(requisite),
            preferred: nodes(preferred),
        }),
        ..create_request(name)
    }
}

/// The alternatives: each is one fabric that must be reached.
fn fabrics(topology: &[Topology]) -> BTreeSet<String> {
    topology
        .iter()
        .map(|one| {
            let [(key, value)] = &one.segments.iter().collect::<Vec<_>>()[..] else {
                panic!("{one:?}");
            };
            assert_eq!(value.as_str(), "true");
            key.strip_prefix("fabric.storagelink.io/").unwrap().to_owned()
        })
        .collect()
}

#[tokio::test]
async fn a_volume_is_offered_through_the_fabrics_of_its_system() {
    let lab = Lab::with(FABRICS).await;
    let expect = async |request: CreateVolumeRequest, names: &[&str]| {
        let volume = lab.create(request).await.unwrap();
        let expected: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(fabrics(&volume.accessible_topology), expected);
    };
    expect(create_request("v1"), &["a", "b"]).await;
    expect(asked("v2", &[], &[]), &["a", "b"]).await;
    expect(asked("v3", &[&["a", "b"], &["c"]], &[]), &["a", "b"]).await;
    // Narrowed to what the places that are asked for reach.
    expect(asked("v4", &[&["a"], &["c"]], &[&["c"]]), &["a"]).await;
    // A wish only orders: it excludes nothing.
    expect(asked("v5", &[], &[&["c"]]), &["a", "b"]).await;
    let mut other = asked("v6", &[&["a"], &["b", "c"]], &[]);
    other.parameters = strings(&[("system", "other"), ("aggregate", "pool")]);
    expect(other, &["c"]).await;
}

#[tokio::test]
async fn a_volume_that_nobody_would_reach_is_not_made() {
    let lab = Lab::with(FABRICS).await;
    refused(
        lab.create(asked("v1", &[&["c"], &[]], &[&["c"]])).await,
        Code::ResourceExhausted,
        &[
            "system lab",
            "fabric a or b",
            "fabric.storagelink.io/c=true",
            "fabric.storagelink.io/a=false",
        ],
    );
    assert!(lab.fake.array().volumes.is_empty());
    // Asked again for other places, the same name is made.
    let volume = lab.create(asked("v1", &[&["b"]], &[])).await.unwrap();
    assert_eq!(fabrics(&volume.accessible_topology), ["b".to_owned()].into());
    // Again, wherever it is reached: the same volume.
    let again = lab.create(asked("v1", &[&["a"]], &[])).await.unwrap();
    assert_eq!(again.volume_id, volume.volume_id);
    assert_eq!(fabrics(&again.accessible_topology), ["a".to_owned()].into());
    // And where it is not: the volume that exists is another one than what is asked for.
    refused(
        lab.create(asked("v1", &[&["c"]], &[])).await,
        Code::AlreadyExists,
        &["volume v1", "fabric a or b"],
    );
    assert_eq!(lab.fake.array().volumes.len(), 1);
}

#[tokio::test]
async fn lists_show_every_fabric_of_the_system() {
    let lab = Lab::with(FABRICS).await;
    let volume = lab.create(asked("v1", &[&["a"]], &[])).await.unwrap();
    lab.create(create_request("v2")).await.unwrap();
    lab.fake.array().calls.clear();
    let list = lab
        .controller
        .list_volumes(Request::new(ListVolumesRequest::default()));
    let entries = inner(list.await).unwrap().entries;
    assert_eq!(entries.len(), 2);
    for entry in entries {
        let topology = entry.volume.unwrap().accessible_topology;
        assert_eq!(fabrics(&topology), ["a".to_owned(), "b".to_owned()].into());
    }
    let asked = |array: &crate::fake::Array| {
        array
            .calls
            .iter()
            .filter(|(call, _)| *call == "ListTargetPorts")
            .count()
    };
    assert_eq!(asked(&lab.fake.array()), 1, "once for a system, not for a volume");
    let request = ControllerGetVolumeRequest {
        volume_id: volume.volume_id,
    };
    let got = inner(lab.controller.controller_get_volume(Request::new(request)).await).unwrap();
    let topology = got.volume.unwrap().accessible_topology;
    assert_eq!(fabrics(&topology), ["a".to_owned(), "b".to_owned()].into());
}

#[tokio::test]
async fn a_system_outside_of_every_fabric_is_offered_to_all() {
    let lab = Lab::with(FABRICS).await;
    lab.fake.array().ports = vec![port("192.0.2.1:3260", 1)];
    let volume = lab.create(asked("v1", &[&["c"]], &[])).await.unwrap();
    assert_eq!(volume.accessible_topology, []);
    assert_eq!(capacity(&lab, &["c"], &[("system", "lab")]).await.unwrap(), 50);
}

async fn capacity(lab: &Lab, reaches: &[&str], parameters: &[(&str, &str)]) -> Result<i64, Status> {
    let request = GetCapacityRequest {
        parameters: strings(parameters),
        accessible_topology: Some(node(reaches)),
        ..Default::default()
    };
    let answer = inner(lab.controller.get_capacity(Request::new(request)).await)?;
    Ok(answer.available_capacity / GIB as i64)
}

#[tokio::test]
async fn there_is_no_capacity_where_the_system_is_not_reached() {
    let lab = Lab::with(FABRICS).await;
    for (reaches, parameters, expected) in [
        (&["a"][..], &[][..], 50),
        (&["c"], &[], 10),
        (&["b", "c"], &[], 60),
        (&[], &[], 0),
        (&["b"], &[("system", "lab"), ("aggregate", "fast")], 20),
        (&["c"], &[("system", "lab"), ("aggregate", "fast")], 0),
        (&["c"], &[("system", "other")], 10),
    ] {
        let found = capacity(&lab, reaches, parameters).await.unwrap();
        assert_eq!(found, expected, "{reaches:?} {parameters:?}");
    }
    refused(
        capacity(&lab, &["c"], &[("system", "typo")]).await,
        Code::InvalidArgument,
        &["\"typo\" is unknown"],
    );
}

#[tokio::test]
async fn what_cannot_be_asked_is_not_guessed() {
    let lab = Lab::with(FABRICS).await;
    lab.fake
        .order("ListTargetPorts", Fault::Refuse(Code::Unavailable));
    refused(
        lab.create(create_request("v1")).await,
        Code::Unavailable,
        &["ListTargetPorts"],
    );
    lab.fake.array().ports = vec![port("no-address", 1)];
    refused(
        lab.create(create_request("v1")).await,
        Code::Unavailable,
        &["no-address"],
    );
    assert!(lab.fake.array().volumes.is_empty());
    // A misspelt system gets the list of those that exist, as without fabrics.
    let mut typo = create_request("v1");
    typo.parameters = strings(&[("system", "typo"), ("aggregate", "fast")]);
    refused(lab.create(typo).await, Code::InvalidArgument, &["lab: fast"]);
    let mut large = asked("v1", &[&["a"]], &[]);
    large.accessibility_requirements.as_mut().unwrap().preferred = vec![Topology {
        segments: strings(&[("k", &"v".repeat(5000))]),
    }];
    refused(
        lab.create(large).await,
        Code::InvalidArgument,
        &["accessibility_requirements", "4096"],
    );
}
