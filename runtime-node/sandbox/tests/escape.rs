//! What a worker in the sandbox tries in vain.
//!
//! Each attempt is made without a sandbox first: where it fails there as well, nothing is shown by
//! its failing inside. Then inside, and on kernels that lack a layer. See docs/reference/sandbox.md.

mod inside;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;

use genie_sandbox::Sandbox;
use inside::{Outside, SECRET, World, call, forked, read, worlds};

/// Exit codes of a process that tried.
const ESCAPED: i32 = 3;
const REFUSED: i32 = 4;
const FAILED: i32 = 5;
const NOT_HERE: i32 = 6;

/// Whether the attempt works without a sandbox.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bare {
    Works,
    /// Some kernels and rights refuse it anyway.
    MayFail,
}

/// The layers that refuse it, each without the others.
const SECCOMP: &[World] = &[World::Sandbox, World::WithoutLandlock];
const BOTH: &[World] = &[World::Sandbox, World::WithoutLandlock, World::WithoutSeccomp];

type Attempt = Box<dyn FnOnce() -> io::Result<()>>;

/// `prepare` runs before the sandbox is entered and gives the attempt.
fn refused(name: &str, bare: Bare, by: &[World], prepare: fn(&Outside) -> Attempt) {
    let inside = |world: World, outside: &Outside| {
        let attempt = prepare(outside);
        let report = world.enter(&Sandbox::cpu());
        if world == World::WithoutSeccomp && report.landlock_abi.is_none_or(|abi| abi < 6) {
            return NOT_HERE;
        }
        match attempt() {
            Ok(()) => ESCAPED,
            Err(error) => match error.raw_os_error() {
                Some(libc::EACCES | libc::EPERM | libc::ENOSYS) => REFUSED,
                // An abstract name is not there in another network namespace.
                Some(libc::ECONNREFUSED) if report.network_namespace => REFUSED,
                _ => {
                    println!("{error}");
                    FAILED
                }
            },
        }
    };
    worlds(name, inside, |run| {
        let end = run(World::Bare);
        match (bare, end.code) {
            (_, Some(ESCAPED)) | (Bare::MayFail, Some(REFUSED | FAILED)) => {}
            _ => panic!("without a sandbox: {end:?}"),
        }
        for world in by {
            let end = run(*world);
            match end.code {
                Some(REFUSED) => {}
                Some(NOT_HERE) if *world == World::WithoutSeccomp => {}
                _ => panic!("{world:?}: {end:?}"),
            }
        }
    });
}

