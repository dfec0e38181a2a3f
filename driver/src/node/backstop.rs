//! The kernel's own end of queueing, for a node whose plugin is gone when the last path is lost: a map that nobody watches would hold its I/O
//! without end.
//!
//! A module parameter of dm_multipath, for every map of the host, others' too: only on an administrator's wish. It must never be shorter than what
//! a volume asks for: then the kernel would give up what the plugin still holds.

use std::time::Duration;

use storagelink_multipath::{Host, policy::NoPathRetry, worker};

use uuid::Uuid;

use super::Inner;
use crate::codes::chain;

/// Seconds from the loss of a map's last path until it fails I/O; 0: never (drivers/md/dm-mpath.c).
const PARAMETER: &str = "module/dm_multipath/parameters/queue_if_no_path_timeout_secs";
/// Time for a write to sysfs that only sets a number.
const WRITE: Duration = Duration::from_secs(5);

impl Inner {
    /// Sets the kernel's limit, if one is wanted. A kernel without it, or one that cannot be told, is no reason not to serve volumes.
    pub(super) async fn set_backstop(&self) {
        let Some(limit) = self.config.backstop else {
            return;
        };
        let host = self.host.clone();
        match worker::run("set-backstop", WRITE, move || set(&host, limit)).await {
            Ok(Ok(())) => tracing::info!(
                ?limit,
                "the kernel gives up I/O without a path when this plugin does not"
            ),
            Ok(Err(error)) => tracing::warn!(
                error = chain(&error),
                "the kernel's limit of queueing cannot be set"
            ),
            // Logged by the worker.
            Err(_) => {}
        }
    }

    /// Says so when a volume holds I/O for longer than the kernel lets it.
    pub(super) fn compare_backstop(&self, volume: Uuid, retry: NoPathRetry) {
        let Some(limit) = self.config.backstop else {
            return;
        };
        if is_longer(retry, limit) {
            tracing::warn!(
                volume.id = %volume,
                no_path_retry = %retry,
                ?limit,
                "the volume's noPathRetry is longer than the kernel's limit on this node: the kernel gives up first"
            );
        }
    }
}

fn set(host: &Host, limit: Duration) -> std::io::Result<()> {
    host.sysfs.write(PARAMETER, &limit.as_secs().to_string())
}

fn is_longer(retry: NoPathRetry, limit: Duration) -> bool {
    match retry {
        NoPathRetry::Fail => false,
        NoPathRetry::For(time) => time >= limit,
        NoPathRetry::Queue => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_must_not_give_up_before_the_plugin() {
        let (minute, limit) = (Duration::from_secs(60), Duration::from_secs(120));
        assert!(!is_longer(NoPathRetry::For(minute), limit));
        assert!(!is_longer(NoPathRetry::Fail, limit));
        assert!(
            is_longer(NoPathRetry::For(limit), limit),
            "which is first is chance"
        );
        assert!(is_longer(NoPathRetry::Queue, limit));
    }

    #[test]
    fn the_limit_is_the_modules_parameter_in_seconds() {
        let host = storagelink_multipath::host::sim::SimKernel::new().host();
        set(&host, Duration::from_secs(300)).expect("is set");
        assert_eq!(host.sysfs.read(PARAMETER).expect("is read"), "300");
    }
}
