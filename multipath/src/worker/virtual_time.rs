//! Virtual time in tests: the clock of a paused runtime stands while a kernel call runs on its thread, and moves on while the call sleeps in
//! the simulated kernel. So deadlines and periods of minutes cost a test no time, and pass in the same order in every run.
//!
//! Tokio moves a paused clock whenever the runtime is idle, unless a blocking task of its own runs (`tokio::time::pause`): one stands in for
//! each kernel call.

use std::{
    cell::{Cell, RefCell},
    sync::mpsc,
};

use tokio::runtime::Handle;

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static HOLD: RefCell<Option<Hold>> = const { RefCell::new(None) };
}

/// Runs a test in virtual time, on this thread.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    ON.set(true);
    let result = runtime.block_on(test);
    ON.set(false);
    // Threads that still sleep are left.
    runtime.shutdown_background();
    result
}

/// Keeps the clock from moving.
pub(crate) struct Hold {
    runtime: Handle,
    held: Option<mpsc::Sender<()>>,
}

impl Hold {
    /// Holds the clock for a call that is about to start; `None` when time is real.
    pub(super) fn new() -> Option<Self> {
        ON.get().then(|| {
            let mut hold = Self {
                runtime: Handle::current(),
                held: None,
            };
            hold.take();
            hold
        })
    }

    fn take(&mut self) {
        let (held, released) = mpsc::channel::<()>();
        self.held = Some(held);
        // Ends with an error when the sender is dropped.
        drop(self.runtime.spawn_blocking(move || released.recv()));
    }
}

/// The call that this thread makes holds the clock until the guard goes.
pub(super) fn enter(hold: Option<Hold>) -> impl Drop {
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            HOLD.take();
        }
    }
    HOLD.set(hold);
    Guard
}

/// The call of this thread waits for something that may never come.
pub(crate) fn falls_asleep() {
    HOLD.with_borrow_mut(|hold| hold.iter_mut().for_each(|hold| drop(hold.held.take())));
}

/// The call of this thread goes on.
pub(crate) fn wakes_up() {
    HOLD.with_borrow_mut(|hold| hold.iter_mut().for_each(Hold::take));
}
