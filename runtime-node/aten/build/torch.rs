//! Finding the libtorch of a Python environment.

use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Torch {
    root: PathBuf,
    version: (u32, u32),
    /// `"1"` or `"0"`, for `_GLIBCXX_USE_CXX11_ABI`.
    pub cxx11_abi: &'static str,
}

impl Torch {
    pub fn find() -> Result<Self, String> {
        let python = python();
        // find_spec does not import torch, which would take seconds.
        let script = "import importlib.util as u; s = u.find_spec('torch'); \
                      print(s.submodule_search_locations[0] if s else '')";
        let output = Command::new(&python).args(["-c", script]).output().map_err(|error| {
            format!(
                "cannot run {}: {error}; set GENIE_PYTHON to a Python with torch",
                python.display()
            )
        })?;
        let root = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if root.is_empty() {
            return Err(format!(
                "{} has no torch; install torch there or set GENIE_PYTHON to a Python that has it",
                python.display()
            ));
        }
        let root = PathBuf::from(root);
        let version = version(&root.join("version.py"))?;
        let c10 = root.join("lib/libc10.so");
        let symbols = dynamic_symbols(&c10)?;
        // The library's own functions tell: copies of std's templates carry the mark in either case.
        let marked = |line: &str| line.contains(" _ZN3c10") && line.contains("__cxx11");
        let cxx11_abi = if symbols.lines().any(marked) { "1" } else { "0" };
        Ok(Torch { root, version, cxx11_abi })
    }

    pub fn include(&self) -> PathBuf {
        self.root.join("include")
    }

    pub fn lib(&self) -> PathBuf {
        self.root.join("lib")
    }

    pub fn version_file(&self) -> PathBuf {
        self.root.join("version.py")
    }

    pub fn cxx_standard(&self) -> &'static str {
        if self.version >= (2, 11) { "c++20" } else { "c++17" }
    }
}

fn python() -> PathBuf {
    for name in ["GENIE_PYTHON", "PYO3_PYTHON"] {
        if let Some(path) = std::env::var_os(name) {
            return path.into();
        }
    }
    match std::env::var_os("VIRTUAL_ENV") {
        Some(root) => Path::new(&root).join("bin/python"),
        None => "python3".into(),
    }
}

fn version(file: &Path) -> Result<(u32, u32), String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let parse = || {
        let line = text.lines().find(|line| line.starts_with("__version__"))?;
        let number = line.split(['\'', '"']).nth(1)?;
        let mut parts = number.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    parse().ok_or_else(|| format!("{} names no version", file.display()))
}

/// The defined dynamic symbols of a library, as `nm` prints them (mangled).
pub fn dynamic_symbols(library: &Path) -> Result<String, String> {
    let output = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(library)
        .output()
        .map_err(|error| format!("cannot run nm (part of binutils): {error}"))?;
    if !output.status.success() {
        return Err(format!("nm cannot read {}", library.display()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
