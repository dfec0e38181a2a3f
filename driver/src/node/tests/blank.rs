//! A volume that is not blank is never formatted, whatever is on it.

use proptest::prelude::*;

use super::*;
use crate::mount::blank::places;

#[tokio::test]
async fn what_is_not_blank_is_refused_by_name_and_not_changed() {
    for (offset, data, text) in [
        (0, &b"LUKS\xba\xbe"[..], "crypto_LUKS"),
        (SIZE - 512, b"EFI PART", "data at byte"),
        (0, b"XFSB", "holds xfs"),
        (5, b"x", "data at byte 5"),
    ] {
        let lab = Lab::new();
        lab.content.write(WWID, offset, data);
        let before = lab.content.snapshot(WWID);
        assert_eq!(code(lab.stage(ext4()).await, text), Code::FailedPrecondition);
        assert_eq!(lab.content.snapshot(WWID), before, "{text}");
        lab.assert_clean("after the refusal");
    }
}

#[tokio::test]
async fn what_only_blkid_sees_is_refused_too_and_so_is_a_blkid_that_cannot_look() {
    let lab = Lab::new();
    lab.program(Program::Blkid, |_, _| {
        exits(Program::Blkid, 0, "TYPE=zfs_member\n")
    });
    assert_eq!(
        code(lab.stage(ext4()).await, "zfs_member"),
        Code::FailedPrecondition
    );
    lab.program(Program::Blkid, |_, _| exits(Program::Blkid, 4, "usage"));
    assert_eq!(code(lab.stage(ext4()).await, "blkid"), Code::Internal);
    lab.programs.uninstall(Program::Blkid);
    assert_eq!(code(lab.stage(ext4()).await, "util-linux"), Code::Internal);
    assert!(lab.content.snapshot(WWID).is_empty());
    lab.assert_clean("after the refusals");
}

#[tokio::test]
async fn an_adopted_lun_is_never_formatted_and_mounted_when_it_has_what_is_asked_for() {
    let lab = Lab::new();
    let adopted = |r: &mut NodeStageVolumeRequest| {
        drop(r.publish_context.insert("adopted".into(), "true".into()));
    };
    assert_eq!(
        code(lab.stage_with(ext4(), adopted).await, "never formatted"),
        Code::FailedPrecondition
    );
    assert!(lab.content.snapshot(WWID).is_empty());
    lab.assert_clean("after the refusal");
    lab.content
        .write(WWID, 0, &superblock::sample(FsType::Ext4, SIZE));
    lab.stage_with(ext4(), adopted).await.expect("stages");
    lab.unstage().await.expect("unstages");
}

#[tokio::test]
async fn an_old_or_foreign_record_of_a_format_is_no_permission() {
    let lab = Lab::new();
    lab.content.write(WWID, 4096, b"somebody's data");
    let record = lab.state.path().join("volumes").join(format!("{VOLUME}.json"));
    for (wwid, age) in [(WWID, 7200), (OTHER, 0)] {
        let mut publish_context = context();
        publish_context.insert("wwid".into(), wwid.into());
        let entry = super::super::journal::Entry {
            single: None,
            volume_id: VOLUME.into(),
            staging_path: STAGING.into(),
            access: "ext4".into(),
            publish_context,
            staged: false,
            formatting: Some(super::super::journal::now() - age),
        };
        std::fs::write(&record, serde_json::to_vec(&entry).unwrap()).unwrap();
        assert_eq!(
            code(lab.stage(ext4()).await, "is not blank"),
            Code::FailedPrecondition,
            "{wwid} {age}"
        );
    }
    lab.stage(block(Mode::SingleNodeWriter)).await.expect("stages");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn bytes_anywhere_in_the_places_looked_at_survive(
        spots in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1u8..), 1..4),
        fs in 0usize..3,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let lab = Lab::new();
            let size = 16 * MIB + 512;
            lab.kernel.set_lun(TARGET, LUN, &WWID.parse().unwrap(), size);
            let places = places(size);
            for (place, inside, byte) in spots {
                let place = &places[place.index(places.len())];
                let at = place.start + inside.index(usize::try_from(place.end - place.start).unwrap()) as u64;
                lab.content.write(WWID, at, &[byte]);
            }
            let before = lab.content.snapshot(WWID);
            let wanted = mounted(FsType::ALL[fs].name(), Mode::SingleNodeWriter);
            let status = lab.stage(wanted).await.expect_err("not blank");
            assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
            assert_eq!(lab.content.snapshot(WWID), before);
            lab.assert_clean("after the refusal");
        });
    }
}
