"""Starting and ending sessions: modes, child processes, addresses."""

import atexit
import logging
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from genie import _collectives, _exports, _native, env, marks
from genie.errors import NodeLost, StartFailed

MODES = ("auto", "local", "local_remote", "remote", "remote_zero_copy")
REMOTE = ("remote", "remote_zero_copy")
# What `remote` may use for tensors: all but what reaches memory of devices by itself.
REMOTE_DATA = "udp,tcp,quic"
BINARY = "genie-host"
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0
# Regions for uploads; where the node is on this machine too, they are memory of both.
UPLOAD_BYTES, UPLOAD_BYTES_HERE = 64 << 20, 32 << 20
# How long the interpreter's end waits for daemon threads that used the device: to use it once more,
# which ends them, and then to be gone.
DAEMON_USE_S = 0.2
DAEMON_END_S = 2.0
READY_BYTES_MAX = 64 << 10
# A socket's address holds 107 bytes; the directory and the socket we make take 27 of them.
RUNTIME_BYTES_MAX = 80

log = logging.getLogger("genie")
# Held while a session starts or ends; the tape's lock is never held then.
_lock = threading.RLock()
_host: "HostProcess | None" = None
_mode = ""
_ending = False  # the interpreter is


@dataclass(frozen=True)
class Settings:
    mode: str
    host: str
    timeout_s: float
    nodes: str = ""
    certs: str = ""

    @staticmethod
    def of(
        mode: str | None,
        host: str | None,
        timeout_s: float | None,
        nodes: str | Sequence[str] | None = None,
        certs: str | os.PathLike[str] | None = None,
    ) -> "Settings":
        """Arguments first, then the environment, then the defaults."""
        mode = mode or env.text(env.MODE, "auto")
        if mode not in MODES:
            raise StartFailed(f"there is no mode {mode!r} ({env.MODE}); choose one of {', '.join(MODES)}")
        return Settings(
            mode,
            host if host is not None else env.text(env.HOST),
            timeout_s or env.number(env.START_TIMEOUT_S, START_TIMEOUT_S),
            env.text(env.NODES) if nodes is None else nodes if isinstance(nodes, str) else ",".join(nodes),
            env.text(env.CERTS) if certs is None else os.fspath(certs),
        )


_chosen: Settings | None = None  # by genie.init(), for the sessions to come


def init(
    mode: str | None = None,
    host: str | None = None,
    *,
    nodes: str | Sequence[str] | None = None,
    certs: str | os.PathLike[str] | None = None,
    start_timeout_s: float | None = None,
) -> None:
    """Starts the session now, instead of at the first use of the device.

    mode: `auto`, `local`, `local_remote`, `remote` or `remote_zero_copy` (default: GENIE_MODE, then
        `auto`: the strongest that works). A mode that cannot start gives way to the next simpler
        one, with one warning; `genie.stats()["mode"]` says which runs.
    host: `unix:PATH` of a running genie-host to join (default: GENIE_HOST; none starts one).
    nodes: nodes on other machines, such as `quic://10.0.0.2:4610` (default: GENIE_NODES).
    certs: the directory of the certificates for them (default: GENIE_CERTS).
    After a lost node, this begins a new session; tensors of the old one stay invalid. With a
    session running it does nothing, unless it asks for something else: that is an error.
    """
    global _chosen
    with _lock:
        settings = Settings.of(mode, host, start_timeout_s, nodes, certs)
        if _native.is_live():
            if _chosen not in (None, settings) or (_chosen is None and (mode or host or nodes)):
                raise RuntimeError("a session is running with other settings; call genie.shutdown() first")
            return
        shutdown()
        _chosen = settings
        _start(settings)


def start_at_first_use() -> None:
    """Called by the native module when the device is first used."""
    with _lock:
        if not _native.is_live():
            _start(_chosen or Settings.of(None, None, None))


def shutdown() -> None:
    """Ends the session and, if it was started for it, the host. Tensors on the device become
    invalid. The next use of the device starts a new session."""
    global _host, _mode
    if _native.is_forked():
        return
    with _lock:
        marks.uninstall()
        _native.shut_down()
        _mode = ""
        if _host is not None:
            _host.end()
            _host = None


def is_available() -> bool:
    """Whether the device can be used in this process."""
    return not _native.is_forked()


