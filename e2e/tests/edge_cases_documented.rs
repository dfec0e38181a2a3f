//! `docs/edge-cases.md` names only what there is: tests, suites, steps, fuzz targets and files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use storagelink_e2e::{kube::suites::KubeSuite, suites::Suite};

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is in the workspace")
}

fn sources(directory: &Path, all: &mut String) {
    let mut entries: Vec<PathBuf> = fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&fs::read_to_string(path).expect("a source"));
        }
    }
}

/// What stands between two of these marks, of those that are on one line.
fn between<'a>(text: &'a str, mark: &str) -> Vec<&'a str> {
    let odd = |line: &'a str| -> Vec<&'a str> { line.split(mark).skip(1).step_by(2).collect() };
    text.lines().flat_map(odd).collect()
}

fn has_suite<S: clap::ValueEnum>(name: &str) -> bool {
    S::value_variants()
        .iter()
        .filter_map(S::to_possible_value)
        .any(|value| value.matches(name, false))
}

#[test]
fn everything_that_is_named_exists() {
    let page = fs::read_to_string(checkout().join("docs/edge-cases.md")).expect("the page");
    let mut all = String::new();
    for directory in [
        "multipath/src",
        "driver/src",
        "driver/tests",
        "gateway/src",
        "e2e/src",
    ] {
        sources(&checkout().join(directory), &mut all);
    }
    let mut seen = 0;
    for name in between(&page, "`") {
        let known = if name.contains('/') {
            checkout().join(name).exists()
        } else if name.starts_with("make ") || name.contains('=') || name == "words_with_underscores" {
            continue;
        } else {
            all.contains(&format!("fn {name}("))
                || checkout().join(format!("fuzz/fuzz_targets/{name}.rs")).exists()
        };
        assert!(known, "`{name}` is not in the tree");
        seen += 1;
    }
    for title in between(&page, "\"")
        .iter()
        .filter(|title| !title.starts_with("Shown by"))
    {
        assert!(
            all.contains(&format!("\"{title}\"")),
            "no step is called {title:?}"
        );
        seen += 1;
    }
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        for (index, name) in line.split("**").enumerate().filter(|(index, _)| index % 2 == 1) {
            let on_cluster = line
                .split("**")
                .nth(index - 1)
                .is_some_and(|before| before.ends_with("kube "));
            let known = if on_cluster {
                has_suite::<KubeSuite>(name)
            } else {
                has_suite::<Suite>(name)
            };
            assert!(known, "no suite is called {name}");
            seen += 1;
        }
    }
    assert!(seen > 80, "only {seen} names");
    for number in 1..=26 {
        assert!(
            page.contains(&format!("\n| {number} | ")),
            "case {number} is missing"
        );
    }
}
