//! Multipathing of this node, on or off, as XenServer has it: by the Node's annotations `storagelink.io/multipathing` (`true`, `false`) and
//! `storagelink.io/multipathhandle` (`dmp`), without them by `--multipathing`.
//!
//! What is set holds for each volume at its next stage; it never touches a volume that is staged. A value that is not allowed changes nothing
//! and is told. The last good value is kept in the state directory, so that a plugin that starts while the API server is away stages as it did before.
//! Only staging asks: no call waits for the API server.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::sync::{broadcast, watch};
use tokio_stream::StreamExt as _;

use super::remark::Remark;
use crate::codes::chain;

/// On or off.
pub const MULTIPATHING: &str = "storagelink.io/multipathing";
/// What does it; there is one.
pub const HANDLE: &str = "storagelink.io/multipathhandle";
/// Value of [`HANDLE`].
pub const DMP: &str = "dmp";
/// How long the first answer of the API server is waited for before the plugin serves.
pub(super) const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// A value that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "annotation {annotation}: {value:?} is not allowed, it must be {allowed}; multipathing stays {stays}"
)]
pub struct Wrong {
    /// Of which annotation.
    pub annotation: &'static str,
    /// The value.
    pub value: String,
    /// What is.
    pub allowed: &'static str,
    /// How it stays.
    pub stays: &'static str,
}

/// For a text.
fn word(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// What the annotations ask for; `default` where they say nothing, `now` for the text of a refusal.
pub fn parse(annotations: &BTreeMap<String, String>, default: bool, now: bool) -> Result<bool, Wrong> {
    let wrong = |annotation, value: &str, allowed| Wrong {
        annotation,
        value: value.to_owned(),
        allowed,
        stays: word(now),
    };
    if let Some(handle) = annotations.get(HANDLE).filter(|handle| *handle != DMP) {
        return Err(wrong(HANDLE, handle, "dmp"));
    }
    match annotations.get(MULTIPATHING).map(String::as_str) {
        None => Ok(default),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => Err(wrong(MULTIPATHING, other, "true or false")),
    }
}

/// The setting.
pub(super) struct Switch {
    setting: watch::Sender<bool>,
    default: bool,
    /// What was set when the API server was last heard.
    file: PathBuf,
}

impl Switch {
    /// The setting of before; `default` when there is none. Blocking.
    pub(super) fn new(state_dir: &Path, default: bool) -> Self {
        let file = state_dir.join("multipathing");
        let kept = match fs::read_to_string(&file) {
            Ok(text) => text.trim().parse().ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %file.display(), %error, "cannot read the multipathing that was set before");
                None
            }
        };
        Self {
            setting: watch::Sender::new(kept.unwrap_or(default)),
            default,
            file,
        }
    }

    /// Volumes are staged with multipathing.
    pub(super) fn multipathing(&self) -> bool {
        *self.setting.borrow()
    }

    /// Wakes when it changes.
    pub(super) fn changes(&self) -> watch::Receiver<bool> {
        self.setting.subscribe()
    }

    /// Nobody is asked: the flag alone says it, whatever was kept. Blocking.
    pub(super) fn only_the_flag(&self) {
        self.setting.send_replace(self.default);
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.file.display(), %error, "cannot forget the multipathing that was set before");
            }
            _ => {}
        }
    }

    /// Applies what the annotations say now. Answers what is to be told, if there is something new. Blocking.
    pub(super) fn apply(&self, annotations: &BTreeMap<String, String>) -> Option<Remark> {
        let now = self.multipathing();
        let wanted = match parse(annotations, self.default, now) {
            Ok(wanted) => wanted,
            Err(wrong) => return Some(Remark::of_node("WrongAnnotation", wrong.to_string())),
        };
        // Only what differs from the flag has to be known before the API server answers.
        let kept = match wanted == self.default {
            true => fs::remove_file(&self.file),
            false => fs::write(&self.file, format!("{wanted}\n")),
        };
        match kept {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.file.display(), %error, "cannot keep the multipathing that is set");
            }
            _ => {}
        }
        if wanted == now {
            return None;
        }
        self.setting.send_replace(wanted);
        let note = format!(
            "multipathing is {} from now on: volumes that are staged stay as they are until their next stage",
            word(wanted)
        );
        Some(Remark::news("MultipathingChanged", note))
    }
}

