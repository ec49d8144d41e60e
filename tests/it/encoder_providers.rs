//! Providers: a required one that cannot serve stops the start, a preferred one falls back and says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use feedlens::config::{Config, Overrides};
use feedlens::encode::EncoderConfig;
use feedlens::encode::encoder::Encoder;
use feedlens::metrics::Metrics;
use serde_json::Value;

fn config(set: &[&str]) -> anyhow::Result<Config> {
    Config::load(&[], &Overrides { files: vec![], set: set.iter().map(ToString::to_string).collect() })
}

#[test]
fn unknown_provider_is_wrong_configuration() {
    let error = config(&["encoder.providers=[\"gpu\"]"]).unwrap_err();
    assert!(format!("{error:#}").contains("\"cuda\", \"tensorrt\", \"cpu\""), "{error:#}");
}

/// The library of the tests is the one for CPUs, so that CUDA cannot serve whatever the machine has.
#[test]
fn preferred_provider_falls_back_and_the_metric_says_so() {
    let config = config(&["encoder.providers=[\"cuda\", \"cpu\"]"]).unwrap();
    let metrics = Arc::new(Metrics::new());
    Encoder::start(&config.model, &config.encoder, &metrics).unwrap();
    let rendered = metrics.render();
    let info = rendered.lines().find(|line| line.starts_with("feedlens_model_info")).unwrap();
    assert!(info.contains("provider=\"cpu\"") && info.contains("fallback_from=\"cuda\""), "{info}");

    let required = EncoderConfig { require: true, ..config.encoder };
    let error = Encoder::start(&config.model, &required, &metrics).err().unwrap();
    assert!(format!("{error:#}").contains("provider \"cuda\" cannot serve"), "{error:#}");
}

#[test]
fn model_whose_golden_vectors_disagree_fails_the_check() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir("models/small").unwrap().map(Result::unwrap).filter(|file| file.path().is_file()) {
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let golden = std::fs::read_to_string("models/small/golden.json").unwrap();
    let mut golden: Value = serde_json::from_str(&golden).unwrap();
    let value = &mut golden["texts"][0]["vector"][0];
    *value = (value.as_f64().unwrap() + 0.1).into();
    for picture in golden["images"].as_array().unwrap() {
        let name = picture["file"].as_str().unwrap();
        std::fs::create_dir_all(folder.path().join(name).parent().unwrap()).unwrap();
        std::fs::copy(Path::new("models/small").join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join("golden.json"), golden.to_string()).unwrap();
    let run = |json: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_feedlens"));
        command.args(["model", "check", "--model"]).arg(folder.path()).args(json).output().unwrap()
    };
    let text = run(&[]);
    let shown = String::from_utf8_lossy(&text.stdout).into_owned();
    assert_eq!(text.status.code(), Some(1), "{shown}");
    assert!(shown.contains("DISAGREES") && shown.contains("unnorm_text_features"), "{shown}");
    let json = run(&["--json"]);
    assert_eq!(json.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["golden"]["agrees"], false);
    assert!(report["image"]["speed"][0]["items_per_second"].as_f64().unwrap() > 0.0, "{report}");
}

fn check(library: &Path, providers: &str, require: bool) -> Output {
    let set = |key: &str, value: &str| format!("encoder.{key}={value}");
    Command::new(env!("CARGO_BIN_EXE_feedlens"))
        .args(["model", "check", "--model", "models/small", "--json"])
        .args(["--set", &set("library", &library.display().to_string())])
        .args(["--set", &set("providers", providers)])
        .args(["--set", &set("require", &require.to_string())])
        .output()
        .unwrap()
}

/// The CUDA library itself, on a machine without a device: FEEDLENS_TEST_GPU_LIBRARY names the `libonnxruntime.so` of
/// the wheel `onnxruntime-gpu`, with its provider libraries beside it.
#[test]
fn cuda_library_without_a_device_is_a_reason_not_a_crash() {
    let Some(library) = std::env::var_os("FEEDLENS_TEST_GPU_LIBRARY").map(PathBuf::from) else {
        eprintln!("SKIPPED: FEEDLENS_TEST_GPU_LIBRARY does not name the library of the wheel onnxruntime-gpu");
        return;
    };
    if Path::new("/proc/driver/nvidia").exists() {
        eprintln!("SKIPPED: this machine has an NVIDIA driver, so that CUDA may serve");
        return;
    }
    for provider in ["cuda", "tensorrt"] {
        let required = check(&library, &format!("[\"{provider}\"]"), true);
        let stderr = String::from_utf8_lossy(&required.stderr);
        assert_eq!(required.status.code(), Some(1), "{stderr}");
        let reason = format!("provider \"{provider}\" cannot serve: ");
        assert!(stderr.lines().any(|line| line.starts_with("feedlens: ") && line.contains(&reason)), "{stderr}");

        let preferred = check(&library, &format!("[\"{provider}\", \"cpu\"]"), false);
        let stderr = String::from_utf8_lossy(&preferred.stderr);
        assert!(preferred.status.success() && stderr.contains("fell back"), "{stderr}");
        let report: Value = serde_json::from_slice(&preferred.stdout).unwrap();
        assert_eq!((&report["provider"], &report["refused"][0]["provider"]), (&"cpu".into(), &provider.into()));
        assert_eq!(report["golden"]["agrees"], true);
    }
}
