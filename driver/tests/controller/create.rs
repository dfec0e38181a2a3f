//! CreateVolume: where, how large, again, and what remains when it fails half-way.

use storagelink_proto::csi::v1::volume_content_source::{Type, VolumeSource};
use storagelink_proto::csi::v1::{CapacityRange, CreateVolumeRequest, VolumeContentSource};
use tonic::Code;

use crate::fake::{Fault, GIB};
use crate::{Lab, create_request, refused, strings};

fn sized(name: &str, required: u64, limit: u64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        capacity_range: Some(CapacityRange {
            required_bytes: required as i64,
            limit_bytes: limit as i64,
        }),
        ..create_request(name)
    }
}

fn placed(name: &str, system: &str, aggregate: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        parameters: strings(&[("system", system), ("aggregate", aggregate)]),
        ..create_request(name)
    }
}

#[tokio::test]
async fn a_repeated_call_answers_the_same_volume() {
    let lab = Lab::new().await;
    let mut request = create_request("pvc-1");
    request
        .parameters
        .insert("csi.storage.k8s.io/pvc/name".to_owned(), "data".to_owned());
    let first = lab.create(request.clone()).await.unwrap();
    assert_eq!(first.capacity_bytes, GIB as i64);
    let context = &first.volume_context;
    assert_eq!(
        (context["system"].as_str(), context["aggregate"].as_str()),
        ("lab", "fast")
    );
    assert_eq!(context["provisionType"], "thin");
    assert!(context["wwid"].starts_with("naa.6001405"));
    assert!(!context.contains_key("target"));
    assert_eq!(lab.create(request).await.unwrap(), first);
    let array = lab.fake.array();
    assert_eq!(array.volumes.len(), 1);
    assert_eq!(
        array.volumes[&first.volume_id].attributes["csi.storage.k8s.io/pvc/name"],
        "data"
    );
}

#[tokio::test]
async fn the_same_name_with_another_wish_is_refused() {
    let lab = Lab::new().await;
    lab.create(sized("pvc-1", 2 * GIB, 0)).await.unwrap();
    refused(
        lab.create(sized("pvc-1", 3 * GIB, 0)).await,
        Code::AlreadyExists,
        &["pvc-1", "2147483648 bytes"],
    );
    refused(
        lab.create(sized("pvc-1", 0, GIB)).await,
        Code::AlreadyExists,
        &["2147483648 bytes"],
    );
    refused(
        lab.create(placed("pvc-1", "lab", "slow")).await,
        Code::AlreadyExists,
        &["aggregate fast"],
    );
    refused(
        lab.create(placed("pvc-1", "other", "pool")).await,
        Code::AlreadyExists,
        &["system lab"],
    );
    let mut thick = create_request("pvc-1");
    thick
        .parameters
        .insert("provisionType".to_owned(), "thick".to_owned());
    refused(
        lab.create(thick).await,
        Code::AlreadyExists,
        &["provisionType is thin"],
    );
    // More room in the wish is no other wish.
    lab.create(sized("pvc-1", GIB, 4 * GIB)).await.unwrap();
    assert_eq!(lab.fake.array().volumes.len(), 1);
}

#[tokio::test]
async fn a_class_that_does_not_say_where_gets_the_list() {
    let lab = Lab::new().await;
    let with = |pairs: &[(&str, &str)]| CreateVolumeRequest {
        parameters: strings(pairs),
        ..create_request("pvc-1")
    };
    let all = [
        "lab: fast (10 GiB free of 20 GiB), slow (15 GiB free of 20 GiB)",
        "other: pool (5 GiB free",
    ];
    for (pairs, field, texts) in [
        (&[][..], "parameters[system]: is required", &all[..]),
        (
            &[("aggregate", "fast")],
            "parameters[system]: is required",
            &all[..],
        ),
        (
            &[("system", "typo"), ("aggregate", "fast")],
            "parameters[system]: \"typo\" is unknown",
            &all[..],
        ),
        (
            &[("system", "typo")],
            "parameters[system]: \"typo\" is unknown",
            &all[..],
        ),
        (
            &[("system", "lab")],
            "parameters[aggregate]: is required",
            &["fast (10 GiB free of 20 GiB), slow"],
        ),
        (
            &[("system", "lab"), ("aggregate", "pool")],
            "parameters[aggregate]: \"pool\" is unknown",
            &["fast ("],
        ),
        (
            &[("system", "lab"), ("aggregate", "fast,pool")],
            "parameters[aggregate]: \"pool\"",
            &["fast ("],
        ),
    ] {
        let result = lab.create(with(pairs)).await;
        refused(result.clone(), Code::InvalidArgument, &[field]);
        refused(result, Code::InvalidArgument, texts);
    }
    assert!(lab.fake.array().volumes.is_empty());
}

