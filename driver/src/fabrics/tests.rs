use super::*;

fn fabrics(given: &[(&str, &[&str])]) -> Result<Fabrics, FabricError> {
    Fabrics::new(given.iter().map(|(name, networks)| {
        let networks = networks.iter().map(|&network| network.to_owned()).collect();
        ((*name).to_owned(), networks)
    }))
}

fn two() -> Fabrics {
    fabrics(&[
        ("a", &["198.18.0.0/24"]),
        ("b", &["198.18.1.0/24", "2001:db8::/64"]),
    ])
    .expect("two fabrics")
}

fn topology(pairs: &[(&str, &str)]) -> Topology {
    Topology {
        segments: pairs
            .iter()
            .map(|(name, value)| (key(name), (*value).to_owned()))
            .collect(),
    }
}

fn requisite(all: Vec<Topology>) -> TopologyRequirement {
    TopologyRequirement {
        preferred: Vec::new(),
        requisite: all,
    }
}

#[test]
fn what_is_wrong_is_named() {
    for name in ["", "A", "-a", "a-", "a.b", &"a".repeat(64)] {
        assert_eq!(
            fabrics(&[(name, &["10.0.0.0/8"])]),
            Err(FabricError::Name(name.to_owned()))
        );
    }
    assert_eq!(fabrics(&[("a", &[])]), Err(FabricError::Empty("a".into())));
    for network in ["", "10.0.0.1", "10.0.0.0/33", "host/8"] {
        let error = fabrics(&[("a", &[network])]).unwrap_err().to_string();
        assert!(error.contains("fabric a") && error.contains("CIDR"), "{error}");
    }
    let error = fabrics(&[("a", &["10.0.0.0/8"]), ("b", &["10.1.0.0/16"])]).unwrap_err();
    assert!(error.to_string().contains("a and b share"), "{error}");
    assert_eq!(
        fabrics(&[("a", &["10.0.0.0/8"]), ("a", &["11.0.0.0/8"])]),
        Err(FabricError::Twice("a".into()))
    );
    assert!(matches!("a".parse::<Fabric>(), Err(FabricError::Form(_))));
    let flags = vec![
        "a=10.0.0.0/8,11.0.0.0/8".parse().unwrap(),
        "b=12.0.0.0/8".parse().unwrap(),
    ];
    assert!(Fabrics::from_flags(flags).is_ok());
}

#[test]
fn a_node_has_the_fabrics_that_it_has_routes_into() {
    let has = |routes: &[&str]| {
        let routes: Vec<IpNet> = routes.iter().map(|route| route.parse().unwrap()).collect();
        two().of_node(&routes)
    };
    assert_eq!(has(&[]), Some(topology(&[("a", "false"), ("b", "false")])));
    assert_eq!(
        has(&["198.18.0.0/24"]),
        Some(topology(&[("a", "true"), ("b", "false")]))
    );
    // A route to one host of it, or to more than it.
    assert_eq!(
        has(&["198.18.1.7/32"]),
        Some(topology(&[("a", "false"), ("b", "true")]))
    );
    assert_eq!(
        has(&["198.18.0.0/15"]),
        Some(topology(&[("a", "true"), ("b", "true")]))
    );
    assert_eq!(
        has(&["2001:db8::/32"]),
        Some(topology(&[("a", "false"), ("b", "true")]))
    );
    assert_eq!(Fabrics::default().of_node(&["10.0.0.0/8".parse().unwrap()]), None);
}

#[test]
fn a_volume_goes_where_its_portals_are() {
    let both = two().of_portals(["198.18.0.1:3260", "[2001:db8::1]:3260"]);
    let a = topology(&[("a", "true"), ("b", "false")]);
    let none = topology(&[("a", "false"), ("b", "false")]);
    assert_eq!(
        both.accessible(None),
        Ok(vec![topology(&[("a", "true")]), topology(&[("b", "true")])])
    );
    assert_eq!(
        both.accessible(Some(&requisite(vec![a.clone(), none.clone()]))),
        Ok(vec![topology(&[("a", "true")])])
    );
    assert!(both.from(&a) && !both.from(&none));
    let error = both
        .accessible(Some(&requisite(vec![none.clone()])))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("fabrics a, b") && error.contains("a=false b=false"),
        "{error}"
    );
    let only_b = two().of_portals(["198.18.1.9:3260"]);
    assert!(only_b.accessible(Some(&requisite(vec![a]))).is_err());
    // Portals outside every fabric: nothing is known, nothing is refused.
    let unknown = two().of_portals(["203.0.113.1:3260"]);
    assert_eq!(
        unknown.accessible(Some(&requisite(vec![none.clone()]))),
        Ok(Vec::new())
    );
    assert!(unknown.from(&none));
}
