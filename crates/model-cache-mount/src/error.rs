//! Why a folder can't be mounted on, or not be unmounted; [`Error::hint`] says what to do next.

use std::{io, path::PathBuf};
use tabagent_model_cache::ErrorKind;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store said no.
    #[error(transparent)]
    Store(#[from] tabagent_model_cache::Error),
    /// A file, or something else, stands where the folder should be.
    #[error("{path:?} is not a folder, so nothing can be mounted on it")]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// What is in the folder would be hidden.
    #[error("{path:?} is not empty: what is in it would be hidden")]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The store can't be shown within itself.
    #[error("{path:?} lies in the store itself, whose folders are its own")]
    InStore {
        /// The folder.
        path: PathBuf,
    },
    /// Something is mounted there.
    #[error("{path:?} is a mount point already, of {source_name} ({kind})")]
    AlreadyMounted {
        /// The folder.
        path: PathBuf,
        /// What is mounted, as mount(8) shows it.
        source_name: String,
        /// The type of its file system.
        kind: String,
    },
    /// A mount is there whose program is gone, and it is not ours.
    #[error("{path:?} is a mount point whose program is gone, of {source_name} ({kind})")]
    Dead {
        /// The folder.
        path: PathBuf,
        /// What was mounted.
        source_name: String,
        /// The type of its file system.
        kind: String,
    },
    /// The kernel, or the container, has no FUSE.
    #[error("{path:?} can't be mounted on: there is no /dev/fuse")]
    NoFuse {
        /// The folder.
        path: PathBuf,
    },
    /// Who is not root mounts through fusermount3, which is not here.
    #[error("{path:?} can't be mounted on: only root may, or fusermount3, which is not installed")]
    NoFusermount {
        /// The folder.
        path: PathBuf,
    },
    /// FUSE is here, and may not be used.
    #[error("{path:?} can't be mounted on: {reason}")]
    NotPermitted {
        /// The folder.
        path: PathBuf,
        /// What the kernel or fusermount3 said.
        reason: String,
    },
    /// The mount could not be taken away.
    #[error("{path:?} can't be unmounted: {reason}")]
    NotUnmounted {
        /// The folder.
        path: PathBuf,
        /// What the kernel or fusermount3 said.
        reason: String,
    },
    /// The operating system refused.
    #[error("could not {action} {path:?}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The group this error belongs to.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::NotAFolder { .. } | Self::NotEmpty { .. } | Self::InStore { .. } | Self::AlreadyMounted { .. } => {
                ErrorKind::Usage
            }
            Self::Dead { .. }
            | Self::NoFuse { .. }
            | Self::NoFusermount { .. }
            | Self::NotPermitted { .. }
            | Self::NotUnmounted { .. }
            | Self::Io { .. } => ErrorKind::Other,
        }
    }

    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        const OTHERWISE: &str = "model-cache export writes real files instead";
        Some(match self {
            Self::Store(error) => return error.hint(),
            Self::InStore { .. } => "name a folder elsewhere".to_owned(),
            Self::NotAFolder { .. } | Self::NotEmpty { .. } => "name an empty folder, or one to be made".to_owned(),
            Self::AlreadyMounted { path, .. } => {
                format!("name another folder, or take this mount away, if it is yours:\numount {}", quoted(path))
            }
            Self::Dead { path, .. } | Self::NotUnmounted { path, .. } => {
                format!("to take it away, as root or as its owner:\numount -l {0}\nfusermount3 -u -z {0}", quoted(path))
            }
            Self::NoFuse { .. } => {
                format!("modprobe fuse as root; for a container: --device /dev/fuse --cap-add SYS_ADMIN; {OTHERWISE}")
            }
            Self::NoFusermount { .. } => format!("install fuse3 (apt-get install fuse3), or run this as root; {OTHERWISE}"),
            Self::NotPermitted { reason, .. } if reason.contains("user_allow_other") => {
                "mount without --allow-other, or allow it, as root:\necho user_allow_other >> /etc/fuse.conf".to_owned()
            }
            Self::NotPermitted { .. } => format!(
                "run this as root, or install fuse3; a container needs --device /dev/fuse --cap-add SYS_ADMIN; {OTHERWISE}"
            ),
            Self::Io { .. } => return None,
        })
    }
}

/// A path as a shell reads it back.
fn quoted(path: &std::path::Path) -> String {
    tabagent_model_cache::shell_word(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_a_machine_allows_no_mount_says_what_to_do_instead() {
        let path = PathBuf::from("/a b");
        let refused = |reason: &str| Error::NotPermitted { path: path.clone(), reason: reason.to_owned() };
        for error in [Error::NoFuse { path: path.clone() }, Error::NoFusermount { path: path.clone() }, refused("no")] {
            assert_eq!(error.kind(), ErrorKind::Other);
            assert!(error.hint().unwrap().ends_with("; model-cache export writes real files instead"), "{error}");
        }
        let error = refused("fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf");
        assert!(error.hint().unwrap().contains("without --allow-other"));
    }

    #[test]
    fn a_command_of_a_hint_can_be_pasted() {
        let error = Error::NotUnmounted { path: "/it's here".into(), reason: "no".to_owned() };
        assert!(error.hint().unwrap().contains("\numount -l '/it'\\''s here'\n"));
    }
}
