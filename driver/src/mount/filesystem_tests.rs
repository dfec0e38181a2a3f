use super::*;
use crate::programs::sim::{SimPrograms, exits};

#[test]
fn generic_options_become_flags_and_the_rest_is_the_file_systems() {
    let options = [
        "noatime,nosuid",
        "discard",
        "data=ordered",
        "ro",
        "suid",
        "_netdev",
        "x-systemd.automount",
    ];
    let parsed = MountOptions::parse(&options).expect("allowed");
    assert_eq!(parsed.flags, MsFlags::MS_NOATIME);
    assert!(parsed.read_only);
    assert_eq!(parsed.data, ["discard", "data=ordered"]);
    assert_eq!(
        MountOptions::parse(&["ro", "rw"]).expect("allowed"),
        MountOptions::default()
    );
}

#[test]
fn options_that_reach_past_the_volume_are_refused_by_name_only() {
    for option in [
        "device=/dev/sda",
        "logdev=/dev/sda",
        "noatime,remount",
        "journal_path=/dev/sda",
        "bind",
        "loop=x",
    ] {
        let error = MountOptions::parse(&[option]).expect_err(option);
        assert!(matches!(error, OptionError::Refused(_)), "{option}");
        assert!(!error.to_string().contains("/dev"), "{error}");
    }
    assert_eq!(
        MountOptions::parse(&["ok", "a,,b"]),
        Err(OptionError::Malformed(2))
    );
    assert_eq!(MountOptions::parse(&["a\nb"]), Err(OptionError::Malformed(1)));
    assert_eq!(
        MountOptions::parse(&["x".repeat(4001)]),
        Err(OptionError::TooLong(4002))
    );
}

#[test]
fn only_three_file_systems_are_known() {
    assert_eq!("".parse(), Ok(FsType::Ext4));
    assert_eq!("btrfs".parse(), Ok(FsType::Btrfs));
    for name in ["ntfs", "EXT4", "ext4 "] {
        assert!(name.parse::<FsType>().is_err(), "{name}");
    }
}

#[tokio::test]
async fn blkid_says_nothing_something_or_that_it_could_not_look() {
    let sim = SimPrograms::new();
    let node = Path::new("/dev/dm-3");
    for (code, out, expected) in [
        (2, "", Some(None)),
        (
            0,
            "DEVNAME=/dev/dm-3\nUUID=1\nTYPE=crypto_LUKS\n",
            Some(Some("crypto_LUKS".to_owned())),
        ),
        (0, "PTTYPE=gpt\n", Some(Some("gpt".to_owned()))),
        (8, "", Some(Some("signatures of more than one format".to_owned()))),
        (2, "error: /dev/dm-3: No such device", None),
        (4, "usage", None),
    ] {
        sim.install(Program::Blkid, move |_| exits(Program::Blkid, code, out));
        assert_eq!(signature(&sim, node).await.ok(), expected, "{code} {out}");
    }
}

#[tokio::test]
async fn the_check_tells_repaired_from_damaged_from_broken() {
    let sim = SimPrograms::new();
    let node = Path::new("/dev/dm-3");
    for (code, ok, damaged) in [
        (0, true, false),
        (1, true, false),
        (4, false, true),
        (12, false, true),
        (8, false, false),
    ] {
        sim.install(Program::E2fsck, move |_| exits(Program::E2fsck, code, "said"));
        let answer = check(&sim, node).await;
        assert_eq!(answer.is_ok(), ok, "{code}");
        assert_eq!(matches!(answer, Err(FsError::Damaged { .. })), damaged, "{code}");
    }
}
