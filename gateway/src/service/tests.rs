//! The service as clients meet it: over TLS on loopback, with a password, in front of the adapter on a simulated kernel.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use storagelink_proto::storagelink::v1::{self, storage_link_client::StorageLinkClient};
use tonic::{
    Code, Request, Status,
    service::interceptor::InterceptedService,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::{
    adapters::lio::tests::Array,
    auth::{Authenticate, Users},
    config::TlsConfig,
    server::Gateway,
    tls,
};

type Call = Box<dyn FnMut(Request<()>) -> Result<Request<()>, Status>>;
type Client = StorageLinkClient<InterceptedService<Channel, Call>>;

struct Served {
    _array: Array,
    state: tempfile::TempDir,
    address: std::net::SocketAddr,
}

async fn serve() -> Served {
    let (array, state) = (Array::new(), tempfile::tempdir().unwrap());
    let tls = tls::load(&TlsConfig::default(), state.path(), ([127, 0, 0, 1], 0).into()).unwrap();
    let mut users = Users::default();
    users.add("csi", "s3cret");
    let gateway = Gateway::with_systems(vec![Arc::new(array.start())], Authenticate::new(users), tls);
    let (ready, address) = tokio::sync::oneshot::channel();
    tokio::spawn(gateway.serve(std::future::pending(), move |address| {
        ready.send(address).unwrap();
    }));
    Served {
        _array: array,
        state,
        address: address.await.unwrap(),
    }
}

impl Served {
    fn endpoint(&self, trusted: &str) -> Endpoint {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(trusted))
            .domain_name("localhost");
        Endpoint::from_shared(format!("https://{}", self.address))
            .unwrap()
            .tls_config(tls)
            .unwrap()
    }

    async fn client(&self, login: Option<&str>) -> Client {
        let certificate = std::fs::read_to_string(self.state.path().join("tls.crt")).unwrap();
        let channel = self.endpoint(&certificate).connect().await.unwrap();
        let header = login.map(|login| format!("Basic {}", STANDARD.encode(login)).parse().unwrap());
        let call: Call = Box::new(move |mut request: Request<()>| {
            if let Some(header) = &header {
                request
                    .metadata_mut()
                    .insert("authorization", Clone::clone(header));
            }
            Ok(request)
        });
        StorageLinkClient::with_interceptor(channel, call)
    }
}

fn id(number: u32) -> String {
    format!("{number:08x}-6a0f-5d3c-9a51-6b0c7a1f2d3e")
}

fn create(number: u32) -> v1::CreateVolumeRequest {
    v1::CreateVolumeRequest {
        id: id(number),
        system: "array1".into(),
        aggregate: "aggr1".into(),
        name: format!("pvc-{number}"),
        size_bytes: 1 << 20,
        ..Default::default()
    }
}

#[tokio::test]
async fn every_call_needs_the_password() {
    let served = serve().await;
    for login in [None, Some("csi:wrong"), Some("other:s3cret"), Some("csi:")] {
        let mut client = served.client(login).await;
        let refusals = [
            client
                .get_service_info(v1::GetServiceInfoRequest {})
                .await
                .map(drop),
            client.list_systems(v1::ListSystemsRequest {}).await.map(drop),
            client.create_volume(create(1)).await.map(drop),
            client
                .delete_volume(v1::DeleteVolumeRequest { id: id(1) })
                .await
                .map(drop),
        ];
        for refusal in refusals {
            assert_eq!(refusal.unwrap_err().code(), Code::Unauthenticated, "{login:?}");
        }
    }
    let mut client = served.client(Some("csi:s3cret")).await;
    assert!(
        client
            .list_volumes(v1::ListVolumesRequest::default())
            .await
            .unwrap()
            .into_inner()
            .volumes
            .is_empty()
    );
}

#[tokio::test]
async fn another_certificate_is_not_trusted_and_plain_text_not_served() {
    let served = serve().await;
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])
        .unwrap()
        .cert
        .pem();
    assert!(served.endpoint(&other).connect().await.is_err());
    let plain = Endpoint::from_shared(format!("http://{}", served.address))
        .unwrap()
        .connect_lazy();
    let answer = StorageLinkClient::new(plain)
        .get_service_info(v1::GetServiceInfoRequest {})
        .await;
    assert_ne!(
        answer.unwrap_err().code(),
        Code::Unauthenticated,
        "it never came so far"
    );
}

