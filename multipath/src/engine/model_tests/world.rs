//! A host with a plugin and an array, and what events do to them.

use std::time::Duration;

use tokio::{task::JoinSet, time::Instant};

use super::{
    super::{tests::*, *},
    events::{Event, PATHS, Step},
    promises::Promises,
};
use crate::{Policy, host::sim::SimKernel, policy::NoPathRetry};

/// After this much time without trouble everything must be well again.
const SETTLED: Duration = Duration::from_secs(20);
/// The longest time for which a path is held down (flapping.rs).
const HELD_DOWN: Duration = Duration::from_secs(300);
/// How long the last trouble lasts.
const TROUBLE: Duration = Duration::from_secs(5);
/// NOP-Outs of a session go unanswered for so long before the initiator gives it up, with its recovery time.
const PINGS: Duration = Duration::from_secs(4);
/// How often the promises are looked at.
const SLICE: Duration = Duration::from_millis(50);
/// Time limit of each call of the plugin.
const CALL: Duration = Duration::from_secs(2);

pub(super) struct World {
    pub(super) kernel: SimKernel,
    engine: Engine,
    sessions: Vec<u32>,
    /// The monitor and the calls of the plugin that lives.
    process: JoinSet<()>,
    /// It dies at the next event.
    dying: bool,
    size: u64,
    hanging: Vec<String>,
    /// The map was there with a table, and nobody has asked for its removal since.
    wanted: bool,
    /// Held by every removal under way.
    removal: Arc<()>,
    spec: MapSpec,
    /// Since when the portal of a path answers nothing.
    silent: [Option<Instant>; PATHS],
}

/// Plays a sequence on a fresh host; what does not hold.
pub(super) async fn play(retry: NoPathRetry, steps: &[Step]) -> Result<(), String> {
    let mut world = World::start(retry).await?;
    let mut promises = Promises::default();
    let outcome = world.play(steps, &mut promises).await;
    // What still sleeps would keep its thread.
    world.heal_all();
    outcome
}

fn target(path: usize) -> String {
    format!("iqn.2026-11.com.example:path{path}")
}

impl World {
    async fn start(retry: NoPathRetry) -> Result<Self, String> {
        let kernel = SimKernel::new();
        let mut sessions = Vec::new();
        for path in 0..PATHS {
            kernel.set_lun(&target(path), LUN, &wwid(), GIB);
            sessions.push(kernel.login(&target(path), &format!("192.0.2.{path}"), 3260));
        }
        let mut world = Self {
            engine: Engine::new(kernel.host()),
            kernel,
            sessions,
            process: JoinSet::new(),
            dying: false,
            size: GIB,
            hanging: Vec::new(),
            wanted: false,
            removal: Arc::default(),
            spec: MapSpec {
                policy: Policy {
                    no_path_retry: retry,
                    ..spec().policy
                },
                ..spec()
            },
            silent: [None; PATHS],
        };
        // The third path is late.
        let (engine, kernel, first) = (&world.engine, &world.kernel, world.sessions[..2].to_vec());
        build(engine, kernel, &world.spec, &first, world.size).await?;
        world.start_process();
        Ok(world)
    }

    async fn play(&mut self, steps: &[Step], promises: &mut Promises) -> Result<(), String> {
        for step in steps {
            self.bury();
            self.happens(step.event);
            self.pass(Duration::from_millis(step.pause_ms), promises).await?;
        }
        // What is wrong now must not stay so, while the trouble lasts.
        self.pass(TROUBLE, promises).await?;
        self.heal_all();
        self.pass(SETTLED, promises).await?;
        // A path that came and went is held down for a while.
        let held = Instant::now() + HELD_DOWN;
        while promises.all_is_well(self).is_err() && Instant::now() < held {
            self.pass(SETTLED, promises).await?;
        }
        promises.all_is_well(self)?;
        self.back_to_nothing().await
    }

    /// Lets time pass while the promises hold.
    async fn pass(&mut self, time: Duration, promises: &mut Promises) -> Result<(), String> {
        let end = Instant::now() + time;
        // What happened is past for whoever looks from the next millisecond on.
        let mut next = Instant::now() + Duration::from_millis(1);
        loop {
            tokio::time::sleep_until(next.min(end)).await;
            self.kernel.tick();
            self.ping();
            while self.process.try_join_next().is_some() {}
            promises.hold(self)?;
            if next >= end {
                return Ok(());
            }
            next += SLICE;
        }
    }

