//! What the driver counts and measures, by the names of `docs/metrics.md`.
//!
//! Labels are bounded: methods and codes are closed sets, volumes are those of this node. Nothing here comes from a volume's
//! data or a Secret. Paths are read from the kernel when somebody asks, never on a timer.

mod maps;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};
use storagelink_multipath::{Engine, Map};
use tokio::sync::watch;
use tonic::Code;

use crate::{codes::chain, node::tell::Told};
use maps::Maps;

/// Labels of a finished call.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Call {
    method: String,
    code: String,
}

/// Labels of a call's duration.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Method {
    method: String,
}

/// Labels of a volume on this node.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Volume {
    volume: String,
}

/// Labels of the paths of a volume on this node.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Paths {
    volume: String,
    state: &'static str,
}

/// The calls of one socket or of several.
#[derive(Clone, Debug)]
pub struct Calls {
    total: Family<Call, Counter>,
    seconds: Family<Method, Histogram>,
}

impl Calls {
    /// Counts a call that has ended. `path` is gRPC's, for example `/csi.v1.Node/NodeStageVolume`.
    pub fn ended(&self, path: &str, code: Code, took: Duration) {
        let method = match code {
            // Anybody who may use the socket can make up names.
            Code::Unimplemented => "other",
            _ => path.rsplit('/').next().unwrap_or_default(),
        }
        .to_owned();
        let code = format!("{code:?}");
        self.total
            .get_or_create(&Call {
                method: method.clone(),
                code,
            })
            .inc();
        self.seconds
            .get_or_create(&Method { method })
            .observe(took.as_secs_f64());
    }
}

/// The volumes and paths of a node, as the kernel has them when somebody asks.
#[derive(Clone)]
struct Node {
    engine: Engine,
    told: Told,
    paths: Family<Paths, Gauge>,
    failures: Family<Volume, Gauge>,
    volumes: Gauge,
    ended: Counter,
}

impl Node {
    /// `singles`: volumes without a map.
    fn show(&self, maps: &[Map], singles: usize) {
        self.paths.clear();
        self.failures.clear();
        self.volumes
            .set(i64::try_from(maps.len() + singles).unwrap_or(i64::MAX));
        self.ended
            .inner()
            .store(self.engine.connections_ended(), Ordering::Relaxed);
        for map in maps {
            let (mut usable, mut failed, mut failures) = (0, 0, 0);
            for path in map.paths() {
                *if path.is_usable() {
                    &mut usable
                } else {
                    &mut failed
                } += 1;
                failures += i64::from(path.fail_count);
            }
            for (state, number) in [("usable", usable), ("failed", failed)] {
                let labels = Paths {
                    volume: map.volume.clone(),
                    state,
                };
                self.paths.get_or_create(&labels).set(number);
            }
            let labels = Volume {
                volume: map.volume.clone(),
            };
            self.failures.get_or_create(&labels).set(failures);
        }
    }
}

/// Everything that `/metrics` shows.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    calls: Calls,
    node: Option<Node>,
    /// One reader at a time: two would show each other's half.
    reading: Arc<tokio::sync::Mutex<()>>,
}

impl Metrics {
    /// Those of a controller.
    #[must_use]
    pub fn of_controller() -> Self {
        Self::new(None)
    }

    /// Those of a node.
    #[must_use]
    pub fn of_node(engine: Engine, told: Told, multipathing: watch::Receiver<bool>) -> Self {
        let maps = Maps {
            ledger: engine.ledger().clone(),
            told,
            multipathing,
        };
        Self::new(Some((engine, maps)))
    }

    fn new(engine: Option<(Engine, Maps)>) -> Self {
        let mut registry = Registry::with_prefix("storagelink");
        let build = Info::new(vec![("version", crate::DRIVER_VERSION)]);
        registry.register("build", "The version that runs", build);
        let calls = Calls {
            total: Family::default(),
            // 10 ms to 82 s.
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.01, 2.0, 14))),
        };
        registry.register(
            "csi_calls",
            "CSI calls that ended, by their code",
            calls.total.clone(),
        );
        registry.register_with_unit(
            "csi_call_duration",
            "How long CSI calls took",
            Unit::Seconds,
            calls.seconds.clone(),
        );
        let node = engine.map(|(engine, maps)| {
            let told = maps.told.clone();
            registry.register_collector(Box::new(maps));
            let node = Node {
                engine,
                told,
                paths: Family::default(),
                failures: Family::default(),
                volumes: Gauge::default(),
                ended: Counter::default(),
            };
            registry.register("volumes", "Volumes staged on this node", node.volumes.clone());
            registry.register("paths", "Paths of a volume, by their state", node.paths.clone());
            registry.register(
                "path_failures",
                "How often the multipath map of a volume failed a path since its table was loaded",
                node.failures.clone(),
            );
            registry.register(
                "connections_ended",
                "Connections to portals that did not answer, ended so that other paths carry their I/O",
                node.ended.clone(),
            );
            node
        });
        Self {
            registry: Arc::new(registry),
            calls,
            node,
            reading: Arc::default(),
        }
    }

    /// For [`crate::server::Services::counted`].
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// OpenMetrics text of now.
    ///
    /// # Errors
    /// The text cannot be written.
    pub async fn text(&self) -> Result<String, std::fmt::Error> {
        let _one = self.reading.lock().await;
        if let Some(node) = &self.node {
            match node.engine.maps().await {
                Ok(maps) => {
                    let told = node.told.volumes();
                    let singles = told.iter().filter(|volume| volume.disk.is_some()).count();
                    node.show(&maps, singles);
                }
                Err(error) => tracing::warn!(error = chain(&error), "cannot read the maps for the metrics"),
            }
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
