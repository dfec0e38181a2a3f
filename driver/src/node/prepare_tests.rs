//! What is mounted with which options; the decisions about formatting are in `super::super::tests`, on a whole node.

use super::*;

#[test]
fn a_read_only_mount_never_replays() {
    let disk = Disk {
        devno: DevNo { major: 253, minor: 1 },
        name: "dm-1".into(),
        map: "storagelink-1".into(),
        node: "/dev/dm-1".into(),
        size: 1 << 30,
    };
    let options = MountOptions {
        data: vec!["discard".into()],
        ..MountOptions::default()
    };
    for (fs, needs_replay, read_only, data) in [
        (FsType::Ext4, true, false, "discard"),
        (FsType::Ext4, false, true, "discard"),
        (FsType::Ext4, true, true, "discard,noload"),
        (FsType::Xfs, false, true, "discard,norecovery"),
        (FsType::Xfs, false, false, "discard"),
        (FsType::Btrfs, true, true, "discard,rescue=nologreplay"),
        (FsType::Btrfs, false, true, "discard"),
    ] {
        let found = Superblock {
            fs,
            needs_check: false,
            needs_replay,
            size_bytes: 0,
        };
        let request = mount_request(&disk, found, &options, read_only, "/s".into());
        assert_eq!(request.data, data, "{fs} {needs_replay} {read_only}");
        assert_eq!(request.flags.contains(MsFlags::MS_RDONLY), read_only);
    }
}
