//! One descriptor that says when a poll is due: a carrier's own, and a timer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use genie_transport::transport::{Cause, Result, TransportError};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// A timer that is set anew only where it must ring earlier, or has rung.
pub(crate) struct Timer {
    fd: OwnedFd,
    due: Option<Instant>,
}

impl Timer {
    pub fn new() -> Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(io("make a timer"))?;
        Ok(Timer { fd, due: None })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Readable from `due` on. A time that moves later costs nothing until the earlier one has
    /// passed.
    pub fn settle(&mut self, due: Option<Instant>, now: Instant) -> Result<()> {
        let rung = self.due.is_some_and(|set| set <= now);
        let earlier = due.is_some_and(|due| self.due.is_none_or(|set| due < set));
        if rung || earlier {
            self.due = due;
            // Zero would disarm it; what is overdue rings at once.
            let wait = due.map(|due| due.saturating_duration_since(now));
            let (seconds, nanos) = wait.map_or((0, 0), |wait| {
                (wait.as_secs() as i64, i64::from(wait.subsec_nanos().max(1)))
            });
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            let value = Timespec { tv_sec: seconds, tv_nsec: nanos };
            let time = Itimerspec { it_interval: zero, it_value: value };
            timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &time)
                .map_err(io("set a timer"))?;
        }
        Ok(())
    }
}

pub(crate) struct Readiness {
    epoll: OwnedFd,
    timer: Timer,
    writable: bool,
}

impl Readiness {
    /// Watches `carrier` for reading.
    pub fn new(carrier: BorrowedFd<'_>) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io("make an epoll"))?;
        let timer = Timer::new()?;
        for fd in [carrier, timer.fd()] {
            epoll::add(&epoll, fd, EventData::new_u64(0), EventFlags::IN)
                .map_err(io("watch a descriptor"))?;
        }
        Ok(Readiness { epoll, timer, writable: false })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// What to wake up for: room to write, and the time `due`.
    pub fn settle(
        &mut self,
        carrier: BorrowedFd<'_>,
        writable: bool,
        due: Option<Instant>,
        now: Instant,
    ) -> Result<()> {
        if writable != self.writable {
            let flags = if writable { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.epoll, carrier, EventData::new_u64(0), flags)
                .map_err(io("watch a descriptor"))?;
            self.writable = writable;
        }
        self.timer.settle(due, now)
    }
}

/// The operating system failed while `doing`.
pub fn io(doing: &'static str) -> impl Fn(rustix::io::Errno) -> TransportError {
    move |errno| TransportError::new(Cause::Io, format!("{doing}: {}", std::io::Error::from(errno)))
}
