//! The token: where it is found, and who may see it. Its text leaves this file only as a header of a request.

use super::env::{Vars, flag, text};
use crate::error::{Error, Result};
use reqwest::header::HeaderValue;
use std::{
    fmt,
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};
use url::Url;

/// Longest token accepted; the Hub's have 37 bytes, signed ones of gateways a thousand or two.
const MAX_TOKEN_BYTES: usize = 4096;
/// What errors show in place of a token.
const NOT_SHOWN: &str = "(not shown)";

/// A Hub token and where it came from. Neither `Debug` nor any error shows the secret.
#[derive(Clone)]
pub(crate) struct Token {
    /// `Bearer <secret>`, marked sensitive, so that the HTTP client does not print it either.
    header: HeaderValue,
    source: String,
}

impl Token {
    /// A token given by the caller; `source` says where it is from, for error messages.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] named `option`, without the value, if it is empty or can't stand in a header.
    pub(crate) fn new(secret: &str, option: &'static str, source: impl Into<String>) -> Result<Self> {
        let secret = secret.trim();
        let refuse = |reason: &str| Error::InvalidOption { name: option, value: NOT_SHOWN.to_owned(), reason: reason.to_owned() };
        if secret.is_empty() {
            return Err(refuse("a token is not empty"));
        }
        if secret.len() > MAX_TOKEN_BYTES {
            return Err(refuse("a token has at most 4096 bytes"));
        }
        if !secret.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(refuse("a token has no spaces, control or non-ASCII characters"));
        }
        let mut header =
            HeaderValue::try_from(format!("Bearer {secret}")).map_err(|_| refuse("a token must fit into an HTTP header"))?;
        header.set_sensitive(true);
        Ok(Self { header, source: source.into() })
    }

    /// Where it came from: a variable's name or a file's path.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The value of the `Authorization` header.
    pub(super) fn header(&self) -> HeaderValue {
        self.header.clone()
    }

    /// The token a user's environment implies: `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, the file `HF_TOKEN_PATH`, `$HF_HOME/token`;
    /// none if `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set, and none from a variable or file that is empty or a file that isn't there.
    ///
    /// The order is huggingface_hub's (`utils/_auth.py`), without its first step: `HF_OIDC_RESOURCE`, which trades a CI
    /// job's identity for a token, is not supported. Nor are named tokens (`stored_tokens`).
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a variable that can't be a token; [`Error::Io`] for a file that is there and can't be read.
    pub(super) fn from_env(vars: Vars<'_>) -> Result<Option<Self>> {
        if flag(vars, "HF_HUB_DISABLE_IMPLICIT_TOKEN")? {
            return Ok(None);
        }
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            if let Some(value) = vars(name) {
                let value = value.into_string().map_err(|_| Error::InvalidOption {
                    name,
                    value: NOT_SHOWN.to_owned(),
                    reason: "it is not UTF-8".to_owned(),
                })?;
                if !value.trim().is_empty() {
                    return Self::new(&value, name, name).map(Some);
                }
            }
        }
        let Some(path) = token_path(vars)? else { return Ok(None) };
        let Some(secret) = read_token_file(&path)? else { return Ok(None) };
        Self::new(&secret, "HF_TOKEN_PATH", path.display().to_string()).map(Some)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(from {})", self.source)
    }
}

/// Whether a request to `url` may carry the token of a client of `endpoint`.
///
/// Yes for the endpoint's own scheme, host and port, and for the Hub's two names over https: a mirror redirects there
/// what it does not hold, and the Hub issued the token. No for all others, so CDNs never see it (they answer 400 to a second
/// authentication). The rule of huggingface_hub's `_is_same_or_hub_host` (`utils/_http.py`).
pub(super) fn may_see_token(endpoint: &Url, url: &Url) -> bool {
    is_endpoint(endpoint, url)
        || (url.scheme() == "https"
            && url.port_or_known_default() == Some(443)
            && matches!(url.host_str(), Some("huggingface.co" | "hf.co")))
}

/// Whether `url` has the endpoint's scheme, host and port.
pub(super) fn is_endpoint(endpoint: &Url, url: &Url) -> bool {
    url.origin() == endpoint.origin()
}

/// `HF_TOKEN_PATH`, else `$HF_HOME/token`, else `$XDG_CACHE_HOME/huggingface/token`, else `~/.cache/huggingface/token`.
fn token_path(vars: Vars<'_>) -> Result<Option<PathBuf>> {
    let home = || vars("HOME").or_else(|| vars("USERPROFILE")).filter(|home| !home.is_empty()).map(PathBuf::from);
    let expand = |path: String| match (path.strip_prefix("~/"), home()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    };
    if let Some(path) = text(vars, "HF_TOKEN_PATH")? {
        return Ok(Some(expand(path)));
    }
    if let Some(hf_home) = text(vars, "HF_HOME")? {
        return Ok(Some(expand(hf_home).join("token")));
    }
    if let Some(cache) = text(vars, "XDG_CACHE_HOME")? {
        return Ok(Some(expand(cache).join("huggingface").join("token")));
    }
    Ok(home().map(|home| home.join(".cache").join("huggingface").join("token")))
}

