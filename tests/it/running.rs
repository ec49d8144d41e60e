//! The real workers, as tests start them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::binary::feedlens;
use crate::ports::free_port;

/// A worker with an embedded store, and its admin port.
pub struct Running {
    child: Child,
    pub admin: u16,
    folder: tempfile::TempDir,
}

impl Running {
    /// `feedlens ingest`.
    pub fn ingest(brokers: &str, further: &[&str]) -> Self {
        Self::start("ingest", brokers, further)
    }

    /// Starts a command on these brokers, with further settings `a.b=value`.
    pub fn start(command: &str, brokers: &str, further: &[&str]) -> Self {
        Self::launch(&[command], brokers, further, None)
    }

    /// The same with these variables in its environment.
    pub fn start_among(command: &str, brokers: &str, further: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = feedlens(&[command]);
        command.envs(environment.iter().copied());
        Self::spawn(command, brokers, further, None)
    }

    /// `feedlens ingest` with a configuration file.
    pub fn ingest_with(brokers: &str, file: &Path) -> Self {
        Self::launch(&["ingest", "--config", file.to_str().expect("a path")], brokers, &[], None)
    }

    /// `feedlens ingest` whose log goes elsewhere.
    pub fn ingest_logging_to(brokers: &str, log: std::fs::File) -> Self {
        Self::launch(&["ingest"], brokers, &["log.level=debug"], Some(log))
    }

    /// Any command that runs until it is told to stop.
    pub fn launch(arguments: &[&str], brokers: &str, further: &[&str], log: Option<std::fs::File>) -> Self {
        Self::spawn(feedlens(arguments), brokers, further, log)
    }

    fn spawn(mut command: Command, brokers: &str, further: &[&str], log: Option<std::fs::File>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let admin = free_port();
        let settings = [
            "store.kind=edge".to_owned(),
            format!("store.edge.dir={}", folder.path().join("store").display()),
            format!("kafka.brokers={brokers}"),
            format!("admin.listen=127.0.0.1:{admin}"),
            "kafka.commit_interval=100ms".to_owned(),
            "query.listen=127.0.0.1:0".to_owned(),
            "images.allow_networks=[\"127.0.0.0/8\"]".to_owned(),
        ];
        for setting in settings.iter().map(String::as_str).chain(further.iter().copied()) {
            command.args(["--set", setting]);
        }
        // A file: a pipe that nobody reads would stop the worker.
        let log = log.unwrap_or_else(|| std::fs::File::create(folder.path().join("log")).expect("a file"));
        let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("starts");
        Self { child, admin, folder }
    }

    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Status and body of an admin endpoint; `None` while nobody listens.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// `feedlens ready` of its configuration, as a health check runs it: exit code, stdout and stderr.
    pub fn ready(&self, further: &[&str]) -> (Option<i32>, String, String) {
        let listen = format!("admin.listen=0.0.0.0:{}", self.admin);
        let settings = further.iter().flat_map(|setting| ["--set", setting]);
        let output = feedlens(&["ready", "--set", &listen]).args(settings).output();
        let output = output.expect("the binary starts");
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// The value of a metric without labels, or of one with the labels as the scrape writes them.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").map(|(_, body)| body).unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or(f64::NAN)
    }

    /// Posts that are indexed, deleted, ignored or dead-lettered.
    pub fn settled(&self) -> u64 {
        self.sum(&["posts_indexed_total", "posts_deleted_total", "posts_ignored_total", "posts_dead_lettered_total"])
    }

    fn sum(&self, names: &[&str]) -> u64 {
        let text = self.get("/metrics").map(|(_, body)| body).unwrap_or_default();
        let is_meant = |line: &&str| {
            line.strip_prefix("feedlens_").is_some_and(|line| names.iter().any(|name| line.starts_with(name)))
        };
        let values = text.lines().filter(is_meant).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        values.sum()
    }

    /// Posts that are dead letters.
    pub fn dead_lettered(&self) -> u64 {
        self.sum(&["posts_dead_lettered_total"])
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("is ours").is_some()
    }

    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a signal to a child of ours, which has not been waited for.
        let sent = unsafe { libc::kill(self.child.id() as i32, signal) };
        assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).expect("the log")
    }

    /// Waits for the end.
    pub fn exit_code(mut self) -> Option<i32> {
        self.child.wait().expect("ends").code()
    }

    /// Waits for the end; exit code and log.
    pub fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.wait().expect("ends").code();
        let log = self.log();
        (code, log)
    }
}

impl Drop for Running {
    /// A test that fails leaves no worker behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
