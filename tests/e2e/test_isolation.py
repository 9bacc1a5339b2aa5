"""Clients of one node cannot read, change, stop or starve one another (SECURITY.md).

A node on loopback, and hosts with certificates of their own: `desk` and `other` are two clients.
"""

import os
import subprocess
import time

import psutil
import pytest
from conftest import GONE_SECONDS_MAX, alive, wait_until
from far import READY_SECONDS_MAX, TORCH_LIB, Certificates, node_binary, tool

pytestmark = pytest.mark.remote

# Writes far outside its results. Eager PyTorch ends with the program that says so.
CRASH = """
def crash():
    x = torch.ones(1, 1, 4, 4, device=DEVICE)
    grad = torch.ones(1, 1, 2, 2, device=DEVICE)
    indices = torch.full((1, 1, 2, 2), 1 << 50, dtype=torch.int64, device=DEVICE)
    backward = torch.ops.aten.max_pool2d_with_indices_backward
    return backward(grad, x, [2, 2], [2, 2], [0, 0], [1, 1], False, indices).sum().item()
"""
CRASHES = (
    CRASH
    + """
try:
    crash()
    say(error=None)
except genie.NodeLost as error:
    say(error=str(error))
genie.init()
say(again=torch.ones(3, device=DEVICE).sum().item())
"""
)


