//! What the Hub promises about a file's bytes: [`Digest`], and the [`Hasher`] that recomputes it.

use crate::error::{Error, Result};
use sha2::Digest as _;
use std::{fmt, str::FromStr};

/// A whole-file digest, in the form the Hub gives it.
///
/// Written `sha256:<64 hex>` (LFS files) or `git-sha1:<40 hex>` (all others: the id git gives the blob).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    /// SHA-256 of the bytes.
    Sha256([u8; 32]),
    /// SHA-1 of `"blob <len>\0"` and the bytes: git's blob id.
    GitSha1([u8; 20]),
}

impl Digest {
    /// The hex digits alone: the etag the Hub shows for this content.
    pub fn hex(&self) -> String {
        match self {
            Self::Sha256(bytes) => hex(bytes),
            Self::GitSha1(bytes) => hex(bytes),
        }
    }

    /// A SHA-256 from its 64 hex digits.
    pub fn sha256_from_hex(digits: &str) -> Option<Self> {
        unhex(digits).map(Self::Sha256)
    }

    /// A git blob id from its 40 hex digits.
    pub fn git_sha1_from_hex(digits: &str) -> Option<Self> {
        unhex(digits).map(Self::GitSha1)
    }

    /// The hasher that gives a digest of this kind for a file of `size_bytes`.
    pub fn hasher(&self, size_bytes: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::sha256(),
            Self::GitSha1(_) => Hasher::git_sha1(size_bytes),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(_) => write!(f, "sha256:{}", self.hex()),
            Self::GitSha1(_) => write!(f, "git-sha1:{}", self.hex()),
        }
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = match text.split_once(':') {
            Some(("sha256", digits)) => Self::sha256_from_hex(digits),
            Some(("git-sha1", digits)) => Self::git_sha1_from_hex(digits),
            _ => None,
        };
        parsed.ok_or_else(|| Error::InvalidDigest { digest: crate::name::printable(text) })
    }
}

/// Hashes a file's bytes, in order, into a [`Digest`].
#[derive(Clone)]
pub enum Hasher {
    /// For LFS files and imports.
    Sha256(sha2::Sha256),
    /// For files git itself keeps.
    GitSha1(sha1::Sha1),
}

impl Hasher {
    /// A SHA-256 hasher.
    pub fn sha256() -> Self {
        Self::Sha256(sha2::Sha256::new())
    }

    /// A git blob hasher; git hashes the length first, so it has to be known.
    pub fn git_sha1(size_bytes: u64) -> Self {
        let mut sha1 = sha1::Sha1::new();
        sha1.update(format!("blob {size_bytes}\0"));
        Self::GitSha1(sha1)
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sha) => sha.update(bytes),
            Self::GitSha1(sha) => sha.update(bytes),
        }
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(sha) => Digest::Sha256(sha.finalize().into()),
            Self::GitSha1(sha) => Digest::GitSha1(sha.finalize().into()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

fn unhex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let digits = digits.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high << 4 | low) as u8;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_sha256sum_and_git_hash_object() {
        let mut sha = Hasher::sha256();
        sha.update(b"hello ");
        sha.update(b"world\n");
        assert_eq!(sha.finish().to_string(), "sha256:a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447");
        let mut git = Hasher::git_sha1(12);
        git.update(b"hello world\n");
        assert_eq!(git.finish().to_string(), "git-sha1:3b18e512dba79e4c8300dd08aeb37f8e728b8dad");
    }

    #[test]
    fn a_digest_reads_back_what_it_writes_and_refuses_the_rest() {
        for text in [
            "sha256:a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447",
            "git-sha1:3b18e512dba79e4c8300dd08aeb37f8e728b8dad",
        ] {
            assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        }
        for bad in ["", "sha256:", "sha256:zz", "md5:00", "a948", "git-sha1:3b18e512dba79e4c8300dd08aeb37f8e728b8da"] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
    }
}
