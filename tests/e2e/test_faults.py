"""Things go wrong: the program gets a clear error in time, and no process stays behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import BUSY_SECONDS_MAX, GONE_SECONDS_MAX, Host, alive, wait_until

pytestmark = pytest.mark.remote
# Told when it happens, also on a busy machine: no deadline is so short (a link's is 30 s).
LOST_SECONDS_MAX = 20
# How long a node stands still that is late, not lost.
FROZEN_SECONDS = 2

READY = """
x = torch.ones(4, device=DEVICE)
assert x.sum().item() == 4.0
"""
SAY_WHAT_A_READ_RAISES = """
say(pids=children())
sys.stdin.readline()
start = time.monotonic()
try:
    (x + 1).sum().item()
    say(error=None)
except Exception as error:
    say(error=type(error).__name__, text=str(error), lost=isinstance(error, genie.NodeLost),
        seconds=time.monotonic() - start)
"""


@pytest.mark.parametrize(
    "victim, how",
    [
        *[(victim, how) for victim in ("genie-node", "genie-host") for how in (signal.SIGKILL, signal.SIGTERM)],
        *[(victim, signal.SIGKILL) for victim in ("genie-worker", "genie-zygote")],
    ],
)
def test_lost_process_is_an_error_at_the_read_and_a_new_start_works(victim, how, program):
    running = program(
        READY
        + SAY_WHAT_A_READ_RAISES
        + """
genie.init()
say(again=torch.ones(3, device=DEVICE).sum().item())
"""
    )
    pids = running.heard()["pids"]
    os.kill(pids[victim], how)
    wait_until(lambda: not alive(pids[victim]), GONE_SECONDS_MAX, f"{victim} does not end")
    running.tell()
    said = running.heard()
    assert said["lost"], said
    assert said["seconds"] < LOST_SECONDS_MAX
    assert "genie.init" in said["text"], "the message tells what to do next"
    assert running.finish()[0]["again"] == 3.0


def test_node_killed_while_the_program_waits(program):
    running = program(
        """
        x = torch.randn(2000, 2000, device=DEVICE)
        x.sum().item()
        say(pids=children())
        start = None
        try:
            for _ in range(200):
                x = x @ x
                x = x / x.norm()
            x.sum().item()
            say(lost=False)
        except genie.NodeLost:
            say(lost=True)
        """
    )
    node = running.heard()["pids"]["genie-worker"]
    busy = psutil.Process(node)
    idle = busy.cpu_times().user
    wait_until(lambda: busy.cpu_times().user > idle + 0.2, BUSY_SECONDS_MAX, "the node computes nothing")
    os.kill(node, signal.SIGKILL)
    start = time.monotonic()
    assert running.heard()["lost"]
    assert time.monotonic() - start < LOST_SECONDS_MAX
    running.finish()


def test_frozen_node_then_continued(program):
    """A node that is stopped for a while is late, not lost."""
    running = program(READY + SAY_WHAT_A_READ_RAISES)
    node = running.heard()["pids"]["genie-worker"]
    os.kill(node, signal.SIGSTOP)
    running.tell()
    time.sleep(FROZEN_SECONDS)
    os.kill(node, signal.SIGCONT)
    assert running.heard()["error"] is None
    running.finish()


@pytest.mark.parametrize("seconds", [3, pytest.param(300, marks=pytest.mark.slow)])
def test_idle_connection_still_works(seconds, program):
    running = program(READY + SAY_WHAT_A_READ_RAISES)
    running.heard()
    time.sleep(seconds)
    running.tell()
    assert running.heard()["error"] is None
    running.finish()


# Nothing is left behind


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["kill", "term", "ctrl-c"])
def test_no_process_outlives_the_program(how, program):
    running = program(
        READY
        + """
say(pids=children())
try:
    while True:
        x = (x * 1.5).clamp(0, 1)
        x.sum().item()
except KeyboardInterrupt:
    sys.exit(0)
"""
    )
    pids = running.heard()["pids"]
    assert set(pids) == {"genie-host", "genie-node", "genie-zygote", "genie-worker"}
    sockets = sockets_of(pids.values())
    os.kill(running.pid, how)
    wait_until(lambda: not any(map(alive, pids.values())), GONE_SECONDS_MAX, f"left behind: {pids}")
    wait_until(lambda: not any(map(os.path.exists, sockets)), GONE_SECONDS_MAX, f"socket files left: {sockets}")


def sockets_of(pids):
    """Paths of the Unix sockets that these processes listen on."""
    return [c.laddr for pid in pids for c in psutil.Process(pid).net_connections("unix") if c.laddr.startswith("/")]


def test_terminal_ctrl_c_reaches_only_the_program(program):
    """Ctrl-C goes to the whole foreground group: the program must be able to handle it and go on."""
    running = program(
        READY
        + """
