//! Runs a piece of a test in a process of its own, which may close itself in.
//!
//! The test's own program is told to run the same test again, alone; it finds [`WORLD`] in its
//! environment, takes the other way through [`worlds`], and forks: like a zygote, while nothing else
//! goes on in it. The child has one thread.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Read};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use genie_sandbox::{Report, Sandbox};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

const WORLD: &str = "GENIE_SANDBOX_WORLD";
const OUTSIDE: &str = "GENIE_SANDBOX_OUTSIDE";

/// What stands between a process and the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// Nothing: whether an attempt would work at all.
    Bare,
    /// The sandbox on this kernel.
    Sandbox,
    /// The sandbox on a kernel that lacks these.
    WithoutLandlock,
    WithoutSeccomp,
    WithoutBoth,
}

impl World {
    const ALL: [World; 5] = [
        World::Bare,
        World::Sandbox,
        World::WithoutLandlock,
        World::WithoutSeccomp,
        World::WithoutBoth,
    ];

    /// Closes this process in.
    pub fn enter(self, sandbox: &Sandbox) -> Report {
        let lacks: &[i64] = match self {
            World::Bare => return Report::default(),
            World::Sandbox => &[],
            World::WithoutLandlock => &[libc::SYS_landlock_create_ruleset],
            World::WithoutSeccomp => &[libc::SYS_seccomp],
            World::WithoutBoth => &[libc::SYS_landlock_create_ruleset, libc::SYS_seccomp],
        };
        remove(lacks);
        sandbox.enter().unwrap()
    }
}

/// Makes system calls look as if the kernel did not have them.
fn remove(calls: &[i64]) {
    if calls.is_empty() {
        return;
    }
    let rules: BTreeMap<_, _> = calls.iter().map(|number| (*number, Vec::new())).collect();
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    let arch = env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, missing, arch).unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// How a process in a world ended.
#[derive(Debug)]
pub struct End {
    /// Its exit code, or [`SIGNAL`] and the signal.
    pub code: Option<i32>,
    pub output: String,
}

/// Of a piece that did all it should. Not 0, with which a program ends that finds no such test.
pub const WORKED: i32 = 2;
pub const SIGNAL: i32 = 128;
const PANICKED: i32 = 101;

/// In the test: runs test `name` again in `world`, with `outside` for it to reach for. In that
/// process: runs `inside`, whose answer is the exit code.
pub fn worlds(
    name: &str,
    inside: impl FnOnce(World, &Outside) -> i32,
    test: impl FnOnce(&dyn Fn(World) -> End),
) {
    if let Ok(world) = env::var(WORLD) {
        let world = World::ALL.into_iter().find(|one| format!("{one:?}") == world).unwrap();
        let outside = Outside::from_text(&env::var(OUTSIDE).unwrap());
        let child = || catch_unwind(AssertUnwindSafe(|| inside(world, &outside)));
        let code = forked(|| child().unwrap_or(PANICKED)).unwrap();
        // SAFETY: ends this process; what the tests' harness would do at its exit is not wanted.
        unsafe { libc::_exit(code) }
    }
    test(&|world| {
        let things = Things::new();
        let output = Command::new(env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(WORLD, format!("{world:?}"))
            .env(OUTSIDE, things.to_text())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        End {
            code: output.status.code(),
            output: [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap()).concat(),
        }
    });
}

/// What of the test's process the other one reaches for.
pub struct Outside {
    pub pid: i32,
    pub directory: PathBuf,
    pub tcp: u16,
    /// An open memfd of the test's process.
    pub memfd: i32,
    /// Where in the test's memory [`SECRET`] stands.
    pub address: usize,
}

pub const SECRET: &[u8; 16] = b"a tensor of mine";

impl Outside {
    pub fn secret(&self) -> PathBuf {
        self.directory.join("secret")
    }

    pub fn abstract_name(&self) -> SocketAddr {
        SocketAddr::from_abstract_name(self.directory.as_os_str().as_encoded_bytes()).unwrap()
    }

    fn from_text(text: &str) -> Self {
        let mut words = text.splitn(5, ' ');
        let mut next = || words.next().unwrap();
        Self {
            pid: next().parse().unwrap(),
            tcp: next().parse().unwrap(),
            memfd: next().parse().unwrap(),
            address: next().parse().unwrap(),
            directory: next().into(),
        }
    }
}

/// The test's side of [`Outside`].
struct Things {
    directory: tempfile::TempDir,
    tcp: TcpListener,
    memfd: OwnedFd,
    secret: Box<[u8; 16]>,
    _sockets: (UnixListener, UnixListener, UnixDatagram),
}

impl Things {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("secret"), SECRET).unwrap();
        let name = directory.path().as_os_str().as_encoded_bytes();
        let sockets = (
            UnixListener::bind(directory.path().join("socket")).unwrap(),
            UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap(),
            UnixDatagram::bind(directory.path().join("datagrams")).unwrap(),
        );
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        Self {
            directory,
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            memfd: rustix::fs::memfd_create("theirs", flags).unwrap(),
            secret: Box::new(*SECRET),
            _sockets: sockets,
        }
    }

    fn to_text(&self) -> String {
        format!(
            "{} {} {} {} {}",
            std::process::id(),
            self.tcp.local_addr().unwrap().port(),
            self.memfd.as_raw_fd(),
            self.secret.as_ptr() as usize,
            self.directory.path().display(),
        )
    }
}

/// A system call by its number; what it returns, or the error.
pub fn call<const N: usize>(number: i64, arguments: [usize; N]) -> io::Result<i64> {
    let mut six = [0; 6];
    six[..N].copy_from_slice(&arguments);
    let [a, b, c, d, e, f] = six;
    // SAFETY: callers give the pointers that the call wants, to memory that lives through it.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// Runs `child` in a forked process; how it ended, as [`End::code`] has it.
pub fn forked(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: other threads, if any, wait and hold no lock, so the child may do what it could.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: ends the child without running the harness's exits.
        0 => unsafe { libc::_exit(child()) },
        pid => {
            let mut status = 0;
            // SAFETY: `status` outlives the call.
            assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
            Ok(match libc::WIFSIGNALED(status) {
                true => SIGNAL + libc::WTERMSIG(status),
                false => libc::WEXITSTATUS(status),
            })
        }
    }
}

/// What can be read of a file, to its end.
pub fn read(path: impl AsRef<std::path::Path>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
