//! The program against an origin that is not ours: Debian's nginx with the Hub's URLs, headers, redirects and error codes, laid
//! out by mkhf.py. Our own fixture could share a misunderstanding with our client; this one can't.
//!
//! Needs nginx and python3, which `make setup` finds or gets; without them these tests fail, they are not skipped.

use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const MIB: usize = 1 << 20;
/// What a kill may cost for each connection: the block it was fetching.
const BLOCK_BYTES: u64 = 5 << 20;
const CONNECTIONS: u64 = 8;
/// The token that opens what is gated or private.
const TOKEN: &str = "hf_good";

// -- the origin -------------------------------------------------------------------------------------------------------------

/// A folder of repos, and nginx serving it until dropped.
struct Origin {
    dir: TempDir,
    nginx: Child,
    port: u16,
    cdn_port: u16,
}

impl Origin {
    /// Serves the repos of [`repos`], laid out by mkhf.py with `arguments`.
    fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, |configuration| configuration)
    }

    /// The same, after `change` had its way with nginx's configuration.
    fn start_with(arguments: &[&str], change: impl Fn(String) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        repos(&dir.path().join("src"));
        // Between finding free ports and using them, somebody else may.
        for _ in 0..5 {
            let (port, cdn_port) = free_ports();
            lay_out(dir.path(), port, cdn_port, arguments);
            let configuration = dir.path().join("out/nginx.conf");
            fs::write(&configuration, change(fs::read_to_string(&configuration).unwrap())).unwrap();
            if let Some(nginx) = serve(dir.path(), cdn_port) {
                return Self { dir, nginx, port, cdn_port };
            }
        }
        panic!("nginx did not start: {}", fs::read_to_string(dir.path().join("out/logs/error.log")).unwrap_or_default());
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The folder a repo is served from.
    fn files(&self, repo: &str) -> PathBuf {
        self.dir.path().join("src").join(repo)
    }

    fn log(&self) -> Log {
        // A line is written when its answer ended; for a client that is gone that takes nginx a moment.
        let path = self.dir.path().join("out/logs/access.log");
        let mut text = fs::read_to_string(&path).unwrap();
        loop {
            std::thread::sleep(Duration::from_millis(150));
            let now = fs::read_to_string(&path).unwrap();
            if now == text {
                break;
            }
            text = now;
        }
        Log(text.lines().map(|line| Answer::parse(line, self.cdn_port)).collect())
    }

    fn clear_log(&self) {
        self.log();
        fs::File::options().write(true).truncate(true).open(self.dir.path().join("out/logs/access.log")).unwrap();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = self.nginx.kill();
        let _ = self.nginx.wait();
    }
}

/// The original where this tree stands beside it, else the copy of it in this tree.
fn origin_scripts() -> PathBuf {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let beside = top.join("../shared/origin");
    if beside.join("mkhf.py").exists() { beside } else { top.join("tests/origin") }
}

fn lay_out(dir: &Path, port: u16, cdn_port: u16, arguments: &[&str]) {
    let done = Command::new(std::env::var_os("MODEL_CACHE_PYTHON").unwrap_or_else(|| "python3".into()))
        .arg(origin_scripts().join("mkhf.py"))
        .args([dir.join("src"), dir.join("out")])
        .args(["--port", &port.to_string(), "--cdn-port", &cdn_port.to_string()])
        .args(arguments)
        .output()
        .expect("python3 lays the origin out: is it installed?");
    assert!(done.status.success(), "mkhf.py: {}", String::from_utf8_lossy(&done.stderr));
}