class Node:
    """A genie-node on loopback, whose clients have certificates."""

    def __init__(self, directory, *flags):
        self.certificates = Certificates(directory / "certs")
        self.other = directory / "certs-other"
        tool("certs", "issue", "host", "other", "--dir", self.certificates.host, "--out", self.other)
        own = self.certificates.node("127.0.0.1")
        self.log = directory / "node.log"
        self.process = subprocess.Popen(
            [node_binary(), "--listen", "quic://127.0.0.1:0", "--certs", own, "--device", "cpu", *map(str, flags)],
            stdout=subprocess.PIPE,
            stderr=open(self.log, "w"),
            env={"LD_LIBRARY_PATH": TORCH_LIB, "PATH": "/usr/bin:/bin"},
            text=True,
        )
        self.address = self.process.stdout.readline().split()[1]

    def of(self, certificates):
        return {"GENIE_MODE": "remote", "GENIE_NODES": self.address, "GENIE_CERTS": certificates}

    @property
    def desk(self):
        return self.of(self.certificates.host)

    @property
    def stranger(self):
        return self.of(self.other)

    def workers(self):
        """The processes of the workers."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in below if process.name() == "genie-worker"]


@pytest.fixture
def node(tmp_path):
    started = []

    def start(*flags):
        started.append(Node(tmp_path, *flags))
        return started[-1]

    yield start
    for each in started:
        tree = psutil.Process(each.process.pid).children(recursive=True)
        each.process.kill()
        each.process.wait(READY_SECONDS_MAX)
        wait_until(lambda: not any(alive(p.pid) for p in tree), GONE_SECONDS_MAX, "the node's processes live on")


def test_an_operator_that_crashes_costs_its_own_session(program):
    """In the embedded default: the program is told which operator it was, and begins anew."""
    running = program(CRASHES)
    said = running.heard()
    assert "max_pool2d_with_indices_backward" in said["error"] and "SIGSEGV" in said["error"], said
    assert running.heard() == {"again": 3.0}
    running.finish()


def test_a_crash_is_not_noticed_by_another_client(node, program):
    served = node()
    steady = program(
        """
        x = torch.arange(1000, dtype=torch.float64, device=DEVICE)
        rounds = 0
        say(ready=True)
        import select
        while not select.select([sys.stdin], [], [], 0)[0]:
            assert (x * 2 + rounds).sum().item() == 999000.0 + 1000 * rounds
            rounds += 1
            if rounds % 200 == 0:
                say(rounds=rounds)
        say(rounds=rounds, pid=genie.stats()["node_pid"])
        """,
        env=served.desk,
    )
    assert steady.heard()["ready"]
    for _ in range(3):
        crashing = program(CRASHES, env=served.stranger)
        assert "SIGSEGV" in crashing.heard()["error"]
        assert crashing.heard() == {"again": 3.0}
        crashing.finish()
    before = steady.heard()["rounds"]
    while steady.heard()["rounds"] < before + 400:
        pass
    steady.tell("enough")
    assert steady.finish()[0]["pid"] == served.process.pid, "the node lives on"


def test_memory_of_another_client_is_never_seen(node, program):
    served = node()
    secret = """
    x = torch.full((16 << 20,), 0x5EC4E7, dtype=torch.int32, device=DEVICE)
    say(sum=x.sum(dtype=torch.int64).item())
    """
    look = """
    found = sum((torch.empty(4 << 20, dtype=torch.int32, device=DEVICE) == 0x5EC4E7).sum().item() for _ in range(8))
    say(found=found)
    """
    said, _ = program(secret, env=served.stranger).finish()
    assert said["sum"] == (16 << 20) * 0x5EC4E7
    said, _ = program(look, env=served.desk).finish()
    assert said == {"found": 0}


def test_each_client_has_a_worker_that_is_closed_in(node, program):
    served = node()
    waits = "say(value=torch.ones(3, device=DEVICE).sum().item())\nsys.stdin.readline()"
    programs = [program(waits, env=env) for env in (served.desk, served.stranger, served.desk)]
    assert [each.heard()["value"] for each in programs] == [3.0] * 3
    workers = served.workers()
    assert len(workers) == 2, "one for each certificate"
    for worker in workers:
        status = open(f"/proc/{worker.pid}/status").read()
        assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status, status
        assert "CapEff:\t0000000000000000" in status, status
        assert os.getsid(worker.pid) == worker.pid, "the scheduler shares between sessions"
    for each in programs:
        each.tell()
        each.finish()


def test_an_operator_that_outlives_its_client_is_ended(node, program):
    served = node("--operator-s", 1)
    endless = program(
        """
        x = torch.ones(1, device=DEVICE)
        say(value=x.sum().item())
        y = x.expand(1 << 40).sum()
        torch.remote_accelerator.synchronize()
        """,
        env=served.stranger,
    )
    endless.heard()
    [worker] = served.workers()
    idle = worker.cpu_times().user
    wait_until(lambda: worker.cpu_times().user > idle + 0.3, GONE_SECONDS_MAX, "the operator does not run")
    # Another client computes meanwhile.
    said, _ = program("say(value=torch.ones(3, device=DEVICE).sum().item())", env=served.desk).finish()
    assert said == {"value": 3.0}
    endless.end()
    wait_until(lambda: not alive(worker.pid), GONE_SECONDS_MAX, "the operator runs on")
    assert "--operator-s" in served.log.read_text()
    again, _ = program("say(value=torch.ones(3, device=DEVICE).sum().item())", env=served.stranger).finish()
    assert again == {"value": 3.0}


def test_no_operator_takes_longer_than_the_node_allows(node, program):
    served = node("--client-operator-s", 1)
    endless = """
    x = torch.ones(1, device=DEVICE)
    for _ in range(2000):
        x = x * 1
    say(value=x.sum().item())
    try:
        x.expand(1 << 40).sum().item()
    except genie.NodeLost as error:
        say(error=str(error))
    """
    beside = """
    x = torch.ones(1, device=DEVICE)
    say(value=x.sum().item())
    sys.stdin.readline()
    try:
        x.sum().item()
    except genie.NodeLost as error:
        say(error=str(error))
    """
    innocent = program(beside, env=served.stranger)
    assert innocent.heard() == {"value": 1.0}
    running = program(endless, env=served.stranger)
    assert running.heard() == {"value": 1.0}
    said, _ = program("say(value=torch.ones(3, device=DEVICE).sum().item())", env=served.desk).finish()
    assert said == {"value": 3.0}
    said, _ = running.finish()
    assert "aten::sum" in said["error"] and "--client-operator-s" in said["error"], said
    assert "another session" not in said["error"], said
    innocent.tell()
    said, _ = innocent.finish()
    assert "another session of this client ran that" in said["error"], said


def test_a_worker_without_sessions_ends_after_a_while(node, program):
    served = node("--linger-s", 0)
    program("say(value=torch.ones(3, device=DEVICE).sum().item())", env=served.desk).finish()
    wait_until(lambda: not served.workers(), GONE_SECONDS_MAX, "a worker that nobody uses lives on")
    start = time.monotonic()
    said, _ = program("say(value=torch.ones(3, device=DEVICE).sum().item())", env=served.desk).finish()
    assert said == {"value": 3.0} and time.monotonic() - start < READY_SECONDS_MAX


MIB = 1 << 20


def test_what_an_operator_takes_beside_tensors_is_bounded(node, program):
    """Four million rows as tensors of their own: a gigabyte that libtorch's allocator never sees."""
    served = node("--client-memory-bytes", 256 * MIB, "--threads", 2)
    said, _ = program(
        """
        x = torch.arange(1 << 22, dtype=torch.int8, device=DEVICE).reshape(-1, 1)
        say(rows=len(torch.unique(x[:1000], dim=0)))
        try:
            torch.unique(x, dim=0)
            say(error=None)
        except torch.OutOfMemoryError as error:
            say(error=str(error), after=x[:5].sum().item())
        """,
        env=served.desk,
    ).finish()
    assert said["after"] == 10 and "unique_dim" in said["error"] and "beside tensors" in said["error"], said
    [worker] = served.workers()
    adjusted = int(open(f"/proc/{worker.pid}/oom_score_adj").read())
    gate = int(open(f"/proc/{served.process.pid}/oom_score_adj").read())
    assert adjusted > gate, "the kernel takes a worker before the gate"


