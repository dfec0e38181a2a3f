//! The identity of a logical unit: designators of VPD page 0x83 and their text form.
//!
//! Pure. Owns which designators count as identity (association "logical unit" only) and how Linux spells them. Never falls back to
//! a designator of a target port, and never to a serial number.

use std::{fmt, str::FromStr};

/// A logical unit's identity as Linux spells it in sysfs: `naa.…`, `eui.…` or `t10.…`, hexadecimal digits in lower case.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Wwid(String);

/// Text that is not an identity.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is not a WWID: allowed are naa. with 16 or 32 hexadecimal digits, eui. with 16, 24 or 32, and t10. with printable text"
)]
pub struct WwidError(pub String);

impl Wwid {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Wwid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Wwid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Wwid {
    type Err = WwidError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = || WwidError(s.chars().take(160).collect());
        let hex = |t: &str, lengths: &[usize]| {
            (lengths.contains(&t.len()) && t.bytes().all(|b| b.is_ascii_hexdigit()))
                .then(|| t.to_ascii_lowercase())
        };
        let (kind, rest) = s.split_once('.').ok_or_else(bad)?;
        match kind {
            // NAA identifiers are 8 bytes, NAA 6 is 16 (SPC-6 7.7.6.6).
            "naa" => hex(rest, &[16, 32]).map(|h| Self(format!("naa.{h}"))),
            // EUI-64 identifiers are 8, 12 or 16 bytes (SPC-6 7.7.6.5).
            "eui" => hex(rest, &[16, 24, 32]).map(|h| Self(format!("eui.{h}"))),
            // A dm uuid is at most 128 bytes with its terminator, and holds our prefix too.
            "t10" => (1..=100)
                .contains(&rest.len())
                .then(|| {
                    rest.bytes()
                        .all(|b| b.is_ascii_graphic() && b != b'/')
                        .then(|| Self(format!("t10.{rest}")))
                })
                .flatten(),
            _ => None,
        }
        .ok_or_else(bad)
    }
}

/// A VPD page 0x83 that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VpdError {
    /// Shorter than its own header or lengths say.
    #[error("VPD page 0x83 is cut short: {0} bytes")]
    Truncated(usize),
    /// The device answered with another page.
    #[error("the device answered with VPD page {0:#04x} instead of 0x83")]
    WrongPage(u8),
}

/// One designator of a VPD page 0x83 (SPC-6 7.7.6.1).
struct Designator<'a> {
    code_set: u8,
    association: u8,
    kind: u8,
    content: &'a [u8],
}

/// All designators in the order of the page; a page that is cut short is an error.
fn designators(page: &[u8]) -> Result<Vec<Designator<'_>>, VpdError> {
    let truncated = || VpdError::Truncated(page.len());
    if page.len() < 4 {
        return Err(truncated());
    }
    if page[1] != 0x83 {
        return Err(VpdError::WrongPage(page[1]));
    }
    let length = usize::from(u16::from_be_bytes([page[2], page[3]]));
    let mut rest = page.get(4..4 + length).ok_or_else(truncated)?;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let [code, kind, _, length, ..] = *rest else {
            return Err(truncated());
        };
        let content = rest.get(4..4 + usize::from(length)).ok_or_else(truncated)?;
        rest = &rest[4 + usize::from(length)..];
        found.push(Designator {
            code_set: code & 0x0f,
            association: kind >> 4 & 0x3,
            kind: kind & 0x0f,
            content,
        });
    }
    Ok(found)
}

/// All identities of the logical unit in a VPD page 0x83 (SPC-6 7.7.6), in the order of the page.
///
/// Unknown designator types and those of target ports are passed over; a page that is cut short is an error.
pub fn parse_vpd_83(page: &[u8]) -> Result<Vec<Wwid>, VpdError> {
    let mut found = Vec::new();
    // Association 00b: the addressed logical unit.
    for designator in designators(page)?.into_iter().filter(|d| d.association == 0) {
        let content = designator.content;
        let text = match (designator.kind, designator.code_set) {
            (0x3, 0x1) => format!("naa.{}", hex(content)),
            (0x2, 0x1) => format!("eui.{}", hex(content)),
            (0x1, _) => format!("t10.{}", t10(content)),
            // SCSI name string: the forms that carry an identifier (SPC-6 7.7.6.11).
            (0x8, 0x3) => String::from_utf8_lossy(content)
                .trim_end_matches(['\0', ' '])
                .to_owned(),
            _ => continue,
        };
        if let Ok(wwid) = text.parse::<Wwid>()
            && !found.contains(&wwid)
        {
            found.push(wwid);
        }
    }
    Ok(found)
}

