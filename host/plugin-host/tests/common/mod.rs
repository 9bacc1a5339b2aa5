//! Components built from source, directories of plugins, graphs.

// Each test program uses a part of this.
#![allow(dead_code)]

pub mod bomb;
pub mod lines;

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use genie_plugin::Columns;
use genie_plugin::symbols::Symbols;
use genie_plugin_host::{Capability, Compiler, Limits, PluginHost, Settings};
use tempfile::TempDir;

/// The component of a package of this workspace; built once.
pub fn component(package: &str) -> PathBuf {
    static BUILT: OnceLock<Mutex<HashMap<String, PathBuf>>> = OnceLock::new();
    let built = BUILT.get_or_init(Mutex::default);
    let mut built = built.lock().unwrap_or_else(|error| error.into_inner());
    built.entry(package.to_owned()).or_insert_with(|| build(package)).clone()
}

fn build(package: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // Another directory than the tests' own, whose lock cargo may hold.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let out = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .current_dir(root)
        .args(["build", "--quiet", "--release", "--target", "wasm32-unknown-unknown"])
        .args(["-p", package, "--target-dir"])
        .arg(&target)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success(),
        "building {package} failed; `rustup target add wasm32-unknown-unknown` may help:\n{said}"
    );
    let file = format!("{}.wasm", package.replace('-', "_"));
    target.join("wasm32-unknown-unknown/release").join(file)
}

/// A directory of plugins and a cache, both of their own.
pub struct Place {
    pub root: TempDir,
}

impl Place {
    pub fn new() -> Place {
        let root = tempfile::tempdir().unwrap();
        make_dir(&root.path().join("plugins"));
        Place { root }
    }

    pub fn plugins(&self) -> PathBuf {
        self.root.path().join("plugins")
    }

    pub fn cache(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    /// Adds a plugin with a copy of a component; `more` are further lines of its manifest.
    pub fn add(&self, name: &str, kind: &str, component: &Path, more: &str) -> PathBuf {
        self.add_bytes(name, kind, &std::fs::read(component).unwrap(), more)
    }

    pub fn add_bytes(&self, name: &str, kind: &str, component: &[u8], more: &str) -> PathBuf {
        let dir = self.manifest(name, kind, more);
        write(&dir.join("plugin.wasm"), component);
        dir
    }

    /// Adds a plugin without its component.
    pub fn manifest(&self, name: &str, kind: &str, more: &str) -> PathBuf {
        let dir = self.plugins().join(name);
        make_dir(&dir);
        let text = format!(
            "name = \"{name}\"\nversion = \"1.0\"\nkinds = [\"{kind}\"]\n\
             component = \"plugin.wasm\"\n{more}\n"
        );
        write(&dir.join("plugin.toml"), text.as_bytes());
        dir
    }

    pub fn settings(&self) -> Settings {
        Settings {
            directory: self.plugins(),
            cache: Some(self.cache()),
            compiler: compiler(),
            grants: vec![],
            limits: Limits::default(),
        }
    }

    pub fn open(&self) -> PluginHost {
        PluginHost::open(self.settings()).unwrap()
    }

    pub fn open_granting(&self, grants: &[Capability]) -> PluginHost {
        PluginHost::open(Settings { grants: grants.to_vec(), ..self.settings() }).unwrap()
    }
}

fn make_dir(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Writes a file that only its owner can write, whatever the umask.
pub fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

/// The program that compiles, which cargo builds with the tests.
pub fn compiler() -> Compiler {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().and_then(Path::parent).unwrap().join("examples/compile_child");
    assert!(program.exists(), "{} is built by `cargo test`", program.display());
    Compiler::Child(vec![program.into()])
}

/// A chain of `layers` times `addmm` and `relu`, with three arguments an op.
pub fn chain(layers: usize) -> Columns {
    let mut symbols = Symbols::new();
    let (source, mm, relu) = (
        symbols.intern("genie::source"),
        symbols.intern("aten::addmm"),
        symbols.intern("aten::relu"),
    );
    let mut c = Columns { geometry_dtype: vec![6], geometry_ends: vec![2], ..Columns::default() };
    (c.sizes, c.strides) = (vec![8, 8], vec![8, 1]);
    let node = |c: &mut Columns, op: u32, module: u32, inputs: &[u32]| -> u32 {
        let value = c.value_storage.len() as u32;
        c.op.push(op);
        c.module.push(module);
        c.class.push(0);
        c.mark.push(0);
        c.stage.push(0);
        c.model.push(0);
        c.segment.push(0);
        c.flops.push(128);
        c.bytes.push(256);
        for (index, input) in inputs.iter().enumerate() {
            c.input_value.push(*input);
            c.input_geometry.push(0);
            c.input_offset.push(0);
            c.arg_kind.push(1);
            c.arg_bits.push(index as u64);
        }
        c.input_ends.push(c.input_value.len() as u32);
        c.arg_ends.push(c.arg_kind.len() as u32);
        c.output_value.push(value);
        c.output_geometry.push(0);
        c.output_offset.push(0);
        c.output_ends.push(c.output_value.len() as u32);
        c.value_storage.push(value);
        c.value_producer.push(c.op.len() as u32 - 1);
        c.value_edge.push(0);
        c.storage_bytes.push(256);
        c.storage_origin.push(u8::from(op == source));
        c.storage_alive.push(1);
        value
    };
    let (mut last, weight) = (node(&mut c, source, 0, &[]), node(&mut c, source, 0, &[]));
    for layer in 0..layers {
        let module = symbols.intern(&format!("layers.{layer}"));
        last = node(&mut c, mm, module, &[weight, last, weight]);
        last = node(&mut c, relu, module, &[last]);
    }
    (c.blob, c.symbol_ends) = symbols.into_table();
    c.check().unwrap();
    c
}
