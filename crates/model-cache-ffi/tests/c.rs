//! The header and the library as a program in C has them: everything is declared, exported and documented alike, and what
//! `tests/c/checks.c` reads, does wrong and lets go of ends as the header says. Needs gcc, g++ and nm, as the build does.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tabagent_model_cache::{CHUNK_BYTES, ImportOptions, ModelCache};

const HEADERS: [&str; 2] = ["model_cache.h", "model_cache_stdio.h"];
const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];

/// A path of this crate.
fn ours(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Where cargo put libmodel_cache.so: beside this test.
fn library() -> PathBuf {
    let library = std::env::current_exe().unwrap().with_file_name("libmodel_cache.so");
    assert!(library.exists(), "{library:?} is not there");
    library
}

/// Runs a command that has to succeed.
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    output
}

// -- the header --------------------------------------------------------------------------------------------------------------

#[test]
fn the_headers_compile_alone_as_c11_and_cpp17_without_a_warning() {
    for header in HEADERS {
        for (compiler, language, standard) in [("gcc", "c", "-std=c11"), ("g++", "c++", "-std=c++17")] {
            if compiler == "g++" && Command::new(compiler).arg("--version").output().is_err() {
                println!("NOT RUN HERE: there is no g++ to compile {header} as C++");
                continue;
            }
            run(Command::new(compiler)
                .args(WARNINGS)
                .args([standard, "-fsyntax-only", "-D_GNU_SOURCE", "-x", language])
                .arg(ours(&format!("include/{header}"))));
        }
    }
}

#[test]
fn the_program_of_the_docs_compiles_and_does_what_it_says() {
    let docs = fs::read_to_string(ours("../../docs/loaders.md")).unwrap();
    let source = docs.split("```").find(|block| block.starts_with("c\n") && block.contains("int main")).unwrap();
    let room = room();
    fs::write(room.dir.path().join("docs.c"), source.strip_prefix("c\n").unwrap()).unwrap();
    let program = compile(room.dir.path(), "docs", &room.dir.path().join("docs.c"));
    let mut command = Command::new(program);
    let output = command.env("MODEL_CACHE_HOME", room.store()).env_remove("LD_LIBRARY_PATH").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("error: nothing of org/name is in the store\nhint: "), "{said}");
}

#[test]
fn without_gnu_source_the_stream_header_says_what_it_needs() {
    let header = ours("include/model_cache_stdio.h");
    let output = Command::new("gcc").args(["-std=c11", "-fsyntax-only", "-x", "c"]).arg(header).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("needs _GNU_SOURCE, defined before the first #include"), "{said}");
}

#[test]
fn every_function_declared_is_exported_and_nothing_else_is() {
    // What is left after the preprocessor of lines that are ours: comments are gone.
    let seen = run(Command::new("gcc").args(["-E", "-P", "-x", "c"]).arg(ours("include/model_cache.h")));
    let seen = String::from_utf8(seen.stdout).unwrap();
    let declared: BTreeSet<_> = seen.split('(').filter_map(|before| before.rsplit([' ', '*', '\n']).next()).collect();
    let declared: BTreeSet<_> = declared.into_iter().filter(|name| name.starts_with("mc_")).map(str::to_owned).collect();
    let symbols = run(Command::new("nm").args(["--dynamic", "--defined-only", "--format=posix"]).arg(library()));
    let symbols = String::from_utf8(symbols.stdout).unwrap();
    let exported: BTreeSet<_> = symbols.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    assert!(declared.len() > 10, "{declared:?}");
    assert_eq!(declared, exported);
}

// -- a program ---------------------------------------------------------------------------------------------------------------

/// What the checks run on, made once for all that run side by side.
struct Room {
    dir: tempfile::TempDir,
    program: PathBuf,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = compile(dir.path(), "checks", &ours("tests/c/checks.c"));
        let room = Self { dir, program };
        write_sources(&room.source());
        let cache = ModelCache::builder(room.store()).offline(true).open().unwrap();
        cache.import("org/local", &[room.source()], &ImportOptions::default()).unwrap();
        room
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }
}

