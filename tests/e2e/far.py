"""A node in another network namespace, and programs and hosts that reach it over a link.

`Far` keeps a `Link` of tests/net/bed.py, certificates for both its ends, and the nodes started at
end B. Programs run at end A.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import torch
from conftest import GONE_SECONDS_MAX, Host, Program, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "net"))
import bed

READY_SECONDS_MAX = 300
TOOL_SECONDS_MAX = 300
JOB_SECONDS_MAX = 600
TORCH_LIB = str(Path(torch.__file__).parent / "lib")


def host_binary():
    """The genie-host of this installation, found as the product finds it."""
    from genie import _session

    return str(_session.find_binary())


def node_binary():
    """The genie-node of this installation: as told, beside the host, or on PATH."""
    beside = Path(host_binary()).with_name("genie-node")
    found = os.environ.get("GENIE_NODE_BINARY") or (str(beside) if beside.exists() else shutil.which("genie-node"))
    assert found, "genie-node is not installed"
    return found


def tool(*arguments, prefix=(), may_fail=False, env=None):
    """Runs a subcommand of genie-host to its end; what it printed, errors included."""
    command = [*prefix, host_binary(), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "GENIE_CERTS"} | (env or {})
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_SECONDS_MAX, env=environment)
    assert may_fail or done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


WORKER = """
import faulthandler, logging, traceback
sys.path.insert(0, sys.argv[1])
WARNINGS = []
class Keep(logging.Handler):
    def emit(self, record):
        WARNINGS.append(record.getMessage())
logging.getLogger("genie").addHandler(Keep(logging.WARNING))

def answer(line):
    job = json.loads(line)
    before = {name: os.environ.get(name) for name in job["env"]}
    os.environ.update(job["env"])
    WARNINGS.clear()
    faulthandler.dump_traceback_later(job["seconds"], exit=True)
    try:
        exec(compile(job["source"], "<job>", "exec"), dict(globals()))
        say(end=True, warnings=WARNINGS)
    except BaseException:
        say(end=False, failed=traceback.format_exc())
    finally:
        genie.shutdown()
        genie._session._chosen = None  # what a job asked for by init() is not for the next
        faulthandler.cancel_dump_traceback_later()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

# Not `for line in sys.stdin`, which reads ahead what a job waits for.
while line := sys.stdin.readline():
    answer(line)
"""


class Worker:
    """One program at end A that does job after job, each with a session of its own: importing
    torch takes longer than most of them."""

    def __init__(self, far):
        self._far = far
        self._program = None
        self._busy = False

    def begin(self, source, env=None, seconds=JOB_SECONDS_MAX):
        """Gives it a job; `heard` and `tell` are for what it says and waits for."""
        if self._busy:
            self.end()
        if self._program is None:
            here = str(Path(__file__).parent)
            self._program = Program(WORKER, args=[here], prefix=self._far.at_a)
        self._busy = True
        env = {name: str(value) for name, value in (env or {}).items()}
        self._program.tell(json.dumps({"source": textwrap.dedent(source), "env": env, "seconds": seconds}))

    def tell(self, line=""):
        self._program.tell(line)

    def heard(self):
        """The fields of the next say(...) of the job."""
        said = self._program.heard()
        assert "failed" not in said, said["failed"]
        return said

    def finish(self):
        """Waits for the job's end; what it said last, and `warnings` of the package genie."""
        last = {}
        while "end" not in (said := self.heard()):
            last = said
        self._busy = False
        return {**last, "warnings": said["warnings"]}

    def do(self, source, env=None, seconds=JOB_SECONDS_MAX):
        self.begin(source, env, seconds)
        return self.finish()

    def end(self):
        program, self._program, self._busy = self._program, None, False
        if program:
            program.end()
            wait_until(lambda: not program.left_behind(), GONE_SECONDS_MAX, "processes are left behind")


class Certificates:
    """An authority, a host's certificate and those of nodes, made by `genie-host certs`."""

    def __init__(self, directory):
        self.host = Path(directory)
        tool("certs", "init", "--dir", self.host, "--name", "desk")

    def node(self, address, name="far", days=None):
        """The directory of a node's certificate, made or renewed."""
        out = self.host.parent / f"{self.host.name}-{name}"
        more = [] if days is None else ["--days", days]
        tool("certs", "issue", "node", name, "--address", address, "--dir", self.host, "--out", out, *more)
        return out


