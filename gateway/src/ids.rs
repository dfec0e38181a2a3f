//! Ids: of volumes, given by callers; of serial numbers and WWIDs, derived from them.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// A volume id in the one form that is accepted: a UUID, lower case, hyphenated.
#[must_use]
pub fn is_volume_id(id: &str) -> bool {
    Uuid::try_parse(id).is_ok_and(|uuid| uuid.hyphenated().to_string() == id)
}

/// The unit serial number (VPD page 0x80) of a volume: a UUID by hash from the system's own identity and the volume id.
///
/// The identity of the system goes in so that two arrays never show the same WWID for volumes that clients happened to give the same id. A hash,
/// because LIO makes the WWID of the first 25 hexadecimal digits only: they must differ.
#[must_use]
pub fn serial(system: Uuid, volume: &str) -> String {
    let hash = Sha256::new()
        .chain_update(system.as_bytes())
        .chain_update(volume.as_bytes())
        .finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    Uuid::from_bytes(bytes).hyphenated().to_string()
}

/// The WWID that LIO shows for a serial number: NAA 6, company id 001405, the first 25 hexadecimal digits of the serial number, filled with zeros
/// (drivers/target/target_core_spc.c, spc_gen_naa_6h_vendor_specific).
#[must_use]
pub fn wwid(serial: &str) -> String {
    let digits: String = serial
        .chars()
        .filter(char::is_ascii_hexdigit)
        .map(|c| c.to_ascii_lowercase())
        .take(25)
        .collect();
    format!("naa.6001405{digits:0<25}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wwid_is_what_the_kernel_shows() {
        // Seen on Linux 6.1.
        assert_eq!(
            wwid("12345678-9abc-4def-8123-456789abcdef"),
            "naa.6001405123456789abc4def812345678"
        );
        assert_eq!(wwid("vol-2-xyz"), "naa.60014052000000000000000000000000");
    }

    #[test]
    fn serials_depend_on_system_and_volume() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(serial(a, "v"), serial(a, "v"));
        assert_ne!(serial(a, "v"), serial(b, "v"));
        assert_ne!(serial(a, "v"), serial(a, "w"));
        assert!(is_volume_id(&serial(a, "v")));
    }

    #[test]
    fn only_one_spelling_of_an_id_is_accepted() {
        assert!(is_volume_id("0b6a6b2e-6a0f-5d3c-9a51-6b0c7a1f2d3e"));
        for id in [
            "",
            "x",
            "0B6A6B2E-6A0F-5D3C-9A51-6B0C7A1F2D3E",
            "0b6a6b2e6a0f5d3c9a516b0c7a1f2d3e",
            "../../etc/passwd",
        ] {
            assert!(!is_volume_id(id), "{id}");
        }
    }
}
