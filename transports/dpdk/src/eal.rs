//! DPDK's environment (EAL), once in a process, on a thread of its own.
//!
//! `rte_eal_init` pins the thread that calls it and makes it DPDK's main core, so it gets the
//! thread `genie-dpdk`, and everything that touches DPDK happens there: others send jobs. Between
//! jobs the thread polls the devices.
//!
//! **It sleeps when idle.** After the last packet it polls on for `spin_us`, then sleeps in steps
//! that double up to `sleep_us_max`, never past the next timer. A job, or a device that interrupts,
//! wakes it at once. (It does not yield while it polls: measured on two busy cores, a thread that
//! yields waits its turn for milliseconds, one that slept is let in at once.)

use std::ffi::{CStr, CString, c_char};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use dpdk_sys as sys;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::time::{ClockId, clock_gettime};

use crate::endpoint::Endpoints;
use crate::error::{DpdkError, Result, last_reason};
use crate::settings::EalSettings;

/// Jobs that may wait for the thread.
pub const JOBS_MAX: usize = 1024;
/// The first sleep.
const SLEEP_FIRST: Duration = Duration::from_micros(10);
/// A timer this near is waited for awake.
const NEAR: Duration = Duration::from_micros(15);
/// The longest sleep with interrupts, as a guard against one that is lost.
const SLEEP_INTERRUPTIBLE: Duration = Duration::from_millis(50);

/// What the thread does for others.
type Job = Box<dyn FnOnce(&mut Endpoints) + Send>;

static EAL: OnceLock<Result<Eal>> = OnceLock::new();

/// The running EAL.
pub struct Eal {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
    settings: EalSettings,
    arguments: String,
}

struct Shared {
    wake: OwnedFd,
    asleep: AtomicBool,
    turns: AtomicU64,
    sleeps: AtomicU64,
    interrupts: AtomicU64,
    cpu_us: AtomicU64,
    slept_us: AtomicU64,
}

/// What the thread cost so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Processor time of the thread.
    pub cpu: Duration,
    /// Time it slept.
    pub slept: Duration,
    /// Rounds of polling, and sleeps between them.
    pub turns: u64,
    pub sleeps: u64,
    /// Sleeps that a device ended.
    pub interrupts: u64,
}

impl Eal {
    /// The process's EAL, started now if need be. A failure is final: DPDK starts once.
    pub fn start(settings: &EalSettings) -> Result<&'static Eal> {
        static STARTING: Mutex<()> = Mutex::new(());
        let _one = STARTING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let eal = EAL.get_or_init(|| Eal::launch(settings)).as_ref().map_err(Clone::clone)?;
        if eal.settings == *settings {
            return Ok(eal);
        }
        Err(DpdkError::Running {
            running: eal.arguments.clone(),
            asked: arguments(settings).join(" "),
        })
    }

    /// The process's EAL, if it was started.
    pub fn running() -> Option<&'static Eal> {
        EAL.get()?.as_ref().ok()
    }

    fn launch(settings: &EalSettings) -> Result<Eal> {
        check_version()?;
        let arguments = arguments(settings);
        let (jobs, taken) = sync_channel::<Job>(JOBS_MAX);
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| {
            DpdkError::Os { what: "make an event descriptor", reason: error.to_string() }
        })?;
        let shared = Arc::new(Shared {
            wake,
            asleep: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            cpu_us: AtomicU64::new(0),
            slept_us: AtomicU64::new(0),
        });
        let (started, outcome) = sync_channel(1);
        let thread = {
            let (shared, settings) = (shared.clone(), settings.clone());
            let arguments = arguments.clone();
            move || {
                let result = init(&arguments);
                let running = result.is_ok();
                let _ = started.send(result);
                if running {
                    Thread { shared: &shared, settings: &settings, jobs: taken }.run();
                }
            }
        };
        std::thread::Builder::new().name("genie-dpdk".to_owned()).spawn(thread).map_err(
            |error| DpdkError::Os { what: "start DPDK's thread", reason: error.to_string() },
        )?;
        outcome.recv().map_err(|_| DpdkError::Ended)??;
        let settings = settings.clone();
        Ok(Eal { jobs, shared, settings, arguments: arguments.join(" ") })
    }

    /// Runs a job on the thread and waits for its result. Not to be called from a job.
    pub fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Endpoints) -> R + Send + 'static,
    ) -> Result<R> {
        let (done, result) = sync_channel(1);
        let job: Job = Box::new(move |endpoints| {
            let _ = done.send(job(endpoints));
        });
        self.jobs.send(job).map_err(|_| DpdkError::Ended)?;
        self.shared.wake();
        result.recv().map_err(|_| DpdkError::Ended)
    }

    /// Gives a job to the thread without waiting; `false` when [`JOBS_MAX`] wait already.
    pub fn post(&self, job: impl FnOnce(&mut Endpoints) + Send + 'static) -> Result<bool> {
        match self.jobs.try_send(Box::new(job)) {
            Ok(()) => {
                self.shared.wake();
                Ok(true)
            }
            Err(TrySendError::Full(_)) => Ok(false),
            Err(TrySendError::Disconnected(_)) => Err(DpdkError::Ended),
        }
    }

    /// Has the thread look again, if it sleeps: somebody changed what it looks after.
    pub fn wake(&self) {
        self.shared.wake();
    }

    /// What the thread cost so far.
    pub fn cost(&self) -> Result<Cost> {
        let shared = self.shared.clone();
        self.run(move |_| {
            let cpu = clock_gettime(ClockId::ThreadCPUTime);
            let cpu = Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32);
            shared.cpu_us.store(cpu.as_micros() as u64, Ordering::Relaxed);
        })?;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(Cost {
            cpu: Duration::from_micros(of(&self.shared.cpu_us)),
            slept: Duration::from_micros(of(&self.shared.slept_us)),
            turns: of(&self.shared.turns),
            sleeps: of(&self.shared.sleeps),
            interrupts: of(&self.shared.interrupts),
        })
    }

    /// The arguments that EAL was started with.
    pub fn arguments(&self) -> &str {
        &self.arguments
    }
}

