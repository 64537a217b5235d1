//! Directories of repos, and the program that serves them.

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Answer, ask, get};
use hub_fixture::{GOOD_TOKEN, Hub, Repo};

/// A directory with one repo, `org/model`, removed when dropped.
struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Root {
        let root = std::env::temp_dir().join(format!("hub-fixture-{}-{name}", std::process::id()));
        let settings = r#"{"lfs":["*.xyz"],"tags_refs":["1.0"],"pipeline_tag":"text-generation","gated":"auto"}"#;
        for (path, text) in [
            (".hf.json", settings),
            ("config.json", "{\"a\":1}\n"),
            ("model.gguf", "weights"),
            ("onnx/model.onnx", "deep"),
            ("onnx.txt", "x"),
            ("onnx-x/y", "y"),
            ("odd.xyz", "z"),
            (".git/HEAD", "not part of it"),
        ] {
            let path = root.join("org/model").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Root(root)
    }

    fn repo(&self) -> PathBuf {
        self.0.join("org/model")
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What mkhf.py prints for the files of [`Root`].
const MKHF_COMMIT: &str = "82c9bdd8a5b612b4ea912157cf3d1add350845b5";

#[test]
fn a_directory_gets_the_ids_mkhf_gives_it() {
    let root = Root::new("ids");
    let hub = Hub::start(vec![Repo::from_dir("org/model", root.repo()).unwrap()]);
    assert_eq!(hub.commit("org/model", "main").unwrap(), MKHF_COMMIT);
    assert_eq!(hub.commit("org/model", "v1.0").unwrap(), MKHF_COMMIT);
    assert!(hub.file("org/model", "main", "odd.xyz").unwrap().lfs);
    let info = get(hub.endpoint() + "/api/models/org/model").json();
    assert_eq!((&info["gated"], &info["pipeline_tag"]), (&"auto".into(), &"text-generation".into()));
    assert_eq!(info["siblings"].as_array().unwrap().len(), 6);
}

#[test]
fn a_directory_with_broken_settings_is_an_error() {
    let root = Root::new("broken");
    std::fs::write(root.repo().join(".hf.json"), "{").unwrap();
    assert!(Repo::from_dir("org/model", root.repo()).is_err());
    assert!(Repo::from_dir("org/model", root.0.join("nowhere")).is_err());
}

fn start(root: &Path, more: &[&str]) -> (Child, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_hub-fixture"));
    let mut child = program.arg("--root").arg(root).args(more).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let endpoint = line.trim().strip_prefix("HF_ENDPOINT=").expect("the endpoint is printed").to_owned();
    (child, endpoint)
}

#[test]
fn the_program_serves_until_a_signal_ends_it() {
    let root = Root::new("program");
    for signal in ["TERM", "INT"] {
        let (log, note) = (root.0.join("log"), root.0.join("endpoint"));
        let more = ["--log", log.to_str().unwrap(), "--print-endpoint", note.to_str().unwrap(), "--page", "2"];
        let (mut child, endpoint) = start(&root.0, &more);
        assert_eq!(std::fs::read_to_string(&note).unwrap().trim(), endpoint);
        let page = get(endpoint.clone() + "/api/models/org/model/tree/main?recursive=true");
        assert_eq!((page.json().as_array().unwrap().len(), page.header("link").is_some()), (2, true));
        let answer = ask("HEAD", endpoint + "/org/model/resolve/main/model.gguf").token(GOOD_TOKEN).send();
        assert_eq!(get(answer.expect("location")).text(), "weights");
        assert!(Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap().success());
        assert!(child.wait().unwrap().success(), "SIG{signal} is a clean end");
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.contains("cdn GET /xet-bridge/") && log.contains(" 200 bytes=7 "), "{log}");
        assert!(!log.contains("hf_good"), "tokens stay out of the log");
    }
}

#[test]
fn the_program_misbehaves_at_random_where_it_is_told_to() {
    let root = Root::new("random");
    let (mut child, endpoint) = start(&root.0, &["--faults", "1", "--fault-seed", "5", "--fault-pause", "1"]);
    let url = endpoint + "/api/models/org/model/tree/main?recursive=true";
    let ask = || ask("GET", url.clone()).patience(Duration::from_millis(50)).try_send();
    let sound = |answer: &Answer| answer.status == 200 && answer.complete && answer.body.starts_with(b"[{");
    assert!((0..20).any(|_| !ask().as_ref().is_some_and(sound)));
    child.kill().unwrap();
    child.wait().unwrap();
}
