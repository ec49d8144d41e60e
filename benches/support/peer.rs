//! The Python packages that this project is compared with, in a process of their own that does what it is asked, a line at a
//! time.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running script.
pub struct Peer {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    /// With the Python that FEEDLENS_BENCH_PYTHON names, or that `make bench-peers` made; `None` where it lacks one of the
    /// modules. `script` finds `data` on its first line of input, as JSON.
    pub fn start(script: &str, modules: &[&str], data: &[String]) -> Option<Self> {
        let named = std::env::var_os("FEEDLENS_BENCH_PYTHON").map(PathBuf::from);
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = named.unwrap_or_else(|| root.join(".cache/bench/venv/bin/python"));
        let has_them = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))";
        let found = Command::new(&python).args(["-c", has_them]).args(modules).status();
        if !found.is_ok_and(|status| status.success()) {
            return None;
        }
        let mut command = Command::new(python);
        let mut process =
            command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python starts");
        let mut input = process.stdin.take().expect("piped");
        writeln!(input, "{}", serde_json::to_string(data).expect("JSON")).expect("Python reads");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        Some(Self { process, input, output })
    }

    /// One line to the script, and the JSON that it answers with.
    pub fn ask<T: serde::de::DeserializeOwned>(&mut self, request: &str) -> T {
        writeln!(self.input, "{request}").expect("Python reads");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("Python answers");
        serde_json::from_str(&answer).expect("what the script prints")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It has answered all that it was asked; without this it would wait for more.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
