//! The zygote: libtorch loaded, nothing open, one thread; forks a worker when the gate asks for one.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use genie_aten::execute::{self, Device};
use genie_channel::message::{Ended, Fork, Forked, Loaded, Unusable};
use genie_channel::{Channel, ChannelError, Ends, Message};
use genie_wire::control;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, waitid,
};

use crate::select::{Selected, Wanted, select};
use crate::{call_oneself, cuda, work};

/// What workers inherit.
pub struct Inheritance {
    pub torch: String,
    pub devices: Vec<Device>,
    pub without: Vec<String>,
    /// Schema hashes of the CPU's operators.
    pub cpu_ops: Arc<[u64]>,
}

struct Child {
    worker: u64,
    pidfd: OwnedFd,
}

/// Serves the gate until it is gone; the kernel ends the workers with this process.
pub fn run(
    gate: OwnedFd,
    wanted: Wanted,
    cpu_devices: u32,
    without: Vec<String>,
) -> anyhow::Result<()> {
    call_oneself("genie-zygote");
    match serve(Channel::over(gate), || load(wanted, cpu_devices, without)) {
        Err(error) if matches!(error.downcast_ref(), Some(ChannelError::Closed)) => Ok(()),
        ended => ended,
    }
}

fn serve(
    mut gate: Channel,
    load: impl FnOnce() -> anyhow::Result<(Inheritance, Loaded)>,
) -> anyhow::Result<()> {
    let (inheritance, loaded) = match load() {
        Ok(both) => both,
        Err(error) => {
            let reason = format!("{error:#}");
            gate.post(Message::Unusable(Unusable { reason }), vec![])?;
            return Ok(());
        }
    };
    gate.post(Message::Loaded(loaded), vec![])?;
    let mut children: Vec<Child> = Vec::new();
    loop {
        let mut fds = vec![PollFd::from_borrowed_fd(gate.event_fd(), PollFlags::IN)];
        fds.extend(children.iter().map(|child| PollFd::new(&child.pidfd, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("wait for the gate"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ended = ready[1..].iter();
        let (dead, living): (Vec<Child>, Vec<Child>) =
            children.into_iter().partition(|_| *ended.next().expect("one each"));
        children = living;
        for child in dead {
            gate.post(Message::Ended(bury(&child)), vec![])?;
        }
        loop {
            match gate.poll() {
                Ok(Some((Message::Fork(asked), fds))) => {
                    let worker = asked.worker;
                    match fork(&inheritance, asked, fds) {
                        // The child: only its own is left open.
                        Ok(Forking::Worker(begin)) => {
                            drop((gate, children));
                            work::run(inheritance, *begin);
                        }
                        Ok(Forking::Zygote(child, pid)) => {
                            children.push(child);
                            let forked = Forked { worker, pid, failed: String::new() };
                            gate.post(Message::Forked(forked), vec![])?;
                        }
                        Err(error) => {
                            let failed = format!("{error:#}");
                            gate.post(Message::Forked(Forked { worker, pid: 0, failed }), vec![])?;
                        }
                    }
                }
                Ok(Some((Message::Kill(kill), _))) => {
                    for child in children.iter().filter(|child| child.worker == kill.worker) {
                        // It may have ended by itself.
                        let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
                    }
                }
                Ok(Some(_)) => bail!("the gate sent a message for another"),
                Ok(None) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn load(
    wanted: Wanted,
    cpu_devices: u32,
    without: Vec<String>,
) -> anyhow::Result<(Inheritance, Loaded)> {
    // The driver is not touched here: what it opens does not survive a fork.
    let found = std::cell::RefCell::new(None);
    let selected = select(wanted, || {
        let probed = cuda::probe(&without)?;
        let count = probed.devices.len() as u8;
        *found.borrow_mut() = Some(probed);
        Ok(count)
    })?;
    execute::init().map_err(|error| anyhow!("libtorch cannot be used: {error}"))?;
    execute::tell_warnings(|warning| tracing::debug!("PyTorch warns: {warning}"));
    let cpu_ops: Arc<[u64]> = Device::CPU.ops(&without).into();
    let torch = execute::torch_version();
    let (devices, mut loaded) = match selected {
        Selected::Cuda { count } => {
            let loaded = found.into_inner().expect("it was asked for their number");
            ((0..count).map(Device::cuda).collect(), loaded)
        }
        Selected::Cpu { reason } => {
            let device = control::Device {
                kind: "cpu".to_owned(),
                name: Device::CPU.name(),
                memory_bytes: 0,
            };
            let no_cuda = reason.unwrap_or_default();
            let ops = cpu_ops.len() as u64;
            let devices = vec![device; cpu_devices as usize];
            let loaded = Loaded { devices, no_cuda, ops, ..Loaded::default() };
            (vec![Device::CPU; cpu_devices as usize], loaded)
        }
    };
    loaded.torch = torch.clone();
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        bail!("libtorch started {threads} threads when it was loaded: a fork would lack them");
    }
    Ok((Inheritance { torch, devices, without, cpu_ops }, loaded))
}

enum Forking {
    Zygote(Child, u32),
    Worker(Box<work::Begin>),
}

fn fork(inheritance: &Inheritance, fork: Fork, fds: Vec<OwnedFd>) -> anyhow::Result<Forking> {
    let ends = Ends::from_fds(fds).context("other descriptors than a worker has came")?;
    let device =
        inheritance.devices.get(fork.device as usize).context("there is no such device")?;
    let (worker, device, zygote) = (fork.worker, *device, getpid());
    // SAFETY: this process has one thread (`load` looked, and starts none), so the child may do
    // whatever it could.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()).context("fork a worker"),
        0 => {
            end_with(zygote);
            call_oneself("genie-worker");
            Ok(Forking::Worker(Box::new(work::Begin { fork, device, ends })))
        }
        pid => {
            let raw = Pid::from_raw(pid).context("fork gave no process")?;
            let pidfd = pidfd_open(raw, PidfdFlags::empty()).context("watch a worker")?;
            Ok(Forking::Zygote(Child { worker, pidfd }, pid as u32))
        }
    }
}

/// In a fork: end when the zygote does.
fn end_with(zygote: Pid) {
    // A session of its own: where the kernel groups by sessions (autogroup), workers get the same part
    // of the processor each, whatever their threads.
    let _ = rustix::process::setsid();
    let set = set_parent_process_death_signal(Some(Signal::KILL));
    if set.is_err() || getppid() != Some(zygote) {
        // It ended before it could be watched.
        // SAFETY: no destructor has to run: nothing was made in this process.
        unsafe { libc::_exit(1) };
    }
}

fn bury(child: &Child) -> Ended {
    let id = WaitId::PidFd(child.pidfd.as_fd());
    let status = waitid(id, WaitIdOptions::EXITED).ok().flatten();
    Ended {
        worker: child.worker,
        signal: status.as_ref().and_then(|s| s.terminating_signal()).unwrap_or(0) as u32,
        status: status.as_ref().and_then(|s| s.exit_status()).unwrap_or(0) as u32,
    }
}
