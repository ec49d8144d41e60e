//! What `make test` promises of the services that it starts.

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
