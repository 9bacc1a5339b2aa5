//! The recognizer `genie-plugin-probe` as a component: it says `other.forward` of every node.

// Each test program uses a part of this.
#![allow(dead_code)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The component, built once.
pub fn probe() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
        let out = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .args(["build", "--quiet", "--release", "--target", "wasm32-unknown-unknown"])
            .args(["-p", "genie-plugin-probe", "--target-dir"])
            .arg(&target)
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .output()
            .expect("cargo runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        target.join("wasm32-unknown-unknown/release/genie_plugin_probe.wasm")
    })
}

/// Puts a recognizer of this name into a directory of plugins that the host trusts.
pub fn install(plugins: &Path, name: &str, component: &[u8]) {
    let dir = plugins.join(name);
    std::fs::create_dir_all(&dir).unwrap();
    for dir in [plugins, &dir] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let manifest = format!(
        "name = \"{name}\"\nversion = \"1.2.3\"\nkinds = [\"recognizer\"]\n\
         component = \"{name}.wasm\"\n"
    );
    let files =
        [("plugin.toml".to_owned(), manifest.as_bytes()), (format!("{name}.wasm"), component)];
    for (file, bytes) in files {
        let path = dir.join(file);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
}
