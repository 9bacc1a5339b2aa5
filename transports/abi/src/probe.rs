//! Tries a plugin in a process of its own.
//!
//! The child is the same program, started with a hidden subcommand that calls [`probe_child_main`].
//! It says on its standard output, one JSON value a line, which step comes next and at last what it
//! found. Whatever the plugin prints goes to standard error, of which the end is kept.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::load::{self, Settings};
use crate::transport::{Facts, Options, Transport};
use crate::vet::Refusal;

/// Bytes of a child's standard output that are read.
const SAID_BYTES_MAX: usize = 64 << 10;
/// Bytes of what a plugin printed that are told in a refusal.
const PRINTED_BYTES_MAX: usize = 400;
/// Bytes of options that a child reads.
const OPTIONS_BYTES_MAX: u64 = 1 << 20;

/// The program that loads a plugin on trial: `PROGRAM ARGS... PATH`.
#[derive(Debug, Clone)]
pub struct ProbeCommand {
    pub program: PathBuf,
    pub args: Vec<OsString>,
}

impl ProbeCommand {
    /// This program itself, with the hidden subcommand `args`.
    pub fn this_program(args: &[&str]) -> std::io::Result<Self> {
        let args = args.iter().map(OsString::from).collect();
        Ok(ProbeCommand { program: std::env::current_exe()?, args })
    }
}

/// What a plugin said of itself in the child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Probed {
    pub facts: Facts,
    pub probe: Result<String, String>,
}

/// A line of the child's standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Line {
    Step(String),
    Refused(String),
    Found(Probed),
}

/// The child: loads the plugin at `path`, probes it with the options on standard input, and says
/// what it found. Call it first thing in the program, before any thread starts.
pub fn probe_child_main(path: &Path) -> ExitCode {
    match probe_child(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot probe {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn probe_child(path: &Path) -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, Signal};
    // The child ends with its parent, and a crash leaves no core file behind.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none)?;
    // What the plugin prints must not mix with what we say.
    let mut out = std::fs::File::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?);
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    let mut options = Vec::new();
    std::io::stdin().take(OPTIONS_BYTES_MAX).read_to_end(&mut options)?;
    let options: Options = serde_json::from_slice(&options)?;
    let mut say = |line: Line| -> std::io::Result<()> {
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        out.write_all(&text)
    };
    let plugin = load::open_with(path, |step| {
        // A parent that is gone does not need to be told.
        let _ = say(Line::Step(step.to_owned()));
    });
    let plugin = match plugin {
        Ok(plugin) => plugin,
        Err(refusal) => return say(Line::Refused(refusal.to_string())),
    };
    say(Line::Step("its probe".into()))?;
    let probe = plugin.probe(&options).map_err(|error| one_line(&error.message));
    let probe = probe.map(|line| one_line(&line));
    say(Line::Found(Probed { facts: plugin.facts(), probe }))?;
    // Without running the plugin's destructors: they are not what is probed.
    std::process::exit(0)
}

/// Runs the child for one plugin.
pub(crate) fn in_child(real: &Path, settings: &Settings) -> Result<Probed, Refusal> {
    let failed = |stage: &str, what: String| Refusal::Failed {
        path: real.to_owned(),
        stage: stage.to_owned(),
        what,
    };
    let deadline = Instant::now() + settings.deadline;
    let child = Command::new(&settings.probe.program)
        .args(&settings.probe.args)
        .arg(real)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match child {
        Ok(child) => Guard(child),
        Err(error) => {
            let program = settings.probe.program.display();
            return Err(failed("starting", format!("could not be tried by {program} ({error})")));
        }
    };
    if let Some(mut stdin) = child.0.stdin.take() {
        let options = serde_json::to_vec(&settings.options).expect("options are plain values");
        // A child that ended early is noticed below.
        let _ = stdin.write_all(&options);
    }
    let heard = match child.listen(deadline) {
        Ok(heard) => heard,
        Err(error) => return Err(failed("starting", format!("could not be watched ({error})"))),
    };
    let mut stage = "starting".to_owned();
    for line in heard.said.split(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Line::Step(step)) => stage = step,
            Ok(Line::Refused(why)) => return Err(Refusal::Child { why }),
            Ok(Line::Found(found)) => return Ok(found),
            Err(_) => {}
        }
    }
    let printed = end_of(&heard.printed);
    Err(match heard.ended {
        None => failed(&stage, format!("did not end within {:?}{printed}", settings.deadline)),
        Some(status) => failed(&stage, format!("{}{printed}", describe(status))),
    })
}

