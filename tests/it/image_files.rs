//! The image `cpu` without a container engine: its files are put together as the Dockerfile says, and run as a container would
//! run them, with a read-only root and nothing of this machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use regex::Regex;

use crate::binary::root;
use crate::skip;

/// Instructions of the Dockerfile with their arguments, in order, of one stage; continued lines are one.
fn stage(name: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("Dockerfile")).expect("reads");
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    let lines = lines.replace("\\\n", " ");
    let instructions = lines.lines().filter_map(|line| line.split_once(' '));
    let instructions = instructions.map(|(word, rest)| (word.to_owned(), rest.trim().to_owned()));
    let mut stages = instructions.skip_while(|(word, rest)| word != "FROM" || !rest.ends_with(&format!(" AS {name}")));
    let from = stages.next().unwrap_or_else(|| panic!("the Dockerfile has no stage {name}"));
    std::iter::once(from).chain(stages.take_while(|(word, _)| word != "FROM")).collect()
}

fn only(stage: &[(String, String)], word: &str) -> String {
    let found = stage.iter().filter(|(other, _)| other == word).map(|(_, rest)| rest.clone()).collect::<Vec<_>>();
    assert_eq!(found.len(), 1, "{word}: {found:?}");
    found.into_iter().next().unwrap_or_default()
}

fn words(json: &str) -> Vec<String> {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json} is not of the form that needs no shell: {error}"))
}

/// The library that `make setup` fetches, which is the one that the image holds (a test compares the versions).
fn onnxruntime() -> PathBuf {
    let library = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    let mut fetched = fs::read_dir(root().join(".cache/onnxruntime")).expect("`make setup` was run");
    library.unwrap_or_else(|| fetched.next().expect("a library").expect("an entry").path())
}

