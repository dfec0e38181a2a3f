//! A second target port group over a volume's LUN, in the kernel's target of the array guest.
//!
//! Made by hand beside storagelinkd, which offers one portal group; whoever makes it removes it before the volume is unmapped.

use std::collections::HashMap;

use anyhow::{Context as _, Result};

use super::array;
use crate::{guest::Guest, net::Fabric};

/// Port of the second portal group's portal, on fabric b.
const PORT: u16 = 3261;
/// The group that every LUN is in.
pub const FIRST: &str = "default_tg_pt_gp";
/// The group of the second portal group.
pub const SECOND: &str = "lab_second";

/// Codes of SPC-6 table 308, as configfs takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Active/optimized.
    Optimized = 0,
    /// Standby.
    Standby = 2,
}

/// The LUN's device on the array, and what leads to it.
#[derive(Debug)]
pub struct PortGroups {
    device: String,
    lun: String,
    initiator: String,
}

impl PortGroups {
    /// Gives the LUN of this publish context a second way for this initiator, in a target port group of its own.
    pub async fn make(target: &Guest, context: &HashMap<String, String>, initiator: &str) -> Result<Self> {
        let lun = context
            .get("lun")
            .context("the publish context has no lun")?
            .clone();
        let directory = directory();
        let portal = portals(target).1;
        let script = format!(
            "set -e; device=$(readlink -f $(find {directory}/tpgt_1/lun/lun_{lun} -maxdepth 1 -type l)); \
             mkdir $device/alua/{SECOND}; echo 7 > $device/alua/{SECOND}/tg_pt_gp_id; \
             mkdir {directory}/tpgt_2; cd {directory}/tpgt_2; echo 0 > attrib/authentication; mkdir np/{portal}; \
             mkdir lun/lun_{lun}; ln -s $device lun/lun_{lun}/storagelink; echo {SECOND} > lun/lun_{lun}/alua_tg_pt_gp; \
             mkdir acls/{initiator} acls/{initiator}/lun_{lun}; \
             ln -s $PWD/lun/lun_{lun} acls/{initiator}/lun_{lun}/storagelink; \
             echo 1 > enable; echo $device"
        );
        let device = target.shell(&script).await.context("a second portal group")?;
        Ok(Self {
            device: device.trim().to_owned(),
            lun,
            initiator: initiator.to_owned(),
        })
    }

    /// Takes the second way away again; the first is optimized then.
    pub async fn remove(&self, target: &Guest) -> Result<()> {
        let (directory, device, lun, initiator) = (directory(), &self.device, &self.lun, &self.initiator);
        let script = format!(
            "set -e; cd {directory}/tpgt_2; echo 0 > enable; rm acls/{initiator}/lun_{lun}/storagelink; \
             rmdir acls/{initiator}/lun_{lun} acls/{initiator}; \
             rm lun/lun_{lun}/storagelink; rmdir lun/lun_{lun} np/*; cd ..; rmdir tpgt_2; rmdir {device}/alua/{SECOND}; \
             echo 0 > {device}/alua/{FIRST}/alua_access_state"
        );
        let removed = target.shell(&script).await;
        removed.map(drop).context("remove the second portal group")
    }

    /// Has the array change a group's state by itself.
    pub async fn set(&self, target: &Guest, group: &str, state: State) -> Result<()> {
        let script = format!(
            "echo {} > {}/alua/{group}/alua_access_state",
            state as u8, self.device
        );
        target.shell(&script).await.map(drop)
    }

    /// The code of a group's state.
    pub async fn get(&self, target: &Guest, group: &str) -> Result<u8> {
        let script = format!("cat {}/alua/{group}/alua_access_state", self.device);
        let text = target.shell(&script).await?;
        text.trim()
            .parse()
            .with_context(|| format!("{text:?} is no state"))
    }
}

/// Address and port of the first group's portal on fabric a, and of the second one's on fabric b.
#[must_use]
pub fn portals(target: &Guest) -> (String, String) {
    (
        format!("{}:3260", target.address(Fabric::A)),
        format!("{}:{PORT}", target.address(Fabric::B)),
    )
}

/// `portals` of a publish context that leads to one path of each group.
#[must_use]
pub fn context_portals(target: &Guest) -> String {
    let (a, b) = portals(target);
    format!("{a},1,{name} {b},2,{name}", name = array::TARGET)
}

fn directory() -> String {
    format!("/sys/kernel/config/target/iscsi/{}", array::TARGET)
}
