//! The program `model-cache`. All of it is in the library beside it, where fuzz targets reach it too.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    model_cache_cli::main()
}
