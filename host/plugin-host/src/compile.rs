//! Compiles a component in a child process with limits: compiling is the one thing that the
//! sandbox does not bound.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{PidfdFlags, Resource, Rlimit, Signal, setrlimit};

use crate::engine::precompile;
use crate::limits::{ARTIFACT_BYTES_MAX, Limits, MESSAGE_BYTES_MAX};
use crate::text::clean;

/// The child's input begins with its limits: seconds, bytes of memory, bytes of the guest's
/// stack, each eight bytes.
const HEADER_BYTES: usize = 24;
/// The largest input the child takes.
const INPUT_BYTES_MAX: u64 = 1 << 30;

/// Who compiles.
#[derive(Debug, Clone)]
pub enum Compiler {
    /// A program that calls [`compile_child_main`], with its arguments.
    Child(Vec<OsString>),
    /// This process, without limits: for trusted components only.
    InProcess,
}

/// The main function of the child that compiles one component: from standard input to standard
/// output. It limits itself before it looks at the component.
pub fn compile_child_main() -> ExitCode {
    match compile_child() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = std::io::stderr().write_all(message.as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn compile_child() -> Result<(), String> {
    let io = |error: std::io::Error| format!("cannot compile: {error}");
    let mut input = std::io::stdin().lock();
    let mut header = [0; HEADER_BYTES];
    input.read_exact(&mut header).map_err(io)?;
    let number = |at: usize| {
        u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes of the header"))
    };
    limit_self(number(0), number(8))?;
    let mut component = Vec::new();
    input.take(INPUT_BYTES_MAX).read_to_end(&mut component).map_err(io)?;
    let artifact = precompile(&component, number(16) as usize, Duration::from_secs(number(0)))
        .map_err(|e| format!("{e:#}"))?;
    std::io::stdout().lock().write_all(&artifact).map_err(io)
}

fn limit_self(cpu_s: u64, memory_bytes: u64) -> Result<(), String> {
    let set = |resource, value: u64| {
        let limit = Rlimit { current: Some(value), maximum: Some(value) };
        setrlimit(resource, limit).map_err(|errno| format!("cannot limit the compiler: {errno}"))
    };
    set(Resource::Cpu, cpu_s)?;
    set(Resource::As, memory_bytes)?;
    set(Resource::Core, 0)?;
    set(Resource::Fsize, ARTIFACT_BYTES_MAX)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| format!("cannot tie the compiler to its parent: {errno}"))
}

/// The compiled component, or why it is refused.
pub(crate) fn compile(
    compiler: &Compiler,
    component: &[u8],
    limits: &Limits,
) -> Result<Vec<u8>, String> {
    match compiler {
        Compiler::InProcess => precompile(component, limits.stack_bytes, limits.compile())
            .map_err(|error| not_a_component(&format!("{error:#}"))),
        Compiler::Child(command) => compile_in_child(command, component, limits),
    }
}

fn compile_in_child(
    command: &[OsString],
    component: &[u8],
    limits: &Limits,
) -> Result<Vec<u8>, String> {
    let end = Instant::now() + limits.compile();
    let io = |error: std::io::Error| format!("cannot start the compiler: {error}");
    let (program, args) = command.split_first().ok_or("no compiler is set")?;
    let mut input = memory_file("component").map_err(io)?;
    // The wall's limit comes first; the child's own serves where this process cannot.
    for number in
        [limits.compile().as_secs() + 1, limits.compile_memory_bytes, limits.stack_bytes as u64]
    {
        input.write_all(&number.to_le_bytes()).map_err(io)?;
    }
    input.write_all(component).map_err(io)?;
    input.seek(SeekFrom::Start(0)).map_err(io)?;
    let (output, errors) =
        (memory_file("artifact").map_err(io)?, memory_file("errors").map_err(io)?);
    let child = Command::new(program)
        .args(args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output.try_clone().map_err(io)?))
        .stderr(Stdio::from(errors.try_clone().map_err(io)?))
        .spawn()
        .map_err(io)?;
    match wait(child, end).map_err(io)? {
        None => Err(format!(
            "compiling it took longer than {} s; simplify it or raise the limit for loading",
            limits.compile().as_secs_f32()
        )),
        Some(status) if status.success() => {
            content(output, ARTIFACT_BYTES_MAX).map_err(|error| error.to_string())
        }
        Some(status) => {
            let said = content(errors, 16 << 10).unwrap_or_default();
            let said = clean(&String::from_utf8_lossy(&said), MESSAGE_BYTES_MAX);
            Err(match status.code() {
                Some(1) => not_a_component(&said),
                // A failed allocation aborts, an endless compilation is killed.
                _ => format!(
                    "compiling it takes more than {} MiB or {} s ({status}); simplify it",
                    limits.compile_memory_bytes >> 20,
                    limits.compile().as_secs_f32()
                ),
            })
        }
    }
}

fn not_a_component(said: &str) -> String {
    format!(
        "it is no WASM component that can be used: {}; build it as the tutorial says",
        clean(said, MESSAGE_BYTES_MAX)
    )
}

fn memory_file(name: &str) -> std::io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?))
}

fn content(mut file: File, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(file.metadata()?.len().min(bytes_max) as usize);
    file.seek(SeekFrom::Start(0))?;
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Waits for the child until `end`; then ends it.
fn wait(mut child: Child, end: Instant) -> std::io::Result<Option<ExitStatus>> {
    let pid = rustix::process::Pid::from_child(&child);
    let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty());
    let result = ended.map_err(std::io::Error::from).and_then(|ended| {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&ended, PollFlags::IN)];
            match poll(&mut fds, Some(&timespec(left))) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(errno.into()),
            }
        }
    });
    match result {
        Ok(true) => child.wait().map(Some),
        Ok(false) => child.kill().and_then(|()| child.wait()).map(|_| None),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}
