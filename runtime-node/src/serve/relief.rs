//! Keeps links alive while their device's thread is in a long operator.
//!
//! A device's thread drives its links between operators, with no hand-over on the way. An operator
//! may take seconds; meanwhile payloads would stand still and the peer would think us dead. So one
//! thread of the node looks now and then whether a link waits that nobody has driven for a while,
//! and drives it until its owner is back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use genie_transport::{Frame, Link, LinkError, LinkWay, SharedMemory};
use genie_wire::frame::FrameKind;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};

/// A link is neglected when its owner has not looked for so long.
const NEGLECTED_AFTER: Duration = Duration::from_millis(10);
/// How often is looked for neglected links.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long the relief waits on one neglected link before it looks at the others.
const STINT: Duration = Duration::from_millis(5);

/// The thread, and the links it looks after. Ends with its last owner.
pub struct Relief {
    shared: Arc<Shared>,
}

struct Shared {
    links: Mutex<Links>,
    changed: Condvar,
    start: Instant,
}

#[derive(Default)]
struct Links {
    all: Vec<Weak<Relieved>>,
    ended: bool,
}

/// A link that the relief may drive.
struct Relieved {
    link: Mutex<Box<dyn Link>>,
    /// What the owner waits for: the link's own descriptor, and `nudge`.
    watch: OwnedFd,
    /// Written when the relief took in something that the owner should poll.
    nudge: OwnedFd,
    nudged: AtomicBool,
    /// Milliseconds from the start to the owner's last look.
    looked_ms: AtomicU64,
    /// The owner wants it back.
    wanted: AtomicBool,
    start: Instant,
}

impl Relief {
    pub fn start() -> std::io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            links: Mutex::default(),
            changed: Condvar::new(),
            start: Instant::now(),
        });
        let looked_after = shared.clone();
        std::thread::Builder::new()
            .name("genie-relief".to_owned())
            .spawn(move || looked_after.run())?;
        Ok(Arc::new(Relief { shared }))
    }

    /// The link, looked after.
    pub fn look_after(&self, link: Box<dyn Link>) -> std::io::Result<Box<dyn Link>> {
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let nudge = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        for fd in [link.event_fd(), nudge.as_fd()] {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&watch, fd, data, epoll::EventFlags::IN)?;
        }
        let relieved = Arc::new(Relieved {
            watch,
            nudge,
            nudged: AtomicBool::new(false),
            link: Mutex::new(link),
            looked_ms: AtomicU64::new(0),
            wanted: AtomicBool::new(false),
            start: self.shared.start,
        });
        relieved.note();
        let mut links = lock(&self.shared.links);
        links.all.retain(|link| link.strong_count() > 0);
        links.all.push(Arc::downgrade(&relieved));
        self.shared.changed.notify_one();
        Ok(Box::new(Owned(relieved)))
    }
}

