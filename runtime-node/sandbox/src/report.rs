//! What of a sandbox stands.

use std::fmt;

/// Which layers hold, and what this machine lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The ABI of Landlock in force, if any.
    pub landlock_abi: Option<u32>,
    /// Whether system calls are filtered.
    pub seccomp: bool,
    /// Whether the process has a network namespace of its own, without a way out.
    pub network_namespace: bool,
    /// What could not be done, a line each.
    pub missing: Vec<String>,
}

impl Report {
    pub(crate) fn lacks(&mut self, what: impl Into<String>) {
        self.missing.push(what.into().replace('\n', " "));
    }

    /// As text, for the way out of a child process.
    pub(crate) fn to_lines(&self) -> String {
        let mut lines = String::new();
        if let Some(abi) = self.landlock_abi {
            lines += &format!("landlock {abi}\n");
        }
        if self.seccomp {
            lines += "seccomp\n";
        }
        if self.network_namespace {
            lines += "network-namespace\n";
        }
        for what in &self.missing {
            lines += &format!("missing {what}\n");
        }
        lines
    }

    pub(crate) fn from_lines(lines: &str) -> Self {
        let mut report = Self::default();
        for line in lines.lines() {
            match line.split_once(' ').unwrap_or((line, "")) {
                ("landlock", abi) => report.landlock_abi = abi.parse().ok(),
                ("seccomp", _) => report.seccomp = true,
                ("network-namespace", _) => report.network_namespace = true,
                (_, what) => report.lacks(what),
            }
        }
        report
    }
}

/// One line for a log.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut holds = Vec::new();
        if self.seccomp {
            holds.push("seccomp".to_owned());
        }
        if let Some(abi) = self.landlock_abi {
            holds.push(format!("Landlock ABI {abi}"));
        }
        if self.network_namespace {
            holds.push("network namespace".to_owned());
        }
        match holds.is_empty() {
            true => f.write_str("no sandbox")?,
            false => f.write_str(&holds.join(", "))?,
        }
        match self.missing.is_empty() {
            true => Ok(()),
            false => write!(f, "; missing: {}", self.missing.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_way_out_of_a_child() {
        let full = Report {
            landlock_abi: Some(7),
            seccomp: true,
            network_namespace: true,
            missing: vec!["one thing".into(), "another: too".into()],
        };
        for report in [full, Report::default()] {
            assert_eq!(Report::from_lines(&report.to_lines()), report);
        }
    }

    #[test]
    fn a_report_is_one_line() {
        let mut report = Report { landlock_abi: Some(7), seccomp: true, ..Default::default() };
        report.lacks("a network\nnamespace");
        assert_eq!(report.to_string(), "seccomp, Landlock ABI 7; missing: a network namespace");
        assert_eq!(Report::default().to_string(), "no sandbox");
    }
}
