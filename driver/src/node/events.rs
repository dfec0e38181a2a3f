//! Kubernetes Events: what an administrator would want to know about paths and about this host, in plain words, on the node,
//! on the claims and on the pods.
//!
//! Nothing of the node's work waits for the API server: notices that come faster than they can be told are counted and
//! dropped. Without an API server everything is in the log, as ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path},
    time::Duration,
};

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, Pod};
use kube::{
    Api, Client,
    api::ListParams,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use storagelink_multipath::{
    engine::{Change, Notice},
    fc_remote_port::is_port_name,
};
use tokio::{sync::broadcast, time::Instant};
use uuid::Uuid;

use super::{Inner, Node, remark::Remark};
use crate::{DRIVER_NAME, codes::chain};

/// A fabric's loss is told once for all of its paths: notices of so long are told together.
const TOGETHER: Duration = Duration::from_secs(1);
/// Longest note that the API server takes (kubernetes/pkg/apis/core/validation/events.go).
const MAX_NOTE: usize = 1024;
/// Longest action.
const MAX_ACTION: usize = 128;
/// Time for the API server to take what was found together.
const TOLD: Duration = Duration::from_secs(30);

/// Tells Events from now on. `warnings`: what is wrong with this host since the start.
pub(super) async fn tell(
    node: Node,
    mut notices: broadcast::Receiver<Notice>,
    warnings: Vec<String>,
    client: Client,
) {
    let reporter = Reporter {
        controller: DRIVER_NAME.to_owned(),
        instance: Some(node.0.config.node_name.clone()),
    };
    let teller = Teller {
        recorder: Recorder::new(client.clone(), reporter),
        client,
        node,
    };
    let this = teller.this_node();
    let mut remarks = teller.node.0.remarks.subscribe();
    for warning in warnings {
        teller
            .in_time(teller.publish(EventType::Warning, "HostNotReady", warning, &this))
            .await;
    }
    loop {
        let mut together = Vec::new();
        tokio::select! {
            remark = remarks.recv() => {
                match remark {
                    Ok(remark) => teller.in_time(teller.remark(remark)).await,
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "more remarks than can be told as Events");
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                }
                continue;
            }
            notice = notices.recv() => match notice {
                Ok(notice) => together.push(notice),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "more paths changed than can be told as Events");
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
        let until = Instant::now() + TOGETHER;
        while let Ok(Ok(notice)) = tokio::time::timeout_at(until, notices.recv()).await {
            together.push(notice);
        }
        teller.in_time(teller.tell(&together)).await;
    }
}

struct Teller {
    recorder: Recorder,
    client: Client,
    node: Node,
}

impl Teller {
    /// The node, as the kubelet refers to it in its own Events: its name is its uid.
    fn this_node(&self) -> ObjectReference {
        let name = self.node.0.config.node_name.clone();
        ObjectReference {
            kind: Some("Node".to_owned()),
            uid: Some(name.clone()),
            name: Some(name),
            ..Default::default()
        }
    }

    async fn in_time(&self, told: impl Future<Output = ()>) {
        if tokio::time::timeout(TOLD, told).await.is_err() {
            tracing::warn!("the API server did not take all Events in time");
        }
    }

    async fn publish(&self, kind: EventType, reason: &str, note: String, about: &ObjectReference) {
        let event = event(kind, reason, &note);
        if let Err(error) = self.recorder.publish(&event, about).await {
            tracing::warn!(
                error = chain(&error),
                reason,
                "the API server did not take an Event"
            );
        }
    }

    /// On who has the volume that it is about; on the node when it is about none, or nobody has it.
    async fn remark(&self, remark: Remark) {
        let mut about = Vec::new();
        if let Some(volume) = remark.volume {
            match self.objects(&volume.to_string()).await {
                Ok(objects) => about = objects,
                Err(error) => tracing::warn!(
                    volume.id = %volume,
                    error = chain(error.as_ref()),
                    "cannot find who uses a volume"
                ),
            }
        }
        if about.is_empty() {
            about.push(self.this_node());
        }
        for object in about {
            let kind = match remark.warning {
                true => EventType::Warning,
                false => EventType::Normal,
            };
            self.publish(kind, remark.reason, remark.note.clone(), &object)
                .await;
        }
    }

    async fn tell(&self, notices: &[Notice]) {
        let this = self.this_node();
        for ((portal, lost), volumes) in by_portal(notices) {
            let note = of_node(&portal, lost, volumes.len());
            let (kind, reason) = if lost {
                (EventType::Warning, "PathLost")
            } else {
                (EventType::Normal, "PathBack")
            };
            self.publish(kind, reason, note, &this).await;
        }
        for notice in latest(notices) {
            let objects = match self.objects(&notice.volume).await {
                Ok(objects) => objects,
                Err(error) => {
                    tracing::warn!(
                        volume.id = notice.volume,
                        error = chain(error.as_ref()),
                        "cannot find who uses a volume"
                    );
                    continue;
                }
            };
            let (kind, reason, note) = of_volume(notice, &self.node.0.config.node_name);
            for object in objects {
                self.publish(kind, reason, note.clone(), &object).await;
            }
        }
    }

    /// The claim and the pods that have a volume on this node.
    async fn objects(
        &self,
        volume: &str,
    ) -> Result<Vec<ObjectReference>, Box<dyn std::error::Error + Send + Sync>> {
        let publications = self.node.0.publications(Uuid::try_parse(volume)?).await?;
        let Some((name, _)) = publications.first() else {
            return Ok(Vec::new());
        };
        let persistent: PersistentVolume = Api::all(self.client.clone()).get(name).await?;
        let Some(claim) = persistent.spec.and_then(|spec| spec.claim_ref) else {
            return Ok(Vec::new());
        };
        let mut objects = Vec::new();
        if let Some(namespace) = &claim.namespace {
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            let here =
                ListParams::default().fields(&format!("spec.nodeName={}", self.node.0.config.node_name));
            for pod in pods.list(&here).await? {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                if publications.iter().any(|(_, of)| *of == uid) {
                    objects.push(ObjectReference {
                        api_version: Some("v1".to_owned()),
                        kind: Some("Pod".to_owned()),
                        namespace: Some(namespace.clone()),
                        name: pod.metadata.name,
                        uid: Some(uid),
                        ..Default::default()
                    });
                }
            }
        }
        objects.push(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("PersistentVolumeClaim".to_owned()),
            resource_version: None,
            ..claim
        });
        Ok(objects)
    }
}