try:
    say(pids=children())
    while True:
        (x + 1).sum().item()
except KeyboardInterrupt:
    say(after=(x + 1).sum().item())
"""
    )
    running.heard()
    os.killpg(running.pid, signal.SIGINT)
    assert running.finish()[0]["after"] == 8.0


def test_normal_end_leaves_nothing(program):
    said, _ = program(READY + "say(pids=children())").finish()
    wait_until(lambda: not any(map(alive, said["pids"].values())), GONE_SECONDS_MAX, "left behind")


NORMAL_ENDS = {
    "plain": "say(value=x.sum().item())",
    "with work under way": "y = x\nfor _ in range(200): y = y * 1.01\nkept = [y]",
    "with a daemon thread that computes": """
def compute():
    y = torch.ones(64, 64, device=DEVICE)
    while True:
        y = (y @ y).tanh()
        y.sum().item()
        begun.set()
begun = threading.Event()
threading.Thread(target=compute, daemon=True).start()
begun.wait()
""",
    "with a daemon thread that comes late": """
def compute():
    begun.set()
    while genie._native.is_live():
        pass
    torch.ones(4, device=DEVICE).sum().item()
    print("a new session", file=sys.stderr)
begun = threading.Event()
threading.Thread(target=compute, daemon=True).start()
begun.wait()
""",
}


@pytest.mark.parametrize("times", [3, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", NORMAL_ENDS)
def test_a_normal_end_prints_nothing(kind, times, program):
    """However the ends of program, host and node fall together; `slow` tries 200 of them on a busy
    machine."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() if times > 3 else 0)]
    try:
        for _ in range(times):
            _, err = program(READY + NORMAL_ENDS[kind]).finish()
            assert err == ""
    finally:
        for each in busy:
            each.kill()
            each.wait()


def test_no_session_starts_when_the_interpreter_ends(program):
    """What runs after the session's end is told, and no host is started for it."""
    said, err = program(
        READY
        + """
import atexit
from genie import _session
def late():
    for use in (lambda: torch.ones(4, device=DEVICE).sum().item(), genie.init):
        try:
            use()
            say(text=None)
        except genie.StartFailed as error:
            texts.append(str(error))
    say(texts=texts, pids=children())
texts = []
# Registered before the session's end, so it runs after it.
atexit.unregister(_session._end_with_program)
atexit.register(late)
atexit.register(_session._end_with_program)
"""
    ).finish()
    assert len(said["texts"]) == 2 and all("the interpreter is ending" in text for text in said["texts"]), said
    assert said["pids"] == {} and err == ""


def test_ctrl_c_during_a_long_read(program):
    running = program(
        """
        x = torch.randn(2500, 2500, device=DEVICE)
        x.sum().item()
        try:
            say(**children())
            for _ in range(60):
                x = torch.linalg.svd(x).U
            x.sum().item()
        except KeyboardInterrupt:
            say(interrupted=True)
            sys.stdout.flush()
            os._exit(0)
        """
    )
    node = psutil.Process(running.heard()["genie-worker"])
    idle = node.cpu_times().user
    wait_until(lambda: node.cpu_times().user > idle + 0.2, BUSY_SECONDS_MAX, "the node computes nothing")
    start = time.monotonic()
    os.kill(running.pid, signal.SIGINT)
    assert running.heard()["interrupted"]
    assert time.monotonic() - start < LOST_SECONDS_MAX
    running.finish()


# Joining a running host


def test_joins_a_running_host(host, program):
    source = READY + "say(mine=children(), value=x.sum().item())"
    nodes = set()
    for _ in range(2):
        said, _ = program(source, env=host.environment).finish()
        assert said == {"mine": {}, "value": 4.0}
        nodes.add(host.node().pid)
    assert len(nodes) == 1, "the node stays for the next program"


def test_socket_is_private(host):
    assert os.stat(host.path).st_mode & 0o077 == 0


