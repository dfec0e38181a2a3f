//! Goes back to a better path group. The kernel leaves a group only when it has no path left; that a better one has paths again it does not heed.
//!
//! A group is gone back to only when it has had a usable path for [`SETTLED`]: no ping-pong with an array that takes its time. Which group is the
//! better one is the table's order, which follows the array ([`super::port_groups`]).

use tokio::time::Instant;

use super::{Engine, Map, PathView, monitor::Shared, port_groups::SETTLED};

impl Engine {
    /// Goes back if it is time. Answers whether it will be.
    pub(super) fn fail_back(&self, map: &Map, memory: &Shared) -> bool {
        let Some(best) = better_group(map) else {
            memory.get().worse.remove(&map.name);
            return false;
        };
        let now = Instant::now();
        let since = *memory.get().worse.entry(map.name.clone()).or_insert(now);
        if now < since + SETTLED {
            return true;
        }
        let Some(busy) = memory.claim(map.devno) else {
            return true;
        };
        tracing::info!(dm.name = map.name, wwid = %map.wwid, from = map.current_group, to = best, "back to a better path group");
        memory.get().worse.insert(map.name.clone(), now);
        let (engine, map) = (self.clone(), map.clone());
        tokio::spawn(async move {
            if let Err(error) = engine.message(&map, format!("switch_group {best}"), busy).await {
                tracing::warn!(
                    dm.name = map.name,
                    error,
                    "cannot go back to the better path group"
                );
            }
        });
        true
    }
}

/// Number of the first group that has a usable path, if it comes before the one in use. A group that the kernel could not activate, and therefore
/// bypasses, is not tried again and again.
fn better_group(map: &Map) -> Option<u32> {
    let usable = map
        .groups
        .iter()
        .zip(1..)
        .find(|(group, _)| group.state != "disabled" && group.paths.iter().any(PathView::is_usable));
    usable
        .map(|(_, number)| number)
        .filter(|number| *number < map.current_group)
}
