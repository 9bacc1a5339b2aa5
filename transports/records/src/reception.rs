//! A listener that hands out connections only when their peer is who it should be, and whose door
//! strangers cannot block: see [`crate::Guard`].

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_transport::transport::{Cause, Connection, Listener, Options, Result, TransportError};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::course::Course;
use crate::driven::{Carrier, Driven};
use crate::guard::{Entry, Fate, Guard, Source, Tally};
use crate::readiness::{Timer, io};

/// Newcomers taken off the door, and peers attended to, in one look.
const LOOK_MAX: usize = 64;

/// Names of events; others are the numbers of places.
const DOOR: u64 = 0;
const TIMER: u64 = u64::MAX;

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Takes connections off a socket, as they come.
pub trait Door: Send {
    type Carrier: Carrier + 'static;

    fn event_fd(&self) -> BorrowedFd<'_>;

    fn address(&self) -> String;

    /// The next connection that has begun; an error is told to the caller of the listener.
    fn next(&mut self) -> Result<Option<Course<Self::Carrier>>>;
}

/// See the module.
pub struct Reception<D: Door> {
    /// `None` once the listener took all it should.
    door: Option<D>,
    address: String,
    epoll: OwnedFd,
    timer: Timer,
    guard: Guard,
    tally: Arc<Tally>,
    visitors: BTreeMap<u64, Visitor<D::Carrier>>,
    left: Option<u32>,
    /// What the door said while somebody else was ready.
    failed: Option<TransportError>,
}

/// Somebody who holds a place.
struct Visitor<C> {
    course: Course<C>,
    source: Source,
    /// It has said something. Until then it has cost nothing worth counting.
    heard: bool,
    /// Watched for room to send.
    room: bool,
}

