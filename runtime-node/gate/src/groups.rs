//! Control groups, where this node may make them: a bound on all memory of a worker, whatever takes
//! it, and its part of the processor.
//!
//! Both versions of the kernel's interface are known. Version 2 wants processes in leaves only, so
//! the node moves itself into one, and needs its group for itself for that: systemd gives one with
//! `Delegate=yes`. What may not be done here is told, and the node goes on without
//! (<https://docs.kernel.org/admin-guide/cgroup-v2.html>,
//! <https://systemd.io/CGROUP_DELEGATION>).

use std::io;
use std::path::{Path, PathBuf};

/// Begins the names of groups of nodes; the number of the node's process follows.
const PREFIX: &str = "genie-node-";
/// Parts of the processor of a client whose weight is 1, by version.
const CPU_SHARES: u64 = 1024;
const CPU_WEIGHT: u64 = 100;
/// The largest weight: [`CPU_WEIGHT`] times it is what version 2 allows.
pub const WEIGHT_MAX: u32 = 100;

/// Where workers' groups are made.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Groups {
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
    is_version_1: bool,
    /// What this node may not do, a line each.
    pub missing: Vec<String>,
}

/// A worker's group; removed when dropped, if it is empty.
#[derive(Debug)]
pub struct Group {
    memory: Option<PathBuf>,
    cpu: Option<PathBuf>,
    is_version_1: bool,
}

impl Groups {
    /// The groups of this process, taken over. To be called before another process is started.
    pub fn take() -> Groups {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (own, mounts) = (read("/proc/self/cgroup"), read("/proc/self/mountinfo"));
        Groups::within(&places(&own, &mounts), std::process::id())
    }

    fn within(places: &Places, pid: u32) -> Groups {
        let mut groups = Groups::default();
        if places.memory_1.is_some() || places.cpu_1.is_some() {
            groups.is_version_1 = true;
            groups.memory = places.memory_1.clone();
            groups.cpu = places.cpu_1.clone();
        } else if let Some(own) = &places.own_2 {
            match delegate(own, pid) {
                Ok(controllers) => {
                    let with = |name| controllers.contains(&name).then(|| own.clone());
                    (groups.memory, groups.cpu) = (with("memory"), with("cpu"));
                }
                Err(error) => {
                    groups.missing.push(format!("control groups: {}: {error}", own.display()));
                }
            }
        }
        for (home, is_memory) in [(&mut groups.memory, true), (&mut groups.cpu, false)] {
            if let Some(there) = home {
                forget_the_dead(there);
                // Tried out as it will be done, or every session would be refused for it later.
                let probe = there.join(format!("{PREFIX}{pid}-probe"));
                let group = Group {
                    memory: is_memory.then(|| probe.clone()),
                    cpu: (!is_memory).then_some(probe),
                    is_version_1: groups.is_version_1,
                };
                if let Err(error) = group.set_up(u64::MAX, 1) {
                    groups.missing.push(format!("control groups: {}: {error}", there.display()));
                    *home = None;
                }
            }
        }
        if groups.missing.is_empty() {
            for (home, what) in [(&groups.memory, "memory"), (&groups.cpu, "processor")] {
                if home.is_none() {
                    groups.missing.push(format!("a control group for {what}"));
                }
            }
        }
        groups
    }

    /// A group for a worker: at most so many bytes, and `weight` parts of the processor where others
    /// want it too. Without one where the node may not make any.
    pub fn make(&self, worker: u64, bytes: u64, weight: u32) -> io::Result<Group> {
        let name = format!("{PREFIX}{}-worker-{worker}", std::process::id());
        let place = |home: &Option<PathBuf>| home.as_ref().map(|home| home.join(&name));
        let group = Group {
            memory: place(&self.memory),
            cpu: place(&self.cpu),
            is_version_1: self.is_version_1,
        };
        group.set_up(bytes, weight)?;
        Ok(group)
    }

    /// Whether memory and processor are bounded.
    pub fn are_there(&self) -> (bool, bool) {
        (self.memory.is_some(), self.cpu.is_some())
    }
}