impl Drop for Relief {
    fn drop(&mut self) {
        lock(&self.shared.links).ended = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        let mut links = lock(&self.links);
        loop {
            if links.ended {
                return;
            }
            links.all.retain(|link| link.strong_count() > 0);
            let all: Vec<_> = links.all.iter().filter_map(Weak::upgrade).collect();
            drop(links);
            let relieved = all.iter().any(|link| link.is_neglected() && link.relieve());
            drop(all);
            links = lock(&self.links);
            links = match (links.all.is_empty(), relieved) {
                (true, _) => self.changed.wait(links).unwrap_or_else(PoisonError::into_inner),
                (false, true) => links,
                (false, false) => {
                    let waited = self.changed.wait_timeout(links, LOOK_EVERY);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Relieved {
    fn note(&self) {
        self.looked_ms.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn is_neglected(&self) -> bool {
        let looked = Duration::from_millis(self.looked_ms.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(looked) >= NEGLECTED_AFTER
    }

    /// Drives the link for a stint, if there is something to do; whether there was.
    fn relieve(&self) -> bool {
        // Locked by its owner: then it is not neglected.
        let Ok(mut link) = self.link.try_lock() else { return false };
        let begun = Instant::now();
        let mut worked = false;
        while begun.elapsed() < STINT && !self.wanted.load(Ordering::Acquire) {
            let wait = if worked { Timespec { tv_sec: 0, tv_nsec: 1_000_000 } } else { NOW };
            let ready =
                poll(&mut [PollFd::from_borrowed_fd(link.event_fd(), PollFlags::IN)], Some(&wait));
            if !matches!(ready, Ok(1..)) {
                break;
            }
            // What it finds is told to the owner by the next poll.
            let _ = link.drive();
            worked = true;
        }
        if worked && !self.nudged.swap(true, Ordering::AcqRel) {
            // Fails only when it is readable anyway.
            let _ = rustix::io::write(&self.nudge, &1u64.to_ne_bytes());
        }
        worked
    }

    /// The owner looks, and holds the lock: it need not be told any more.
    fn clear_nudge(&self) {
        if self.nudged.swap(false, Ordering::AcqRel) {
            let _ = rustix::io::read(&self.nudge, &mut [0u8; 8]);
        }
    }
}

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// The owner's side.
struct Owned(Arc<Relieved>);

impl Owned {
    fn link(&self) -> MutexGuard<'_, Box<dyn Link>> {
        let link = match self.0.link.try_lock() {
            Ok(link) => link,
            Err(_) => {
                self.0.wanted.store(true, Ordering::Release);
                let link = lock(&self.0.link);
                self.0.wanted.store(false, Ordering::Release);
                link
            }
        };
        self.0.note();
        link
    }
}

impl Link for Owned {
    fn event_fd(&self) -> BorrowedFd<'_> {
        self.0.watch.as_fd()
    }

    fn wants_write(&self) -> bool {
        self.link().wants_write()
    }

    fn queued_bytes(&self) -> usize {
        self.link().queued_bytes()
    }

    fn post_send(
        &mut self,
        kind: FrameKind,
        parts: &[&[u8]],
        memory: Option<&SharedMemory>,
    ) -> Result<(), LinkError> {
        self.link().post_send(kind, parts, memory)
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        self.link().flush()
    }

    fn poll(&mut self) -> Result<Option<Frame>, LinkError> {
        let mut link = self.link();
        self.0.clear_nudge();
        link.poll()
    }

    fn post_payload(&mut self, region: u32, offset: u64, bytes: u64) -> Result<(), LinkError> {
        self.link().post_payload(region, offset, bytes)
    }

    fn needs_drive(&self) -> bool {
        self.link().needs_drive()
    }

    fn drive(&mut self) -> Result<(), LinkError> {
        let mut link = self.link();
        self.0.clear_nudge();
        link.drive()
    }

    fn way(&self) -> Option<LinkWay> {
        self.link().way()
    }

    fn changes(&self) -> u32 {
        self.link().changes()
    }

    fn statistics(&self) -> Vec<(String, u64)> {
        self.link().statistics()
    }

    fn peer_identity(&self) -> String {
        self.link().peer_identity()
    }

    fn close(&mut self, reason: &str) -> bool {
        self.link().close(reason)
    }

    fn peer(&self) -> String {
        self.link().peer()
    }
}

/// A link whose driver panicked is broken at most for its own session.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Counts drives, and is always ready to be driven.
    struct Counting {
        event: std::os::unix::net::UnixStream,
        _ready: std::os::unix::net::UnixStream,
        driven: mpsc::Sender<()>,
    }

    impl Link for Counting {
        fn event_fd(&self) -> BorrowedFd<'_> {
            self.event.as_fd()
        }
        fn wants_write(&self) -> bool {
            false
        }
        fn queued_bytes(&self) -> usize {
            0
        }
        fn post_send(
            &mut self,
            _: FrameKind,
            _: &[&[u8]],
            _: Option<&SharedMemory>,
        ) -> Result<(), LinkError> {
            Ok(())
        }
        fn flush(&mut self) -> Result<(), LinkError> {
            Ok(())
        }
        fn poll(&mut self) -> Result<Option<Frame>, LinkError> {
            Ok(None)
        }
        fn drive(&mut self) -> Result<(), LinkError> {
            let _ = self.driven.send(());
            Ok(())
        }
        fn peer(&self) -> String {
            String::new()
        }
    }

    #[test]
    fn a_neglected_link_is_driven_and_given_back() {
        let relief = Relief::start().unwrap();
        let (event, mut ready) = std::os::unix::net::UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut ready, b"x").unwrap();
        let (driven, drives) = mpsc::channel();
        let mut link =
            relief.look_after(Box::new(Counting { event, _ready: ready, driven })).unwrap();
        // Nobody polls it: the relief does its work.
        for _ in 0..3 {
            drives.recv_timeout(Duration::from_secs(10)).expect("the relief drives it");
        }
        let mut owner = [PollFd::from_borrowed_fd(link.event_fd(), PollFlags::IN)];
        assert_eq!(poll(&mut owner, Some(&NOW)), Ok(1), "the owner is told");
        // Its owner gets it back at once, again and again.
        for _ in 0..100 {
            assert!(link.poll().unwrap().is_none());
        }
        drop(link);
        while drives.recv_timeout(Duration::from_secs(10)).is_ok() {}
        assert!(drives.recv().is_err(), "the link is gone with its owner");
    }
}
