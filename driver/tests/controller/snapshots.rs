//! Snapshots, and volumes made from them or from other volumes.

use storagelink_proto::csi::v1::controller_server::Controller as _;
use storagelink_proto::csi::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use storagelink_proto::csi::v1::{
    CapacityRange, CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, GetSnapshotRequest,
    ListSnapshotsRequest, Snapshot, VolumeContentSource,
};
use tonic::{Code, Request, Status};

use crate::fake::{Fault, GIB};
use crate::{Lab, create_request, inner, refused, strings};

fn snapshot_request(name: &str, volume: &str) -> CreateSnapshotRequest {
    CreateSnapshotRequest {
        name: name.to_owned(),
        source_volume_id: volume.to_owned(),
        ..Default::default()
    }
}

async fn take(lab: &Lab, request: CreateSnapshotRequest) -> Result<Snapshot, Status> {
    let answer = inner(lab.controller.create_snapshot(Request::new(request)).await)?;
    Ok(answer.snapshot.unwrap())
}

async fn list(lab: &Lab, request: ListSnapshotsRequest) -> Result<(Vec<Snapshot>, String), Status> {
    let answer = inner(lab.controller.list_snapshots(Request::new(request)).await)?;
    let all = answer.entries.into_iter().map(|entry| entry.snapshot.unwrap());
    Ok((all.collect(), answer.next_token))
}

fn from(name: &str, source: Type) -> CreateVolumeRequest {
    CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(source) }),
        ..create_request(name)
    }
}

fn of_snapshot(id: &str) -> Type {
    Type::Snapshot(SnapshotSource {
        snapshot_id: id.to_owned(),
    })
}

fn of_volume(id: &str) -> Type {
    Type::Volume(VolumeSource {
        volume_id: id.to_owned(),
    })
}

#[tokio::test]
async fn a_snapshot_is_taken_once_found_listed_and_deleted() {
    let lab = Lab::new().await;
    let volume = lab.create(create_request("pvc-1")).await.unwrap().volume_id;
    let taken = take(&lab, snapshot_request("snap-1", &volume)).await.unwrap();
    assert!(taken.ready_to_use);
    assert_eq!((taken.size_bytes, &taken.source_volume_id), (GIB as i64, &volume));
    let time = taken.creation_time.unwrap();
    assert_eq!((time.seconds, time.nanos), (1, 500_000_000));
    assert_eq!(
        take(&lab, snapshot_request("snap-1", &volume)).await.unwrap(),
        taken
    );
    let other = lab.create(create_request("pvc-2")).await.unwrap().volume_id;
    refused(
        take(&lab, snapshot_request("snap-1", &other)).await,
        Code::AlreadyExists,
        &["another source volume"],
    );
    let second = take(&lab, snapshot_request("snap-2", &other)).await.unwrap();
    // All of them in pages, those of one volume, one by its id.
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let request = ListSnapshotsRequest {
            max_entries: 1,
            starting_token: token,
            ..Default::default()
        };
        let (page, next) = list(&lab, request).await.unwrap();
        all.extend(page);
        if next.is_empty() {
            break;
        }
        token = next;
    }
    assert_eq!(all.len(), 2);
    assert!(all.contains(&taken) && all.contains(&second));
    let one = |snapshot_id: &str, source_volume_id: &str| ListSnapshotsRequest {
        snapshot_id: snapshot_id.to_owned(),
        source_volume_id: source_volume_id.to_owned(),
        ..Default::default()
    };
    let only = |snapshot: &Snapshot| (vec![snapshot.clone()], String::new());
    assert_eq!(list(&lab, one("", &other)).await.unwrap(), only(&second));
    assert_eq!(
        list(&lab, one(&taken.snapshot_id, "")).await.unwrap(),
        only(&taken)
    );
    assert!(
        list(&lab, one(&taken.snapshot_id, &other))
            .await
            .unwrap()
            .0
            .is_empty()
    );
    assert!(list(&lab, one("no id of ours", "")).await.unwrap().0.is_empty());
    assert!(list(&lab, one("", "no id of ours")).await.unwrap().0.is_empty());
    refused(
        list(
            &lab,
            ListSnapshotsRequest {
                starting_token: "nonsense".to_owned(),
                ..Default::default()
            },
        )
        .await,
        Code::Aborted,
        &["page_token"],
    );
    for id in [&taken.snapshot_id, &taken.snapshot_id, "no id of ours"] {
        let request = DeleteSnapshotRequest {
            snapshot_id: id.to_owned(),
            ..Default::default()
        };
        inner(lab.controller.delete_snapshot(Request::new(request)).await).unwrap();
    }
    let request = GetSnapshotRequest {
        snapshot_id: taken.snapshot_id.clone(),
        ..Default::default()
    };
    refused(
        lab.controller.get_snapshot(Request::new(request)).await,
        Code::NotFound,
        &[&taken.snapshot_id],
    );
}

