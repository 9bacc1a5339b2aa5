//! What a worker in the sandbox still does.

mod inside;

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::catch_unwind;
use std::thread;
use std::time::{Duration, Instant};

use genie_sandbox::{Error, OPEN_FILES, Report, Sandbox};
use inside::{Outside, SIGNAL, WORKED, World, call, forked, read, worlds};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Runs `work` in the sandbox; a panic in it is the test's.
fn works(name: &str, work: fn()) {
    works_with(name, || (), |()| work());
}

/// `prepare` runs before the sandbox is entered.
fn works_with<T>(name: &str, prepare: impl FnOnce() -> T, work: impl FnOnce(T)) {
    let inside = |world: World, _: &Outside| {
        let prepared = prepare();
        world.enter(&Sandbox::cpu());
        work(prepared);
        WORKED
    };
    worlds(name, inside, |run| {
        let end = run(World::Sandbox);
        assert_eq!(end.code, Some(WORKED), "{end:?}");
    });
}

#[test]
fn threads_run() {
    works("threads_run", || {
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let thread = thread::Builder::new().name(format!("worker {number}"));
                thread.spawn(move || thread::sleep(Duration::from_millis(number))).unwrap()
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(thread::available_parallelism().is_ok());
        assert!(Instant::now().elapsed() < Duration::from_secs(60));
    });
}

/// A thread that a sandboxed thread starts is as closed in as that.
#[test]
fn threads_are_closed_in_too() {
    works("threads_are_closed_in_too", || {
        let opened = thread::spawn(|| File::open("/proc/self/status").is_ok());
        assert!(!opened.join().unwrap());
    });
}

#[test]
fn much_memory_is_there() {
    works("much_memory_is_there", || {
        let mut bytes = vec![0u8; 256 << 20];
        bytes.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        bytes.resize(384 << 20, 0);
        assert_eq!(bytes.iter().step_by(4096).filter(|byte| **byte == 1).count(), 256 << 8);
    });
}

#[test]
fn written_code_runs() {
    works("written_code_runs", || {
        #[cfg(target_arch = "x86_64")]
        const ANSWER: &[u8] = &[0xb8, 42, 0, 0, 0, 0xc3]; // mov eax, 42; ret
        #[cfg(target_arch = "aarch64")]
        const ANSWER: &[u8] = &[0x40, 0x05, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6]; // mov w0, 42; ret
        let all = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
        // SAFETY: new memory; what is written to it is a whole function of no arguments, and one
        // that was never run before, so that no old code of it can be cached.
        let answer = unsafe {
            let page = mmap_anonymous(std::ptr::null_mut(), 4096, all, MapFlags::PRIVATE).unwrap();
            page.cast::<u8>().copy_from_nonoverlapping(ANSWER.as_ptr(), ANSWER.len());
            std::mem::transmute::<*mut std::ffi::c_void, extern "C" fn() -> u32>(page)()
        };
        assert_eq!(answer, 42);
    });
}

#[test]
fn events_arrive() {
    works("events_arrive", || {
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let data = epoll::EventData::new_u64(7);
        epoll::add(&poll, &event, data, epoll::EventFlags::IN).unwrap();
        let other = event.try_clone().unwrap();
        let sender = thread::spawn(move || rustix::io::write(other, &1u64.to_ne_bytes()).unwrap());
        let mut ready = [MaybeUninit::uninit(); 4];
        let second = Timespec { tv_sec: 10, tv_nsec: 0 };
        let (ready, _) = epoll::wait(&poll, &mut ready, Some(&second)).unwrap();
        assert_eq!(ready.len(), 1);
        sender.join().unwrap();
    });
}

#[test]
fn memory_is_shared_and_sealed() {
    works("memory_is_shared_and_sealed", || {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = memfd_create("region", flags).unwrap();
        ftruncate(&memory, 1 << 20).unwrap();
        fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::SEAL).unwrap();
        assert_eq!(fstat(&memory).unwrap().st_size, 1 << 20);
        assert!(ftruncate(&memory, 0).is_err());
    });
}

