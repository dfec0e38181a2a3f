//! One operation per volume at a time on this node: the second caller is told ABORTED, as CSI wants it, and asks again.
//!
//! A guard is held until the last clone of it is dropped: the operation keeps one, and so does every kernel call that
//! was given up on but still runs. It must never be waited for: a caller that waits holds a connection for nothing.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use tonic::Code;
use uuid::Uuid;

use crate::codes::Coded;

/// Another operation on the volume is under way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("volume {0}: another operation is under way on this node")]
pub struct Busy(pub Uuid);

impl Coded for Busy {
    fn code(&self) -> Code {
        Code::Aborted
    }
}

/// The volumes that are being worked on. Clones share them.
#[derive(Clone, Default)]
pub struct Guards(Arc<Mutex<HashSet<Uuid>>>);

/// The right to work on a volume. Clones are the same right.
#[derive(Clone)]
pub struct Guard {
    _held: Arc<Held>,
}

struct Held {
    guards: Guards,
    volume: Uuid,
}

impl Guards {
    /// Takes the right, when nobody has it.
    pub fn take(&self, volume: Uuid) -> Result<Guard, Busy> {
        if self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(volume)
        {
            Ok(Guard {
                _held: Arc::new(Held {
                    guards: self.clone(),
                    volume,
                }),
            })
        } else {
            Err(Busy(volume))
        }
    }
}

impl Guards {
    /// True when somebody has the right to work on it.
    #[must_use]
    pub fn busy(&self, volume: Uuid) -> bool {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.contains(&volume)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.guards
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.volume);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_free_again_after_the_last_clone() {
        let guards = Guards::default();
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let first = guards.take(a).expect("free");
        let late = first.clone();
        drop(first);
        assert_eq!(guards.take(a).err(), Some(Busy(a)));
        let _other = guards.take(b).expect("another volume is not concerned");
        drop(late);
        guards.take(a).expect("free again");
    }
}
