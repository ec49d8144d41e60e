//! What the documents say is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use regex::Regex;

use crate::binary::root;

fn functions(folder: &Path, found: &mut BTreeSet<(String, String)>) {
    let function = Regex::new(r"fn ([a-z][a-z0-9_]+)[(<]|^ +([a-z][a-z0-9_]+),$").expect("a pattern");
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = |path: &Path| path.file_stem().expect("a name").to_string_lossy().into_owned();
            // Tests of `module.rs` may lie in `module/tests.rs`.
            let module = if name(&path) == "tests" { name(folder) } else { name(&path) };
            for line in fs::read_to_string(&path).expect("reads").lines() {
                let Some(captures) = function.captures(line) else { continue };
                let function = captures.get(1).or(captures.get(2)).expect("one of the two").as_str();
                found.insert((module.clone(), function.to_owned()));
            }
        }
    }
}

#[test]
fn tests_that_documents_name_are_there() {
    let mut known = BTreeSet::new();
    for folder in ["src", "tests/it"] {
        functions(&root().join(folder), &mut known);
    }
    let pattern = Regex::new("`([a-z_]+)::([a-z0-9_]+)`").expect("a pattern");
    for (file, at_least) in [("docs/delivery.md", 30), ("docs/threat-model.md", 15), ("docs/upgrades.md", 6)] {
        let document = fs::read_to_string(root().join(file)).expect("reads");
        let named = pattern.captures_iter(&document).map(|captures| (captures[1].to_owned(), captures[2].to_owned()));
        let named = named.collect::<Vec<_>>();
        assert!(named.len() > at_least, "only {} tests are named in {file}", named.len());
        for test in named {
            assert!(known.contains(&test), "{file} names {}::{}, which is not there", test.0, test.1);
        }
    }
}