#[tokio::test]
async fn auto_takes_the_most_free_space_and_finds_its_volume_again() {
    let lab = Lab::new().await;
    let first = lab.create(placed("pvc-1", "lab", "auto")).await.unwrap();
    assert_eq!(first.volume_context["aggregate"], "slow");
    // Now another aggregate has more: the retry must not follow it.
    lab.fake.array().systems.get_mut("lab").unwrap()[0].free_bytes = 19 * GIB;
    assert_eq!(lab.create(placed("pvc-1", "lab", "auto")).await.unwrap(), first);
    assert_eq!(lab.fake.array().volumes.len(), 1);
}

#[tokio::test]
async fn an_order_is_followed_and_what_is_full_or_away_is_passed_over() {
    let lab = Lab::new().await;
    let first = lab.create(placed("pvc-1", "lab", "fast,slow")).await.unwrap();
    assert_eq!(first.volume_context["aggregate"], "fast");
    let mut large = placed("pvc-2", "lab", "fast, slow");
    large.capacity_range = sized("", 12 * GIB, 0).capacity_range;
    assert_eq!(
        lab.create(large).await.unwrap().volume_context["aggregate"],
        "slow"
    );
    lab.fake.array().systems.get_mut("lab").unwrap()[0].unavailable_reason = "not mounted".to_owned();
    let third = lab.create(placed("pvc-3", "lab", "fast,slow")).await.unwrap();
    assert_eq!(third.volume_context["aggregate"], "slow");
    // Full between the look and the call.
    lab.fake.array().systems.get_mut("lab").unwrap()[0]
        .unavailable_reason
        .clear();
    lab.fake
        .order("CreateVolume", Fault::Refuse(Code::ResourceExhausted));
    let fourth = lab.create(placed("pvc-4", "lab", "fast,slow")).await.unwrap();
    assert_eq!(fourth.volume_context["aggregate"], "slow");
    // Without a choice that is the end.
    lab.fake
        .order("CreateVolume", Fault::Refuse(Code::ResourceExhausted));
    refused(
        lab.create(create_request("pvc-5")).await,
        Code::ResourceExhausted,
        &["CreateVolume"],
    );
    lab.fake.array().systems.get_mut("lab").unwrap()[0].unavailable_reason = "not mounted".to_owned();
    refused(
        lab.create(create_request("pvc-6")).await,
        Code::ResourceExhausted,
        &["fast", "not mounted"],
    );
}

#[tokio::test]
async fn sizes() {
    let lab = Lab::new().await;
    let mib = 1 << 20;
    for (name, required, limit, size) in [
        ("exact", 2 * GIB, 2 * GIB, 2 * GIB),
        ("rounded up", GIB + 1, 0, GIB + mib),
        ("small limit, no wish", 0, 10 * mib + 5, 10 * mib),
        ("large limit, no wish", 0, 50 * GIB, GIB),
        ("one byte", 1, 0, mib),
    ] {
        let volume = lab.create(sized(name, required, limit)).await.unwrap();
        assert_eq!(volume.capacity_bytes, size as i64, "{name}");
    }
    refused(
        lab.create(sized("a", GIB + 1, GIB + 2)).await,
        Code::OutOfRange,
        &["1048576", "lab/fast"],
    );
    refused(
        lab.create(sized("b", 0, mib - 1)).await,
        Code::OutOfRange,
        &["1048576"],
    );
    refused(
        lab.create(sized("c", i64::MAX as u64, 0)).await,
        Code::OutOfRange,
        &["bytes"],
    );
    refused(
        lab.create(sized("d", 100 * GIB, 0)).await,
        Code::ResourceExhausted,
        &["100 GiB", "system lab", "fast (", "largest volume now"],
    );
    assert_eq!(lab.fake.array().volumes.len(), 5);
}

