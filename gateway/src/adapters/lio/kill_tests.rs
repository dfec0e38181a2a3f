//! The adapter killed at every change of the kernel: the next start goes on.

use super::{
    Lio,
    tests::{Array, ID, MIB, access, new},
};
use crate::adapter::{Adapter as _, AdapterError};

/// The whole life of a volume; each call is made again by whoever did not get an answer.
fn life(lio: &Lio) -> Result<(), AdapterError> {
    lio.create(&new(ID))?;
    lio.map(ID, &access("node1"))?;
    lio.expand(ID, 8 * MIB, 0)?;
    lio.unmap(ID, Some("node1"))?;
    lio.delete(ID)
}

#[test]
fn killed_at_any_change_of_the_kernel_the_next_start_goes_on_and_nothing_leaks() {
    let mut rounds = 0;
    for changes in 0.. {
        let array = Array::new();
        array.kernel.kill_after(changes);
        let finished = array.try_start().and_then(|lio| life(&lio)).is_ok();
        array.kernel.restart();
        let lio = array.start();
        let unfinished = array
            .kernel
            .tree()
            .into_iter()
            .filter(|path| path.starts_with("core/"));
        for path in unfinished {
            // Half-made backstores break targetcli: after a start there is none.
            let is_backstore = path.matches('/').count() == 2;
            let enabled = array.kernel.value(&format!("{path}/enable"));
            assert!(
                !is_backstore || enabled.as_deref() == Some("1"),
                "killed after {changes}: {path}"
            );
        }
        life(&lio).unwrap_or_else(|error| panic!("killed after {changes} changes: {error}"));
        drop(lio);
        let clean = Array::new();
        clean.start();
        assert_eq!(
            array.kernel.tree(),
            clean.kernel.tree(),
            "killed after {changes} changes"
        );
        assert!(array.volumes().is_empty(), "killed after {changes} changes");
        rounds += 1;
        if finished {
            break;
        }
    }
    assert!(rounds > 20, "every step was tried: {rounds}");
}
