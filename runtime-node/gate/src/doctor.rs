//! `genie-node doctor`: what a node would have on this machine.

use std::process::ExitCode;

use genie_gate::{Groups, Zygote, ZygoteSettings};
use genie_sandbox::Sandbox;

/// Prints a line for each thing. A failure's line says what to do.
pub fn examine(zygote: ZygoteSettings) -> anyhow::Result<ExitCode> {
    println!("genie-node {}", env!("CARGO_PKG_VERSION"));
    println!("  its workers' program is {}", zygote.binary.display());
    let mut healthy = true;
    match Zygote::start(zygote) {
        Ok((_, loaded)) => {
            println!("ok      libtorch {}, {} operators", loaded.torch, loaded.ops);
            for device in &loaded.devices {
                println!("ok      device: {} ({})", device.kind, device.name);
            }
            if !loaded.no_cuda.is_empty() {
                println!("        no CUDA: {}", loaded.no_cuda);
            }
        }
        Err(error) => {
            healthy = false;
            println!("FAILED  {error:#}");
        }
    }
    match Sandbox::cpu().probe() {
        Ok(report) => {
            healthy &= report.seccomp;
            let mark = if report.seccomp { "ok     " } else { "FAILED " };
            println!("{mark} workers are closed in by: {report}");
        }
        Err(error) => {
            healthy = false;
            println!("FAILED  workers cannot be closed in: {error}");
        }
    }
    let groups = Groups::take();
    match groups.missing.join("; ") {
        none if none.is_empty() => println!("ok      workers are in control groups: memory, cpu"),
        why => println!("        workers are not in control groups: {why}"),
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