/// The target port group of the port that answered with this VPD page 0x83 (SPC-6 7.7.6.8): designator type 5h of association 01b, the group
/// in its bytes 2 and 3. `None` where the device names none.
#[must_use]
pub fn target_port_group(page: &[u8]) -> Option<u16> {
    let found = designators(page).ok()?;
    let group = found.iter().find(|d| d.association == 1 && d.kind == 0x5)?;
    match *group.content {
        [_, _, high, low] => Some(u16::from_be_bytes([high, low])),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// T10 vendor identification: blanks become underscores so that the text is one word.
fn t10(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches(['\0', ' '])
        .replace(' ', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A page 0x83 of these (code set, type byte, designator) entries.
    fn page(entries: &[(u8, u8, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (code, kind, designator) in entries {
            body.extend([*code, *kind, 0, u8::try_from(designator.len()).unwrap()]);
            body.extend(*designator);
        }
        let mut page = vec![0, 0x83];
        page.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        page.extend(body);
        page
    }

    const NAA6: [u8; 16] = [
        0x60, 1, 0x40, 5, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0x4d, 0xef, 0x81, 0x23, 0x45, 0x67,
    ];

    #[test]
    fn the_units_identities_are_found_and_the_ports_are_not() {
        let page = page(&[
            (0x1, 0x3, &NAA6),
            (0x2, 0x1, b"LIO-ORG disk one"),
            (0x1, 0x13, &[0x50, 1, 2, 3, 4, 5, 6, 7]),
            (0x1, 0x14, &[0, 0, 0, 1]),
            (0x1, 0x15, &[0, 0, 0x12, 0x34]),
            (0x3, 0x8, b"eui.0123456789ABCDEF\0\0"),
        ]);
        let found: Vec<String> = parse_vpd_83(&page)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        let naa = format!("naa.{}", hex(&NAA6));
        assert_eq!(
            found,
            [naa.as_str(), "t10.LIO-ORG_disk_one", "eui.0123456789abcdef"]
        );
        assert_eq!(target_port_group(&page), Some(0x1234));
    }

    #[test]
    fn cut_pages_and_other_pages_are_errors() {
        let whole = page(&[(0x1, 0x3, &NAA6)]);
        for length in 0..whole.len() {
            assert!(parse_vpd_83(&whole[..length]).is_err(), "{length}");
        }
        assert_eq!(parse_vpd_83(&[0, 0x80, 0, 0]), Err(VpdError::WrongPage(0x80)));
        assert_eq!(parse_vpd_83(&[0, 0x83, 0, 0]), Ok(vec![]));
        assert_eq!(target_port_group(&whole), None);
    }

    #[test]
    fn refuses_what_is_not_an_identity() {
        for text in [
            "",
            "naa.",
            "naa.12",
            "naa.600140512345678",
            "naa.g0014051234567890",
            "mpath-3600",
            "eui.12",
            "t10.",
            "t10.a/b",
            "x.y",
        ] {
            assert!(text.parse::<Wwid>().is_err(), "{text}");
        }
        assert_eq!(
            "naa.600140512345678A".parse::<Wwid>().unwrap().as_str(),
            "naa.600140512345678a"
        );
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_vpd_83(&bytes);
            let mut page = vec![0, 0x83];
            page.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
            page.extend(bytes);
            let _ = (parse_vpd_83(&page), target_port_group(&page));
        }

        #[test]
        fn an_naa_round_trips(bytes in proptest::array::uniform16(any::<u8>())) {
            let found = parse_vpd_83(&page(&[(0x1, 0x3, &bytes)])).unwrap();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].to_string().parse::<Wwid>().unwrap(), found[0].clone());
        }
    }
}
