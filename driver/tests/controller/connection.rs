//! The way to the gateway: certificates, passwords, other gateways, lost connections. Each failure has its own text.

use std::collections::HashMap;

use storagelink_csi::gateway::{Config, Deadlines, Gateways};
use storagelink_proto::csi::v1::controller_server::Controller as _;
use storagelink_proto::csi::v1::volume_capability::access_mode::Mode;
use storagelink_proto::csi::v1::{DeleteVolumeRequest, ListVolumesRequest};
use tonic::{Code, Request};

use crate::fake::{Fake, Fault, PASSWORD};
use crate::publish::{NODE_A, publish_request};
use crate::{Lab, controller, create_request, mount, refused, strings};

fn list() -> Request<ListVolumesRequest> {
    Request::new(ListVolumesRequest::default())
}

#[tokio::test]
async fn a_gateway_that_is_away_is_unavailable_and_named() {
    let mut lab = Lab::new().await;
    let address = lab.gateway.address.to_string();
    lab.fake.stop(&mut lab.gateway).await;
    let texts = [address.as_str(), "not reachable", "refused"];
    refused(
        lab.create(create_request("pvc-1")).await,
        Code::Unavailable,
        &texts,
    );
    refused(
        lab.controller.list_volumes(list()).await,
        Code::Unavailable,
        &texts,
    );
    lab.fake.restart(&mut lab.gateway).await;
    lab.create(create_request("pvc-1")).await.unwrap();
}

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let mut lab = Lab::new().await;
    lab.create(create_request("pvc-1")).await.unwrap();
    lab.fake.restart(&mut lab.gateway).await;
    // The first call may meet the end of the old connection; then it says so with a code that is retried.
    if let Err(status) = lab.create(create_request("pvc-1")).await {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        lab.create(create_request("pvc-1")).await.unwrap();
    }
    assert_eq!(lab.fake.array().volumes.len(), 1);
}

#[tokio::test]
async fn another_certificate_is_refused_before_the_password_is_sent() {
    let lab = Lab::new().await;
    let address = lab.gateway.address.to_string();
    let dir = tempfile::tempdir().unwrap();
    let pinned = format!("fingerprint = \"{}\"", "ab".repeat(32));
    let other = controller(dir.path(), &address, &pinned, PASSWORD);
    let texts = [
        address.as_str(),
        "not the configured one",
        lab.gateway.fingerprint.as_str(),
    ];
    refused(other.list_volumes(list()).await, Code::FailedPrecondition, &texts);

    let ca = dir.path().join("ca.pem");
    let stranger = Fake::new().serve().await;
    std::fs::write(&ca, &stranger.certificate_pem).unwrap();
    let by_ca = format!("ca_file = {ca:?}");
    let localhost = format!("localhost:{}", lab.gateway.address.port());
    let other = controller(dir.path(), &localhost, &by_ca, PASSWORD);
    refused(
        other.list_volumes(list()).await,
        Code::FailedPrecondition,
        &[localhost.as_str(), "certificate"],
    );
    assert!(lab.fake.array().calls.is_empty());
}

#[tokio::test]
async fn an_authority_is_believed_for_the_right_host_name_only() {
    let lab = Lab::new().await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &lab.gateway.certificate_pem).unwrap();
    let trust = format!("ca_file = {ca:?}");
    let localhost = format!("localhost:{}", lab.gateway.address.port());
    controller(dir.path(), &localhost, &trust, PASSWORD)
        .list_volumes(list())
        .await
        .unwrap();
    let by_address = controller(dir.path(), &lab.gateway.address.to_string(), &trust, PASSWORD);
    refused(
        by_address.list_volumes(list()).await,
        Code::FailedPrecondition,
        &["certificate"],
    );
    std::fs::write(&ca, "no certificate").unwrap();
    let text = format!("target = \"a\"\nusername = \"u\"\npassword_file = \"/p\"\n{trust}");
    let config = Config::parse(std::path::Path::new("c"), &text).unwrap();
    assert!(Gateways::new(config, Deadlines::default()).is_err());
}

#[tokio::test]
async fn something_that_does_not_speak_tls_is_not_reachable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-nothing\r\n").await;
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let trust = format!("fingerprint = \"{}\"", "ab".repeat(32));
    let there = controller(dir.path(), &address, &trust, PASSWORD);
    refused(
        there.list_volumes(list()).await,
        Code::Unavailable,
        &[address.as_str(), "TLS handshake"],
    );
    server.abort();
}