/// Over a socket that was open before, descriptors come in and go out, and the kernel tells who a
/// new socket's peer is.
#[test]
fn descriptors_are_passed() {
    const HELLO: &[u8] = b"hello";
    let prepare = || UnixStream::pair().unwrap();
    works_with("descriptors_are_passed", prepare, |(gate, worker)| {
        let mine = memfd_create("mine", MemfdFlags::CLOEXEC).unwrap();
        File::from(mine.try_clone().unwrap()).write_all(HELLO).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        send(&worker, &[mine.as_fd(), near.as_fd()]);
        drop((mine, near));

        let [memory, socket] = receive(&gate).try_into().unwrap();
        let mut bytes = [0; HELLO.len()];
        rustix::io::pread(memory, &mut bytes, 0).unwrap();
        assert_eq!(bytes, HELLO);
        assert_eq!(peer(&socket), rustix::process::getuid().as_raw());
        UnixStream::from(socket).write_all(HELLO).unwrap();
        let second = Some(Duration::from_secs(1));
        far.set_read_timeout(second).unwrap();
        far.read_exact(&mut bytes).unwrap();
        set_socket_timeout(&far, Timeout::Send, second).unwrap();
        far.set_nonblocking(true).unwrap();
    });
}

/// A socket of another user that is passed in still tells that user: a new user namespace would make
/// all others one.
#[test]
fn peers_of_other_users_are_told() {
    const OTHER: u32 = 65533;
    let prepare = || {
        let (mut outer, inner) = UnixStream::pair().unwrap();
        if rustix::process::geteuid().is_root() {
            let made = forked(|| {
                call(libc::SYS_setresuid, [OTHER as usize; 3]).unwrap();
                let (socket, _) = UnixStream::pair().unwrap();
                send(&outer, &[socket.as_fd()]);
                0
            });
            assert_eq!(made.unwrap(), 0);
        } else {
            outer.write_all(b"x").unwrap();
        }
        inner
    };
    works_with("peers_of_other_users_are_told", prepare, |inner| {
        for socket in receive(&inner) {
            assert_eq!(peer(&socket), OTHER);
        }
    });
}

fn send(socket: &UnixStream, fds: &[std::os::fd::BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    sendmsg(socket, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty()).unwrap();
}

fn receive(socket: &UnixStream) -> Vec<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, flags).unwrap();
    let messages = ancillary.drain();
    messages
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect()
}

