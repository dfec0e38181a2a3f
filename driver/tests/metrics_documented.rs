//! The alerts and the dashboard use only metrics that the documentation explains.

use std::{collections::BTreeSet, fs, path::Path};

fn words(text: &str) -> BTreeSet<&str> {
    let inside = |c: char| c.is_ascii_lowercase() || c == '_';
    text.split(|c: char| !inside(c))
        .filter(|word| word.starts_with("storagelink_"))
        .collect()
}

#[test]
fn every_metric_that_is_used_is_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |file: &str| fs::read_to_string(root.join(file)).expect(file);
    let documented = read("docs/metrics.md");
    let documented = words(&documented);
    assert!(documented.len() >= 6, "{documented:?}");
    for file in [
        "charts/storagelink-csi/templates/prometheusrule.yaml",
        "charts/storagelink-csi/files/dashboard.json",
    ] {
        for word in words(&read(file)) {
            // A histogram's series.
            let name = word.strip_suffix("_bucket").unwrap_or(word);
            assert!(documented.contains(name), "{file}: {word}");
        }
    }
}