impl<D: Door> Reception<D> {
    pub fn new(door: D, options: &Options, tally: Arc<Tally>) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io("make an epoll"))?;
        let timer = Timer::new()?;
        for (fd, name) in [(door.event_fd(), DOOR), (timer.fd(), TIMER)] {
            epoll::add(&epoll, fd, EventData::new_u64(name), EventFlags::IN)
                .map_err(io("watch a listening socket"))?;
        }
        Ok(Reception {
            address: door.address(),
            door: Some(door),
            epoll,
            timer,
            guard: Guard::new(Duration::from_millis(options.connect_ms)),
            tally,
            visitors: BTreeMap::new(),
            left: (options.accept_max > 0).then_some(options.accept_max),
            failed: None,
        })
    }

    /// What is ready is attended to until somebody is in, or something is to be told. The rest
    /// stays ready, and comes first at the next look.
    fn look(&mut self, now: Instant) -> Result<Option<Box<dyn Connection>>> {
        while let Some(number) = self.guard.overdue(now) {
            self.give_up(number, now)?;
        }
        let mut events = Vec::with_capacity(LOOK_MAX);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&NOW)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(io("look who is at the door")(errno)),
        }
        for Event { flags, data } in events {
            match data.u64() {
                // Whatever ails the door, who came in before goes on.
                DOOR => self.failed = self.let_in(now).err().or(self.failed.take()),
                // It is set anew after the look.
                TIMER => {}
                number => {
                    let reads = flags.intersects(!EventFlags::OUT);
                    if let Some(connection) = self.attend(number, reads, now)? {
                        return Ok(Some(connection));
                    }
                }
            }
        }
        self.failed.take().map_or(Ok(None), Err)
    }

    /// Newcomers get places.
    fn let_in(&mut self, now: Instant) -> Result<()> {
        for _ in 0..LOOK_MAX {
            let Some(door) = &mut self.door else { return Ok(()) };
            let Some(course) = door.next()? else { return Ok(()) };
            let from = course.peer_ip();
            let source = Source::of(from);
            let Entry::Place { number, instead_of } = self.guard.enter(source, now) else {
                self.tally.count(Fate::CrowdedOut, from, now);
                continue;
            };
            if let Some(loser) = instead_of
                && let Some(visitor) = self.remove(loser)
            {
                self.tally.count(Fate::CrowdedOut, visitor.course.peer_ip(), now);
            }
            // Room to send is there at once: that makes it speak.
            let room = course.carrier.speaks_first();
            let visitor = Visitor { course, source, heard: false, room };
            let (fd, name) = (visitor.course.event_fd(), EventData::new_u64(number));
            if let Err(errno) = epoll::add(&self.epoll, fd, name, interest(room)) {
                self.guard.leave(number);
                return Err(io("watch a connection")(errno));
            }
            self.visitors.insert(number, visitor);
        }
        Ok(())
    }

    /// Moves one visitor along; it may be in then.
    fn attend(
        &mut self,
        number: u64,
        reads: bool,
        now: Instant,
    ) -> Result<Option<Box<dyn Connection>>> {
        // Who lost its place in this very look is gone.
        let Some(visitor) = self.visitors.get_mut(&number) else { return Ok(None) };
        if reads && !std::mem::replace(&mut visitor.heard, true) {
            let from = visitor.course.peer_ip();
            if !self.guard.attempt(visitor.source, now) {
                self.remove(number);
                self.tally.count(Fate::OverRate, from, now);
                return Ok(None);
            }
        }
        visitor.course.progress(now);
        if visitor.course.is_open() {
            return self.welcome(number, now).map(Some);
        }
        if let Some(failure) = visitor.course.exchange.failure().cloned() {
            let visitor = self.remove(number).expect("it was here");
            return self.lose(Fate::Failed, &visitor, failure, now).map(|()| None);
        }
        let room = visitor.course.wants_room();
        if room != visitor.room {
            visitor.room = room;
            let fd = visitor.course.event_fd();
            epoll::modify(&self.epoll, fd, EventData::new_u64(number), interest(room))
                .map_err(io("watch a connection"))?;
        }
        Ok(None)
    }

    fn welcome(&mut self, number: u64, now: Instant) -> Result<Box<dyn Connection>> {
        let visitor = self.remove(number).expect("named by the caller");
        let authenticated = !visitor.course.carrier.peer_identity().is_empty();
        self.guard.welcome(visitor.source, authenticated, now);
        let mut driven = Driven::new(visitor.course)?;
        driven.came_by(self.tally.clone());
        if let Some(left) = &mut self.left {
            *left -= 1;
            if *left == 0 {
                self.door = None;
                while let Some((number, _)) = self.visitors.first_key_value() {
                    self.remove(*number);
                }
            }
        }
        Ok(Box::new(driven))
    }

    fn give_up(&mut self, number: u64, now: Instant) -> Result<()> {
        let Some(mut visitor) = self.remove(number) else { return Ok(()) };
        // What it said last may be the reason.
        visitor.course.progress(now);
        let failure = visitor.course.exchange.failure().cloned().unwrap_or_else(|| {
            let message = "it did not show in time who it is, while many others came";
            TransportError::new(Cause::TimedOut, message)
        });
        self.lose(Fate::Overdue, &visitor, failure, now)
    }

    /// A stranger came to nothing: an error where it is to be told.
    fn lose(
        &self,
        fate: Fate,
        visitor: &Visitor<D::Carrier>,
        failure: TransportError,
        now: Instant,
    ) -> Result<()> {
        if !self.tally.count_and_tell(fate, visitor.course.peer_ip(), now) {
            return Ok(());
        }
        let message = format!("{}: {}", visitor.course.carrier.peer_address(), failure.message);
        Err(TransportError::new(failure.cause, message))
    }

    fn remove(&mut self, number: u64) -> Option<Visitor<D::Carrier>> {
        self.guard.leave(number);
        let visitor = self.visitors.remove(&number)?;
        // Others may hold the descriptor, so its end alone is not enough. It fails only where it
        // is not watched.
        let _ = epoll::delete(&self.epoll, visitor.course.event_fd());
        Some(visitor)
    }
}

impl<D: Door> Listener for Reception<D> {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn accept(&mut self) -> Result<Option<Box<dyn Connection>>> {
        let now = Instant::now();
        self.tally.tell(now);
        let looked = self.look(now);
        self.timer.settle(self.guard.due(now), now)?;
        looked
    }
}

fn interest(room: bool) -> EventFlags {
    if room { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN }
}
