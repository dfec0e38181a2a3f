//! Round trips of every id, and that no second spelling of one is accepted.

use proptest::prelude::*;

use super::*;

const UUID: &str = "0f1e2d3c-4b5a-5678-9abc-def012345678";

fn dns_name() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?){0,2}"
}

fn host() -> impl Strategy<Value = String> {
    prop_oneof![
        dns_name(),
        any::<std::net::Ipv4Addr>().prop_map(|a| a.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|a| a.to_string()),
    ]
}

proptest! {
    #[test]
    fn volume_ids_round_trip(uuid in any::<u128>(), endpoint in proptest::option::of((host(), 1u16..))) {
        let mut id = VolumeId::from_uuid(Uuid::from_u128(uuid));
        if let Some((host, port)) = endpoint {
            id = id.at(Endpoint::new(&host, port).unwrap()).unwrap();
        }
        prop_assert_eq!(id.to_string().parse::<VolumeId>().unwrap(), id);
    }

    #[test]
    fn node_ids_round_trip(
        name in dns_name(),
        iqn in "iqn\\.20[0-9]{2}-[01][0-9]\\.[a-z]{1,10}:[a-z0-9.:-]{1,30}",
        wwpns in proptest::collection::vec(any::<u64>().prop_map(Wwpn), 0..3),
    ) {
        let id = NodeId::new(&name, &iqn, wwpns).unwrap();
        prop_assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
    }

    #[test]
    fn whatever_is_read_is_written_the_same(text in "\\PC{0,140}") {
        if let Ok(id) = text.parse::<VolumeId>() {
            prop_assert_eq!(id.to_string(), text.clone());
        }
        if let Ok(id) = text.parse::<NodeId>() {
            prop_assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
        }
    }
}

#[test]
fn a_name_gives_one_id_and_another_name_another() {
    let id = VolumeId::from_name("pvc-1");
    assert_eq!(id, VolumeId::from_name("pvc-1"));
    assert_ne!(id, VolumeId::from_name("pvc-2"));
    // Written down: a release that computes another one would not find its volumes again.
    assert_eq!(id.to_string(), "3fd37505-65a7-5266-af2a-41075eaae7fa");
}

#[test]
fn bad_volume_ids() {
    for (text, why) in [
        ("", IdError::Empty),
        ("nonsense", IdError::Uuid),
        ("0F1E2D3C-4B5A-5678-9ABC-DEF012345678", IdError::Uuid),
        ("{0f1e2d3c-4b5a-5678-9abc-def012345678}", IdError::Uuid),
        ("0f1e2d3c4b5a56789abcdef012345678", IdError::Uuid),
        (&format!("{UUID}@"), IdError::Port),
        (&format!("{UUID}@host"), IdError::Port),
        (&format!("{UUID}@host:0"), IdError::Port),
        (&format!("{UUID}@host:65536"), IdError::Port),
        (&format!("{UUID}@host:+80"), IdError::Port),
        (&format!("{UUID}@host:080"), IdError::Host),
        (&format!("{UUID}@HOST:80"), IdError::Host),
        (&format!("{UUID}@a/b:80"), IdError::Host),
        (&format!("{UUID}@fe80::1:80"), IdError::Host),
        (&format!("{UUID}@[fe80:0::1]:80"), IdError::Host),
        (
            &"a".repeat(129),
            IdError::TooLong {
                length: 129,
                limit: 128,
            },
        ),
    ] {
        assert_eq!(text.parse::<VolumeId>(), Err(why), "{text:?}");
    }
    let long = format!("{}.{}", "a".repeat(63), "b".repeat(63));
    assert!(matches!(
        VolumeId::from_name("x").at(Endpoint::new(&long, 1).unwrap()),
        Err(IdError::TooLong { limit: 128, .. })
    ));
}

#[test]
fn bad_node_ids() {
    for (text, why) in [
        ("", IdError::Empty),
        ("node", IdError::NodeShape),
        (
            "a/iqn.2026-01.x:y/20:00:00:25:b5:11:22:33/more",
            IdError::NodeShape,
        ),
        ("/iqn.2026-01.x:y", IdError::NodeName),
        ("Node/iqn.2026-01.x:y", IdError::NodeName),
        ("node/", IdError::Initiator),
        ("node/host", IdError::Initiator),
        ("node/iqn.", IdError::Initiator),
        ("node/iqn.a b", IdError::Initiator),
        ("node/iqn.2026-01.x:y/", IdError::Wwpn),
        ("node/iqn.2026-01.x:y/20:00", IdError::Wwpn),
        ("node/iqn.2026-01.x:y/20-00-00-25-b5-11-22-33", IdError::Wwpn),
        (
            &"a".repeat(193),
            IdError::TooLong {
                length: 193,
                limit: 192,
            },
        ),
    ] {
        assert_eq!(text.parse::<NodeId>(), Err(why), "{text:?}");
    }
    let fc_only = "node//20:00:00:25:b5:11:22:33".parse::<NodeId>().unwrap();
    assert_eq!(
        (fc_only.initiator(), fc_only.wwpns()),
        ("", &[Wwpn(0x2000_0025_b511_2233)][..])
    );
}
