//! `genie-host doctor`: checks the installation and says how to mend what is wrong.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use genie_transport::SharedMemory;
use genie_wire::control::Welcome;
use genie_wire::frame::FrameKind;
use genie_wire::record::RegionSpan;
use genie_wire::template::OutputSpec;
use genie_wire::{DType, Reply, TapeWriter, Template, TensorMeta, Value};
use rustix::process::{Resource, getrlimit};
use serde_json::json;

use crate::client::Client;
use crate::nodes::{NodeSettings, NodeSupervisor};
use crate::runtime_dir::RuntimeDir;
use crate::told::told;

/// A small model and its inputs need about this much.
const MEMORY_BYTES_MIN: u64 = 1 << 30;
/// Descriptors for a few sessions.
const DESCRIPTORS_MIN: u64 = 256;

struct Check {
    name: &'static str,
    ok: bool,
    /// What was found, or what is wrong.
    found: String,
    /// How to mend it; empty when nothing is wrong.
    mend: &'static str,
}

/// Runs all checks and prints a line for each; fails when one found a problem.
pub fn run(settings: &NodeSettings, runtime_base: Option<OsString>, json: bool) -> ExitCode {
    let checks = all(settings, runtime_base);
    let healthy = checks.iter().all(|check| check.ok);
    if json {
        let list: Vec<_> = checks
            .iter()
            .map(|c| json!({"name": c.name, "ok": c.ok, "found": c.found, "mend": c.mend}))
            .collect();
        println!("{:#}", json!({"ok": healthy, "checks": list}));
    } else {
        for check in &checks {
            let state = if check.ok { "ok     " } else { "PROBLEM" };
            println!("{state}  {:<14} {}", check.name, check.found.replace('\n', "\n         "));
            if !check.ok {
                println!("         to mend it:  {}", check.mend);
            }
        }
    }
    if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn all(settings: &NodeSettings, runtime_base: Option<OsString>) -> Vec<Check> {
    let mut checks = vec![check("genie-host", "", || {
        Ok(format!(
            "version {}, protocol {}",
            env!("CARGO_PKG_VERSION"),
            genie_wire::PROTOCOL_VERSION
        ))
    })];
    let dir = RuntimeDir::create(runtime_base);
    checks.push(check(
        "sockets",
        "set XDG_RUNTIME_DIR to a directory of your own that you can write to",
        || match &dir {
            Ok(dir) => sockets_work(dir.path()),
            Err(error) => bail!("{}", told(error)),
        },
    ));
    checks.push(check(
        "shared memory",
        "memfd_create with sealing is needed: allow it in the sandbox, or use a kernel >= 3.17",
        shared_memory_works,
    ));
    checks.push(check(
        "memory",
        "close other programs, or lower --memory-bytes and --weight-cache-bytes",
        memory_is_enough,
    ));
    checks.push(check("limits", "raise it: `ulimit -n 4096`", limits_are_enough));
    checks.push(check("gpu", "", gpu_libraries));
    if let Ok(dir) = &dir {
        node_checks(settings, dir.path(), &mut checks);
    }
    checks
}

fn check(
    name: &'static str,
    mend: &'static str,
    test: impl FnOnce() -> anyhow::Result<String>,
) -> Check {
    match test() {
        Ok(found) => Check { name, ok: true, found, mend: "" },
        Err(error) => Check { name, ok: false, found: told(&error), mend },
    }
}

fn sockets_work(dir: &Path) -> anyhow::Result<String> {
    let path = dir.join("doctor.sock");
    let listener = genie_shm::Listener::bind(&path)?;
    genie_shm::connect(listener.path())?;
    Ok(format!("private directory {}, sockets work", dir.display()))
}

fn shared_memory_works() -> anyhow::Result<String> {
    let memory = SharedMemory::create(1 << 20)?;
    memory.write(4096, b"genie")?;
    let mut back = [0; 5];
    memory.read(4096, &mut back)?;
    ensure!(&back == b"genie", "what was written is not what is read");
    Ok("memfd with sealing works".to_owned())
}

fn memory_is_enough() -> anyhow::Result<String> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .context("/proc/meminfo does not say MemAvailable")?;
    let bytes = kib * 1024;
    let gib = bytes as f64 / (1u64 << 30) as f64;
    ensure!(bytes >= MEMORY_BYTES_MIN, "only {gib:.1} GiB are available");
    Ok(format!("{gib:.1} GiB are available"))
}

fn limits_are_enough() -> anyhow::Result<String> {
    // The host raises its soft limit to the hard one; no limit is no number.
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    ensure!(
        files >= DESCRIPTORS_MIN,
        "only {files} files may be open, {DESCRIPTORS_MIN} are needed"
    );
    let address_space = match getrlimit(Resource::As).current {
        None => "address space unlimited".to_owned(),
        Some(bytes) => format!("address space limited to {} MiB", bytes >> 20),
    };
    let shown = if files == u64::MAX { "any number of".to_owned() } else { files.to_string() };
    Ok(format!("{shown} open files, {address_space}"))
}