/// A test per attempt, under its name.
macro_rules! refused {
    ($($(#[$meta:meta])* $name:ident, $bare:ident, $by:ident, $prepare:expr;)*) => {$(
        #[test]
        $(#[$meta])*
        fn $name() {
            refused(stringify!($name), Bare::$bare, $by, $prepare);
        }
    )*};
}

fn done<T>(result: io::Result<T>) -> io::Result<()> {
    result.map(drop)
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).unwrap()
}

fn pidfd(pid: i32) -> OwnedFd {
    let fd = call(libc::SYS_pidfd_open, [pid as usize, 0]).unwrap();
    // SAFETY: a fresh descriptor, owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

// Files.
refused! {
    reads_a_file, Works, BOTH, |outside| {
        let path = outside.secret();
        Box::new(move || done(read(path)))
    };
    writes_a_file, Works, BOTH, |outside| {
        let path = outside.secret();
        Box::new(move || OpenOptions::new().write(true).open(path)?.write_all(b"x"))
    };
    makes_a_file, Works, BOTH, |outside| {
        let path = outside.directory.join("new");
        Box::new(move || done(File::create(path)))
    };
    removes_a_file, Works, BOTH, |outside| {
        let path = outside.secret();
        Box::new(move || fs::remove_file(path))
    };
    lists_a_directory, Works, BOTH, |outside| {
        let path = outside.directory.clone();
        Box::new(move || done(fs::read_dir(path)))
    };
    // Landlock does not keep names and sizes from being asked for.
    asks_for_a_files_size, Works, SECCOMP, |outside| {
        let path = outside.secret();
        Box::new(move || done(fs::metadata(path)))
    };
    goes_round_by_proc_self_root, Works, BOTH, |outside| {
        let path = Path::new("/proc/self/root").join(outside.secret().strip_prefix("/").unwrap());
        Box::new(move || done(read(path)))
    };
    goes_in_by_an_inherited_directory, Works, BOTH, |outside| {
        let directory = File::open(&outside.directory).unwrap();
        Box::new(move || {
            let name = c"secret".as_ptr() as usize;
            done(call(libc::SYS_openat, [directory.as_raw_fd() as usize, name, 0]))
        })
    };
    goes_in_by_openat2, MayFail, BOTH, |outside| {
        let directory = File::open(&outside.directory).unwrap();
        Box::new(move || {
            let (name, how) = (c"secret".as_ptr() as usize, [0u64; 3]);
            let (how, size) = (how.as_ptr() as usize, size_of_val(&how));
            done(call(libc::SYS_openat2, [directory.as_raw_fd() as usize, name, how, size]))
        })
    };
    opens_an_inherited_file_for_writing, Works, BOTH, |outside| {
        let file = File::open(outside.secret()).unwrap();
        Box::new(move || {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            done(OpenOptions::new().write(true).open(path))
        })
    };
    takes_a_handle_of_a_file, MayFail, SECCOMP, |outside| {
        let path = c(&outside.secret());
        Box::new(move || {
            let mut handle = [0u32; 64];
            handle[0] = 128;
            let mut mount = 0i32;
            let (handle, mount) = (handle.as_mut_ptr() as usize, &raw mut mount as usize);
            let (at, path) = (libc::AT_FDCWD as usize, path.as_ptr() as usize);
            done(call(libc::SYS_name_to_handle_at, [at, path, handle, mount, 0]))
        })
    };
}

// Sockets.
refused! {
    connects_by_tcp, Works, BOTH, |outside| {
        let port = outside.tcp;
        Box::new(move || done(TcpStream::connect(("127.0.0.1", port))))
    };
    listens_by_tcp, Works, BOTH, |_| Box::new(|| done(TcpListener::bind("127.0.0.1:0")));
    sends_by_udp, Works, SECCOMP, |outside| {
        let port = outside.tcp;
        Box::new(move || done(UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", ("127.0.0.1", port))))
    };
    connects_to_an_abstract_socket, Works, BOTH, |outside| {
        let name = outside.abstract_name();
        Box::new(move || done(UnixStream::connect_addr(&name)))
    };
    connects_to_a_named_socket, Works, SECCOMP, |outside| {
        let path = outside.directory.join("socket");
        Box::new(move || done(UnixStream::connect(path)))
    };
    sends_a_datagram_to_a_named_socket, Works, SECCOMP, |outside| {
        let path = outside.directory.join("datagrams");
        Box::new(move || done(UnixDatagram::pair()?.0.send_to(b"x", path)))
    };
    sends_an_inherited_sockets_datagram_elsewhere, Works, SECCOMP, |outside| {
        let path = outside.directory.join("datagrams");
        let (socket, _other) = UnixDatagram::pair().unwrap();
        Box::new(move || done(socket.send_to(b"x", path)))
    };
    talks_to_the_kernel_by_netlink, Works, SECCOMP, |_| Box::new(|| {
        done(call(libc::SYS_socket, [libc::AF_NETLINK as usize, libc::SOCK_RAW as usize, 0]))
    });
}

// New processes.
refused! {
    runs_a_program, Works, SECCOMP, |_| Box::new(|| {
        let argument = |text: &'static std::ffi::CStr| text.as_ptr() as usize;
        let arguments = [argument(c"sh"), argument(c"-c"), argument(c"exit 3"), 0];
        let nothing = [0usize];
        let (arguments, nothing) = (arguments.as_ptr() as usize, nothing.as_ptr() as usize);
        done(call(libc::SYS_execve, [argument(c"/bin/sh"), arguments, nothing]))
    });
    runs_an_open_program, Works, SECCOMP, |_| {
        let program = File::open("/bin/sh").unwrap();
        Box::new(move || {
            let argument = |text: &'static std::ffi::CStr| text.as_ptr() as usize;
            let arguments = [argument(c"sh"), argument(c"-c"), argument(c"exit 3"), 0];
            let nothing = [0usize];
            let (arguments, nothing) = (arguments.as_ptr() as usize, nothing.as_ptr() as usize);
            let (fd, empty) = (program.as_raw_fd() as usize, argument(c""));
            let flags = libc::AT_EMPTY_PATH as usize;
            done(call(libc::SYS_execveat, [fd, empty, arguments, nothing, flags]))
        })
    };
    forks, Works, SECCOMP, |_| Box::new(|| done(forked(|| 0)));
    forks_by_clone, Works, SECCOMP, |_| Box::new(|| {
        match call(libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0, 0])? {
            // SAFETY: ends the child.
            0 => unsafe { libc::_exit(0) },
            _ => Ok(()),
        }
    });
    forks_by_clone3, MayFail, SECCOMP, |_| Box::new(|| {
        let mut how = [0u64; 8];
        how[4] = libc::SIGCHLD as u64;
        match call(libc::SYS_clone3, [how.as_ptr() as usize, size_of_val(&how)])? {
            // SAFETY: ends the child.
            0 => unsafe { libc::_exit(0) },
            _ => Ok(()),
        }
    });
}

// Other processes.
refused! {
    traces_its_parent, MayFail, BOTH, |outside| {
        let pid = outside.pid as usize;
        Box::new(move || done(call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as usize, pid, 0, 0])))
    };
    reads_its_parents_memory, MayFail, BOTH, |outside| {
        let (pid, address) = (outside.pid as usize, outside.address);
        Box::new(move || {
            let mut bytes = [0u8; SECRET.len()];
            let here = [bytes.as_mut_ptr() as usize, bytes.len()];
            let there = [address, bytes.len()];
            let (here, there) = (here.as_ptr() as usize, there.as_ptr() as usize);
            call(libc::SYS_process_vm_readv, [pid, here, 1, there, 1, 0])?;
            assert_eq!(&bytes, SECRET);
            Ok(())
        })
    };
    writes_its_parents_memory, MayFail, BOTH, |outside| {
        let (pid, address) = (outside.pid as usize, outside.address);
        Box::new(move || {
            let (here, there) = ([SECRET.as_ptr() as usize, 1], [address, 1]);
            let (here, there) = (here.as_ptr() as usize, there.as_ptr() as usize);
            done(call(libc::SYS_process_vm_writev, [pid, here, 1, there, 1, 0]))
        })
    };
    opens_its_parents_memory, MayFail, BOTH, |outside| {
        let path = format!("/proc/{}/mem", outside.pid);
        Box::new(move || done(File::open(path)))
    };
    reads_its_parents_environment, MayFail, BOTH, |outside| {
        let path = format!("/proc/{}/environ", outside.pid);
        Box::new(move || done(read(path)))
    };
    opens_its_parents_memfd, MayFail, BOTH, |outside| {
        let path = format!("/proc/{}/fd/{}", outside.pid, outside.memfd);
        Box::new(move || done(OpenOptions::new().read(true).write(true).open(path)))
    };
    takes_a_handle_of_its_parent, MayFail, SECCOMP, |outside| {
        let pid = outside.pid as usize;
        Box::new(move || done(call(libc::SYS_pidfd_open, [pid, 0])))
    };
    takes_its_parents_descriptor, MayFail, BOTH, |outside| {
        let (parent, memfd) = (pidfd(outside.pid), outside.memfd as usize);
        Box::new(move || {
            done(call(libc::SYS_pidfd_getfd, [parent.as_raw_fd() as usize, memfd, 0]))
        })
    };
    signals_its_parent, Works, BOTH, |outside| {
        let pid = outside.pid as usize;
        Box::new(move || done(call(libc::SYS_kill, [pid, 0])))
    };
    signals_its_parents_thread, Works, BOTH, |outside| {
        let pid = outside.pid as usize;
        Box::new(move || done(call(libc::SYS_tgkill, [pid, pid, 0])))
    };
    signals_its_parent_by_a_handle, Works, BOTH, |outside| {
        let parent = pidfd(outside.pid);
        Box::new(move || {
            done(call(libc::SYS_pidfd_send_signal, [parent.as_raw_fd() as usize, 0, 0, 0]))
        })
    };
    queues_its_parent_a_signal, Works, BOTH, |outside| {
        let pid = outside.pid as usize;
        Box::new(move || {
            let mut words = [0i32; 32];
            words[2] = libc::SI_QUEUE;
            done(call(libc::SYS_rt_sigqueueinfo, [pid, 0, words.as_ptr() as usize]))
        })
    };
    has_its_parent_signalled_by_a_descriptor, Works, SECCOMP, |outside| {
        let pid = outside.pid as usize;
        let (socket, _other) = UnixStream::pair().unwrap();
        Box::new(move || {
            let fd = socket.as_raw_fd() as usize;
            done(call(libc::SYS_fcntl, [fd, libc::F_SETOWN as usize, pid]))
        })
    };
    has_its_parent_signalled_by_a_socket, Works, SECCOMP, |outside| {
        let pid = outside.pid;
        let (socket, _other) = UnixStream::pair().unwrap();
        Box::new(move || {
            const SIOCSPGRP: usize = 0x8902;
            let fd = socket.as_raw_fd() as usize;
            done(call(libc::SYS_ioctl, [fd, SIOCSPGRP, &raw const pid as usize]))
        })
    };
    asks_for_its_parents_limits, Works, SECCOMP, |outside| {
        let pid = outside.pid as usize;
        Box::new(move || {
            let mut limit = [0u64; 2];
            let (core, old) = (libc::RLIMIT_CORE as usize, limit.as_mut_ptr() as usize);
            done(call(libc::SYS_prlimit64, [pid, core, 0, old]))
        })
    };
    slows_its_parent_down, Works, SECCOMP, |outside| {
        let pid = outside.pid as usize;
        // The kernel's own call answers 20 less the nice value.
        let nice = 20 - call(libc::SYS_getpriority, [0, pid]).unwrap();
        Box::new(move || done(call(libc::SYS_setpriority, [0, pid, nice as usize])))
    };
    moves_its_parent_to_other_cores, Works, SECCOMP, |outside| {
        let pid = outside.pid as usize;
        let mut cores = [0u64; 16];
        let (size, at) = (size_of_val(&cores), cores.as_mut_ptr() as usize);
        call(libc::SYS_sched_getaffinity, [pid, size, at]).unwrap();
        Box::new(move || {
            done(call(libc::SYS_sched_setaffinity, [pid, size, cores.as_ptr() as usize]))
        })
    };
    shares_memory_by_a_key, MayFail, SECCOMP, |_| Box::new(|| {
        let segment = call(libc::SYS_shmget, [0, 4096, libc::IPC_CREAT as usize | 0o600])?;
        done(call(libc::SYS_shmctl, [segment as usize, libc::IPC_RMID as usize, 0]))
    });
}

// Itself, and the rest of the kernel.
refused! {
    raises_its_limits, Works, SECCOMP, |_| Box::new(|| {
        let mut limit = [0u64; 2];
        let (files, at) = (libc::RLIMIT_NOFILE as usize, limit.as_mut_ptr() as usize);
        call(libc::SYS_prlimit64, [0, files, 0, at])?;
        done(call(libc::SYS_prlimit64, [0, files, at, 0]))
    });
    opens_its_memory_to_others, Works, SECCOMP, |_| Box::new(|| {
        done(call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1]))
    });
    adds_filters, Works, SECCOMP, |_| Box::new(|| {
        // Which answers there are: SECCOMP_GET_ACTION_AVAIL.
        let action = libc::SECCOMP_RET_ALLOW;
        done(call(libc::SYS_seccomp, [2, 0, &raw const action as usize]))
    });
    becomes_another_user, MayFail, SECCOMP, |_| Box::new(|| done(call(libc::SYS_setuid, [1])));
    gets_capabilities, Works, SECCOMP, |_| Box::new(|| {
        let (header, none) = ([0x2008_0522u32, 0], [0u32; 6]);
        done(call(libc::SYS_capset, [header.as_ptr() as usize, none.as_ptr() as usize]))
    });
    makes_namespaces, MayFail, SECCOMP, |_| Box::new(|| {
        done(call(libc::SYS_unshare, [libc::CLONE_NEWUSER as usize]))
    });
    goes_to_a_namespace, MayFail, SECCOMP, |_| {
        let namespace = File::open("/proc/self/ns/net").unwrap();
        Box::new(move || done(call(libc::SYS_setns, [namespace.as_raw_fd() as usize, 0])))
    };
    changes_its_root, MayFail, SECCOMP, |_| Box::new(|| {
        done(call(libc::SYS_chroot, [c"/".as_ptr() as usize]))
    });
    mounts, MayFail, SECCOMP, |_| Box::new(|| {
        let (kind, at) = (c"nothing".as_ptr() as usize, c"/proc/self".as_ptr() as usize);
        done(call(libc::SYS_mount, [kind, at, kind, 0, 0]))
    });
    reaches_for_keys, MayFail, SECCOMP, |_| Box::new(|| {
        const GET_KEYRING_ID: usize = 0;
        const SESSION: usize = -3isize as usize;
        done(call(libc::SYS_keyctl, [GET_KEYRING_ID, SESSION, 0]))
    });
    changes_its_personality, Works, SECCOMP, |_| Box::new(|| {
        done(call(libc::SYS_personality, [0xffff_ffff]))
    });
    #[cfg(target_arch = "x86_64")]
    changes_its_segments, MayFail, SECCOMP, |_| Box::new(|| {
        let mut bytes = [0u8; 64];
        let (at, size) = (bytes.as_mut_ptr() as usize, bytes.len());
        done(call(libc::SYS_modify_ldt, [0, at, size]))
    });
    sets_up_io_uring, MayFail, SECCOMP, |_| Box::new(|| {
        let mut how = [0u32; 30];
        done(call(libc::SYS_io_uring_setup, [1, how.as_mut_ptr() as usize]))
    });
    handles_its_own_page_faults, MayFail, SECCOMP, |_| Box::new(|| {
        const USER_MODE_ONLY: usize = 1;
        done(call(libc::SYS_userfaultfd, [libc::O_CLOEXEC as usize | USER_MODE_ONLY]))
    });
    loads_bpf, MayFail, SECCOMP, |_| Box::new(|| {
        // A map: an array with keys and values of 4 bytes, and one entry.
        let what = [2u32, 4, 4, 1, 0, 0, 0, 0];
        done(call(libc::SYS_bpf, [0, what.as_ptr() as usize, size_of_val(&what)]))
    });
    counts_events, MayFail, SECCOMP, |_| Box::new(|| {
        let mut what = [0u32; 32];
        // The task clock, a software event.
        (what[0], what[1], what[2]) = (1, 128, 1);
        let any = usize::MAX;
        done(call(libc::SYS_perf_event_open, [what.as_ptr() as usize, 0, any, any, 0]))
    });
}

