//! The table of StorageClass parameters in `docs/parameters.md` is the one in the code. `UPDATE=1` writes it.

use std::{fmt::Write as _, fs, path::Path};

use storagelink_csi::parameters::PARAMETERS;

const BEGIN: &str = "<!-- parameters -->\n";
const END: &str = "<!-- /parameters -->\n";

#[test]
fn the_documentation_lists_the_parameters_of_the_code() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/parameters.md");
    let text = fs::read_to_string(&file).expect("docs/parameters.md");
    let (before, rest) = text.split_once(BEGIN).expect("the table's begin");
    let (table, after) = rest.split_once(END).expect("the table's end");
    let mut current = String::from("| parameter | values | default | meaning |\n| --- | --- | --- | --- |\n");
    for parameter in PARAMETERS {
        let (key, values, default, meaning) = (
            parameter.key,
            parameter.values,
            parameter.default,
            parameter.meaning,
        );
        writeln!(current, "| `{key}` | {values} | {default} | {meaning} |").expect("a string takes it");
    }
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&file, format!("{before}{BEGIN}{current}{END}{after}")).expect("written");
    } else {
        assert_eq!(
            table, current,
            "run UPDATE=1 cargo test -p storagelink-csi --test parameters_documented"
        );
    }
}