/// The version of the library found at run time.
pub fn version() -> String {
    // SAFETY: returns a constant string.
    let text = unsafe { CStr::from_ptr(sys::rte_version()) };
    text.to_string_lossy().into_owned()
}

/// Structures changed between DPDK's releases, so headers and library must be of the same one.
fn check_version() -> Result<()> {
    // SAFETY: returns a constant.
    let built = unsafe { sys::genie_header_version() };
    let built = format!("DPDK {}.{:02}", built >> 24, (built >> 16) & 0xff);
    let found = version();
    if found.starts_with(&format!("{built}.")) {
        Ok(())
    } else {
        Err(DpdkError::Version { found, built })
    }
}

fn arguments(settings: &EalSettings) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["genie-dpdk", "--no-telemetry", "--iova-mode=va"].map(str::to_owned).to_vec();
    let mut add = |text: String| arguments.push(text);
    if settings.hugepages {
        add("--in-memory".to_owned());
    } else {
        // (--in-memory with --no-huge is refused.)
        add("--no-huge".to_owned());
        add("--no-shconf".to_owned());
    }
    add("-m".to_owned());
    add(settings.memory_mb.to_string());
    match &settings.pci {
        Some(address) => {
            add("-a".to_owned());
            add(address.clone());
        }
        None => add("--no-pci".to_owned()),
    }
    let cores = settings.cores.clone().unwrap_or_else(allowed_cores);
    // One lcore that may run on any of these, instead of the pinning that is the default.
    add(format!("--lcores=0@({cores})"));
    if !settings.extra.iter().any(|given| given.starts_with("--log-level")) {
        add("--log-level=*:error".to_owned());
    }
    arguments.extend(settings.extra.iter().cloned());
    arguments
}

/// The CPUs this process may run on, as EAL writes sets.
fn allowed_cores() -> String {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return "0".to_owned() };
    let cores: Vec<String> = (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .map(|cpu| cpu.to_string())
        .collect();
    cores.join(",")
}

fn init(arguments: &[String]) -> Result<()> {
    let owned: Vec<CString> = arguments
        .iter()
        .map(|argument| CString::new(argument.as_str()))
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| DpdkError::Start {
            arguments: arguments.join(" "),
            reason: "an argument contains a zero byte".to_owned(),
        })?;
    // EAL keeps pointers to its arguments and may reorder the list: both stay for ever.
    let mut pointers: Vec<*mut c_char> = owned.into_iter().map(CString::into_raw).collect();
    let count = pointers.len() as i32;
    pointers.push(std::ptr::null_mut());
    let pointers = Vec::leak(pointers);
    // SAFETY: `count` terminated strings and a null behind them, as for main(); called once, on the
    // thread that will be DPDK's main core.
    let parsed = unsafe { sys::rte_eal_init(count, pointers.as_mut_ptr()) };
    if parsed < 0 {
        return Err(DpdkError::Start { arguments: arguments.join(" "), reason: last_reason() });
    }
    Ok(())
}