impl Group {
    fn set_up(&self, bytes: u64, weight: u32) -> io::Result<()> {
        for dir in self.dirs() {
            make(dir)?;
        }
        self.bound(bytes)?;
        let Some(dir) = &self.cpu else { return Ok(()) };
        let weight = u64::from(weight.clamp(1, WEIGHT_MAX));
        match self.is_version_1 {
            true => write(dir, "cpu.shares", weight * CPU_SHARES),
            false => write(dir, "cpu.weight", weight * CPU_WEIGHT),
        }
    }

    /// The directories, each once.
    fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        let cpu = self.cpu.iter().filter(|cpu| Some(*cpu) != self.memory.as_ref());
        self.memory.iter().chain(cpu)
    }

    /// The files that a process writes `0` into to join.
    pub fn doors(&self) -> Vec<String> {
        let door = |dir: &PathBuf| dir.join("cgroup.procs").to_string_lossy().into_owned();
        self.dirs().map(door).collect()
    }

    /// Sets how many bytes all that is in it may take.
    pub fn bound(&self, bytes: u64) -> io::Result<()> {
        let Some(dir) = &self.memory else { return Ok(()) };
        match self.is_version_1 {
            true => write(dir, "memory.limit_in_bytes", bytes.min(i64::MAX as u64)),
            false => write(dir, "memory.max", bytes),
        }
    }

    /// Whether a process in it was killed for the bound.
    pub fn was_full(&self) -> bool {
        let file = if self.is_version_1 { "memory.oom_control" } else { "memory.events" };
        let text =
            self.memory.as_ref().and_then(|dir| std::fs::read_to_string(dir.join(file)).ok());
        let kills = |line: &str| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok();
        text.is_some_and(|text| text.lines().find_map(kills).is_some_and(|kills| kills > 0))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for dir in self.dirs() {
            if let Err(error) = std::fs::remove_dir(dir)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::debug!(%error, "a worker's control group stays until the next node starts");
            }
        }
    }
}

/// Directories of this process's groups.
#[derive(Debug, Default, PartialEq, Eq)]
struct Places {
    memory_1: Option<PathBuf>,
    cpu_1: Option<PathBuf>,
    own_2: Option<PathBuf>,
}

/// `own` is `/proc/self/cgroup`, `mounts` is `/proc/self/mountinfo`.
fn places(own: &str, mounts: &str) -> Places {
    let path_of = |wanted: &str| {
        own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|name| name == wanted).then(|| path.to_owned())
        })
    };
    let mut places = Places::default();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(root), Some(mounted), [kind, _, options]) =
            (left.get(3), left.get(4), &right[..])
        else {
            continue;
        };
        // What of the hierarchy is mounted may begin below its root (in a container).
        let within = |path: String| {
            let below = match *root {
                "/" => path.as_str(),
                root => path.strip_prefix(root)?,
            };
            Some(Path::new(mounted).join(below.trim_start_matches('/')))
        };
        let has = |name| *kind == "cgroup" && options.split(',').any(|option| option == name);
        if *kind == "cgroup2" {
            places.own_2 = path_of("").and_then(within);
        } else if has("memory") {
            places.memory_1 = path_of("memory").and_then(within);
        } else if has("cpu") {
            places.cpu_1 = path_of("cpu").and_then(within);
        }
    }
    places
}

/// Version 2: moves this process into a leaf of `own` and lets groups beside it be bounded. Returns
/// what can be.
fn delegate(own: &Path, pid: u32) -> io::Result<Vec<&'static str>> {
    let read = |file| std::fs::read_to_string(own.join(file));
    let there = read("cgroup.controllers")?;
    let wanted: Vec<&str> = ["memory", "cpu"]
        .into_iter()
        .filter(|name| there.split_whitespace().any(|there| there == *name))
        .collect();
    if wanted.is_empty() {
        return Ok(wanted);
    }
    // The root of all alone may hold processes beside groups.
    let leaf = own.join(format!("{PREFIX}{pid}-gate"));
    let moves = own.join("cgroup.type").exists();
    if moves {
        let others = read("cgroup.procs")?;
        if others.lines().any(|other| other.trim() != pid.to_string()) {
            return Err(io::Error::other(
                "other processes are in this node's group; start it as a service of systemd with \
                 Delegate=yes",
            ));
        }
        make(&leaf)?;
        write(&leaf, "cgroup.procs", u64::from(pid))?;
    }
    let plus: Vec<String> = wanted.iter().map(|name| format!("+{name}")).collect();
    let enabled = std::fs::write(own.join("cgroup.subtree_control"), plus.join(" "));
    if let Err(error) = enabled {
        if moves {
            let _ = write(own, "cgroup.procs", u64::from(pid));
            let _ = std::fs::remove_dir(&leaf);
        }
        return Err(error);
    }
    Ok(wanted)
}