@contextlib.contextmanager
def nobody_listens(path):
    """A socket of another user at `path`; yields a descriptor that tells all it was sent, at its end."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(told)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(path))
                listening.listen()
                os.write(tell, b"ready ")
                with listening.accept()[0] as visitor:
                    while sent := visitor.recv(1 << 16):
                        os.write(tell, sent)
        finally:
            os._exit(0)
    os.close(tell)
    try:
        assert os.read(told, 6) == b"ready "
        yield told
    finally:
        os.close(told)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


NOBODY = 65534
as_another_user = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def shared_directory():
    """A directory that everybody may write to, like /tmp."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o1777)
        yield Path(directory)


@as_another_user
def test_a_host_of_another_user_gets_nothing(shared_directory, program):
    path = shared_directory / "host.sock"
    with nobody_listens(path) as told:
        said, _ = program(
            """
            try:
                torch.ones(4).to(DEVICE)
                say(text="")
            except RuntimeError as error:
                say(text=str(error))
            """,
            env={"GENIE_HOST": f"unix:{path}"},
        ).finish()
        assert f"user {NOBODY}" in said["text"] and "no tensors go to another user" in said["text"], said
        assert os.read(told, 1 << 16) == b"", "not even a hello"


@as_another_user
@pytest.mark.parametrize("who", ["host", "node"])
def test_another_user_gets_no_session(who, shared_directory):
    """Also where somebody opened the socket's permissions."""
    path = shared_directory / "it.sock"
    command = {"host": ["genie-host", "serve"], "node": ["genie-node", "--device", "cpu"]}[who]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(Path(torch.__file__).parent / "lib")}
    serving = subprocess.Popen(
        [*command, "--listen", f"unix:{path}", "--parent-pid", str(os.getpid())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert serving.stdout.readline().startswith("ready")
        os.chmod(path, 0o777)
        heard, hear = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                with socket.socket(socket.AF_UNIX) as visitor:
                    visitor.connect(str(path))
                    while answer := visitor.recv(1 << 16):
                        os.write(hear, answer)
                os.write(hear, b"END")
            finally:
                os._exit(0)
        os.close(hear)
        os.waitpid(pid, 0)
        with open(heard, "rb") as answer:
            answered = answer.read()
        assert answered.endswith(b"END"), "the connection was closed"
    finally:
        serving.terminate()
        _, err = serving.communicate(timeout=GONE_SECONDS_MAX)
    assert str(NOBODY) in err, err


def test_asked_to_stop_a_host_lets_programs_finish(tmp_path, program):
    """SIGTERM is no cut: who runs may finish, who comes is told what to do."""
    host = Host(tmp_path / "host.sock", "--drain-s", "1000")
    try:
        running = program(READY + SAY_WHAT_A_READ_RAISES, env=host.environment)
        running.heard()
        host.process.terminate()

        def status():
            done = subprocess.run(["genie-host", "status", "--host", host.address], capture_output=True, text=True)
            return done.stdout

        wait_until(lambda: "host.draining" in status(), 30, "the status does not tell of the drain")
        said, _ = program(
            """
            try:
                torch.ones(4, device=DEVICE)
                say(text="")
            except genie.StartFailed as error:
                say(text=str(error))
            """,
            env=host.environment,
        ).finish()
        assert "takes no new sessions" in said["text"] and "GENIE_HOST" in said["text"], said
        assert host.process.poll() is None
        running.tell()
        assert running.heard()["error"] is None
        running.finish()
        assert host.process.wait(GONE_SECONDS_MAX) == 0
    finally:
        host.end()


def test_a_program_that_outlasts_the_drain_is_told(tmp_path, program):
    host = Host(tmp_path / "host.sock", "--drain-s", "1")
    try:
        running = program(
            """
            x = torch.randn(2000, 2000, device=DEVICE)
            x.sum().item()
            say(ready=True)
            try:
                for _ in range(500):
                    x = x @ x
                    x = x / x.norm()
                x.sum().item()
                say(text="")
            except genie.NodeLost as error:
                say(text=str(error))
            """,
            env=host.environment,
        )
        running.heard()
        host.process.terminate()
        said = running.heard()
        assert "--drain-s" in said["text"] and "genie.init" in said["text"], said
        running.finish()
        assert host.process.wait(GONE_SECONDS_MAX) == 0
    finally:
        host.end()


def test_session_is_freed_when_its_program_is_killed(host, program):
    running = program(
        "x = torch.ones(64 << 20, device=DEVICE); x.sum().item(); say(ready=True); sys.stdin.readline()",
        env=host.environment,
    )
    running.heard()
    node = host.worker()
    held = node.memory_info().rss
    assert held > 256 << 20
    running.process.kill()
    wait_until(
        lambda: node.memory_info().rss < held - (200 << 20), GONE_SECONDS_MAX, "the node keeps the dead session's memory"
    )
    said, _ = program(READY + "say(value=x.sum().item())", env=host.environment).finish()
    assert said["value"] == 4.0


def test_sessions_are_isolated(host, program):
    """Two programs on one host at once: an error or a death of one does not touch the other."""
    first = program(READY + SAY_WHAT_A_READ_RAISES, env=host.environment)
    second = program(
        READY
        + """
bad = torch.arange(3.0, device=DEVICE).index_select(0, torch.tensor([99], device=DEVICE))
try:
    bad.cpu()
except Exception as error:
    say(error=str(error))
sys.stdin.readline()
""",
        env=host.environment,
    )
    first.heard()
    assert "index" in second.heard()["error"]
    second.process.kill()
    first.tell()
    assert first.heard()["error"] is None
    first.finish()


def test_host_socket_that_is_not_there(program):
    said, _ = program(
        """
        try:
            torch.ones(2, device=DEVICE).sum().item()
        except Exception as error:
            say(text=str(error))
        """,
        env={"GENIE_HOST": "unix:/nonexistent/genie.sock"},
    ).finish()
    assert "/nonexistent/genie.sock" in said["text"]


def test_host_address_that_makes_no_sense(program):
    said, _ = program(
        """
        try:
            torch.ones(2, device=DEVICE).sum().item()
        except Exception as error:
            say(text=str(error))
        """,
        env={"GENIE_HOST": "carrier-pigeon:7"},
    ).finish()
    assert "carrier-pigeon" in said["text"] and "unix:" in said["text"]


def test_joined_host_gone(host, program):
    running = program(READY + SAY_WHAT_A_READ_RAISES, env=host.environment)
    running.heard()
    host.process.kill()
    host.process.wait()
    host.path.unlink()
    running.tell()
    said = running.heard()
    assert said["lost"] and said["seconds"] < LOST_SECONDS_MAX
    running.finish()


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"\xff" * 64,
        b"\xff\xff\xff\x7f\x01\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x04\0\0\0\x02\0\0\0abcd",
        b"\x03\0\0\0\x01\0\0\0\xff\xff\xff",
    ],
    ids=["noise", "oversized", "http", "tape-before-hello", "broken-hello"],
)
def test_malformed_message_is_refused_and_serving_goes_on(bytes_sent, host, program):
    import socket

    path = str(host.path)
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as raw:
            raw.settimeout(BUSY_SECONDS_MAX)
            try:
                raw.connect(path)
            except OSError:
                continue  # not the kind of socket that the host listens on
            raw.sendall(bytes_sent)
            while True:  # a refusal or nothing, then the end
                try:
                    if not raw.recv(4096):
                        break
                except ConnectionError:
                    break
    said, _ = program(READY + "say(value=x.sum().item())", env=host.environment).finish()
    assert said["value"] == 4.0


