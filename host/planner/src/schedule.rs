//! List scheduling (Graham 1966): whenever a lane is free, it takes the most urgent task whose
//! predecessors are done. A lane is a device, or one direction of a link.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Something that occupies a lane for a time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Task {
    /// None: takes no lane and starts as soon as it may.
    pub lane: Option<u32>,
    pub busy_ns: u64,
    /// How long after the lane is free again the effect arrives.
    pub after_ns: u64,
    /// Less is more urgent.
    pub urgency: (u32, u32),
    /// Tasks that wait for this one, and from when: an offset from the start, or the effect.
    pub then: Vec<(u32, Option<u64>)>,
}

/// Tasks that could start, the most urgent first.
type Queue = BinaryHeap<Reverse<((u32, u32), u32)>>;

/// When tasks start and when their effect is there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Times {
    pub start_ns: Vec<u64>,
    pub done_ns: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ready(u32),
    Free(u32),
}

/// Runs all tasks. Tasks must not wait for each other in a circle; legal plans do not.
pub(crate) fn run(tasks: &[Task], lanes: usize) -> Times {
    let mut times = Times { start_ns: vec![0; tasks.len()], done_ns: vec![0; tasks.len()] };
    let mut waits = vec![0u32; tasks.len()];
    for (next, _) in tasks.iter().flat_map(|task| &task.then) {
        waits[*next as usize] += 1;
    }
    let mut ready_ns = vec![0u64; tasks.len()];
    let mut events: BinaryHeap<Reverse<(u64, Event)>> = (0..tasks.len() as u32)
        .filter(|task| waits[*task as usize] == 0)
        .map(|task| Reverse((0, Event::Ready(task))))
        .collect();
    let mut queues: Vec<Queue> = vec![Queue::new(); lanes];
    let mut busy = vec![false; lanes];
    let mut touched: Vec<u32> = Vec::new();
    let mut ran = 0;
    while let Some(Reverse((now, _))) = events.peek().copied() {
        let mut starting = Vec::new();
        // All that happens at this moment, before lanes choose.
        while let Some(Reverse((time, event))) = events.peek().copied() {
            if time != now {
                break;
            }
            events.pop();
            match event {
                Event::Free(lane) => {
                    busy[lane as usize] = false;
                    touched.push(lane);
                }
                Event::Ready(task) => match tasks[task as usize].lane {
                    None => starting.push(task),
                    Some(lane) => {
                        queues[lane as usize].push(Reverse((tasks[task as usize].urgency, task)));
                        touched.push(lane);
                    }
                },
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for lane in touched.drain(..) {
            if busy[lane as usize] {
                continue;
            }
            if let Some(Reverse((_, task))) = queues[lane as usize].pop() {
                busy[lane as usize] = true;
                let free = now.saturating_add(tasks[task as usize].busy_ns);
                events.push(Reverse((free, Event::Free(lane))));
                starting.push(task);
            }
        }
        ran += starting.len();
        for task in starting {
            let Task { busy_ns, after_ns, then, .. } = &tasks[task as usize];
            let done = now.saturating_add(*busy_ns).saturating_add(*after_ns);
            times.start_ns[task as usize] = now;
            times.done_ns[task as usize] = done;
            for (next, offset) in then {
                let from = offset.map_or(done, |offset| now.saturating_add(offset));
                let next_index = *next as usize;
                ready_ns[next_index] = ready_ns[next_index].max(from);
                waits[next_index] -= 1;
                if waits[next_index] == 0 {
                    events.push(Reverse((ready_ns[next_index], Event::Ready(*next))));
                }
            }
        }
    }
    debug_assert_eq!(ran, tasks.len(), "tasks of a legal plan wait for each other");
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(lane: u32, busy_ns: u64, urgency: u32, then: &[u32]) -> Task {
        Task {
            lane: Some(lane),
            busy_ns,
            urgency: (urgency, 0),
            then: then.iter().map(|next| (*next, None)).collect(),
            ..Task::default()
        }
    }

    #[test]
    fn lanes_run_beside_each_other_and_take_the_urgent_first() {
        // Two tasks on lane 0; the urgent one (1) feeds lane 1.
        let tasks = [task(0, 10, 5, &[]), task(0, 4, 1, &[2]), task(1, 3, 0, &[])];
        let times = run(&tasks, 2);
        assert_eq!(times.start_ns, [4, 0, 4]);
        assert_eq!(times.done_ns, [14, 4, 7]);
    }

    #[test]
    fn a_result_can_leave_before_its_task_ends() {
        let mut first = task(0, 10, 0, &[]);
        first.then = vec![(1, Some(3))];
        let mut second = task(1, 1, 0, &[]);
        second.after_ns = 5;
        assert_eq!(run(&[first, second], 2).done_ns, [10, 9]);
    }
}
