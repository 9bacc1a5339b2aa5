//! An error as people read it.

/// The error and what caused it, in one line; a cause that was told already is left out.
pub fn told(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use genie_shm::Listener;

    use super::*;

    #[test]
    fn each_cause_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("none/host.sock");
        let error = Listener::bind(&nowhere).context("cannot listen for programs").unwrap_err();
        let line = told(&error);
        assert!(line.starts_with("cannot listen for programs: "), "{line}");
        assert_eq!(line.matches("os error 2").count(), 1, "{line}");
    }
}
