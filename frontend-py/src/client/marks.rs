//! Which modules and phases each thread of the program is in, and which of them the tape is in.
//!
//! The tape has one context for all records, so that of the thread that runs the next operator is
//! written before it, if another one stands there. Marks that are left before an operator comes leave
//! no trace. A thread that never marked anything goes with what stands there: autograd's own threads
//! run a backward pass for whoever asked for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use genie_wire::record::MarkKind;

use crate::client::session::Stage;

/// A mark with its symbol.
pub(super) type Mark = (MarkKind, u32);

/// Threads that are remembered though they are in nothing.
const THREADS_MAX: usize = 256;

/// Number of the calling thread, from 1.
#[inline]
pub(super) fn this_thread() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    thread_local! {
        static NUMBER: u32 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

/// The marks of all threads.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// What each thread entered and did not leave, outermost first.
    entered: HashMap<u32, Vec<Mark>>,
    /// The thread whose marks the tape has, or is to have; 0: none yet.
    current: u32,
    /// How many of its marks are on the tape: the first.
    written: usize,
    /// Whether more are to be written before its next operator.
    waiting: bool,
}

impl Marks {
    /// Whether an operator of this thread needs other marks than the tape has.
    #[inline]
    pub fn differ(&self, thread: u32, stage: Stage) -> bool {
        self.waiting && self.current == thread
            || self.current != thread && self.is_elsewhere(thread, stage)
    }

    fn is_elsewhere(&self, thread: u32, stage: Stage) -> bool {
        let own = self.entered.get(&thread);
        // A backward pass may run modules again, and is in none afterwards.
        own.is_some_and(|own| !own.is_empty() || stage != Stage::Backward)
    }

    /// Hands out what is to be written before an operator of this thread, in order.
    pub fn write(&mut self, thread: u32, stage: Stage, mut write: impl FnMut(Mark)) {
        if !self.differ(thread, stage) {
            return;
        }
        if self.current != thread {
            let there = self.entered.get(&self.current).map_or(&[][..], Vec::as_slice);
            there[..self.written].iter().rev().for_each(|mark| write(left(*mark)));
            (self.current, self.written) = (thread, 0);
        }
        let own = &self.entered[&thread];
        own[self.written..].iter().for_each(|mark| write(*mark));
        (self.written, self.waiting) = (own.len(), false);
    }

    /// A thread entered a module or a phase.
    pub fn enter(&mut self, thread: u32, mark: Mark) {
        if self.entered.len() >= THREADS_MAX {
            let current = self.current;
            self.entered.retain(|thread, own| *thread == current || !own.is_empty());
        }
        self.entered.entry(thread).or_default().push(mark);
        if self.current == 0 {
            self.current = thread;
        }
        self.waiting |= self.current == thread;
    }

    /// A thread left a module or a phase; the mark that is to be written at once, if one is.
    pub fn leave(&mut self, thread: u32, mark: Mark) -> Option<Mark> {
        let thread = self.inside(thread, mark)?;
        let own = self.entered.get_mut(&thread)?;
        let at = own.iter().rposition(|entered| left(*entered) == mark)?;
        own.remove(at);
        if self.current != thread {
            return None;
        }
        let is_written = at < self.written;
        self.written -= usize::from(is_written);
        self.waiting = own.len() > self.written;
        is_written.then_some(mark)
    }

    /// The thread that is in it: this one, or one that entered for it.
    fn inside(&self, thread: u32, mark: Mark) -> Option<u32> {
        let is_in = |own: &Vec<Mark>| own.iter().any(|entered| left(*entered) == mark);
        if self.entered.get(&thread).is_some_and(is_in) {
            return Some(thread);
        }
        self.entered.iter().find(|(_, own)| is_in(own)).map(|(thread, _)| *thread)
    }
}

/// The mark of leaving what a mark entered.
fn left((kind, symbol): Mark) -> Mark {
    let kind = match kind {
        MarkKind::ModuleEnter => MarkKind::ModuleExit,
        MarkKind::PhaseEnter => MarkKind::PhaseExit,
        other => other,
    };
    (kind, symbol)
}

#[cfg(test)]
mod tests {
    use MarkKind::{ModuleEnter as In, ModuleExit as Out, PhaseEnter, PhaseExit};

    use super::*;

    fn written(marks: &mut Marks, thread: u32) -> Vec<Mark> {
        let mut all = Vec::new();
        marks.write(thread, Stage::Forward, |mark| all.push(mark));
        all
    }

    #[test]
    fn what_is_left_before_an_operator_leaves_no_trace() {
        let mut marks = Marks::default();
        marks.enter(1, (In, 1));
        marks.enter(1, (In, 2));
        assert_eq!(marks.leave(1, (Out, 2)), None);
        assert_eq!(written(&mut marks, 1), [(In, 1)]);
        assert_eq!(written(&mut marks, 1), []);
        assert_eq!(marks.leave(1, (Out, 1)), Some((Out, 1)));
        assert!(!marks.differ(1, Stage::Forward));
    }

    #[test]
    fn each_thread_runs_in_its_own_modules() {
        let mut marks = Marks::default();
        marks.enter(1, (In, 1));
        assert_eq!(written(&mut marks, 1), [(In, 1)]);
        marks.enter(2, (In, 7));
        assert_eq!(written(&mut marks, 1), []);
        assert_eq!(written(&mut marks, 2), [(Out, 1), (In, 7)]);
        // The first leaves its module while the tape is in the second's.
        assert_eq!(marks.leave(1, (Out, 1)), None);
        assert_eq!(written(&mut marks, 1), [(Out, 7)]);
        assert_eq!(written(&mut marks, 2), [(In, 7)]);
        assert_eq!(marks.leave(2, (Out, 7)), Some((Out, 7)));
        // A thread that marks nothing goes with what stands there.
        marks.enter(2, (In, 8));
        assert_eq!(written(&mut marks, 2), [(In, 8)]);
        assert!(!marks.differ(3, Stage::Forward));
        // Nor does autograd's, once a module ran in it.
        marks.enter(3, (In, 9));
        marks.leave(3, (Out, 9));
        assert!(!marks.differ(3, Stage::Backward) && marks.differ(3, Stage::Forward));
    }

    #[test]
    fn phases_and_modules_may_cross_and_what_was_never_entered_is_not_left() {
        let mut marks = Marks::default();
        marks.enter(1, (In, 1));
        marks.enter(1, (PhaseEnter, 2));
        assert_eq!(written(&mut marks, 1).len(), 2);
        assert_eq!(marks.leave(1, (Out, 1)), Some((Out, 1)));
        assert_eq!(marks.leave(1, (Out, 9)), None);
        // Left by another thread.
        assert_eq!(marks.leave(4, (PhaseExit, 2)), Some((PhaseExit, 2)));
        assert_eq!(written(&mut marks, 1), []);
    }

    #[test]
    fn threads_that_are_in_nothing_are_forgotten() {
        let mut marks = Marks::default();
        for thread in 1..2000 {
            marks.enter(thread, (In, 1));
            marks.leave(thread, (Out, 1));
        }
        assert!(marks.entered.len() <= THREADS_MAX);
    }
}