#[tokio::test]
async fn a_wrong_password_is_final_and_says_so() {
    let lab = Lab::new().await;
    let address = lab.gateway.address.to_string();
    std::fs::write(lab.dir.path().join("password"), "guess").unwrap();
    let texts = [address.as_str(), "refuses the user name or the password"];
    let status = lab.create(create_request("pvc-1")).await.unwrap_err();
    assert!(!status.message().contains("guess"));
    refused::<()>(Err(status), Code::Unauthenticated, &texts);
    // Rotated: no restart is needed.
    std::fs::write(lab.dir.path().join("password"), PASSWORD).unwrap();
    lab.create(create_request("pvc-1")).await.unwrap();
    std::fs::remove_file(lab.dir.path().join("password")).unwrap();
    refused(
        lab.create(create_request("pvc-1")).await,
        Code::FailedPrecondition,
        &["configuration", "password"],
    );
}

#[tokio::test]
async fn the_secret_overrides_user_and_password() {
    let lab = Lab::new().await;
    std::fs::write(lab.dir.path().join("password"), "guess").unwrap();
    let mut request = create_request("pvc-1");
    request.secrets = strings(&[("username", "tenant"), ("password", PASSWORD)]);
    let id = lab.create(request.clone()).await.unwrap().volume_id;
    assert!(lab.fake.array().calls.iter().all(|(_, user)| user == "tenant"));
    let delete = DeleteVolumeRequest {
        volume_id: id,
        secrets: request.secrets,
    };
    lab.controller.delete_volume(Request::new(delete)).await.unwrap();
    for (pairs, field) in [
        (&[("username", "tenant")][..], "secrets[password]"),
        (&[("password", PASSWORD)], "secrets[username]"),
        (&[("username", "tenant"), ("password", "")], "secrets[password]"),
        (
            &[("username", "a:b"), ("password", PASSWORD)],
            "secrets[username]",
        ),
        (&[("username", ""), ("password", PASSWORD)], "secrets[username]"),
        (&[("port", "none")], "secrets[port]"),
        (&[("target", "a b")], "target"),
    ] {
        let mut request = create_request("pvc-2");
        request.secrets = strings(pairs);
        refused(lab.create(request).await, Code::InvalidArgument, &[field]);
    }
    assert!(lab.fake.array().volumes.is_empty());
}

/// A class for another gateway: its volumes carry the gateway in their id, and every later call goes there.
#[tokio::test]
async fn a_volume_behind_another_gateway_is_found_by_its_id() {
    let near = Lab::new().await;
    let far = Fake::new();
    let gateway = far.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let both = format!(
        "fingerprint = [\"{}\", \"{}\"]",
        near.gateway.fingerprint, gateway.fingerprint
    );
    let controller = controller(dir.path(), &near.gateway.address.to_string(), &both, PASSWORD);

    let port = gateway.address.port().to_string();
    let mut request = create_request("pvc-1");
    request
        .parameters
        .insert("target".to_owned(), "127.0.0.1".to_owned());
    request.parameters.insert("port".to_owned(), port.clone());
    let volume = controller
        .create_volume(Request::new(request.clone()))
        .await
        .unwrap();
    let volume = volume.into_inner().volume.unwrap();
    assert!(volume.volume_id.ends_with(&format!("@127.0.0.1:{port}")));
    assert_eq!(volume.volume_context["target"], "127.0.0.1");
    assert_eq!(volume.volume_context["port"], port);
    assert_eq!(
        (near.fake.array().volumes.len(), far.array().volumes.len()),
        (0, 1)
    );

    let publish = publish_request(&volume.volume_id, NODE_A, mount(Mode::SingleNodeWriter));
    controller
        .controller_publish_volume(Request::new(publish))
        .await
        .unwrap();
    assert_eq!(far.array().volumes.values().next().unwrap().mappings.len(), 1);

    // The same through the Secret is the same volume; a contradiction is refused.
    let mut by_secret = create_request("pvc-1");
    by_secret.secrets = strings(&[("port", port.as_str())]);
    let again = controller
        .create_volume(Request::new(by_secret))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.volume.unwrap().volume_id, volume.volume_id);
    request.secrets = HashMap::from([("port".to_owned(), "1".to_owned())]);
    let result = controller.create_volume(Request::new(request)).await;
    refused(
        result,
        Code::InvalidArgument,
        &["parameters[port]", "contradicts"],
    );

    // Naming the configured gateway changes nothing.
    let mut same = create_request("pvc-2");
    same.parameters
        .insert("target".to_owned(), "127.0.0.1".to_owned());
    let same = controller
        .create_volume(Request::new(same))
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
    assert!(!same.volume_id.contains('@'));
}

#[tokio::test]
async fn a_silent_gateway_is_waited_for_so_long_and_no_longer() {
    let lab = Lab::new().await;
    lab.fake.order("CreateVolume", Fault::DoneButSilent);
    let start = std::time::Instant::now();
    let result = lab.create(create_request("pvc-1")).await;
    refused(
        result,
        Code::DeadlineExceeded,
        &[&lab.gateway.address.to_string(), "CreateVolume", "not answered"],
    );
    assert!(start.elapsed() < std::time::Duration::from_secs(5));
}