impl Inner {
    /// Where pods see a volume: the PersistentVolume's name and the pod's uid, from the paths that the kubelet chose.
    async fn publications(
        &self,
        volume: Uuid,
    ) -> Result<Vec<(String, String)>, Box<dyn std::error::Error + Send + Sync>> {
        let Some(held) = self.held(volume).await? else {
            return Ok(Vec::new());
        };
        let disk = self.disk(volume, &held).await?;
        let seen = self.look(Some(&disk)).await?;
        let found: BTreeSet<_> = seen
            .uses
            .iter()
            .filter_map(|u| publication(&u.mount.path))
            .collect();
        Ok(found.into_iter().collect())
    }
}

/// `…/pods/<uid>/volumes/kubernetes.io~csi/<PersistentVolume>/mount` of a file system, and
/// `…/volumeDevices/publish/<PersistentVolume>/<uid>` of a block volume (kubernetes/pkg/volume/csi/csi_util.go, csi_block.go).
fn publication(path: &Path) -> Option<(String, String)> {
    let parts: Vec<&str> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    match parts.as_slice() {
        [.., "pods", uid, "volumes", "kubernetes.io~csi", volume, "mount"]
        | [.., "volumeDevices", "publish", volume, uid] => Some(((*volume).to_owned(), (*uid).to_owned())),
        _ => None,
    }
}

