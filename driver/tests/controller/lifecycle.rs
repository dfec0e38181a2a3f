//! Listing, looking, growing, capacity, validation.

use storagelink_csi::controller::CAPABILITIES;
use storagelink_proto::csi::v1::controller_server::Controller as _;
use storagelink_proto::csi::v1::volume_capability::access_mode::Mode;
use storagelink_proto::csi::v1::*;
use tonic::{Code, Request};

use crate::fake::GIB;
use crate::publish::{NODE_A, publish_request};
use crate::{Lab, block, create_request, inner, mount, refused, strings};

#[tokio::test]
async fn lists_pages_with_nodes_and_condition() {
    let lab = Lab::new().await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(lab.create(create_request(name)).await.unwrap().volume_id);
    }
    lab.publish(publish_request(&ids[1], NODE_A, mount(Mode::SingleNodeWriter)))
        .await
        .unwrap();
    lab.fake.array().volumes.get_mut(&ids[2]).unwrap().abnormal_reason = "backing file is gone".to_owned();

    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let request = ListVolumesRequest {
            max_entries: 2,
            starting_token: token,
        };
        let page = inner(lab.controller.list_volumes(Request::new(request)).await).unwrap();
        assert!(page.entries.len() <= 2);
        seen.extend(page.entries);
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen.len(), 3);
    for entry in seen {
        let volume = entry.volume.unwrap();
        let status = entry.status.unwrap();
        let nodes: &[&str] = if volume.volume_id == ids[1] {
            &[NODE_A]
        } else {
            &[]
        };
        assert_eq!(status.published_node_ids, nodes);
        assert_eq!(
            status.volume_condition.unwrap().abnormal,
            volume.volume_id == ids[2]
        );

        let request = ControllerGetVolumeRequest {
            volume_id: volume.volume_id.clone(),
        };
        let one = inner(lab.controller.controller_get_volume(Request::new(request)).await).unwrap();
        assert_eq!(one.volume.unwrap(), volume);
        let status = one.status.unwrap();
        assert_eq!(status.published_node_ids, nodes);
        let condition = status.volume_condition.unwrap();
        assert_eq!(condition.abnormal, volume.volume_id == ids[2]);
        assert!(!condition.abnormal || condition.message == "backing file is gone");
    }
    let bad = ListVolumesRequest {
        max_entries: 0,
        starting_token: "nonsense".to_owned(),
    };
    refused(
        lab.controller.list_volumes(Request::new(bad)).await,
        Code::Aborted,
        &["page_token"],
    );
}

#[tokio::test]
async fn grows_and_never_shrinks() {
    let lab = Lab::new().await;
    let id = lab.create(create_request("pvc-1")).await.unwrap().volume_id;
    let expand = async |required: u64, limit: u64| {
        let request = ControllerExpandVolumeRequest {
            volume_id: id.clone(),
            capacity_range: Some(CapacityRange {
                required_bytes: required as i64,
                limit_bytes: limit as i64,
            }),
            ..Default::default()
        };
        inner(
            lab.controller
                .controller_expand_volume(Request::new(request))
                .await,
        )
    };
    for (required, limit, size) in [
        (2 * GIB, 0, 2 * GIB),
        (2 * GIB, 0, 2 * GIB),
        (GIB, 0, 2 * GIB),
        (2 * GIB + 1, 3 * GIB, 2 * GIB + (1 << 20)),
    ] {
        let answer = expand(required, limit).await.unwrap();
        assert_eq!(answer.capacity_bytes, size as i64);
        assert!(answer.node_expansion_required);
    }
    refused(expand(0, GIB).await, Code::OutOfRange, &["do not shrink"]);
    refused(
        expand(3 * GIB + 1, 3 * GIB + 2).await,
        Code::OutOfRange,
        &["limit"],
    );
    assert_eq!(lab.fake.array().volumes[&id].size_bytes, 2 * GIB + (1 << 20));
}

