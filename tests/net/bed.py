"""A network of three namespaces on this machine: a host A, a router R, a node B.

    with Link(rate_bits=10**9, rtt_ms=2, loss=0.001) as link:
        server = link.b.start(["genie-node", "--listen", f"quic://{link.b.address}:0"])
        ...
        link.cut()          # nothing crosses, until
        link.restore()

What makes the link (all of it in R, so that neither endpoint does the network's work):

- rate: `tbf` on R's egress in both directions. Burst: 100 us at that rate, at least 16 KiB. Queue: one
  bandwidth-delay product at 2 ms, at least 150 packets; beyond that it drops, like a shallow switch.
- loss: nft drops at random in the kernel, before the queue, towards B only (or both ways).
- delay: the whole RTT lies on the way back from B, which carries acknowledgements, in `tests/net/relay`
  (policy routing through a TUN device). Forward delay on request.
- faults (`faults=True`): both directions pass the relay, which drops, duplicates, holds, flips and replays
  single packets (`relay/src/command.rs`). The way to cut the link is nft again and needs no relay.

Segmentation offload is off, so packets of the wire's size cross R and a loss is the loss of one packet.
Receivers merge packets (GRO) as network cards do, unless `receive_offload=False`.

R's work towards B has a kernel thread of its own (threaded NAPI) at the highest common priority, the relay runs
at real-time priority, and B's receive work is steered to another core than the first. Otherwise that work is
done in whatever process it interrupts or, under load, waits behind other programs: beside eight compilers TCP
cubic then got 27-37 % of 1 Gb/s, and so 95 %; and the relay was late by 0.4 ms on average (16 ms at worst), and so
by 0.03 ms. It also keeps R's cost out of the endpoints' CPU time. (Not real time for the router: at 1 Gb/s `tbf`
takes nearly a core, one timer a packet, and the kernel stops real-time threads at 95 %.)

Everything is removed at the end, also after exceptions, SIGTERM and SIGHUP; what a killed run has left is
removed by the next. Addresses are the same in each Link; namespaces keep them apart.
"""

import contextlib
import functools
import itertools
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "genie-net"
TOOLS = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables", "ethtool": "ethtool"}

BURST_SECONDS, BURST_BYTES_MIN = 100e-6, 16 * 1024
QUEUE_SECONDS, QUEUE_PACKETS_MIN = 2e-3, 150
LOSS_STEPS = 1_000_000
RELAY_QUEUE_PACKETS = 20_000
RELAY_REAL_TIME_PRIORITY, ROUTER_NICE = 10, -20
# Where a device's ring is full, packets wait in the sender instead of getting lost there.
SENDER_QUEUE_PACKETS = 2000
# Less than a packet: R takes them one by one from its NAPI, nothing is merged.
MERGE_NOTHING_BYTES = 1000
SETUP_SECONDS_MAX = 120
STOP_SECONDS_MAX = 60
ETHERNET_BYTES = 14

_numbers = itertools.count()

# Where Debian keeps them, which is not on everybody's PATH.
os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


class Unavailable(Exception):
    """Why there can be no test bed here."""


@functools.cache
def why_not():
    """None, or the reason why no Link can be made here and what would help."""
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if missing:
        return f"the network test bed needs {', '.join(missing)}: apt-get install {' '.join(missing)}"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not permitted here (run as root): {made.stderr.strip()}"
    try:
        ruled = subprocess.run(
            ["ip", "netns", "exec", probe, "nft", "-f", "-"],
            input="add table inet t; add chain inet t c; add rule inet t c numgen random mod 2 < 1 drop",
            capture_output=True,
            text=True,
        )
        if ruled.returncode:
            return f"this kernel's nftables cannot drop at random (NFT_NUMGEN): {ruled.stderr.strip()}"
        if not Path("/dev/net/tun").exists():
            return "there is no /dev/net/tun (modprobe tun)"
    finally:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True)
    return None


def cores():
    """The core for R's work, and the cores for the rest (the same if there is one only)."""
    first, *others = sorted(os.sched_getaffinity(0))
    return first, others or [first]


def kernel_threads(prefix):
    """The ids of processes whose names start so."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{name}/comm").read_text().startswith(prefix):
                found.append(int(name))
    return found


def run(command, **more):
    """Runs a command to its end; raises with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SETUP_SECONDS_MAX, **more)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@functools.cache