/// kube's Recorder counts Events of one object, reason and action as one and keeps the first one's note: what says
/// something else, of another portal or another program, needs another action.
fn event(kind: EventType, reason: &str, note: &str) -> Event {
    Event {
        type_: kind,
        reason: reason.to_owned(),
        note: Some(beginning(note, MAX_NOTE).to_owned()),
        action: beginning(note, MAX_ACTION).to_owned(),
        secondary: None,
    }
}

/// As much of a text as fits, in whole characters.
fn beginning(text: &str, bytes: usize) -> &str {
    let fits = |(at, c): &(usize, char)| at + c.len_utf8() <= bytes;
    let end = text.char_indices().take_while(fits).last();
    &text[..end.map_or(0, |(at, c)| at + c.len_utf8())]
}

/// The volumes whose paths over a portal were lost, or are back.
fn by_portal(notices: &[Notice]) -> BTreeMap<(String, bool), BTreeSet<&str>> {
    let mut all: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
    for notice in notices
        .iter()
        .filter(|n| matches!(n.change, Change::Lost | Change::Back))
    {
        let key = (notice.portal.clone(), notice.change == Change::Lost);
        all.entry(key).or_default().insert(&notice.volume);
    }
    all
}

/// What is told of volumes: each path that leads elsewhere, that I/O fails or no longer does, and of lost and returned paths the last notice,
/// which has the numbers that hold.
fn latest(notices: &[Notice]) -> impl Iterator<Item = &Notice> {
    let (paths, others): (Vec<&Notice>, Vec<&Notice>) = notices
        .iter()
        .partition(|n| matches!(n.change, Change::Lost | Change::Back));
    let last: BTreeMap<&str, &Notice> = paths.into_iter().map(|n| (n.volume.as_str(), n)).collect();
    others.into_iter().chain(last.into_values())
}

fn portal_text(portal: &str) -> String {
    match portal {
        "" => "a portal that is not known any more".to_owned(),
        port if is_port_name(port) => format!("remote port {port}"),
        portal => format!("portal {portal}"),
    }
}

fn of_node(portal: &str, lost: bool, volumes: usize) -> String {
    let (portal, plural) = (portal_text(portal), if volumes == 1 { "" } else { "s" });
    match lost {
        true => format!("paths over {portal} are lost: {volumes} volume{plural}"),
        false => format!("paths over {portal} carry I/O again: {volumes} volume{plural}"),
    }
}

