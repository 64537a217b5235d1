//! Environment variables and options: which are set, and whether they can be.

use super::Findings;
use crate::{
    builder::{LIMIT_RATE, MEMORY_BUDGET, ModelCacheBuilder, limits},
    error::{Error, Result},
    hub::{HubConfig, Vars},
    name::printable,
};
use std::{ffi::OsString, os::unix::fs::PermissionsExt};

/// The variables of the Hub, the network and the store, and whether what they hold may be shown.
const VARIABLES: [(&str, Shown); 23] = [
    ("MODEL_CACHE_HOME", Shown::Value),
    ("XDG_CACHE_HOME", Shown::Value),
    (LIMIT_RATE, Shown::Value),
    (MEMORY_BUDGET, Shown::Value),
    ("HF_ENDPOINT", Shown::WithoutCredentials),
    ("HF_TOKEN", Shown::Never),
    ("HUGGING_FACE_HUB_TOKEN", Shown::Never),
    ("HF_TOKEN_PATH", Shown::Value),
    ("HF_HOME", Shown::Value),
    ("HF_HUB_DISABLE_IMPLICIT_TOKEN", Shown::Value),
    ("HF_HUB_OFFLINE", Shown::Value),
    ("TRANSFORMERS_OFFLINE", Shown::Value),
    ("HF_HUB_ETAG_TIMEOUT", Shown::Value),
    ("HF_HUB_DOWNLOAD_TIMEOUT", Shown::Value),
    ("HTTP_PROXY", Shown::WithoutCredentials),
    ("http_proxy", Shown::WithoutCredentials),
    ("HTTPS_PROXY", Shown::WithoutCredentials),
    ("https_proxy", Shown::WithoutCredentials),
    ("ALL_PROXY", Shown::WithoutCredentials),
    ("all_proxy", Shown::WithoutCredentials),
    ("NO_PROXY", Shown::Value),
    ("no_proxy", Shown::Value),
    ("TMPDIR", Shown::Value),
];

/// Names people give a token's variable that no program of the Hub reads any more.
const UNREAD: [&str; 3] = ["HF_API_TOKEN", "HUGGINGFACE_TOKEN", "HUGGINGFACEHUB_API_TOKEN"];

/// What of a variable's value may be shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Value,
    /// What stands behind '@' and before '?' and '#'.
    WithoutCredentials,
    Never,
}

/// The settings the Hub would be asked with; what is wrong with them is found.
pub(super) fn examine(builder: &ModelCacheBuilder, findings: &mut Findings<'_>) -> Option<HubConfig> {
    let vars = |name: &str| std::env::var_os(name);
    examine_variables(&vars, findings);
    match builder.hub_config() {
        Ok(config) => {
            match &config.token {
                Some(token) => {
                    findings.fine(format!("a token from {}", token.source()));
                    look_at_token_file(token.source(), findings);
                }
                None => findings.note("no token: private and gated repos can't be pulled"),
            }
            Some(config)
        }
        // Told already where it is of a variable.
        Err(Error::InvalidOption { name, .. }) if VARIABLES.iter().any(|(known, _)| *known == name) => None,
        Err(error) => {
            findings.error(&error);
            None
        }
    }
}

fn examine_variables(vars: Vars<'_>, findings: &mut Findings<'_>) {
    for (name, shown) in VARIABLES {
        let Some(value) = vars(name).filter(|value| !value.to_string_lossy().trim().is_empty()) else { continue };
        match check(name, &value) {
            Ok(()) => findings.fine(format!("{name}={}", display(&value, shown))),
            Err(error) => {
                let what = error.chain();
                findings.problem(error.kind(), what, error.hint().unwrap_or_else(|| format!("unset {name}, or correct it")));
            }
        }
    }
    for name in UNREAD {
        if vars(name).is_some() {
            findings.warn(format!("{name} is set, which nothing reads"), format!("export HF_TOKEN=\"${name}\""));
        }
    }
}

/// Whether `name` may have this value, by those who read it, as if no other variable were set.
fn check(name: &'static str, value: &OsString) -> Result<()> {
    let alone = |asked: &str| (asked == name).then(|| value.clone());
    HubConfig::from_env(&alone)?;
    limits(None, None, &alone)?;
    if name == "XDG_CACHE_HOME" && !std::path::Path::new(value).is_absolute() {
        let reason = "it is not absolute, so it is ignored".to_owned();
        return Err(Error::InvalidOption { name, value: printable(&value.to_string_lossy()), reason });
    }
    Ok(())
}

fn display(value: &OsString, shown: Shown) -> String {
    let value = value.to_string_lossy();
    match shown {
        Shown::Value => printable(&value),
        Shown::WithoutCredentials => {
            let rest = value.rsplit('@').next().unwrap_or_default();
            printable(rest.split(['?', '#']).next().unwrap_or_default())
        }
        Shown::Never => "(set, not shown)".to_owned(),
    }
}

/// A token that others may read is others' too.
fn look_at_token_file(source: &str, findings: &mut Findings<'_>) {
    // Else it is the name of a variable or an option.
    let Some(metadata) = source.contains('/').then(|| std::fs::metadata(source).ok()).flatten() else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if metadata.is_file() && mode & 0o077 != 0 {
        let what = format!("the token file {source} can be read by others (mode {mode:03o})");
        findings.warn(what, format!("chmod 600 {}", crate::name::shell_word(source)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Area, Severity};

    fn found(pairs: &[(&str, &str)]) -> Vec<crate::doctor::Finding> {
        let vars = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        let mut found = Vec::new();
        examine_variables(&vars, &mut Findings { area: Area::Settings, found: &mut found });
        found
    }

    #[test]
    fn every_variable_that_cannot_be_is_a_problem_of_its_own_and_the_others_are_shown() {
        let found = found(&[
            ("HF_ENDPOINT", "https://user:secret@hub.example?key=secret"),
            ("HF_HUB_OFFLINE", "maybe"),
            (LIMIT_RATE, "fast"),
            (MEMORY_BUDGET, "64MiB"),
            ("HTTPS_PROXY", "http://user:secret@proxy:8080"),
            ("HF_TOKEN", "hf_secret"),
            ("HUGGING_FACE_HUB_TOKEN", "hf_sec ret"),
            ("XDG_CACHE_HOME", "cache"),
            ("HF_API_TOKEN", "hf_secret"),
        ]);
        let problems: Vec<_> = found.iter().filter(|finding| finding.severity == Severity::Problem).collect();
        assert_eq!(problems.len(), 5, "{problems:#?}");
        for (problem, name) in
            problems.iter().zip(["XDG_CACHE_HOME", LIMIT_RATE, "HF_ENDPOINT", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"])
        {
            assert!(problem.what.contains(name) && problem.hint.is_some(), "{name}: {problem:?}");
        }
        let fine: Vec<_> =
            found.iter().filter(|finding| finding.severity == Severity::Fine).map(|finding| &*finding.what).collect();
        assert_eq!(fine, ["MODEL_CACHE_MEMORY_BUDGET=64MiB", "HF_TOKEN=(set, not shown)", "HTTPS_PROXY=proxy:8080"]);
        let told = format!("{found:?}");
        assert!(!told.contains("secret") && !told.contains("hf_sec"), "{told}");
    }
}
