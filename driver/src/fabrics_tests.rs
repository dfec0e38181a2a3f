use super::*;

fn fabrics(texts: &[&str]) -> Result<Fabrics, FabricError> {
    Fabrics::new(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
}

#[test]
fn what_is_refused_says_what_and_what_is_allowed() {
    for (text, part) in [
        ("a", "NAME=CIDR"),
        ("=10.1.0.0/24", "DNS label"),
        ("A=10.1.0.0/24", "DNS label"),
        ("a.b=10.1.0.0/24", "DNS label"),
        ("-a=10.1.0.0/24", "DNS label"),
        ("a-=10.1.0.0/24", "DNS label"),
        (&format!("{}=10.1.0.0/24", "a".repeat(64)), "DNS label"),
        ("a=", "fabric a has no CIDR"),
        (
            "a=10.1.0.0",
            "fabric a: \"10.1.0.0\" is not an address and a prefix",
        ),
        ("a=10.1.0.0/24,", "fabric a: \"\""),
        ("a=10.1.0/24", "is not an address"),
        ("a=10.1.0.0/+24", "is not an address"),
        ("a=10.1.0.0/33", "the 32 bits"),
        ("a=fd00::/129", "the 128 bits"),
        ("a=10.1.0.0/300", "the 32 bits"),
        ("a=10.1.0.7/24", "is 10.1.0.0/24 meant?"),
        ("a=fd00::7/64", "is fd00::/64 meant?"),
        ("a=0.0.0.0/0", "every address"),
    ] {
        let error = text.parse::<Fabric>().expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    assert_eq!(
        fabrics(&["b=10.1.0.0/24", "a=10.2.0.0/24", "b=10.3.0.0/24"]),
        Err(FabricError::Twice("b".to_owned()))
    );
    let many: Vec<String> = (0..=MAX_FABRICS).map(|i| format!("f{i}=10.{i}.0.0/16")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(fabrics(&many), Err(FabricError::TooMany(33)));
}

#[test]
fn both_notations_are_the_same() {
    let flags = fabrics(&["b=fd00:1::/64", "a=10.1.0.0/24,10.2.0.0/24"]).unwrap();
    let table: BTreeMap<String, Networks> =
        toml::from_str("a = [\"10.1.0.0/24\", \"10.2.0.0/24\"]\nb = \"fd00:1::/64\"").unwrap();
    assert_eq!(Fabrics::from_table(&table).unwrap(), flags);
    let names: Vec<&str> = flags.iter().map(Fabric::name).collect();
    assert_eq!(names, ["a", "b"]);
    let empty: BTreeMap<String, Networks> = toml::from_str("a = []").unwrap();
    assert_eq!(
        Fabrics::from_table(&empty),
        Err(FabricError::Empty("a".to_owned()))
    );
}

#[test]
fn networks_hold_addresses_of_their_own_family() {
    let cidr = |text: &str| text.parse::<Cidr>().unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    for (network, address, holds) in [
        ("10.1.0.0/24", "10.1.0.255", true),
        ("10.1.0.0/24", "10.1.1.0", false),
        ("10.1.0.7/32", "10.1.0.7", true),
        ("10.1.0.0/24", "::ffff:10.1.0.1", false),
        ("::/1", "10.1.0.1", false),
        ("fd00:1::/64", "fd00:1::ffff", true),
        ("fd00:1::/64", "fd00:1:0:1::", false),
        ("fd00::7/128", "fd00::7", true),
    ] {
        assert_eq!(cidr(network).holds(ip(address)), holds, "{network} {address}");
    }
    assert!(cidr("10.0.0.0/8").covers(&cidr("10.1.0.0/24")));
    assert!(cidr("10.1.0.0/24").covers(&cidr("10.1.0.0/24")));
    assert!(!cidr("10.1.0.0/25").covers(&cidr("10.1.0.0/24")));
    assert!(!cidr("fd00::/8").covers(&cidr("10.1.0.0/24")));
    let default = Cidr::of(ip("10.1.0.1"), 0).unwrap();
    assert!(default.is_everything() && default.covers(&cidr("10.1.0.0/24")));
    assert_eq!(Cidr::of(ip("::1"), 0).unwrap().to_string(), "::/0");
}

#[test]
fn a_system_is_in_the_fabrics_of_its_portals() {
    let all = fabrics(&["a=10.1.0.0/24", "b=10.2.0.0/24,fd00:2::/64", "c=10.3.0.0/24"]).unwrap();
    let names = |portals: &[&str]| -> Vec<String> {
        let portals: Vec<SocketAddr> = portals.iter().map(|text| text.parse().unwrap()).collect();
        all.holding(&portals)
            .iter()
            .map(|fabric| fabric.name().to_owned())
            .collect()
    };
    assert_eq!(names(&["10.1.0.1:3260", "[fd00:2::1]:3260"]), ["a", "b"]);
    assert!(names(&["10.9.0.1:3260"]).is_empty());
    let place = |pairs: &[(&str, &str)]| Topology {
        segments: pairs
            .iter()
            .map(|(key, value)| (format!("{KEY_PREFIX}{key}"), (*value).to_owned()))
            .collect(),
    };
    let a = all.iter().next().unwrap();
    assert!(a.reached_from(&place(&[("a", "true"), ("b", "false")])));
    assert!(!a.reached_from(&place(&[("a", "false"), ("b", "true")])));
    assert!(!a.reached_from(&place(&[("b", "true")])));
    assert!(a.reached_from(&Topology::default()) && a.reached_from(&a.topology()));
}