#[tokio::test]
async fn capacity_is_of_what_the_class_names() {
    let lab = Lab::new().await;
    let capacity = async |pairs: &[(&str, &str)], capabilities: Vec<VolumeCapability>| {
        let request = GetCapacityRequest {
            volume_capabilities: capabilities,
            parameters: strings(pairs),
            accessible_topology: Some(Topology::default()),
        };
        inner(lab.controller.get_capacity(Request::new(request)).await)
    };
    for (pairs, available, maximum) in [
        (&[][..], 60, 15),
        (&[("system", "lab")], 50, 15),
        (&[("system", "lab"), ("aggregate", "auto")], 50, 15),
        (&[("system", "lab"), ("aggregate", "fast")], 20, 10),
        (
            &[
                ("system", "lab"),
                ("aggregate", "fast"),
                ("provisionType", "thick"),
            ],
            10,
            10,
        ),
    ] {
        let answer = capacity(pairs, Vec::new()).await.unwrap();
        assert_eq!(answer.available_capacity, (available * GIB) as i64, "{pairs:?}");
        assert_eq!(
            answer.maximum_volume_size,
            Some((maximum * GIB) as i64),
            "{pairs:?}"
        );
        assert_eq!(answer.minimum_volume_size, Some(1 << 20));
    }
    let impossible = capacity(&[], vec![mount(Mode::MultiNodeMultiWriter)])
        .await
        .unwrap();
    assert_eq!(impossible.available_capacity, 0);
    lab.fake.array().systems.get_mut("lab").unwrap()[1].unavailable_reason = "away".to_owned();
    assert_eq!(
        capacity(&[("system", "lab")], Vec::new())
            .await
            .unwrap()
            .available_capacity,
        (20 * GIB) as i64
    );
    for (pairs, text) in [
        (
            &[("system", "typo")][..],
            "parameters[system]: \"typo\" is unknown",
        ),
        (
            &[("aggregate", "typo")],
            "parameters[aggregate]: \"typo\" is unknown",
        ),
        (&[("sytem", "lab")], "unknown: sytem"),
    ] {
        refused(capacity(pairs, Vec::new()).await, Code::InvalidArgument, &[text]);
    }
}

#[tokio::test]
async fn validation_confirms_or_says_why_not() {
    let lab = Lab::new().await;
    let volume = lab.create(create_request("pvc-1")).await.unwrap();
    let validate = async |change: &dyn Fn(&mut ValidateVolumeCapabilitiesRequest)| {
        let mut request = ValidateVolumeCapabilitiesRequest {
            volume_id: volume.volume_id.clone(),
            volume_context: volume.volume_context.clone(),
            volume_capabilities: vec![mount(Mode::SingleNodeWriter), block(Mode::MultiNodeMultiWriter)],
            parameters: create_request("").parameters,
            ..Default::default()
        };
        change(&mut request);
        let asked = request.clone();
        (
            asked,
            inner(
                lab.controller
                    .validate_volume_capabilities(Request::new(request))
                    .await,
            ),
        )
    };
    let (asked, answer) = validate(&|_| {}).await;
    let confirmed = answer.unwrap().confirmed.unwrap();
    assert_eq!(confirmed.volume_capabilities, asked.volume_capabilities);
    assert_eq!(confirmed.parameters, asked.parameters);
    assert_eq!(confirmed.volume_context, asked.volume_context);

    type Change = fn(&mut ValidateVolumeCapabilitiesRequest);
    let changes: [(Change, &str); 7] = [
        (
            |r| r.volume_capabilities.push(mount(Mode::MultiNodeMultiWriter)),
            "destroyed",
        ),
        (
            |r| r.volume_context.extend(strings(&[("aggregate", "slow")])),
            "volume_context[aggregate]",
        ),
        (
            |r| r.parameters.extend(strings(&[("system", "other")])),
            "parameters[system]",
        ),
        (
            |r| r.parameters.extend(strings(&[("aggregate", "slow")])),
            "parameters[aggregate]",
        ),
        (
            |r| r.parameters.extend(strings(&[("provisionType", "thick")])),
            "parameters[provisionType]",
        ),
        (|r| r.parameters.extend(strings(&[("typo", "x")])), "typo"),
        (
            |r| r.mutable_parameters.extend(strings(&[("iops", "9")])),
            "mutable_parameters",
        ),
    ];
    for (change, text) in changes {
        let answer = validate(&change).await.1.unwrap();
        assert!(answer.confirmed.is_none(), "{text}");
        assert!(answer.message.contains(text), "{text}: {}", answer.message);
    }
}

#[tokio::test]
async fn the_capabilities_are_those_that_the_suite_drives() {
    let lab = Lab::new().await;
    let request = Request::new(ControllerGetCapabilitiesRequest {});
    let answer = inner(lab.controller.controller_get_capabilities(request).await).unwrap();
    assert_eq!(answer.capabilities.len(), CAPABILITIES.len());
    // What is not advertised is not there.
    refused(
        lab.controller
            .controller_modify_volume(Request::new(ControllerModifyVolumeRequest::default()))
            .await,
        Code::Unimplemented,
        &[],
    );
}