def grouped():
    """Whether nodes may make control groups here, as they tell it themselves."""
    told = subprocess.run([node_binary(), "doctor"], capture_output=True, text=True, env={"LD_LIBRARY_PATH": TORCH_LIB})
    return "workers are in control groups" in told.stdout


def test_a_client_gets_its_part_of_the_processor(node, program):
    if not grouped():
        pytest.skip("no control groups here (genie-node doctor says why)")
    served = node("--client-weight", "desk=8", "--threads", 1)
    # On one core, so that they are in each other's way.
    psutil.Process(served.process.pid).cpu_affinity([0])
    for child in psutil.Process(served.process.pid).children(recursive=True):
        child.cpu_affinity([0])
    busy = """
    x = torch.ones(400, 400, device=DEVICE) / 400
    say(ready=x[0, 0].item())
    sys.stdin.readline()
    for _ in range(1_000_000):
        x = x @ x
    """
    programs, pids = [], []
    for env in (served.desk, served.stranger):
        programs.append(program(busy, env=env))
        programs[-1].heard()
        pids += [worker.pid for worker in served.workers() if worker.pid not in pids]
    heavy, light = map(psutil.Process, pids)
    assert "genie-node-" in open(f"/proc/{heavy.pid}/cgroup").read()
    for each in programs:
        each.tell()
    used = lambda: (heavy.cpu_times().user, light.cpu_times().user)
    before = used()
    wait_until(lambda: used()[1] > before[1] + 0.3, GONE_SECONDS_MAX, "the lighter client does not run")
    middle = used()
    wait_until(lambda: used()[1] > middle[1] + 0.3, GONE_SECONDS_MAX, "the lighter client starves")
    parts = [now - then for now, then in zip(used(), middle)]
    assert parts[0] > 3 * parts[1], parts
    for each in programs:
        each.end()


# Asks for most of a small node's memory, each time it is told to.
ASKS = """
def ask(mebibytes):
    try:
        x = torch.ones(mebibytes << 20, dtype=torch.uint8, device=DEVICE)
        return dict(last=x[-1].item())
    except torch.OutOfMemoryError as error:
        return dict(error=str(error))

say(ready=torch.ones(1, device=DEVICE).item())
for line in sys.stdin:
    say(**ask(int(line)))
"""
# Leaves a weight on the node that no tensor uses.
LEAVES = """
module = torch.nn.Linear(1, 75 << 20, bias=False).to(DEVICE)
say(sum=module.weight.sum().item())
del module
torch.remote_accelerator.synchronize()
say(unheld=genie.stats()["node.weight_bytes_unheld"])
sys.stdin.readline()
say(one=torch.ones(1, device=DEVICE).item())
"""