    fn start_process(&mut self) {
        let engine = self.engine.clone();
        // The plugin has it from its journal.
        engine.set_policy(&wwid(), self.spec.policy);
        self.process.spawn(async move {
            // As the plugin does at its start.
            drop(engine.adopt().await);
            engine.monitor(std::future::pending()).await;
        });
    }

    /// Ends a process whose kernel calls do not work any more, and starts the next.
    fn bury(&mut self) {
        if !std::mem::take(&mut self.dying) {
            return;
        }
        self.process = JoinSet::new();
        self.kernel.kill();
        self.engine = Engine::new(self.kernel.host());
        self.start_process();
    }

    fn disk(&self, path: usize) -> Option<ScsiDisk> {
        scsi_device::find(&self.kernel.host(), &hctl(self.sessions[path]))
    }

    fn hang(&mut self, operation: String) {
        self.kernel.hang(&operation);
        self.hanging.push(operation);
    }

    fn release(&mut self) {
        for operation in std::mem::take(&mut self.hanging) {
            self.kernel.release(&operation);
        }
    }

    fn heal(&mut self, path: usize) {
        self.silent[path] = None;
        self.kernel.heal(self.sessions[path]);
    }

    /// The session's own timers end what nobody else has ended.
    fn ping(&mut self) {
        for path in 0..PATHS {
            if self.silent[path].is_some_and(|since| Instant::now() > since + PINGS) {
                self.silent[path] = None;
                self.kernel.cut(self.sessions[path], "transport-offline");
            }
        }
    }

    /// Commands to some disk hang, and whoever waits for one.
    pub(super) fn commands_hang(&self) -> bool {
        !self.hanging.is_empty() || self.silent.iter().any(Option::is_some)
    }

    /// Whether the volume's map holds its I/O while a path is usable.
    pub(super) fn holds(&self) -> bool {
        self.spec.policy.no_path_retry != NoPathRetry::Fail
    }

    /// A swap hangs, or may.
    pub(super) fn swaps_hang(&self) -> bool {
        self.hanging.iter().any(|operation| operation == "RESUME")
    }

    /// Whether a map that is there, or is not, may be so.
    pub(super) fn may_be(&mut self, map: Option<&Map>) -> bool {
        let removing = Arc::strong_count(&self.removal) > 1;
        self.wanted |= !removing && map.is_some_and(|map| map.live_table);
        map.is_some() || !self.wanted
    }

    /// The plugin's calls work.
    pub(super) fn lives(&self) -> bool {
        !self.dying
    }

    fn happens(&mut self, event: Event) {
        let map = crate::names::Names::default().map_name(VOLUME);
        match event {
            Event::Block(path) => {
                // A device that is offline already does not become blocked.
                if self.disk(path).is_some_and(|disk| disk.is_running()) {
                    self.kernel.cut(self.sessions[path], "blocked");
                }
            }
            Event::Offline(path) => self.kernel.cut(self.sessions[path], "transport-offline"),
            Event::Silence(path) => {
                self.kernel.silence(self.sessions[path]);
                self.silent[path] = Some(Instant::now());
            }
            Event::Heal(path) => self.heal(path),
            Event::Reset(path) => self.kernel.reset(self.sessions[path], 3),
            Event::Remap(path) => self.kernel.set_lun(&target(path), LUN, &other(), self.size),
            Event::Restore(path) => self.kernel.set_lun(&target(path), LUN, &wwid(), self.size),
            Event::Vanish(path) => self.kernel.remove_lun(&target(path), LUN),
            Event::Grow => self.grow(),
            Event::Delete(path) => self.kernel.delete(hctl(self.sessions[path])),
            Event::Build => {
                let (engine, kernel) = (self.engine.clone(), self.kernel.clone());
                let (spec, sessions, size) = (self.spec.clone(), self.sessions.clone(), self.size);
                self.process.spawn(async move {
                    drop(build(&engine, &kernel, &spec, &sessions, size).await);
                });
            }
            Event::Join(path) => {
                let (engine, kernel) = (self.engine.clone(), self.kernel.clone());
                let (session, size) = (self.sessions[path], self.size);
                self.process.spawn(async move {
                    if let Ok(path) = reach(&engine, &kernel, session, size).await {
                        drop(engine.join(&wwid(), path).await);
                    }
                });
            }
            Event::Resize => {
                let engine = self.engine.clone();
                self.process
                    .spawn(async move { drop(engine.resize(&wwid(), CALL).await) });
            }
            Event::Remove => {
                let engine = self.engine.clone();
                self.wanted = false;
                let removal = self.removal.clone();
                self.process.spawn(async move {
                    drop(engine.remove(&wwid(), CALL).await);
                    drop(removal);
                });
            }
            Event::Open => self.kernel.set_open_count(&map, 1),
            Event::Close => self.kernel.set_open_count(&map, 0),
            Event::KillAfter(calls) => {
                self.kernel.kill_after(calls);
                self.dying = true;
            }
            Event::Refuse(operation, errno) => self.kernel.fail_next(operation, errno),
            Event::HangCommands(path) => {
                if let Some(disk) = self.disk(path) {
                    self.hang(format!("SG_IO {}", disk.name));
                }
            }
            Event::HangSwap => self.hang("RESUME".to_owned()),
            Event::Release => self.release(),
            Event::Suspend => self.kernel.suspend(&map),
        }
    }

