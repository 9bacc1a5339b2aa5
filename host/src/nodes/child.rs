//! The node process: started when first needed, watched, and started anew when it died.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use genie_shm::UnixLink;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::address::Address;
use crate::{locate, signals};

/// How long a node may take from its start to its `ready` line.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a node may take to end after it was asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long to wait for the exit status of a node whose link closed.
const STATUS_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a failed start is told to further sessions before the next try, so that sessions that
/// queued up do not wait for one timeout each.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Lines of a node's stderr that are kept for messages.
const STDERR_LINES_MAX: usize = 20;
/// Bytes of one such line.
const STDERR_LINE_BYTES_MAX: u64 = 4 << 10;

/// How to start a node.
#[derive(Debug, Clone, Default)]
pub struct NodeSettings {
    pub binary: Option<PathBuf>,
    /// Threads for every session, instead of as many as its client uses.
    pub threads: Option<u32>,
    pub device: Option<String>,
    pub memory_bytes: Option<u64>,
    /// Weights that it keeps while no tensor uses them.
    pub weight_cache_bytes: Option<u64>,
    /// Connections it serves at a time.
    pub sessions_max: Option<usize>,
    /// How long it lets its sessions finish when somebody else than its host asks it to stop.
    pub drain: Duration,
    /// The directory of libtorch, put before `library_path`.
    pub torch_lib: Option<OsString>,
    pub library_path: Option<OsString>,
    /// Where programs are looked for.
    pub path: OsString,
}

/// Keeps one node process.
pub struct NodeSupervisor {
    settings: NodeSettings,
    /// Sockets of nodes go here.
    dir: PathBuf,
    current: Mutex<Current>,
    /// The running node, for those who must not wait while one is being started.
    shown: Mutex<Option<Arc<ChildNode>>>,
    /// The process that is being started, so that a host that stops does not leave it behind.
    starting: Mutex<Starting>,
}

#[derive(Default)]
struct Starting {
    process: Option<OwnedFd>,
    /// None is started any more.
    stopped: bool,
}

#[derive(Default)]
struct Current {
    node: Option<Arc<ChildNode>>,
    starts: u64,
    /// When and why the last start failed.
    failed: Option<(Instant, String)>,
}

/// A node process that said it was ready.
pub struct ChildNode {
    pid: u32,
    start: u64,
    pidfd: OwnedFd,
    child: Mutex<Child>,
    stderr: Arc<StderrTail>,
    address: Address,
}

/// What the status says about the node.
pub struct NodeFacts {
    /// 0 when none runs.
    pub pid: u32,
    pub starts: u64,
}

impl NodeSupervisor {
    pub fn new(settings: NodeSettings, dir: PathBuf) -> Self {
        NodeSupervisor {
            settings,
            dir,
            current: Mutex::new(Current::default()),
            shown: Mutex::new(None),
            starting: Mutex::new(Starting::default()),
        }
    }

    pub fn threads(&self) -> Option<u32> {
        self.settings.threads
    }

    /// The node's program, or where was looked for it.
    pub fn locate(&self) -> Result<PathBuf, String> {
        let own = std::env::current_exe().ok();
        locate::node_binary(self.settings.binary.as_deref(), own.as_deref(), &self.settings.path)
    }

    /// A connection to the node, which is started if none runs. The error is for the user.
    pub fn connect(&self) -> Result<(UnixLink, Arc<ChildNode>), String> {
        let mut current = lock(&self.current);
        if let Some(node) = &current.node {
            // A node that lives is not replaced, whatever keeps this host from reaching it now
            // (it may be out of descriptors): others use it.
            if node.is_running() {
                return node.connect().map(|link| (link, node.clone()));
            }
            tracing::warn!("the node (process {}) is gone: {}", node.pid, node.end());
            node.stop();
        }
        current.node = None;
        *lock(&self.shown) = None;
        let start = current.starts + 1;
        if let Some((when, message)) = &current.failed
            && when.elapsed() < RETRY_AFTER
        {
            return Err(message.clone());
        }
        let node = match self.start(start) {
            Ok(node) => Arc::new(node),
            Err(message) => {
                current.failed = Some((Instant::now(), message.clone()));
                return Err(message);
            }
        };
        current.failed = None;
        current.starts = start;
        let link = node.connect()?;
        current.node = Some(node.clone());
        *lock(&self.shown) = Some(node.clone());
        Ok((link, node))
    }

