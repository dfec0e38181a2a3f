//! What may happen to a host with a staged volume.

use proptest::prelude::*;

/// Paths of the volume, each to a target of its own.
pub(super) const PATHS: usize = 3;

/// One thing that happens. A path is a number below [`PATHS`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// The session of a path fails: its device is blocked, what is in flight is stuck.
    Block(usize),
    /// The session's recovery time is over: what is in flight fails.
    Offline(usize),
    /// The portal answers no more; nobody is told.
    Silence(usize),
    /// The session is back.
    Heal(usize),
    /// The target was restarted: its disk has unit attentions to tell.
    Reset(usize),
    /// The array shows another disk under the volume's LUN, or the volume again.
    Remap(usize),
    Restore(usize),
    /// The array has no such LUN any more.
    Vanish(usize),
    /// The array made the volume longer.
    Grow,
    /// An administrator deletes the SCSI device of a path.
    Delete(usize),
    /// Calls of the plugin: NodeStageVolume, a late path, NodeExpandVolume, NodeUnstageVolume.
    Build,
    Join(usize),
    Resize,
    Remove,
    /// Somebody opens the map, and closes it.
    Open,
    Close,
    /// The plugin is killed after so many more changes of the kernel's state; the next event finds a new one.
    KillAfter(usize),
    /// The next call of a kind is refused.
    Refuse(&'static str, i32),
    /// Commands to a path's disk hang; a swap hangs.
    HangCommands(usize),
    HangSwap,
    /// Nothing hangs any more.
    Release,
    /// Another manager is killed between suspend and resume.
    Suspend,
}

/// An event and how many milliseconds pass after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) event: Event,
    pub(super) pause_ms: u64,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let pause = prop_oneof![2 => 1..20u64, 3 => 20..600u64, 1 => 600..9_000u64];
    (event(), pause).prop_map(|(event, pause_ms)| Step { event, pause_ms })
}

fn event() -> impl Strategy<Value = Event> {
    use nix::libc::{EBUSY, EINTR, EINVAL, EIO, ENOMEM};
    let path = || 0..PATHS;
    let refusal = prop_oneof![
        Just(("TABLE_LOAD", ENOMEM)),
        Just(("RESUME", EINVAL)),
        Just(("RESUME", EINTR)),
        Just(("TARGET_MSG", EBUSY)),
        Just(("TARGET_MSG", EINTR)),
        Just(("SG_IO", EIO)),
        Just(("FLUSH", EIO)),
        Just(("DEV_CREATE", EBUSY)),
        Just(("DEV_REMOVE", EBUSY)),
        Just(("WRITE", EIO)),
        Just(("TABLE_CLEAR", ENOMEM)),
    ];
    prop_oneof![
        4 => path().prop_map(Event::Block),
        3 => path().prop_map(Event::Offline),
        2 => path().prop_map(Event::Silence),
        6 => path().prop_map(Event::Heal),
        1 => path().prop_map(Event::Reset),
        3 => path().prop_map(Event::Remap),
        2 => path().prop_map(Event::Restore),
        1 => path().prop_map(Event::Vanish),
        2 => Just(Event::Grow),
        2 => path().prop_map(Event::Delete),
        3 => Just(Event::Build),
        4 => path().prop_map(Event::Join),
        3 => Just(Event::Resize),
        1 => Just(Event::Remove),
        1 => Just(Event::Open),
        1 => Just(Event::Close),
        3 => (0..6usize).prop_map(Event::KillAfter),
        4 => refusal.prop_map(|(operation, errno)| Event::Refuse(operation, errno)),
        1 => path().prop_map(Event::HangCommands),
        1 => Just(Event::HangSwap),
        2 => Just(Event::Release),
        1 => Just(Event::Suspend),
    ]
}
