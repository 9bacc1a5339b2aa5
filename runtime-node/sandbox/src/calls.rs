//! The tables of system calls, each with its answer. What stands in none does not exist (`ENOSYS`):
//! that is what a library expects of a call that is newer than the kernel, so it takes an older one.
//!
//! | table | answer |
//! |---|---|
//! | [`FREE`] | runs |
//! | [`checked`] | runs with the arguments that stand there, otherwise `EPERM` |
//! | [`FILES`] | `EACCES`, as if the file were another's: libraries look for files that need not be there |
//! | [`NEVER`] | `EPERM`: no worker has a use for it. An error and no kill, as some libraries probe |
//!
//! Only `int 0x80`, another architecture's door, ends the process.

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use crate::Profile;

/// Runs with any arguments: reaches nothing but this process and its descriptors.
pub const FREE: &[i64] = &[
    // Memory. Code is written at run time (oneDNN), so PROT_EXEC is not refused. Locks pin.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_brk,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    // Threads; `clone` is checked. `clone3` keeps its flags in memory, where no filter sees them: it
    // does not exist, and glibc takes `clone`.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_gettid,
    libc::SYS_getcpu,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_get_priority_max,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Descriptors that are there.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_signalfd4,
    libc::SYS_memfd_create,
    // Signals of its own; sending is checked.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_times,
    // Who and where it is.
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_getrusage,
    libc::SYS_getrlimit,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // The second and third filter are installed through the first; the third then ends it.
    libc::SYS_seccomp,
    // Older forms of calls above.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_create,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_eventfd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_signalfd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

/// Runs beside [`FREE`] in a profile that opens files. Contents are Landlock's to keep closed.
pub const FREE_WITH_FILES: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    // Drivers place memory beside the device.
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_mbind,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
];

/// Refused with `EACCES`: names a file.
pub const FILES: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    // Also with AT_EMPTY_PATH, which takes a path as well, and a filter cannot see that it is empty.
    // So glibc 2.33 to 2.38 refuse `fstat`; rustix and newer ones call the kernel's own.
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_truncate,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_getxattr,
    libc::SYS_setxattr,
    libc::SYS_inotify_add_watch,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
];

/// Refused with `EPERM`: reaches other processes, the network or the machine.
pub const NEVER: &[i64] = &[
    // Sockets; `socketpair` is checked.
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // Processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    // Other processes' share of the machine, and this one's limits.
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setattr,
    libc::SYS_setrlimit,
    // Memory that others know by name.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_semget,
    libc::SYS_msgget,
    libc::SYS_mq_open,
    // Much of the kernel behind few calls.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // Who this is.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_personality,
    // The machine.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
];

/// A call and the arguments with which it runs: one of the rules must hold.
pub type Checked = (i64, Vec<SeccompRule>);

/// Runs with these arguments only; `own` is this process's number.
pub fn checked(profile: &Profile, own: u32) -> Result<Vec<Checked>, BackendError> {
    let own = u64::from(own);
    let mut calls = vec![
        // Threads of this process, in its own namespaces.
        (libc::SYS_clone, vec![all([masked(0, CLONE_MATTERS, CLONE_THREAD)])?]),
        // Its own threads' signals: `abort` is one.
        (libc::SYS_tgkill, vec![all([is(0, own)])?]),
        (libc::SYS_sched_setaffinity, vec![all([is(0, 0)])?]),
        // Reading its own limits.
        (libc::SYS_prlimit64, vec![all([is(0, 0), is_null(2)])?]),
        // No owner of a descriptor, whom the kernel would send signals.
        (libc::SYS_fcntl, one_of(1, FCNTL)?),
        // With streams and packets in order, the peer is fixed. A datagram can be sent to any socket
        // with a name, and Landlock knows these only since ABI 9.
        (
            libc::SYS_socketpair,
            vec![
                all([is(0, libc::AF_UNIX as u64), masked(1, SOCK_TYPE, libc::SOCK_STREAM as u64)])?,
                all([
                    is(0, libc::AF_UNIX as u64),
                    masked(1, SOCK_TYPE, libc::SOCK_SEQPACKET as u64),
                ])?,
            ],
        ),
        // Not to an address.
        (libc::SYS_sendto, vec![all([is_null(4)])?]),
        (libc::SYS_setsockopt, timeouts()?),
        (libc::SYS_prctl, one_of(0, PRCTL)?),
        (
            libc::SYS_ioctl,
            match profile {
                Profile::Cpu => one_of(1, IOCTL)?,
                // Drivers have hundreds of commands, some without a pattern. Landlock says for which
                // files; here, only what reaches others through any descriptor is left out.
                Profile::Cuda { .. } => vec![none_of(1, IOCTL_NEVER)?],
            },
        ),
    ];
    calls.extend(checked_here()?);
    Ok(calls)
}