fn room() -> Arc<Room> {
    static SHARED: Mutex<Weak<Room>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let room = shared.upgrade().unwrap_or_else(|| Arc::new(Room::new()));
    *shared = Arc::downgrade(&room);
    room
}

/// Compiles a C program, linked with the library as a user would.
fn compile(folder: &Path, name: &str, source: &Path) -> PathBuf {
    let program = folder.join(name);
    let library = library().parent().unwrap().to_owned();
    let mut gcc = Command::new("gcc");
    gcc.args(WARNINGS).args(["-std=c11", "-g", "-O1", "-pthread", "-I"]).arg(ours("include")).arg(source);
    gcc.arg("-L").arg(&library).arg("-lmodel_cache").arg(format!("-Wl,-rpath,{}", library.display())).arg("-o").arg(&program);
    run(&mut gcc);
    program
}

fn write_sources(folder: &Path) {
    fs::create_dir(folder).unwrap();
    fs::write(folder.join("empty"), "").unwrap();
    fs::write(folder.join("small.txt"), "a text of less than 64 KiB\n").unwrap();
    // Holes, but for what shows whether the right bytes come from the right place.
    let mut large = File::create(folder.join("large.bin")).unwrap();
    for (seed, at) in [0, 5 << 20, CHUNK_BYTES - 20_000, CHUNK_BYTES + (1 << 20)].into_iter().enumerate() {
        large.seek(SeekFrom::Start(at)).unwrap();
        let marks: Vec<u8> =
            (0..10_007_u64).flat_map(|n| ((n << 8) + seed as u64).wrapping_mul(0x9E37_79B9).to_be_bytes()).collect();
        large.write_all(&marks).unwrap();
    }
    fs::write(folder.join("whole.gguf"), gguf(&[("split.count", 0)])).unwrap();
    fs::write(folder.join("part.gguf"), gguf(&[("split.no", 0), ("split.count", 2), ("split.tensors.count", 9)])).unwrap();
}

/// A GGUF without tensors: magic, version, counts, and pairs of type u16.
fn gguf(pairs: &[(&str, u16)]) -> Vec<u8> {
    const U16: u32 = 2;
    let mut bytes =
        [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &0_u64.to_le_bytes(), &(pairs.len() as u64).to_le_bytes()].concat();
    for (key, value) in pairs {
        bytes.extend((key.len() as u64).to_le_bytes());
        bytes.extend(key.as_bytes());
        bytes.extend(U16.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

/// Runs one of the checks of tests/c/checks.c.
fn check(name: &str) {
    let room = room();
    let mut command = Command::new(&room.program);
    command.arg(name).arg(room.store()).arg(room.source());
    command.env("MODEL_CACHE_HOME", room.store()).env("EXPECTED_VERSION", env!("CARGO_PKG_VERSION"));
    // cargo's, which may lead to an older library.
    command.env_remove("LD_LIBRARY_PATH");
    run(&mut command);
}

#[test]
fn the_pointer_leads_to_the_bytes_that_were_imported() {
    check("pointer");
}

#[test]
fn read_at_copies_what_lies_in_a_range_and_nothing_beyond() {
    check("read_at");
}

#[test]
fn a_stream_does_what_stdio_does_with_the_same_file_on_disk() {
    check("stream");
}

#[test]
fn what_can_not_be_has_a_code_and_a_text_with_the_hint() {
    check("errors");
}

#[test]
fn null_is_an_error_where_something_is_needed_and_nothing_where_it_is_closed() {
    check("nulls");
}

#[test]
fn files_clones_and_stores_are_closed_in_any_order() {
    check("lifetimes");
}

#[test]
fn eight_threads_share_a_store_and_a_file() {
    check("threads");
}

#[test]
fn a_forked_child_reads_what_was_open_and_opens_a_store_of_its_own() {
    check("forked");
}

#[test]
fn a_part_of_a_split_gguf_is_refused_as_a_whole_one_and_the_ways_by_path_are_named() {
    check("gguf");
}