fn of_volume(notice: &Notice, node: &str) -> (EventType, &'static str, String) {
    let portal = portal_text(&notice.portal);
    let (usable, paths) = (notice.usable, notice.paths);
    match (notice.change, usable) {
        (Change::Lost, 0) => (
            EventType::Warning,
            "NoPath",
            format!(
                "node {node}: the path over {portal} is lost, and no other is left: {}",
                notice.no_path_retry.explained()
            ),
        ),
        (Change::Failing, _) => (
            EventType::Warning,
            "IoFails",
            format!(
                "node {node}: no path was usable for too long: I/O fails now (EIO). File systems may have gone read-only: \
                 look at the pods once a path is back"
            ),
        ),
        (Change::Recovered, _) => (
            EventType::Normal,
            "IoRecovered",
            format!(
                "node {node}: I/O goes through again over {usable} of {paths} paths, after some had failed"
            ),
        ),
        (Change::Lost, 1) if paths > 1 => (
            EventType::Warning,
            "LastPath",
            format!(
                "node {node}: the path over {portal} is lost; I/O goes on over the last of {paths} paths"
            ),
        ),
        (Change::Lost, _) => (
            EventType::Warning,
            "PathLost",
            format!(
                "node {node}: the path over {portal} is lost; I/O goes on over {usable} of {paths} paths"
            ),
        ),
        (Change::LeftOut, _) => (
            EventType::Warning,
            "PathLeftOut",
            format!(
                "node {node}: the path over {portal} is down and held the others up: it is out of the map until it is back; \
                 I/O goes on over {usable} other paths"
            ),
        ),
        (Change::Misled, _) => (
            EventType::Warning,
            "WrongDisk",
            format!(
                "node {node}: the path over {portal} leads to another disk than this volume: no I/O goes to it any more; \
                 I/O goes on over {usable} other paths. Look at the array's mappings"
            ),
        ),
        (Change::Back, _) => (
            EventType::Normal,
            "PathBack",
            format!("node {node}: the path over {portal} carries I/O again: {usable} of {paths} paths"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(volume: &str, change: Change, portal: &str, usable: usize) -> Notice {
        Notice {
            volume: volume.to_owned(),
            wwid: "naa.600140523fadab59f489e8a4d4309ff8".parse().expect("a WWID"),
            change,
            device: "sda".to_owned(),
            portal: portal.to_owned(),
            usable,
            paths: 2,
            no_path_retry: storagelink_multipath::policy::NoPathRetry::default(),
        }
    }

    #[test]
    fn the_kubelets_paths_name_volume_and_pod() {
        let found = |path: &str| publication(Path::new(path));
        let both = Some(("pvc-1".to_owned(), "u-1".to_owned()));
        assert_eq!(
            found("/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/pvc-1/mount"),
            both
        );
        assert_eq!(
            found("/k/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-1/u-1"),
            both
        );
        assert_eq!(
            found("/k/plugins/kubernetes.io/csi/csi.storagelink.io/0123/globalmount"),
            None
        );
    }

    #[test]
    fn what_says_something_else_is_not_counted_as_the_same() {
        let of = |note: &str| event(EventType::Warning, "PathLost", note);
        let portals = ["192.0.2.1:3260", "192.0.2.2:3260"].map(|portal| of(&of_node(portal, true, 1)));
        assert_ne!(portals[0].action, portals[1].action);
        assert_eq!(of("same").action, of("same").action);
        let long = of(&"ä".repeat(2000));
        assert_eq!(long.note.expect("a note").len(), MAX_NOTE);
        assert_eq!(long.action.len(), MAX_ACTION);
    }

    #[test]
    fn a_lost_fabric_is_one_line_on_the_node_and_one_on_each_volume() {
        let all = [
            notice("v1", Change::Lost, "192.0.2.1:3260", 1),
            notice("v2", Change::Lost, "192.0.2.1:3260", 1),
            notice("v2", Change::Lost, "192.0.2.2:3260", 0),
            notice("v1", Change::Misled, "192.0.2.1:3260", 1),
        ];
        let lines: Vec<String> = by_portal(&all)
            .into_iter()
            .map(|((portal, lost), volumes)| of_node(&portal, lost, volumes.len()))
            .collect();
        assert_eq!(
            lines,
            [
                "paths over portal 192.0.2.1:3260 are lost: 2 volumes",
                "paths over portal 192.0.2.2:3260 are lost: 1 volume"
            ]
        );
        let reasons: Vec<&str> = latest(&all).map(|n| of_volume(n, "n1").1).collect();
        assert_eq!(reasons, ["WrongDisk", "LastPath", "NoPath"]);
        let three = Notice {
            paths: 3,
            ..notice("v", Change::Lost, "192.0.2.1:3260", 2)
        };
        assert_eq!(of_volume(&three, "n1").1, "PathLost");
        let failing = [
            notice("v1", Change::Failing, "", 0),
            notice("v1", Change::Lost, "192.0.2.1:3260", 0),
            notice("v1", Change::Recovered, "", 1),
        ];
        assert_eq!(by_portal(&failing).len(), 1, "a map has no portal");
        let reasons: Vec<&str> = latest(&failing).map(|n| of_volume(n, "n1").1).collect();
        assert_eq!(reasons, ["IoFails", "IoRecovered", "NoPath"]);
        let (kind, _, note) = of_volume(&notice("v", Change::Back, "192.0.2.1:3260", 2), "n1");
        assert_eq!(kind, EventType::Normal);
        assert_eq!(
            note,
            "node n1: the path over portal 192.0.2.1:3260 carries I/O again: 2 of 2 paths"
        );
        assert_eq!(
            of_node("0x2000020000000002", true, 1),
            "paths over remote port 0x2000020000000002 are lost: 1 volume"
        );
    }
}