class Node:
    """A genie-node at end B."""

    def __init__(self, link, log, *flags, listen, env=None):
        self.log = log
        listens = [word for each in listen for word in ("--listen", each)]
        environment = {**os.environ, "LD_LIBRARY_PATH": TORCH_LIB, **{k: str(v) for k, v in (env or {}).items()}}
        command = [node_binary(), *listens, "--device", "cpu", *flags]
        with open(log, "w") as errors:
            self.process = link.b.start(command, stderr=errors, env=environment)
        try:
            self.addresses = self.process.lines.until("ready", READY_SECONDS_MAX).split()
        except (EOFError, TimeoutError):
            raise AssertionError(f"genie-node did not become ready: {self.said()}") from None

    @property
    def address(self):
        """The first address it listens at."""
        return self.addresses[0]

    def said(self):
        """Its log."""
        return Path(self.log).read_text()

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(bed.STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Far:
    """A link with certificates; nodes and hosts are started as tests need them."""

    def __init__(self, directory, **link):
        self.directory = Path(directory)
        self.link = bed.Link(**link)
        self._numbers = 0
        self.worker = Worker(self)
        self.nodes, self.hosts = [], []

    def __enter__(self):
        self.certificates = Certificates(self.directory / "certs")
        self.node_certificates = self.certificates.node(self.link.b.address)
        self.link.__enter__()
        return self

    def __exit__(self, *failure):
        try:
            self.worker.end()
            self.end_all()
        finally:
            self.link.__exit__(*failure)

    @property
    def at_a(self):
        """The prefix that runs a command at end A."""
        return self.link.a.command([])

    def fresh(self, name):
        """A path that was not used before."""
        self._numbers += 1
        return self.directory / f"{self._numbers}-{name}"

    def node(self, *flags, listen=None, certs=None, env=None):
        """Starts a node at end B; it listens for QUIC there if nothing else is said."""
        listen = listen or [f"quic://{self.link.b.address}:0"]
        certs = ["--certs", certs or self.node_certificates]
        node = Node(self.link, self.fresh("node.log"), *map(str, [*certs, *flags]), listen=listen, env=env)
        self.nodes.append(node)
        return node

    def environment(self, *addresses, data="", **more):
        """What a program is told that shall use the nodes at these addresses by a host of its own."""
        return {
            "GENIE_MODE": "remote",
            "GENIE_NODES": ",".join(addresses),
            "GENIE_CERTS": self.certificates.host,
            "GENIE_DATA": data,
            **more,
        }

    def host(self, *addresses, data="", flags=(), certs=None):
        """Starts a host at end A that programs join."""
        words = [word for address in addresses for word in ("--node", address)]
        words += ["--certs", certs or self.certificates.host] + (["--data", data] if data else []) + list(flags)
        log = self.fresh("host.log")
        with open(log, "w") as errors:
            # Short: the path of a socket has little room.
            host = Host(self.fresh("h"), *map(str, words), prefix=self.at_a, stderr=errors)
        host.log = log
        self.hosts.append(host)
        return host

    def end_all(self):
        """Ends the nodes and hosts that run, and the faults of the link."""
        self.link.restore()
        for lane in self.link.lanes:
            self.link.fault("calm", lane)
        while self.hosts:
            self.hosts.pop().end()
        while self.nodes:
            self.nodes.pop().end()

    @contextlib.contextmanager
    def cut(self):
        """Nothing crosses meanwhile."""
        self.link.cut()
        try:
            yield
        finally:
            self.link.restore()

    def wait_crossed(self, megabytes, lane="forward", seconds=300):
        """Until that much more has crossed the link."""
        start = self.link.counters()[lane][1]
        wait_until(
            lambda: self.link.counters()[lane][1] - start > megabytes * 1_000_000,
            seconds,
            f"fewer than {megabytes} MB crossed the link",
        )