    /// The volume is longer from now on, wherever it is shown.
    fn grow(&mut self) {
        self.size += GIB;
        for path in 0..PATHS {
            if self.kernel.identity_at(hctl(self.sessions[path])) == Some(wwid()) {
                self.kernel.set_lun(&target(path), LUN, &wwid(), self.size);
            }
        }
    }

    /// All trouble ends.
    fn heal_all(&mut self) {
        self.kernel.forget_faults();
        self.bury();
        self.release();
        for path in 0..PATHS {
            self.kernel.set_lun(&target(path), LUN, &wwid(), self.size);
            self.heal(path);
        }
        self.kernel
            .set_open_count(&crate::names::Names::default().map_name(VOLUME), 0);
    }

    /// The volume is staged with all paths, grows, and goes.
    async fn back_to_nothing(&mut self) -> Result<(), String> {
        let told = |error: &dyn std::error::Error| full(error);
        build(&self.engine, &self.kernel, &self.spec, &self.sessions, self.size).await?;
        self.engine.resize(&wwid(), CALL).await.map_err(|e| told(&e))?;
        let map = self.engine.find(&wwid()).await.map_err(|e| told(&e))?;
        let map = map.ok_or("staged again, and there is no map")?;
        let usable = map.paths().filter(|path| path.is_usable()).count();
        if usable != PATHS || map.paths().count() != PATHS || map.size_bytes != self.size {
            return Err(format!("staged again, the map is not whole: {map:?}"));
        }
        self.wanted = false;
        self.engine.remove(&wwid(), CALL).await.map_err(|e| told(&e))?;
        match self.kernel.maps().is_empty() {
            true => Ok(()),
            false => Err("a map is left".to_owned()),
        }
    }
}

/// What the plugin does to stage: each path that can be had, then the map.
async fn build(
    engine: &Engine,
    kernel: &SimKernel,
    spec: &MapSpec,
    sessions: &[u32],
    size: u64,
) -> Result<Map, String> {
    let mut paths = Vec::new();
    for session in sessions {
        paths.extend(reach(engine, kernel, *session, size).await);
    }
    engine
        .build(spec.clone(), paths)
        .await
        .map_err(|error| full(&error))
}

/// What the plugin does to get a path: a device that is something else, or unused and of another size, is made anew.
async fn reach(engine: &Engine, kernel: &SimKernel, session: u32, size: u64) -> Result<ProvenPath, String> {
    let (host, at) = (engine.host(), hctl(session));
    if let Some(disk) = scsi_device::find(&kernel.host(), &at) {
        let proven = engine.prove(at, &wwid(), CALL).await;
        let mismatch = matches!(proven, Err(ProveError::Mismatch { .. }));
        let stale = proven.is_ok() && disk.size_bytes != size;
        if (mismatch || stale) && disk.holders.is_empty() {
            scsi_device::delete(host, &disk).map_err(|error| error.to_string())?;
        }
    }
    scsi_device::scan(host, &at, CALL)
        .await
        .map_err(|error| full(&error))?;
    engine
        .prove(at, &wwid(), CALL)
        .await
        .map_err(|error| full(&error))
}
