//! What must hold all the while. What takes the engine a while may be so for that long, and no longer.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{
    super::{monitor::CHECK, tests::*, *},
    world::World,
};

/// Until the engine has seen and answered what is wrong: a look at everything, a message that is refused once, and another try.
const PROMPT: Duration = Duration::from_secs(2);
/// The same while commands hang: a check or a message runs into its deadline before.
const PATIENT: Duration = CHECK.saturating_mul(2).saturating_add(PROMPT);
/// A map that is suspended is left to whoever did it for 5 s, and again after each resume that is refused (monitor.rs); sequences refuse
/// few in a row.
const SUSPENDED: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(super) struct Promises {
    /// Since when something is so that must not stay so.
    since: HashMap<String, Instant>,
    patient: bool,
}

impl Promises {
    /// Looks at everything once.
    pub(super) fn hold(&mut self, world: &mut World) -> Result<(), String> {
        if let Some(violation) = world.kernel.violations().first() {
            return Err(violation.clone());
        }
        let map = the_map(world)?;
        if !world.may_be(map.as_ref()) {
            return Err("the map is gone, and nobody asked for that".to_owned());
        }
        let mut wrongs = Vec::new();
        // While the process dies it can do nothing, and while a swap hangs the kernel keeps everybody from the map.
        if let Some(map) = map.filter(|_| world.lives() && !world.swaps_hang()) {
            wrongs = wrong(world, &map);
        }
        // What took its time because of something that hung starts anew.
        if std::mem::replace(&mut self.patient, world.commands_hang()) != self.patient {
            self.since.clear();
        }
        let answer = if self.patient { PATIENT } else { PROMPT };
        let now = Instant::now();
        self.since
            .retain(|what, _| wrongs.iter().any(|(wrong, _)| wrong == what));
        for (what, beside) in wrongs {
            let limit = answer + beside;
            let since = *self.since.entry(what.clone()).or_insert(now);
            if now > since + limit {
                return Err(format!("for {limit:?}: {what}"));
            }
        }
        Ok(())
    }

    /// Without trouble for a while, nothing is left of it.
    pub(super) fn all_is_well(&self, world: &World) -> Result<(), String> {
        let Some(map) = the_map(world)?.filter(|map| map.live_table) else {
            return Ok(());
        };
        let well = |path: &PathView| path.is_usable() || path.device_state == "gone";
        let whole = !map.suspended && !map.inactive_table && map.paths().all(well);
        let usable = map.paths().any(PathView::is_usable);
        match whole && (!usable || map.queue_if_no_path == world.holds()) {
            true => Ok(()),
            false => Err(format!("the trouble is over, and the map is not well: {map:?}")),
        }
    }
}

fn the_map(world: &World) -> Result<Option<Map>, String> {
    let maps = maps(&world.kernel.host()).map_err(|error| full(&error))?;
    Ok(maps.into_iter().next())
}

/// What is wrong with the map now, and for how long it may be beside the time for an answer.
fn wrong(world: &World, map: &Map) -> Vec<(String, Duration)> {
    let mut wrongs = Vec::new();
    if map.suspended {
        // The monitor waits whether whoever suspended it resumes it.
        return vec![("the map is suspended".to_owned(), SUSPENDED)];
    }
    if !map.live_table {
        return wrongs;
    }
    let usable = map.paths().filter(|path| path.is_usable()).count();
    if usable == 0 && map.queue_if_no_path {
        let what = "no path is usable, and I/O is held".to_owned();
        wrongs.push((what, SHORT));
    }
    if usable > 0 && map.queue_if_no_path != world.holds() {
        let what = format!(
            "a path is usable, and I/O without one is held: {}",
            map.queue_if_no_path
        );
        wrongs.push((what, Duration::ZERO));
    }
    for path in map.paths() {
        let address = path.hctl.parse::<Hctl>().ok();
        let leads_to = address.and_then(|hctl| world.kernel.identity_at(hctl));
        let elsewhere = leads_to.as_ref().is_some_and(|leads_to| *leads_to != wwid());
        if elsewhere && path.is_usable() {
            wrongs.push((
                format!("I/O goes to another disk by {}", path.devno),
                Duration::ZERO,
            ));
        }
        if path.active && path.device_state != "running" && usable > 0 {
            wrongs.push((
                format!("{} is {}, and carries I/O", path.devno, path.device_state),
                Duration::ZERO,
            ));
        }
    }
    wrongs
}