def test_memory_is_never_lent_twice(node, program):
    """Clients without limits of their own share the node's, and what one frees is another's at once."""
    served = node("--memory-bytes", 512 * MIB)
    asks = program(ASKS, env=served.stranger)
    holds = program(
        """
        x = torch.ones(300 << 20, dtype=torch.uint8, device=DEVICE)
        say(last=x[-1].item())
        sys.stdin.readline()
        del x
        torch.remote_accelerator.synchronize()
        say(freed=True)
        sys.stdin.readline()
        """,
        env=served.desk,
    )
    assert asks.heard() == {"ready": 1.0}
    assert holds.heard() == {"last": 1}
    asks.tell("300")
    refused = asks.heard()
    assert "other clients" in refused["error"] and "with --memory-bytes" in refused["error"], refused
    holds.tell()
    assert holds.heard() == {"freed": True}
    for _ in range(3):
        asks.tell("300")
        assert asks.heard() == {"last": 1}
    asks.tell("600")
    refused = asks.heard()
    assert "with --memory-bytes" in refused["error"], f"nobody has a quota: {refused}"
    holds.tell()
    holds.finish()
    asks.end()


@pytest.mark.parametrize("stays", [False, True])
def test_weights_that_nobody_uses_make_room_for_another_client(node, program, stays):
    served = node("--memory-bytes", 512 * MIB, "--weight-cache-bytes", 400 * MIB)
    leaves = program(LEAVES, env=served.desk)
    leaves.heard()
    assert leaves.heard()["unheld"] >= 300 * MIB
    [worker] = served.workers()
    if not stays:
        leaves.tell()
        leaves.finish()
    asks = program(ASKS, env=served.stranger)
    asks.heard()
    asks.tell("300")
    assert asks.heard() == {"last": 1}
    if stays:
        leaves.tell()
        assert leaves.finish()[0] == {"one": 1.0}
    else:
        wait_until(lambda: not alive(worker.pid), GONE_SECONDS_MAX, "a worker that nobody uses keeps memory")
    asks.end()


# A weight of 32 MiB, the same for whoever runs it.
SAME_WEIGHT = """
torch.manual_seed(0)
module = torch.nn.Linear(8 << 20, 1, bias=False)
expected = module.weight.double().sum().item()
module = module.to(DEVICE)
assert module.weight.double().sum().item() == expected
stats = genie.stats()
say(shared=stats["node.weights_shared"], uploaded=stats["node.upload_bytes"])
sys.stdin.readline()
"""


@pytest.mark.parametrize("shares", [False, True])
def test_weights_are_shared_by_those_who_are_named_and_stay_each_ones_own(node, program, shares):
    served = node(*(["--share-weights", "desk,other"] if shares else []))
    first = program(SAME_WEIGHT + "say(same=module.weight.double().sum().item() == expected)", env=served.desk)
    assert first.heard() == {"shared": 0, "uploaded": 32 * MIB}
    second = program(
        SAME_WEIGHT
        + """
with torch.no_grad():
    module.weight.zero_()
say(sum=module.weight.double().sum().item())
sys.stdin.readline()
""",
        env=served.stranger,
    )
    assert second.heard() == ({"shared": 1, "uploaded": 0} if shares else {"shared": 0, "uploaded": 32 * MIB})
    second.tell()
    assert second.heard() == {"sum": 0.0}
    first.tell()
    assert first.finish()[0] == {"same": True}, "what another client writes is its own"
    second.tell()
    second.finish()
    # The one who brought it is gone; whoever comes finds it with the other.
    again = program(SAME_WEIGHT, env=served.desk)
    again.heard()
    again.tell()
    again.finish()
