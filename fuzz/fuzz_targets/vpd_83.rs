//! VPD page 0x83: every identity that is found is one that can be written and read again, and fits a device-mapper uuid.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storagelink_multipath::{
    names::Names,
    wwid::{Wwid, parse_vpd_83, target_port_group},
};

fuzz_target!(|page: &[u8]| {
    let Ok(found) = parse_vpd_83(page) else {
        assert_eq!(
            target_port_group(page),
            None,
            "a group of a page that is not understood"
        );
        return;
    };
    let names = Names::default();
    for wwid in found {
        assert_eq!(wwid.as_str().parse::<Wwid>().as_ref(), Ok(&wwid));
        let uuid = names.map_uuid(&wwid);
        // DM_UUID_LEN of include/uapi/linux/dm-ioctl.h, with the terminator.
        assert!(uuid.len() < 129, "{uuid}");
        assert_eq!(names.wwid_of(&uuid), Some(wwid));
    }
});
