//! Killed after any call to the host: a new process comes to the same end, and nothing leaks.

use super::*;

/// Kills the process after 0, 1, 2, … calls of `what`, until it comes to its end alive; `then` looks at the host with a
/// new process each time.
async fn at_every_call<S, W, T>(setup: S, what: W, then: T) -> i64
where
    S: AsyncFn(&mut Lab),
    W: AsyncFn(&Lab) -> Result<(), Status>,
    T: AsyncFn(&mut Lab, i64),
{
    for calls in 0.. {
        let mut lab = Lab::new();
        setup(&mut lab).await;
        lab.fuse.burn_after(calls);
        let result = what(&lab).await;
        let killed = lab.fuse.burnt();
        if !killed {
            result.expect("nothing was in its way");
        }
        lab.restart();
        lab.node.0.engine.adopt().await.expect("adopts");
        then(&mut lab, calls).await;
        if !killed {
            return calls;
        }
    }
    unreachable!("the range has no end")
}

#[tokio::test]
async fn a_stage_killed_anywhere_is_finished_by_the_next() {
    let calls = at_every_call(
        async |_| {},
        async |lab| lab.stage(ext4()).await,
        async |lab, calls| {
            lab.stage(ext4())
                .await
                .unwrap_or_else(|e| panic!("killed after {calls}: {e:?}"));
            assert!(lab.is_mounted(STAGING), "killed after {calls}");
            assert_eq!(lab.mounts.mounts().len(), 1, "killed after {calls}");
            lab.unstage()
                .await
                .unwrap_or_else(|e| panic!("killed after {calls}: {e:?}"));
            lab.assert_clean(&format!("killed after {calls}"));
        },
    )
    .await;
    assert!(calls > 30, "the fuse was in the way of {calls} calls only");
}

#[tokio::test]
async fn a_stage_killed_anywhere_can_be_unstaged_instead() {
    at_every_call(
        async |_| {},
        async |lab| lab.stage(ext4()).await,
        async |lab, calls| {
            lab.unstage()
                .await
                .unwrap_or_else(|e| panic!("killed after {calls}: {e:?}"));
            assert_eq!(lab.kernel.maps(), Vec::<String>::new(), "killed after {calls}");
            assert_eq!(lab.kernel.disks(), vec![], "killed after {calls}");
            assert_eq!(lab.kernel.session_count(), 0, "killed after {calls}");
            assert_eq!(lab.mounts.mounts(), vec![], "killed after {calls}");
            // Also with half a file system on it: it was blank when this node began.
            lab.stage(ext4())
                .await
                .unwrap_or_else(|e| panic!("killed after {calls}: {e:?}"));
            lab.unstage()
                .await
                .unwrap_or_else(|e| panic!("killed after {calls}: {e:?}"));
            lab.assert_clean(&format!("killed after {calls}"));
        },
    )
    .await;
}

#[tokio::test]
async fn an_unstage_killed_anywhere_is_finished_by_the_next() {
    let calls = at_every_call(
        async |lab| lab.stage(ext4()).await.expect("stages"),
        async |lab| lab.unstage().await,
        async |lab, calls| {
            lab.unstage()
                .await
                .unwrap_or_else(|e| panic!("killed after {calls}: {e:?}"));
            lab.assert_clean(&format!("killed after {calls}"));
        },
    )
    .await;
    assert!(calls > 10, "the fuse was in the way of {calls} calls only");
}

#[tokio::test]
async fn a_publish_and_an_unpublish_killed_anywhere_are_finished_by_the_next() {
    for capability in [ext4(), block(Mode::SingleNodeWriter)] {
        let staged = capability.clone();
        at_every_call(
            async |lab| lab.stage(staged.clone()).await.expect("stages"),
            async |lab| {
                lab.publish(PODS[0], staged.clone(), true).await?;
                lab.unpublish(PODS[0]).await
            },
            async |lab, calls| {
                lab.publish(PODS[0], staged.clone(), true)
                    .await
                    .unwrap_or_else(|e| panic!("killed after {calls}: {e:?}"));
                let shown: Vec<_> = lab
                    .mounts
                    .mounts()
                    .into_iter()
                    .filter(|m| m.path == Path::new(PODS[0]))
                    .collect();
                assert_eq!(shown.len(), 1, "killed after {calls}");
                assert!(shown[0].read_only(), "never writable, killed after {calls}");
                lab.unpublish(PODS[0]).await.expect("unpublishes");
                assert!(
                    !lab.mounts.paths().contains(&PODS[0].into()),
                    "killed after {calls}"
                );
                lab.unstage().await.expect("unstages");
                lab.assert_clean(&format!("killed after {calls}"));
            },
        )
        .await;
    }
}
