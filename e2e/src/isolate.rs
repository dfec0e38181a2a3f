//! The namespaces of a lab: network, processes and mounts of its own, gone with the process that made them.
//!
//! The program runs itself again as process 1 of a fresh PID namespace with its own network and mounts. When that process
//! ends, for whatever reason, the kernel kills every guest, and bridges, taps and mounts go with their namespaces. It
//! ends when its parent does: by parent-death signal, and by end-of-file on the pipe the parent holds. Nothing is ever
//! made in the machine's own namespaces, so two labs run side by side and a crashed one leaves nothing.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::Signal,
};

use crate::programs;

const INSIDE: &str = "STORAGELINK_LAB_INSIDE";

/// What [`enter`] handed over to the inner process, if this is it.
#[must_use]
pub fn handed_over() -> Option<String> {
    std::env::var(INSIDE).ok()
}

/// Outside: runs this program again inside new namespaces, hands `state` over, and waits for its end.
///
/// Must be called before the process has other threads.
pub fn enter(state: &str) -> Result<ExitCode> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS)
        .context("make the lab's namespaces (the lab must run as root)")?;
    let mut inner = programs::again(&[(INSIDE, state)]).context("start the lab in its namespaces")?;
    // Held until the end: the inner process watches its other end. `wait` would close it.
    let alive = inner.stdin.take();
    let status = inner.wait().context("wait for the lab")?;
    drop(alive);
    Ok(ExitCode::from(
        u8::try_from(programs::exit_code(status)).unwrap_or(1),
    ))
}

/// Inside: ties this process to its parent and gives it a /proc of its own. Must be called before there are threads.
pub fn settle() -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("set the parent-death signal")?;
    // The parent may have died before the line above: then this pipe is closed already.
    std::thread::Builder::new()
        .name("parent-watch".to_owned())
        .spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            std::process::exit(1);
        })
        .context("start the parent watch")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).context("mount /proc")
}
