//! What the documents say is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use feedlens::config::{Config, DEFAULTS, Overrides};
use regex::Regex;

use crate::binary::{feedlens, root};
use crate::docs_support::{Block, Document, calls, documents};

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

/// The keys of the configuration, and the tables that they are in.
fn keys(table: &toml::Table, prefix: &str, found: &mut BTreeSet<String>) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        if let toml::Value::Table(inner) = value {
            keys(inner, &format!("{key}."), found);
        }
        found.insert(key);
    }
}

/// What of a text is a key of the configuration, if it has the form of one. `sections` are the first words of keys.
fn keys_named(text: &str, sections: &BTreeSet<&str>) -> Option<String> {
    let form = Regex::new(r"^([a-z]+)((?:\.[a-z_]+)+)(?: ?=.*)?$").expect("a pattern");
    let found = form.captures(text).filter(|found| sections.contains(&found[1]))?;
    Some(found[1].to_owned() + &found[2])
}

#[test]
fn keys_that_documents_name_are_there() {
    let defaults: toml::Table = DEFAULTS.parse().expect("TOML");
    let mut known = BTreeSet::new();
    keys(&defaults, "", &mut known);
    let sections = defaults.keys().map(String::as_str).collect();
    let variable = Regex::new(r"FEEDLENS__[A-Z_]*[A-Z]").expect("a pattern");
    // Topics, which have names of that form, files, and keys of sets of labels.
    let others = Regex::new(
        r"^(posts\.(dlq|moderation|eu)|[a-z.]+\.(toml|jsonl|rs|sh|py|yaml|onnx|snapshot)|labels\.sets.*|kafka\.properties\..*)$",
    );
    let others = others.expect("a pattern");
    let (mut named, mut mistakes) = (0, Vec::new());
    for document in documents() {
        let shell = document.blocks.iter().filter(|block| block.language == "sh").map(|block| &block.text);
        let code = document.inline_code();
        let assignments = shell.chain(&code).flat_map(|text| text.split(' ')).map(str::to_owned);
        let variables = document.blocks.iter().map(|block| &block.text).chain([&document.prose]);
        let variables = variables.flat_map(|text| variable.find_iter(text)).map(|found| found.as_str().to_lowercase());
        let variables = variables.map(|name| name["feedlens__".len()..].replace("__", ".")).collect::<Vec<_>>();
        let keys = code.iter().cloned().chain(assignments).filter_map(|text| keys_named(&text, &sections));
        for key in keys.chain(variables) {
            named += 1;
            // `FEEDLENS__A__B` stands for any.
            if !known.contains(&key) && !others.is_match(&key) && key != "a.b" {
                mistakes.push(format!("{} names the key {key}", document.path));
            }
        }
    }
    assert!(named > 150, "only {named}");
    assert!(mistakes.is_empty(), "{mistakes:#?}");
}

#[test]
fn configurations_in_documents_load() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("site.toml");
    let mut loaded = 0;
    for block in documents().iter().flat_map(|document| &document.blocks).filter(|block| block.language == "toml") {
        if block.mark.as_deref().is_some_and(|mark| mark.starts_with("not a configuration: ")) {
            continue;
        }
        // A file that is on every machine of Debian's, in place of one that is on few.
        let text = block.text.replace("/etc/kafka/ca.pem", "/etc/ssl/certs/ca-certificates.crt");
        fs::write(&file, text).expect("writes");
        let sources = Overrides { files: vec![file.clone()], set: vec![] };
        Config::load(&[], &sources).unwrap_or_else(|error| panic!("{}: {error:#}", block.place));
        loaded += 1;
    }
    assert!(loaded >= 5, "only {loaded}");
}

