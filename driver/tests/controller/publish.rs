//! ControllerPublishVolume and ControllerUnpublishVolume.

use storagelink_csi::publish_context::PublishContext;
use storagelink_proto::csi::v1::controller_server::Controller as _;
use storagelink_proto::csi::v1::volume_capability::access_mode::Mode;
use storagelink_proto::csi::v1::{
    ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, DeleteVolumeRequest, VolumeCapability,
};
use tonic::{Code, Request, Status};

use crate::fake::{Fault, GIB};
use crate::{Lab, block, create_request, inner, mount, refused};

pub(crate) const NODE_A: &str = "node-a/iqn.2026-01.io.example:node-a";
pub(crate) const NODE_B: &str = "node-b/iqn.2026-01.io.example:node-b/20:00:00:25:b5:11:22:33";

pub(crate) fn publish_request(
    volume_id: &str,
    node_id: &str,
    capability: VolumeCapability,
) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: volume_id.to_owned(),
        node_id: node_id.to_owned(),
        volume_capability: Some(capability),
        ..Default::default()
    }
}

impl Lab {
    pub(crate) async fn publish(
        &self,
        request: ControllerPublishVolumeRequest,
    ) -> Result<PublishContext, Status> {
        let answer = inner(
            self.controller
                .controller_publish_volume(Request::new(request))
                .await,
        )?;
        Ok(PublishContext::from_map(&answer.publish_context).unwrap())
    }

    pub(crate) async fn unpublish(&self, volume_id: &str, node_id: &str) -> Result<(), Status> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: volume_id.to_owned(),
            node_id: node_id.to_owned(),
            ..Default::default()
        };
        self.controller
            .controller_unpublish_volume(Request::new(request))
            .await
            .map(drop)
    }
}

#[tokio::test]
async fn the_context_says_how_the_node_reaches_the_volume() {
    let lab = Lab::new().await;
    let volume = lab.create(create_request("pvc-1")).await.unwrap();
    let request = publish_request(&volume.volume_id, NODE_B, mount(Mode::SingleNodeWriter));
    let context = lab.publish(request.clone()).await.unwrap();
    let portals: Vec<String> = context.portals.iter().map(ToString::to_string).collect();
    assert_eq!(
        portals,
        [
            "10.0.1.1:3260,1,iqn.2026-01.io.example:lab",
            "[fd00::1]:3260,2,iqn.2026-01.io.example:lab"
        ]
    );
    assert_eq!(context.wwid, volume.volume_context["wwid"]);
    assert_eq!((context.size_bytes, context.read_only), (GIB, false));
    assert_eq!(lab.publish(request).await.unwrap(), context);
    let array = lab.fake.array();
    let [mapping] = &array.volumes[&volume.volume_id].mappings[..] else {
        panic!("one mapping")
    };
    let host = mapping.host.as_ref().unwrap();
    assert_eq!(host.name, "node-b");
    assert_eq!(host.iscsi_initiator, "iqn.2026-01.io.example:node-b");
    assert_eq!(host.fc_initiators, ["20:00:00:25:b5:11:22:33"]);
}

#[tokio::test]
async fn a_single_node_volume_is_on_one_node_and_the_text_names_it() {
    let lab = Lab::new().await;
    let id = lab.create(create_request("pvc-1")).await.unwrap().volume_id;
    lab.publish(publish_request(&id, NODE_A, mount(Mode::SingleNodeWriter)))
        .await
        .unwrap();
    for mode in [
        Mode::SingleNodeWriter,
        Mode::SingleNodeSingleWriter,
        Mode::SingleNodeMultiWriter,
    ] {
        let second = lab.publish(publish_request(&id, NODE_B, mount(mode))).await;
        refused(second, Code::FailedPrecondition, &["node-a", id.as_str()]);
    }
    lab.unpublish(&id, NODE_A).await.unwrap();
    lab.publish(publish_request(&id, NODE_B, mount(Mode::SingleNodeWriter)))
        .await
        .unwrap();
}

/// The look before the mapping is not the lock: the gateway decides, and its refusal keeps its code.
#[tokio::test]
async fn the_gateway_has_the_last_word() {
    let lab = Lab::new().await;
    let id = lab.create(create_request("pvc-1")).await.unwrap().volume_id;
    lab.fake
        .order("MapVolume", Fault::Refuse(Code::FailedPrecondition));
    let request = publish_request(&id, NODE_A, mount(Mode::SingleNodeWriter));
    refused(
        lab.publish(request.clone()).await,
        Code::FailedPrecondition,
        &["MapVolume"],
    );
    lab.fake.order("MapVolume", Fault::Refuse(Code::NotFound));
    refused(lab.publish(request).await, Code::NotFound, &[id.as_str()]);
}

