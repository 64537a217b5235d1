//! The crate `tokenizers` on the real MiniLM's tokenizer in the store.

mod common;
#[path = "../examples/tokenize.rs"]
mod example;

use common::*;

#[test]
fn a_sentence_becomes_the_tokens_of_bert() {
    let store = Store::of_minilm(&["tokenizer.json", "vocab.txt"]);
    let tokenizer = example::tokenizer(&store.cache, REPO, "tokenizer.json").unwrap();
    store.cache.delete_file(REPO, "tokenizer.json").unwrap();
    let encoding = tokenizer.encode("Hello, unbelievable world!", true).unwrap();
    // The file says to cut at 128 and to fill up to it.
    let used = encoding.get_attention_mask().iter().filter(|&&mask| mask == 1).count();
    let tokens = &encoding.get_tokens()[..used];
    assert_eq!(tokens, ["[CLS]", "hello", ",", "unbelievable", "world", "!", "[SEP]"]);
    assert_eq!(encoding.get_ids()[..used], [101, 7592, 1010, 23653, 2088, 999, 102]);
    // The vocabulary is in a file of its own as well, a line for each id.
    let vocabulary = store.file("vocab.txt");
    let words: Vec<_> = std::str::from_utf8(&vocabulary).unwrap().lines().collect();
    for (token, &id) in tokens.iter().zip(encoding.get_ids()) {
        assert_eq!(words[id as usize], token);
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let store = Store::of_minilm(&["vocab.txt"]);
    let error = example::tokenizer(&store.cache, REPO, "tokenizer.json").unwrap_err();
    assert_eq!(error.to_string(), "org/model tokenizer.json is not in the store");
    assert!(example::tokenizer(&store.cache, REPO, "vocab.txt").is_err());
}
