//! The documents as tests read them: fenced blocks with their marks, and the code in the text around them.

use std::fs;
use std::path::Path;

use regex::Regex;

use crate::binary::root;

/// A Markdown file of the repository.
pub struct Document {
    /// Path from the root.
    pub path: String,
    pub blocks: Vec<Block>,
    /// What stands outside of blocks.
    pub prose: String,
}

/// A fenced block.
pub struct Block {
    /// `docs/api.md:7`, the line of its fence.
    pub place: String,
    pub language: String,
    /// What the comment in the line before the fence says.
    pub mark: Option<String>,
    pub text: String,
}

impl Document {
    fn parse(path: &str, text: &str) -> Self {
        let comment = Regex::new("^<!-- (.+) -->$").expect("a pattern");
        let (mut blocks, mut prose) = (Vec::new(), String::new());
        let mut lines = text.lines().enumerate();
        let mut before = "";
        while let Some((number, line)) = lines.next() {
            if let Some(language) = line.strip_prefix("```") {
                let body = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
                blocks.push(Block {
                    place: format!("{path}:{}", number + 1),
                    language: language.to_owned(),
                    mark: comment.captures(before).map(|found| found[1].to_owned()),
                    text: body.map(|line| line.to_owned() + "\n").collect(),
                });
            } else {
                prose.push_str(line);
                prose.push('\n');
            }
            before = line;
        }
        Self { path: path.to_owned(), blocks, prose }
    }

    /// The code within the text: what stands between backticks, without line breaks.
    pub fn inline_code(&self) -> Vec<String> {
        let code = Regex::new("`([^`]+)`").expect("a pattern");
        // A paragraph at a time: a stray backtick spoils no more than that.
        let paragraphs = self.prose.split("\n\n");
        let found = paragraphs.flat_map(|text| code.captures_iter(text).map(|found| found[1].to_owned()));
        found.map(|code| code.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }
}

/// All documents, the README first; without the changelog, which names what is no more.
pub fn documents() -> Vec<Document> {
    let mut paths = Vec::new();
    collect(root(), &mut paths);
    let name = |path: &Path| path.strip_prefix(root()).expect("below").to_str().expect("UTF-8").to_owned();
    let mut names = paths.iter().map(|path| name(path)).collect::<Vec<_>>();
    names.sort_by_key(|name| (name != "README.md", name.contains('/'), name.clone()));
    assert!(names.len() > 15 && names[0] == "README.md", "{names:?}");
    let read = |name: &String| fs::read_to_string(root().join(name)).expect("reads");
    names.iter().map(|name| Document::parse(name, &read(name))).collect()
}

fn collect(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        // Build outputs and caches, wherever they lie.
        if name.starts_with('.') || path.join("CACHEDIR.TAG").exists() {
            continue;
        }
        if path.is_dir() {
            collect(&path, found);
        } else if name.ends_with(".md") && name != "CHANGELOG.md" {
            found.push(path);
        }
    }
}

/// The commands of shell text: the words of each, without redirections and comments.
pub fn commands(shell: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut command = String::new();
    for line in shell.lines() {
        command.push_str(line);
        command.push('\n');
        // A quoted text, or a line that ends with a backslash, goes on in the next.
        let Some(words) = shlex::split(&command).filter(|_| !line.ends_with('\\')) else { continue };
        for part in words.split(|word| matches!(word.as_str(), "|" | "&&" | ";")).filter(|part| !part.is_empty()) {
            let is_redirection = |word: &String| word.starts_with(['<', '>']);
            let end = part.iter().position(is_redirection).unwrap_or(part.len());
            found.push(part[..end].to_vec());
        }
        command.clear();
    }
    assert!(command.is_empty(), "a quotation has no end: {command}");
    found
}

/// The calls of `feedlens` among them: the arguments of each.
pub fn calls(shell: &str) -> Vec<Vec<String>> {
    let is_ours = |program: &String| program == "feedlens" || program.ends_with("/feedlens");
    let ours = commands(shell).into_iter().filter(|words| words.first().is_some_and(is_ours));
    ours.map(|words| words[1..].to_vec()).collect()
}

#[test]
fn blocks_marks_and_calls_are_found() {
    let text = "# A\nuse `a\nb` and\n<!-- not run: why -->\n```sh\nfeedlens x > y\nFOO=1 ls | feedlens z 'a\nb' # c\n```\nend\n```toml\n```\n";
    let document = Document::parse("a.md", text);
    assert_eq!(document.inline_code(), ["a b"]);
    let [shell, toml] = &document.blocks[..] else { panic!("two blocks") };
    assert_eq!(
        (shell.place.as_str(), shell.language.as_str(), shell.mark.as_deref()),
        ("a.md:5", "sh", Some("not run: why"))
    );
    assert_eq!(calls(&shell.text), [vec!["x"], vec!["z", "a\nb"]]);
    assert_eq!((toml.place.as_str(), toml.mark.as_deref(), toml.text.as_str()), ("a.md:11", None, ""));
}