    fn start(&self, start: u64) -> Result<ChildNode, String> {
        let binary = self.locate()?;
        let address = Address::unix(self.dir.join(format!("node-{start}.sock")));
        let mut command = self.command(&binary, &address);
        let mut child = self.spawn(&mut command).map_err(|error| {
            format!(
                "cannot start the node ({}): {error}; try `genie-host doctor`",
                binary.display()
            )
        })?;
        tracing::debug!("started the node as process {}", child.id());
        let stderr = Arc::new(StderrTail::default());
        let (stdout, errors) = (child.stdout.take(), child.stderr.take());
        let ready = watch_output(stdout, errors, &stderr);
        let fail = |mut child: Child, what: &str| {
            let _ = child.kill();
            let status = child.wait().map(describe).unwrap_or_default();
            stderr.wait_for_end(STATUS_TIMEOUT);
            Err(format!(
                "the node ({}) {what} ({status}){}; try `genie-host doctor`",
                binary.display(),
                stderr.describe()
            ))
        };
        match ready.recv_timeout(READY_TIMEOUT) {
            Ok(line) if line.starts_with("ready") => {}
            Ok(line) => return fail(child, &format!("said {line:?} instead of `ready`")),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return fail(child, "ended before it was ready");
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let what = format!("was not ready after {} s", READY_TIMEOUT.as_secs());
                return fail(child, &what);
            }
        }
        let pid = child.id();
        let pidfd = match open_pidfd(pid) {
            Ok(pidfd) => pidfd,
            Err(error) => return fail(child, &format!("cannot be watched: {error}")),
        };
        Ok(ChildNode { pid, start, pidfd, child: Mutex::new(child), stderr, address })
    }

    /// Spawns the process where [`NodeSupervisor::stop`] finds it.
    fn spawn(&self, command: &mut Command) -> std::io::Result<Child> {
        let mut starting = lock(&self.starting);
        if starting.stopped {
            return Err(std::io::Error::other("the host is stopping"));
        }
        let child = command.spawn()?;
        starting.process = open_pidfd(child.id()).ok();
        Ok(child)
    }

    fn command(&self, binary: &Path, address: &Address) -> Command {
        let mut command = Command::new(binary);
        command.arg("--listen").arg(address.to_string());
        command.arg("--parent-pid").arg(std::process::id().to_string());
        if let Some(device) = &self.settings.device {
            command.arg("--device").arg(device);
        }
        if let Some(bytes) = self.settings.memory_bytes {
            command.arg("--memory-bytes").arg(bytes.to_string());
        }
        if let Some(bytes) = self.settings.weight_cache_bytes {
            command.arg("--weight-cache-bytes").arg(bytes.to_string());
        }
        command.arg("--drain-s").arg(self.settings.drain.as_secs().to_string());
        if let Some(sessions) = self.settings.sessions_max {
            command.arg("--max-sessions").arg(sessions.to_string());
        }
        if let Some(torch_lib) = &self.settings.torch_lib {
            let mut path = torch_lib.clone();
            if let Some(before) = &self.settings.library_path {
                path.push(":");
                path.push(before);
            }
            command.env("LD_LIBRARY_PATH", path);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: Ctrl-C in the terminal reaches the program first.
        command.process_group(0);
        // SAFETY: the closure only calls a function that is safe between fork and exec.
        unsafe { command.pre_exec(signals::unblock_in_child) };
        command
    }

    pub fn facts(&self) -> NodeFacts {
        let node = lock(&self.shown).clone().filter(|node| node.is_running());
        let (pid, starts) = node.map_or((0, 0), |node| (node.pid, node.start));
        NodeFacts { pid, starts }
    }

    /// Ends the node, also one that is being started; none is started any more.
    pub fn stop(&self) {
        let starting = {
            let mut starting = lock(&self.starting);
            starting.stopped = true;
            starting.process.take()
        };
        // Taken out first: the starter locks `shown` while it holds `current`.
        let shown = lock(&self.shown).take();
        match shown {
            Some(node) => node.stop(),
            None => {
                if let Some(process) = starting {
                    let _ = pidfd_send_signal(&process, Signal::KILL);
                    // Whoever starts it sees that it ended, and reaps it before unlocking.
                    drop(lock(&self.current));
                }
            }
        }
    }
}