#[cfg(target_arch = "x86_64")]
fn checked_here() -> Result<Vec<Checked>, BackendError> {
    Ok(vec![(libc::SYS_arch_prctl, one_of(0, ARCH_PRCTL)?)])
}

#[cfg(not(target_arch = "x86_64"))]
fn checked_here() -> Result<Vec<Checked>, BackendError> {
    Ok(Vec::new())
}

/// How long a socket waits, by its older and its newer numbers: libc has the first, rustix the second.
fn timeouts() -> Result<Vec<SeccompRule>, BackendError> {
    const SO_RCVTIMEO_NEW: u64 = 66;
    const SO_SNDTIMEO_NEW: u64 = 67;
    let (receive, send) = (libc::SO_RCVTIMEO as u64, libc::SO_SNDTIMEO as u64);
    [receive, send, SO_RCVTIMEO_NEW, SO_SNDTIMEO_NEW]
        .into_iter()
        .map(|option| all([is(1, libc::SOL_SOCKET as u64), is(2, option)]))
        .collect()
}

/// Flags of `clone` that a thread has...
const CLONE_THREAD: u64 = (libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD) as u64;
/// ...and those that are looked at: these, and what would leave a namespace or the process.
const CLONE_MATTERS: u64 = CLONE_THREAD
    | (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_PTRACE
        | libc::CLONE_VFORK
        | libc::CLONE_PARENT) as u64;

/// The bits of a socket's type beside its flags.
const SOCK_TYPE: u64 = 0xf;

const FCNTL: &[u64] = &[
    libc::F_DUPFD as u64,
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_GETFD as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
    libc::F_SETFL as u64,
    libc::F_ADD_SEALS as u64,
    libc::F_GET_SEALS as u64,
];

const IOCTL: &[u64] = &[libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::FIONCLEX];

const IOCTL_NEVER: &[u64] = &[
    // Types into a terminal for its user.
    libc::TIOCSTI,
    libc::TIOCLINUX,
    // Owners of a descriptor: FIOSETOWN, SIOCSPGRP.
    0x8901,
    0x8902,
];

const PRCTL: &[u64] = &[
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    libc::PR_GET_DUMPABLE as u64,
    libc::PR_GET_NO_NEW_PRIVS as u64,
    // For the second and third filter; it is set already.
    libc::PR_SET_NO_NEW_PRIVS as u64,
    // Names of pieces of memory, which newer libraries give.
    libc::PR_SET_VMA as u64,
    // How wide vectors are.
    #[cfg(target_arch = "aarch64")]
    PR_SVE_GET_VL,
];

#[cfg(target_arch = "aarch64")]
const PR_SVE_GET_VL: u64 = 51;

/// Which wide registers there are, and leave to use them (AMX): ARCH_GET_XCOMP_SUPP,
/// ARCH_GET_XCOMP_PERM, ARCH_REQ_XCOMP_PERM.
#[cfg(target_arch = "x86_64")]
const ARCH_PRCTL: &[u64] = &[0x1021, 0x1022, 0x1023];

/// Holds when the argument has one of the values.
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    values.iter().map(|value| all([is(argument, *value)])).collect()
}

/// Holds when the argument has none of the values.
fn none_of(argument: u8, values: &[u64]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(values.iter().map(|value| is_not(argument, *value)).collect::<Result<_, _>>()?)
}

type Condition = Result<SeccompCondition, BackendError>;

fn all<const N: usize>(conditions: [Condition; N]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
}

/// The kernel reads these arguments as 32 bits, so only those are compared.
fn is(argument: u8, value: u64) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn is_not(argument: u8, value: u64) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value)
}

fn masked(argument: u8, mask: u64, value: u64) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
}

fn is_null(argument: u8) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
}
