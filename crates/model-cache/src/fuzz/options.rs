//! What is given as an option or in the environment: amounts, addresses, tokens, globs, names of quants.

use super::{check_error, lines};
use crate::{
    choice::Globs,
    hub::{Token, parse_endpoint},
    limit::{LEAST_BUDGET_BYTES, parse_memory_budget, parse_rate},
    name::FilePath,
    onnx::Edges,
    quant,
};

/// A value, for each kind there is of it, and what it might be held against, a line each.
pub fn options(input: &[u8]) {
    let Some((&selector, text)) = input.split_first() else { return };
    let lines = lines(text);
    let text = lines[0].as_str();
    match selector % 4 {
        0 => amounts(text),
        1 => address(text),
        2 => globs(&lines),
        _ => {
            let keys = || lines.iter().skip(1).map(String::as_str);
            let found = quant::find(keys(), text);
            assert!(found.is_none_or(|found| keys().any(|key| key == found)));
            // Who types a key that is there gets it, unless there are two.
            if keys().filter(|key| *key == text).count() == 1 && !text.is_empty() {
                assert_eq!(found, Some(text));
            }
        }
    }
}

fn amounts(text: &str) {
    type Parse = fn(&'static str, &str) -> crate::Result<u64>;
    for (parse, least) in [(parse_rate as Parse, 1 << 10), (parse_memory_budget as Parse, LEAST_BUDGET_BYTES)] {
        match parse("limit", text) {
            Ok(bytes) => {
                assert!(bytes >= least);
                assert_eq!(parse("limit", &bytes.to_string()).ok(), Some(bytes), "{text:?}");
            }
            Err(error) => check_error(&error),
        }
    }
    if let Err(error) = text.parse::<Edges>() {
        check_error(&error);
    }
}

/// An address is one that can be asked; one that can't is told without what is secret of it.
fn address(text: &str) {
    match parse_endpoint("HF_ENDPOINT", text) {
        Ok(endpoint) => {
            assert!(matches!(endpoint.scheme(), "http" | "https") && endpoint.host_str().is_some_and(|host| !host.is_empty()));
            assert!(endpoint.username().is_empty() && endpoint.password().is_none());
            assert!(endpoint.query().is_none() && endpoint.fragment().is_none());
            assert_eq!(parse_endpoint("HF_ENDPOINT", endpoint.as_str()).ok().as_ref(), Some(&endpoint));
        }
        Err(error) => check_error(&error),
    }
    const SECRET: &str = "p4ssw0rd-5a4f";
    let secret = format!("{}:{SECRET}@{text}", if text.is_empty() { "https://user" } else { "user" });
    if let Err(error) = parse_endpoint("HF_ENDPOINT", &secret) {
        assert!(!format!("{error} {error:?}").contains(SECRET) || text.contains(SECRET), "{error}");
    }
    match Token::new(&format!("{SECRET}{text}"), "HF_TOKEN", "HF_TOKEN") {
        Ok(token) => assert!(!format!("{token:?}").contains(SECRET)),
        Err(error) => {
            check_error(&error);
            assert!(!format!("{error} {error:?}").contains(SECRET));
        }
    }
}

/// A glob is refused, or matches in time; a path that is written out matches itself.
fn globs(lines: &[String]) {
    let (glob, paths) = (&lines[0], &lines[1..]);
    match Globs::new(std::slice::from_ref(glob)) {
        Ok(globs) => {
            assert!(globs.matches(glob) && !globs.is_empty());
            let some = paths.iter().any(|path| globs.matches(path));
            assert_eq!(globs.first_unmatched(paths.iter().map(String::as_str)).is_none(), some);
            if glob.chars().all(|c| c.is_ascii_alphanumeric() || "./_-".contains(c)) {
                assert!(paths.iter().all(|path| globs.matches(path) == (path == glob)));
            }
        }
        // It can be a path all the same, but for signs that make it half a pattern.
        Err(error) => {
            check_error(&error);
            let plain = glob.parse::<FilePath>().is_ok() && !glob.contains(['[', ']', '{', '}', '*', '?', ',']);
            assert!(!plain, "{error}");
        }
    }
}
