//! Who is busy with which path's session: one gate per path for login and logout, and a count of those who use it.
//!
//! Whoever wants the session counts itself first and takes the gate then; a logout takes the gate first and looks at the
//! count then. So a session is never logged out between the moment somebody found it and the moment its device is there;
//! from then on the device itself shows in sysfs that the session is in use.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::OwnedMutexGuard;

use super::portal::PortalKey;

/// One path's gate and count.
#[derive(Default)]
struct Slot {
    gate: Arc<tokio::sync::Mutex<()>>,
    users: AtomicUsize,
}

/// All paths that anybody is busy with.
#[derive(Clone, Default)]
pub(super) struct Slots(Arc<Mutex<HashMap<PortalKey, Arc<Slot>>>>);

impl Slots {
    /// Counts the caller as a user of this path's session until the answer is dropped.
    pub(super) fn enter(&self, key: PortalKey) -> Using {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = Arc::clone(slots.entry(key.clone()).or_default());
        slot.users.fetch_add(1, Ordering::SeqCst);
        Using {
            slots: self.clone(),
            key,
            slot,
        }
    }

    /// How many use this path's session now.
    pub(super) fn users(&self, key: &PortalKey) -> usize {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(key).map_or(0, |slot| slot.users.load(Ordering::SeqCst))
    }
}

/// A counted user of a path's session.
pub(super) struct Using {
    slots: Slots,
    key: PortalKey,
    slot: Arc<Slot>,
}

impl Using {
    /// Waits until nobody logs this path in or out.
    pub(super) async fn gate(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.slot.gate).lock_owned().await
    }

    /// True when nobody else is counted.
    pub(super) fn alone(&self) -> bool {
        self.slot.users.load(Ordering::SeqCst) == 1
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        // Under the map's lock, so that a slot with a user is never taken out.
        let mut slots = self.slots.0.lock().unwrap_or_else(PoisonError::into_inner);
        if self.slot.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            slots.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::portal::key;
    use super::*;

    #[tokio::test]
    async fn users_are_counted_per_path_and_forgotten_with_the_last() {
        let slots = Slots::default();
        let path = |port: u16| {
            key(&format!("192.0.2.1:{port},1,iqn.2026-11.com.example:t1")
                .parse()
                .expect("a portal"))
        };
        let (one, other) = (slots.enter(path(1)), slots.enter(path(2)));
        assert!(one.alone() && other.alone());
        let again = slots.enter(path(1));
        assert!(!one.alone());
        let gate = again.gate().await;
        assert!(
            Arc::clone(&one.slot.gate).try_lock_owned().is_err(),
            "the gate is one for all users"
        );
        drop((gate, again, one));
        assert_eq!(slots.users(&path(1)), 0);
        assert_eq!(slots.0.lock().expect("not poisoned").len(), 1);
    }
}
