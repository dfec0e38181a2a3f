//! The second half of NodeStageVolume: brings up paths, proves each, builds the map, mounts what is on it; and takes all of
//! that back after a refusal.
//!
//! It must never let a path into the map whose live identity is not the volume's.

use std::time::Duration;

use storagelink_multipath::{Map, MapSpec, ProvenPath, Wwid};

use super::{
    fault::Fault,
    journal::Entry,
    prepare::{Disk, Preparer, mount_request},
    remark::Remark,
    stage::{StageError, Work},
    transport::Attached,
    validate::Access,
    view::{self, Top},
};
use crate::{
    codes::chain,
    mount::{FsType, Request, filesystem, superblock::Superblock},
    publish_context::{ContextError, Portal},
};

/// How long the first path may take: a login with a retry, and a scan.
pub(super) const ATTACH: Duration = Duration::from_secs(45);
/// Time limit of asking every path for its size again.
const RESIZE: Duration = Duration::from_secs(30);
/// A file system that is this much smaller than its disk is grown when it is mounted: makers leave less unused.
const UNUSED: u64 = 64 << 20;

impl Work<'_> {
    /// Paths, map, file system. Returns the portals that are still missing.
    pub(super) async fn build_up(&self, entry: &mut Entry) -> Result<Vec<Portal>, StageError> {
        let volume = self.volume;
        let wwid = self.wwid()?;
        entry.single = None;
        let attached = self.node.transport.attach(&self.request.context, ATTACH).await;
        let Attached {
            paths: proven,
            missing,
        } = attached.map_err(|source| StageError::Transport { volume, source })?;
        for (portal, error) in &missing {
            tracing::warn!(volume.id = %volume, %portal, error, "path is missing, it is brought up in the background");
        }
        self.enough(&proven)?;
        self.remark(proven.len());
        let spec = MapSpec {
            volume: volume.to_string(),
            wwid: wwid.clone(),
            read_only: self.request.read_only(),
            policy: self.request.context.policy,
        };
        let map = self
            .node
            .engine
            .build(spec, proven)
            .await
            .map_err(|e| self.engine(Fault::build("build its map", e)))?;
        self.compare_selector(&map);
        self.node
            .compare_backstop(volume, self.request.context.policy.no_path_retry);
        let map = self.sized(map, &wwid).await?;
        if let Access::Mount { fs, .. } = self.request.capability.access {
            let disk = view::disk(&self.node.host, &map)
                .await
                .map_err(|e| self.mount(e))?;
            // After a restart of paths alone it is mounted already.
            if matches!(self.look(Some(&disk)).await?.at(self.staging), Top::Free) {
                self.mount_it(&disk, fs, entry).await?;
            }
        }
        entry.staged = true;
        entry.formatting = None;
        self.node.journal.put(volume, entry).await?;
        Ok(missing.into_iter().map(|(portal, _)| portal).collect())
    }

    /// Refuses with fewer paths than the class asks for.
    fn enough(&self, proven: &[ProvenPath]) -> Result<(), StageError> {
        let (found, wanted) = (proven.len(), self.request.context.policy.min_paths);
        if usize::try_from(wanted).is_ok_and(|wanted| found >= wanted) {
            return Ok(());
        }
        Err(StageError::FewPaths {
            volume: self.volume,
            found,
            wanted,
        })
    }

    /// A kernel without the path selector that the class asks for is no silent matter.
    fn compare_selector(&self, map: &Map) {
        let wanted = self.request.context.policy.selector.to_string();
        if map.selector != wanted {
            let (volume, is) = (self.volume, &map.selector);
            let text =
                format!("volume {volume}: this node's kernel has no path selector {wanted}: {is} is used");
            // An error: nobody listens.
            let _ = self.node.remarks.send(Remark::of_node("PathSelector", text));
        }
    }

    /// A volume that does not have all the paths that it could have, or that could only have one, is no silent matter.
    fn remark(&self, paths: usize) {
        let (volume, portals) = (self.volume, self.request.context.portals.len());
        let text = match portals {
            1 => format!(
                "volume {volume}: its storage system offers one portal only: when it fails, no other path is left"
            ),
            _ if paths < portals => format!(
                "volume {volume}: found {paths} of {portals} paths; the others are brought up in the background"
            ),
            _ => return,
        };
        // An error: nobody listens.
        let _ = self.node.remarks.send(Remark::of_node("FewPaths", text));
    }

    /// A map with the volume's size. A session that was there before may remember an older size.
    async fn sized(&self, map: Map, wwid: &Wwid) -> Result<Map, StageError> {
        let published = self.request.context.size_bytes;
        if map.size_bytes >= published {
            return Ok(map);
        }
        let resized = self.node.engine.resize(wwid, RESIZE).await;
        let actual = resized.map_err(|e| self.engine(Fault::build("ask its paths for their size", e)))?;
        if actual < published {
            return Err(StageError::TooSmall {
                volume: self.volume,
                actual,
                published,
            });
        }
        Ok(Map {
            size_bytes: actual,
            ..map
        })
    }

    pub(super) async fn mount_it(
        &self,
        disk: &Disk,
        fs: FsType,
        entry: &mut Entry,
    ) -> Result<(), StageError> {
        let Access::Mount { options, .. } = &self.request.capability.access else {
            return Ok(());
        };
        let read_only = self.request.read_only();
        let preparer = Preparer {
            block: self.node.host.block.clone(),
            programs: self.node.programs.as_ref(),
            journal: &self.node.journal,
            volume: self.volume,
            may_format: !self.request.context.adopted,
        };
        let found = preparer.prepare(disk, fs, read_only, entry).await?;
        self.node
            .mounter
            .make_directory(self.staging)
            .await
            .map_err(|e| self.mount(e))?;
        let request = mount_request(disk, found, options, read_only, self.staging.to_owned());
        self.mount_request(request).await?;
        if !read_only && found.size_bytes.saturating_add(UNUSED) <= disk.size {
            self.grow(disk, found).await;
        }
        Ok(())
    }

    async fn mount_request(&self, mut request: Request) -> Result<(), StageError> {
        let Err(error) = self.node.mounter.mount(request.clone(), self.guard.clone()).await else {
            return Ok(());
        };
        // XFS refuses a second file system of the same UUID: a clone of a volume that is mounted on this node too.
        let nouuid = request.fs == FsType::Xfs
            && error.errno() == Some(nix::libc::EINVAL)
            && !request.data.split(',').any(|o| o == "nouuid");
        if !nouuid {
            return Err(self.mount(error));
        }
        request.data = if request.data.is_empty() {
            "nouuid".to_owned()
        } else {
            format!("{},nouuid", request.data)
        };
        // The first refusal is the one to tell: without a twin the option changes nothing.
        self.node
            .mounter
            .mount(request, self.guard.clone())
            .await
            .map_err(|_| self.mount(error))
    }

    /// A volume made from a smaller one has a file system smaller than itself, and nobody else grows it. It is of use
    /// without that too.
    async fn grow(&self, disk: &Disk, found: Superblock) {
        let grown = filesystem::grow(self.node.programs.as_ref(), found.fs, &disk.node, self.staging).await;
        if let Err(error) = grown {
            tracing::warn!(volume.id = %self.volume, error = chain(&error), "cannot grow its file system to its size");
        }
    }

    /// After a refusal: nothing stays. What cannot be taken back is on record for the next stage or unstage.
    pub(super) async fn take_back(&self) {
        let found = self.node.held(self.volume).await;
        let entry = self.node.journal.get(self.volume).await;
        let done = match (found, entry) {
            (Ok(held), Ok(entry)) => self
                .node
                .tear_down(self.volume, held, entry.as_ref())
                .await
                .map_err(|e| chain(&e)),
            (Err(error), _) => Err(chain(&error)),
            (_, Err(error)) => Err(chain(&error)),
        };
        let done = match done {
            Ok(()) => self.node.journal.settle(self.volume).await.map_err(|e| chain(&e)),
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(volume.id = %self.volume, error, "a failed stage is not taken back entirely");
        }
    }

    /// The identity that every path must prove.
    pub(super) fn wwid(&self) -> Result<Wwid, StageError> {
        let wwid = &self.request.context.wwid;
        wwid.parse().map_err(|_| {
            StageError::Context(ContextError::Malformed {
                key: "wwid",
                value: wwid.clone(),
                expected: "an identity of the form naa.<hexadecimal digits>",
            })
        })
    }
}
