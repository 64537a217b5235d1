//! The crate `tokenizers` on a `tokenizer.json` of the store.
//!
//! ```text
//! cargo run -p loaders --example tokenize -- STORE REPO PATH TEXT
//! ```

#![forbid(unsafe_code)]

use tabagent_model_cache::ModelCache;
use tokenizers::{Result, Tokenizer};

/// The tokenizer of a repo. It is parsed from the slice, and needs the file no longer.
pub(crate) fn tokenizer(cache: &ModelCache, repo: &str, path: &str) -> Result<Tokenizer> {
    let file = cache.get_file(repo, path)?.ok_or_else(|| format!("{repo} {path} is not in the store"))?;
    Tokenizer::from_bytes(&file)
}

#[allow(dead_code, reason = "a test uses the function above")]
fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, repo, path, text] = arguments.as_slice() else {
        return Err("usage: tokenize STORE REPO PATH TEXT".into());
    };
    let tokenizer = tokenizer(&ModelCache::open(store)?, repo, path)?;
    let encoding = tokenizer.encode(text.as_str(), true)?;
    println!("{:?}\n{:?}", encoding.get_tokens(), encoding.get_ids());
    Ok(())
}
