//! The whole controller against a gateway of the tests, over real TLS on loopback.

mod bad_input;
mod connection;
mod create;
mod fake;
mod fake_service;
mod lifecycle;
mod publish;
mod snapshots;
mod socket;
mod topology;

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use storagelink_csi::controller::ControllerService;
use storagelink_csi::gateway::{Config, Deadlines, Gateways};
use storagelink_proto::csi::v1::controller_server::Controller as _;
use storagelink_proto::csi::v1::volume_capability::access_mode::Mode;
use storagelink_proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use storagelink_proto::csi::v1::{CreateVolumeRequest, Volume, VolumeCapability};
use tonic::{Code, Request, Response, Status};

use fake::{Fake, PASSWORD, Running, USER};

/// A controller, its gateway, and the directory of its configuration.
pub(crate) struct Lab {
    pub(crate) controller: ControllerService,
    pub(crate) fake: Fake,
    pub(crate) gateway: Running,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) const DEADLINES: Deadlines = Deadlines {
    connect: Duration::from_secs(5),
    read: Duration::from_secs(10),
    change: Duration::from_millis(500),
};

impl Lab {
    pub(crate) async fn new() -> Self {
        Self::with("").await
    }

    /// With these lines at the end of the controller's configuration.
    pub(crate) async fn with(lines: &str) -> Self {
        let fake = Fake::new();
        let gateway = fake.serve().await;
        let dir = tempfile::tempdir().unwrap();
        let trust = format!("fingerprint = \"{}\"\n{lines}", gateway.fingerprint);
        let controller = controller(dir.path(), &gateway.address.to_string(), &trust, PASSWORD);
        Self {
            controller,
            fake,
            gateway,
            dir,
        }
    }

    pub(crate) async fn create(&self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        let answer = self.controller.create_volume(Request::new(request)).await?;
        Ok(answer.into_inner().volume.unwrap())
    }
}

/// A controller with a configuration of its own.
pub(crate) fn controller(dir: &Path, address: &str, trust: &str, password: &str) -> ControllerService {
    let (target, port) = address.rsplit_once(':').unwrap();
    let file = dir.join("password");
    std::fs::write(&file, format!("{password}\n")).unwrap();
    let text = format!(
        "target = {target:?}\nport = {port}\nusername = {USER:?}\npassword_file = {file:?}\n{trust}\n"
    );
    let config = Config::parse(Path::new("controller.toml"), &text).unwrap();
    ControllerService::new(Gateways::new(config, DEADLINES).unwrap())
}

pub(crate) fn strings(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

pub(crate) fn mount(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub(crate) fn block(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

/// One that is right: tests change what they are about.
pub(crate) fn create_request(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![mount(Mode::SingleNodeWriter)],
        parameters: strings(&[("system", "lab"), ("aggregate", "fast")]),
        ..Default::default()
    }
}

/// The refusal must have this code and hold each of these texts.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, texts: &[&str]) {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{}", status.message());
    for text in texts {
        assert!(
            status.message().contains(text),
            "{text:?} is not in {:?}",
            status.message()
        );
    }
    assert!(!status.message().contains(PASSWORD), "a secret is in the text");
}

/// The content of an answer.
pub(crate) fn inner<T>(answer: Result<Response<T>, Status>) -> Result<T, Status> {
    answer.map(Response::into_inner)
}
