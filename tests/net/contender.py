"""What is measured: the kernel's TCP as a baseline, and Genie's transports.

The command lines of `genie-host transport bench` stand in `Genie.serve` and `Genie.connect` and nowhere else.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

STREAM = str(Path(__file__).with_name("stream.py"))
READY_SECONDS_MAX = 20
WARM_UP_SECONDS = 1.0
# Other people's work on the machine is to disturb little, and all contenders alike.
NICE = -10
MESSAGE_BYTES = 8 << 20
TRANSPORTS = ("tcp", "quic", "udp", "dpdk")


def result(process, seconds):
    """The JSON object that a program prints on one line."""
    return json.loads("{" + process.lines.until("{", seconds))


class Running:
    """A contender at work; `finish` waits for its result."""

    def __init__(self, sender, receiver, port, finish):
        self.sender, self.receiver, self.port, self._finish = sender, receiver, port, finish

    def pids(self):
        return {"sender": self.sender.pid, "receiver": self.receiver.pid}

    def finish(self):
        """A dict with at least `goodput_bits_per_s`, measured where the bytes arrive."""
        try:
            return self._finish()
        finally:
            for process in (self.sender, self.receiver):
                process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


class KernelTcp:
    """One TCP stream with the congestion control that is asked for."""

    lead_seconds = WARM_UP_SECONDS + 1

    def __init__(self, congestion):
        self.congestion, self.name, self.baseline = congestion, f"tcp-{congestion}", True

    def missing(self):
        known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
        return None if self.congestion in known else f"this kernel has no {self.congestion} (modprobe tcp_{self.congestion})"

    def start(self, link, seconds):
        receive = [sys.executable, STREAM, "receive", "--listen", link.b.address]
        receiver = link.b.start(receive, nice=NICE)
        address = receiver.lines.until("ready", READY_SECONDS_MAX)
        send = [sys.executable, STREAM, "send", "--connect", address, "--congestion", self.congestion]
        send += ["--warm-up", WARM_UP_SECONDS, "--seconds", seconds]
        sender = link.a.start(send, nice=NICE)

        def finish():
            limit = seconds + WARM_UP_SECONDS + READY_SECONDS_MAX
            return result(receiver, limit) | result(sender, limit)

        return Running(sender, receiver, int(address.rpartition(":")[2]), finish)


class Genie:
    """One of Genie's transports, by `genie-host transport bench`."""

    # It measures round trips before it lets large messages flow.
    lead_seconds = 8

    def __init__(self, transport):
        self.transport, self.name, self.baseline = transport, f"genie-{transport}", False
        self.host = os.environ.get("GENIE_HOST_BINARY") or shutil.which("genie-host")
        beside = Path(self.host).parent.parent / "share/genie/transports" if self.host else None
        self.plugins = os.environ.get("GENIE_TRANSPORTS") or beside

    def serve(self, end):
        """The command in B; prints `ready ADDRESS`."""
        address = end.raw_address if self.transport == "dpdk" else end.address
        return [*self._bench(end), "--listen", f"{address}:0"]

    def connect(self, end, address, seconds):
        """The command in A; prints one JSON object."""
        large = ["--seconds", seconds, "--message-bytes", MESSAGE_BYTES]
        return [*self._bench(end), "--connect", address, *large, "--json"]

    def _bench(self, end):
        command = [self.host, "transport", "bench", self.transport, "--transports", self.plugins]
        if self.transport == "dpdk":
            # It takes packets off the interface itself, for an address that the kernel does not know.
            command += ["--set", f"device=net_af_packet0,iface={end.interface}"]
            command += ["--set", f"ip={end.raw_address}/24", "--set", f"gateway={end.gateway}"]
        return command

    def missing(self):
        """None, or why it cannot be measured."""
        if not self.host:
            return "there is no genie-host (make build)"
        asked = subprocess.run([self.host, "transport", "bench", "--help"], capture_output=True, timeout=20)
        if asked.returncode:
            return "this genie-host has no `transport bench`"
        built = list(Path(self.plugins).glob(f"*{self.transport}*")) if Path(self.plugins).is_dir() else []
        return None if built else f"no plugin `{self.transport}` in {self.plugins}"

    def start(self, link, seconds):
        receiver = link.b.start(self.serve(link.b), nice=NICE)
        address = receiver.lines.until("ready", READY_SECONDS_MAX)
        sender = link.a.start(self.connect(link.a, address, seconds), nice=NICE)

        def finish():
            limit = seconds + self.lead_seconds + READY_SECONDS_MAX
            return result(sender, limit)

        return Running(sender, receiver, None, finish)


def contenders():
    """Baselines first."""
    return [KernelTcp("cubic"), KernelTcp("bbr"), *(Genie(transport) for transport in TRANSPORTS)]