def mode() -> str:
    """Where the current session runs; empty without one."""
    return _mode if _native.is_live() else ""


def host_pid() -> int:
    """The host that was started for this session; 0 when there is none."""
    return _host.process.pid if _host is not None else 0


def _start(settings: Settings) -> None:
    global _mode
    if _ending:
        if threading.current_thread() is not threading.main_thread():
            raise SystemExit
        raise StartFailed(
            "the interpreter is ending: no session of remote_accelerator starts any more. An atexit function that "
            "needs the device must be registered after `import genie`, so that it runs before the session's end"
        )
    mode = settings.mode
    if mode in REMOTE and not settings.nodes and not settings.host:
        log.warning(
            "mode %s needs nodes, and none is named: set %s=quic://HOST:PORT; using local_remote", mode, env.NODES
        )
        mode = "local_remote"
    if mode == "local":
        if settings.host:
            log.warning("mode local uses no host: %s is ignored", settings.host)
        _connect_local()
        _mode = "local"
    elif settings.host:
        # An address was given: nothing else would be what was asked for.
        _connect(_path_of(settings.host), settings.timeout_s)
        _mode = _mode_of_welcome()
    else:
        _mode = _start_children(settings, mode)
    marks.install()
    _exports.install()
    _collectives.install()
    _tell(mode)


def _mode_of_welcome() -> str:
    """What the host made of it; hosts of protocol 1 know one mode."""
    return (_native.welcome() or {}).get("mode") or "local_remote"


def _tell(asked: str) -> None:
    """One line: which mode runs, and why not a stronger one."""
    route = (_native.welcome() or {}).get("route") or "in this process"
    weaker = asked in REMOTE and MODES.index(_mode) < MODES.index(asked)
    log.log(logging.WARNING if weaker else logging.INFO, "remote_accelerator runs in mode %s: %s", _mode, route)


def _start_children(settings: Settings, mode: str) -> str:
    """Starts a host of our own; in mode auto, what cannot start is replaced by mode local."""
    try:
        _connect_own_host(settings, mode)
        return _mode_of_welcome()
    except (StartFailed, NodeLost, OSError) as error:
        if mode != "auto":
            raise
        log.warning("remote_accelerator runs in mode local (in this process), as local_remote cannot start: %s", error)
    _connect_local()
    return "local"


def _connect_own_host(settings: Settings, mode: str) -> None:
    global _host
    timeout_s = settings.timeout_s
    if _host is not None:
        _host.end()
        _host = None
    deadline = time.monotonic() + timeout_s
    host = HostProcess.start(deadline, timeout_s, _host_environment(settings, mode))
    try:
        _connect(
            host.socket,
            max(deadline - time.monotonic(), 1.0),
            UPLOAD_BYTES if settings.nodes else UPLOAD_BYTES_HERE,
        )
    except BaseException:
        host.end()
        raise
    finally:
        # Nobody else connects to a host of our own: nothing is left behind, however we end.
        shutil.rmtree(host.socket.parent, ignore_errors=True)
    _host = host


def _host_environment(settings: Settings, mode: str) -> dict[str, str]:
    """What tells a host of our own where its nodes are."""
    environment = dict(os.environ)
    environment.setdefault(env.TORCH_LIB, str(Path(torch.__file__).parent / "lib"))
    for name, value in ((env.NODES, settings.nodes), (env.CERTS, settings.certs)):
        environment.pop(name, None)
        if value and mode != "local_remote":
            environment[name] = value
    if mode == "remote":
        environment.setdefault(env.DATA, REMOTE_DATA)
    return environment


def _connect(path: Path, timeout_s: float, upload_bytes: int = UPLOAD_BYTES) -> None:
    _native.connect(
        str(path),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        device=0,
        upload_bytes=int(env.number(env.UPLOAD_BYTES, upload_bytes)),
        download_bytes=int(env.number(env.DOWNLOAD_BYTES, 64 << 20)),
        timeout_s=timeout_s,
    )


def _connect_local() -> None:
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    _native.connect_local(
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        budget_bytes=int(env.number(env.LOCAL_BYTES, half)),
        upload_bytes=4 << 20,
        download_bytes=4 << 20,
    )


def _path_of(address: str) -> Path:
    scheme, separator, path = address.partition(":")
    if not separator or scheme != "unix" or not path:
        raise StartFailed(f"{env.HOST}={address!r} is not an address of a host; this version knows unix:PATH")
    return Path(path)