#[tokio::test]
async fn a_volume_by_the_protocol() {
    let served = serve().await;
    let mut client = served.client(Some("csi:s3cret")).await;
    let made = client.create_volume(create(1)).await.unwrap().into_inner();
    assert_eq!(client.create_volume(create(1)).await.unwrap().into_inner(), made);
    let differs = v1::CreateVolumeRequest {
        size_bytes: 1 << 30,
        ..create(1)
    };
    assert_eq!(
        client.create_volume(differs).await.unwrap_err().code(),
        Code::AlreadyExists
    );
    let host = v1::Host {
        name: "node1".into(),
        iscsi_initiator: "iqn.2026-11.com.example:node1".into(),
        fc_initiators: vec![],
    };
    let map = v1::MapVolumeRequest {
        id: id(1),
        host: Some(host),
        protocol: 1,
        exclusive: true,
        ..Default::default()
    };
    let mapped = client.map_volume(map.clone()).await.unwrap().into_inner();
    assert_eq!((mapped.ports.len(), mapped.wwid), (2, made.volume.unwrap().wwid));
    let delete = v1::DeleteVolumeRequest { id: id(1) };
    let refusal = client.delete_volume(delete.clone()).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    assert!(refusal.message().contains("node1"), "{}", refusal.message());
    client
        .unmap_volume(v1::UnmapVolumeRequest {
            id: id(1),
            host_name: "node1".into(),
        })
        .await
        .unwrap();
    client.delete_volume(delete.clone()).await.unwrap();
    client.delete_volume(delete).await.unwrap();
    let gone = client
        .get_volume(v1::GetVolumeRequest { id: id(1) })
        .await
        .unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    let unknown = v1::CreateVolumeRequest {
        aggregate: "aggr9".into(),
        ..create(2)
    };
    let refusal = client.create_volume(unknown).await.unwrap_err();
    assert!(
        refusal.code() == Code::NotFound && refusal.message().contains("aggr1"),
        "choices: {}",
        refusal.message()
    );
    let full = v1::CreateVolumeRequest {
        size_bytes: 1 << 43,
        ..create(2)
    };
    assert_eq!(
        client.create_volume(full).await.unwrap_err().code(),
        Code::ResourceExhausted
    );
}

#[tokio::test]
async fn pages_hold_every_volume_once_while_others_go() {
    let served = serve().await;
    let mut client = served.client(Some("csi:s3cret")).await;
    for number in 0..7 {
        client.create_volume(create(number)).await.unwrap();
    }
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListVolumesRequest {
            page_size: 3,
            page_token,
        };
        let page = client.list_volumes(request).await.unwrap().into_inner();
        seen.extend(page.volumes.into_iter().map(|volume| volume.id));
        // The volume that the next token stands for goes away between two pages.
        if seen.len() == 3 {
            client
                .delete_volume(v1::DeleteVolumeRequest { id: id(2) })
                .await
                .unwrap();
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, (0..7).map(id).collect::<Vec<_>>());
    let bad = v1::ListVolumesRequest {
        page_size: 3,
        page_token: "x".into(),
    };
    assert_eq!(
        client.list_volumes(bad).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[test]
fn every_error_has_a_code_and_names_its_object() {
    use crate::adapter::AdapterError;
    let io = || std::io::Error::other("no");
    for (error, code) in [
        (AdapterError::NoVolume("v".into()), Code::NotFound),
        (
            AdapterError::Differs {
                id: "v".into(),
                differs: "size".into(),
            },
            Code::AlreadyExists,
        ),
        (
            AdapterError::Mapped {
                id: "v".into(),
                hosts: "node1".into(),
            },
            Code::FailedPrecondition,
        ),
        (AdapterError::NoLun("v".into()), Code::ResourceExhausted),
        (
            AdapterError::Limit {
                size: 2,
                granularity: 1,
                limit: 1,
            },
            Code::OutOfRange,
        ),
        (
            AdapterError::Data {
                id: "v".into(),
                problem: "missing".into(),
            },
            Code::DataLoss,
        ),
        (
            AdapterError::Unavailable {
                aggregate: "v".into(),
                reason: "closed".into(),
            },
            Code::Unavailable,
        ),
        (
            AdapterError::Io {
                action: "write",
                path: "v".into(),
                source: io(),
            },
            Code::Internal,
        ),
    ] {
        let status = super::codes::status(&error);
        assert_eq!(status.code(), code);
        assert!(
            status.message().contains('v') || code == Code::OutOfRange,
            "{}",
            status.message()
        );
    }
}