def relay_binary():
    """Builds the relay (nothing to do the second time) and tells where it is."""
    if named := os.environ.get("GENIE_TEST_RELAY"):
        return named
    command = ["cargo", "build", "--release", "--quiet", "-p", "genie-test-relay"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    return str(Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "genie-test-relay")


class Lines:
    """A process's standard output, line by line, with deadlines."""

    def __init__(self, stream):
        self._lines = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream):
        with stream:
            for line in stream:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def next(self, seconds):
        """The next line; None at the end; TimeoutError when none comes."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"nothing was printed for {seconds} s") from None
        if line is None:
            self._lines.put(None)
        return line

    def until(self, prefix, seconds):
        """The rest of the first line that starts with `prefix`."""
        deadline = time.monotonic() + seconds
        seen = []
        while (line := self.next(max(0.001, deadline - time.monotonic()))) is not None:
            if line.startswith(prefix):
                return line[len(prefix) :].strip()
            seen.append(line)
        raise EOFError(f"it ended without a line `{prefix}`; it said: {seen[-5:]}")


class Namespace:
    """One of a Link's machines."""

    def __init__(self, name, address=None, raw_address=None, mac=None, gateway_mac=None):
        self.name = name
        self.address = address
        # For a driver that takes packets off the interface itself (DPDK): routed here, unknown to the
        # kernel, which therefore answers nothing in its place. The interface is `up0`.
        self.raw_address = raw_address
        self.mac, self.gateway_mac = mac, gateway_mac
        self.gateway = re.sub(r"\d+$", "1", address) if address else None
        self.interface = "up0"

    def command(self, command):
        """The command as it runs in here; `ip` replaces itself, so the process id is the program's."""
        return ["ip", "netns", "exec", self.name, *map(str, command)]

    def run(self, command, **more):
        """Runs a command in here to its end and returns what it printed."""
        return run(self.command(command), **more)

    def start(self, command, nice=0, **more):
        """Starts a program in here, with its output as `process.lines`. The Link stops it at its end."""
        more = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True, **more}
        process = subprocess.Popen(["nice", "-n", str(nice), *self.command(command)], **more)
        process.lines = Lines(process.stdout) if process.stdout else None
        return process

    def pids(self):
        """The processes in here."""
        out = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(pid) for pid in out.stdout.split()]

    def remove(self):
        """Stops what runs in here, then removes it."""
        for sign, seconds in ((signal.SIGTERM, STOP_SECONDS_MAX), (signal.SIGKILL, STOP_SECONDS_MAX)):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sign)
            deadline = time.monotonic() + seconds
            while any(alive(pid) for pid in self.pids()) and time.monotonic() < deadline:
                time.sleep(0.02)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)


