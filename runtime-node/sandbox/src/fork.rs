//! Asks a question whose answer costs the process that finds it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};

/// Runs `child` in a forked child process, and returns what it answers.
///
/// The calling process may have threads, and the locks that they hold at this moment stay held in
/// the child for ever. So `child` makes system calls and takes memory (glibc brings malloc's locks
/// over a fork in order), and does **not** print, log, start threads or wait for any. It ends
/// without running what the process has registered for its exit.
pub(crate) fn ask_child(child: impl FnOnce() -> String) -> io::Result<String> {
    let (answer, question) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: the child runs only `child`, which keeps the rules above, and leaves by `_exit`.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(answer);
            let sent = catch_unwind(AssertUnwindSafe(child))
                .is_ok_and(|text| File::from(question).write_all(text.as_bytes()).is_ok());
            // SAFETY: ends this process; nothing of it is used afterwards.
            unsafe { libc::_exit(i32::from(!sent)) }
        }
        pid => {
            drop(question);
            let mut text = String::new();
            let read = File::from(answer).read_to_string(&mut text);
            let status = wait(pid)?;
            read?;
            match status.exit_status() {
                Some(0) => Ok(text),
                _ => Err(io::Error::other(format!("the child ended with {status:?}"))),
            }
        }
    }
}

fn wait(pid: libc::pid_t) -> io::Result<rustix::process::WaitStatus> {
    loop {
        match waitpid(Pid::from_raw(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_answers() {
        assert_eq!(ask_child(|| "yes".into()).unwrap(), "yes");
    }

    #[test]
    fn a_child_that_dies_is_an_error() {
        // SAFETY: ends the child.
        let died = ask_child(|| unsafe { libc::_exit(7) });
        assert!(died.unwrap_err().to_string().contains("ended"));
    }
}
