//! A listener that hands out connections only when their peer is who it should be.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use genie_transport::transport::{Connection, Listener, Options, Result, TransportError};
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::driven::{Carrier, Driven};
use crate::readiness::io;

/// Peers that may be in the middle of their greeting; more wait in the backlog.
pub const GREETINGS_MAX: usize = 64;

/// Takes connections off a socket, as they come.
pub trait Door: Send {
    type Carrier: Carrier + 'static;

    fn event_fd(&self) -> BorrowedFd<'_>;

    fn address(&self) -> String;

    /// The next connection that has begun; its error concerns one peer only.
    fn next(&mut self) -> Result<Option<Driven<Self::Carrier>>>;
}

/// See the module.
pub struct Reception<D: Door> {
    /// `None` once the listener took all it should.
    door: Option<D>,
    address: String,
    epoll: OwnedFd,
    greeting: BTreeMap<u64, Driven<D::Carrier>>,
    last: u64,
    left: Option<u32>,
    watches_door: bool,
    /// What the door said while somebody else was ready.
    failed: Option<TransportError>,
}

impl<D: Door> Reception<D> {
    pub fn new(door: D, options: &Options) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io("make an epoll"))?;
        epoll::add(&epoll, door.event_fd(), EventData::new_u64(0), EventFlags::IN)
            .map_err(io("watch a listening socket"))?;
        Ok(Reception {
            address: door.address(),
            door: Some(door),
            epoll,
            greeting: BTreeMap::new(),
            last: 0,
            left: (options.accept_max > 0).then_some(options.accept_max),
            watches_door: true,
            failed: None,
        })
    }

    /// A full house is not told about more visitors, or it would be woken for them all the time.
    fn watch_door(&mut self) -> Result<()> {
        let wanted = self.greeting.len() < GREETINGS_MAX;
        let Some(door) = self.door.as_ref().filter(|_| wanted != self.watches_door) else {
            return Ok(());
        };
        let flags = if wanted { EventFlags::IN } else { EventFlags::empty() };
        epoll::modify(&self.epoll, door.event_fd(), EventData::new_u64(0), flags)
            .map_err(io("watch a listening socket"))?;
        self.watches_door = wanted;
        Ok(())
    }

    fn take(&mut self, number: u64) -> Result<Driven<D::Carrier>> {
        let driven = self.greeting.remove(&number).expect("named by the caller");
        epoll::delete(&self.epoll, driven.event_fd()).map_err(io("stop to watch a connection"))?;
        self.watch_door()?;
        Ok(driven)
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
        while let Some(door) = self.door.as_mut().filter(|_| self.greeting.len() < GREETINGS_MAX) {
            // Whatever ails the door, who came in before goes on with the greeting.
            let driven = match door.next() {
                Ok(Some(driven)) => driven,
                Ok(None) => break,
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            };
            self.last += 1;
            epoll::add(
                &self.epoll,
                driven.event_fd(),
                EventData::new_u64(self.last),
                EventFlags::IN,
            )
            .map_err(io("watch a connection"))?;
            self.greeting.insert(self.last, driven);
        }
        self.watch_door()?;
        for driven in self.greeting.values_mut() {
            driven.progress();
        }
        let ready = |driven: &Driven<_>| driven.failure().is_some() || driven.is_open();
        let Some(number) =
            self.greeting.iter().find(|(_, driven)| ready(driven)).map(|(number, _)| *number)
        else {
            return self.failed.take().map_or(Ok(None), Err);
        };
        let driven = self.take(number)?;
        if !driven.is_open() {
            let TransportError { cause, message } = driven.failure().expect("it is ready").clone();
            let message = format!("{}: {message}", driven.peer_address());
            return Err(TransportError::new(cause, message));
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
            if *left == 0 {
                self.greeting.clear();
                self.door = None;
            }
        }
        Ok(Some(Box::new(driven)))
    }
}
