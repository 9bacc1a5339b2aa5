//! How much memory sessions may use.

use std::path::Path;

/// The share of the machine's memory that sessions may use, in percent.
const BUDGET_PERCENT: u64 = 80;

/// 80 % of what this process may use: the machine's memory, its cgroup's or its address space,
/// whichever is least.
pub fn default_budget_bytes() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let limits = [machine, cgroup_limit(Path::new("/sys/fs/cgroup")), address_space_limit()];
    let least = limits.into_iter().flatten().min().unwrap_or(FALLBACK_BYTES);
    share(least)
}

/// The share of `bytes` that sessions may use.
pub fn share(bytes: u64) -> u64 {
    bytes / 100 * BUDGET_PERCENT
}

/// When nothing tells how much memory there is.
const FALLBACK_BYTES: u64 = 4 << 30;

/// `MemTotal` of `/proc/meminfo`.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

fn address_space_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::As).current
}

/// The least limit of this process's cgroup and its parents (version 2, else version 1).
fn cgroup_limit(root: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    least_limit(&groups, |file| std::fs::read_to_string(root.join(file)).ok())
}

fn least_limit(groups: &str, read: impl Fn(&str) -> Option<String>) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, Some(path)) = (fields.next(), fields.next()?, fields.next()) else {
            continue;
        };
        let (prefix, file) = match controllers {
            "" => ("", "memory.max"),
            list if list.split(',').any(|name| name == "memory") => {
                ("memory/", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut group = path.trim_matches('/');
        loop {
            let separator = if group.is_empty() { "" } else { "/" };
            let limit = read(&format!("{prefix}{group}{separator}{file}"))
                .and_then(|text| text.trim().parse::<u64>().ok());
            least = least.into_iter().chain(limit).min();
            match group.rsplit_once('/') {
                Some((parent, _)) => group = parent,
                None if group.is_empty() => break,
                None => group = "",
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_on_the_way_to_the_root_counts() {
        let check = |groups, files: &[(&str, &str)], expect| {
            let read = |name: &str| {
                files.iter().find(|(file, _)| *file == name).map(|(_, text)| text.to_string())
            };
            assert_eq!(least_limit(groups, read), expect, "{groups} {files:?}");
        };
        check("0::/a/b\n", &[("a/b/memory.max", "max\n"), ("a/memory.max", "8000\n")], Some(8000));
        check("0::/a/b\n", &[("a/b/memory.max", "5\n"), ("a/memory.max", "8000\n")], Some(5));
        check("0::/\n", &[("memory.max", "7\n")], Some(7));
        check("0::/a\n", &[], None);
        let version_1 = "11:cpu,cpuacct:/x\n4:memory:/docker/y\n0::/ignored\n";
        check(version_1, &[("memory/docker/y/memory.limit_in_bytes", "42\n")], Some(42));
        check("garbage\n\n1:2\n", &[], None);
    }

    #[test]
    fn memory_of_this_machine_is_found() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
        assert_eq!(total("MemTotal: much\n"), None);
        assert!(default_budget_bytes() > 1 << 20);
    }
}
