//! The Hub's settings: [`HubConfig`], read from the same environment variables as the Hub's own tools.

use super::{auth::Token, retry::RetryPolicy, wire::shown};
use crate::{
    error::{Error, Result},
    name::printable,
};
use std::{ffi::OsString, time::Duration};
use url::Url;

/// Where the Hub is unless `HF_ENDPOINT` says otherwise.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Ten seconds, as huggingface_hub has for both timeouts.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest timeout accepted: a day.
const MAX_TIMEOUT_SECONDS: f64 = 86_400.0;

/// How environment variables are looked up; `&|name| std::env::var_os(name)` for the real ones.
pub(crate) type Vars<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Where the Hub is, who asks, and how patiently.
#[derive(Clone, Debug)]
pub(crate) struct HubConfig {
    /// The Hub's address, http or https, without query and credentials; a path before the Hub's own is allowed.
    /// Default: `https://huggingface.co`.
    pub(crate) endpoint: Url,
    /// Who asks. Default: nobody.
    pub(crate) token: Option<Token>,
    /// Whether the network is forbidden. Default: no.
    pub(crate) offline: bool,
    /// The longest wait for an answer's first byte and between its bytes, where the answer describes files. Default: 10 s.
    pub(crate) metadata_timeout: Duration,
    /// The same, where the answer is a file's bytes. Default: 10 s.
    pub(crate) read_timeout: Duration,
    /// How often and when calls that describe files are tried again.
    pub(crate) retry: RetryPolicy,
    /// Most bytes of files a second, over all connections. Default: no limit.
    pub(crate) limit_rate: Option<u64>,
}

impl HubConfig {
    /// The settings of these environment variables: `HF_ENDPOINT`, `HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`),
    /// `HF_HUB_ETAG_TIMEOUT`, `HF_HUB_DOWNLOAD_TIMEOUT`, and the token's (see [`Token`]). An empty variable counts as not set.
    ///
    /// Reads the token file if no variable has a token; touches nothing else. Proxy variables are the HTTP client's business.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] naming the variable; [`Error::Io`] for a token file that can't be read.
    pub(crate) fn from_env(vars: Vars<'_>) -> Result<Self> {
        check_proxies(vars)?;
        let endpoint = text(vars, "HF_ENDPOINT")?.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        Ok(Self {
            endpoint: parse_endpoint("HF_ENDPOINT", &endpoint)?,
            token: Token::from_env(vars)?,
            offline: flag(vars, "HF_HUB_OFFLINE")? | flag(vars, "TRANSFORMERS_OFFLINE")?,
            metadata_timeout: seconds(vars, "HF_HUB_ETAG_TIMEOUT")?.unwrap_or(DEFAULT_TIMEOUT),
            read_timeout: seconds(vars, "HF_HUB_DOWNLOAD_TIMEOUT")?.unwrap_or(DEFAULT_TIMEOUT),
            retry: RetryPolicy::default(),
            limit_rate: None,
        })
    }
}

/// A Hub's address from the option or variable `name`, trailing slashes taken off.
///
/// # Errors
/// [`Error::InvalidOption`] unless it is http or https with a host, without credentials, query and fragment.
pub(crate) fn parse_endpoint(name: &'static str, value: &str) -> Result<Url> {
    let refuse = |value: String, reason: &str| Err(Error::InvalidOption { name, value, reason: reason.to_owned() });
    // What can't be taken apart is shown only where no password and no query can stand: after '@', before '?' and '#'. Nor can
    // `user:password@host`, which is a URL of a scheme called user.
    let Some(mut url) = value.trim().parse::<Url>().ok().filter(|url| !url.cannot_be_a_base()) else {
        let host = value.rsplit('@').next().and_then(|rest| rest.split(['?', '#']).next()).unwrap_or_default();
        return refuse(printable(host), "it must be a URL, for example https://huggingface.co");
    };
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return refuse(shown(&url), "it must begin with http:// or https:// and a host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse(shown(&url), "it must have no user name and password; set HF_TOKEN instead");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse(shown(&url), "it must have no query and no fragment");
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// The proxy variables the HTTP client reads by itself, and ignores where they make no sense: told here.
fn check_proxies(vars: Vars<'_>) -> Result<()> {
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        let Some(value) = text(vars, name)? else { continue };
        // As curl has it, a proxy may be written without a scheme.
        let url = if value.contains("://") { value.clone() } else { format!("http://{value}") };
        let sound = url.parse::<Url>().is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https" | "socks4" | "socks4a" | "socks5" | "socks5h")
                && url.host_str().is_some_and(|host| !host.is_empty())
        });
        if !sound {
            // What stands before an '@' may be a password.
            let shown = printable(value.rsplit('@').next().unwrap_or_default());
            let reason = "it must be a proxy's address, for example http://proxy:8080 or socks5h://proxy:1080".to_owned();
            return Err(Error::InvalidOption { name, value: shown, reason });
        }
    }
    Ok(())
}

