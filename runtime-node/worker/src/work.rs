//! A worker, from its fork to its end.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, anyhow};
use genie_aten::execute::{Device, scrub_memory};
use genie_channel::message::{Confined, Fork};
use genie_channel::{Borrower, Channel, ChannelError, Ends, Message, Progress, Shelf};
use genie_executor::serve::{NodeFacts, ServeError, Server, ServerParts};
use genie_executor::{Executor, ExecutorLimits, memory};
use genie_sandbox::Sandbox;
use genie_worker::aten::Aten;

use crate::zygote::Inheritance;
use crate::{SOFTWARE, cuda, lease};

/// What a worker begins with.
pub struct Begin {
    pub fork: Fork,
    pub device: Device,
    /// To the gate.
    pub ends: Ends,
}

/// Serves until the gate says stop, or is gone, and ends the process.
pub fn run(inheritance: Inheritance, begin: Begin) -> ! {
    let served = catch_unwind(AssertUnwindSafe(|| serve(inheritance, begin)));
    let status = match served {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            tracing::error!("a worker ends: {error:#}");
            1
        }
        Err(_) => 101,
    };
    // SAFETY: libtorch's threads and destructors are not waited for; what the process holds goes
    // back to the kernel.
    unsafe { libc::_exit(status) }
}

fn serve(inheritance: Inheritance, begin: Begin) -> anyhow::Result<()> {
    let Begin { fork, device, ends } = begin;
    memory::open();
    let ops = match device.is_cpu() {
        true => inheritance.cpu_ops.clone(),
        false => {
            cuda::devices().map_err(|reason| anyhow!("CUDA cannot be used: {reason}"))?;
            device.ops(&inheritance.without).into()
        }
    };
    let given = fork.limits.context("the gate gave no limits")?;
    // The whole worker is one client's; which of the two limits it is decides what an error advises.
    let device_bytes = fork.devices.get(fork.device as usize).map_or(0, |it| it.memory_bytes);
    let is_quota = given.memory_bytes < device_bytes;
    let limits = ExecutorLimits {
        budget_bytes: given.memory_bytes,
        client_bytes_max: if is_quota { given.memory_bytes } else { u64::MAX },
        unheld_bytes_max: given.unheld_bytes,
        threads_max: given.threads_max,
    };
    let facts = NodeFacts {
        software: SOFTWARE.to_owned(),
        torch: inheritance.torch,
        devices: fork.devices,
        threads: given.threads,
        pid: fork.node_pid,
    };
    let mut channel = Channel::over(ends.channel);
    let outside = join(&fork.groups);
    let mut confined = confine(device, given.sandbox, given.own_bytes)?;
    confined.missing.extend(outside);
    channel.post(Message::Confined(confined), vec![])?;
    let backend = Aten::new(device);
    if device.is_cpu() {
        lease::borrow(Borrower::adopt(ends.lease, ends.lender).context("the page of leases")?);
    }
    if given.scrub {
        scrub_memory();
    }
    let mut executor = Executor::with_limits(backend, limits);
    if given.shares {
        executor.share_weights(Shelf::over(ends.shelf));
    }
    let server = Server::new(ServerParts {
        executor,
        facts,
        ops,
        device: fork.device,
        channel,
        progress: Progress::adopt(ends.progress).context("the page of progress")?,
        bytes_per_s: given.bytes_per_s,
    })
    .context("wait for events")?;
    match server.run() {
        Ok(()) | Err(ServeError::Gate(ChannelError::Closed)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Joins its control groups; returns those that would not have it.
fn join(doors: &[String]) -> Vec<String> {
    let joined = |door: &String| match std::fs::write(door, "0") {
        Ok(()) => None,
        Err(error) => Some(format!("control group: {door}: {error}")),
    };
    doors.iter().filter_map(joined).collect()
}

/// Closes this process in, before it runs anything for its client. Returns what holds it.
fn confine(device: Device, wanted: bool, own_bytes: u64) -> anyhow::Result<Confined> {
    if !wanted {
        return Ok(Confined::default());
    }
    let sandbox = match device.is_cpu() {
        true => Sandbox { own_bytes: (own_bytes > 0).then_some(own_bytes), ..Sandbox::cpu() },
        false => Sandbox::cuda(vec![]),
    };
    let report = sandbox.enter().context("close the worker in")?;
    tracing::debug!("a worker is closed in: {report}");
    Ok(Confined { wanted, is_weak: !report.seccomp, missing: report.missing })
}
