//! The services through the unix socket, as a sidecar uses them.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use storagelink_csi::identity::IdentityService;
use storagelink_csi::server::{Services, serve};
use storagelink_proto::csi::v1::controller_client::ControllerClient;
use storagelink_proto::csi::v1::identity_client::IdentityClient;
use storagelink_proto::csi::v1::node_client::NodeClient;
use storagelink_proto::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginInfoRequest, NodeGetInfoRequest, ProbeRequest,
};
use tokio::sync::oneshot;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::fake::{Fault, PASSWORD};
use crate::{Lab, create_request, refused, strings};

async fn connect(path: &std::path::Path) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix:{}", path.display())).unwrap();
    // The server's task may not have bound yet.
    loop {
        match endpoint.connect().await {
            Ok(channel) => return channel,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test]
async fn a_sidecar_is_served_and_running_calls_end_before_the_server_does() {
    let lab = Lab::new().await;
    let path = lab.dir.path().join("csi.sock");
    let services = Services::new()
        .with(IdentityService::new(false).server())
        .with(lab.controller.clone().server());
    let (stop, stopped) = oneshot::channel::<()>();
    let endpoint = format!("unix://{}", path.display());
    let server = tokio::spawn(async move {
        serve(&endpoint, services, async {
            let _ = stopped.await;
        })
        .await
    });
    let channel = connect(&path).await;

    let mut identity = IdentityClient::new(channel.clone());
    let info = identity
        .get_plugin_info(GetPluginInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.name, "csi.storagelink.io");
    let ready = identity.probe(ProbeRequest {}).await.unwrap().into_inner().ready;
    assert_eq!(ready, Some(true));
    let capabilities = identity
        .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
        .await
        .unwrap();
    assert_eq!(capabilities.into_inner().capabilities.len(), 2);

    let mut controller = ControllerClient::new(channel.clone());
    let created = controller
        .create_volume(create_request("pvc-1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(lab.fake.array().volumes.len(), 1);
    assert!(created.volume.is_some());
    let mut node = NodeClient::new(channel);
    refused(
        node.node_get_info(NodeGetInfoRequest {}).await,
        Code::Unimplemented,
        &["socket"],
    );

    // A call that runs when the server is told to stop gets its answer: here the one after the deadline.
    lab.fake.order("CreateVolume", Fault::DoneButSilent);
    let running = tokio::spawn(async move { controller.create_volume(create_request("pvc-2")).await });
    while lab.fake.array().volumes.len() < 2 {
        tokio::task::yield_now().await;
    }
    stop.send(()).unwrap();
    refused(running.await.unwrap(), Code::DeadlineExceeded, &["CreateVolume"]);
    drop(identity);
    drop(node);
    server.await.unwrap().unwrap();
    assert!(!path.exists());
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Everything that is logged at the most talkative level, while calls succeed and fail with secrets in them. The log is
/// that of the whole process, so the other tests that run meanwhile are searched for secrets as well.
#[tokio::test]
async fn each_call_is_one_line_and_no_line_has_a_secret() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .json()
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let lab = Lab::new().await;
    let path = lab.dir.path().join("csi.sock");
    let endpoint = format!("unix://{}", path.display());
    let services = Services::new().with(lab.controller.clone().server());
    let server = tokio::spawn(async move { serve(&endpoint, services, std::future::pending()).await });
    let mut controller = ControllerClient::new(connect(&path).await);
    let mut request = create_request("pvc-logged");
    request.secrets = strings(&[("username", "tenant"), ("password", PASSWORD)]);
    let answer = controller
        .create_volume(request.clone())
        .await
        .unwrap()
        .into_inner();
    let id = answer.volume.unwrap().volume_id;
    request
        .parameters
        .insert("aggregate".to_owned(), "slow".to_owned());
    refused(
        controller.create_volume(request).await,
        Code::AlreadyExists,
        &["aggregate fast"],
    );
    server.abort();

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("tenant:{PASSWORD}"));
    assert!(
        !text.contains(PASSWORD) && !text.contains(&basic),
        "a secret is in the log"
    );
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("\"grpc.method\"") && line.contains(&id))
        .collect();
    let [done, failed] = lines[..] else {
        panic!("two calls, two lines: {lines:#?}")
    };
    for (line, code) in [(done, "Ok"), (failed, "AlreadyExists")] {
        for part in ["/csi.v1.Controller/CreateVolume", &id, code, "duration_ms"] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(!line.contains("tenant"), "{line}");
    }
}