/// Removes the groups that nodes left behind which were killed.
fn forget_the_dead(home: &Path) {
    let Ok(entries) = std::fs::read_dir(home) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok())
            && !Path::new("/proc").join(pid.to_string()).exists()
        {
            // It is refused while something is in it.
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

fn make(dir: &Path) -> io::Result<()> {
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn write(dir: &Path, file: &str, value: u64) -> io::Result<()> {
    std::fs::write(dir.join(file), value.to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS_1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/x /sys/fs/cgroup/memory ro,relatime shared:3 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";

    #[test]
    fn the_groups_of_a_process_are_found() {
        let own = "4:memory:/docker/x/y\n2:cpu,cpuacct:/z\n0::/\n";
        let found = places(own, MOUNTS_1);
        assert_eq!(found.memory_1.as_deref(), Some(Path::new("/sys/fs/cgroup/memory/y")));
        assert_eq!(found.cpu_1.as_deref(), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/z")));
        assert_eq!(found.own_2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified/")));
        // Outside of what is mounted.
        assert_eq!(places("4:memory:/elsewhere\n", MOUNTS_1), Places::default());
        let mounts =
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        let found = places("0::/system.slice/genie.service\n", mounts);
        let own = Path::new("/sys/fs/cgroup/system.slice/genie.service");
        assert_eq!(found.own_2.as_deref(), Some(own));
        assert_eq!(places("", "garbage\n1 2 - x\n"), Places::default());
    }

    /// A directory that looks like a group of version 2; the kernel's rules are not in it.
    fn delegated(processes: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        put("cgroup.controllers", "cpuset cpu io memory pids\n");
        put("cgroup.type", "domain\n");
        put("cgroup.procs", processes);
        dir
    }

    #[test]
    fn a_group_of_its_own_is_parted() {
        let pid = std::process::id();
        let dir = delegated(&format!("{pid}\n"));
        let places = Places { own_2: Some(dir.path().to_owned()), ..Places::default() };
        let groups = Groups::within(&places, pid);
        assert_eq!(groups.are_there(), (true, true), "{groups:?}");
        assert!(groups.missing.is_empty(), "{groups:?}");
        let text = |file: &str| std::fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!(text("cgroup.subtree_control"), "+memory +cpu");
        assert_eq!(text(&format!("{PREFIX}{pid}-gate/cgroup.procs")), pid.to_string());
        let group = groups.make(7, 1000, 3).unwrap();
        let own = format!("{PREFIX}{pid}-worker-7");
        assert_eq!(text(&format!("{own}/memory.max")), "1000");
        assert_eq!(text(&format!("{own}/cpu.weight")), "300");
        assert_eq!(group.doors().len(), 1, "one directory for both");
        assert!(!group.was_full());
        let events = dir.path().join(format!("{own}/memory.events"));
        std::fs::write(events, "low 0\noom 3\noom_kill 1\n").unwrap();
        assert!(group.was_full());
    }

    #[test]
    fn a_group_with_others_in_it_is_left_alone() {
        let pid = std::process::id();
        let dir = delegated(&format!("1\n{pid}\n"));
        let places = Places { own_2: Some(dir.path().to_owned()), ..Places::default() };
        let groups = Groups::within(&places, pid);
        assert_eq!(groups.are_there(), (false, false));
        assert!(groups.missing[0].contains("Delegate=yes"), "{groups:?}");
        assert!(!dir.path().join("cgroup.subtree_control").exists());
        let group = groups.make(1, 1, 1).unwrap();
        assert!(group.doors().is_empty() && group.bound(5).is_ok() && !group.was_full());
        assert_eq!(Groups::within(&Places::default(), pid).missing.len(), 2);
    }
}