#[tokio::test]
async fn a_shared_block_volume_is_on_several_nodes() {
    let lab = Lab::new().await;
    let id = lab.create(create_request("pvc-1")).await.unwrap().volume_id;
    let a = lab
        .publish(publish_request(&id, NODE_A, block(Mode::MultiNodeMultiWriter)))
        .await
        .unwrap();
    let b = lab
        .publish(publish_request(&id, NODE_B, block(Mode::MultiNodeMultiWriter)))
        .await
        .unwrap();
    assert_eq!(a.wwid, b.wwid);
    assert_eq!(lab.fake.array().volumes[&id].mappings.len(), 2);
    lab.unpublish(&id, "").await.unwrap();
    assert!(
        lab.fake.array().volumes[&id].mappings.is_empty(),
        "no node id means every node"
    );
}

#[tokio::test]
async fn read_only_reaches_the_array_and_does_not_change_silently() {
    let lab = Lab::new().await;
    let id = lab.create(create_request("pvc-1")).await.unwrap().volume_id;
    let mut request = publish_request(&id, NODE_A, mount(Mode::SingleNodeWriter));
    request.readonly = true;
    assert!(lab.publish(request.clone()).await.unwrap().read_only);
    assert!(lab.fake.array().volumes[&id].mappings[0].read_only);
    request.readonly = false;
    refused(
        lab.publish(request).await,
        Code::AlreadyExists,
        &["node-a", "readonly=true"],
    );
    lab.unpublish(&id, NODE_A).await.unwrap();
    let reader = publish_request(&id, NODE_A, mount(Mode::MultiNodeReaderOnly));
    assert!(lab.publish(reader).await.unwrap().read_only);
}

#[tokio::test]
async fn what_is_not_there() {
    let lab = Lab::new().await;
    let id = lab.create(create_request("pvc-1")).await.unwrap().volume_id;
    let unknown = "0f1e2d3c-4b5a-5678-9abc-def012345678";
    for volume_id in [unknown, "not-one-of-ours"] {
        let result = lab
            .publish(publish_request(volume_id, NODE_A, mount(Mode::SingleNodeWriter)))
            .await;
        refused(result, Code::NotFound, &["volume", volume_id]);
        lab.unpublish(volume_id, NODE_A).await.unwrap();
    }
    let result = lab
        .publish(publish_request(&id, "no-node-id", mount(Mode::SingleNodeWriter)))
        .await;
    refused(result, Code::NotFound, &["node", "no-node-id"]);
    lab.unpublish(&id, "no-node-id").await.unwrap();
    lab.unpublish(&id, NODE_A).await.unwrap();
    let fc_only = publish_request(
        &id,
        "node-c//20:00:00:25:b5:11:22:33",
        mount(Mode::SingleNodeWriter),
    );
    refused(
        lab.publish(fc_only).await,
        Code::FailedPrecondition,
        &["node-c", "initiator"],
    );
}

/// A wrong WWID or portal would be a wrong disk: it never gets into a publish context.
#[tokio::test]
async fn a_wrong_answer_of_the_gateway_is_not_passed_on() {
    let lab = Lab::new().await;
    let id = lab.create(create_request("pvc-1")).await.unwrap().volume_id;
    let request = publish_request(&id, NODE_A, mount(Mode::SingleNodeWriter));
    let good = lab.fake.array().volumes[&id].wwid.clone();
    lab.fake.array().volumes.get_mut(&id).unwrap().wwid = "naa.6001405".to_owned();
    refused(lab.publish(request.clone()).await, Code::Unavailable, &["WWID"]);
    lab.fake.array().volumes.get_mut(&id).unwrap().wwid = good;
    lab.fake.array().ports[0].portal = "array.example".to_owned();
    refused(
        lab.publish(request.clone()).await,
        Code::Unavailable,
        &["portal", "array.example"],
    );
    lab.fake.array().ports.clear();
    refused(
        lab.publish(request.clone()).await,
        Code::FailedPrecondition,
        &["lab", "no iSCSI portal"],
    );
    lab.fake.order("MapVolume", Fault::Empty);
    refused(
        lab.publish(request).await,
        Code::FailedPrecondition,
        &["no iSCSI portal"],
    );
}

#[tokio::test]
async fn a_published_volume_is_not_deleted() {
    let lab = Lab::new().await;
    let id = lab.create(create_request("pvc-1")).await.unwrap().volume_id;
    lab.publish(publish_request(&id, NODE_A, mount(Mode::SingleNodeWriter)))
        .await
        .unwrap();
    let delete = || {
        Request::new(DeleteVolumeRequest {
            volume_id: id.clone(),
            secrets: Default::default(),
        })
    };
    refused(
        lab.controller.delete_volume(delete()).await,
        Code::FailedPrecondition,
        &["node-a"],
    );
    lab.unpublish(&id, NODE_A).await.unwrap();
    lab.controller.delete_volume(delete()).await.unwrap();
    lab.controller.delete_volume(delete()).await.unwrap();
    assert!(lab.fake.array().volumes.is_empty());
}