def alive(pid):
    """Whether the process runs (one that waits to be reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Relay:
    """The process that delays and spoils; `forward` is the direction from A to B, `back` the other."""

    def __init__(self, router, lanes):
        lanes = [f"{lane}={device}" for lane, device in lanes.items()]
        self.process = router.start([relay_binary(), *lanes], stdin=subprocess.PIPE)
        self.process.lines.until("ready", SETUP_SECONDS_MAX)
        # Other work on this machine must not lengthen the delay; the relay sleeps when it has nothing to do.
        _, others = cores()
        os.sched_setaffinity(self.process.pid, others)
        with contextlib.suppress(PermissionError):
            priority = os.sched_param(RELAY_REAL_TIME_PRIORITY)
            os.sched_setscheduler(self.process.pid, os.SCHED_FIFO, priority)

    def command(self, verb, lane, **settings):
        """Gives a command of `relay/src/command.rs` and returns the answer."""
        words = [verb, lane, *(f"{key}={value}" for key, value in settings.items())]
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        answer = self.process.lines.next(SETUP_SECONDS_MAX)
        if answer is None or not answer.startswith("ok"):
            raise RuntimeError(f"the relay to `{' '.join(words)}`: {answer}")
        return answer[2:].strip()

    def stats(self, lane):
        """What a lane has done: packets read, written, dropped, ..., and how late they left."""
        return json.loads(self.command("stats", lane))

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS_MAX)


class Link:
    """A, R and B with a link between; see the module."""

    def __init__(
        self,
        rate_bits=None,
        rtt_ms=0.0,
        loss=0.0,
        mtu=1500,
        *,
        loss_both_ways=False,
        forward_ms=0.0,
        faults=False,
        receive_offload=True,
    ):
        if not 0 <= loss < 1 or forward_ms > rtt_ms:
            raise ValueError("loss is a share (0.01 is 1 %), forward_ms a part of rtt_ms")
        self.rate_bits, self.rtt_ms, self.loss, self.mtu = rate_bits, rtt_ms, loss, mtu
        self.loss_both_ways, self.forward_ms = loss_both_ways, forward_ms
        self.receive_offload = receive_offload
        self.lanes = {}
        if faults or forward_ms:
            self.lanes["forward"] = "relay-forward"
        if faults or rtt_ms > forward_ms:
            self.lanes["back"] = "relay-back"
        self.relay, self.router_threads = None, []
        name = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
        mac = "02:67:65:6e:{:02x}:{:02x}".format
        self.a = Namespace(f"{name}-a", "10.111.1.2", "10.111.1.3", mac(1, 2), mac(1, 1))
        self.b = Namespace(f"{name}-b", "10.111.2.2", "10.111.2.3", mac(2, 2), mac(2, 1))
        self.r = Namespace(f"{name}-r")
        self._signals = {}

    # Made and removed.

    def __enter__(self):
        if reason := why_not():
            raise Unavailable(reason)
        remove_stale()
        self._catch_signals()
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # An interrupt must not stop the cleaning.
        stopping = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
        try:
            if self.relay:
                self.relay.close()
            for namespace in (self.a, self.b, self.r):
                namespace.remove()
        finally:
            for number, handler in self._signals.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _catch_signals(self):
        def leave(number, _frame):
            raise SystemExit(128 + number)

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._signals[number] = signal.signal(number, leave)

    def _make(self):
        for namespace in (self.a, self.b, self.r):
            run(["ip", "netns", "add", namespace.name])
            settings = ["net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0"]
            settings += ["net.ipv4.tcp_no_metrics_save=1"]
            if Path("/proc/sys/net/ipv6").exists():
                settings += ["net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"]
            namespace.run(["sysctl", "-q", "-w", *settings])
        self.r.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])
        for end, port in ((self.a, "ra"), (self.b, "rb")):
            self._connect(end, port)
        for lane, device in self.lanes.items():
            self._route_through(lane, device)
        self._place_work()
        self.r.run(["nft", "-f", "-"], input=self._rules())
        self.b.run(["nft", "-f", "-"], input="table inet bed { chain input { type filter hook input priority 0; }; }")
        if self.rate_bits:
            for port in ("ra", "rb"):
                run(["tc", "-n", self.r.name, "qdisc", "add", "dev", port, "root", "tbf", *self._shape()])
        if self.lanes:
            self.relay = Relay(self.r, self.lanes)
            self.delay(self.rtt_ms, self.forward_ms)

    def _connect(self, end, port):
        r, name = self.r.name, end.name
        batch = [
            f"link add {port} netns {r} address {end.gateway_mac} mtu {self.mtu} type veth "
            f"peer name up0 netns {name} address {end.mac} mtu {self.mtu}"
        ]
        run(["ip", "-batch", "-"], input="\n".join(batch))
        here = [
            "link set lo up",
            "link set up0 up",
            f"address add {end.address}/24 dev up0",
            f"neighbour replace {end.gateway} lladdr {end.gateway_mac} dev up0 nud permanent",
            f"route add default via {end.gateway}",
        ]
        run(["ip", "-n", name, "-batch", "-"], input="\n".join(here))
        there = [
            f"link set {port} up",
            f"address add {end.gateway}/24 dev {port}",
            *(
                f"neighbour replace {address} lladdr {end.mac} dev {port} nud permanent"
                for address in (end.address, end.raw_address)
            ),
        ]
        run(["ip", "-n", r, "-batch", "-"], input="\n".join(there))
        segments = ["tso", "off", "gso", "off", "tx-udp-segmentation", "off"]
        self.r.run(["ethtool", "-K", port, *segments, "gro", "off"])
        merge = "on" if self.receive_offload else "off"
        end.run(["ethtool", "-K", "up0", *segments, "gro", merge])
        waiting = ["pfifo", "limit", str(SENDER_QUEUE_PACKETS)]
        run(["tc", "-n", name, "qdisc", "add", "dev", "up0", "root", *waiting])

    def _place_work(self):
        network, others = cores()
        if network not in others:
            self._steer(self.b, "up0", others[0])
        before = set(kernel_threads("napi/ra-"))
        run(["ip", "-n", self.r.name, "link", "set", "ra", "gro_max_size", str(MERGE_NOTHING_BYTES)])
        self.r.run(["ethtool", "-K", "ra", "gro", "on"])
        threaded = "if [ -e $0 ]; then echo 1 > $0; fi"
        self.r.run(["sh", "-c", threaded, "/sys/class/net/ra/threaded"])
        self.router_threads = sorted(set(kernel_threads("napi/ra-")) - before)
        for pid in self.router_threads:
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, pid, ROUTER_NICE)

    def _steer(self, namespace, interface, core):
        """Lets one core do what follows the receipt of a packet there (RPS)."""
        words = [f"{1 << core:x}"[::-1][at : at + 8][::-1] for at in range(0, core // 4 + 1, 8)]
        mask = ",".join(reversed(words))
        namespace.run(["sh", "-c", f"echo {mask} > /sys/class/net/{interface}/queues/rx-0/rps_cpus"])

    def _route_through(self, lane, device):
        """Packets that come in for this direction go to the relay's device first."""
        table, port = {"forward": (101, "ra"), "back": (102, "rb")}[lane]
        batch = [
            f"tuntap add dev {device} mode tun",
            f"link set {device} up mtu {self.mtu} txqueuelen {RELAY_QUEUE_PACKETS}",
            f"rule add iif {port} lookup {table}",
            f"route add default dev {device} table {table}",
        ]
        run(["ip", "-n", self.r.name, "-batch", "-"], input="\n".join(batch))

    def _rules(self):
        share = round(self.loss * LOSS_STEPS)
        lossy = ["rb", "ra"] if self.loss_both_ways else ["rb"]
        drop = f"numgen random mod {LOSS_STEPS} < {share} counter name lost drop"
        losses = [f"oifname {port} {drop}" for port in lossy if share]
        return "\n".join(
            [
                "table inet bed {",
                *(f"counter {name} {{}}" for name in ("forward", "back", "lost", "cut")),
                "chain cuts { }",
                "chain forward { type filter hook forward priority 0; policy accept;",
                "jump cuts",
                "oifname rb counter name forward",
                "oifname ra counter name back",
                *losses,
                "}",
                "}",
            ]
        )

    def _shape(self):
        burst = max(BURST_BYTES_MIN, 2 * self.mtu, int(self.rate_bits / 8 * BURST_SECONDS))
        return ["rate", f"{int(self.rate_bits)}bit", "burst", str(burst), "limit", str(self.queue_bytes())]

    def queue_bytes(self):
        """What R queues in a direction before it drops."""
        frame = self.mtu + ETHERNET_BYTES
        return max(int(self.rate_bits / 8 * QUEUE_SECONDS), QUEUE_PACKETS_MIN * frame)

    # Changed while it runs.

    def delay(self, rtt_ms, forward_ms=0.0):
        """Changes the delay; a direction without a relay has none."""
        parts = {"forward": forward_ms, "back": rtt_ms - forward_ms}
        for lane in self.lanes:
            self.relay.command("delay", lane, us=round(parts[lane] * 1000))

    def cut(self, to_b=True, to_a=True):
        """From now on nothing crosses, without a word to either side."""
        for port, wanted in (("rb", to_b), ("ra", to_a)):
            if wanted:
                self.r.run(["nft", f"add rule inet bed cuts oifname {port} counter name cut drop"])

    def restore(self):
        """Ends `cut`."""
        self.r.run(["nft", "flush chain inet bed cuts"])

    def fault(self, deed, lane="forward", **aim):
        """`drop`, `duplicate`, `hold`, `flip`, `remember`, `replay` or `calm`, as in `relay/src/command.rs`."""
        return self.relay.command(deed, lane, **aim)

    # Read.

    def counters(self):
        """R's counters: {name: (packets, bytes)} of `forward`, `back`, `lost`, `cut`."""
        listed = json.loads(self.r.run(["nft", "-j", "list counters table inet bed"]))["nftables"]
        found = (entry["counter"] for entry in listed if "counter" in entry)
        return {counter["name"]: (counter["packets"], counter["bytes"]) for counter in found}

    def queue_drops(self):
        """Packets that R's queue towards B had no room for."""
        listed = json.loads(run(["tc", "-n", self.r.name, "-s", "-j", "qdisc", "show", "dev", "rb"]))
        return sum(qdisc["drops"] for qdisc in listed)

    def counter_at_b(self, match):
        """Counts what B receives and nft's `match` takes; read it with `read_at_b`."""
        self.b.run(["nft", f"add rule inet bed input {match} counter"])

    def read_at_b(self):
        """(packets, bytes) of each `counter_at_b`, in order."""
        listed = json.loads(self.b.run(["nft", "-j", "list chain inet bed input"]))["nftables"]
        rules = (entry["rule"] for entry in listed if "rule" in entry)
        counters = (part["counter"] for rule in rules for part in rule["expr"] if "counter" in part)
        return [(counter["packets"], counter["bytes"]) for counter in counters]


def remaining():
    """This process's namespaces that exist now."""
    return [name for name in _names() if name.startswith(f"{PREFIX}-{os.getpid()}-")]


def remove_stale():
    """Removes what test beds have left whose process is gone."""
    for name in _names():
        owner = re.fullmatch(rf"{PREFIX}-(\d+)-.*", name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            Namespace(name).remove()


def _names():
    return [line.split()[0] for line in run(["ip", "netns", "list"]).splitlines() if line.strip()]