def find_binary() -> Path:
    """The genie-host to start."""
    asked = env.text(env.HOST_BINARY)
    if asked:
        if _is_executable(Path(asked)):
            return Path(asked)
        raise StartFailed(f"{env.HOST_BINARY}={asked} is not an executable {BINARY}; correct it or unset it")
    places = [Path(sys.executable).parent / BINARY, Path(__file__).parent / "bin" / BINARY]
    for place in places:
        if _is_executable(place):
            return place
    on_path = shutil.which(BINARY)
    if on_path:
        return Path(on_path)
    looked = ", ".join(map(str, places))
    raise StartFailed(
        f"{BINARY} is not installed: it is neither {looked}, nor on PATH. Install it "
        f"(`make build` in Genie's repository), or name it by {env.HOST_BINARY}"
    )


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


class HostProcess:
    """A genie-host of our own. It ends when this process ends, however that happens."""

    def __init__(self, process: "subprocess.Popen[bytes]", socket: Path) -> None:
        self.process = process
        self.socket = socket

    @staticmethod
    def start(deadline: float, timeout_s: float, environment: dict[str, str]) -> "HostProcess":
        """Starts a host and waits until it listens."""
        binary = find_binary()
        socket = Path(tempfile.mkdtemp(prefix="genie-", dir=_runtime_directory())) / "host.sock"
        process = subprocess.Popen(
            [str(binary), "serve", "--listen", f"unix:{socket}", "--parent-pid", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=environment,
            # Ctrl-C in the terminal is for the program; it decides what becomes of the session.
            start_new_session=True,
        )
        host = HostProcess(process, socket)
        try:
            host._await_ready(deadline, timeout_s)
        except BaseException:
            host.end()
            shutil.rmtree(socket.parent, ignore_errors=True)
            raise
        return host

    def _await_ready(self, deadline: float, timeout_s: float) -> None:
        assert self.process.stdout is not None
        out = self.process.stdout.fileno()
        said = b""
        while not any(line.startswith(b"ready") for line in said.splitlines()) or not said.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise StartFailed(
                    f"genie-host was not ready within {timeout_s:g} s ({env.START_TIMEOUT_S}); "
                    "`genie-host doctor` says what is wrong"
                )
            if not select.select([out], [], [], left)[0]:
                continue
            chunk = os.read(out, 4096)
            if not chunk or len(said) > READY_BYTES_MAX:
                status = self.process.wait(END_TIMEOUT_S)
                why = said.decode(errors="replace").strip().removeprefix("failed ") or "its message stands on stderr"
                raise StartFailed(
                    f"genie-host ended with status {status} before it was ready: {why}. "
                    "`genie-host doctor` says what is wrong"
                )
            said += chunk

    def end(self) -> None:
        """Asks the host to end, and makes it after a while. It takes its node along."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def _runtime_directory() -> str:
    """The first directory that can be used, and whose sockets' paths still fit an address."""
    for directory in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"):
        fits = os.path.isabs(directory) and len(os.fsencode(directory)) <= RUNTIME_BYTES_MAX
        if fits and os.access(directory, os.W_OK | os.X_OK):
            return directory
    raise StartFailed(
        "no directory for the host's socket: set XDG_RUNTIME_DIR to one that you can write to, with a path of at most "
        f"{RUNTIME_BYTES_MAX} bytes"
    )


def _end_with_program() -> None:
    """Ends the session for good, and daemon threads with it that still use the device."""
    global _ending
    if _native.is_forked():
        return
    began = time.monotonic()
    _ending = True
    _native.begin_ending()
    shutdown()
    for thread in threading.enumerate():
        if thread.daemon and thread is not threading.current_thread():
            _wait_for_daemon(thread, began)


def _wait_for_daemon(thread: threading.Thread, began: float) -> None:
    """Waits for a thread's end if it uses the device now. One that the interpreter stops in the middle
    of an operator may take the process down (before Python 3.14)."""
    while thread.is_alive():
        told = dict(_native.users()).get(thread.native_id)
        if told is None or time.monotonic() > began + (DAEMON_END_S if told else DAEMON_USE_S):
            return
        time.sleep(0.005)


atexit.register(_end_with_program)
