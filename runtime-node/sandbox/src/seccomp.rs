//! Seccomp: which system calls there are.
//!
//! A filter of seccompiler knows two answers, so there are three of them, each stricter in what it
//! names. Of several refusals the kernel gives the newest filter's, which is why the words for
//! refusals come after the refusal itself: an error between them leaves the first in force.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

use crate::calls::{FILES, FREE, FREE_WITH_FILES, NEVER, checked};
use crate::{Profile, Report};

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// Filters for this process, in the order in which they are installed.
pub struct Filters([BpfProgram; 3]);

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

impl Filters {
    pub fn new(profile: &Profile) -> Result<Self, BackendError> {
        let mut allowed = whole(FREE);
        if *profile != Profile::Cpu {
            allowed.extend(whole(FREE_WITH_FILES));
        }
        allowed.extend(checked(profile, std::process::id())?);

        let mut files = whole(FILES);
        files.retain(|number, _| !allowed.contains_key(number));

        let mut known = whole(FILES);
        known.extend(whole(NEVER));
        known.extend(allowed.keys().map(|number| (*number, Vec::new())));
        known.remove(&libc::SYS_seccomp);

        let (allow, permission) = (SeccompAction::Allow, errno(libc::EPERM));
        Ok(Self([
            filter(allowed, allow.clone(), permission)?,
            filter(files, errno(libc::EACCES), allow.clone())?,
            filter(known, allow, errno(libc::ENOSYS))?,
        ]))
    }

    pub fn install(&self, report: &mut Report) {
        for (filter, what) in self.0.iter().zip(["seccomp", "seccomp's EACCES", "seccomp's ENOSYS"])
        {
            match apply_filter(filter) {
                Ok(()) => report.seccomp = true,
                Err(error) => return report.lacks(format!("{what}: {error}")),
            }
        }
    }
}

fn whole(calls: &[i64]) -> Rules {
    calls.iter().map(|number| (*number, Vec::new())).collect()
}

fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number as u32)
}

fn filter(
    named: Rules,
    answer: SeccompAction,
    otherwise: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(named, otherwise, answer, ARCH)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write;

    use super::*;
    use crate::{Sandbox, fork};

    /// More than any kernel has, and those of the x32 ABI.
    fn numbers() -> impl Iterator<Item = i64> {
        const X32: i64 = 0x4000_0000;
        /// `uretprobe` and `uprobe`, which new kernels let pass every filter. They serve code that the
        /// kernel has placed itself; the kernel ends a process that calls them from elsewhere.
        const PROBES: [i64; 2] = [335, 336];
        (0..600)
            .filter(|number| !cfg!(target_arch = "x86_64") || !PROBES.contains(number))
            .chain(X32..X32 + 600)
            .chain([-1, 0x7fff_ffff])
    }

    fn answers_by_number(sandbox: &Sandbox) -> BTreeMap<i64, i32> {
        let allowed: BTreeSet<i64> =
            [FREE, if sandbox.profile == Profile::Cpu { &[] } else { FREE_WITH_FILES }]
                .concat()
                .into_iter()
                .filter(|number| *number != libc::SYS_seccomp)
                .chain(checked(&sandbox.profile, 1).unwrap().into_iter().map(|(number, _)| number))
                .collect();
        let text = fork::ask_child(|| {
            let report = sandbox.enter().unwrap();
            assert!(report.seccomp);
            let mut text = String::new();
            for number in numbers().filter(|number| !allowed.contains(number)) {
                // SAFETY: refused before the kernel reads an argument, and all are null.
                let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
                let error = std::io::Error::last_os_error().raw_os_error().unwrap();
                let error = if result == -1 { error } else { 0 };
                writeln!(text, "{number} {error}").unwrap();
            }
            text
        })
        .unwrap();
        text.lines()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(number, error)| (number.parse().unwrap(), error.parse().unwrap()))
            .collect()
    }

    #[test]
    fn each_refused_number_is_an_error_and_no_death() {
        for sandbox in [Sandbox::cpu(), Sandbox::cuda(Vec::new())] {
            let answers = answers_by_number(&sandbox);
            assert!(answers.len() > 900);
            for (number, answer) in answers {
                let expected = match number {
                    _ if FILES.contains(&number) => libc::EACCES,
                    _ if NEVER.contains(&number) => libc::EPERM,
                    _ => libc::ENOSYS,
                };
                assert_eq!(answer, expected, "system call {number}, {:?}", sandbox.profile);
            }
        }
    }

    #[test]
    fn no_call_stands_in_two_tables() {
        let checked = checked(&Profile::Cpu, 1).unwrap();
        let checked: Vec<i64> = checked.into_iter().map(|(number, _)| number).collect();
        let tables = [FREE, FILES, NEVER, &checked].concat();
        let mut once = BTreeSet::new();
        let twice: Vec<_> = tables.iter().filter(|number| !once.insert(*number)).collect();
        assert!(twice.is_empty(), "{twice:?}");
        assert!(FREE_WITH_FILES.iter().all(|number| !FREE.contains(number)));
    }

    #[test]
    fn what_replaces_other_calls_does_not_exist() {
        for number in [libc::SYS_clone3, libc::SYS_landlock_create_ruleset] {
            let tables = [FREE, FREE_WITH_FILES, FILES, NEVER];
            assert!(tables.iter().all(|table| !table.contains(&number)));
        }
    }
}
