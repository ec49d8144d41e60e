//! The commands in the documents run: each block of shell, as it stands there, beside a running demo and an embedded broker.
//! A block that is not run says why, or which test runs it, in a comment before it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use feedlens::kafka::EmbeddedBroker;
use regex::Regex;

use crate::binary::root;
use crate::bundles;
use crate::docs_support::{Block, commands, documents};
use crate::ports::free_port;
use crate::skip;

/// What a block may need before it is given up, in seconds: far more than any takes.
const PATIENCE: u32 = 600;

/// What a block without a mark may start. Others change machines, or fetch things: such blocks say by a mark why they are not run.
const PROGRAMS: [&str; 9] = ["feedlens", "curl", "cat", "date", "grep", "mkdir", "openssl", "printf", "make demo"];

/// A clone's folders, with files of the names that the documents use, a home, a broker, and `make demo` in the background.
struct Place {
    demo: Child,
    environment: Vec<(&'static str, String)>,
    folder: tempfile::TempDir,
    _broker: EmbeddedBroker,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        lay_out(folder.path());
        let broker = EmbeddedBroker::start(&[
            ("posts", 4),
            ("posts.dlq", 4),
            ("posts.moderation", 4),
            ("search.requests", 4),
            ("search.results", 4),
            ("topics.standing", 4),
            ("topic.matches", 4),
        ])
        .expect("the broker starts");
        let [page, admin, worker] = [free_port(), free_port(), free_port()];
        // The documents' addresses lead to the demo.
        let to_demo = [(8080, page), (9090, admin)];
        let connect = to_demo.map(|(from, to)| format!("connect-to = localhost:{from}:127.0.0.1:{to}\n"));
        let curlrc = format!("fail-with-body\nshow-error\nmax-time = 100\n{}", connect.concat());
        fs::write(at("home/.curlrc"), curlrc).expect("writes");
        let folder_name = folder.path().display();
        let environment = vec![
            ("FEEDLENS", env!("CARGO_BIN_EXE_feedlens").to_owned()),
            ("REPOSITORY", root().display().to_string()),
            ("HOME", at("home").display().to_string()),
            ("CURL_HOME", at("home").display().to_string()),
            ("PRELUDE", root().join("tests/fixtures/docs/prelude.sh").display().to_string()),
            ("WORKER_ADMIN_PORT", worker.to_string()),
            ("DEMO_ADMIN_PORT", admin.to_string()),
            ("FEEDLENS__ADMIN__LISTEN", format!("127.0.0.1:{admin}")),
            ("FEEDLENS__QUERY__LISTEN", format!("127.0.0.1:{page}")),
            ("FEEDLENS__KAFKA__BROKERS", broker.bootstrap()),
            ("FEEDLENS__STORE__KIND", "edge".to_owned()),
            // `make demo ONCE=1` fills it.
            ("FEEDLENS__STORE__EDGE__DIR", format!("{folder_name}/store")),
        ];
        let mut demo = Command::new("bash");
        demo.args(["-c", r#". "$PRELUDE"; command make "${MAKE_ARGUMENTS[@]}" demo"#]).envs(environment.clone());
        demo.env("FEEDLENS__STORE__EDGE__DIR", at("demo-store"));
        // A group of its own: make, its shell and the demo end together.
        demo.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut place = Self { demo: demo.spawn().expect("bash"), environment, folder, _broker: broker };
        let mut told = BufReader::new(place.demo.stdout.take().expect("piped")).lines().map_while(Result::ok);
        assert!(told.any(|line| line.starts_with("the page: ")), "the demo ended before it had a page");
        std::thread::spawn(move || told.for_each(drop));
        place
    }

    /// Runs a script in the place; whether it ended well, its output, and all that it told.
    fn run(&self, script: &str) -> (bool, String, String) {
        let mut command = Command::new("timeout");
        command
            .args([&PATIENCE.to_string(), "bash", "-c", &format!(". \"$PRELUDE\"\n{script}")])
            .envs(self.environment.clone());
        let output = command.current_dir(self.folder.path()).stdin(Stdio::null()).output().expect("bash");
        let [stdout, stderr] =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        (output.status.success(), stdout.clone(), stdout + &stderr)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // SAFETY: a signal to the group of a child of ours, which has not been waited for.
        unsafe { libc::kill(-(self.demo.id() as i32), libc::SIGKILL) };
        let _ = self.demo.wait();
    }
}

/// What a person has who works in a clone: its folders, and files of their own. Bundles are copied, for commands write into them.
fn lay_out(place: &Path) {
    for name in ["demo", "config", "tools", "scripts", "tests"] {
        symlink(root().join(name), place.join(name)).expect("a link");
    }
    for name in ["home", "models/small", ".cache", "photos/猫", "photos/狗"] {
        fs::create_dir_all(place.join(name)).expect("a folder");
    }
    symlink(root().join(".cache/onnxruntime"), place.join(".cache/onnxruntime")).expect("a link");
    bundles::copy(&root().join("models/small"), &place.join("models/small"));
    let picture = |code: &str| root().join(format!("demo/images/{code}.png"));
    for (name, code) in [("photos/猫/a.png", "1f408"), ("photos/狗/b.png", "1f415"), ("photo.png", "1f34e")] {
        fs::copy(picture(code), place.join(name)).expect("copies");
    }
    for (name, text) in [
        ("my.toml", "[log]\nlevel = \"warn\"\n"),
        ("items.jsonl", "{\"text\": \"海边的日落\"}\n{\"image\": \"photo.png\"}\n"),
        ("texts.jsonl", "{\"text\": \"海边的日落\"}\n"),
        ("texts.csv", "text_id,text\n1,红苹果\n2,a dog\n"),
        ("pictures.csv", "image_id\n1f34e.png\n"),
        ("names.txt", "狗\n猫\n"),
    ] {
        fs::write(place.join(name), text).expect("writes");
    }
}

/// What the comments of a block promise of its output (`prints {...`), each as a pattern; "..." stands for anything.
fn promised(block: &str) -> Vec<String> {
    let comment = Regex::new(r"#.*\bprints (\{[^;\n]+)").expect("a pattern");
    let pattern = |text: &str| regex::escape(text.trim()).replace(r"\.\.\.", ".*");
    comment.captures_iter(block).map(|found| pattern(&found[1])).collect()
}

/// A line of a transcript, without what differs from one run to the next: times, similarities, the rank of near ones.
fn steady(line: &str) -> String {
    let number = Regex::new(r"\d+\.\d+|^\s*\d+\s").expect("a pattern");
    number.replace_all(line, "# ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A block's commands, and what a transcript shows of their output.
fn script(block: &Block) -> (String, Vec<&str>) {
    let is_transcript = block.language == "console";
    let (commands, shown): (Vec<_>, Vec<_>) =
        block.text.lines().partition(|line| !is_transcript || line.starts_with("$ "));
    let script = commands.iter().map(|line| line.strip_prefix("$ ").unwrap_or(line)).collect::<Vec<_>>().join("\n");
    (script, shown)
}

/// A command of a block that this test does not run.
fn foreign(script: &str) -> Option<String> {
    let named = commands(script).into_iter().map(|words| words.join(" "));
    // `name=$(command)`
    let mut named =
        named.map(|command| command.split_once("=$(").map_or(command.clone(), |(_, inner)| inner.to_owned()));
    named.find(|command| {
        !PROGRAMS.iter().any(|program| command == program || command.starts_with(&format!("{program} ")))
    })
}

/// Runs a block; what is wrong with it.
fn mistake(place: &Place, block: &Block) -> Option<String> {
    let (script, shown) = script(block);
    let (ended_well, stdout, told) = place.run(&script);
    if !ended_well {
        return Some(format!("{}: the block fails:\n{script}\n{told}", block.place));
    }
    let printed = told.lines().map(steady).collect::<BTreeSet<_>>();
    let wrong = shown.iter().map(|line| steady(line)).find(|line| line != "..." && !printed.contains(line));
    if let Some(line) = wrong {
        return Some(format!("{}: {line:?} is not in the output:\n{told}", block.place));
    }
    let mut rest = stdout.as_str();
    for pattern in promised(&block.text) {
        let Some(found) = Regex::new(&pattern).expect("a pattern").find(rest) else {
            return Some(format!("{}: {pattern} is not printed:\n{stdout}", block.place));
        };
        rest = &rest[found.end()..];
    }
    None
}

/// Checks the mark of a block that is not run here.
fn check_mark(block: &Block, mark: &str) -> Result<(), String> {
    if mark.strip_prefix("not run: ").is_some_and(|reason| reason.len() > 10) {
        return Ok(());
    }
    let tests = mark.strip_prefix("run by: ").ok_or_else(|| format!("{}: what is {mark:?}?", block.place))?;
    for test in tests.split(", ") {
        let (file, function) = test.split_once("::").ok_or_else(|| format!("{}: {test} is no test", block.place))?;
        let source = fs::read_to_string(root().join(file)).unwrap_or_default();
        if !source.contains(&format!("fn {function}(")) {
            return Err(format!("{}: there is no {test}", block.place));
        }
    }
    Ok(())
}

#[test]
fn every_command_of_the_documents_runs_or_says_why_not() {
    if Command::new("curl").arg("--version").output().is_err() {
        return skip::without("no curl on the PATH");
    }
    let documents = documents();
    let blocks = documents.iter().flat_map(|document| &document.blocks);
    let mut mistakes = Vec::new();
    let mut to_run = Vec::<&Block>::new();
    for block in blocks {
        match (block.language.as_str(), &block.mark) {
            ("sh" | "console", Some(mark)) => mistakes.extend(check_mark(block, mark).err()),
            ("sh" | "console", None) => match foreign(&script(block).0) {
                Some(command) => mistakes.push(format!("{}: `{command}` is not run here; mark it", block.place)),
                None => to_run.push(block),
            },
            ("toml" | "json" | "yaml" | "text" | "mermaid", _) => {}
            (other, _) => mistakes.push(format!("{}: a block of {other:?}; shell is sh, or console", block.place)),
        }
    }
    assert!(to_run.len() >= 10, "only {} blocks are run", to_run.len());
    let place = Place::new();
    let comment = Regex::new(" +#.*").expect("a pattern");
    let mut ran = BTreeSet::new();
    for block in to_run {
        // A translation has the same commands.
        if ran.insert(comment.replace_all(&block.text, "").into_owned()) {
            mistakes.extend(mistake(&place, block));
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n\n"));
}

#[test]
fn promises_and_transcripts_are_compared_without_what_varies() {
    assert_eq!(promised("a # it prints {\"x\": ...}; or not\nb # prints all"), [r#"\{"x": .*\}"#]);
    assert_eq!(steady("   1  0.387   12.7%  demo:1f348   今天"), steady("   2  0.3   1.7%  demo:1f348 今天"));
    assert_ne!(steady("indexed 1914 posts"), steady("indexed 1913 posts"));
}