fn run(command: &mut Command) {
    let output = command.output().expect("starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The files of the image, and how its containers run.
struct Image {
    folder: tempfile::TempDir,
    stage: Vec<(String, String)>,
}

impl Image {
    /// `None`, and loudly, on a machine where a test may not have a root of its own.
    fn cpu() -> Option<Self> {
        // SAFETY: it only reads.
        let is_root = unsafe { libc::geteuid() } == 0;
        let own_namespaces = ["--mount", "--net", "ip", "link", "set", "lo", "up"];
        if !is_root || !Command::new("unshare").args(own_namespaces).status().is_ok_and(|ended| ended.success()) {
            skip::unable(
                "here nobody may have a root file system and a network of their own (root with unshare and ip may)",
            );
            return None;
        }
        let image = Self { folder: tempfile::tempdir().expect("a folder"), stage: stage("cpu") };
        fs::create_dir_all(image.stages().join("build")).expect("a folder");
        run(Command::new("strip")
            .arg("-o")
            .arg(image.stages().join("build/feedlens"))
            .arg(env!("CARGO_BIN_EXE_feedlens")));
        let runtime = image.stages().join("onnxruntime-cpu/onnxruntime");
        fs::create_dir_all(&runtime).expect("a folder");
        fs::copy(onnxruntime(), runtime.join("libonnxruntime.so")).expect("copies");
        run(Command::new(root().join("deploy/image/rootfs.sh"))
            .arg(image.stages().join("rootfs/rootfs"))
            .arg(image.stages().join("build/feedlens"))
            .arg(runtime.join("libonnxruntime.so")));
        fs::create_dir(image.root()).expect("a folder");
        for (_, arguments) in image.stage.iter().filter(|(word, _)| word == "COPY") {
            image.copy(arguments);
        }
        // Mount points, which an engine makes.
        for folder in ["proc", "dev"] {
            fs::create_dir(image.root().join(folder)).expect("a folder");
        }
        Some(image)
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// A folder for each other stage.
    fn stages(&self) -> PathBuf {
        self.folder.path().join("stages")
    }

    fn copy(&self, arguments: &str) {
        let mut words = arguments.split(' ').filter(|word| !word.starts_with("--chown")).collect::<Vec<_>>();
        let from = words.first().and_then(|word| word.strip_prefix("--from=")).map(str::to_owned);
        let base = from.map_or_else(
            || root().to_owned(),
            |from| {
                words.remove(0);
                self.stages().join(from)
            },
        );
        let [source, target] = words[..] else { panic!("COPY {arguments}") };
        let source = base.join(source.trim_start_matches('/'));
        let target = self.root().join(target.trim_start_matches('/'));
        fs::create_dir_all(target.parent().expect("a folder")).expect("a folder");
        // Of a folder, its contents are copied.
        let mut copy = Command::new("cp");
        copy.args(["--archive", "--no-target-directory"]).arg(source).arg(target);
        run(&mut copy);
    }

    /// Runs a command as a container of the image does: its user, its environment, a read-only root, `/tmp` to write to, and
    /// no network but its own loopback.
    fn run(&self, command: &[String]) -> Output {
        let user = only(&self.stage, "USER");
        let (user, group) = user.split_once(':').expect("user:group");
        let script = format!(
            "ip link set lo up && mount --bind $1 $1 && mount -t tmpfs -o mode=1777 none $1/tmp && mount --rbind /proc $1/proc \
             && mount --rbind /dev $1/dev && mount -o remount,bind,ro $1 && root=$1 && shift \
             && exec unshare --root=$root --wd={} --setgid={group} --setuid={user} \"$@\"",
            only(&self.stage, "WORKDIR")
        );
        let mut isolated = Command::new("unshare");
        isolated.args(["--mount", "--net", "sh", "-c", &script, "sh"]).arg(self.root()).args(command);
        let path = std::env::var_os("PATH").expect("a PATH");
        isolated.env_clear().env("PATH", path).envs(self.variables());
        isolated.output().expect("unshare")
    }

    fn variables(&self) -> Vec<(String, String)> {
        let variables = only(&self.stage, "ENV");
        let pairs = variables.split_whitespace().map(|pair| pair.split_once('=').expect("name=value"));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// The entry point with these arguments; its output, when it ends well.
    fn feedlens(&self, arguments: &[&str]) -> String {
        let mut command = words(&only(&self.stage, "ENTRYPOINT"));
        command.extend(arguments.iter().map(ToString::to_string));
        let output = self.run(&command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

#[test]
fn the_files_of_the_image_are_all_that_the_demo_needs() {
    let Some(image) = Image::cpu() else { return };
    assert_eq!(image.feedlens(&["--version"]), format!("feedlens {}\n", env!("CARGO_PKG_VERSION")));
    assert!(image.feedlens(&["model", "check"]).contains("golden"), "the bundled model, by the defaults");
    let command = words(&only(&image.stage, "CMD"));
    let command = command.iter().map(String::as_str).chain(["--once"]).collect::<Vec<_>>();
    assert!(image.feedlens(&command).contains("indexed 1914 posts"), "the bundled feed, by the defaults");

    // Configured for its ports to be reached from outside, and the health check asks at one of them.
    let shown = image.feedlens(&["config", "show", "--config", "/etc/feedlens/feedlens.toml"]);
    assert_eq!(shown.matches("listen = \"0.0.0.0:").count(), 2, "{shown}");
    let check = only(&image.stage, "HEALTHCHECK");
    let check = words(check.split_once("CMD ").expect("a command").1);
    let output = image.run(&check);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("feedlens: no worker answers on 127.0.0.1:9090"), "{said}");

    // Nothing that a person could use who broke in.
    for program in ["bin/sh", "usr/bin/sh", "bin/bash", "bin/busybox", "usr/bin/env"] {
        assert!(!image.root().join(program).exists(), "{program} is in the image");
    }
    let writable = Command::new("find").arg(image.root()).args(["-type", "f", "-perm", "/022"]).output().expect("find");
    assert_eq!(String::from_utf8_lossy(&writable.stdout), "", "files that others may write");
    for part in ["etc/ssl/certs/ca-certificates.crt", "usr/share/doc/libc6/copyright", "var/lib/dpkg/status.d/libssl3"]
    {
        assert_ne!(fs::metadata(image.root().join(part)).map_or(0, |file| file.len()), 0, "{part} is missing");
    }
}

#[test]
fn both_images_run_alike_and_without_root() {
    let (cpu, cuda) = (stage("cpu"), stage("cuda"));
    for word in ["WORKDIR", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"] {
        assert_eq!(only(&cpu, word), only(&cuda, word), "{word}");
    }
    assert_eq!(only(&cpu, "USER"), "65532:65532");
    assert_eq!(words(&only(&cpu, "ENTRYPOINT")), ["/feedlens"]);
    assert!(!cpu.iter().any(|(word, _)| word == "RUN"), "it has no shell to run anything");
    for stage in [&cpu, &cuda] {
        let labels = only(stage, "LABEL");
        for label in ["title", "description", "licenses", "version", "revision"] {
            assert!(labels.contains(&format!("org.opencontainers.image.{label}=")), "{label}: {labels}");
        }
    }
    for config in ["cpu", "cuda"] {
        let file = root().join(format!("deploy/image/{config}.toml"));
        run(crate::binary::feedlens(&["config", "check", "--config"]).arg(file));
    }
}

#[test]
fn every_version_is_pinned_and_the_one_that_is_tested() {
    let text = fs::read_to_string(root().join("Dockerfile")).expect("reads");
    let base = Regex::new(r"(?m)^FROM ([a-z/]+):(\S+)").expect("a pattern");
    let bases = base.captures_iter(&text).map(|found| (found[1].to_owned(), found[2].to_owned())).collect::<Vec<_>>();
    assert_eq!(bases.len(), 3, "{bases:?}");
    for (image, tag) in &bases {
        assert!(tag.starts_with(|digit: char| digit.is_ascii_digit()), "{image}:{tag}");
    }
    let rust = bases.iter().find(|(image, _)| image == "rust").expect("the compiler");
    assert!(rust.1.starts_with(env!("CARGO_PKG_RUST_VERSION")), "{rust:?}");

    let setup = fs::read_to_string(root().join("scripts/setup.sh")).expect("reads");
    let version = setup.lines().find_map(|line| line.strip_prefix("ONNXRUNTIME_VERSION=")).expect("a version");
    for (file, package) in [("cpu", "onnxruntime"), ("cuda", "onnxruntime-gpu")] {
        let wheel = fs::read_to_string(root().join(format!("deploy/image/onnxruntime-{file}.txt"))).expect("reads");
        assert!(wheel.contains(&format!("\n{package}=={version} \\\n    --hash=sha256:")), "{wheel}");
    }
    // What building needs is said once more there.
    for package in
        only(&stage("rust")[..2], "RUN").split("--no-install-recommends ").nth(1).expect("packages").split(' ')
    {
        assert!(setup.contains(&format!("need {package} ")), "scripts/setup.sh knows nothing of {package}");
    }
}

#[test]
fn all_that_is_copied_passes_the_dockerignore() {
    let ignore = fs::read_to_string(root().join(".dockerignore")).expect("reads");
    let let_in = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect::<Vec<_>>();
    let text = fs::read_to_string(root().join("Dockerfile")).expect("reads");
    let copies = text.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|rest| !rest.starts_with("--from="));
    let mut sources = 0;
    for rest in copies {
        let words = rest.split(' ').collect::<Vec<_>>();
        for source in &words[..words.len() - 1] {
            sources += 1;
            let is_let_in =
                |entry: &&str| Path::new(source).starts_with(entry) || entry.starts_with(&format!("{source}/"));
            assert!(let_in.iter().any(is_let_in), "{source} is copied, and .dockerignore leaves it out");
        }
    }
    assert!(sources > 10, "only {sources} sources");
    for entry in let_in {
        assert!(
            root().join(entry.trim_end_matches("/*.rs")).exists(),
            ".dockerignore lets in {entry}, which is not there"
        );
    }
}
