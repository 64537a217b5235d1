//! Sending dirty pages on their way to the disk before a sync has to wait for all of them: [`start`].
#![allow(unsafe_code)]

use std::{fs::File, io};

/// Starts writing out the dirty pages of `bytes` from `offset` on, and does not wait for the disk to have them.
///
/// Blocks while the disk's queue is full. Promises nothing and reports no lost write: only a sync does both. Where the system
/// can't (all but Linux), does nothing.
pub(crate) fn start(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let (offset, bytes) = (i64::try_from(offset).map_err(invalid)?, i64::try_from(bytes).map_err(invalid)?);
        let flags = nix::libc::SYNC_FILE_RANGE_WRITE;
        // SAFETY: takes a descriptor, which `file` keeps open for the call, and three numbers; touches no memory of ours.
        if unsafe { nix::libc::sync_file_range(file.as_raw_fd(), offset, bytes, flags) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, offset, bytes);
    Ok(())
}
