//! `feedlens search` for a person, through the real binary in a pseudo-terminal; completion scripts and manual pages.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use regex::Regex;
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr as _;

use crate::binary::{feedlens, refuses};
use crate::query_support::{DRAWINGS, Worker, config, post_of};

const COLUMNS: u16 = 90;
/// Answers of terminals: kitty's protocol and the primary device attributes.
const KITTY: &str = "\x1b_Gi=31;OK\x1b\\\x1b[?62;c";
const SIXEL: &str = "\x1b[?62;4;22c";
const PLAIN: &str = "\x1b[?1;2c";

/// A store with the posts of all drawings, and with hostile ones if so wished.
async fn store(hostile: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let path = format!("store.edge.dir={}", folder.path().join("store").display());
    let worker = Worker::at(&config(&["store.kind=edge", &path])).await;
    for (index, (code, caption)) in DRAWINGS.iter().enumerate() {
        let mut post = post_of(index, code, hostile.get(index).unwrap_or(caption));
        if let Some(hostile) = hostile.get(index) {
            post.author = Some(hostile.chars().take(60).collect());
            post.tags = vec![hostile.chars().take(60).collect()];
        }
        worker.index(&post).await;
    }
    worker.store.close().await.expect("closes");
    folder
}

fn search(store: &Path, arguments: &[&str]) -> Command {
    let folder = format!("store.edge.dir={}", store.join("store").display());
    let mut all = vec!["search", "--set", "store.kind=edge", "--set", &folder, "--set", "log.level=error"];
    all.extend(arguments);
    feedlens(&all)
}

