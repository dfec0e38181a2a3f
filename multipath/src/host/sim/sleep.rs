//! Calls that sleep in the simulated kernel, and what wakes them.
//!
//! Whoever wakes them waits until each has looked whether it may go on. Together with [`crate::worker`] that lets a test run in virtual time: the
//! clock stands while a call runs, and moves while it sleeps.

use std::sync::PoisonError;

use super::{SimKernel, State};

/// Calls that sleep.
#[derive(Default)]
pub(super) struct Sleepers {
    asleep: usize,
    /// Those that were woken and have not looked yet.
    woken: usize,
}

impl SimKernel {
    /// Sleeps as in the kernel for as long as `stuck` says.
    pub(super) fn sleep_while(&self, mut stuck: impl FnMut(&mut State) -> bool) {
        let mut state = self.state();
        if !stuck(&mut state) {
            return;
        }
        #[cfg(test)]
        crate::worker::virtual_time::falls_asleep();
        state.sleepers.asleep += 1;
        loop {
            state = self
                .machine
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            let sleeps = stuck(&mut state);
            if !sleeps {
                #[cfg(test)]
                crate::worker::virtual_time::wakes_up();
                state.sleepers.asleep -= 1;
            }
            state.sleepers.woken = state.sleepers.woken.saturating_sub(1);
            if state.sleepers.woken == 0 {
                self.machine.looked.notify_all();
            }
            if !sleeps {
                return;
            }
        }
    }

    /// Lets every call that sleeps look whether it may go on.
    pub(super) fn wake(&self) {
        let mut state = self.state();
        state.sleepers.woken = state.sleepers.asleep;
        self.machine.changed.notify_all();
        drop(
            self.machine
                .looked
                .wait_while(state, |state| state.sleepers.woken > 0)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// A call of this kind hangs here if one is to.
    pub(super) fn hangs(&self, operation: &str) {
        if let Some(calls) = self.state().hanging.get_mut(operation) {
            *calls += 1;
        }
        self.sleep_while(|state| state.hanging.contains_key(operation));
    }

    /// Calls of this kind hang from now on: `SG_IO` (or `SG_IO sda`: to one device), `RESUME` or `FLUSH`.
    pub fn hang(&self, operation: &str) {
        self.state().hanging.insert(operation.to_owned(), 0);
    }

    /// The calls of this kind that hang return; answers how many there were.
    pub fn release(&self, operation: &str) -> usize {
        let calls = self.state().hanging.remove(operation).unwrap_or(0);
        self.wake();
        calls
    }
}
