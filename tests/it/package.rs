//! The release's archive, as somebody finds it who has nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::binary::{feedlens, root};

/// Makes the archive of the binary under test with the ONNX Runtime of this machine, and unpacks it.
fn unpacked(folder: &Path) -> PathBuf {
    let checkout = root().join(".cache/onnxruntime");
    let library = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).unwrap_or_else(|| {
        let entries = std::fs::read_dir(&checkout).expect("scripts/setup.sh was run").filter_map(Result::ok);
        entries.map(|entry| entry.path()).next().expect("a library")
    });
    let libraries = folder.join("libraries");
    std::fs::create_dir(&libraries).expect("a folder");
    std::fs::copy(library, libraries.join("libonnxruntime.so")).expect("copies");
    // Whose files are for nobody else; the archive's are for everybody.
    let script = format!("umask 077; exec {}/scripts/package.sh \"$@\"", root().display());
    let made = Command::new("bash")
        .args(["-c", &script, "package.sh", env!("CARGO_BIN_EXE_feedlens")])
        .args([&libraries, folder])
        .output()
        .expect("bash");
    let said = String::from_utf8_lossy(&made.stdout);
    assert!(made.status.success(), "{said}{}", String::from_utf8_lossy(&made.stderr));
    let archive = Path::new(said.trim());
    assert_eq!(archive.parent(), Some(folder), "{said}");
    let list = ["--list", "--verbose", "--numeric-owner", "--file"];
    let list = Command::new("tar").args(list).arg(archive).output().expect("tar");
    for line in String::from_utf8(list.stdout).expect("UTF-8").lines() {
        let modes = ["-rw-r--r-- 0/0 ", "-rwxr-xr-x 0/0 ", "drwxr-xr-x 0/0 "];
        assert!(modes.iter().any(|mode| line.starts_with(mode)), "{line}");
    }
    let unpacked = Command::new("tar").args(["--extract", "--file"]).arg(archive).current_dir(folder).status();
    assert!(unpacked.expect("tar").success());
    archive.with_extension("").with_extension("")
}

/// Where the documents point to inside the archive, and it is not there.
fn dead_links(archive: &Path) -> BTreeSet<String> {
    let documents = ["", "docs", "demo", "models/small"].iter().flat_map(|folder| {
        let entries = std::fs::read_dir(archive.join(folder)).expect("a folder").filter_map(Result::ok);
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|extension| extension == "md"))
    });
    let documents = documents.collect::<Vec<_>>();
    assert!(documents.len() > 10, "{documents:?}");
    let mut dead = BTreeSet::new();
    for document in documents {
        let text = std::fs::read_to_string(&document).expect("reads");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            let is_there = || document.parent().expect("a folder").join(path).exists();
            if !path.is_empty() && !path.contains("://") && !is_there() {
                dead.insert(format!("{}: {link}", document.display()));
            }
        }
    }
    dead
}

#[test]
fn the_release_runs_where_it_was_unpacked_and_its_documents_point_to_what_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let archive = unpacked(folder.path());
    // A person's machine: nothing of this one's settings, and no library of a checkout.
    let newcomer = |arguments: &[&str], at: &Path| {
        let mut command = Command::new(archive.join("feedlens"));
        command.args(arguments).current_dir(at).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", folder.path());
        let output = command.output().expect("starts");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, told, log) = newcomer(&["demo", "--once"], &archive);
    assert!(code == Some(0) && told.contains("indexed 1914 posts") && told.contains("\n水果"), "{told}{log}");
    let (code, _, log) = newcomer(&["demo", "--once"], folder.path());
    assert!(code == Some(1) && log.contains("demo/feed.jsonl") && log.contains("folder that holds demo/"), "{log}");
    // The library is the archive's own.
    std::fs::remove_dir_all(archive.join("lib")).expect("removes");
    let (code, _, log) = newcomer(&["model", "check"], &archive);
    assert!(code == Some(1) && log.contains("libonnxruntime.so"), "{log}");

    assert_eq!(dead_links(&archive), BTreeSet::new());
    for (file, part) in [
        ("completions/feedlens", "complete -F"),
        ("completions/_feedlens", "#compdef feedlens"),
        ("completions/feedlens.fish", "complete -c feedlens"),
        ("man/man1/feedlens.1", ".TH feedlens 1"),
        ("man/man1/feedlens-collection-reindex.1", ".TH"),
        ("config/default.toml", "[kafka]"),
        ("observability/alerts.yml", "FeedlensIngestAbsent"),
        ("LICENSE", "Apache License"),
    ] {
        let text = std::fs::read_to_string(archive.join(file)).expect(file);
        assert!(text.contains(part), "{file}");
    }
    let described = |at: &str| std::fs::read_dir(at).expect("a folder").count();
    let pages = tempfile::tempdir().expect("a folder");
    let pages = pages.path().to_str().expect("UTF-8");
    assert!(feedlens(&["man", "--out", pages]).output().expect("starts").status.success());
    assert_eq!(described(archive.join("man/man1").to_str().expect("UTF-8")), described(pages));
}