impl super::Node {
    /// Watches this node's annotations without end. `heard` is told the first time.
    pub(super) async fn watch_annotations(self, client: Client, heard: tokio::sync::oneshot::Sender<()>) {
        // Only the metadata is asked for.
        let nodes: Api<PartialObjectMeta<KubeNode>> = Api::all(client);
        let only = format!("metadata.name={}", self.0.config.node_name);
        let config = watcher::Config::default().fields(&only);
        // A lost connection is made again, with growing pauses.
        let watched = watcher(nodes, config).default_backoff();
        let mut watched = std::pin::pin!(watched.applied_objects());
        let (mut heard, mut last) = (Some(heard), None);
        while let Some(event) = watched.next().await {
            let node = match event {
                Ok(node) => node,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot watch this node's annotations");
                    continue;
                }
            };
            let all = node.metadata.annotations.unwrap_or_default();
            let ours: BTreeMap<String, String> = all
                .into_iter()
                .filter(|(key, _)| key == MULTIPATHING || key == HANDLE)
                .collect();
            // Nodes change often, these two seldom.
            if last.as_ref() != Some(&ours) {
                let this = self.clone();
                let annotations = ours.clone();
                let said = tokio::task::spawn_blocking(move || this.0.switch.apply(&annotations)).await;
                if let Ok(Some(remark)) = said {
                    tell(&self.0.remarks, remark);
                }
                last = Some(ours);
            }
            if let Some(heard) = heard.take() {
                // An error: nobody waits any more.
                let _ = heard.send(());
            }
        }
    }
}

fn tell(remarks: &broadcast::Sender<Remark>, remark: Remark) {
    if remark.warning {
        tracing::warn!("{}", remark.note);
    } else {
        tracing::info!("{}", remark.note);
    }
    // An error: nobody listens.
    let _ = remarks.send(remark);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        owned.collect()
    }

    #[test]
    fn annotations_say_on_off_or_nothing_and_anything_else_is_named() {
        let of = |pairs: &[(&str, &str)]| parse(&annotations(pairs), true, true);
        assert_eq!(of(&[]), Ok(true));
        assert_eq!(parse(&annotations(&[]), false, true), Ok(false));
        assert_eq!(of(&[(MULTIPATHING, "false")]), Ok(false));
        assert_eq!(of(&[(MULTIPATHING, "true"), (HANDLE, "dmp")]), Ok(true));
        assert_eq!(of(&[(HANDLE, "dmp")]), Ok(true));
        for (pairs, words) in [
            (
                [(MULTIPATHING, "False"), (HANDLE, "dmp")],
                ["storagelink.io/multipathing", "\"False\"", "true or false"],
            ),
            (
                [(MULTIPATHING, ""), (HANDLE, "dmp")],
                ["storagelink.io/multipathing", "\"\"", "true or false"],
            ),
            (
                [(MULTIPATHING, "false"), (HANDLE, "rdac")],
                ["storagelink.io/multipathhandle", "\"rdac\"", "dmp"],
            ),
        ] {
            let text = of(&pairs).expect_err("is not allowed").to_string();
            for word in words {
                assert!(text.contains(word), "{text} does not say {word}");
            }
            assert!(text.contains("stays on"), "{text}");
        }
    }

    #[test]
    fn a_setting_outlives_its_process_and_a_wrong_one_changes_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let switch = Switch::new(dir.path(), true);
        let changes = switch.changes();
        assert!(switch.multipathing());
        assert_eq!(switch.apply(&annotations(&[])), None, "as it was");
        let told = switch
            .apply(&annotations(&[(MULTIPATHING, "false")]))
            .expect("news");
        assert!(!told.warning && told.note.contains("off"), "{told:?}");
        assert!(!switch.multipathing() && changes.has_changed().expect("a sender"));
        let wrong = switch
            .apply(&annotations(&[(MULTIPATHING, "maybe")]))
            .expect("a warning");
        assert!(wrong.warning && wrong.note.contains("stays off"), "{wrong:?}");

        let next = Switch::new(dir.path(), true);
        assert!(!next.multipathing(), "the API server was not asked yet");
        assert!(
            next.apply(&annotations(&[])).is_some(),
            "the annotation was removed meanwhile"
        );
        assert!(next.multipathing());
        assert!(Switch::new(dir.path(), true).multipathing());

        next.apply(&annotations(&[(MULTIPATHING, "false")]));
        let alone = Switch::new(dir.path(), true);
        alone.only_the_flag();
        assert!(alone.multipathing() && Switch::new(dir.path(), true).multipathing());
    }
}
