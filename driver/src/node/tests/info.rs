//! NodeGetInfo: the id and the topology.

use storagelink_proto::csi::v1::NodeGetInfoRequest;

use super::*;

/// A node plugin with an initiator name, these fabrics and this network.
fn service(lab: &Lab, fabrics: &[&str], network: SimNetwork) -> NodeService {
    let file = lab.state.path().join("initiatorname.iscsi");
    std::fs::write(&file, "InitiatorName=iqn.2026-11.com.example:n1\n").unwrap();
    let fabrics = fabrics.iter().map(|text| text.parse().unwrap()).collect();
    let config = Config {
        node_name: "n1".into(),
        initiator_name_file: file,
        state_dir: lab.state.path().to_owned(),
        host_root: None,
        fabrics: Fabrics::new(fabrics).unwrap(),
    };
    let host = host::fused(&lab.kernel, &lab.content, &lab.fuse);
    let outside = Outside {
        engine: Engine::new(host.clone()),
        host,
        mounts: Arc::new(lab.mounts.clone()),
        programs: Arc::new(lab.programs.clone()),
        transport: Arc::new(lab.transport.clone()),
        network: Arc::new(network),
    };
    NodeService::new(Node::new(config, outside).unwrap())
}

async fn info(service: &NodeService) -> Result<(String, Option<HashMap<String, String>>), Status> {
    let answer = service.node_get_info(Request::new(NodeGetInfoRequest {})).await?;
    let answer = answer.into_inner();
    let segments = answer.accessible_topology.map(|topology| topology.segments);
    Ok((answer.node_id, segments))
}

#[tokio::test]
async fn a_node_says_of_every_fabric_whether_it_reaches_it() {
    let lab = Lab::new();
    let network = || SimNetwork {
        addresses: vec!["10.1.0.9".parse().unwrap()],
        ..Default::default()
    };
    let id = "n1/iqn.2026-11.com.example:n1".to_owned();
    let without = service(&lab, &[], network());
    assert_eq!(info(&without).await.unwrap(), (id.clone(), None));
    let with = service(&lab, &["a=10.1.0.0/24", "b=10.2.0.0/24"], network());
    let segments = [("a", "true"), ("b", "false")]
        .map(|(name, value)| (format!("fabric.storagelink.io/{name}"), value.to_owned()));
    assert_eq!(info(&with).await.unwrap(), (id, Some(segments.into())));
}

#[tokio::test]
async fn a_network_that_cannot_be_read_is_an_error_and_no_unreachable_fabric() {
    let lab = Lab::new();
    let broken = SimNetwork {
        broken: true,
        ..Default::default()
    };
    let service = service(&lab, &["a=10.1.0.0/24"], broken);
    let error = info(&service).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    assert!(error.message().contains("addresses and routes"), "{error}");
}
