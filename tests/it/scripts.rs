//! What the scripts of `make test` and `make lint` promise.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::binary::root;

/// `scripts/test.sh` beside services and a `cargo` that only write down how they were called.
struct Machine(tempfile::TempDir);

impl Machine {
    /// `env` and `start` are what the services script does for these commands.
    fn new(env: &str, start: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("scripts")).expect("a folder");
        std::fs::copy(root().join("scripts/test.sh"), folder.path().join("scripts/test.sh")).expect("copies");
        let services = format!("echo services \"$@\" >>calls\ncase $1 in\nenv) {env} ;;\nstart) {start} ;;\nesac");
        write_script(&folder.path().join("scripts/services.sh"), &services);
        let cargo = "echo cargo on \"${KAFKA_BROKERS:-nothing}, all ${FEEDLENS_ALL_TESTS:-0}\" >>calls";
        write_script(&folder.path().join("cargo"), cargo);
        Self(folder)
    }

    /// Runs the tests; whether they passed, and what was called.
    fn test(&self) -> (bool, Vec<String>) {
        let path = format!("{}:{}", self.0.path().display(), std::env::var("PATH").expect("a PATH"));
        let mut command = Command::new(self.0.path().join("scripts/test.sh"));
        command.env("PATH", path).env_remove("KAFKA_BROKERS").env_remove("QDRANT_URL").env_remove("FEEDLENS_ALL_TESTS");
        let output = command.output().expect("bash");
        let calls = std::fs::read_to_string(self.0.path().join("calls")).expect("calls");
        (output.status.success(), calls.lines().map(str::to_owned).collect())
    }
}

fn write_script(path: &Path, body: &str) {
    std::fs::write(path, format!("#!/usr/bin/env bash\n{body}\n")).expect("writes");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("permissions");
}

#[test]
fn services_that_do_not_start_are_a_failure_and_no_skipped_tests() {
    let (passed, calls) = Machine::new(":", "echo KAFKA_BROKERS=half; exit 1").test();
    assert!(!passed, "{calls:?}");
    assert_eq!(calls, ["services env", "services start", "services stop kafka qdrant"]);
}

#[test]
fn only_the_services_that_were_started_are_stopped() {
    let (passed, calls) = Machine::new(":", "echo KAFKA_BROKERS=a:1").test();
    assert!(passed, "{calls:?}");
    assert_eq!(calls, ["services env", "services start", "cargo on a:1, all 1", "services stop kafka qdrant"]);
    let (passed, calls) = Machine::new("echo KAFKA_BROKERS=a:1", "echo KAFKA_BROKERS=a:1").test();
    assert!(passed, "{calls:?}");
    assert_eq!(calls.last().map(String::as_str), Some("services stop qdrant"));
    let both = "printf 'KAFKA_BROKERS=a:1\\nQDRANT_URL=b\\n'";
    let (passed, calls) = Machine::new(both, both).test();
    assert!(passed && !calls.iter().any(|call| call.contains("stop")), "{calls:?}");
}

/// `scripts/advisories.sh` with these exceptions, beside a `cargo` that has `tools` and only writes down how it was called.
struct Advisories(tempfile::TempDir);

impl Advisories {
    fn new(deny: &str, audit: &str, tools: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for name in ["scripts", ".cargo", "home"] {
            std::fs::create_dir(path(name)).expect("a folder");
        }
        std::fs::copy(root().join("scripts/advisories.sh"), path("scripts/advisories.sh")).expect("copies");
        std::fs::write(path("deny.toml"), deny).expect("writes");
        std::fs::write(path(".cargo/audit.toml"), audit).expect("writes");
        std::fs::write(path("calls"), "").expect("writes");
        let installed = tools.join(" ");
        let cargo = format!(
            "case \"$2\" in\n--version) [[ \" {installed} \" == *\" $1 \"* ]] ;;\n*) echo \"$*\" >>calls ;;\nesac"
        );
        write_script(&path("cargo"), &cargo);
        Self(folder)
    }

