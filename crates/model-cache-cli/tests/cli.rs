//! The program as its users meet it: the real binary, against a Hub of our own.

use hub_fixture::{Content, Fault, GOOD_TOKEN, Hub, Repo, Server, Target, Tls, UNLISTED_TOKEN};
use serde_json::Value;
use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const REPO: &str = "org/model";
const MIB: u64 = 1 << 20;

/// A machine: a Hub, a store, a home of its own.
struct Machine {
    hub: Hub,
    dir: TempDir,
}

impl Machine {
    fn new(repos: Vec<Repo>) -> Self {
        Self { hub: Hub::start(repos), dir: tempfile::tempdir().unwrap() }
    }

    /// One repo with two quants, `bytes` and 1 MiB long.
    fn with_model(bytes: u64) -> Self {
        Self::new(vec![model(bytes)])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_model-cache"));
        command.env_clear().env("HOME", self.dir.path()).env("HF_ENDPOINT", self.hub.endpoint());
        command.env("MODEL_CACHE_HOME", self.path("store")).stdin(Stdio::null()).args(args);
        command
    }

    fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Ran {
        Ran::from(self.command(args).output().unwrap())
    }

    /// Runs what must succeed, and gives its JSON.
    fn json(&self, args: &[&str]) -> Value {
        let ran = self.run(args.iter().chain(&["--json"]));
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        ran.document()
    }

    fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

fn model(bytes: u64) -> Repo {
    Repo::new(REPO)
        .pipeline_tag("text-generation")
        .file("config.json", "{\"a\":1}")
        .file("model-Q4_K_M.gguf", Content::seeded(1, bytes))
        .file("model-Q8_0.gguf", Content::seeded(2, MIB))
}

#[derive(Debug)]
struct Ran {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let err = String::from_utf8(output.stderr).expect("stderr is text");
        Self { code: output.status.code().expect("it ended by itself"), out: output.stdout, err }
    }
}

impl Ran {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    /// Stdout, which is one JSON document on one line.
    fn document(&self) -> Value {
        assert_eq!(self.text().lines().count(), 1, "{self:?}");
        serde_json::from_str(self.text()).unwrap()
    }

    fn error(&self) -> Value {
        self.document()["error"].clone()
    }
}

/// Sends a signal by name, as a shell does.
fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap().success());
}

/// Reads `--progress json` until `path` has `bytes`.
fn read_until_loaded(lines: &mut impl BufRead, bytes: u64) {
    for line in lines.lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["event"] == "progress" && event["pull_loaded_bytes"].as_u64().unwrap() >= bytes {
            return;
        }
    }
    panic!("the pull ended before {bytes} bytes were here");
}

// -- documents -----------------------------------------------------------------------------------------------------

#[test]
fn scan_and_show_give_the_promised_document() {
    let machine = Machine::with_model(3 * MIB);
    let commit = machine.hub.commit(REPO, "main").unwrap();
    let missing = machine.run(["show", REPO, "--json"]);
    assert_eq!((missing.code, missing.error()["code"].as_str()), (3, Some("not_found")));
    for (command, status) in [("scan", "available"), ("show", "available")] {
        let document = machine.json(&[command, REPO]);
        assert_eq!(document["repo"], REPO);
        assert_eq!(document["commit"], commit.as_str());
        assert_eq!(document["task"], "text-generation");
        let quant = &document["quants"]["Q4_K_M"];
        assert_eq!(quant["status"], status);
        assert_eq!(quant["files"], serde_json::json!(["config.json", "model-Q4_K_M.gguf"]));
        assert_eq!(quant["total_bytes"], 3 * MIB + 7);
        assert_eq!(quant["downloaded_bytes"], 0);
    }
    assert_eq!(machine.run(["pull", REPO, "-q", "q4_k_m"]).code, 0);
    let quant = &machine.json(&["show", REPO])["quants"]["Q4_K_M"];
    assert_eq!((&quant["status"], quant["downloaded_bytes"].as_u64()), (&"downloaded".into(), Some(3 * MIB + 7)));
}

#[test]
fn pull_ls_df_and_verify_give_the_promised_documents() {
    let machine = Machine::with_model(3 * MIB);
    assert_eq!(machine.json(&["ls"]), serde_json::json!({ "repos": [] }));
    let pulled = machine.json(&["pull", REPO, "--quant", "Q4_K_M"]);
    assert_eq!(pulled["quants"], serde_json::json!(["Q4_K_M"]));
    assert_eq!((pulled["files"].as_u64(), pulled["fetched_bytes"].as_u64()), (Some(2), Some(3 * MIB + 7)));
    let repos = machine.json(&["ls"]);
    let repo = &repos["repos"][0];
    assert_eq!((&repo["repo"], repo["files"].as_u64(), repo["size_bytes"].as_u64()), (&REPO.into(), Some(2), Some(3 * MIB + 7)));
    assert_eq!(repo["commit"], machine.hub.commit(REPO, "main").unwrap());
    let files = machine.json(&["ls", REPO]);
    assert_eq!((&files["repo"], &files["commit"]), (&repo["repo"], &repo["commit"]));
    let file = &files["files"][1];
    assert_eq!(file["path"], "model-Q4_K_M.gguf");
    assert_eq!((file["size_bytes"].as_u64(), file["chunks"].as_u64()), (Some(3 * MIB), Some(1)));
    assert_eq!(file["digest"], format!("sha256:{}", machine.hub.file(REPO, "main", "model-Q4_K_M.gguf").unwrap().etag));
    assert_eq!(file["state"], "sealed");
    let df = machine.json(&["df"]);
    for field in ["files", "chunks", "live_bytes", "filling_bytes", "doomed_bytes", "disk_bytes"] {
        assert!(df[field].is_u64(), "{field}: {df}");
    }
    assert_eq!((df["files"].as_u64(), df["live_bytes"].as_u64()), (Some(2), Some(3 * MIB + 7)));
    for args in [&["verify"][..], &["verify", REPO, "*.gguf", "--digest"], &["verify", "--cached"]] {
        let verified = machine.json(args);
        assert_eq!(verified["bad"], serde_json::json!([]));
        assert!(verified["files"].as_u64().unwrap() > 0 && verified["blocks"].as_u64().unwrap() > 0, "{verified}");
    }
}

