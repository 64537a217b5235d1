//! Writes the first inputs of the target `records` into the folder given, as seeds.py does for the others.

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).expect("a folder");
    for (number, sample) in model_cache_cli::fuzz::record_samples().into_iter().enumerate() {
        std::fs::write(format!("{folder}/sample-{number}"), sample)?;
    }
    Ok(())
}