/// Runs a command in a terminal that answers `answer` when it is asked what it can, or nothing; returns all that the
/// terminal was sent.
fn in_terminal(mut command: Command, answer: Option<&str>) -> String {
    let (mut master, mut slave) = (0, 0);
    let size = libc::winsize { ws_row: 40, ws_col: COLUMNS, ws_xpixel: COLUMNS * 10, ws_ypixel: 40 * 20 };
    // SAFETY: openpty fills both descriptors, which nobody else has; the name and the settings are left out.
    let opened = unsafe { libc::openpty(&mut master, &mut slave, std::ptr::null_mut(), std::ptr::null(), &size) };
    assert_eq!(opened, 0, "a pseudo-terminal");
    // SAFETY: as above.
    let (mut master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    let output = |slave: &OwnedFd| Stdio::from(slave.try_clone().expect("a descriptor"));
    command.stdin(output(&slave)).stdout(output(&slave)).stderr(output(&slave));
    command.env("TERM", "xterm-256color").env("COLORTERM", "truecolor").env_remove("NO_COLOR");
    // SAFETY: only system calls that may be made between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // A session of its own, whose terminal this is.
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn().expect("starts");
    drop((command, slave));
    let (mut sent, mut buffer, mut asked) = (Vec::new(), [0; 65_536], false);
    // The end is an error on Linux: nobody has the other side open any more.
    while let Ok(read @ 1..) = master.read(&mut buffer) {
        sent.extend_from_slice(&buffer[..read]);
        if !asked && sent.windows(3).any(|window| window == b"\x1b[c") {
            asked = true;
            if let Some(answer) = answer {
                master.write_all(answer.as_bytes()).expect("answers");
            }
        }
    }
    let sent = String::from_utf8(sent).expect("UTF-8");
    assert!(child.wait().expect("ends").success(), "{sent}");
    sent
}

/// What stays when the escapes that feedlens may write are taken out.
fn without_own_escapes(sent: &str) -> String {
    let own = Regex::new(concat!(
        r"\x1b_G[^\x1b]*\x1b\\",      // kitty's protocol
        r"|\x1bP0;1q[^\x1b]*\x1b\\",  // a sixel picture
        r"|\x1b\[(?:\d+;)*\d*m",      // colours
        r"|\x1b\[\d*[ABCD]|\x1b[78]", // the cursor around a picture
        r"|\x1b\[c\r\x1b\[K|\r",      // the question, wiped away
    ));
    own.expect("an expression").replace_all(sent, "").into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_stand_beside_pictures_in_the_way_that_the_terminal_can() {
    let store = store(&[]).await;
    let ask =
        |answer, arguments: &[&str]| in_terminal(search(store.path(), &[&["红苹果"], arguments].concat()), answer);

    let kitty = ask(Some(KITTY), &[]);
    let pictures = Regex::new(r"\x1b_Ga=T,f=24,s=(\d+),v=(\d+),q=2,C=1,m=[01];").expect("an expression");
    assert_eq!(pictures.captures_iter(&kitty).count(), 5, "{kitty:?}");
    for size in pictures.captures_iter(&kitty) {
        // The box of 8 x 4 cells of 10 x 20 pixels, filled at least in one direction.
        let [width, height] = [1, 2].map(|side| size[side].parse::<u32>().expect("a number"));
        assert!(width.max(height) == 80 && width <= 80 && height <= 80, "{width} x {height}");
    }
    let sixel = ask(Some(SIXEL), &[]);
    assert_eq!(sixel.matches("\x1bP0;1q\"1;1;").count(), 5, "{sixel:?}");
    // Neither, and a terminal that answers nothing at all.
    for answer in [Some(PLAIN), None] {
        let blocks = ask(answer, &[]);
        assert!(blocks.matches('▀').count() >= 5 * 8 && blocks.contains("\x1b[38;2;"), "{blocks:?}");
    }
    assert!(ask(Some(KITTY), &["--pictures", "blocks"]).contains('▀'));
    for sent in [&kitty, &sixel] {
        let text = without_own_escapes(sent);
        assert!(text.contains(" 1  红苹果") && text.contains(" 5  ") && text.contains("demo:1f34e"), "{text:?}");
        assert!(text.contains("2026-11-20 00:00 UTC") && text.contains("#水果") && text.contains('%'), "{text:?}");
        assert!(!text.contains('\x1b'), "{text:?}");
    }
    let none = ask(Some(KITTY), &["--pictures", "none"]);
    assert!(!none.contains('\x1b') && none.lines().count() == 5, "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_terminal_gets_lines_and_programs_get_json() {
    let store = store(&[]).await;
    let output = |arguments: &[&str]| {
        let output = search(store.path(), &[&["红苹果"], arguments].concat()).output().expect("starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let lines = output(&[]);
    assert!(!lines.contains('\x1b') && lines.lines().count() == 5 && lines.contains("demo:1f34e"), "{lines:?}");
    // Asked for, a pipe gets pictures too: `| less -R`.
    assert!(output(&["--pictures", "blocks"]).contains('▀'));
    assert!(output(&["--pictures", "sixel"]).contains("\x1bP0;1q"));
    let answer: Value = serde_json::from_str(&output(&["--json"])).expect("one JSON value");
    assert_eq!(answer["hits"].as_array().map(Vec::len), Some(5), "{answer}");
    assert_eq!(
        feedlens(&["search", "x", "--json", "--pictures", "kitty"]).output().expect("starts").status.code(),
        Some(2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_posts_cannot_steer_the_terminal() {
    let endless = "W".repeat(100_000);
    let marks = format!("Z{}algo", "\u{300}\u{301}".repeat(5_000));
    let hostile = [
        "\x1b]0;title\x07\x1b[2J\x1b[31mred",
        "\u{202e}drawkcab\u{2066}",
        "\x1b_Ga=T,t=f;L2V0Yy9wYXNzd2Q=\x1b\\ \u{9b}31m \x7f\x08\x08",
        &endless,
        &marks,
    ];
    let store = store(&hostile).await;
    let reads_file = Regex::new(r"\x1b_G[^;]*t=f").expect("an expression");
    for answer in [KITTY, SIXEL, PLAIN] {
        let sent = in_terminal(search(store.path(), &["水果", "--target", "caption", "--top-k", "18"]), Some(answer));
        // Nothing of the posts' own is among the escapes: kitty's are pictures or the question, none reads a file.
        assert!(!reads_file.is_match(&sent) && !sent.contains("\x1b]") && !sent.contains("\x1b[2J"), "{sent:?}");
        let text = without_own_escapes(&sent);
        assert!(
            text.contains(r"\u{1b}]0;title\u{7}\u{1b}[2J") && text.contains(r"\u{202e}drawkcab\u{2066}"),
            "{text:?}"
        );
        let steering = text.chars().find(|character| {
            (character.is_control() && *character != '\n')
                || ('\u{202a}'..='\u{202e}').contains(character)
                || ('\u{2066}'..='\u{2069}').contains(character)
        });
        assert_eq!(steering, None, "{text:?}");
        for line in text.lines() {
            // Beside the picture, whose cells are in the same line here.
            let line = line.replace('▀', "");
            assert!(line.width() < usize::from(COLUMNS) - 12, "{line:?} is {} wide", line.width());
            assert!(line.len() < 1_000, "{line:?}");
        }
    }
    let piped = search(store.path(), &["水果", "--target", "caption", "--top-k", "18"]).output().expect("starts");
    let lines = String::from_utf8(piped.stdout).expect("UTF-8");
    assert_eq!(lines.lines().count(), 18, "{lines:?}");
    assert!(
        lines.lines().all(|line| line.width() < 130 && !line.contains(['\x1b', '\u{202e}', '\u{9b}'])),
        "{lines:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_parameter_of_the_api_is_an_option() {
    let store = store(&[]).await;
    let ask = |arguments: &[&str]| {
        let all = [&["水果", "--json", "--min-score", "none", "--top-k", "18"], arguments].concat();
        let output = search(store.path(), &all).output().expect("starts");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("one JSON value");
        answer["hits"].as_array().expect("hits").clone()
    };
    let all = ask(&[]);
    assert_eq!(all.len(), 18);
    let further = ask(&["--offset", "3"]);
    assert_eq!((further.len(), &further[0]["post_id"], &further[0]["rank"]), (15, &all[3]["post_id"], &json!(4)));
    assert!(ask(&["--not-author", "甲"]).iter().all(|hit| hit["author"] == "乙"));
    assert_eq!(ask(&["--tag-all", "水果"]).len(), 8);
    assert_eq!(ask(&["--tag-all", "水果", "--tag-all", "其他"]).len(), 0);
    assert_eq!(ask(&["--label", "scene/food"]).len(), 0, "no post has a label here");
    assert_eq!(ask(&["--label-none", "scene/food"]).len(), 18);
    assert_ne!(ask(&["--freshness", "1h", "--freshness-weight", "1"])[0]["post_id"], all[0]["post_id"], "the newest");
    assert_eq!(ask(&["--fold", "false"]).len(), 18);
    let weighted = ["--target", "both", "--fusion", "weighted", "--image-weight"];
    let order = |weight: &str| {
        let hits = ask(&[&weighted[..], &[weight]].concat());
        hits.iter().map(|hit| hit["post_id"].clone()).collect::<Vec<_>>()
    };
    assert_ne!(order("1"), order("0"), "pictures alone, captions alone");
    assert_ne!(ask(&["--transform", "sine"])[0]["probability"], all[0]["probability"]);
    refuses(&["search", "x", "--transform", "cosine"], 2, &["transform", "centred_sigmoid"]);
    refuses(&["search", "x", "--min-score", "-7"], 2, &["min_score"]);

    let output = search(store.path(), &["水果", "--min-score", "0.99"]).output().expect("starts");
    let told = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success() && told.contains("nothing in the feed fits"), "{told}");
    assert!(told.contains("--min-score none shows the nearest") && told.lines().count() == 1, "{told}");
}

/// What the shell offers behind `feedlens` and these words.
fn completed_by_bash(script: &Path, words: &[&str]) -> String {
    let command = format!(
        "source {}; COMP_WORDS=(feedlens {}); COMP_CWORD={}; _feedlens feedlens {:?} {:?}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" "),
        words.len(),
        words.last().expect("words"),
        words.iter().rev().nth(1).unwrap_or(&"feedlens"),
    );
    let output = Command::new("bash").args(["--norc", "-c", &command]).output().expect("bash runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn shells_complete_commands_and_options() {
    let folder = tempfile::tempdir().expect("a folder");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = feedlens(&["completions", shell]).output().expect("starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let script = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(script.contains("feedlens") && script.contains("min-score"), "{shell}: {script}");
        std::fs::write(folder.path().join(shell), script).expect("writes");
    }
    let bash = folder.path().join("bash");
    assert!(completed_by_bash(&bash, &["sea"]).contains("search"));
    assert_eq!(completed_by_bash(&bash, &["search", "--min"]).trim(), "--min-score");
    let ways = completed_by_bash(&bash, &["search", "--pictures", ""]);
    assert_eq!(ways.split_whitespace().collect::<Vec<_>>(), ["auto", "kitty", "sixel", "blocks", "none"]);
    // A mistake in the configuration is of no concern here.
    let output = feedlens(&["completions", "fish"]).env("FEEDLENS__NO__SUCH", "1").output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("share/man/man1");
    let output = feedlens(&["man", "--out", out.to_str().expect("UTF-8")]).output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = |name: &str| std::fs::read_to_string(out.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let help = String::from_utf8(feedlens(&["--help"]).output().expect("starts").stdout).expect("UTF-8");
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = commands.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    let names: Vec<&str> = names.filter_map(|line| line.split(' ').next()).filter(|name| *name != "help").collect();
    assert!(names.contains(&"search") && names.len() >= 12, "{names:?}");
    for name in names {
        let text = page(&format!("feedlens-{name}.1"));
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{name}: {text}");
    }
    let text = page("feedlens-search.1").replace('\\', "");
    assert!(text.contains("--min-score") && text.contains("--pictures"), "{text}");
    assert!(page("feedlens.1").contains("feedlens-search(1)") || page("feedlens.1").contains("feedlens\\-search(1)"));
    refuses(&["man", "--out", "/dev/null/no"], 1, &["/dev/null/no"]);
}