#[tokio::test]
async fn bad_snapshots_are_refused_by_field() {
    let lab = Lab::new().await;
    let volume = lab.create(create_request("pvc-1")).await.unwrap().volume_id;
    refused(
        take(&lab, snapshot_request("", &volume)).await,
        Code::InvalidArgument,
        &["name"],
    );
    refused(
        take(&lab, snapshot_request("s", "")).await,
        Code::InvalidArgument,
        &["source_volume_id"],
    );
    refused(
        take(&lab, snapshot_request("s", "x")).await,
        Code::NotFound,
        &["volume x"],
    );
    let mut request = snapshot_request("s", &volume);
    request.parameters = strings(&[("speed", "high")]);
    refused(
        take(&lab, request).await,
        Code::InvalidArgument,
        &["parameters", "speed"],
    );
    let missing = volume.replace(|c: char| c != '-', "0");
    refused(
        take(&lab, snapshot_request("s", &missing)).await,
        Code::NotFound,
        &[&missing],
    );
    assert!(lab.fake.array().snapshots.is_empty());
    // Whether it was taken is not known: asked again, it is found.
    lab.fake.order("CreateSnapshot", Fault::DoneBut(Code::Internal));
    refused(
        take(&lab, snapshot_request("s", &volume)).await,
        Code::Unavailable,
        &[],
    );
    take(&lab, snapshot_request("s", &volume)).await.unwrap();
    assert_eq!(lab.fake.array().snapshots.len(), 1);
}

#[tokio::test]
async fn a_volume_is_made_from_its_source_where_the_source_is() {
    let lab = Lab::new().await;
    let mut large = create_request("pvc-1");
    large.capacity_range = Some(CapacityRange {
        required_bytes: 3 * GIB as i64,
        limit_bytes: 0,
    });
    let original = lab.create(large).await.unwrap();
    let snapshot = take(&lab, snapshot_request("snap-1", &original.volume_id))
        .await
        .unwrap();
    for (name, source) in [
        ("restored", of_snapshot(&snapshot.snapshot_id)),
        ("cloned", of_volume(&original.volume_id)),
    ] {
        let mut request = from(name, source.clone());
        request
            .parameters
            .insert("aggregate".to_owned(), "auto".to_owned());
        let made = lab.create(request.clone()).await.unwrap();
        // Without a size of its own it has the source's.
        assert_eq!(made.capacity_bytes, 3 * GIB as i64);
        assert_eq!(made.volume_context["aggregate"], "fast");
        assert_eq!(made.content_source.as_ref().unwrap().r#type, Some(source));
        assert_eq!(lab.create(request.clone()).await.unwrap(), made);
        request.volume_content_source = None;
        refused(
            lab.create(request).await,
            Code::AlreadyExists,
            &["another source"],
        );
    }
}

#[tokio::test]
async fn a_source_that_does_not_fit_is_refused_and_nothing_is_made() {
    let lab = Lab::new().await;
    let volume = lab.create(create_request("pvc-1")).await.unwrap().volume_id;
    let missing = volume.replace(|c: char| c != '-', "0");
    for source in [
        of_volume(&missing),
        of_snapshot(&missing),
        of_volume("x"),
        of_snapshot("x"),
    ] {
        refused(
            lab.create(from("copy", source)).await,
            Code::NotFound,
            &["volume_content_source"],
        );
    }
    let mut small = from("copy", of_volume(&volume));
    small.capacity_range = Some(CapacityRange {
        required_bytes: 1 << 20,
        limit_bytes: 0,
    });
    refused(
        lab.create(small).await,
        Code::OutOfRange,
        &["capacity_range", &volume],
    );
    let mut elsewhere = from("copy", of_volume(&volume));
    elsewhere
        .parameters
        .insert("aggregate".to_owned(), "slow".to_owned());
    refused(
        lab.create(elsewhere).await,
        Code::InvalidArgument,
        &["parameters[aggregate]", "fast"],
    );
    assert_eq!(lab.fake.array().volumes.len(), 1);
}
