//! The program of the README, as a person would write it first.

use std::{path::Path, sync::Arc};
use storage::StorageRegistry;
use tabagent_model_cache::{ModelCache, QuantStatus};
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let registry = Arc::new(StorageRegistry::new("./data"));
    let cache = ModelCache::new(registry, Path::new("./model_cache_db"))?;
    let repo = "onnx-community/Phi-3.5-mini-instruct-onnx-web";
    let manifest = cache.scan_repo(repo).await?;
    println!("Found {} quantizations", manifest.quants.len());
    cache
        .download_quant(
            repo,
            "q4f16",
            Some(Arc::new(|loaded, total| {
                println!("Progress: {}/{}MB", loaded / 1024 / 1024, total / 1024 / 1024);
            })),
        )
        .await?;
    if let Some(data) = cache.get_file(repo, "onnx/model_q4f16.onnx")? {
        println!("File size: {} bytes", data.len());
    }
    let manifest = cache.get_manifest(repo).await?;
    if let Some(quant) = manifest.quants.get("q4f16") {
        match quant.status {
            QuantStatus::Downloaded => println!("Ready for inference!"),
            QuantStatus::Downloading => println!("Download in progress..."),
            _ => println!("Not available"),
        }
    }
    Ok(())
}