/// The user at the other end of a Unix socket.
fn peer(socket: &OwnedFd) -> u32 {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let (fd, level, option) = (socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: the kernel writes at most `len` bytes to `who`, a plain struct of that size.
    let result = unsafe { libc::getsockopt(fd, level, option, (&raw mut who).cast(), &mut len) };
    assert_eq!(result, 0);
    who.uid
}

#[test]
fn an_abort_is_an_abort() {
    let inside = |world: World, _: &Outside| {
        world.enter(&Sandbox::cpu());
        std::process::abort()
    };
    worlds("an_abort_is_an_abort", inside, |run| {
        let end = run(World::Sandbox);
        assert_eq!(end.code, Some(SIGNAL + libc::SIGABRT), "{end:?}");
    });
}

#[test]
fn panics_unwind() {
    works("panics_unwind", || {
        assert!(catch_unwind(|| panic!("caught")).is_err());
        assert!(thread::spawn(|| panic!("joined")).join().is_err());
    });
}

#[test]
fn limits_hold() {
    works("limits_hold", || {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert!(limit.maximum.is_some_and(|maximum| maximum <= OPEN_FILES));
        assert_eq!(limit.current, limit.maximum);
        let cores = rustix::process::getrlimit(rustix::process::Resource::Core);
        assert_eq!((cores.current, cores.maximum), (Some(0), Some(0)));
        assert!(rustix::thread::no_new_privs().unwrap());
        assert!(rustix::thread::capabilities(None).is_err(), "nobody asks");
    });
}

/// Why there is no limit on files' sizes: it would be one on shared memory.
#[test]
fn a_limit_on_files_sizes_counts_shared_memory() {
    let inside = |_: World, _: &Outside| {
        let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
        // SAFETY: this process has one thread; the limit outlives the call.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        }
        let memory = memfd_create("region", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(ftruncate(&memory, 8192), Err(rustix::io::Errno::FBIG));
        WORKED
    };
    worlds("a_limit_on_files_sizes_counts_shared_memory", inside, |run| {
        let end = run(World::Bare);
        assert_eq!(end.code, Some(WORKED), "{end:?}");
    });
}

#[test]
fn a_process_with_threads_is_not_closed_in() {
    let inside = |_: World, _: &Outside| {
        let (stay, ready) = std::sync::mpsc::channel::<()>();
        let thread = thread::spawn(move || ready.recv().is_ok());
        assert!(matches!(Sandbox::cpu().enter(), Err(Error::Threads(2))));
        drop(stay);
        thread.join().unwrap();
        assert!(read("/proc/self/status").is_ok());
        WORKED
    };
    worlds("a_process_with_threads_is_not_closed_in", inside, |run| {
        let end = run(World::Bare);
        assert_eq!(end.code, Some(WORKED), "{end:?}");
    });
}

#[test]
fn what_a_kernel_lacks_is_told() {
    let inside = |world: World, outside: &Outside| {
        let report = world.enter(&Sandbox::cpu());
        let lacks = |word| report.missing.iter().any(|what: &String| what.starts_with(word));
        match world {
            World::WithoutLandlock => {
                assert!(report.seccomp && report.landlock_abi.is_none() && lacks("Landlock"));
            }
            World::WithoutSeccomp => assert!(!report.seccomp && lacks("seccomp")),
            World::WithoutBoth => {
                assert!(lacks("Landlock") && lacks("seccomp"));
                assert!(read(outside.secret()).is_ok());
            }
            _ => assert!(report.seccomp),
        }
        assert!(report.network_namespace || lacks("network namespace"));
        WORKED
    };
    worlds("what_a_kernel_lacks_is_told", inside, |run| {
        for world in
            [World::Sandbox, World::WithoutLandlock, World::WithoutSeccomp, World::WithoutBoth]
        {
            let end = run(world);
            assert_eq!(end.code, Some(WORKED), "{world:?}: {end:?}");
        }
    });
}

#[test]
fn a_probe_tells_what_entering_would() {
    let inside = |_: World, outside: &Outside| {
        let told = Sandbox::cpu().probe().unwrap();
        assert!(read(outside.secret()).is_ok(), "probing closed this process in");
        assert_eq!(Sandbox::cpu().enter().unwrap(), told);
        assert_ne!(told, Report::default());
        WORKED
    };
    worlds("a_probe_tells_what_entering_would", inside, |run| {
        let end = run(World::Bare);
        assert_eq!(end.code, Some(WORKED), "{end:?}");
    });
}

/// On a machine without such a device: the paths that are there are open, and no others.
#[test]
fn a_device_profile_opens_only_what_the_driver_reads() {
    let inside = |_: World, outside: &Outside| {
        let late = outside.directory.join("late");
        std::fs::create_dir(&late).unwrap();
        std::fs::write(late.join("library.so"), "code").unwrap();
        let sandbox = Sandbox::cuda(vec![late.clone()]);
        let report = sandbox.enter().unwrap();
        if report.landlock_abi.is_none() {
            assert!(report.missing.iter().any(|what| what.contains("files closed")));
            return WORKED;
        }
        assert!(read("/proc/meminfo").is_ok());
        assert!(read("/proc/self/maps").is_ok());
        assert!(read(late.join("library.so")).is_ok());
        assert!(File::create(late.join("library.so")).is_err());
        assert!(read(outside.secret()).is_err());
        assert!(read("/etc/passwd").is_err());
        assert!(read("/proc/self/root/etc/passwd").is_err());
        assert!(read(format!("/proc/{}/environ", outside.pid)).is_err());
        assert!(UnixStream::connect(outside.directory.join("socket")).is_err());
        WORKED
    };
    worlds("a_device_profile_opens_only_what_the_driver_reads", inside, |run| {
        let end = run(World::Bare);
        assert_eq!(end.code, Some(WORKED), "{end:?}");
    });
}
