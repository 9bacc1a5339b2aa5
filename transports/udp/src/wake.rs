//! When to be woken: an epoll set of sockets and one timer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use genie_bulk::Time;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

const SECOND: u64 = 1_000_000_000;
/// The timer's name among the sources.
const TIMER: u64 = u64::MAX;

/// The present on the monotonic clock, which the timer uses too.
pub(crate) fn now() -> Time {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * SECOND + now.tv_nsec as u64
}

#[derive(Debug)]
pub(crate) struct Wake {
    epoll: OwnedFd,
    timer: OwnedFd,
    /// What the timer is set to. Once this is past, the timer is readable until it is set anew.
    set: Option<Time>,
}

impl Wake {
    pub fn new() -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let wake = Wake { epoll, timer, set: None };
        wake.add(wake.timer.as_fd(), TIMER)?;
        Ok(wake)
    }

    /// Readable when a source or the timer is.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Watches `source`, which events call by `name`.
    pub fn add(&self, source: BorrowedFd<'_>, name: u64) -> Result<(), Errno> {
        let data = epoll::EventData::new_u64(name);
        epoll::add(&self.epoll, source, data, epoll::EventFlags::IN)
    }

    pub fn remove(&self, source: BorrowedFd<'_>) -> Result<(), Errno> {
        epoll::delete(&self.epoll, source)
    }

    /// Whether to wake when `source` has room to send, too.
    pub fn want_room(&self, source: BorrowedFd<'_>, name: u64, wanted: bool) -> Result<(), Errno> {
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, wanted);
        epoll::modify(&self.epoll, source, epoll::EventData::new_u64(name), flags)
    }

    /// Wakes at `wanted`, or a little earlier: a timer that would fire in time is left alone, for
    /// most deadlines only move away (one system call an acknowledgement otherwise).
    pub fn at(&mut self, wanted: Option<Time>, now: Time) -> Result<(), Errno> {
        let fired = self.set.is_some_and(|set| set <= now);
        let late = match (self.set, wanted) {
            (Some(set), Some(wanted)) => wanted < set,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if !fired && !late {
            return Ok(());
        }
        // Zero disarms; a time that has passed fires at once. Either clears what has fired.
        let at = wanted.map_or(0, |at| at.max(1));
        let it_value = Timespec { tv_sec: (at / SECOND) as i64, tv_nsec: (at % SECOND) as i64 };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec)?;
        self.set = wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn readable_within(wake: &Wake, milliseconds: i64) -> bool {
        let timeout = Timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 };
        poll(&mut [PollFd::from_borrowed_fd(wake.fd(), PollFlags::IN)], Some(&timeout)).unwrap() > 0
    }

    #[test]
    fn it_wakes_at_the_time_and_is_quiet_after_a_new_one() {
        let mut wake = Wake::new().unwrap();
        assert!(!readable_within(&wake, 0));
        wake.at(Some(now() + 1_000_000), now()).unwrap();
        assert!(readable_within(&wake, 900));
        wake.at(Some(now() + 100 * SECOND), now()).unwrap();
        assert!(!readable_within(&wake, 0));
        wake.at(Some(1), now()).unwrap();
        assert!(readable_within(&wake, 0), "a time that has passed is due");
        wake.at(None, now()).unwrap();
        assert!(!readable_within(&wake, 0));
    }
}
