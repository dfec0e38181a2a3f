//! The chart's schema knows just the parameters that the driver knows.

use std::{collections::BTreeSet, path::Path};

use storagelink_csi::parameters::{self, FS_TYPES};

#[test]
fn the_schema_lists_the_parameters_and_file_systems_of_the_driver() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/storagelink-csi/values.schema.json");
    let schema: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("the schema")).expect("JSON");
    let class = &schema["properties"]["storageClasses"]["items"]["properties"];
    let known: BTreeSet<&str> = class["parameters"]["properties"]
        .as_object()
        .expect("parameters")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(known, parameters::keys().collect());
    let types: Vec<&str> = class["fsType"]["enum"]
        .as_array()
        .expect("types")
        .iter()
        .filter_map(|name| name.as_str())
        .collect();
    assert_eq!(types, FS_TYPES);
}
