"""One node elsewhere, with a host and a certificate for each of two clients, and the witness at the first."""

import datetime
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))
from conftest import GONE_SECONDS_MAX, Host, alive, wait_until
from far import TORCH_LIB, Certificates, node_binary, tool

OPERATOR_S = 2
CLIENT_MEMORY_BYTES = 1 << 30
NODE_FLAGS = ("--operator-s", str(OPERATOR_S), "--client-memory-bytes", str(CLIENT_MEMORY_BYTES))
# A round takes milliseconds; a witness that says nothing for so long hangs. One so slow is told of.
SILENT_SECONDS_MAX, SLOW_SECONDS = 300, 5


class Failed(Exception):
    """Somebody else noticed."""


class Node:
    def __init__(self, directory, certificates):
        self.log = directory / "node.log"
        command = [node_binary(), "--listen", "quic://127.0.0.1:0", "--certs", certificates.node("127.0.0.1")]
        command += ["--device", "cpu", "--parent-pid", str(os.getpid()), *NODE_FLAGS]
        environment = {**os.environ, "LD_LIBRARY_PATH": TORCH_LIB}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True, start_new_session=True
            )
        ready = self.process.stdout.readline().split()
        if ready[:1] != ["ready"]:
            self.end()
            raise Failed(f"genie-node did not become ready: {self.log.read_text()}")
        self.address = ready[1]
        self.gate = psutil.Process(self.process.pid)

    def below(self, name):
        """Its processes of this name."""
        found = []
        for process in self.gate.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name() == name:
                    found.append(process)
        return found

    def end(self):
        below = self.gate.children(recursive=True) if alive(self.process.pid) else []
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        wait_until(lambda: not any(alive(each.pid) for each in below), GONE_SECONDS_MAX, "the node's processes live on")


class Witness:
    """witness.py, and what it has said."""

    def __init__(self, host, log):
        self.log = log
        environment = {**os.environ, **host.environment, "OMP_NUM_THREADS": "1"}
        with open(log, "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, HERE / "witness.py"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True,
                start_new_session=True,
            )  # fmt: skip
        self.said = []
        self.heard = time.monotonic()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self):
        for line in self.process.stdout:
            said = json.loads(line)
            if self.said and said.get("slowest", 0) > SLOW_SECONDS:
                now = datetime.datetime.now().isoformat(timespec="seconds")
                print(f"  {now} a round of the witness, {said['rounds']}, took {said['slowest']:.1f} s", flush=True)
            self.said.append(said)
            self.heard = time.monotonic()

    def check(self):
        if self.said and "wrong" in self.said[-1]:
            raise Failed(f"an answer to the witness was wrong, in round {self.said[-1]['wrong']}")
        if self.process.poll() is not None:
            raise Failed(f"the witness ended with status {self.process.returncode}: {self.log.read_text()[-3000:]}")
        if time.monotonic() - self.heard > SILENT_SECONDS_MAX:
            raise Failed(f"the witness has said nothing for {SILENT_SECONDS_MAX} s")

    def rounds(self, at):
        """How many it had done at this time, between what it said before and after."""
        said = list(self.said)
        later = next((i for i, each in enumerate(said) if each["at"] >= at), len(said) - 1)
        before, after = said[max(later - 1, 0)], said[later]
        share = (at - before["at"]) / max(after["at"] - before["at"], 1e-9)
        return before["rounds"] + min(max(share, 0), 1) * (after["rounds"] - before["rounds"])

    def slowest(self, start, end):
        """Its longest round that ended between these times."""
        return max((each["slowest"] for each in list(self.said) if start < each["at"] <= end), default=0.0)

    def finish(self):
        """It ends well, and its session was one all the time."""
        self.check()
        self.process.stdin.close()
        try:
            status = self.process.wait(SILENT_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise Failed("the witness does not end") from None
        self._listener.join(SILENT_SECONDS_MAX)
        if status or not self.said[-1].get("finished"):
            raise Failed(f"the witness ended with status {status}: {self.log.read_text()[-3000:]}")

    def end(self):
        self.process.kill()
        self.process.wait()


class Stage:
    """Everything, ended in turn however the run ends."""

    def __init__(self, directory):
        self.directory = Path(directory)

    def __enter__(self):
        with ExitStack() as stack:
            certificates = Certificates(self.directory / "certs")
            other = self.directory / "certs-other"
            tool("certs", "issue", "host", "other", "--dir", certificates.host, "--out", other)
            self.node = Node(self.directory, certificates)
            stack.callback(self.node.end)
            self.host = self._host(stack, "desk", certificates.host)
            self.other = self._host(stack, "other", other)
            self.witness = Witness(self.host, self.directory / "witness.log")
            stack.callback(self.witness.end)
            wait_until(self._is_at_work, SILENT_SECONDS_MAX, "the witness does not begin")
            self.before = self.processes()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *failure):
        return self._stack.__exit__(*failure)

    def _host(self, stack, name, certificates):
        log = open(self.directory / f"{name}.log", "w")
        stack.callback(log.close)
        flags = ["--node", self.node.address, "--no-local-node", "--certs", certificates]
        host = Host(self.directory / f"{name}.sock", *map(str, flags), stderr=log)
        stack.callback(host.end)
        return host

    def _is_at_work(self):
        self.witness.check()
        return len(self.witness.said) >= 2

    def processes(self):
        """The gate, its zygote and the witness's worker, who is there alone at the start."""
        return {self.node.gate, *self.node.below("genie-zygote"), *self.node.below("genie-worker")}

    def gate_bytes(self):
        return self.node.gate.memory_info().rss

    def check(self):
        """Raises if anybody but the fuzzer has noticed anything."""
        for process in self.before:
            if not alive(process.pid) or not process.is_running():
                raise Failed(f"the node's process {process.pid} ended: {self.node.log.read_text()[-3000:]}")
        self.witness.check()