/// The network namespace, where there is one, has no way out even without the other layers.
#[test]
fn a_network_namespace_has_no_way_out() {
    let inside = |world: World, outside: &Outside| {
        if !world.enter(&Sandbox::cpu()).network_namespace {
            return NOT_HERE;
        }
        let tcp = TcpStream::connect(("127.0.0.1", outside.tcp));
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", ("127.0.0.1", outside.tcp));
        let unix = UnixStream::connect_addr(&outside.abstract_name());
        match (tcp, udp, unix) {
            (Err(_), Err(_), Err(_)) => REFUSED,
            _ => ESCAPED,
        }
    };
    worlds("a_network_namespace_has_no_way_out", inside, |run| {
        let end = run(World::WithoutBoth);
        assert!(matches!(end.code, Some(REFUSED | NOT_HERE)), "{end:?}");
    });
}

/// Another process of the same user cannot look into a worker, by what the worker has set itself.
#[test]
fn a_process_of_the_same_user_cannot_look_in() {
    let inside = |world: World, _: &Outside| {
        let (mut ready, mut closed) = io::pipe().unwrap();
        let worker = std::process::id() as usize;
        // SAFETY: this process has one thread, so the child may do what it could.
        let looker = unsafe { libc::fork() };
        if looker == 0 {
            drop(closed);
            become_nobody();
            io::Read::read(&mut ready, &mut [0]).unwrap();
            let memory = File::open(format!("/proc/{worker}/mem"));
            let descriptors = fs::read_dir(format!("/proc/{worker}/fd"));
            let traced = call(libc::SYS_ptrace, [libc::PTRACE_SEIZE as usize, worker, 0, 0]);
            let code = match (memory, descriptors, traced) {
                (Err(_), Err(_), Err(_)) => REFUSED,
                _ => ESCAPED,
            };
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) }
        }
        become_nobody();
        world.enter(&Sandbox::cpu());
        closed.write_all(b"x").unwrap();
        let mut status = 0;
        // SAFETY: `status` outlives the call. Without seccomp, which would refuse it.
        assert_eq!(unsafe { libc::waitpid(looker, &mut status, 0) }, looker);
        libc::WEXITSTATUS(status)
    };
    worlds("a_process_of_the_same_user_cannot_look_in", inside, |run| {
        let end = run(World::WithoutBoth);
        assert_eq!(end.code, Some(REFUSED), "{end:?}");
        let end = run(World::Bare);
        // Some systems let nobody trace but a parent.
        assert!(matches!(end.code, Some(ESCAPED | REFUSED)), "{end:?}");
    });
}

/// Root may look into everything, so both ends become another user, and as open as a program.
fn become_nobody() {
    if rustix::process::geteuid().is_root() {
        call(libc::SYS_setresgid, [65533; 3]).unwrap();
        call(libc::SYS_setresuid, [65533; 3]).unwrap();
        call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 1]).unwrap();
    }
}
