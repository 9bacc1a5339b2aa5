"""The arrows between rooms point down only (docs/ARCHITECTURE.md), checked over `cargo metadata`."""

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Which crates of the house a crate may use. A new crate needs a line here: that is the point.
MAY_USE = {
    "genie-wire": set(),
    "genie-srg": {"genie-wire"},
    "genie-transport": {"genie-wire"},
    "genie-bulk": set(),
    # The ends of a session elsewhere.
    "genie-remote": {"genie-transport", "genie-wire"},
    "genie-aten": {"genie-wire"},
    # Closes a worker in; knows nothing of what the worker does.
    "genie-sandbox": set(),
    "genie-tls": set(),
    # What the stream transports share; a floor below them.
    "genie-records": {"genie-transport"},
    "genie-quic": {"genie-records", "genie-tls", "genie-transport"},
    "genie-tcp": {"genie-records", "genie-tls", "genie-transport"},
    "genie-shm": {"genie-transport", "genie-wire"},
    "genie-shm-plugin": {"genie-records", "genie-shm", "genie-transport"},
    "genie-udp": {"genie-bulk", "genie-transport"},
    "genie-engine": {"genie-srg", "genie-transport", "genie-wire"},
    # What a node's two kinds of process say to each other.
    "genie-channel": {"genie-transport", "genie-wire"},
    "genie-executor": {"genie-channel", "genie-shm", "genie-transport", "genie-wire"},
    "genie-worker": {"genie-aten", "genie-channel", "genie-executor", "genie-sandbox", "genie-transport", "genie-wire"},
    # No libtorch: it does not see the executor.
    "genie-gate": {"genie-channel", "genie-remote", "genie-sandbox", "genie-shm", "genie-tls", "genie-transport", "genie-wire"},
    "genie-plugin": set(),
    **{
        f"genie-plugin-{name}": {"genie-plugin"}
        for name in ("general", "llm", "multimodal", "policies", "recsys", "vision")
    },
    "genie-plugin-host": {"genie-plugin"},
    # Guests that measure and test the plugin host.
    "genie-plugin-probe": {"genie-plugin"},
    "genie-guest-clock": {"genie-plugin"},
    "genie-guest-hostile": {"genie-plugin"},
    "genie-guest-policy": {"genie-plugin"},
    # The network test bed's.
    "genie-test-relay": set(),
    "genie-frozen-v0-1": set(),
    "genie-frozen-v0-2": set(),
    "genie-random-notes": {"genie-plugin"},
    "genie-planner": {"genie-plugin"},
    "genie-analyzer": {"genie-plugin", "genie-srg", "genie-wire"},
    "genie-host": {
        *("genie-analyzer", "genie-engine", "genie-planner", "genie-plugin", "genie-plugin-host"),
        "genie-plugin-probe",
        *("genie-remote", "genie-shm", "genie-srg", "genie-tls", "genie-transport", "genie-wire"),
    },
    # Mode `local` runs the tape in the Python process by the node's own executor.
    "genie-frontend": {"genie-aten", "genie-worker", "genie-shm", "genie-transport", "genie-wire"},
}
# Rooms without I/O, clock, environment or randomness: those enter at the binaries.
PURE = ("host/wire", "host/srg", "host/engine", "host/analyzer", "host/planner")
IMPURE = re.compile(
    r"std::(env|fs|net|process|os)\b|Instant::now|SystemTime|std::thread|rand::|tokio::|tempfile::|Uuid::new"
)
# Who may link or use what.
ONLY = {
    "tch": {"genie-worker"},
    "wasmtime": {"genie-plugin-host"},
    "libloading": {"genie-transport"},
    "cc": {"genie-aten"},
    "pyo3": {"genie-frontend"},
}


@pytest.fixture(scope="module")
def packages():
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--offline"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if out.returncode != 0:  # a lock file that is not complete yet
        out = subprocess.run(command[:-1], cwd=ROOT, capture_output=True, text=True, check=True)
    return {package["name"]: package for package in json.loads(out.stdout)["packages"]}


def uses(package, kinds=(None, "build")):
    return {d["name"] for d in package["dependencies"] if d["kind"] in kinds}


def test_every_crate_has_its_place(packages):
    assert set(packages) == set(MAY_USE)


def test_arrows_point_down(packages):
    wrong = {
        name: sorted(up)
        for name, package in packages.items()
        if (up := (uses(package) & set(packages)) - MAY_USE.get(name, set()))
    }
    assert not wrong


def test_the_order_has_no_circle():
    floors, left = {}, dict(MAY_USE)
    while left:
        ready = [name for name, below in left.items() if below <= set(floors)]
        assert ready, f"a circle among {sorted(left)}"
        for name in ready:
            floors[name] = 1 + max((floors[other] for other in left.pop(name)), default=0)


def test_nothing_depends_on_a_binary_of_the_host(packages):
    assert not [name for name, package in packages.items() if "genie-host" in uses(package, (None, "build", "dev"))]


def test_only_aten_links_libtorch(packages):
    assert [name for name, package in packages.items() if package["links"]] == ["genie-aten"]


@pytest.mark.parametrize("crate", ONLY)
def test_heavy_dependencies_stay_in_their_room(crate, packages):
    assert {name for name, package in packages.items() if crate in uses(package)} <= ONLY[crate]


def production_code(path):
    """The text of a Rust file without its test module (tests come last) and without comments."""
    text = re.split(r"#\[cfg\(test\)\]", path.read_text())[0]
    return re.sub(r"//.*", "", text)


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_do_no_io(room):
    sources = [p for p in (ROOT / room / "src").rglob("*.rs") if p.stem != "tests"]
    found = {
        f"{path.relative_to(ROOT)}: {match.group(0)}"
        for path in sources
        if (match := IMPURE.search(production_code(path)))
    }
    assert not found


def test_each_crate_says_what_it_is():
    silent = [
        str(path.relative_to(ROOT))
        for path in ROOT.glob("*/**/src/lib.rs")
        if "target" not in path.parts and not path.read_text().lstrip().startswith("//!")
    ]
    assert not silent


def test_unsafe_blocks_say_why():
    """clippy's `undocumented_unsafe_blocks` keeps it; every crate must inherit the lints."""
    manifests = [p for p in ROOT.glob("*/**/Cargo.toml") if "target" not in p.parts and ".venv" not in p.parts]
    assert manifests
    assert not [str(p) for p in manifests if "[lints]\nworkspace = true" not in p.read_text()]