/// What the token file holds, trimmed; none if it is not there or empty.
fn read_token_file(path: &Path) -> Result<Option<String>> {
    let failed = |source| Error::Io { action: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut secret = String::new();
    // Room for a newline and the byte that shows it is too long, not for whatever else the path may lead to.
    file.take(MAX_TOKEN_BYTES as u64 + 64).read_to_string(&mut secret).map_err(failed)?;
    let secret = secret.trim();
    Ok((!secret.is_empty()).then(|| secret.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::tests::server::vars;

    fn token(pairs: &[(&str, &str)]) -> Result<Option<Token>> {
        Token::from_env(&vars(pairs))
    }

    fn secret_and_source(found: Result<Option<Token>>) -> Option<(String, String)> {
        found.unwrap().map(|t| (t.header().to_str().unwrap().to_owned(), t.source().to_owned()))
    }

    #[test]
    fn the_first_place_that_holds_a_token_wins() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        let file = folder.path().join("elsewhere");
        let file = file.to_str().unwrap();
        let standard = format!("{home}/.cache/huggingface/token");
        std::fs::create_dir_all(format!("{home}/.cache/huggingface")).unwrap();
        let all = [("HF_TOKEN", " hf_a\n"), ("HUGGING_FACE_HUB_TOKEN", "hf_b"), ("HF_TOKEN_PATH", file), ("HOME", home)];
        let found = |from: usize| secret_and_source(token(&all[from..]));
        assert_eq!(found(0), Some(("Bearer hf_a".into(), "HF_TOKEN".into())));
        assert_eq!(found(1), Some(("Bearer hf_b".into(), "HUGGING_FACE_HUB_TOKEN".into())));
        assert_eq!(found(2), None, "neither file is there");
        std::fs::write(&standard, "  hf_d\n").unwrap();
        assert_eq!(found(2), None, "HF_TOKEN_PATH replaces the standard file");
        std::fs::write(file, "hf_c\r\n").unwrap();
        assert_eq!(found(2), Some(("Bearer hf_c".into(), file.into())));
        assert_eq!(found(3), Some(("Bearer hf_d".into(), standard.clone())));
        assert_eq!(secret_and_source(token(&[("HF_TOKEN", ""), ("HOME", home)])), Some(("Bearer hf_d".into(), standard.clone())));
        for (name, value) in [("HF_HOME", "~/.cache/huggingface"), ("XDG_CACHE_HOME", "~/.cache")] {
            assert!(token(&[(name, value), ("HOME", home)]).unwrap().is_some(), "{name}");
        }
        assert_eq!(secret_and_source(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"), ("HF_TOKEN", "hf_a")])), None);
        assert_eq!(secret_and_source(token(&[])), None);
    }

    #[test]
    fn a_token_that_cannot_be_is_refused_without_showing_it() {
        for bad in ["hf_se cret", "hf_secret\u{7}x", "hf_secretü", &format!("hf_secret{}", "x".repeat(5000))] {
            let error = token(&[("HF_TOKEN", bad)]).unwrap_err();
            assert!(matches!(error, Error::InvalidOption { name: "HF_TOKEN", .. }), "{error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
        let folder = tempfile::tempdir().unwrap();
        let error = token(&[("HF_TOKEN_PATH", folder.path().to_str().unwrap())]).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "a folder can't be read as a token: {error}");
    }

    #[test]
    fn debug_shows_the_source_alone() {
        let token = Token::new("hf_secret", "token", "the caller").unwrap();
        assert_eq!(format!("{token:?}"), "Token(from the caller)");
        assert!(!format!("{:?}", token.header()).contains("secret"));
    }

    #[test]
    fn only_the_endpoint_and_the_hubs_two_names_may_see_the_token() {
        let may = |endpoint: &str, url: &str| may_see_token(&endpoint.parse().unwrap(), &url.parse().unwrap());
        for (endpoint, url) in [
            ("https://huggingface.co", "https://huggingface.co/api"),
            ("https://huggingface.co", "https://huggingface.co:443/api"),
            ("https://huggingface.co", "https://hf.co/api"),
            ("http://127.0.0.1:80/prefix", "http://127.0.0.1/elsewhere"),
            ("https://mirror.example", "https://huggingface.co/api"),
        ] {
            assert!(may(endpoint, url), "{endpoint} {url}");
        }
        for (endpoint, url) in [
            ("https://huggingface.co", "http://huggingface.co/api"),
            ("https://huggingface.co", "https://huggingface.co:8443/"),
            ("https://huggingface.co", "https://cdn-lfs.hf.co/"),
            ("https://huggingface.co", "https://huggingface.co.evil.example/"),
            ("https://huggingface.co", "https://evil.example/huggingface.co"),
            ("https://huggingface.co", "https://huggingface.co@evil.example/"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8081/"),
            ("http://127.0.0.1:8080", "http://localhost:8080/"),
            ("https://mirror.example", "http://mirror.example/"),
        ] {
            assert!(!may(endpoint, url), "{endpoint} {url}");
        }
    }
}
