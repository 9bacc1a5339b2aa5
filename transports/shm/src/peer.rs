//! Who is at the other end of a Unix socket, by the kernel's word.

use std::os::fd::{AsRawFd, BorrowedFd};

use genie_transport::LinkError;
use rustix::process::geteuid;

const ROOT: u32 = 0;

/// Fails unless the peer's process belongs to this process's user or to root. For the end that
/// connects, the peer is who listens; for the end that accepts, who connected.
pub fn vouch(socket: BorrowedFd<'_>) -> Result<(), LinkError> {
    let (pid, uid) = peer_credentials(socket)?;
    let own = geteuid().as_raw();
    match is_trusted(uid, own) {
        true => Ok(()),
        false => Err(LinkError::Stranger { pid, uid, own }),
    }
}

fn is_trusted(uid: u32, own: u32) -> bool {
    uid == own || uid == ROOT
}

/// Process id and user id of a Unix socket's peer. Not by rustix, whose process ids cannot be 0.
pub fn peer_credentials(socket: BorrowedFd<'_>) -> Result<(u32, u32), LinkError> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `credentials`, a plain struct of that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &mut len,
        )
    };
    if result != 0 {
        let source = std::io::Error::last_os_error();
        return Err(LinkError::Io { doing: "ask for the peer's credentials", source });
    }
    Ok((credentials.pid as u32, credentials.uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_user_and_root_are_trusted() {
        for (uid, own, trusted) in
            [(0, 0, true), (7, 7, true), (0, 7, true), (7, 0, false), (8, 7, false)]
        {
            assert_eq!(is_trusted(uid, own), trusted, "{uid} to {own}");
        }
    }
}
