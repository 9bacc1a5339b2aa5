//! Landlock: what may be opened, connected and signalled, whatever the system call.

use std::fs;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope,
};

use crate::{Profile, Report};

/// The newest ABI that is asked for; a kernel enforces what it knows of it.
const NEWEST: ABI = ABI::V10;

/// What each ABI added, for the report of a kernel that is older.
const ADDED: [(ABI, &str); 6] = [
    (ABI::V3, "truncation of files"),
    (ABI::V4, "TCP"),
    (ABI::V5, "commands to devices"),
    (ABI::V6, "abstract sockets and signals"),
    (ABI::V9, "named Unix sockets"),
    (ABI::V10, "UDP"),
];

pub fn restrict(profile: &Profile, report: &mut Report) {
    match enforce(profile).map(|status| (status.ruleset, status.landlock)) {
        Ok((RulesetStatus::NotEnforced, LandlockStatus::NotEnabled)) => {
            report.lacks("Landlock: switched off in this kernel");
        }
        Ok((enforced, LandlockStatus::Available { effective_abi, .. }))
            if enforced != RulesetStatus::NotEnforced =>
        {
            report.landlock_abi = Some(effective_abi as u32);
            let later = ADDED.iter().filter(|(abi, _)| *abi > effective_abi);
            let without: Vec<_> = later.map(|(_, what)| *what).collect();
            if !without.is_empty() {
                report.lacks(format!("in Landlock: {}", without.join(", ")));
            }
        }
        Ok(_) => report.lacks("Landlock: not in this kernel"),
        Err(error) => report.lacks(format!("Landlock: {error}")),
    }
    if report.landlock_abi.is_none() && *profile != Profile::Cpu {
        report.lacks("anything that keeps files closed, as this profile opens some");
    }
}

fn enforce(profile: &Profile) -> Result<RestrictionStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for (path, access) in opened(profile) {
        // What this machine does not have needs no rule.
        if let Ok(place) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(place, access))?;
        }
    }
    rules.restrict_self()
}

/// The paths that a profile may open, with all below them, and for what.
fn opened(profile: &Profile) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let Profile::Cuda { libraries } = profile else { return Vec::new() };
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let mut paths: Vec<(PathBuf, BitFlags<AccessFs>)> = Vec::new();
    paths.extend(devices(Path::new("/dev")).into_iter().map(|path| (path, device)));
    paths.push(("/dev/nvidia-caps".into(), device | AccessFs::ReadDir));
    paths.extend(DRIVER_READS.iter().map(|path| (path.into(), read)));
    paths.extend(libraries.iter().map(|path| (path.clone(), read)));
    paths
}

/// What the driver and its libraries read: parameters, the machine's shape, code.
const DRIVER_READS: [&str; 17] = [
    "/proc/driver/nvidia",
    "/proc/driver/nvidia-uvm",
    "/proc/devices",
    "/proc/modules",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/sys/vm/mmap_min_addr",
    "/proc/self",
    "/sys/bus/pci/devices",
    "/sys/devices",
    "/sys/module/nvidia",
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
    "/usr/local/cuda",
    "/etc/ld.so.cache",
];

fn devices(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir() && !kind.is_symlink()))
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"nvidia"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_worker_opens_nothing() {
        assert_eq!(opened(&Profile::Cpu), []);
    }

    #[test]
    fn only_nvidia_devices_are_written_to() {
        let tree = tempfile::tempdir().unwrap();
        for name in ["nvidia0", "nvidiactl", "nvidia-uvm", "sda", "mem"] {
            fs::write(tree.path().join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("mem", tree.path().join("nvidia7")).unwrap();
        fs::create_dir(tree.path().join("nvidia-caps")).unwrap();
        let mut found = devices(tree.path());
        found.sort();
        assert_eq!(found, ["nvidia-uvm", "nvidia0", "nvidiactl"].map(|n| tree.path().join(n)));

        let writable = |(path, access): &(PathBuf, BitFlags<AccessFs>)| {
            access.contains(AccessFs::WriteFile).then(|| path.clone())
        };
        let profile = Profile::Cuda { libraries: vec!["/opt/torch/lib".into()] };
        let opened = opened(&profile);
        assert!(opened.iter().filter_map(writable).all(|path| path.starts_with("/dev")));
        assert!(opened.iter().any(|(path, _)| path == Path::new("/opt/torch/lib")));
    }
}
