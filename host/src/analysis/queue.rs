//! What waits for the analysis thread: the questions of people first, then new topologies.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use genie_engine::{NewTopology, Snapshot};
use genie_wire::control::{Device, TraceQuestion};

use crate::mailbox::Mailbox;

/// Questions of all sessions that may wait; further ones are refused with advice.
pub const QUESTIONS_MAX: usize = 64;
/// New topologies that may wait for their recognizers; further ones stay unknown until their
/// session forgets them.
pub const TOPOLOGIES_MAX: usize = 16;
/// How long a question waits for plugins that are still being loaded.
const LOADING_PATIENCE: Duration = Duration::from_secs(60);

/// A question about what a session ran on `devices`.
pub struct Question {
    pub token: u64,
    pub question: TraceQuestion,
    pub snapshot: Box<Snapshot>,
    pub devices: Vec<Device>,
    /// Where the answer goes; a session that has ended needs none.
    pub from: Weak<Mailbox>,
}

impl Question {
    fn needs_plugins(&self) -> bool {
        self.question == TraceQuestion::Explain
    }
}

/// One thing to do.
pub enum Job {
    Answer(Question),
    Recognize(NewTopology),
}

pub struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

struct Waiting {
    /// Each with the moment from which it waits for no plugins any more.
    questions: VecDeque<(Instant, Question)>,
    topologies: VecDeque<NewTopology>,
    /// A question was handed out by the last [`Queue::next`].
    answering: bool,
    /// Plugins are being loaded: only what needs none can be done.
    loading: bool,
    closed: bool,
}

impl Queue {
    pub fn new(loading: bool) -> Self {
        let (questions, topologies) = (VecDeque::new(), VecDeque::new());
        let waiting = Waiting { questions, topologies, answering: false, loading, closed: false };
        Queue { waiting: Mutex::new(waiting), changed: Condvar::new() }
    }

    /// Takes a question; the error tells its asker that too many wait.
    pub fn ask(&self, question: Question) -> Result<(), String> {
        let mut waiting = self.lock();
        if waiting.questions.len() >= QUESTIONS_MAX {
            return Err(format!(
                "{QUESTIONS_MAX} questions wait for this host's plugins already; ask again later"
            ));
        }
        waiting.questions.push_back((Instant::now() + LOADING_PATIENCE, question));
        self.changed.notify_one();
        Ok(())
    }

    /// Takes a new topology; `false` when too many wait.
    pub fn learn(&self, new: NewTopology) -> bool {
        let mut waiting = self.lock();
        let fits = waiting.topologies.len() < TOPOLOGIES_MAX;
        if fits {
            waiting.topologies.push_back(new);
            self.changed.notify_one();
        }
        fits
    }

    /// Waits for the next thing that can be done; `None` once the queue is closed.
    pub fn next(&self) -> Option<Job> {
        let mut waiting = self.lock();
        waiting.answering = false;
        loop {
            if waiting.closed {
                return None;
            }
            let (loading, now) = (waiting.loading, Instant::now());
            let can = |(until, question): &(Instant, Question)| {
                !loading || !question.needs_plugins() || *until <= now
            };
            if let Some(index) = waiting.questions.iter().position(can) {
                let (_, question) = waiting.questions.remove(index).expect("it was just seen");
                waiting.answering = true;
                return Some(Job::Answer(question));
            }
            if !loading && let Some(new) = waiting.topologies.pop_front() {
                return Some(Job::Recognize(new));
            }
            waiting = match waiting.questions.front().map(|(until, _)| *until - now) {
                None => self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let waited = self.changed.wait_timeout(waiting, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Questions that are not answered yet.
    pub fn questions(&self) -> usize {
        let waiting = self.lock();
        waiting.questions.len() + usize::from(waiting.answering)
    }

    /// Plugins were loaded, or there are none.
    pub fn loaded(&self) {
        self.lock().loading = false;
        self.changed.notify_all();
    }

    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Every statement leaves the queues whole.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(token: u64, question: TraceQuestion) -> Question {
        let (snapshot, devices) = (Box::default(), Vec::new());
        Question { token, question, snapshot, devices, from: Weak::new() }
    }

    fn next(queue: &Queue) -> u64 {
        match queue.next() {
            Some(Job::Answer(question)) => question.token,
            _ => panic!("a question waits"),
        }
    }

    #[test]
    fn what_needs_no_plugins_does_not_wait_for_them() {
        let queue = Queue::new(true);
        for (token, kind) in [(1, TraceQuestion::Explain), (2, TraceQuestion::Graph)] {
            queue.ask(question(token, kind)).unwrap();
        }
        assert_eq!(next(&queue), 2);
        queue.loaded();
        assert_eq!(next(&queue), 1);
        queue.close();
        assert!(queue.next().is_none());
    }

    #[test]
    fn an_impatient_question_is_answered_without_plugins() {
        let queue = Queue::new(true);
        queue.ask(question(1, TraceQuestion::Explain)).unwrap();
        queue.lock().questions[0].0 = Instant::now();
        assert_eq!(next(&queue), 1);
    }

    #[test]
    fn questions_are_bounded_and_refused_with_advice() {
        let queue = Queue::new(false);
        for token in 0..QUESTIONS_MAX as u64 {
            queue.ask(question(token, TraceQuestion::Explain)).unwrap();
        }
        let refused = queue.ask(question(99, TraceQuestion::Graph)).unwrap_err();
        assert!(refused.contains("ask again"), "{refused}");
        assert_eq!(next(&queue), 0);
        queue.ask(question(99, TraceQuestion::Graph)).unwrap();
    }
}
