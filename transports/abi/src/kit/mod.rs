//! The conformance kit: what the traits of [`crate::transport`] promise, as checks.
//!
//! Give it a transport and a function that makes options for a pair of ends; every check makes its
//! own connections, waits only on their event descriptors, and ends within a bound. It works on a
//! transport in the same process and on a loaded plugin alike.
//!
//! ```ignore
//! genie_transport::conformance_tests!(&MyTransport, |_pair| Setup::of(options_for_loopback()));
//! ```
//!
//! makes a test of each check; [`run`] makes a report of all.

mod connecting;
mod ends;
mod frames;
mod limits;
mod memory;
mod pair;
mod refusals;
mod waiting;
mod writes;

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::transport::{Capabilities, Cause, Facts, Options, Transport, TransportError};

/// Time in which whatever is waited for must come: what a fault costs, not how fast a machine is.
pub const STEP: Duration = Duration::from_secs(60);
/// What the kit puts into the options of a pair that is to give up, so that it does soon. Others
/// have a [`STEP`].
pub const CONNECT_MS: u64 = 3_000;
pub const DEADLINE_MS: u64 = 3_000;
/// How much later than its deadline an end may come, on a machine that has other work.
pub const SLACK: Duration = Duration::from_secs(57);

/// Options for the two ends of a connection. The kit fills in where the listener really is, short
/// deadlines, and the number and secret of a data connection: always for transports without
/// control, for others where the options have a secret.
#[derive(Debug, Clone)]
pub struct Setup {
    pub listen: Options,
    pub connect: Options,
    /// A peer whose connection nobody polls gives no sign of life. True for transports that do
    /// everything in `poll`; false where the kernel or a thread answers meanwhile.
    pub silent_means_dead: bool,
}

impl Setup {
    /// The same options for both ends.
    pub fn of(options: Options) -> Self {
        Setup { listen: options.clone(), connect: options, silent_means_dead: false }
    }
}

/// What became of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// The transport does not claim what is checked.
    Skipped(String),
    Failed(String),
}

/// One line of a report.
#[derive(Debug, Clone)]
pub struct Checked {
    pub name: &'static str,
    pub outcome: Outcome,
    pub took: Duration,
}

/// What became of all checks.
#[derive(Debug, Clone)]
pub struct Report {
    pub transport: Facts,
    pub checks: Vec<Checked>,
}

impl Report {
    pub fn failed(&self) -> impl Iterator<Item = &Checked> {
        self.checks.iter().filter(|check| matches!(check.outcome, Outcome::Failed(_)))
    }

    /// Panics with the report unless every check passed or was skipped.
    pub fn assert(&self) {
        assert_eq!(self.failed().count(), 0, "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}", self.transport.name, self.transport.version)?;
        for Checked { name, outcome, took } in &self.checks {
            let ms = took.as_millis();
            match outcome {
                Outcome::Passed => writeln!(f, "  passed  {name} ({ms} ms)")?,
                Outcome::Skipped(why) => writeln!(f, "  skipped {name}: {why}")?,
                Outcome::Failed(why) => writeln!(f, "  FAILED  {name} ({ms} ms): {why}")?,
            }
        }
        Ok(())
    }
}

/// Makes the options of a pair of ends; called with a new number for each pair.
pub type MakeSetup<'a> = &'a dyn Fn(u64) -> Setup;

/// Runs every check.
pub fn run(transport: &dyn Transport, make: MakeSetup<'_>) -> Report {
    let checks = CHECKS.iter().map(|(name, _)| check(name, transport, make)).collect();
    Report { transport: transport.facts(), checks }
}

/// Runs the check of this name.
///
/// # Panics
/// When there is no such check; [`names`] has them.
pub fn check(name: &str, transport: &dyn Transport, make: MakeSetup<'_>) -> Checked {
    let (name, function) =
        CHECKS.iter().find(|(known, _)| *known == name).expect("a check of that name exists");
    let begin = Instant::now();
    let run = || {
        let kit = Kit { transport, facts: transport.facts(), make, pairs: Cell::new(0) };
        function(&kit)
    };
    let outcome = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(Stop::Skip(why))) => Outcome::Skipped(why),
        Ok(Err(Stop::Fail(why))) => Outcome::Failed(why),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Outcome::Failed(format!("panicked: {}", text.unwrap_or("for an unknown reason")))
        }
    };
    Checked { name, outcome, took: begin.elapsed() }
}

/// The names of all checks, in the order in which [`run`] runs them.
pub fn names() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|(name, _)| *name)
}

/// For [`conformance_tests!`](crate::conformance_tests): panics unless the check passes or is
/// skipped.
#[doc(hidden)]
pub fn assert_passes(name: &str, transport: &dyn Transport, make: MakeSetup<'_>) {
    let checked = check(name, transport, make);
    match checked.outcome {
        Outcome::Passed => {}
        Outcome::Skipped(why) => eprintln!("{name} is skipped: {why}"),
        Outcome::Failed(why) => panic!("{name}: {why}"),
    }
}

/// Makes a `#[test]` of every check, from an expression for a `&dyn Transport` and a function
/// `fn(u64) -> Setup`.
#[macro_export]
macro_rules! conformance_tests {
    ($transport:expr, $setup:expr) => {
        $crate::__kit! { @tests ($transport, $setup) }
    };
}

