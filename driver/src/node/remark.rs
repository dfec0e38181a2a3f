//! What an administrator should know and no call can answer: said once, in plain words, to whoever tells Events.

use uuid::Uuid;

/// One remark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remark {
    /// Reason of the Event.
    pub(super) reason: &'static str,
    /// Something is wrong; otherwise it is only news.
    pub(super) warning: bool,
    /// In plain words.
    pub(super) note: String,
    /// The volume that it is about; its claim and its pods on this node are told as well. Otherwise only the node.
    pub(super) volume: Option<Uuid>,
}

impl Remark {
    /// A warning about the node.
    pub(super) fn of_node(reason: &'static str, note: String) -> Self {
        Self {
            reason,
            warning: true,
            note,
            volume: None,
        }
    }

    /// News about the node.
    pub(super) fn news(reason: &'static str, note: String) -> Self {
        Self {
            warning: false,
            ..Self::of_node(reason, note)
        }
    }

    /// A warning about a volume.
    pub(super) fn of_volume(reason: &'static str, volume: Uuid, note: String) -> Self {
        Self {
            volume: Some(volume),
            ..Self::of_node(reason, note)
        }
    }
}