# Installation


@pytest.mark.parametrize("missing", ["genie-node", "genie-host"])
def test_missing_binary_is_named(missing, program, tmp_path):
    variable = {"genie-node": "GENIE_NODE_BINARY", "genie-host": "GENIE_HOST_BINARY"}[missing]
    said, _ = program(
        """
        try:
            torch.ones(2, device=DEVICE).sum().item()
            say(text="")
        except Exception as error:
            say(text=str(error))
        """,
        env={variable: str(tmp_path / missing), "GENIE_MODE": "local_remote"},
    ).finish()
    assert missing in said["text"]


def test_a_failing_start_has_one_type(program, tmp_path):
    """Whether PyTorch asks Python for the device, as at its first use, or the tape does."""
    said, _ = program(
        """
        import os
        def refused():
            try:
                torch.ones(2, device=DEVICE).sum().item()
            except genie.StartFailed as error:
                return str(error)
        first = refused()
        missing = os.environ.pop("GENIE_HOST_BINARY")
        value = torch.ones(2, device=DEVICE).sum().item()
        genie.shutdown()
        os.environ["GENIE_HOST_BINARY"] = missing
        say(first=first, value=value, second=refused())
        """,
        env={"GENIE_HOST_BINARY": str(tmp_path / "genie-host"), "GENIE_MODE": "local_remote"},
    ).finish()
    assert said["value"] == 2.0
    assert said["first"] and said["first"] == said["second"]


