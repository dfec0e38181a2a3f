//! What became of the maps and paths of this node, as metrics: read from the ledger when somebody asks, so that a series ends with its volume.
//!
//! A path is named by its portal, which stays the same when its device comes anew; one without a portal by its SCSI address.

use std::{collections::HashMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Unit,
};
use storagelink_multipath::engine::{Ledger, MapRecord, MapState, PathRecord, STALL_BOUNDS};
use tokio::sync::watch;

use crate::node::tell::Told;

/// Everything that is not a gauge of the kernel's state.
pub(super) struct Maps {
    pub(super) ledger: Ledger,
    pub(super) told: Told,
    pub(super) multipathing: watch::Receiver<bool>,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Maps")
    }
}

/// Labels of a volume.
fn of_volume(map: &MapRecord) -> [(&'static str, &str); 1] {
    [("volume", map.volume.as_str())]
}

/// Labels of a path.
fn of_path<'a>(volume: &'a str, path: &'a str) -> [(&'static str, &'a str); 2] {
    [("volume", volume), ("path", path)]
}

/// There are no exemplars here; the encoder wants to know of which kind.
type NoExemplar = Exemplar<[(&'static str, &'static str); 0], f64>;

/// No exemplar of a counter.
type No<'a> = Option<&'a NoExemplar>;

type Result = std::result::Result<(), fmt::Error>;

/// Name, help and number of one metric of a path.
type PathMetric = (&'static str, &'static str, fn(&PathRecord) -> u64);

const PATHS: [PathMetric; 4] = [
    ("path_losses", "How often a path was lost", |path| path.losses),
    (
        "path_reinstatements",
        "How often a path was put back to work",
        |path| path.reinstatements,
    ),
    ("path_checks", "How often a lost path was checked", |path| {
        path.checks
    }),
    (
        "path_io_failures",
        "How often the kernel failed a path, over all tables of its map",
        |path| path.failures,
    ),
];

fn count<S: EncodeLabelSet>(metric: &mut MetricEncoder<'_>, labels: &S, number: u64) -> Result {
    let none: No<'_> = None;
    metric.encode_family(labels)?.encode_counter(&number, none)
}

impl Collector for Maps {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::result::Result<(), fmt::Error> {
        let maps = self.ledger.maps();
        self.settings(&mut encoder)?;
        self.states(&mut encoder, &maps)?;
        for (name, help, number) in PATHS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for map in &maps {
                for path in &map.paths {
                    let labels = of_path(&map.volume, path.label());
                    count(&mut metric, &labels, number(path))?;
                }
            }
        }
        let help = "How often a path of a volume led to another disk";
        let mut metric = encoder.encode_descriptor("identity_mismatches", help, None, MetricType::Counter)?;
        for map in &maps {
            count(&mut metric, &of_volume(map), map.mismatches)?;
        }
        times(&mut encoder, &maps)
    }
}

impl Maps {
    fn settings(&self, encoder: &mut DescriptorEncoder<'_>) -> Result {
        let on = i64::from(*self.multipathing.borrow());
        let help = "1 when volumes are staged with multipathing, 0 without";
        encoder
            .encode_descriptor("multipathing", help, None, MetricType::Gauge)?
            .encode_gauge(&on)?;
        let volumes = self.told.volumes();
        let pending = volumes.iter().filter(|volume| volume.pending_restage).count();
        let help = "Volumes that are staged otherwise than the node's setting says";
        encoder
            .encode_descriptor("volumes_pending_restage", help, None, MetricType::Gauge)?
            .encode_gauge(&i64::try_from(pending).unwrap_or(i64::MAX))?;
        let help = "1 when the only path of a volume without multipathing is usable, 0 when not";
        let mut metric = encoder.encode_descriptor("single_path_usable", help, None, MetricType::Gauge)?;
        for volume in &volumes {
            let Some(disk) = &volume.disk else { continue };
            let path = if disk.portal.is_empty() {
                &disk.hctl
            } else {
                &disk.portal
            };
            let labels = of_path(&volume.volume, path);
            metric
                .encode_family(&labels)?
                .encode_gauge(&i64::from(disk.state == "running"))?;
        }
        Ok(())
    }

    fn states(&self, encoder: &mut DescriptorEncoder<'_>, maps: &[MapRecord]) -> Result {
        let help = "1 for the state that the map of a volume is in, 0 for the others";
        let mut metric = encoder.encode_descriptor("map_state", help, None, MetricType::Gauge)?;
        for map in maps {
            for state in MapState::ALL {
                let labels = [("volume", map.volume.as_str()), ("state", state.name())];
                let is = i64::from(map.state == state);
                metric.encode_family(&labels)?.encode_gauge(&is)?;
            }
        }
        let mut metric = encoder.encode_descriptor(
            "path_usable",
            "1 when a path carries I/O",
            None,
            MetricType::Gauge,
        )?;
        for map in maps {
            for path in &map.paths {
                let labels = of_path(&map.volume, path.label());
                metric
                    .encode_family(&labels)?
                    .encode_gauge(&i64::from(path.usable))?;
            }
        }
        Ok(())
    }
}

fn times(encoder: &mut DescriptorEncoder<'_>, maps: &[MapRecord]) -> Result {
    let help = "How long the map of a volume held I/O without a usable path";
    let unit = Unit::Seconds;
    let mut metric = encoder.encode_descriptor("queueing", help, Some(&unit), MetricType::Counter)?;
    for map in maps {
        let labels = of_volume(map);
        let none: No<'_> = None;
        metric
            .encode_family(&labels)?
            .encode_counter(&map.held.as_secs_f64(), none)?;
    }
    let help = "Times without a usable path that have ended";
    let mut metric = encoder.encode_descriptor("no_path", help, Some(&unit), MetricType::Histogram)?;
    for map in maps {
        let labels = of_volume(map);
        let bounds = STALL_BOUNDS.into_iter().chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(map.stalls).collect();
        let exemplars: Option<&HashMap<usize, NoExemplar>> = None;
        metric.encode_family(&labels)?.encode_histogram(
            map.stalled.as_secs_f64(),
            map.stalls.iter().sum(),
            &buckets,
            exemplars,
        )?;
    }
    Ok(())
}