/// The command line's own parser judges: with `--help` behind them, right arguments only show the help.
#[test]
fn commands_that_documents_name_are_there() {
    let mut named = BTreeSet::new();
    for document in documents() {
        let blocks = document.blocks.iter().filter(|block| ["sh", "console"].contains(&block.language.as_str()));
        for block in blocks {
            let shell = block.text.lines().filter(|line| block.language == "sh" || line.starts_with("$ "));
            let shell = shell.map(|line| line.trim_start_matches("$ ").to_owned() + "\n").collect::<String>();
            named.extend(calls(&shell).into_iter().map(|call| (block.place.clone(), call)));
        }
        let code = document.inline_code().into_iter().filter(|code| code.contains("feedlens "));
        named.extend(code.flat_map(|code| calls(&code)).map(|call| (document.path.clone(), call)));
    }
    assert!(named.len() > 60, "only {}", named.len());
    let mut mistakes = Vec::new();
    for (place, arguments) in named {
        let arguments = arguments.iter().map(String::as_str).chain(["--help"]).collect::<Vec<_>>();
        let output = feedlens(&arguments).output().expect("starts");
        if !output.status.success() {
            mistakes.push(format!("{place}: {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[test]
fn targets_of_make_that_documents_name_are_there() {
    let makefile = fs::read_to_string(root().join("Makefile")).expect("reads");
    let call = Regex::new(r"\bmake ([a-z][a-z-]*)((?: [A-Z]+=\S+)*)").expect("a pattern");
    let mut named = 0;
    for document in documents() {
        let shell = document.blocks.iter().filter(|block| ["sh", "console"].contains(&block.language.as_str()));
        let code = shell.flat_map(|block| block.text.lines().map(str::to_owned)).chain(document.inline_code());
        for text in code.filter(|text| text.trim_start_matches("$ ").starts_with("make ")) {
            let found = call.captures(&text).unwrap_or_else(|| panic!("{}: {text}", document.path));
            let target = Regex::new(&format!(r"(?m)^{}:", &found[1])).expect("a pattern");
            assert!(target.is_match(&makefile), "{}: make has no target {}", document.path, &found[1]);
            for assignment in found[2].split_whitespace() {
                let name = assignment.split('=').next().expect("a name");
                let used = Regex::new(&format!(r"\b{name}\b")).expect("a pattern");
                assert!(used.is_match(&makefile), "{}: make knows nothing of {name}", document.path);
            }
            named += 1;
        }
    }
    assert!(named > 15, "only {named}");
}

#[test]
fn files_that_documents_name_are_there() {
    let folders =
        "src|tests|tools|scripts|config|docs|demo|deploy|k8s|observability|benches|fuzz|models/small|\\.github";
    let path = Regex::new(&format!(r"^(?:{folders})/[A-Za-z0-9_./-]*$")).expect("a pattern");
    let link = Regex::new(r"\]\(([^)\s]+)\)").expect("a pattern");
    let (mut named, mut mistakes) = (0, Vec::new());
    for document in documents() {
        for code in document.inline_code() {
            if let Some(file) = code.split(' ').next().filter(|code| path.is_match(code)) {
                if !root().join(file).exists() {
                    mistakes.push(format!("{} names {file}", document.path));
                }
                named += 1;
            }
        }
        let folder = root().join(&document.path).parent().expect("a folder").to_owned();
        for target in link.captures_iter(&document.prose).map(|found| found[1].to_owned()) {
            if target.starts_with("http") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((&target, ""));
            let file = if file.is_empty() { root().join(&document.path) } else { folder.join(file) };
            let has_heading = || headings(&fs::read_to_string(&file).expect("reads")).contains(heading);
            if !file.exists() || !heading.is_empty() && !has_heading() {
                mistakes.push(format!("{} leads to {target}", document.path));
            }
            named += 1;
        }
    }
    assert!(named > 150, "only {named}");
    assert!(mistakes.is_empty(), "{mistakes:#?}");
}

/// The anchors of a document's headings, as GitHub makes them.
fn headings(document: &str) -> BTreeSet<String> {
    let titles = document.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches(['#', ' ']));
    let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    titles.map(|title| title.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

#[test]
fn metrics_that_documents_name_are_there() {
    // Where they are declared: those with labels show in a scrape only once there is something to tell.
    let declared = fs::read_to_string(root().join("src/metrics.rs")).expect("reads");
    let metric = Regex::new(r"\bfeedlens_[a-z_]+").expect("a pattern");
    let counter = Regex::new(r"^([a-z][a-z_]+_total)\b").expect("a pattern");
    let (mut named, mut mistakes) = (0, Vec::new());
    for document in documents() {
        let code = document.inline_code();
        let shell = document.blocks.iter().map(|block| &block.text);
        let full = shell.chain(&code).flat_map(|text| metric.find_iter(text)).map(|found| found.as_str().to_owned());
        // Some leave out the prefix.
        let short =
            code.iter().filter_map(|code| counter.captures(code)).filter(|name| !name[1].starts_with("feedlens_"));
        for name in full.chain(short.map(|name| format!("feedlens_{}", &name[1]))) {
            let name = name.trim_end_matches("_bucket").trim_end_matches("_sum").trim_end_matches("_count");
            let is_there = declared.contains(&format!("\"{}\"", &name["feedlens_".len()..]));
            // Parts of a pattern for grep end with a bar or a parenthesis.
            if !is_there && !name.ends_with('_') {
                mistakes.push(format!("{} names {name}", document.path));
            }
            named += 1;
        }
    }
    assert!(named > 60, "only {named}");
    assert!(mistakes.is_empty(), "{mistakes:#?}");
}

/// The README in both languages leads to every document, has the same sections and tables, and the same blocks but for their comments
/// and the words in the diagram.
#[test]
fn both_readmes_say_the_same_and_lead_to_every_document() {
    let documents = documents();
    let find = |path: &str| documents.iter().find(|document| document.path == path).expect("is there");
    let (english, chinese) = (find("README.md"), find("README.zh.md"));
    for document in documents.iter().filter(|document| document.path.starts_with("docs/")) {
        for readme in [english, chinese] {
            let link = format!("]({})", document.path);
            assert!(readme.prose.contains(&link), "{} does not lead to {}", readme.path, document.path);
        }
    }
    let comment = Regex::new(" *#.*").expect("a pattern");
    let text = |block: &Block| match block.language.as_str() {
        "mermaid" => block.text.lines().count().to_string(),
        _ => comment.replace_all(&block.text, "").into_owned(),
    };
    assert_eq!(english.blocks.len(), chinese.blocks.len());
    for (one, other) in english.blocks.iter().zip(&chinese.blocks) {
        assert_eq!((&one.language, text(one)), (&other.language, text(other)), "{} and {}", one.place, other.place);
    }
    let lines = |readme: &Document, start: &str| readme.prose.lines().filter(|line| line.starts_with(start)).count();
    for start in ["#", "|", "- **"] {
        assert_eq!(lines(english, start), lines(chinese, start), "lines that begin with {start:?}");
    }
}