/// The one list of the checks.
#[doc(hidden)]
#[macro_export]
macro_rules! __kit {
    (@table [$($room:ident::$name:ident)*]) => {
        &[$((stringify!($name), $room::$name as CheckFn)),*]
    };
    (@tests ($transport:expr, $setup:expr) [$($room:ident::$name:ident)*]) => {
        $(
            #[test]
            fn $name() {
                $crate::kit::assert_passes(stringify!($name), $transport, &$setup);
            }
        )*
    };
    ($($way:tt)*) => {
        $crate::__kit! { $($way)* [
            connecting::facts_name_the_transport
            connecting::probe_answers_in_one_line
            connecting::nonsense_addresses_are_refused
            connecting::nobody_there_is_told_in_time
            connecting::both_ends_become_connected
            connecting::an_idle_listener_accepts_nothing
            connecting::connections_outlive_their_listener
            connecting::many_connections_keep_apart
            connecting::accept_max_is_kept
            connecting::a_wrong_secret_does_not_connect
            connecting::statistics_and_names_can_be_asked
            frames::frames_arrive_whole_and_in_order
            frames::frames_of_many_parts_are_one_frame
            frames::frames_above_the_limit_are_refused
            frames::frames_meet_backpressure
            frames::shared_memory_goes_beside_a_frame
            frames::secrets_are_equal_at_both_ends
            writes::messages_of_all_sizes_are_placed
            writes::a_write_waits_for_its_window
            writes::scatter_lists_are_joined
            writes::many_messages_come_once_each
            writes::both_directions_at_once
            writes::written_means_that_the_peer_has_it
            writes::writes_outside_a_window_touch_nothing
            memory::a_withdrawn_window_stays_untouched
            memory::memory_in_use_cannot_be_unregistered
            memory::memory_is_given_up
            memory::gpu_memory_is_taken_or_refused
            refusals::senseless_calls_are_invalid
            refusals::calls_without_capability_are_unsupported
            limits::windows_are_limited
            limits::memories_are_limited
            limits::messages_are_limited
            limits::message_sizes_are_limited
            ends::close_delivers_and_then_tells
            ends::a_dropped_peer_is_noticed
            ends::a_silent_peer_is_given_up
            ends::calls_after_the_end_fail
            waiting::an_idle_connection_sleeps
            waiting::no_wake_up_is_lost
            waiting::ends_move_between_threads
        ] }
    };
}

type CheckFn = fn(&Kit<'_>) -> Check;

const CHECKS: &[(&str, CheckFn)] = crate::__kit! { @table };

/// What a check is given.
pub(crate) struct Kit<'a> {
    transport: &'a dyn Transport,
    facts: Facts,
    make: MakeSetup<'a>,
    pairs: Cell<u64>,
}

/// Why a check ended early.
pub(crate) enum Stop {
    Skip(String),
    Fail(String),
}

pub(crate) type Check<T = ()> = std::result::Result<T, Stop>;

impl From<TransportError> for Stop {
    fn from(error: TransportError) -> Self {
        Stop::Fail(format!("{:?}: {error}", error.cause))
    }
}

pub(crate) fn fail<T>(why: impl Into<String>) -> Check<T> {
    Err(Stop::Fail(why.into()))
}

/// Fails with a text unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return $crate::kit::fail(format!($($text)+));
        }
    };
}
pub(crate) use ensure;

/// Fails unless the call was refused for one of these causes.
pub(crate) fn refused<T>(
    what: &str,
    result: crate::transport::Result<T>,
    causes: &[Cause],
) -> Check {
    match result {
        Ok(_) => fail(format!("{what} was accepted; it should fail with one of {causes:?}")),
        Err(error) if causes.contains(&error.cause) => Ok(()),
        Err(error) => {
            fail(format!("{what} failed with {:?} ({error}), not one of {causes:?}", error.cause))
        }
    }
}

impl Kit<'_> {
    pub(crate) fn has(&self, capability: Capabilities) -> bool {
        self.facts.capabilities.has(capability)
    }

    /// Skips the check unless the transport claims this.
    pub(crate) fn need(&self, capability: Capabilities) -> Check {
        match self.has(capability) {
            true => Ok(()),
            false => {
                Err(Stop::Skip(format!("it does not claim {}", capability.names().join(", "))))
            }
        }
    }

    /// Options of a new pair.
    pub(crate) fn setup(&self) -> Setup {
        let pair = self.pairs.get();
        self.pairs.set(pair + 1);
        let mut setup = (self.make)(pair);
        let mut secret = [0x5a; 32];
        secret[..8].copy_from_slice(&pair.to_le_bytes());
        for options in [&mut setup.listen, &mut setup.connect] {
            // Of a transport with control, a secret makes a data connection of what would be a
            // control connection: the setup says which of the two is checked.
            if !self.has(Capabilities::CONTROL) || options.secret.is_some() {
                options.connection = pair + 1;
                options.secret = Some(secret);
            }
            options.connect_ms = STEP.as_millis() as u64;
            options.deadline_ms = options.connect_ms;
        }
        setup
    }

    /// Options of a pair that does not come about, and gives up soon.
    pub(crate) fn setup_in_vain(&self) -> Setup {
        let mut setup = self.setup();
        setup.listen.connect_ms = CONNECT_MS;
        setup.connect.connect_ms = CONNECT_MS;
        setup
    }

    /// Options of a pair whose silence ends it soon.
    pub(crate) fn setup_to_end(&self) -> Setup {
        let mut setup = self.setup();
        setup.listen.deadline_ms = DEADLINE_MS;
        setup.connect.deadline_ms = DEADLINE_MS;
        setup
    }
}