# Bad input


def test_wrong_shape_is_raised_at_the_call(device):
    a, b = torch.ones(2, 3, device=device), torch.ones(4, 5, device=device)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        a @ b
    with pytest.raises(RuntimeError, match="must match the size"):
        a + b
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        a.view(7)
    with pytest.raises(RuntimeError):
        torch.nn.functional.conv2d(torch.ones(1, 3, 8, 8, device=device), torch.ones(4, 5, 3, 3, device=device))
    assert (a + 1).sum().item() == 12.0


def test_wrong_dtype_is_raised_at_the_call(device):
    with pytest.raises(RuntimeError, match="dtype|type"):
        torch.ones(2, 2, device=device) @ torch.ones(2, 2, dtype=torch.float64, device=device)


def test_mixed_devices_are_refused(device):
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, device=device) + torch.ones(2)


def test_unknown_device_index(device):
    with pytest.raises(RuntimeError, match="99"):
        torch.ones(2, device="remote_accelerator:99")


def test_op_that_fails_late_poisons_only_its_outputs(device):
    x = torch.arange(6.0, device=device)
    bad = x.index_select(0, torch.tensor([17], device=device))
    worse = bad * 2
    good = x * 2
    with pytest.raises((IndexError, RuntimeError), match="index"):
        worse.cpu()
    with pytest.raises((IndexError, RuntimeError), match="index"):
        bad.cpu()
    assert good.sum().item() == 30.0
    assert x.sum().item() == 15.0


def test_late_error_names_the_op_and_says_how_to_find_the_line(device):
    bad = torch.nn.functional.embedding(torch.tensor([50], device=device), torch.ones(5, 2, device=device))
    with pytest.raises((IndexError, RuntimeError)) as caught:
        bad.cpu()
    assert "embedding" in str(caught.value)
    assert "GENIE_DEBUG" in str(caught.value)


def test_late_error_carries_the_source_line_in_debug_mode(program):
    said, _ = program(
        """
        bad = torch.ones(3, device=DEVICE).index_select(0, torch.tensor([9], device=DEVICE))
        try:
            bad.cpu()
        except Exception as error:
            say(text=str(error))
        """,
        env={"GENIE_DEBUG": "1"},
    ).finish()
    assert "<string>" in said["text"] and "line" in said["text"]


def test_out_of_memory_is_raised_at_the_read(device):
    huge = torch.empty(900 << 30, dtype=torch.uint8, device=device)
    with pytest.raises(torch.OutOfMemoryError):
        huge.fill_(1)[0].item()
    del huge
    assert torch.ones(3, device=device).sum().item() == 3.0


def test_fork_after_init(program):
    said, _ = program(
        READY
        + """
pid = os.fork()
if pid == 0:
    try:
        (x + 1).sum().item()
        os._exit(1)
    except RuntimeError as error:
        os._exit(0 if "fork" in str(error) else 2)
_, status = os.waitpid(pid, 0)
say(child=os.waitstatus_to_exitcode(status), parent=(x + 1).sum().item())
"""
    ).finish()
    assert said == {"child": 0, "parent": 8.0}


def test_forked_child_may_drop_tensors_and_exit(program):
    said, _ = program(
        READY
        + """
pid = os.fork()
if pid == 0:
    del x
    sys.exit(0)
_, status = os.waitpid(pid, 0)
say(child=os.waitstatus_to_exitcode(status), parent=x.sum().item(), pids=len(children()))
"""
    ).finish()
    assert said == {"child": 0, "parent": 4.0, "pids": 4}


def test_exit_with_live_tensors_and_threads(program):
    program(
        """
        model = torch.nn.Linear(100, 100).to(DEVICE)
        kept = [model(torch.ones(2, 100, device=DEVICE)) for _ in range(20)]
        threading.Thread(target=lambda: kept[0].sum().item()).start()
        """
    ).finish()


def test_python_dies_in_the_middle_of_a_frame(program):
    """kill -9 while large tensors travel."""
    running = program(
        """
        say(pids=(torch.ones(1, device=DEVICE).item(), children())[1])
        for value in range(1 << 20):
            torch.full((8 << 20,), float(value)).to(DEVICE)
            say(sent=value)
        """
    )
    pids = running.heard()["pids"]
    # The next is on its way.
    while running.heard()["sent"] < 2:
        pass
    os.kill(running.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(alive, pids.values())), GONE_SECONDS_MAX, f"left behind: {pids}")
