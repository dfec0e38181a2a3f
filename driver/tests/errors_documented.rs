//! Every text that a caller or an administrator can read is in `docs/errors.md`, with what to do.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Steps and wrappers: what they wrap has the text. A shape of fewer letters than this says nothing by itself.
const LEAST_LETTERS: usize = 8;

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The texts of `#[error("…")]`, with `…` for what is put in.
fn shapes(source: &str) -> Vec<String> {
    let mut all = Vec::new();
    for part in source.split("#[error(").skip(1) {
        let Some(text) = part.trim_start().strip_prefix('"') else {
            continue;
        };
        let (mut shape, mut inside, mut escaped) = (String::new(), false, false);
        let mut continued = false;
        for c in text.chars() {
            // A backslash at the end of a line takes the next line's indentation with it.
            if continued && c.is_whitespace() {
                continue;
            }
            continued = escaped && c == '\n';
            if continued {
                escaped = false;
                continue;
            }
            match c {
                '\\' if !escaped => {
                    escaped = true;
                    continue;
                }
                '"' if !escaped => break,
                '{' => {
                    inside = true;
                    shape.push('…');
                }
                '}' => inside = false,
                // Backquotes end a table's code.
                '`' => shape.push('\''),
                c if !inside => shape.push(c),
                _ => {}
            }
            escaped = false;
        }
        all.push(shape);
    }
    all
}

#[test]
fn every_text_is_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let documented = fs::read_to_string(root.join("docs/errors.md")).expect("docs/errors.md");
    let mut files = Vec::new();
    for directory in ["driver/src", "gateway/src"] {
        sources(&root.join(directory), &mut files);
    }
    let (mut missing, mut seen) = (Vec::new(), 0);
    for file in files {
        // What the parts of an id are wrong with is only ever read behind the field's name.
        if file.ends_with("driver/src/ids.rs") {
            continue;
        }
        for shape in shapes(&fs::read_to_string(&file).expect("a source")) {
            let letters = shape.chars().filter(|c| c.is_alphabetic()).count();
            if letters < LEAST_LETTERS {
                continue;
            }
            seen += 1;
            if !documented.contains(&format!("`{shape}`")) {
                missing.push(format!("{}: {shape}", file.display()));
            }
        }
    }
    assert!(seen > 100, "only {seen} texts were found");
    assert!(missing.is_empty(), "not explained:\n{}", missing.join("\n"));
}