fn gpu_libraries() -> anyhow::Result<String> {
    let driver = Path::new("/dev/nvidiactl").exists();
    let library =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/nvidia/lib64"]
            .iter()
            .map(|dir| Path::new(dir).join("libcuda.so.1"))
            .find(|path| path.exists());
    Ok(match (driver, library) {
        (true, Some(library)) => format!("NVIDIA driver and {} found", library.display()),
        (true, None) => "NVIDIA driver found, libcuda.so.1 not in the usual places; add its \
                         directory to LD_LIBRARY_PATH to use the GPU"
            .to_owned(),
        (false, _) => "no NVIDIA driver: the node runs on the CPU".to_owned(),
    })
}

fn node_checks(settings: &NodeSettings, dir: &Path, checks: &mut Vec<Check>) {
    let supervisor = NodeSupervisor::new(settings.clone(), dir.to_owned());
    let found = check(
        "genie-node",
        "build it with `make build`, or name it by --node-binary or GENIE_NODE_BINARY",
        || match supervisor.locate() {
            Ok(path) => Ok(format!("genie-node is {}", path.display())),
            Err(message) => bail!(message),
        },
    );
    let is_found = found.ok;
    checks.push(found);
    if !is_found {
        return;
    }
    let mut client = None;
    checks.push(check(
        "node starts",
        "if a library is missing, set GENIE_TORCH_LIB to torch's own `lib` directory \
         (python -c 'import torch, os; print(os.path.dirname(torch.__file__) + \"/lib\")')",
        || {
            let (link, node) = supervisor.connect().map_err(anyhow::Error::msg)?;
            let mut connected = Client::new(link);
            let welcome = connected.hello()?;
            client = Some(connected);
            Ok(describe_node(&welcome, node.pid()))
        },
    ));
    if let Some(mut client) = client {
        checks.push(check(
            "node computes",
            "the node and its libtorch do not fit together; rebuild it with `make build`",
            || one_addition(&mut client),
        ));
    }
    supervisor.stop();
}

fn describe_node(welcome: &Welcome, pid: u32) -> String {
    let devices: Vec<String> = welcome
        .devices
        .iter()
        .map(|device| format!("{} {}", device.kind, device.name).trim().to_owned())
        .collect();
    format!(
        "{} (process {pid}), torch {}, {} operators, devices: {}",
        welcome.software,
        welcome.torch,
        welcome.ops.len(),
        devices.join(", ")
    )
}

/// `[1, 2] + [3, 4]`, one operand inline and one through shared memory, read both ways.
fn one_addition(client: &mut Client) -> anyhow::Result<String> {
    let memory = SharedMemory::create(4096)?;
    client.region(0, &memory)?;
    memory.write(0, &floats([3.0, 4.0]))?;
    let mut tape = TapeWriter::new();
    let mut template = Vec::new();
    addition().encode(&mut template);
    let template = tape.define(&template);
    let (x, y) = (tape.alloc(8), tape.alloc(8));
    tape.upload_inline(x, 0, &floats([1.0, 2.0]));
    tape.upload(y, 0, 8, RegionSpan { region: 0, offset: 0 });
    let z = tape.op(template, &[x.0, y.0], &[], 1);
    tape.read(1, z, 0, 8, None);
    tape.read(2, z, 0, 8, Some(RegionSpan { region: 0, offset: 1024 }));
    client.send(FrameKind::Tape, tape.bytes())?;
    let inline = reply(client)?;
    ensure!(inline == floats([4.0, 6.0]), "[1, 2] + [3, 4] gave {inline:?}");
    reply(client)?;
    let mut shared = [0; 8];
    memory.read(1024, &mut shared)?;
    ensure!(shared == floats([4.0, 6.0]), "the result did not arrive in shared memory");
    Ok("an addition on the node gives the right answer, inline and in shared memory".to_owned())
}

fn reply(client: &mut Client) -> anyhow::Result<Vec<u8>> {
    let frame = client.wait(FrameKind::Reply)?;
    match Reply::decode(&frame.body)? {
        (_, Reply::Bytes(bytes)) => Ok(bytes.to_vec()),
        (_, Reply::Done) => Ok(vec![]),
        (_, Reply::Error { message, .. }) => bail!("the node answers: {message}"),
        (_, other) => bail!("the node answers with something else: {other:?}"),
    }
}

fn floats(values: [f32; 2]) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&values[0].to_le_bytes());
    bytes[4..].copy_from_slice(&values[1].to_le_bytes());
    bytes
}

fn addition() -> Template {
    let meta = TensorMeta::contiguous(DType::FLOAT32, &[2]);
    Template {
        op: "aten::add.Tensor".to_owned(),
        slots: 2,
        scalars: 0,
        mutated: vec![],
        random: false,
        new_storages: vec![8],
        args: vec![
            Value::Tensor { slot: 0, meta: meta.clone() },
            Value::Tensor { slot: 1, meta: meta.clone() },
            Value::Int(1),
        ],
        outputs: vec![OutputSpec::New { index: 0, meta }],
    }
}