impl Shared {
    fn wake(&self) {
        // Pairs with the fence in `Thread::sleep`: either the thread sees the job, or we see that
        // it is about to sleep.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            // A full counter wakes as well.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

struct Thread<'a> {
    shared: &'a Shared,
    settings: &'a EalSettings,
    jobs: Receiver<Job>,
}

impl Thread<'_> {
    fn run(self) {
        // Sleeps of tens of microseconds: the kernel's default slack would add fifty.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        let mut endpoints = Endpoints::default();
        let mut last_work = Instant::now();
        let mut pause = SLEEP_FIRST;
        loop {
            let worked = match self.do_jobs(&mut endpoints) {
                Some(worked) => worked,
                // `Eal` lives as long as the process, so this is its end.
                None => return,
            };
            let now = Instant::now();
            // A fault inside must not leave callers waiting for a thread that is gone.
            let turn = std::panic::AssertUnwindSafe(|| endpoints.turn(now));
            let turn = std::panic::catch_unwind(turn).unwrap_or_else(|_| {
                endpoints.fail_all();
                crate::endpoint::Turn::default()
            });
            self.shared.turns.fetch_add(1, Ordering::Relaxed);
            if worked || turn.worked {
                last_work = now;
                pause = SLEEP_FIRST;
                continue;
            }
            let due = turn.next.map(|next| next.saturating_duration_since(now));
            if now - last_work < self.settings.spin || due.is_some_and(|due| due <= NEAR) {
                std::hint::spin_loop();
                continue;
            }
            let bound = due.unwrap_or(Duration::MAX);
            if endpoints.arm_interrupts() {
                self.sleep(&mut endpoints, bound.min(SLEEP_INTERRUPTIBLE), true);
            } else {
                self.sleep(&mut endpoints, bound.min(pause), false);
                pause = (pause * 2).min(self.settings.sleep_max);
            }
        }
    }

    /// Whether there were jobs; `None` when nobody can send any more.
    fn do_jobs(&self, endpoints: &mut Endpoints) -> Option<bool> {
        let mut worked = false;
        // No more than were there, so that packets are not kept waiting.
        for _ in 0..JOBS_MAX {
            match self.jobs.try_recv() {
                Ok(job) => {
                    worked = true;
                    // A job that fails must not take the devices of all others with it; whoever
                    // waits for its result sees the channel closed.
                    let job = std::panic::AssertUnwindSafe(|| job(endpoints));
                    let _ = std::panic::catch_unwind(job);
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return None,
            }
        }
        Some(worked)
    }

    fn sleep(&self, endpoints: &mut Endpoints, bound: Duration, interruptible: bool) {
        self.shared.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // What came before the flag was seen: a job, or a packet before its interrupt was armed.
        let waiting = match self.jobs.try_recv() {
            Ok(job) => {
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(endpoints)));
                true
            }
            Err(_) => interruptible && endpoints.turn(Instant::now()).worked,
        };
        if !waiting {
            let started = Instant::now();
            let devices = if interruptible { endpoints.interrupt_fds() } else { Vec::new() };
            let mut polled = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
            for device in &devices {
                // SAFETY: drivers keep the descriptor open while the port is open, and the port
                // is not closed before this function returns: only jobs close ports.
                let fd = unsafe { BorrowedFd::borrow_raw(device.fd) };
                polled.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
            }
            let timeout = Timespec {
                tv_sec: bound.as_secs() as i64,
                tv_nsec: i64::from(bound.subsec_nanos()),
            };
            if poll(&mut polled, Some(&timeout)).is_ok() {
                let woken = |polled: &PollFd<'_>| polled.revents().contains(PollFlags::IN);
                for (device, polled) in devices.iter().zip(&polled[1..]) {
                    if device.counts && woken(polled) {
                        let _ = rustix::io::read(polled, &mut [0u8; 8]);
                    }
                }
                let interrupted = u64::from(polled[1..].iter().any(woken));
                self.shared.interrupts.fetch_add(interrupted, Ordering::Relaxed);
            }
            let slept = started.elapsed().as_micros() as u64;
            self.shared.slept_us.fetch_add(slept, Ordering::Relaxed);
            self.shared.sleeps.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.asleep.store(false, Ordering::Relaxed);
        let mut counter = [0u8; 8];
        let _ = rustix::io::read(&self.shared.wake, &mut counter);
        if interruptible {
            endpoints.disarm_interrupts();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> EalSettings {
        EalSettings {
            extra: vec!["--single-file-segments".to_owned()],
            hugepages: false,
            memory_mb: 128,
            cores: Some("0-1".to_owned()),
            spin: Duration::ZERO,
            sleep_max: Duration::from_micros(100),
            pci: None,
        }
    }

    #[test]
    fn software_devices_get_neither_hugepages_nor_the_pci_bus() {
        let text = arguments(&settings()).join(" ");
        assert_eq!(
            text,
            "genie-dpdk --no-telemetry --iova-mode=va --no-huge --no-shconf -m 128 --no-pci \
             --lcores=0@(0-1) --log-level=*:error --single-file-segments"
        );
    }

    #[test]
    fn a_pci_device_is_the_only_one_looked_at() {
        let pci = Some("0000:01:00.0".to_owned());
        let text = arguments(&EalSettings { pci, hugepages: true, ..settings() }).join(" ");
        assert!(text.contains("-a 0000:01:00.0") && !text.contains("--no-pci"), "{text}");
        assert!(text.contains("--in-memory") && !text.contains("--no-huge"), "{text}");
    }

    #[test]
    fn the_library_is_of_the_release_it_was_built_with() {
        check_version().expect("the tests run where they were built");
    }
}