/// `None` if it ended at once, most likely for a port that is taken.
fn serve(dir: &Path, cdn_port: u16) -> Option<Child> {
    let out = dir.join("out");
    let mut nginx = Command::new(nginx_program())
        .args(["-e", "logs/error.log", "-g", "master_process off;"]) // one process, so that killing it ends it
        .arg("-p")
        .arg(&out)
        .arg("-c")
        .arg(out.join("nginx.conf"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while nginx.try_wait().unwrap().is_none() {
        if TcpStream::connect(("127.0.0.1", cdn_port)).is_ok() {
            return Some(nginx);
        }
        assert!(Instant::now() < deadline, "nginx does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

fn nginx_program() -> PathBuf {
    if let Some(named) = std::env::var_os("MODEL_CACHE_NGINX").map(PathBuf::from) {
        assert!(named.is_file(), "MODEL_CACHE_NGINX names {}, which is not there", named.display());
        return named;
    }
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.build/nginx/usr/sbin/nginx");
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .map(|folder| folder.join("nginx"))
        .chain([unpacked, "/usr/sbin/nginx".into(), "/usr/local/sbin/nginx".into()])
        .find(|program| program.is_file())
        .expect("no nginx here: run `make setup`, or name one in MODEL_CACHE_NGINX")
}

fn free_ports() -> (u16, u16) {
    let [one, two] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    (one.local_addr().unwrap().port(), two.local_addr().unwrap().port())
}

/// One line of the access log.
#[derive(Debug)]
struct Answer {
    from_cdn: bool,
    uri: String,
    status: u16,
    body_bytes: u64,
    with_token: bool,
    encodings: String,
}

impl Answer {
    /// `PORT METHOD URI STATUS bytes=N range=.. inm=.. auth=yes|- ..`
    fn parse(line: &str, cdn_port: u16) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let field =
            |name: &str| words.iter().find_map(|word| word.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {line}"));
        Self {
            from_cdn: words[0] == cdn_port.to_string(),
            uri: words[2].to_owned(),
            status: words[3].parse().unwrap(),
            body_bytes: field("bytes=").parse().unwrap(),
            with_token: field("auth=") == "yes",
            encodings: field("ae=").to_owned(),
        }
    }

    /// Whether its body was bytes of a model's file.
    fn served_file(&self) -> bool {
        matches!(self.status, 200 | 206) && !self.uri.starts_with("/api/models/")
    }
}

struct Log(Vec<Answer>);

impl Log {
    fn file_bytes(&self) -> u64 {
        self.0.iter().filter(|answer| answer.served_file()).map(|answer| answer.body_bytes).sum()
    }

    #[track_caller]
    fn assert_the_cdn_saw_no_token(&self) {
        let cdn: Vec<_> = self.0.iter().filter(|answer| answer.from_cdn).collect();
        assert!(!cdn.is_empty(), "nothing was asked of the CDN: {:?}", self.0);
        assert!(cdn.iter().all(|answer| !answer.with_token && matches!(answer.status, 200 | 206)), "{cdn:?}");
    }
}

// -- the repos --------------------------------------------------------------------------------------------------------------

/// Files of every kind there is: large and small, by LFS and by git, in folders, empty, with names that need escaping.
fn repos(root: &Path) {
    let common = |repo: &Path| {
        write(&repo.join("config.json"), b"{\"model_type\": \"llama\"}\n");
        write(&repo.join("README.md"), b"# A model\n");
    };
    let model = root.join("org/model");
    common(&model);
    write(&model.join(".hf.json"), br#"{"pipeline_tag": "text-generation", "tags_refs": ["1.0"]}"#);
    write(&model.join("model-Q8_0.gguf"), &noise(1, 130 * MIB + 12_345)); // two chunks
    write(&model.join("Q4_K_M/model-Q4_K_M.gguf"), &noise(2, 9 * MIB + 1));
    write(&model.join("tokenizer.json"), &noise(3, 11 * MIB)); // LFS for its size alone
    write(&model.join("block.dat"), &noise(4, 5 * MIB)); // one block to the byte
    write(&model.join("small.dat"), &noise(5, 1)); // LFS, stored inline
    write(&model.join("vocab.txt"), &noise(6, 300_000)); // git, an extent
    write(&model.join("edge.txt"), &noise(7, 64 << 10)); // git, the largest stored inline
    write(&model.join("empty.txt"), b"");
    write(&model.join("deep/er/and deeper/a+b & ü 100%.txt"), b"a name to escape\n");

    for (name, settings) in
        [("gated", r#"{"gated": "manual"}"#), ("private", r#"{"private": true}"#), ("disabled", r#"{"disabled": true}"#)]
    {
        let repo = root.join("org").join(name);
        common(&repo);
        write(&repo.join(".hf.json"), settings.as_bytes());
        write(&repo.join("model-Q4_0.gguf"), &noise(8, 3 * MIB));
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::File::create(path).unwrap().write_all(bytes).unwrap();
}

/// Bytes that repeat nowhere (xorshift64*).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Every file below `root` but mkhf.py's own, by relative path.
fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, folder: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, into);
            } else if path.file_name().unwrap() != ".hf.json" {
                into.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(root, root, &mut files);
    files
}

fn total_bytes(files: &BTreeMap<String, Vec<u8>>) -> u64 {
    files.values().map(|bytes| bytes.len() as u64).sum()
}

// -- the program ------------------------------------------------------------------------------------------------------------

/// A store of its own, and the program using it with an origin.
struct Machine<'a> {
    home: TempDir,
    origin: &'a Origin,
    token: Option<&'a str>,
}

impl<'a> Machine<'a> {
    fn new(origin: &'a Origin) -> Self {
        Self { home: tempfile::tempdir().unwrap(), origin, token: None }
    }

    fn with_token(origin: &'a Origin, token: &'a str) -> Self {
        Self { token: Some(token), ..Self::new(origin) }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_model-cache"));
        command.env_clear().env("HOME", self.home.path()).env("HF_ENDPOINT", self.origin.endpoint());
        if let Some(token) = self.token {
            command.env("HF_TOKEN", token);
        }
        command.arg("--store").arg(self.home.path().join("store")).args(arguments).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Vec<u8> {
        let done = self.output(arguments);
        assert!(done.status.success(), "{arguments:?}: {}\n{}", done.status, String::from_utf8_lossy(&done.stderr));
        done.stdout
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&self.run(&[&["--json"], arguments].concat())).unwrap()
    }

    /// Runs what must fail with `code`, and gives what it said.
    #[track_caller]
    fn refused(&self, code: i32, arguments: &[&str]) -> String {
        let done = self.output(arguments);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains("error:"), "{said}");
        assert!(done.stdout.is_empty(), "{}", String::from_utf8_lossy(&done.stdout));
        said
    }

    fn output(&self, arguments: &[&str]) -> Output {
        let done = self.command(arguments).output().unwrap();
        if let Some(token) = self.token {
            for text in [&done.stdout, &done.stderr] {
                assert!(!String::from_utf8_lossy(text).contains(token), "{arguments:?} shows the token");
            }
        }
        done
    }

    /// Pulls until `bytes` of one file are here, then kills the program, as `kill -9` does.
    fn pull_and_kill_at(&self, arguments: &[&str], bytes: u64) {
        let mut pull = self
            .command(&[&["--progress", "json", "pull"], arguments].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        for line in BufReader::new(pull.stderr.take().unwrap()).lines() {
            let line = line.unwrap();
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            assert_ne!(event["event"], "done", "the pull ended before it could be killed");
            if event["event"] == "progress" && event["loaded_bytes"].as_u64().unwrap() >= bytes {
                pull.kill().unwrap();
                break;
            }
        }
        assert!(!pull.wait().unwrap().success());
    }
}

/// What is in the store of `machine` is what `origin` serves, however it is asked for.
#[track_caller]
fn assert_same_files(machine: &Machine<'_>, repo: &str) {
    let served = tree(&machine.origin.files(repo.split('@').next().unwrap()));
    for (path, bytes) in &served {
        assert!(machine.run(&["cat", repo, path]) == *bytes, "cat {path}");
    }
    let exported = machine.home.path().join("exported");
    machine.run(&["export", repo, "--to", exported.to_str().unwrap()]);
    let exported = tree(&exported);
    assert_eq!(exported.keys().collect::<Vec<_>>(), served.keys().collect::<Vec<_>>());
    assert!(exported == served, "exported files differ from those served");
    let verified = machine.json(&["verify", "--digest"]);
    assert_eq!((&verified["files"], &verified["bad"]), (&served.len().into(), &Value::Array(Vec::new())));
}

// -- the tests --------------------------------------------------------------------------------------------------------------

#[test]
fn every_file_of_a_public_repo_arrives_as_served_once_and_without_a_token_at_the_cdn() {
    let origin = Origin::start(&[]);
    let machine = Machine::with_token(&origin, TOKEN);
    let sizes = total_bytes(&tree(&origin.files("org/model")));
    machine.run(&["pull", "org/model", "--all"]);
    let log = origin.log();
    log.assert_the_cdn_saw_no_token();
    assert!(log.0.iter().any(|answer| !answer.from_cdn && answer.with_token), "the Hub was not sent the token");
    // The Hub compresses small files for who lets it, and then tells no length.
    assert!(log.0.iter().filter(|answer| answer.served_file()).all(|answer| answer.encodings == "identity"));
    // Nothing twice.
    assert_eq!(log.file_bytes(), sizes, "{:?}", log.0);
    assert_same_files(&machine, "org/model");

    origin.clear_log();
    machine.run(&["pull", "org/model", "--all"]);
    assert_eq!(origin.log().file_bytes(), 0, "the second pull fetched files again");
}

#[test]
fn a_listing_in_pages_is_read_to_its_end() {
    let origin = Origin::start(&["--page", "3"]);
    let machine = Machine::new(&origin);
    let scan = machine.json(&["scan", "org/model"]);
    let quants: Vec<_> = scan["quants"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(quants, ["Q4_K_M", "Q8_0"], "{scan}");
    assert!(origin.log().0.iter().filter(|answer| answer.uri.contains("cursor=")).count() >= 3);
    machine.run(&["pull", "org/model", "--all"]);
    assert_same_files(&machine, "org/model");
}

#[test]
fn a_quant_is_pulled_with_what_every_quant_needs_and_without_the_others() {
    let origin = Origin::start(&[]);
    let machine = Machine::new(&origin);
    let said = machine.refused(2, &["pull", "org/model"]);
    assert!(said.contains("Q4_K_M") && said.contains("Q8_0"), "{said}");
    machine.run(&["pull", "org/model", "--quant", "q4_k_m"]);
    assert!(origin.log().0.iter().all(|answer| !answer.uri.contains("Q8_0")));
    let shown = machine.json(&["show", "org/model"]);
    assert_eq!(shown["quants"]["Q4_K_M"]["status"], "downloaded");
    assert_eq!(shown["quants"]["Q8_0"]["status"], "available");
    let served = tree(&origin.files("org/model"));
    for path in ["Q4_K_M/model-Q4_K_M.gguf", "config.json", "tokenizer.json"] {
        assert!(machine.run(&["cat", "org/model", path]) == served[path], "cat {path}");
    }
    machine.refused(3, &["cat", "org/model", "model-Q8_0.gguf"]);
}

#[test]
fn a_tag_and_a_commit_lead_to_the_same_files_as_main() {
    let origin = Origin::start(&[]);
    let machine = Machine::new(&origin);
    let scan = machine.json(&["scan", "org/model"]);
    let commit = scan["commit"].as_str().unwrap();
    for revision in ["v1.0", commit] {
        let repo = format!("org/model@{revision}");
        assert_eq!(machine.json(&["scan", &repo])["commit"], commit);
        machine.run(&["pull", &repo, "--file", "*.txt"]);
        assert!(machine.run(&["cat", &repo, "edge.txt"]) == noise(7, 64 << 10));
    }
    // Small files come without a redirect to the CDN; the three of them, once.
    let served = tree(&origin.files("org/model"));
    let texts: u64 = served.iter().filter(|(path, _)| path.ends_with(".txt")).map(|(_, bytes)| bytes.len() as u64).sum();
    assert_eq!(origin.log().file_bytes(), texts);
}

#[test]
fn small_files_answered_without_a_redirect_arrive_too() {
    let origin = Origin::start(&["--direct"]);
    let machine = Machine::new(&origin);
    machine.run(&["pull", "org/model", "--all"]);
    assert!(origin.log().0.iter().all(|answer| !answer.uri.starts_with("/api/resolve-cache/")));
    assert_same_files(&machine, "org/model");
}

#[test]
fn a_gated_repo_can_be_looked_at_by_all_and_pulled_with_the_right_token_only() {
    let origin = Origin::start(&[]);
    let served = tree(&origin.files("org/gated"));
    let anonymous = Machine::new(&origin);
    assert!(anonymous.json(&["scan", "org/gated"])["quants"]["Q4_0"].is_object());
    let said = anonymous.refused(7, &["pull", "org/gated"]);
    assert!(said.contains("org/gated is gated"), "{said}");

    let stranger = Machine::with_token(&origin, "hf_somebody_elses");
    let said = stranger.refused(7, &["pull", "org/gated"]);
    assert!(said.contains("org/gated"), "{said}");
    for machine in [&anonymous, &stranger] {
        machine.refused(3, &["cat", "org/gated", "model-Q4_0.gguf"]);
    }
    assert_eq!(origin.log().file_bytes(), 0);

    let friend = Machine::with_token(&origin, TOKEN);
    friend.run(&["pull", "org/gated"]);
    let log = origin.log();
    log.assert_the_cdn_saw_no_token();
    assert!(log.0.iter().filter(|answer| answer.uri.starts_with("/org/gated/resolve/") && answer.with_token).count() > 0);
    for (path, bytes) in served {
        assert!(friend.run(&["cat", "org/gated", &path]) == bytes, "{path}");
    }
}

#[test]
fn a_private_repo_is_not_there_but_for_the_right_token() {
    let origin = Origin::start(&[]);
    let said = Machine::new(&origin).refused(3, &["pull", "org/private"]);
    assert!(said.contains("org/private"), "{said}");
    Machine::with_token(&origin, "hf_somebody_elses").refused(3, &["scan", "org/private"]);

    let friend = Machine::with_token(&origin, TOKEN);
    friend.run(&["pull", "org/private"]);
    origin.log().assert_the_cdn_saw_no_token();
    assert_same_files(&friend, "org/private");
}

#[test]
fn what_is_disabled_or_missing_is_told_apart_by_exit_code_and_named() {
    let origin = Origin::start(&[]);
    let machine = Machine::with_token(&origin, TOKEN);
    for (code, name, arguments) in [
        (7, "org/disabled", &["pull", "org/disabled"][..]),
        (3, "org/nothing", &["pull", "org/nothing"]),
        (3, "no-such-branch", &["pull", "org/model@no-such-branch", "--all"]),
        (3, "no-such-file.bin", &["pull", "org/model", "--file", "no-such-file.bin"]),
        (3, "Q5_K_S", &["pull", "org/model", "--quant", "Q5_K_S"]),
    ] {
        let said = machine.refused(code, arguments);
        assert!(said.contains(name), "{said}");
    }
    assert_eq!(origin.log().file_bytes(), 0);
    assert_eq!(machine.json(&["ls"])["repos"], Value::Array(Vec::new()));
}

#[test]
fn a_pull_that_was_killed_goes_on_where_it_was() {
    // 4 MiB/s a connection, so that there is a half way.
    let origin = Origin::start_with(&[], |configuration| {
        let location = "location ~ \"^/xet-bridge/";
        assert_eq!(configuration.matches(location).count(), 1);
        configuration.replace(location, &format!("limit_rate 4m;\n    {location}"))
    });
    let machine = Machine::new(&origin);
    let size = fs::metadata(origin.files("org/model").join("model-Q8_0.gguf")).unwrap().len();
    // A fixed number, since it is what a kill may cost: left alone, a pull takes 16 where each is as slow.
    let connections = CONNECTIONS.to_string();
    let pull = ["org/model", "--file", "model-Q8_0.gguf", "--connections", &connections];
    machine.pull_and_kill_at(&pull, size / 4);
    machine.pull_and_kill_at(&pull, size * 6 / 10);

    let shown = machine.json(&["show", "org/model"]);
    assert_eq!(shown["quants"]["Q8_0"]["status"], "partial", "{shown}");
    let kept = shown["quants"]["Q8_0"]["downloaded_bytes"].as_u64().unwrap();
    assert!(kept >= size * 6 / 10 - CONNECTIONS * BLOCK_BYTES, "{kept} of {size}");
    machine.refused(3, &["cat", "org/model", "model-Q8_0.gguf"]);

    let before = origin.log().file_bytes();
    machine.run(&[&["pull"], &pull[..]].concat());
    let served = origin.log().file_bytes();
    assert!(served <= size + 2 * CONNECTIONS * BLOCK_BYTES, "{served} bytes were served for {size}");
    assert!(served - before < size / 2, "{} bytes were fetched after {kept} of {size} were here", served - before);
    assert!(machine.run(&["cat", "org/model", "model-Q8_0.gguf"]) == noise(1, size as usize));
    machine.run(&["verify", "--digest"]);
}
