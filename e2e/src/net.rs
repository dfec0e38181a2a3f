//! The lab's networks: two SAN fabrics and the management network, as bridges in the lab's own network namespace.
//!
//! Addresses are of 198.18.0.0/15 (RFC 2544, for tests) and never leave the namespace.

use anyhow::Result;

use crate::{agent::MACHINE, programs::output};

/// A network guests are attached to; its number is the third byte of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fabric {
    /// SAN fabric a, 198.18.0.0/24.
    A,
    /// SAN fabric b, 198.18.1.0/24.
    B,
    /// Management, 198.18.2.0/24.
    Management,
}

impl Fabric {
    /// All of them, in the order of a guest's interfaces.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::Management];

    /// Name of its bridge.
    #[must_use]
    pub fn bridge(self) -> &'static str {
        match self {
            Self::A => "sana",
            Self::B => "sanb",
            Self::Management => "mgmt",
        }
    }

    /// Name of a guest's tap on it; at most 15 bytes (IFNAMSIZ) for guest names up to 12.
    #[must_use]
    pub fn tap(self, guest: &str) -> String {
        let letter = match self {
            Self::A => 'a',
            Self::B => 'b',
            Self::Management => 'm',
        };
        format!("t{letter}-{guest}")
    }

    /// Third byte of its addresses.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::A => 0,
            Self::B => 1,
            Self::Management => 2,
        }
    }
}

/// Makes the bridges and the machine's management address, once per process.
pub async fn up() -> Result<()> {
    static UP: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    UP.get_or_try_init(make).await.map(drop)
}

async fn make() -> Result<()> {
    output(&["ip", "link", "set", "lo", "up"]).await?;
    for fabric in Fabric::ALL {
        output(&["ip", "link", "add", fabric.bridge(), "type", "bridge"]).await?;
        output(&["ip", "link", "set", fabric.bridge(), "up"]).await?;
    }
    let bridge = Fabric::Management.bridge();
    output(&["ip", "addr", "add", &format!("{MACHINE}/24"), "dev", bridge])
        .await
        .map(drop)
}

/// Makes a guest's taps and plugs them in.
pub async fn attach(guest: &str) -> Result<()> {
    for fabric in Fabric::ALL {
        let tap = fabric.tap(guest);
        output(&["ip", "tuntap", "add", &tap, "mode", "tap"]).await?;
        output(&["ip", "link", "set", &tap, "master", fabric.bridge(), "up"]).await?;
    }
    Ok(())
}

/// Removes a guest's taps, so that another lab may have a guest of that name.
pub async fn detach(guest: &str) -> Result<()> {
    for fabric in Fabric::ALL {
        output(&["ip", "link", "delete", &fabric.tap(guest)]).await?;
    }
    Ok(())
}

/// Unplugs a guest from a fabric; the guest sees no carrier loss, packets just vanish.
pub async fn cut(guest: &str, fabric: Fabric) -> Result<()> {
    output(&["ip", "link", "set", &fabric.tap(guest), "nomaster"])
        .await
        .map(drop)
}

/// Plugs a guest in again.
pub async fn heal(guest: &str, fabric: Fabric) -> Result<()> {
    output(&["ip", "link", "set", &fabric.tap(guest), "master", fabric.bridge()])
        .await
        .map(drop)
}