    /// Whether they passed, what was called, and what was said.
    fn check(&self, arguments: &[&str]) -> (bool, String, String) {
        let path = format!("{}:{}", self.0.path().display(), std::env::var("PATH").expect("a PATH"));
        let mut command = Command::new(self.0.path().join("scripts/advisories.sh"));
        command
            .args(arguments)
            .env("PATH", path)
            .env("CARGO_HOME", self.0.path().join("home"))
            .env_remove("ADVISORY_DB");
        let output = command.output().expect("bash");
        let calls = std::fs::read_to_string(self.0.path().join("calls")).expect("calls");
        (output.status.success(), calls, String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

const EXCEPTION: &str = r#"ignore = [{ id = "RUSTSEC-2021-0127", reason = "harmless; until 2099-01-01" }]"#;
const BOTH: [&str; 2] = ["deny", "audit"];

#[test]
fn advisories_are_checked_by_both_tools_where_they_and_their_databases_are() {
    let machine = Advisories::new(EXCEPTION, "RUSTSEC-2021-0127", &BOTH);
    let (passed, calls, said) = machine.check(&[]);
    assert!(passed && calls.is_empty(), "{calls}{said}");
    assert!(said.contains("NOT checked by cargo-deny") && said.contains("NOT checked by cargo-audit"), "{said}");

    for database in ["home/advisory-dbs/one", "home/advisory-db"] {
        std::fs::create_dir_all(machine.0.path().join(database)).expect("a folder");
    }
    let (passed, calls, said) = machine.check(&[]);
    assert!(passed && said.is_empty(), "{said}");
    let audited = |lock: &str| calls.contains(&format!("audit --file {lock} --db"));
    assert!(calls.contains("deny --offline check advisories\n"), "{calls}");
    assert!(audited("Cargo.lock") && audited("fuzz/Cargo.lock"), "{calls}");

    let (passed, calls, said) = Advisories::new(EXCEPTION, "RUSTSEC-2021-0127", &BOTH).check(&["--fetch"]);
    assert!(passed, "{said}");
    assert_eq!(calls, "deny check advisories\naudit --file Cargo.lock\naudit --file fuzz/Cargo.lock\n");
}

#[test]
fn a_missing_tool_is_named_and_fails_the_workflow() {
    for (tool, other) in [("deny", "audit"), ("audit", "deny")] {
        let machine = Advisories::new(EXCEPTION, "RUSTSEC-2021-0127", &[other]);
        let (passed, _, said) = machine.check(&[]);
        assert!(passed && said.contains(&format!("NOT checked by cargo-{tool}")), "{said}");
        let (passed, _, said) = machine.check(&["--fetch"]);
        assert!(!passed && said.contains(&format!("cargo-{tool} is not installed")), "{said}");
    }
}

#[test]
fn an_exception_from_advisories_ends_on_its_day() {
    let exceptions = |until: &str| EXCEPTION.replace("until 2099-01-01", until);
    for (until, complaint) in
        [("until 2024-01-31", "RUSTSEC-2021-0127 was excepted until 2024-01-31"), ("", "does not end in")]
    {
        let machine = Advisories::new(&exceptions(until), "RUSTSEC-2021-0127", &BOTH);
        let (passed, _, said) = machine.check(&["--fetch"]);
        assert!(!passed && said.contains(complaint), "{said}");
        // An old commit can be checked for ever.
        assert!(machine.check(&[]).0);
    }
}

#[test]
fn both_tools_have_the_same_exceptions() {
    let (passed, calls, said) = Advisories::new(EXCEPTION, "", &BOTH).check(&["--fetch"]);
    assert!(!passed && calls.is_empty() && said.contains("differ"), "{said}");
    let ours = |name: &str| std::fs::read_to_string(root().join(name)).expect(name);
    let (passed, _, said) = Advisories::new(&ours("deny.toml"), &ours(".cargo/audit.toml"), &BOTH).check(&[]);
    assert!(passed, "{said}");
}