#[tokio::test]
async fn a_provision_type_that_is_not_offered_is_refused() {
    let lab = Lab::new().await;
    lab.fake.array().systems.get_mut("lab").unwrap()[0].provision_types = vec![1];
    let mut thick = create_request("pvc-1");
    thick
        .parameters
        .insert("provisionType".to_owned(), "thick".to_owned());
    refused(
        lab.create(thick.clone()).await,
        Code::InvalidArgument,
        &["provisionType", "thick", "fast"],
    );
    thick.parameters.insert("aggregate".to_owned(), "auto".to_owned());
    assert_eq!(
        lab.create(thick).await.unwrap().volume_context["provisionType"],
        "thick"
    );
}

/// Whatever may have left something on the array must be one of the codes after which the sidecar asks again, and
/// asking again must find it.
#[tokio::test]
async fn what_is_half_made_is_retried_and_found() {
    let retried = [Code::Unavailable, Code::Aborted, Code::DeadlineExceeded];
    for fault in [
        Fault::DoneBut(Code::Internal),
        Fault::DoneBut(Code::Unknown),
        Fault::DoneBut(Code::Cancelled),
        Fault::DoneBut(Code::Unavailable),
        Fault::DoneBut(Code::Aborted),
        Fault::DoneButSilent,
        Fault::Empty,
    ] {
        let lab = Lab::new().await;
        lab.fake.order("CreateVolume", fault);
        let request = placed("pvc-1", "lab", "auto");
        let status = lab.create(request.clone()).await.unwrap_err();
        assert!(retried.contains(&status.code()), "{fault:?}: {status:?}");
        lab.fake.array().systems.get_mut("lab").unwrap()[0].free_bytes = 19 * GIB;
        assert_eq!(
            lab.create(request).await.unwrap().volume_context["aggregate"],
            "slow",
            "{fault:?}"
        );
        assert_eq!(lab.fake.array().volumes.len(), 1, "{fault:?}");
    }
}

/// The first call ends after the second one has looked: the second one must answer the first one's volume.
#[tokio::test]
async fn a_call_that_lost_the_race_answers_the_winners_volume() {
    let lab = Lab::new().await;
    let first = lab.create(placed("pvc-1", "lab", "auto")).await.unwrap();
    lab.fake.array().systems.get_mut("lab").unwrap()[0].free_bytes = 19 * GIB;
    lab.fake.order("GetVolume", Fault::Refuse(Code::NotFound));
    assert_eq!(lab.create(placed("pvc-1", "lab", "auto")).await.unwrap(), first);
}

#[tokio::test]
async fn a_lun_of_somebody_else_becomes_the_volume_in_the_aggregate_that_is_named() {
    let lab = Lab::new().await;
    let mut request = create_request("pvc-1");
    for (key, value) in [
        ("adopt", "old.${pvc.name}"),
        ("csi.storage.k8s.io/pvc/name", "ledger"),
    ] {
        request.parameters.insert(key.to_owned(), value.to_owned());
    }
    // A full aggregate: the LUN has its room already.
    lab.fake.array().systems.get_mut("lab").unwrap()[0].maximum_volume_bytes = 0;
    let made = lab.create(request.clone()).await.unwrap();
    assert_eq!(made.volume_context["adoptedLun"], "old.ledger");
    assert_eq!(lab.create(request.clone()).await.unwrap(), made);
    // The same name for another LUN, for none, and with content of its own.
    let mut other = request.clone();
    other.parameters.insert("adopt".to_owned(), "other".to_owned());
    refused(lab.create(other).await, Code::AlreadyExists, &["old.ledger"]);
    refused(
        lab.create(create_request("pvc-1")).await,
        Code::AlreadyExists,
        &["old.ledger"],
    );
    let mut copy = request;
    copy.volume_content_source = Some(VolumeContentSource {
        r#type: Some(Type::Volume(VolumeSource {
            volume_id: made.volume_id,
        })),
    });
    refused(
        lab.create(copy).await,
        Code::InvalidArgument,
        &["volume_content_source", "adopt"],
    );
}

#[tokio::test]
async fn names_up_to_the_limit() {
    let lab = Lab::new().await;
    let name = "ü".repeat(64);
    lab.create(create_request(&name)).await.unwrap();
    assert_eq!(lab.fake.array().volumes.values().next().unwrap().name, name);
}