/// A variable's text, trimmed; none if it is not set or empty.
pub(crate) fn text(vars: Vars<'_>, name: &'static str) -> Result<Option<String>> {
    let Some(value) = vars(name) else { return Ok(None) };
    let value = value.into_string().map_err(|value| Error::InvalidOption {
        name,
        value: printable(&value.to_string_lossy()),
        reason: "it must be UTF-8".to_owned(),
    })?;
    let value = value.trim();
    Ok((!value.is_empty()).then(|| value.to_owned()))
}

/// A variable that is on or off; off if it is not set.
pub(super) fn flag(vars: Vars<'_>, name: &'static str) -> Result<bool> {
    let Some(value) = text(vars, name)? else { return Ok(false) };
    match value.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => Ok(true),
        "0" | "off" | "no" | "false" => Ok(false),
        _ => Err(Error::InvalidOption {
            name,
            value: printable(&value),
            reason: "it must be one of 1, on, yes, true, 0, off, no, false".to_owned(),
        }),
    }
}

/// A variable that is a number of seconds, fractions allowed.
fn seconds(vars: Vars<'_>, name: &'static str) -> Result<Option<Duration>> {
    let Some(value) = text(vars, name)? else { return Ok(None) };
    match value.parse::<f64>() {
        Ok(seconds) if (0.001..=MAX_TIMEOUT_SECONDS).contains(&seconds) => Ok(Some(Duration::from_secs_f64(seconds))),
        _ => Err(Error::InvalidOption {
            name,
            value: printable(&value),
            reason: "it must be a number of seconds above 0 and at most 86400".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::tests::server::vars;

    fn config(pairs: &[(&str, &str)]) -> Result<HubConfig> {
        HubConfig::from_env(&vars(pairs))
    }

    #[test]
    fn an_empty_environment_gives_the_defaults() {
        for empty in [&[][..], &[("HF_ENDPOINT", ""), ("HF_HUB_OFFLINE", " "), ("HF_HUB_ETAG_TIMEOUT", ""), ("HF_TOKEN", "")]] {
            let config = config(empty).unwrap();
            assert_eq!(config.endpoint.as_str(), "https://huggingface.co/");
            assert!(config.token.is_none() && !config.offline);
            assert_eq!((config.metadata_timeout, config.read_timeout), (DEFAULT_TIMEOUT, DEFAULT_TIMEOUT));
        }
    }

    #[test]
    fn every_variable_is_read() {
        let config = config(&[
            ("HF_ENDPOINT", "http://localhost:8080/hub//"),
            ("HF_TOKEN", "hf_secret"),
            ("TRANSFORMERS_OFFLINE", "YES"),
            ("HF_HUB_ETAG_TIMEOUT", "3"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "0.5"),
        ])
        .unwrap();
        assert_eq!(config.endpoint.as_str(), "http://localhost:8080/hub");
        assert!(config.offline);
        assert_eq!((config.metadata_timeout, config.read_timeout), (Duration::from_secs(3), Duration::from_millis(500)));
        assert!(!format!("{config:?}").contains("secret"), "{config:?}");
    }

    #[test]
    fn a_value_that_cannot_be_names_its_variable() {
        for (name, bad) in [
            ("HF_ENDPOINT", "huggingface.co"),
            ("HF_ENDPOINT", "ftp://huggingface.co"),
            ("HF_ENDPOINT", "http://"),
            ("HF_ENDPOINT", "https://user:secret@huggingface.co"),
            ("HF_ENDPOINT", "//user:secret@huggingface.co"),
            ("HF_ENDPOINT", "user:secret@huggingface.co"),
            ("HF_ENDPOINT", "huggingface.co?key=secret"),
            ("HF_ENDPOINT", "https://huggingface.co?key=secret"),
            ("HF_ENDPOINT", "https://huggingface.co#secret"),
            ("HF_HUB_OFFLINE", "maybe"),
            ("TRANSFORMERS_OFFLINE", "2"),
            ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "x"),
            ("HF_HUB_ETAG_TIMEOUT", "0"),
            ("HF_HUB_ETAG_TIMEOUT", "-1"),
            ("HF_HUB_ETAG_TIMEOUT", "NaN"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "inf"),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "ten"),
        ] {
            let error = config(&[(name, bad)]).unwrap_err();
            assert!(matches!(&error, Error::InvalidOption { name: found, .. } if *found == name), "{name}={bad}: {error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
    }
}
