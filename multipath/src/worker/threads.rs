//! The threads themselves: each makes one call at a time, and waits a while for the next before it ends. Starting one costs more than most calls
//! take, and the same calls come again and again: connections are asked for every second at least.
//!
//! A call is never queued: a thread is handed one only while it waits, and a new thread is started when none does. So a call that hangs keeps
//! its own thread, and nobody else.

use std::{
    ffi::CString,
    io,
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, ThreadId},
    time::Duration,
};

/// A call, and what it is.
struct Job {
    name: &'static str,
    call: Box<dyn FnOnce() + Send>,
}

/// A thread that waits, and how it is handed a call.
struct Waiting {
    thread: ThreadId,
    give: mpsc::Sender<Job>,
}

/// How long a thread waits for its next call.
const IDLE: Duration = Duration::from_secs(5);
/// Kernel calls and sysfs need little.
const STACK: usize = 256 * 1024;

/// The one that began to wait last is the first to be taken, so that those too many end.
static WAITING: Mutex<Vec<Waiting>> = Mutex::new(Vec::new());

fn waiting() -> MutexGuard<'static, Vec<Waiting>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a thread make the call. A thread bears the name of what it does, to be seen in `ps -L` where it hangs.
///
/// # Errors
/// None waits, and none could be started.
pub(super) fn hand_over(name: &'static str, call: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut job = Job {
        name,
        call: Box::new(call),
    };
    let taken = waiting().pop();
    if let Some(thread) = taken {
        match thread.give.send(job) {
            Ok(()) => return Ok(()),
            // A thread on the list takes what it is sent: this one is lost.
            Err(mpsc::SendError(back)) => job = back,
        }
    }
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
        .spawn(move || work(job))
        .map(drop)
}

/// A thread's life. A call that panics ends it.
fn work(mut job: Job) {
    let (give, take) = mpsc::channel();
    let mut named = job.name;
    loop {
        if named != job.name {
            rename(job.name);
            named = job.name;
        }
        (job.call)();
        waiting().push(Waiting {
            thread: thread::current().id(),
            give: give.clone(),
        });
        let Some(next) = take.recv_timeout(IDLE).ok().or_else(|| leave(&take)) else {
            return;
        };
        job = next;
    }
}

/// Takes this thread off the list; the call that somebody who was quicker has for it.
fn leave(take: &mpsc::Receiver<Job>) -> Option<Job> {
    let me = thread::current().id();
    let taken = {
        let mut waiting = waiting();
        let before = waiting.len();
        waiting.retain(|other| other.thread != me);
        waiting.len() == before
    };
    taken.then(|| take.recv().ok()).flatten()
}

/// Names this thread; Linux keeps 15 bytes (prctl(2), PR_SET_NAME).
fn rename(name: &str) {
    if let Ok(name) = CString::new(name) {
        // A thread with a wrong name works as well.
        let _ = nix::sys::prctl::set_name(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
        let (done, result) = mpsc::channel();
        hand_over("test", move || drop(done.send(f()))).unwrap();
        result
    }

    #[test]
    fn a_call_that_hangs_keeps_nobody_else() {
        let (release, hangs) = mpsc::channel::<()>();
        let hanging = run(move || hangs.recv().is_ok());
        for number in 0..100 {
            assert_eq!(run(move || number).recv().unwrap(), number);
        }
        release.send(()).unwrap();
        assert!(hanging.recv().unwrap());
    }

    #[test]
    fn a_panic_ends_its_own_thread_only() {
        assert!(run(|| panic!("on purpose")).recv().is_err());
        assert_eq!(run(|| 7).recv().unwrap(), 7);
    }

    #[test]
    fn a_thread_that_waits_is_used_again_under_the_new_name() {
        let name = || std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        // Tests run at the same time: one of many calls in a row meets a thread that made an earlier one.
        let mut seen = Vec::new();
        for _ in 0..1000 {
            let (id, name) = run(move || (thread::current().id(), name())).recv().unwrap();
            assert_eq!(name.trim(), "test");
            if seen.contains(&id) {
                return;
            }
            seen.push(id);
        }
        panic!("each of {} calls had a thread of its own", seen.len());
    }
}
