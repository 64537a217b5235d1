//! What is mounted where: `/proc/self/mountinfo`, as proc(5) describes it.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountPoint {
    /// `major:minor` of its file system.
    pub(crate) device: String,
    pub(crate) path: PathBuf,
    pub(crate) kind: String,
    pub(crate) source: String,
}

/// The mount that is on `path`, an absolute one without links; the topmost, where there are several.
pub(crate) fn at(path: &Path) -> io::Result<Option<MountPoint>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?).into_iter().rev().find(|mount| mount.path == path))
}

/// ```text
/// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
///       device     path             optional   kind source
/// ```
fn parse(text: &[u8]) -> Vec<MountPoint> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = text(fields.nth(2)?);
    let path = OsString::from_vec(unescape(fields.nth(1)?)).into();
    fields.find(|field| *field == b"-")?;
    let kind = text(fields.next()?);
    let source = text(fields.next()?);
    Some(MountPoint { device, path, kind, source })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal =
            |digits: &[u8]| digits.iter().try_fold(0_u32, |sum, digit| char::from(*digit).to_digit(8).map(|d| sum * 8 + d));
        match after.get(..3).filter(|_| *first == b'\\').and_then(octal).and_then(|code| u8::try_from(code).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_with_any_number_of_optional_fields_and_any_name() {
        let text = b"36 35 98:0 / / rw,noatime - ext4 /dev/root rw\n\
            41 36 0:52 / /a\\040b\\134c\\011 rw shared:5 master:1 - fuse model-cache rw,user_id=0\n\nnonsense\n";
        let mount = |device: &str, path: &str, kind: &str, source: &str| MountPoint {
            device: device.into(),
            path: path.into(),
            kind: kind.into(),
            source: source.into(),
        };
        let expected = [mount("98:0", "/", "ext4", "/dev/root"), mount("0:52", "/a b\\c\t", "fuse", "model-cache")];
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn what_is_no_escape_stays() {
        for plain in ["a\\", "a\\04", "a\\999", "\\777x"] {
            assert_eq!(unescape(plain.as_bytes()), plain.as_bytes());
        }
    }

    #[test]
    fn the_root_is_a_mount() {
        assert!(at(Path::new("/")).unwrap().is_some());
    }
}