/// A child that is ended, with what it started, whatever happens.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        use rustix::process::{Pid, Signal, kill_process, kill_process_group};
        let pid = Pid::from_child(&self.0);
        // Not waited for yet, or its group would not be ours to kill. Both fail when all are gone.
        let _ = kill_process_group(pid, Signal::KILL);
        let _ = kill_process(pid, Signal::KILL);
        let _ = self.0.wait();
    }
}

/// What a child said and printed, and how it ended if it did.
struct Heard {
    said: Vec<u8>,
    printed: Vec<u8>,
    ended: Option<ExitStatus>,
}

impl Guard {
    /// Listens until the child ends or the deadline. What it started may live on and hold the
    /// pipes: its own end counts.
    fn listen(&mut self, deadline: Instant) -> std::io::Result<Heard> {
        use rustix::event::{PollFd, PollFlags, poll};
        use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
        let pid = Pid::from_child(&self.0);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let mut out = Pipe::new(self.0.stdout.take().expect("piped").into())?;
        let mut err = Pipe::new(self.0.stderr.take().expect("piped").into())?;
        let mut ended = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
            for pipe in [&out, &err] {
                fds.extend(pipe.fd.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            }
            let timeout = rustix::event::Timespec::try_from(left).expect("seconds are few");
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            ended = ended || !fds[0].revents().is_empty();
            out.read()?;
            err.read()?;
            if ended || left.is_zero() {
                break;
            }
        }
        // Left for `drop` to reap, so that its process group stays its own until then.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = if ended { waitid(WaitId::Pid(pid), options)? } else { None };
        let ended = status.map(|status| match status.terminating_signal() {
            Some(signal) => ExitStatus::from_raw(signal),
            None => ExitStatus::from_raw(status.exit_status().unwrap_or(1) << 8),
        });
        Ok(Heard { said: out.bytes, printed: err.bytes, ended })
    }
}

/// The reading end of a pipe and what came out of it, up to [`SAID_BYTES_MAX`].
struct Pipe {
    fd: Option<OwnedFd>,
    bytes: Vec<u8>,
}

impl Pipe {
    fn new(fd: OwnedFd) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Pipe { fd: Some(fd), bytes: Vec::new() })
    }

    /// Reads what is there. A pipe that ended, or said too much, is closed.
    fn read(&mut self) -> std::io::Result<()> {
        let mut buffer = [0; 4096];
        while let Some(fd) = &self.fd {
            match rustix::io::read(fd, &mut buffer) {
                Ok(0) => self.fd = None,
                Ok(bytes) => {
                    self.bytes.extend_from_slice(&buffer[..bytes]);
                    if self.bytes.len() > SAID_BYTES_MAX {
                        self.fd = None;
                    }
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(4), _) => "crashed (SIGILL)".into(),
        (Some(6), _) => "aborted (SIGABRT)".into(),
        (Some(7), _) => "crashed (SIGBUS)".into(),
        (Some(8), _) => "crashed (SIGFPE)".into(),
        (Some(11), _) => "crashed (SIGSEGV)".into(),
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, code) => format!("ended the process with status {}", code.unwrap_or_default()),
    }
}

/// The end of what a plugin printed, for a refusal.
fn end_of(printed: &[u8]) -> String {
    let text = String::from_utf8_lossy(printed);
    let text = one_line(text.trim());
    let skip = text.chars().count().saturating_sub(PRINTED_BYTES_MAX);
    match text.is_empty() {
        true => String::new(),
        false => format!(", printing {:?},", text.chars().skip(skip).collect::<String>()),
    }
}

/// Text of a plugin as one line without control characters, for terminals and logs.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