impl ChildNode {
    pub fn pid(&self) -> u32 {
        self.pid
    }

    fn connect(&self) -> Result<UnixLink, String> {
        if !self.is_running() {
            return Err(format!("the node (process {}) has ended", self.pid));
        }
        genie_shm::connect(self.address.path())
            .map_err(|error| format!("cannot reach the node (process {}): {error}", self.pid))
    }

    fn is_running(&self) -> bool {
        matches!(lock(&self.child).try_wait(), Ok(None))
    }

    /// How the process ended, as far as is known a moment after its link closed.
    pub fn end(&self) -> String {
        wait_for(&self.pidfd, STATUS_TIMEOUT);
        let status = lock(&self.child).try_wait();
        match status {
            Ok(Some(status)) => {
                format!("process {} {}{}", self.pid, describe(status), self.stderr.describe())
            }
            _ => format!("process {} closed the connection", self.pid),
        }
    }

    /// By descriptor, so that a process that took over the id is never hit.
    fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    fn stop(&self) {
        if self.is_running() {
            // At once: its sessions have ended, or are cut with their host's.
            self.signal(Signal::INT);
            if !wait_for(&self.pidfd, STOP_TIMEOUT) {
                // Nothing is lost by that, and on a busy machine it is no fault: not for users' eyes.
                tracing::info!("the node (process {}) does not end; killing it", self.pid);
                self.signal(Signal::KILL);
            }
        }
        // It is dead or killed, so this does not wait for long; without it a zombie stays.
        let _ = lock(&self.child).wait();
        // A node that was killed could not remove its socket.
        let _ = std::fs::remove_file(self.address.path());
    }
}

/// A descriptor that becomes readable when the process ends.
pub fn open_pidfd(pid: u32) -> std::io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid as i32).ok_or(std::io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Whether the process behind `pidfd` ended within `timeout`.
fn wait_for(pidfd: &OwnedFd, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("the timeouts are small");
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left)) {
            Ok(count) => return count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(libc::SIGKILL)) => "was killed by signal 9 (out of memory?)".to_owned(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// The last lines of a node's stderr.
#[derive(Default)]
struct StderrTail {
    lines: Mutex<VecDeque<String>>,
    ended: Mutex<Option<mpsc::Receiver<()>>>,
}

impl StderrTail {
    fn push(&self, line: String) {
        let mut lines = lock(&self.lines);
        if lines.len() == STDERR_LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    fn describe(&self) -> String {
        let lines = lock(&self.lines);
        if lines.is_empty() {
            return String::new();
        }
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        format!("; its last words were:\n  {}", lines.join("\n  "))
    }

    fn wait_for_end(&self, timeout: Duration) {
        if let Some(ended) = lock(&self.ended).take() {
            let _ = ended.recv_timeout(timeout);
        }
    }
}

/// Follows a node's output; returns where its first line on stdout arrives.
fn watch_output(
    stdout: Option<impl Read + Send + 'static>,
    stderr: Option<impl Read + Send + 'static>,
    tail: &Arc<StderrTail>,
) -> mpsc::Receiver<String> {
    let (ready, first_line) = mpsc::sync_channel(1);
    let (ended, end) = mpsc::sync_channel(1);
    *lock(&tail.ended) = Some(end);
    if let Some(stdout) = stdout {
        std::thread::spawn(move || {
            let mut ready = Some(ready);
            for_each_line(stdout, |line| match ready.take() {
                Some(ready) => drop(ready.send(line)),
                None => tracing::debug!("the node says: {line}"),
            });
        });
    }
    if let Some(stderr) = stderr {
        let tail = tail.clone();
        std::thread::spawn(move || {
            for_each_line(stderr, |line| {
                // The node's own log, passed on as it is; a closed stderr is no reason to stop.
                let _ = writeln!(std::io::stderr(), "{line}");
                tail.push(line);
            });
            let _ = ended.send(());
        });
    }
    first_line
}

fn for_each_line(from: impl Read, mut visit: impl FnMut(String)) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut from).take(STDERR_LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => visit(String::from_utf8_lossy(&line).trim_end().to_owned()),
        }
    }
}

/// What the locks protect stays consistent between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
