//! Repeats in a sequence: `a b c b c b c d` is `a (b c) x 3 d`.

/// The longest stretch that is looked for again right behind itself.
pub const PERIOD_MAX: usize = 192;

/// A stretch of a sequence: `period` items, `times` times, from `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub start: usize,
    pub period: usize,
    /// 1: no repeat, and the period is 1.
    pub times: usize,
}

impl Stretch {
    pub fn end(&self) -> usize {
        self.start + self.period * self.times
    }
}

/// Cuts a sequence into stretches so that repeats save the most items. `worth` refuses a repeat
/// of a start, a period and a number of times; of repeats that save the same, the first that
/// starts where `begins` says, else the last. Linear in items and [`PERIOD_MAX`].
pub fn stretches(
    items: &[u64],
    worth: impl Fn(usize, usize, usize) -> bool,
    begins: impl Fn(usize) -> bool,
) -> Vec<Stretch> {
    let len = items.len();
    // What starts at each place: period and times of the repeat that saves the most.
    let mut best = vec![(1usize, 1usize); len];
    for period in 1..=PERIOD_MAX.min(len / 2) {
        let mut run = 0;
        for start in (0..len - period).rev() {
            run = if items[start] == items[start + period] { run + 1 } else { 0 };
            let times = run / period + 1;
            let saved = |(period, times): (usize, usize)| (times - 1) * period;
            if times > 1
                && saved((period, times)) > saved(best[start])
                && worth(start, period, times)
            {
                best[start] = (period, times);
            }
        }
    }
    let mut saved = vec![0usize; len + 1];
    for start in (0..len).rev() {
        let (period, times) = best[start];
        let taken = (times - 1) * period + saved[start + period * times];
        let least = saved[start + 1] + usize::from(!begins(start));
        if times > 1 && taken >= least {
            saved[start] = taken;
        } else {
            best[start] = (1, 1);
            saved[start] = saved[start + 1];
        }
    }
    let mut out = Vec::new();
    let mut start = 0;
    while start < len {
        let (period, times) = best[start];
        let stretch = Stretch { start, period, times };
        start = stretch.end();
        out.push(stretch);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expect: &str) {
        let items: Vec<u64> = text.bytes().map(u64::from).collect();
        let said: Vec<String> = stretches(&items, |_, _, _| true, |start| items[start] % 2 == 1)
            .iter()
            .map(|stretch| {
                let part = &text[stretch.start..stretch.start + stretch.period];
                match stretch.times {
                    1 => part.to_owned(),
                    times => format!("({part}){times}"),
                }
            })
            .collect();
        assert_eq!(said.concat(), expect, "{text}");
    }

    #[test]
    fn repeats_are_found() {
        check("", "");
        check("abc", "abc");
        check("aaa", "(a)3");
        check("abcbcbcd", "a(bc)3d");
        check("xababycdcdcdz", "x(ab)2y(cd)3z");
        check("aabaabaab", "(aab)3");
        // Of equal ones, what may begin.
        check("abababa", "(ab)3a");
        check("bababab", "b(ab)3");
    }

    proptest! {
        #[test]
        fn stretches_cover_the_sequence_and_repeat_it(items in prop::collection::vec(0u64..3, 0..60)) {
            let mut end = 0;
            for stretch in stretches(&items, |_, _, _| true, |start| items[start] % 2 == 1) {
                prop_assert_eq!(stretch.start, end);
                end = stretch.end();
                let first = &items[stretch.start..stretch.start + stretch.period];
                for chunk in items[stretch.start..end].chunks(stretch.period) {
                    prop_assert_eq!(chunk, first);
                }
            }
            prop_assert_eq!(end, items.len());
        }
    }
}
