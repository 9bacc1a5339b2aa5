//! How much memory this process holds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

static STATM: OnceLock<Option<File>> = OnceLock::new();

/// Keeps the way to the figures open, for a process that is about to lose the file system.
pub fn open() {
    STATM.get_or_init(|| File::open("/proc/self/statm").ok());
    // It is read once, from a file too.
    rustix::param::page_size();
}

/// Bytes of this process that lie in memory now; 0 where that is not told.
pub fn resident_bytes() -> u64 {
    open();
    let mut text = [0; 128];
    let file = STATM.get().and_then(Option::as_ref);
    let read = file.and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..read]);
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_holds_something() {
        assert!(resident_bytes() > 1 << 16);
    }
}