#[test]
fn warming_tells_what_was_in_memory_and_a_second_time_that_all_of_it_was() {
    let machine = Machine::with_model(9 * MIB);
    machine.json(&["pull", REPO, "--quant", "Q4_K_M"]);
    let size = 9 * MIB + 7;
    let warmed = machine.json(&["warm", REPO, "--quant", "q4_k_m"]);
    assert_eq!(
        (warmed["files"].as_u64(), warmed["size_bytes"].as_u64(), warmed["left_bytes"].as_u64()),
        (Some(2), Some(size), Some(0))
    );
    assert_eq!(warmed["resident_bytes"].as_u64().unwrap() + warmed["read_bytes"].as_u64().unwrap(), size);
    assert!(warmed["elapsed_ms"].is_u64() && warmed["available_bytes"].is_u64(), "{warmed}");
    let ran = machine.run(["warm", REPO, "*.gguf", "--progress", "none"]);
    assert_eq!((ran.code, ran.text()), (0, ""));
    assert!(ran.err.starts_with("Warmed 1 file, 9.00 MiB, all in memory already; "), "{ran:?}");
    let ran = machine.run(["warm", REPO, "--progress", "json"]);
    let last = ran.err.lines().last().unwrap();
    assert_eq!(last, format!(r#"{{"action":"warming","event":"progress","loaded_bytes":{size},"total_bytes":{size}}}"#));
    for (args, code) in
        [(&["warm", "org/absent"][..], 3), (&["warm", REPO, "*.txt"], 3), (&["warm", REPO, "-q", "Q8_0"], 3), (&["warm"], 2)]
    {
        let ran = machine.run(args);
        assert_eq!(ran.code, code, "{ran:?}");
    }
    assert!(machine.run(["warm", REPO, "-q", "Q8_0"]).err.contains("hint: model-cache pull org/model --file"));
}

#[test]
fn removing_tells_what_went_and_gc_what_was_left_over() {
    let machine = Machine::with_model(3 * MIB);
    machine.json(&["pull", REPO, "--all"]);
    let removed = machine.json(&["rm", REPO, "--quant", "q8_0"]);
    assert_eq!((removed["files"].as_u64(), removed["freed_bytes"].as_u64()), (Some(1), Some(MIB)));
    let ran = machine.run(["rm", REPO]);
    assert_eq!((ran.code, ran.text(), ran.err.as_str()), (0, "", "Removed 2 files, 3.00 MiB.\n"));
    assert_eq!(machine.run(["rm", REPO]).code, 3);
    assert_eq!(machine.json(&["gc"])["freed_bytes"], 0);
    assert_eq!(machine.json(&["df"])["live_bytes"], 0);
}

// -- choosing ------------------------------------------------------------------------------------------------------

#[test]
fn a_pull_without_a_choice_lists_the_quants_and_one_with_a_single_quant_takes_it() {
    let machine = Machine::new(vec![model(2 * MIB), Repo::new("org/one").file("a-Q4_0.gguf", Content::seeded(3, MIB))]);
    let ran = machine.run(["pull", REPO]);
    assert_eq!((ran.code, ran.text()), (2, ""));
    assert_eq!(
        ran.err,
        "error: org/model offers 2 quants; say which\n  Q4_K_M 2.00 MiB, Q8_0 1.00 MiB\n\
         hint: model-cache pull org/model --quant Q4_K_M\n"
    );
    let error = machine.run(["pull", REPO, "--json"]).error();
    assert_eq!((&error["code"], &error["offered"][1]["quant"]), (&"usage".into(), &"Q8_0".into()));
    let ran = machine.run(["pull", "org/one"]);
    assert_eq!(ran.code, 0);
    assert!(ran.err.contains("Pulled Q4_0 of org/one ("), "{ran:?}");
    assert!(machine.run(["pull", "org/one"]).err.contains("Already here: Q4_0 of org/one ("));
}

impl Machine {
    /// Runs `script` with the store on an empty disk of 60 MiB, `$STORE`, and the program as `"$@"`.
    fn on_small_disk(&self, script: &str, args: &[&str]) -> Ran {
        std::fs::create_dir_all(self.path("store")).unwrap();
        let program = self.command(args);
        let mut command = Command::new("unshare");
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
        let user: &[&str] = if is_root { &[] } else { &["--user", "--map-root-user"] };
        let script = format!(r#"STORE=$0; mount -t tmpfs -o size=60M tmpfs "$STORE"; {script}"#);
        command.args(user).args(["--mount", "sh", "-ec", &script]);
        command.arg(self.path("store")).arg(program.get_program()).args(program.get_args());
        command.envs(program.get_envs().filter_map(|(key, value)| Some((key, value?)))).stdin(Stdio::null());
        Ran::from(command.output().unwrap())
    }
}

#[test]
fn of_a_disk_that_is_nearly_full_who_adds_to_the_store_is_told_and_who_reads_is_not() {
    let machine = Machine::with_model(MIB);
    let [small, more] = ["small.bin", "more.bin"].map(|name| machine.path(name));
    std::fs::write(&small, vec![7; 1000]).unwrap();
    std::fs::write(&more, vec![8; 1000]).unwrap();
    // 24 MiB are left: enough to add to the store, not for a ballast too.
    let nearly_full = |add: &str, then: &[&str]| {
        let script = format!(
            r#"{add}; rm "$STORE"/ballast; head -c $(($(df -B1 --output=avail "$STORE" | tail -n 1) - 25165824)) /dev/zero > "$STORE"/full; exec "$@""#
        );
        machine.on_small_disk(&script, then)
    };
    let import = ["import", "me/mine", small.to_str().unwrap()];
    let begin = format!(r#""$1" {} 2>&-"#, import.join(" "));
    for reads in [&["ls"][..], &["df"], &["cat", "me/mine", "small.bin"], &["verify"], &["rm", "me/mine", "--yes"]] {
        let ran = nearly_full(&begin, reads);
        assert!(ran.code == 0 && !ran.err.contains("warning") && !ran.err.contains("ballast"), "{reads:?}: {ran:?}");
    }
    let ran = nearly_full(&begin, &["doctor", "--offline"]);
    assert!(ran.code == 6 && ran.text().contains("ballast"), "{ran:?}");
    for adds in [["import", "me/more", more.to_str().unwrap()], ["pull", REPO, "--file=config.json"]] {
        let ran = nearly_full(&begin, &adds);
        assert_eq!((ran.code, ran.err.matches("warning: the disk is nearly full").count()), (0, 1), "{adds:?}: {ran:?}");
    }
}

#[test]
fn a_disk_without_room_is_exit_code_6_with_what_is_needed_and_what_there_is() {
    let machine = Machine::with_model(90 * MIB);
    // Each run on an empty disk of its own, in place of the store.
    let on_small_disk = |args: &[&str]| machine.on_small_disk(r#"exec "$@""#, args);
    let ran = on_small_disk(&["pull", REPO, "-q", "Q4_K_M"]);
    assert_eq!(ran.code, 6, "{ran:?}");
    assert!(
        ran.err.contains("no space for") && ran.err.contains("needs 90.00 MiB more, ") && ran.err.contains("MiB free"),
        "{ran:?}"
    );
    assert!(ran.err.contains("hint: "), "{ran:?}");
    let ran = on_small_disk(&["pull", REPO, "-q", "Q4_K_M", "--json"]);
    assert_eq!((ran.code, &ran.error()["code"]), (6, &"no_space".into()));
}

#[test]
fn files_the_repo_lacks_are_told_after_scan_and_pull() {
    let repo = Repo::new(REPO)
        .file("m-Q8_0-00001-of-00003.gguf", Content::seeded(4, MIB))
        .file("m-Q8_0-00003-of-00003.gguf", Content::seeded(5, MIB));
    let machine = Machine::new(vec![repo]);
    for args in [["scan", REPO], ["pull", REPO]] {
        let ran = machine.run(args);
        assert!(ran.err.contains("warning: Q8_0 is incomplete at the Hub: it lacks m-Q8_0-00002-of-00003.gguf"), "{ran:?}");
    }
}

#[test]
fn a_scan_suggests_one_next_command() {
    let machine = Machine::with_model(2 * MIB);
    assert!(machine.run(["scan", REPO]).err.ends_with("hint: model-cache pull org/model --quant Q4_K_M\n"));
    machine.json(&["pull", REPO, "--all"]);
    assert!(machine.run(["scan", REPO]).err.ends_with("hint: model-cache ls org/model\n"));
}

// -- bytes ---------------------------------------------------------------------------------------------------------

#[test]
fn cat_gives_the_bytes_that_were_served_and_nothing_else() {
    let size = 7 * MIB + 3;
    let machine = Machine::with_model(size);
    machine.json(&["pull", REPO, "--quant", "Q4_K_M"]);
    let path = "model-Q4_K_M.gguf";
    let content = Content::seeded(1, size);
    let ran = machine.run(["cat", REPO, path]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(*ran.out == *content.read(0..size).unwrap());
    for (range, expected) in [("5..9", 5..9), ("7340030..", 7_340_030..size), ("..4", 0..4), ("8..8", 8..8)] {
        let ran = machine.run(["cat", REPO, path, "--range", range]);
        assert_eq!((ran.code, &*ran.out), (0, &*content.read(expected).unwrap()), "{range}");
    }
    for range in ["0..7340036", "7340036..", "9..3", "x..1", ".."] {
        let ran = machine.run(["cat", REPO, path, "--range", range]);
        assert_eq!((ran.code, ran.out.len()), (2, 0), "{range}: {ran:?}");
        assert!(ran.err.starts_with("error: "), "{ran:?}");
    }
    let ran = machine.run(["cat", REPO, path, "--range", "1..9999999"]);
    assert_eq!(ran.err, "error: range 1..9999999 does not lie in model-Q4_K_M.gguf, which has 7340035 bytes\n");
}

#[test]
fn a_process_that_may_not_take_the_address_space_is_told_what_helps() {
    let machine = Machine::with_model(2 * MIB);
    let program = env!("CARGO_BIN_EXE_model-cache");
    let script = format!("ulimit -v 4000000; exec {program} --store \"$0\" gc");
    std::fs::write(machine.path("mine.bin"), "mine").unwrap();
    machine.json(&["import", "me/model", machine.path("mine.bin").to_str().unwrap()]);
    let ran = std::process::Command::new("sh").args(["-c", &script]).arg(machine.path("store")).output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert!(said.contains("address space") && said.contains("ulimit -v"), "{said}");
}

#[test]
fn cat_of_a_file_that_is_not_here_says_where_it_is() {
    let machine = Machine::with_model(2 * MIB);
    let cat = |path: &str| machine.run(["cat", REPO, path]);
    assert!(cat("config.json").err.contains("no store at "));
    std::fs::write(machine.path("mine.bin"), "mine").unwrap();
    machine.json(&["import", "me/model", machine.path("mine.bin").to_str().unwrap()]);
    assert!(cat("config.json").err.contains("nothing of org/model is in the store"));
    machine.run(["scan", REPO]);
    let ran = cat("config.json");
    assert_eq!(ran.code, 3);
    assert!(ran.err.ends_with("hint: model-cache pull org/model --file config.json\n"), "{ran:?}");
    assert!(cat("nothing.json").err.contains("nothing.json of org/model is not in the store"));
    assert_eq!(cat("../../etc/passwd").code, 2);
    assert_eq!(machine.run(["cat", REPO, "config.json", "--json"]).error()["code"], "usage");
}

#[test]
fn a_reader_that_goes_away_ends_cat_quietly() {
    let machine = Machine::with_model(32 * MIB);
    machine.json(&["pull", REPO, "--quant", "Q4_K_M"]);
    let mut child = machine.spawn(&["cat", REPO, "model-Q4_K_M.gguf"]);
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[test]
fn an_export_equals_what_was_served_and_an_import_comes_back() {
    let machine = Machine::with_model(2 * MIB);
    machine.json(&["pull", REPO, "--all"]);
    let to = machine.path("out");
    let to_text = to.to_str().unwrap();
    let document = machine.json(&["export", REPO, "*.gguf", "--to", to_text]);
    assert_eq!(document["files"], 2);
    // Which way it was is this machine's affair; that it is said is ours.
    let method = document["method"].as_str().unwrap();
    assert!(["reflink", "copy_file_range", "copy"].contains(&method), "{document}");
    assert_eq!(document["shared_bytes"], if method == "reflink" { 3 * MIB } else { 0 });
    let exported = std::fs::read(to.join("model-Q4_K_M.gguf")).unwrap();
    assert!(exported == *Content::seeded(1, 2 * MIB).read(0..2 * MIB).unwrap());
    let again = machine.run(["export", REPO, "*.gguf", "--to", to_text]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("hint: remove it, or export with --force"), "{again:?}");
    let ran = machine.run(["export", REPO, "*.gguf", "--to", to_text, "--force"]);
    let how = match method {
        "reflink" => "blocks shared with the store: no space taken",
        "copy_file_range" => "copied by the kernel",
        _ => "copied",
    };
    assert_eq!((ran.code, ran.err), (0, format!("Exported 2 files, 3.00 MiB, to {to_text} ({how})\n")));
    std::fs::write(to.join("notes.txt"), "mine").unwrap();
    let imported = machine.json(&["import", "me/model", to_text]);
    assert_eq!((imported["files"].as_u64(), imported["here_bytes"].as_u64()), (Some(3), Some(3 * MIB)));
    assert_eq!(machine.run(["cat", "me/model", "notes.txt"]).text(), "mine");
    assert_eq!(machine.json(&["ls", "me/model"])["commit"], Value::Null);
}

#[test]
fn what_was_imported_goes_only_when_somebody_says_yes() {
    let machine = Machine::with_model(MIB);
    std::fs::write(machine.path("mine.bin"), vec![7; 100_000]).unwrap();
    machine.json(&["import", "me/model", machine.path("mine.bin").to_str().unwrap()]);
    let ran = machine.run(["rm", "me/model", "*.bin"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.ends_with("hint: model-cache rm me/model '*.bin' --yes\n"), "{ran:?}");
    assert_eq!(machine.run(["rm", "me/model", "--json"]).error()["code"], "usage");
    assert_eq!(machine.json(&["ls"])["repos"].as_array().unwrap().len(), 1);
    assert_eq!(machine.json(&["rm", "me/model", "--yes"])["files"], 1);
}

#[test]
fn of_a_name_that_was_pulled_and_imported_the_hint_removes_what_was_pulled_alone() {
    let machine = Machine::with_model(MIB);
    std::fs::write(machine.path("mine.bin"), vec![7; 100_000]).unwrap();
    machine.json(&["import", REPO, machine.path("mine.bin").to_str().unwrap()]);
    machine.json(&["pull", REPO, "-q", "Q8_0"]);
    let ran = machine.run(["rm", REPO]);
    assert_eq!(ran.code, 2, "{ran:?}");
    let commands: Vec<_> = ran.err.lines().filter_map(|line| line.strip_prefix("hint: model-cache ")).collect();
    let commit = machine.hub.commit(REPO, "main").unwrap();
    assert_eq!(commands, [format!("rm {REPO}@{commit}"), format!("rm {REPO} --yes")], "{ran:?}");
    assert_eq!(machine.json(&commands[0].split(' ').collect::<Vec<_>>())["files"], 2);
    assert_eq!(machine.run(["cat", REPO, "mine.bin"]).out.len(), 100_000);
    assert_eq!(machine.json(&commands[1].split(' ').collect::<Vec<_>>())["files"], 1);
}

// -- errors --------------------------------------------------------------------------------------------------------

#[test]
fn each_kind_of_error_has_its_exit_code_and_its_name() {
    let machine = Machine::new(vec![
        model(MIB),
        Repo::new("org/gated").gated().file("m.safetensors", Content::seeded(6, MIB)),
        Repo::new("org/private").private().file("m.safetensors", Content::seeded(6, MIB)),
        Repo::new("org/off").disabled().file("m.safetensors", Content::seeded(6, MIB)),
    ]);
    let cases: &[(&[&str], Option<&str>, i32, &str)] = &[
        (&["scan", "org/absent"], None, 3, "not_found"),
        (&["scan", "org/model@nothing"], None, 3, "not_found"),
        (&["pull", REPO, "--quant", "Q9"], None, 3, "not_found"),
        (&["pull", REPO, "--file", "*.bin"], None, 3, "not_found"),
        (&["ls", "org/absent"], None, 3, "not_found"),
        (&["rm", "org/absent"], None, 3, "not_found"),
        (&["verify", "org/absent"], None, 3, "not_found"),
        (&["pull", "org/gated"], None, 7, "not_allowed"),
        (&["pull", "org/gated"], Some(UNLISTED_TOKEN), 7, "not_allowed"),
        (&["scan", "org/private"], None, 3, "not_found"),
        (&["scan", "org/private"], Some(UNLISTED_TOKEN), 3, "not_found"),
        (&["scan", REPO], Some("hf_nonsense"), 7, "not_allowed"),
        (&["pull", "org/off"], None, 7, "not_allowed"),
        (&["--offline", "scan", "org/unseen"], None, 4, "network"),
        (&["scan", "no-slash"], None, 2, "usage"),
        (&["scan", "org/model@a..b"], None, 2, "usage"),
        (&["pull", REPO, "--file", "["], None, 2, "usage"),
        (&["pull", REPO, "--file", ""], None, 2, "usage"),
        (&["backup", "x", "--keep", "-1"], None, 2, "usage"),
        (&["scan", "org/model@"], None, 2, "usage"),
        (&["pull", REPO, "--connections", "0"], None, 2, "usage"),
        (&["pull", REPO, "--limit-rate", "fast"], None, 2, "usage"),
        (&["pull", REPO, "--memory-budget", "little"], None, 2, "usage"),
        (&["pull", REPO, "--memory-budget", "7MiB"], None, 2, "usage"),
        (&["pull", REPO, "--limit-rate", "0"], None, 2, "usage"),
        (&["scan", REPO, "--endpoint", "ftp://x"], None, 2, "usage"),
        (&["frobnicate"], None, 2, "usage"),
        (&[], None, 2, "usage"),
    ];
    for (args, token, code, name) in cases {
        for json in [false, true] {
            let mut command = machine.command(args.iter().chain(json.then_some(&"--json")));
            token.map(|token| command.env("HF_TOKEN", token));
            let ran = Ran::from(command.output().unwrap());
            assert_eq!(ran.code, *code, "{args:?}: {ran:?}");
            if json {
                let error = ran.error();
                assert_eq!(error["code"], *name, "{args:?}");
                assert!(!error["message"].as_str().unwrap().is_empty());
                assert!(error.get("hint").is_some(), "{args:?}");
            } else if !args.is_empty() {
                assert!(ran.err.starts_with("error: ") && ran.out.is_empty(), "{args:?}: {ran:?}");
            }
            let said = format!("{}{}", ran.err, String::from_utf8_lossy(&ran.out));
            assert!(!said.contains("panicked") && !said.contains("{ "), "{args:?}: {said}");
        }
    }
    // With the right token both doors open.
    for repo in ["org/gated", "org/private"] {
        let ran = Ran::from(machine.command(["pull", repo]).env("HF_TOKEN", GOOD_TOKEN).output().unwrap());
        assert_eq!(ran.code, 0, "{ran:?}");
    }
}

#[test]
fn a_bad_variable_of_pulls_is_refused_by_a_pull_alone_and_not_where_an_option_is_given() {
    let machine = Machine::with_model(MIB);
    assert_eq!(machine.run(["pull", REPO, "-q", "Q8_0"]).code, 0);
    for (variable, value, option) in [
        ("MODEL_CACHE_LIMIT_RATE", "0", ["--limit-rate", "100M"]),
        ("MODEL_CACHE_MEMORY_BUDGET", "1M", ["--memory-budget", "8Mi"]),
    ] {
        let run = |args: &[&str]| Ran::from(machine.command(args).env(variable, value).output().unwrap());
        for args in [&["ls"][..], &["df"], &["verify"], &["warm", REPO], &["scan", REPO], &["rm", REPO]] {
            assert_eq!(run(args).code, 0, "{args:?}: {:?}", run(args));
        }
        let pull = ["pull", REPO, "-q", "Q8_0"];
        let refused = run(&pull);
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.err.starts_with(&format!("error: {variable}=\"{value}\" can't be used: ")), "{refused:?}");
        let done = run(&[&pull[..], &option].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let blank = Ran::from(machine.command(pull).env(variable, " ").output().unwrap());
        assert_eq!(blank.code, 0, "{blank:?}");
    }
}

#[test]
fn what_can_t_be_used_is_named_as_it_was_typed() {
    let machine = Machine::with_model(MIB);
    for (option, value) in [
        ("--memory-budget", "1K"),
        ("--memory-budget", "1000T"),
        ("--memory-budget", "99999999T"),
        ("--limit-rate", "0.5K"),
        ("--connections", "0"),
    ] {
        let ran = machine.run(["pull", REPO, option, value]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.err.starts_with(&format!("error: {option}=\"{value}\" can't be used: ")), "{ran:?}");
    }
    machine.json(&["pull", REPO, "-q", "Q8_0"]);
    let (backup, store, file) = (machine.path("backup"), machine.path("store"), machine.path("file"));
    let [backup, store, file] = [&backup, &store, &file].map(|path| path.to_str().unwrap());
    std::fs::write(file, "x").unwrap();
    machine.json(&["backup", backup]);
    for (args, named) in [
        (&["export", REPO, "--to", store][..], "--to"),
        (&["restore", backup, "--to", file], "--to"),
        (&["restore", backup, "--store", file], "--store"),
        (&["ls", "--endpoint", "x"], "--endpoint"),
        (&["backup", backup, "--keep", "0"], "--keep"),
        (&["backup", store], "DIR"),
        (&["import", "me/none", "/dev/null"], "PATH"),
    ] {
        let ran = machine.run(args);
        assert!(ran.code == 2 && ran.err.starts_with(&format!("error: {named}=\"")), "{args:?}: {ran:?}");
    }
}

#[test]
fn a_hub_that_is_down_is_a_network_error_and_a_short_rate_limit_is_waited_for() {
    let machine = Machine::with_model(MIB);
    machine.hub.faults().once(Target::any().hub(), Fault::rate_limited(1));
    let started = Instant::now();
    assert_eq!(machine.run(["pull", REPO, "-q", "Q8_0"]).code, 0);
    assert!(started.elapsed() >= Duration::from_secs(1));
    // Nobody listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ran = machine.run(["scan", REPO, "--endpoint", &format!("http://127.0.0.1:{port}"), "-v"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.err.contains("\n  because: "), "{ran:?}");
}

#[test]
fn bytes_that_are_not_what_was_promised_are_an_integrity_error() {
    let machine = Machine::with_model(6 * MIB);
    machine.hub.faults().always("model-Q4_K_M.gguf", Fault::CorruptBytes { offset: 5_500_000, len: 3 });
    let ran = machine.run(["pull", REPO, "-q", "Q4_K_M"]);
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(ran.err.contains("error: ") && ran.err.contains("hint: "), "{ran:?}");
    assert_eq!(machine.run(["cat", REPO, "model-Q4_K_M.gguf"]).code, 3);
    machine.hub.faults().clear();
    assert_eq!(machine.run(["pull", REPO, "-q", "Q4_K_M"]).code, 0);
}

#[test]
fn a_retry_is_told_once_whatever_the_number_of_tries() {
    let machine = Machine::with_model(6 * MIB);
    machine.hub.faults().times(3, Target::path("model-Q4_K_M.gguf").cdn(), Fault::status(503));
    let ran = machine.run(["pull", REPO, "-q", "Q4_K_M"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.err.matches("retrying: model-Q4_K_M.gguf in ").count(), 1, "{ran:?}");
}

#[test]
fn arguments_that_cannot_be_are_refused_before_anything_is_made() {
    use std::os::unix::ffi::OsStrExt;
    let machine = Machine::with_model(MIB);
    let bad = OsStr::from_bytes(b"org/\xff\xfe");
    let ran = machine.run([OsStr::new("scan"), bad]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.starts_with("error: the argument \"org/") && ran.err.contains("UTF-8"), "{ran:?}");
    assert_eq!(machine.run([OsStr::new("--json"), OsStr::new("scan"), bad]).error()["code"], "usage");
    let ran = machine.run(["ls", "--store", ""]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("--store") || ran.err.contains("store=\"\""), "{ran:?}");
    for name in ["", "org/", "org/a/b", "../..", "org/na\nme", "org/\u{1b}[31m", "-", "org/x@", &"x".repeat(5000)] {
        let ran = machine.run(["scan", "--", name]);
        assert_eq!(ran.code, 2, "{name:?}: {ran:?}");
        assert!(ran.err.chars().all(|c| c == '\n' || !c.is_control()), "{ran:?}");
    }
    let file = machine.path("a-file");
    std::fs::write(&file, "").unwrap();
    let ran = machine.run([OsStr::new("ls"), OsStr::new("--store"), file.as_os_str()]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("hint: "), "{ran:?}");
    assert!(!machine.path("store").exists());
}

#[test]
fn what_is_missing_or_no_number_is_told_with_the_command_that_helps() {
    let machine = Machine::with_model(MIB);
    for (args, message, hint) in [
        (&["backup", "x", "--keep", "-1"][..], "invalid value '-1' for '--keep <N>': it must be a whole number", "backup --help"),
        (&["pull", REPO, "--connections=2.5"], "invalid value '2.5' for '--connections <N>'", "pull --help"),
        (&["pull"], "required arguments were not provided: <REPO>", "pull --help"),
        (&["export", REPO], "required arguments were not provided: --to <DIR>", "export --help"),
    ] {
        let ran = machine.run(args);
        assert!(ran.code == 2 && ran.err.contains(message), "{args:?}: {ran:?}");
        assert!(ran.err.ends_with(&format!("\nhint: model-cache {hint}\n")), "{args:?}: {ran:?}");
    }
    assert!(machine.run(["pull"]).err.contains("\n  usage: model-cache pull "));
    assert!(machine.run(["scan", "org/model@"]).err.contains("hint: name it as in org/name@main"));
}

#[test]
fn a_mistyped_command_gets_the_nearest_one() {
    let machine = Machine::with_model(MIB);
    assert!(machine.run(["pul", REPO]).err.contains("'pull'"));
    assert!(machine.run(["pul", REPO, "--json"]).error()["hint"].as_str().unwrap().contains("'pull'"));
    let help = machine.run(["--help"]);
    assert!(help.code == 0 && help.err.is_empty() && help.text().contains("Exit codes:"), "{help:?}");
}

#[test]
fn what_a_hostile_hub_says_never_reaches_the_terminal_raw() {
    let machine = Machine::new(vec![
        Repo::new(REPO).pipeline_tag("text\u{1b}[2J\u{9b}31m\u{202e}x").file("m-Q4_0.gguf", Content::seeded(1, MIB)),
        Repo::new("org/paths").file("m-Q4_0.gguf", Content::seeded(1, MIB)),
    ]);
    let safe = |text: &str| text.chars().all(|c| c == '\n' || !(c.is_control() || c == '\u{202e}'));
    for args in [&["scan", REPO][..], &["show", REPO], &["scan", REPO, "--json"], &["show", REPO, "--json"]] {
        let ran = machine.run(args);
        assert!(ran.code == 0 && safe(ran.text()) && safe(&ran.err), "{args:?}: {ran:?}");
    }
    for path in ["../../up", "/etc/passwd", "a\\b", "C:/x", "x\u{1b}[31m", "a/./b"] {
        let listing = serde_json::json!([{ "type": "file", "path": path, "size": 5, "oid": "0".repeat(40) }]);
        machine.hub.faults().clear();
        machine.hub.faults().always("/tree/", Fault::json(200, listing.to_string()));
        let ran = machine.run(["scan", "org/paths"]);
        assert_eq!(ran.code, 4, "{path:?}: {ran:?}");
        assert!(safe(&ran.err) && ran.out.is_empty(), "{path:?}: {ran:?}");
    }
}

#[test]
fn no_token_is_ever_shown() {
    let machine = Machine::with_model(2 * MIB);
    machine.hub.faults().times(2, Target::path("model").cdn(), Fault::status(503));
    for token in [GOOD_TOKEN, "hf_secretnonsense"] {
        let mut command = machine.command(["pull", REPO, "--all", "-vv"]);
        let ran = Ran::from(command.env("HF_TOKEN", token).env("MODEL_CACHE_LOG", "trace").output().unwrap());
        assert!(!ran.err.contains(token) && !ran.err.contains("Bearer"), "{ran:?}");
    }
}

/// Every file below a folder that has `bytes` in it, in its name or its content.
fn files_with(folder: &Path, bytes: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, bytes));
        } else if path.to_string_lossy().contains(bytes)
            || std::fs::read(&path).unwrap().windows(bytes.len()).any(|window| window == bytes.as_bytes())
        {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_token_is_in_no_output_of_any_command_no_file_of_the_store_and_no_process_title() {
    const MARKED: &str = "hf_markedtokenthatnobodymayeversee";
    let machine = Machine::new(vec![
        model(6 * MIB),
        Repo::new("org/gated").file("a-Q4_0.gguf", Content::seeded(3, MIB)).gated(),
        Repo::new("org/private").file("a-Q4_0.gguf", Content::seeded(4, MIB)).private(),
    ]);
    let (out, source) = (machine.path("out"), machine.path("source.bin"));
    std::fs::write(&source, "mine").unwrap();
    let (out, source) = (out.to_str().unwrap(), source.to_str().unwrap());
    // The Hub knows no such token, so these are refusals too; the good one is held to the same in what is pulled.
    let commands: &[&[&str]] = &[
        &["doctor"],
        &["scan", REPO],
        &["scan", "org/gated"],
        &["scan", "org/private"],
        &["pull", "org/gated"],
        &["pull", REPO, "--all"],
        &["show", REPO],
        &["ls"],
        &["ls", REPO],
        &["df"],
        &["cat", REPO, "config.json"],
        &["warm", REPO],
        &["verify", "--digest"],
        &["export", REPO, "--to", out],
        &["import", "me/m", source],
        &["rm", REPO, "config.json"],
        &["gc"],
        &["doctor", "--offline"],
        &["pull", REPO, "--file", "none"],
        &["scan", "no-slash"],
        &["frobnicate"],
    ];
    for token in [GOOD_TOKEN, MARKED] {
        for args in commands {
            for options in [&["-vv"][..], &["--json", "-v", "--progress", "json"]] {
                let mut command = machine.command(args.iter().chain(options));
                command.env("HF_TOKEN", token).env("MODEL_CACHE_LOG", "trace").env("RUST_BACKTRACE", "1");
                let output = command.output().unwrap();
                for said in [&output.stdout, &output.stderr] {
                    let said = String::from_utf8_lossy(said);
                    assert!(!said.contains(token) && !said.contains("Bearer"), "{args:?} {options:?}: {said}");
                }
            }
        }
        assert_eq!(files_with(machine.dir.path(), token), Vec::<PathBuf>::new());
    }
    // While it runs, to whoever lists processes.
    machine.run(["rm", REPO]);
    let slow = machine.hub.faults().always(Target::path("model-Q4_K_M.gguf").cdn(), Fault::SlowBytesPerSecond(MIB));
    let mut command = machine.command(["pull", REPO, "--all", "--progress", "json"]);
    let mut child = command.env("HF_TOKEN", GOOD_TOKEN).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    read_until_loaded(&mut BufReader::new(child.stderr.take().unwrap()), 1);
    for file in ["cmdline", "comm", "status"] {
        let title = std::fs::read(format!("/proc/{}/{file}", child.id())).unwrap();
        assert!(!String::from_utf8_lossy(&title).contains("hf_"), "{file}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    machine.hub.faults().remove(slow);
    assert_eq!(files_with(machine.dir.path(), GOOD_TOKEN), Vec::<PathBuf>::new());
    // What this search would not find it could not vouch for.
    std::fs::write(machine.path("planted"), format!("x{MARKED}")).unwrap();
    assert_eq!(files_with(machine.dir.path(), MARKED), [machine.path("planted")]);
}

#[test]
fn doctor_gives_the_promised_document_and_the_code_of_the_worst_it_found() {
    let machine = Machine::with_model(2 * MIB);
    let document = machine.json(&["doctor"]);
    assert_eq!(document["problems"], 0);
    let findings = document["findings"].as_array().unwrap();
    for field in ["area", "severity", "what"] {
        assert!(findings.iter().all(|finding| finding[field].is_string()), "{field}: {document}");
    }
    assert!(findings.iter().all(|finding| finding["code"].is_null() && finding.get("hint").is_some()));
    assert!(!machine.path("store").exists(), "doctor makes no store");
    machine.json(&["pull", REPO, "--quant", "Q8_0"]);
    let ran = machine.run(["doctor"]);
    assert!(ran.code == 0 && ran.text().contains("\nstore\n") && ran.err.starts_with("Nothing is wrong"), "{ran:?}");
    let command = |args: &[&str], token: &str| Ran::from(machine.command(args).env("HF_TOKEN", token).output().unwrap());
    assert!(command(&["doctor"], GOOD_TOKEN).text().contains("the token from HF_TOKEN is tester's, to read"));
    let ran = command(&["doctor"], "hf_nonsense");
    assert!(ran.code == 7 && ran.text().contains("problem:") && ran.err.contains("1 problem"), "{ran:?}");
    // Damage before all else, at the store the hint's commands are to go to.
    std::fs::write(machine.path("store/model_cache_manifests/mdbx.dat"), "garbage").unwrap();
    let store = machine.path("store");
    let ran = command(&["doctor", "--store", store.to_str().unwrap(), "--json"], "hf_nonsense");
    assert_eq!((ran.code, ran.document()["problems"].as_u64() >= Some(2)), (5, true), "{ran:?}");
    let ran = machine.run(["doctor", "--offline", "--endpoint", "ftp://x"]);
    assert!(ran.code == 5 && ran.text().contains("ftp://x"), "{ran:?}");
}

#[test]
fn a_stores_files_are_its_owners_alone_whatever_the_umask_and_an_exports_are_as_the_umask_says() {
    use std::os::unix::fs::PermissionsExt;
    for umask in ["000", "022", "077"] {
        let machine = Machine::with_model(2 * MIB);
        let out = machine.path("out");
        for args in [&["pull", REPO, "--all"][..], &["export", REPO, "--to", out.to_str().unwrap()]] {
            let program = machine.command(args);
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]).arg(program.get_program()).args(program.get_args());
            shell.env_clear().envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
            assert_eq!(Ran::from(shell.output().unwrap()).code, 0, "{args:?}");
        }
        let mode = |path: &str| std::fs::metadata(machine.path(path)).unwrap().permissions().mode() & 0o7777;
        for folder in ["store", "store/model_cache_chunks", "store/model_cache_manifests"] {
            assert_eq!(mode(folder), 0o700, "{folder} with umask {umask}");
        }
        let lock_and_data =
            ["chunks", "manifests"].map(|name| ["lck", "dat"].map(|kind| format!("store/model_cache_{name}/mdbx.{kind}")));
        for file in lock_and_data.iter().flatten().map(String::as_str).chain(["store/leases", "store/ballast"]) {
            assert_eq!(mode(file), 0o600, "{file} with umask {umask}");
        }
        let umask = u32::from_str_radix(umask, 8).unwrap();
        assert_eq!(
            (mode("out"), mode("out/model-Q8_0.gguf"), mode("out/config.json")),
            (0o777 & !umask, 0o666 & !umask, 0o666 & !umask)
        );
    }
}

// -- talk and data -------------------------------------------------------------------------------------------------

#[test]
fn stdout_has_data_only_and_no_decoration_where_it_is_no_terminal() {
    let machine = Machine::with_model(2 * MIB);
    let pulled = machine.run(["pull", REPO, "--all"]);
    assert!(pulled.out.is_empty() && pulled.err.contains("Pulled "), "{pulled:?}");
    for args in [&["scan", REPO][..], &["ls"], &["ls", REPO], &["show", REPO], &["df"]] {
        let ran = machine.run(args);
        assert!(ran.code == 0 && !ran.text().is_empty() && !ran.text().contains(['\u{1b}', '…']), "{args:?}: {ran:?}");
        assert!(!ran.text().contains("hint:"), "{args:?}: {ran:?}");
        assert!(ran.text().lines().all(|line| line == line.trim_end()), "{args:?}: {ran:?}");
    }
    let verified = machine.run(["verify"]);
    assert!(verified.out.is_empty() && verified.err.contains("every block is as it was sealed"), "{verified:?}");
}

#[test]
fn progress_as_json_is_one_object_a_line_and_ends_once() {
    let machine = Machine::with_model(12 * MIB);
    let ends = |ran: &Ran| -> Vec<Value> {
        let events = ran.err.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
        let all: Vec<_> = events.collect();
        assert!(all.iter().all(|event| event["event"].is_string()), "{all:?}");
        all.into_iter().filter(|event| ["done", "failed", "cancelled"].contains(&event["event"].as_str().unwrap())).collect()
    };
    let ran = machine.run(["--progress", "json", "pull", REPO, "-q", "Q4_K_M"]);
    assert_eq!(ran.code, 0);
    let end = ends(&ran);
    assert_eq!((end.len(), &end[0]["event"]), (1, &"done".into()), "{ran:?}");
    let progress = ran.err.lines().find(|line| line.contains("\"event\":\"progress\"")).unwrap();
    let progress: Value = serde_json::from_str(progress).unwrap();
    for field in ["repo", "commit", "path", "loaded_bytes", "total_bytes", "bytes_per_second", "eta_seconds"] {
        assert!(progress.get(field).is_some(), "{field}: {progress}");
    }
    // A failure says its code and hint in the last object; also one of a pull that never began.
    for (args, code, name) in
        [(["pull", REPO], 2, "usage"), (["pull", "no-slash"], 2, "usage"), (["pull", "org/absent"], 3, "not_found")]
    {
        let ran = machine.run(["--progress", "json"].into_iter().chain(args));
        let end = ends(&ran);
        assert_eq!((ran.code, end.len()), (code, 1), "{ran:?}");
        assert_eq!((&end[0]["event"], &end[0]["code"]), (&"failed".into(), &name.into()));
        assert!(end[0]["hint"].is_string(), "{ran:?}");
    }
    let ran = machine.run(["--progress", "json", "verify", "org/absent"]);
    assert_eq!((ran.code, &ends(&ran)[0]["code"]), (3, &"not_found".into()));
    let none = machine.run(["--progress", "none", "pull", REPO, "-q", "Q8_0"]);
    assert_eq!(none.err.lines().count(), 1, "{none:?}");
}

#[test]
fn a_long_pull_into_a_log_gets_a_line_now_and_then() {
    let machine = Machine::with_model(30 * MIB);
    machine.hub.faults().always(Target::path("model-Q4_K_M.gguf").cdn(), Fault::SlowBytesPerSecond(MIB));
    let ran = machine.run(["pull", REPO, "-q", "Q4_K_M", "--connections", "6"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines: Vec<_> = ran.err.lines().filter(|line| line.contains(" % ")).collect();
    assert!((1..=4).contains(&lines.len()), "{ran:?}");
    assert!(lines[0].contains("/30.0 MiB  ") && lines[0].contains(" left"), "{ran:?}");
}

// -- interrupts and neighbours -------------------------------------------------------------------------------------

#[test]
fn ctrl_c_keeps_what_landed_and_the_next_pull_goes_on_from_there() {
    let size = 60 * MIB;
    let machine = Machine::with_model(size);
    let slow = machine.hub.faults().always(Target::path("model-Q4_K_M.gguf").cdn(), Fault::SlowBytesPerSecond(10 * MIB));
    let mut landed = 0;
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let mut command = machine.command(["pull", REPO, "-q", "Q4_K_M", "--connections", "2", "--json"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // What came is not what landed: the disk may be behind.
        landed = wait_for_landed(&machine, landed + 6 * MIB);
        signal(&child, name);
        let started = Instant::now();
        let ran = Ran::from(child.wait_with_output().unwrap());
        // Half a second is promised; a loaded test machine gets some more.
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        let error = ran.error();
        assert_eq!((ran.code, &error["code"]), (code, &"interrupted".into()));
        // Where it could be counted before somebody had to wait for it.
        let kept = error["kept_bytes"].as_u64().unwrap_or(landed);
        assert!(kept >= landed && kept < size && error["total_bytes"].as_u64() == Some(size + 7), "{error}, {landed} landed");
        let here = machine.json(&["show", REPO])["quants"]["Q4_K_M"].clone();
        assert_eq!(here["status"], "partial");
        assert!(here["downloaded_bytes"].as_u64().unwrap() >= kept - 7, "{here} {error}");
    }
    machine.hub.faults().remove(slow);
    let kept = machine.json(&["show", REPO])["quants"]["Q4_K_M"]["downloaded_bytes"].as_u64().unwrap();
    machine.hub.clear_log();
    let pulled = machine.json(&["pull", REPO, "-q", "Q4_K_M"]);
    assert!(pulled["fetched_bytes"].as_u64().unwrap() <= size + 7 - kept, "{pulled}, kept {kept}");
    assert!(machine.hub.bytes_served() <= size + 7 - kept, "{}, kept {kept}", machine.hub.bytes_served());
    assert!(machine.run(["cat", REPO, "model-Q4_K_M.gguf"]).out == *Content::seeded(1, size).read(0..size).unwrap());
}

#[test]
fn ctrl_c_is_heard_while_the_hub_is_silent_and_while_nobody_reads() {
    let machine = Machine::with_model(8 * MIB);
    machine.json(&["pull", REPO, "-q", "Q4_K_M"]);
    machine.hub.faults().always(Target::any(), Fault::Delay(Duration::from_secs(30)));
    for (args, signals) in [
        (&["scan", REPO][..], 1),
        (&["pull", REPO, "-q", "Q8_0"], 1),
        (&["cat", REPO, "model-Q4_K_M.gguf"], 1),
        (&["cat", REPO, "model-Q4_K_M.gguf"], 2),
    ] {
        let mut child = machine.spawn(args);
        std::thread::sleep(Duration::from_millis(500));
        let started = Instant::now();
        for _ in 0..signals {
            signal(&child, "INT");
            std::thread::sleep(Duration::from_millis(20));
        }
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(130), "{args:?}");
        assert!(started.elapsed() < Duration::from_secs(1), "{args:?}: {:?}", started.elapsed());
    }
}

#[test]
fn an_interrupted_pull_tells_people_what_was_kept() {
    let machine = Machine::with_model(60 * MIB);
    machine.hub.faults().always(Target::path("model-Q4_K_M.gguf").cdn(), Fault::SlowBytesPerSecond(3 * MIB));
    let mut child = machine.spawn(&["pull", REPO, "-q", "Q4_K_M"]);
    wait_for_bytes(&machine, 30 * MIB);
    signal(&child, "INT");
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{err}");
    assert!(err.contains("interrupted: kept ") && err.contains(" of 60.0 MiB\nhint: the same command"), "{err}");
}

/// Waits until `bytes` of the Q4_K_M of [`REPO`] have landed; how many did.
fn wait_for_landed(machine: &Machine, bytes: u64) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        // Refused until the pull has made the store and written down what the repo offers.
        let shown = machine.run(["show", REPO, "--json"]);
        let landed = if shown.code == 0 { shown.document()["quants"]["Q4_K_M"]["downloaded_bytes"].as_u64() } else { None };
        match landed {
            Some(landed) if landed >= bytes => return landed,
            _ => assert!(Instant::now() < deadline, "only {landed:?} bytes have landed"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_for_bytes(machine: &Machine, bytes: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while machine.hub.bytes_served() < bytes {
        assert!(Instant::now() < deadline, "only {} bytes were served", machine.hub.bytes_served());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn of_two_processes_that_pull_the_same_file_one_fetches_and_the_other_waits_and_says_so() {
    let size = 40 * MIB;
    let machine = Machine::with_model(size);
    machine.hub.faults().always(Target::path("model-Q4_K_M.gguf").cdn(), Fault::SlowBytesPerSecond(2 * MIB));
    let first = machine.spawn(&["pull", REPO, "-q", "Q4_K_M"]);
    wait_for_bytes(&machine, MIB);
    let second = machine.spawn(&["pull", REPO, "-q", "Q4_K_M"]);
    let [first, second] = [first, second].map(|child| Ran::from(child.wait_with_output().unwrap()));
    assert_eq!((first.code, second.code), (0, 0), "{first:?} {second:?}");
    assert!(!first.err.contains("waiting") && first.err.contains("Pulled "), "{first:?}");
    assert!(second.err.contains("another process fetched it"), "{second:?}");
    assert_eq!(second.err.matches("waiting: another process is fetching model-Q4_K_M.gguf").count(), 1, "{second:?}");
    assert!(machine.hub.bytes_served() <= size + 2 * 7, "{}", machine.hub.bytes_served());
}

#[test]
fn a_file_that_is_being_read_is_removed_and_its_reader_named() {
    let machine = Machine::with_model(24 * MIB);
    machine.json(&["pull", REPO, "-q", "Q4_K_M"]);
    let mut reader = machine.spawn(&["cat", REPO, "model-Q4_K_M.gguf"]);
    let mut out = reader.stdout.take().unwrap();
    let mut bytes = vec![0; 4096];
    out.read_exact(&mut bytes).unwrap();
    assert_eq!(machine.json(&["ls"])["repos"][0]["readers"], serde_json::json!([reader.id()]));
    let ran = machine.run(["rm", REPO]);
    assert!(ran.err.contains(&format!("24.00 MiB is still in use by process {}", reader.id())), "{ran:?}");
    assert_eq!(machine.json(&["df"])["doomed_bytes"], 24 * MIB);
    out.read_to_end(&mut bytes).unwrap();
    assert!(bytes == *Content::seeded(1, 24 * MIB).read(0..24 * MIB).unwrap());
    assert!(reader.wait().unwrap().success());
    machine.json(&["gc"]);
    assert_eq!(machine.json(&["df"])["doomed_bytes"], 0);
}

#[test]
fn offline_reads_go_by_what_is_in_the_store() {
    let machine = Machine::with_model(MIB);
    machine.json(&["pull", REPO, "--all"]);
    machine.hub.clear_log();
    for args in [&["--offline", "scan", REPO][..], &["--offline", "pull", REPO, "--all"], &["ls"], &["show", REPO], &["verify"]] {
        assert_eq!(machine.run(args).code, 0, "{args:?}");
    }
    assert!(machine.hub.requests().is_empty());
}

#[test]
fn a_damaged_block_is_shown_and_is_an_integrity_error() {
    let machine = Machine::with_model(12 * MIB);
    machine.json(&["pull", REPO, "-q", "Q4_K_M"]);
    damage(&machine.path("store"), &Content::seeded(1, 12 * MIB).read(6 * MIB..6 * MIB + 64).unwrap());
    let ran = machine.run(["verify", "--json"]);
    assert_eq!(ran.code, 5, "{ran:?}");
    let bad = &ran.document()["bad"];
    assert_eq!(bad.as_array().unwrap().len(), 1, "{bad}");
    assert_eq!(
        (&bad[0]["path"], bad[0]["chunk"].as_u64(), bad[0]["block"].as_u64()),
        (&"model-Q4_K_M.gguf".into(), Some(0), Some(1))
    );
    let ran = machine.run(["verify", REPO]);
    assert_eq!(ran.code, 5);
    assert!(
        ran.text().starts_with("REPO")
            && ran.err.contains("1 block damaged")
            && ran.err.contains("hint: model-cache repair org/model@"),
        "{ran:?}"
    );
}

#[test]
fn damaged_content_with_two_names_is_mended_by_the_command_of_the_hint() {
    let machine = Machine::new(vec![model(12 * MIB), Repo::new("org/twin").file("it's.gguf", Content::seeded(1, 12 * MIB))]);
    for repo in [REPO, "org/twin"] {
        machine.json(&["pull", repo, "--all"]);
    }
    damage(&machine.path("store"), &Content::seeded(1, 12 * MIB).read(6 * MIB..6 * MIB + 64).unwrap());
    let ran = machine.run(["verify"]);
    assert_eq!(ran.code, 5);
    let hints: Vec<_> = ran.err.lines().filter_map(|line| line.strip_prefix("hint: ")).collect();
    assert_eq!(hints.len(), 1, "{ran:?}");
    let program = Path::new(env!("CARGO_BIN_EXE_model-cache"));
    for hint in hints {
        let mut shell = Command::new("sh");
        shell.env_clear().env("HOME", machine.dir.path()).env("HF_ENDPOINT", machine.hub.endpoint());
        shell.env("MODEL_CACHE_HOME", machine.path("store"));
        shell.env("PATH", format!("{}:/usr/bin:/bin", program.parent().unwrap().display()));
        let ran = Ran::from(shell.args(["-c", hint]).output().unwrap());
        assert_eq!(ran.code, 0, "{hint}: {ran:?}");
    }
    assert_eq!(machine.run(["verify"]).code, 0);
}

#[test]
fn a_repair_says_what_it_would_fetch_fetches_it_and_what_it_could_not() {
    let machine = Machine::with_model(12 * MIB);
    machine.json(&["pull", REPO, "-q", "Q4_K_M"]);
    assert_eq!(machine.json(&["repair"])["damaged"], serde_json::json!([]));
    damage(&machine.path("store"), &Content::seeded(1, 12 * MIB).read(6 * MIB..6 * MIB + 64).unwrap());
    let path = "model-Q4_K_M.gguf";
    let cat = machine.run(["cat", REPO, path, "--check"]);
    assert!(cat.code == 5 && cat.out.len() as u64 == 5 * MIB && cat.err.contains("block 1"), "{} {}", cat.code, cat.err);
    assert_eq!(machine.run(["cat", REPO, path, "--check", "--range", "..5242880"]).code, 0);
    let out = machine.path("out");
    assert_eq!(machine.run(["export", REPO, "--to", out.to_str().unwrap(), "--check"]).code, 5);
    for (args, code, outcome) in [
        (&["repair", REPO, "--dry-run"][..], 5, "would_repair"),
        (&["repair", "--offline"], 4, "failed"),
        (&["repair", REPO], 0, "repaired"),
    ] {
        let ran = machine.run(args.iter().chain(&["--json"]));
        let document = ran.document();
        let file = &document["damaged"][0];
        assert_eq!((ran.code, &file["outcome"]), (code, &outcome.into()), "{ran:?}");
        assert_eq!(
            (&file["path"], file["blocks"].as_u64(), file["fetch_bytes"].as_u64()),
            (&path.into(), Some(1), Some(5 * MIB))
        );
    }
    damage(&machine.path("store"), &Content::seeded(1, 12 * MIB).read(6 * MIB..6 * MIB + 64).unwrap());
    let ran = machine.run(["repair", "--offline"]);
    assert!(ran.code == 4 && ran.err.contains("1 still damaged") && ran.text().contains("offline"), "{ran:?}");
    let ran = machine.run(["repair"]);
    assert!(ran.code == 0 && ran.err.contains("1 file repaired, 5.00 MiB fetched"), "{ran:?}");
    assert_eq!(machine.run(["verify", "--digest"]).code, 0);
    assert_eq!(machine.run(["cat", REPO, path, "--check"]).out.len() as u64, 12 * MIB);
}

// -- other stores, and none ----------------------------------------------------------------------------------------

#[test]
fn hints_go_to_the_store_and_the_hub_the_command_was_given() {
    let machine = Machine::with_model(MIB);
    let store = machine.path("a store");
    let given = ["--store", store.to_str().unwrap(), "--endpoint", &machine.hub.endpoint().to_string()].map(str::to_owned);
    let run = |args: &[&str]| machine.run(given.iter().map(String::as_str).chain(args.iter().copied()));
    let options = format!("model-cache --store '{}' --endpoint {}", store.display(), machine.hub.endpoint());
    let ran = run(&["scan", REPO]);
    assert!(ran.err.ends_with(&format!("hint: {options} pull org/model --quant Q4_K_M\n")), "{ran:?}");
    let ran = run(&["cat", REPO, "config.json"]);
    assert!(ran.err.ends_with(&format!("hint: {options} pull org/model --file config.json\n")), "{ran:?}");
    let hint = run(&["cat", REPO, "config.json", "--json"]).error()["hint"].clone();
    assert_eq!(hint, format!("{options} cat org/model config.json"));
    assert!(!machine.path("store").exists());
}

#[test]
fn a_command_that_reads_makes_no_store() {
    let machine = Machine::with_model(MIB);
    let store = machine.path("store");
    for (args, empty) in [
        (&["ls"][..], serde_json::json!({ "repos": [] })),
        (&["df"], serde_json::json!({ "files": 0 })),
        (&["gc"], serde_json::json!({ "freed_bytes": 0 })),
    ] {
        let ran = machine.run(args);
        assert_eq!((ran.code, ran.text()), (0, ""), "{ran:?}");
        assert!(ran.err.contains(&format!("There is no store at {} yet", store.display())), "{ran:?}");
        let document = machine.json(args);
        for (field, value) in empty.as_object().unwrap() {
            assert_eq!(document[field], *value, "{args:?}");
        }
    }
    let to = machine.path("out");
    let to = to.to_str().unwrap();
    for args in [
        &["ls", REPO][..],
        &["show", REPO],
        &["cat", REPO, "x"],
        &["verify"],
        &["verify", REPO],
        &["repair"],
        &["repair", "--dry-run"],
        &["export", REPO, "--to", to],
        &["rm", REPO],
        &["warm", REPO],
    ] {
        let ran = machine.run(args);
        assert_eq!(ran.code, 3, "{args:?}: {ran:?}");
        assert!(ran.err.contains("no store at "), "{args:?}: {ran:?}");
    }
    assert!(!store.exists() && !Path::new(to).exists());
}

#[test]
fn a_store_that_may_not_be_read_and_one_that_lost_its_records_are_not_taken_for_none() {
    use std::os::unix::fs::PermissionsExt;
    let machine = Machine::with_model(MIB);
    machine.json(&["pull", REPO, "--all"]);
    let out = machine.path("out");
    let all = [
        &["ls"][..],
        &["df"],
        &["gc"],
        &["verify"],
        &["repair"],
        &["ls", REPO],
        &["verify", REPO],
        &["repair", REPO],
        &["cat", REPO, "config.json"],
        &["export", REPO, "--to", out.to_str().unwrap()],
        &["backup", out.to_str().unwrap()],
        &["rm", REPO, "--yes"],
    ];
    let as_nobody = |args: &[&str]| {
        let program = machine.command(args);
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--clear-groups"]).arg(program.get_program()).args(program.get_args());
        command.env_clear().envs(program.get_envs().filter_map(|(key, value)| Some((key, value?)))).env("PATH", "/usr/bin:/bin");
        command.stdin(Stdio::null()).output().ok().filter(|output| output.status.code() != Some(127)).map(Ran::from)
    };
    // The store is its owner's alone; what it lies in is not.
    std::fs::set_permissions(machine.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    if as_nobody(&["--version"]).is_some_and(|ran| ran.code == 0) {
        for args in all {
            let ran = as_nobody(args).unwrap();
            assert!(ran.code == 1 && ran.err.contains("Permission denied") && ran.err.contains("hint: "), "{args:?}: {ran:?}");
            assert!(!ran.err.contains("no store"), "{args:?}: {ran:?}");
        }
    } else {
        println!("this may not run as another user");
    }
    std::fs::remove_dir_all(machine.path("store/model_cache_manifests")).unwrap();
    for args in all {
        let ran = machine.run(args);
        assert!(ran.code == 5 && ran.err.contains("model_cache_manifests") && ran.err.contains("hint: "), "{args:?}: {ran:?}");
    }
    assert!(!machine.path("store/model_cache_manifests").exists());
}

#[test]
fn a_damaged_import_is_whole_again_once_its_original_is_imported() {
    let machine = Machine::with_model(MIB);
    let original = Content::seeded(8, 12 * MIB).read(0..12 * MIB).unwrap();
    std::fs::write(machine.path("mine.gguf"), &original).unwrap();
    let file = machine.path("mine.gguf");
    let file = file.to_str().unwrap();
    machine.json(&["import", "me/mine", file]);
    damage(&machine.path("store"), &original[6 << 20..(6 << 20) + 64]);
    assert_eq!(machine.run(["verify"]).code, 5);
    let ran = machine.run(["repair"]);
    assert!(ran.code == 5 && ran.text().contains("import the original again"), "{ran:?}");
    let ran = machine.run(["import", "me/mine", file]);
    assert!(ran.code == 0 && ran.err.contains("1 file was here and damaged") && !ran.err.contains("already"), "{ran:?}");
    assert_eq!((machine.run(["verify", "--digest"]).code, machine.run(["repair"]).code), (0, 0));
    let again = machine.json(&["import", "me/mine", file]);
    assert_eq!((again["mended_files"].as_u64(), again["here_bytes"].as_u64()), (Some(0), Some(12 * MIB)));
}

#[test]
fn an_import_is_shown_as_one() {
    let machine = Machine::with_model(MIB);
    std::fs::write(machine.path("mine.bin"), vec![7; 100_000]).unwrap();
    machine.json(&["import", "me/model", machine.path("mine.bin").to_str().unwrap()]);
    let ran = machine.run(["show", "me/model"]);
    assert_eq!(ran.code, 3);
    assert_eq!(ran.err, "error: me/model was imported, so it has no manifest\nhint: model-cache ls me/model\n");
}

#[test]
fn a_failed_pull_says_what_was_kept() {
    let machine = Machine::with_model(6 * MIB);
    machine.hub.faults().always("model-Q4_K_M.gguf", Fault::status(404));
    let ran = machine.run(["pull", REPO, "--all", "--json"]);
    assert_ne!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.error()["total_bytes"], 7 * MIB + 7);
    assert!(ran.error()["kept_bytes"].is_u64(), "{ran:?}");
}

#[test]
fn ranges_that_are_none_are_told_with_the_right_help_and_bytes_can_be_thrown_away() {
    let machine = Machine::with_model(MIB);
    machine.json(&["pull", REPO, "--all"]);
    let program = env!("CARGO_BIN_EXE_model-cache");
    for (to, code) in [(">/dev/null", 0), ("<>/dev/null >&0", 0), ("--range -1..4", 2), ("--range 1..x", 2)] {
        let mut shell = Command::new("sh");
        shell.env_clear().env("HOME", machine.dir.path()).env("MODEL_CACHE_HOME", machine.path("store"));
        let ran = Ran::from(shell.args(["-c", &format!("{program} cat {REPO} config.json {to}")]).output().unwrap());
        assert_eq!(ran.code, code, "{to}: {ran:?}");
        assert!(code != 2 || ran.err.contains("hint: model-cache cat --help"), "{to}: {ran:?}");
    }
}

#[test]
fn help_is_a_command_too() {
    let machine = Machine::with_model(MIB);
    for args in [&["help"][..], &["help", "pull"]] {
        let ran = machine.run(args);
        assert!(ran.code == 0 && ran.text().contains("Examples:"), "{ran:?}");
    }
}

#[test]
fn a_terminal_of_any_width_shows_a_pull() {
    let machine = Machine::with_model(3 * MIB);
    machine.hub.faults().always(Target::path("model-Q4_K_M.gguf").cdn(), Fault::SlowBytesPerSecond(2 * MIB));
    if !Path::new("/usr/bin/script").exists() {
        return;
    }
    for columns in [1, 20, 45, 55] {
        let command = format!("stty rows 24 cols {columns}; {} pull {REPO} --all", env!("CARGO_BIN_EXE_model-cache"));
        let mut script = Command::new("/usr/bin/script");
        script.env("HF_ENDPOINT", machine.hub.endpoint()).env("MODEL_CACHE_HOME", machine.path(&format!("store-{columns}")));
        let output = script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("Pulled ") && !said.contains("bug:"), "{columns}: {said}");
    }
}

#[test]
fn a_table_fits_a_terminal_that_knows_its_columns_alone_or_is_told_them() {
    let machine = Machine::with_model(MIB);
    let name = "organisation-of-some-length/and-a-model-with-a-rather-long-name";
    std::fs::write(machine.path("mine.bin"), vec![7; 100_000]).unwrap();
    machine.json(&["import", name, machine.path("mine.bin").to_str().unwrap()]);
    if !Path::new("/usr/bin/script").exists() {
        return;
    }
    let ls = |stty: &str, columns: &str| {
        let command = format!("stty {stty}; {} ls", env!("CARGO_BIN_EXE_model-cache"));
        let mut script = Command::new("/usr/bin/script");
        script.env("MODEL_CACHE_HOME", machine.path("store")).env("NO_COLOR", "1").env("COLUMNS", columns);
        let output = script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for (stty, columns) in [("rows 24 cols 60", ""), ("rows 0 cols 60", "200"), ("rows 0 cols 0", "60")] {
        let shown = ls(stty, columns);
        assert!(shown.contains('…') && shown.lines().all(|line| line.chars().count() <= 60), "{stty}: {shown}");
    }
    assert!(ls("rows 0 cols 0", "").contains(name));
    let piped = Ran::from(machine.command(["ls"]).env("COLUMNS", "60").output().unwrap());
    assert!(piped.text().contains(name), "{piped:?}");
}

/// Flips a bit where `bytes` lie in the store's data.
fn damage(store: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let path = store.join("model_cache_chunks").join("mdbx.dat");
    let data = std::fs::read(&path).unwrap();
    let at = data.windows(bytes.len()).step_by(64).position(|window| window == bytes).expect("the bytes are in the store") * 64;
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[data[at] ^ 1], at as u64).unwrap();
}

// -- backup and restore --------------------------------------------------------------------------------------------

#[test]
fn a_store_is_backed_up_checked_and_restored_with_the_promised_documents_and_exit_codes() {
    let machine = Machine::with_model(7 * MIB);
    assert_eq!(machine.run(["backup", "b"]).code, 3, "there is no store yet");
    machine.json(&["pull", REPO, "--all"]);
    let (backup, other) = (machine.path("backup"), machine.path("other"));
    let (backup, other) = (backup.to_str().unwrap(), other.to_str().unwrap());
    let made = machine.json(&["backup", backup]);
    let fields =
        ["snapshot", "files", "copied_bytes", "shared_bytes", "left_out", "unfinished", "dropped_snapshots", "dropped_bytes"];
    assert!(fields.iter().all(|field| !made[field].is_null()), "{made}");
    assert_eq!(
        (made["snapshot"].as_u64(), made["files"].as_u64(), made["copied_bytes"].as_u64()),
        (Some(1), Some(3), Some(8 * MIB + 7))
    );
    let again = machine.run(["backup", backup]);
    assert_eq!((again.code, again.err.contains("(0 B copied)"), again.text()), (0, true, ""), "{again:?}");
    let checked = machine.json(&["restore", backup, "--check"]);
    assert_eq!((checked["snapshot"].as_u64(), checked["bad"].as_array().map(Vec::len)), (Some(2), Some(0)), "{checked}");
    // Over a store only when told to; beside it at any time.
    let refused = machine.run(["restore", backup, "--json"]);
    assert_eq!((refused.code, refused.error()["code"].as_str()), (2, Some("usage")), "{refused:?}");
    assert!(refused.error()["hint"].as_str().unwrap().contains("--replace"));
    let restored = machine.json(&["restore", backup, "--to", other]);
    assert_eq!((restored["files"].as_u64(), restored["replaced"].as_bool()), (Some(3), Some(false)));
    let listed = machine.json(&["ls"]);
    assert_eq!(machine.json(&["ls", "--store", other]), listed);
    machine.json(&["rm", REPO]);
    assert_eq!(machine.json(&["restore", backup, "--replace"])["replaced"], true);
    assert_eq!(machine.json(&["ls"]), listed);
    assert_eq!(machine.run(["verify", "--digest"]).code, 0);
    // Damaged, it is told by name, and restored no more.
    let mut blobs: Vec<_> = std::fs::read_dir(machine.path("backup/blobs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    blobs.sort();
    std::fs::write(blobs.last().unwrap(), "other bytes").unwrap();
    let checked = machine.run(["restore", backup, "--check"]);
    assert_eq!(checked.code, 5, "{checked:?}");
    assert!(checked.text().contains("blobs/sha256-") && checked.err.contains("hint: model-cache backup"), "{checked:?}");
    let refused = machine.run(["restore", backup, "--replace", "--json"]);
    assert_eq!((refused.code, refused.error()["code"].as_str()), (5, Some("integrity")), "{refused:?}");
    assert_eq!(machine.run(["backup", backup, "--recheck"]).code, 0);
    assert_eq!(machine.run(["restore", backup, "--check"]).code, 0);
    assert_eq!(machine.run(["backup", backup, "--keep", "0"]).code, 2);
    let refused = machine.run(["restore", backup, "--check", "--snapshot", "7"]);
    assert!(
        refused.code == 3 && refused.err.contains("has no snapshot 7, but ") && !refused.err.contains("makes one"),
        "{refused:?}"
    );
    // Neither other files in a store nor a good backup go by mistake.
    let notes = machine.path("other/notes.txt");
    std::fs::write(&notes, "mine").unwrap();
    let refused = machine.run(["restore", backup, "--to", other, "--replace"]);
    assert!(refused.code == 1 && refused.err.contains("go with it: notes.txt") && notes.exists(), "{refused:?}");
    assert!(refused.err.contains("hint: move them elsewhere"), "{refused:?}");
    let strange = machine.path("strange");
    std::fs::write(machine.path("y"), "y").unwrap();
    let imported = machine.run(["import", "me/b", machine.path("y").to_str().unwrap(), "--store", strange.to_str().unwrap()]);
    assert_eq!(imported.code, 0, "{imported:?}");
    let warned = machine.run(["backup", backup, "--keep", "1", "--store", strange.to_str().unwrap()]);
    assert!(warned.code == 0 && warned.err.contains("no older snapshot was dropped: is this the right store?"), "{warned:?}");
    let again = machine.run(["backup", backup, "--keep", "1", "--store", strange.to_str().unwrap()]);
    assert!(again.code == 0 && again.err.contains("Snapshots of another store stay: "), "{again:?}");
    assert!(again.err.contains("hint: --drop-others drops them as --keep says") && !again.err.contains("warning"), "{again:?}");
    assert_eq!(machine.run(["restore", backup, "--check", "--snapshot", "3"]).code, 0, "of the right store");
    assert_eq!(machine.run(["rm", "me/b", "--yes", "--store", strange.to_str().unwrap()]).code, 0);
    let refused = machine.run(["backup", backup, "--keep", "1", "--store", strange.to_str().unwrap()]);
    assert!(
        refused.code == 1 && refused.err.contains("is empty") && refused.err.contains("hint: is it the right store?"),
        "{refused:?}"
    );
    assert_eq!(machine.run(["restore", other, "--check"]).code, 3, "a store is no backup");
}

#[test]
fn what_a_backup_says_it_dropped_or_kept_of_another_store_is_what_it_did() {
    let machine = Machine::new(Vec::new());
    let backup = machine.path("backup");
    let import = |name: &str, store: &str| {
        std::fs::write(machine.path(name), name).unwrap();
        let (file, store) = (machine.path(name), machine.path(store));
        let imported = machine.run(["import".as_ref(), "me/a".as_ref(), file.as_os_str(), "--store".as_ref(), store.as_os_str()]);
        assert_eq!(imported.code, 0, "{imported:?}");
    };
    let back_up = |store: &str, more: &[&str]| {
        let store = machine.path(store);
        let args = ["backup", backup.to_str().unwrap(), "--keep", "1", "--store", store.to_str().unwrap()];
        let made = machine.run(args.iter().chain(more));
        assert_eq!(made.code, 0, "{made:?}");
        let there = std::fs::read_dir(backup.join("snapshots")).unwrap().map(|entry| entry.unwrap().path());
        (made.err, there.filter(|path| path.extension() == Some("json".as_ref())).count())
    };
    for (name, store) in [("x", "one"), ("y", "other")] {
        import(name, store);
    }
    assert_eq!(back_up("one", &[]).1, 1);
    // Another store's, of which all is to go.
    let (said, there) = back_up("other", &["--drop-others"]);
    let expected = "warning: the newest snapshot before is of another store, or has nothing of this one: is this the right store? \
                    Dropped, as --drop-others and --keep say: snapshots 1\n";
    assert!(there == 1 && said.contains(expected) && !said.contains("no older snapshot was dropped"), "{said}");
    // Another store's, which stays.
    let (said, there) = back_up("one", &[]);
    assert!(there == 2 && said.contains("is of another store, of which no older snapshot was dropped"), "{said}");
    // A store is not replaced by another one's because that is the newest.
    let [one, other] = ["one", "other"].map(|name| machine.path(name).to_str().unwrap().to_owned());
    let backup_shown = backup.to_str().unwrap();
    let refused = machine.run(["restore", backup_shown, "--to", &other, "--replace"]);
    let command = format!("model-cache restore {backup_shown} --replace --snapshot 2 --to {other}");
    assert_eq!(
        (refused.code, refused.err.ends_with(&format!("hint: the newest of this store:\nhint: {command}\n"))),
        (2, true),
        "{refused:?}"
    );
    assert_eq!(machine.run(command.split(' ').skip(1)).code, 0);
    assert_eq!(machine.run(["restore", backup_shown, "--store", &one, "--replace"]).code, 0);
    // This store's, all of it new since.
    assert_eq!(machine.run(["rm", "me/a", "--yes", "--store", machine.path("one").to_str().unwrap()]).code, 0);
    import("z", "one");
    let (said, there) = back_up("one", &[]);
    assert!(there == 3 && said.contains("nothing of this store's newest snapshot before is in this one, so no older"), "{said}");
    assert_eq!(back_up("one", &[]).1, 2);
}

#[test]
fn damage_in_a_store_or_a_backup_is_told_once_with_what_was_left_out() {
    let machine = Machine::with_model(12 * MIB);
    machine.json(&["pull", REPO, "--all"]);
    let [backup, fresh, part, again, out] =
        ["backup", "fresh", "part", "again", "out"].map(|name| machine.path(name).to_str().unwrap().to_owned());
    assert_eq!(machine.run(["backup", &backup]).code, 0);
    let original = Content::seeded(1, 12 * MIB).read(0..12 * MIB).unwrap();
    let mut blobs = std::fs::read_dir(machine.path("backup/blobs")).unwrap().map(|entry| entry.unwrap().path());
    let blob = blobs.find(|path| std::fs::metadata(path).unwrap().len() == 12 * MIB).unwrap();
    std::fs::write(&blob, [&original[..100], &[original[100] ^ 1], &original[101..]].concat()).unwrap();
    // A restore leaves out what is damaged when told to.
    let refused = machine.run(["restore", &backup, "--to", &part]);
    assert!(refused.code == 5 && refused.err.contains("--skip-damaged restores what is sound"), "{refused:?}");
    let skipped = machine.run(["restore", &backup, "--to", &part, "--skip-damaged", "--json"]);
    let document = skipped.document();
    assert_eq!((skipped.code, document["files"].as_u64(), document["left_out"].as_array().map(Vec::len)), (5, Some(2), Some(0)));
    assert!(document["skipped"][0]["path"] == "model-Q4_K_M.gguf" && document["skipped"][1].is_null(), "{document}");
    let skipped = machine.run(["restore", &backup, "--to", &again, "--skip-damaged"]);
    assert!(skipped.code == 5 && skipped.text().contains("model-Q4_K_M.gguf"), "{skipped:?}");
    assert!(skipped.err.contains("what is damaged in the backup was left out"), "{skipped:?}");
    assert!(skipped.err.ends_with("hint: pull again, into the new store, what came from the Hub\n"), "{skipped:?}");
    assert_eq!(machine.run(["verify", "--digest", "--store", &part]).code, 0);
    assert_eq!(machine.run(["restore", &backup, "--check", "--skip-damaged"]).code, 2);
    // A new backup of a damaged store tells each damage once, and what it copied of the rest.
    damage(&machine.path("store"), &original[6 << 20..(6 << 20) + 64]);
    let made = machine.run(["backup", &fresh]);
    let said = format!("{}{}", made.text(), made.err);
    assert_eq!((made.code, said.matches("CRC32C").count(), said.matches("warning").count()), (5, 1, 1), "{made:?}");
    assert!(made.err.contains("(1.00 MiB copied)"), "{made:?}");
    // Looked at anew, the one before is told of too.
    let looked = machine.run(["backup", &backup, "--recheck", "--json"]);
    let document = looked.document();
    assert_eq!((looked.code, document["left_out"].as_array().map(Vec::len)), (5, Some(1)), "{document}");
    assert_eq!(
        (document["bad"][0]["snapshots"].to_string(), document["bad"][1].is_null()),
        ("[1]".to_owned(), true),
        "{document}"
    );
    let looked = machine.run(["backup", &backup, "--recheck"]);
    let hint = format!("hint: to restore what is sound:\nhint: model-cache restore {backup} --snapshot 1 --skip-damaged\n");
    assert!(looked.code == 5 && looked.err.ends_with(&hint), "{looked:?}");
    // An export that checks writes the others.
    let exported = machine.run(["export", REPO, "--to", &out, "--check"]);
    assert!(
        exported.code == 5 && exported.text().contains("model-Q4_K_M.gguf") && exported.text().contains("CRC32C"),
        "{exported:?}"
    );
    assert!(
        exported.err.contains("Exported 2 files") && exported.err.contains(&format!("hint: model-cache repair {REPO}")),
        "{exported:?}"
    );
    let exported = machine.run(["export", REPO, "--to", &out, "--check", "--force", "--json"]);
    let document = exported.document();
    assert_eq!((exported.code, document["left_out"][0]["path"].as_str()), (5, Some("model-Q4_K_M.gguf")), "{document}");
    assert!(machine.path("out/model-Q8_0.gguf").exists() && !machine.path("out/model-Q4_K_M.gguf").exists());
}

#[test]
fn a_snapshot_whose_document_is_damaged_is_told_with_what_can_be_done_about_it() {
    let machine = Machine::with_model(MIB);
    machine.json(&["pull", REPO, "--file=config.json"]);
    let [backup, new] = ["the backup", "new"].map(|name| machine.path(name).to_str().unwrap().to_owned());
    for _ in 0..2 {
        assert_eq!(machine.run(["backup", &backup]).code, 0);
    }
    let document = machine.path("the backup/snapshots/2.json");
    std::fs::write(&document, "{").unwrap();
    let give_up = format!("hint: rm -f '{backup}/snapshots/2.json' '{backup}/snapshots/2.sha256'\n");
    let checked = machine.run(["restore", &backup, "--check"]);
    assert!(checked.code == 5 && checked.err.contains(&give_up) && !checked.err.contains("--recheck"), "{checked:?}");
    let refused = machine.run(["restore", &backup, "--skip-damaged", "--to", &new]);
    let command = format!("model-cache restore '{backup}' --snapshot 1 --to {new}");
    assert!(refused.code == 5 && refused.err.ends_with(&format!("hint: one that is whole:\nhint: {command}\n")), "{refused:?}");
    assert_eq!(machine.run(["restore", &backup, "--snapshot", "1", "--to", &new]).code, 0);
    let refused = machine.run(["restore", &backup, "--replace"]);
    assert!(refused.err.ends_with(&format!("hint: model-cache restore '{backup}' --snapshot 1 --replace\n")), "{refused:?}");
    // A snapshot goes by the second backup all the same, its content does not.
    for dropped in [0, 1] {
        let made = machine.run(["backup", &backup]);
        assert!(
            made.code == 0 && made.err.contains("is not known, so no content was dropped") && made.err.contains(&give_up),
            "{made:?}"
        );
        assert_eq!(machine.path("the backup/snapshots/1.json").exists(), dropped == 0);
    }
    // As the hint says.
    let command = give_up.strip_prefix("hint: ").unwrap();
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success() && !document.exists());
    let made = machine.run(["backup", &backup]);
    assert!(made.code == 0 && !made.err.contains("damaged"), "{made:?}");
}

#[test]
fn a_restore_tells_of_a_full_disk_only_where_it_leaves_one() {
    let machine = Machine::with_model(6 * MIB);
    machine.json(&["pull", REPO, "-q", "Q4_K_M"]);
    let [backup, new, on_disk] = ["backup", "new", "store/new"].map(|name| machine.path(name).to_str().unwrap().to_owned());
    assert_eq!(machine.run(["backup", &backup]).code, 0);
    let restored = machine.run(["restore", &backup, "--to", &new]);
    assert!(restored.code == 0 && !restored.err.contains("warning"), "{restored:?}");
    assert!(std::fs::metadata(machine.path("new/ballast")).unwrap().blocks() * 512 >= 16 * MIB);
    // With room for it, and not for all of the ballast too.
    let script = r#"head -c $(($(df -B1 --output=avail "$STORE" | tail -n 1) - 31457280)) /dev/zero > "$STORE"/full; exec "$@""#;
    let restored = machine.on_small_disk(script, &["restore", &backup, "--to", &on_disk]);
    assert_eq!((restored.code, restored.err.matches("warning: the disk is nearly full").count()), (0, 1), "{restored:?}");
    assert!(!restored.err.contains(": 0 B of"), "{restored:?}");
}

#[test]
fn an_interrupted_backup_says_that_it_made_no_snapshot_and_what_the_next_one_does() {
    let machine = Machine::with_model(60 * MIB);
    machine.json(&["pull", REPO, "--all"]);
    let backup = machine.path("backup");
    let child = machine.spawn(&["backup", backup.to_str().unwrap(), "--progress", "json"]);
    let begun = Instant::now();
    while !backup.join("blobs").is_dir() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never began");
        std::thread::sleep(Duration::from_millis(1));
    }
    signal(&child, "INT");
    let ran = Ran::from(child.wait_with_output().unwrap());
    match ran.code {
        130 => {
            assert!(ran.err.contains("\"event\":\"cancelled\""), "{ran:?}");
            assert_eq!(machine.run(["restore", backup.to_str().unwrap(), "--check"]).code, 3);
        }
        // It was quicker than the signal.
        code => assert_eq!(code, 0, "{ran:?}"),
    }
    assert_eq!(machine.run(["backup", backup.to_str().unwrap()]).code, 0);
    assert_eq!(machine.run(["restore", backup.to_str().unwrap(), "--check"]).code, 0);
}

// -- origins that can't be trusted ---------------------------------------------------------------------------------

/// A machine whose Hub and CDN speak TLS, or not, and that trusts the tests' authority.
fn tls_machine(hub: Option<Tls>, cdn: Option<Tls>) -> Machine {
    let mut builder = Hub::builder().repo(model(2 * MIB));
    builder = hub.into_iter().fold(builder, hub_fixture::HubBuilder::tls);
    builder = cdn.into_iter().fold(builder, hub_fixture::HubBuilder::cdn_tls);
    let machine = Machine { hub: builder.start().unwrap(), dir: tempfile::tempdir().unwrap() };
    std::fs::write(machine.path("authority.pem"), hub_fixture::authority_pem()).unwrap();
    machine
}

fn tls_pull(machine: &Machine) -> Ran {
    let mut command = machine.command(["pull", REPO, "--quant", "Q4_K_M", "--json"]);
    command.env("SSL_CERT_FILE", machine.path("authority.pem")).env("HF_TOKEN", GOOD_TOKEN);
    Ran::from(command.output().unwrap())
}

/// That the token went to the Hub and nowhere else.
fn assert_token_at_home(machine: &Machine) {
    for request in machine.hub.requests() {
        assert_eq!(request.authorization.is_some(), request.server == Server::Hub, "{request:?}");
    }
}

#[test]
fn a_certificate_is_believed_where_it_is_for_this_host_and_by_somebody_trusted() {
    let good = Some(Tls::Trusted);
    for (hub, cdn) in [(good, good), (good, None), (None, good)] {
        let machine = tls_machine(hub, cdn);
        let ran = tls_pull(&machine);
        assert_eq!(ran.code, 0, "{hub:?} {cdn:?}: {ran:?}");
        assert_token_at_home(&machine);
    }
    for bad in [Tls::SelfSigned, Tls::WrongHost] {
        for (hub, cdn) in [(Some(bad), good), (good, Some(bad))] {
            let machine = tls_machine(hub, cdn);
            let ran = tls_pull(&machine);
            let error = ran.error();
            assert_eq!((ran.code, error["code"].as_str()), (4, Some("network")), "{hub:?} {cdn:?}: {ran:?}");
            assert!(error["message"].as_str().unwrap().contains("certificate"), "{ran:?}");
            assert!(error["hint"].as_str().unwrap().contains("SSL_CERT_FILE"), "{ran:?}");
            assert_token_at_home(&machine);
        }
    }
}

#[test]
fn a_description_is_not_followed_from_https_to_http_and_bytes_are_without_the_token() {
    let machine = tls_machine(Some(Tls::Trusted), Some(Tls::Trusted));
    let away = machine.hub.faults().always(Target::path("/api/models/").hub(), Fault::RedirectAbroad);
    let ran = tls_pull(&machine);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.error()["message"].as_str().unwrap().contains("from https to http://"), "{ran:?}");
    assert!(ran.error()["hint"].is_string(), "{ran:?}");
    assert!(machine.hub.requests().iter().all(|request| request.server == Server::Hub));
    machine.hub.faults().remove(away);
    machine.hub.faults().always(Target::path("/resolve/").hub(), Fault::RedirectAbroad);
    let ran = tls_pull(&machine);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(machine.hub.requests().iter().any(|request| request.server == Server::Abroad));
    assert_token_at_home(&machine);
}
