"""The network test bed does what it says: rate, loss, delay, faults, and nothing is left."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import bed
import plot
import run
from contender import NICE, KernelTcp

pytestmark = pytest.mark.skipif(bool(bed.why_not()), reason=bed.why_not() or "")

ANSWER_SECONDS = 60

# Answers every datagram with itself, or writes the payloads it gets, one a line.
ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 0))
print("ready", s.getsockname()[1], flush=True)
while True:
    data, peer = s.recvfrom(65536); s.sendto(data, peer)
"""
SHOW = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 0))
print("ready", s.getsockname()[1], flush=True)
while True:
    print(s.recv(65536).hex(), flush=True)
"""
# Round trips in microseconds, one datagram after the other.
PING = """
import socket, sys, time, json
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], int(sys.argv[2]))); s.settimeout(5)
took = []
for _ in range(int(sys.argv[3])):
    at = time.perf_counter(); s.send(b"x" * 64); s.recv(64); took.append((time.perf_counter() - at) * 1e6)
print(json.dumps(sorted(took)))
"""
SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for data in sys.argv[3:]:
    s.sendto(bytes.fromhex(data), (sys.argv[1], int(sys.argv[2])))
"""
FLOOD = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(int(sys.argv[3])):
    s.sendto(bytes(1000), (sys.argv[1], int(sys.argv[2])))
    if n % 50 == 0: time.sleep(0.001)
"""


def python(text, *arguments):
    return [sys.executable, "-c", text, *map(str, arguments)]


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert bed.remaining() == []


@pytest.fixture
def spoiled():
    """A link with faults, a program that shows datagrams in B, and what sends to it."""
    with bed.Link(faults=True) as link:
        shower = link.b.start(python(SHOW, link.b.address))
        port = shower.lines.until("ready", ANSWER_SECONDS)

        def send(*payloads):
            link.a.run(python(SEND, link.b.address, port, *(payload.hex() for payload in payloads)))

        def shown(count):
            return [bytes.fromhex(shower.lines.next(ANSWER_SECONDS)) for _ in range(count)]

        yield link, send, shown


def round_trips(link, count=200):
    echo = link.b.start(python(ECHO, link.b.address), nice=NICE)
    port = echo.lines.until("ready", ANSWER_SECONDS)
    asks = link.a.start(python(PING, link.b.address, port, count), nice=NICE, stderr=subprocess.PIPE)
    answer = asks.lines.next(ANSWER_SECONDS + 1)
    if answer is None:
        raise RuntimeError(asks.stderr.read())
    return json.loads(answer)


@pytest.mark.parametrize(("rtt_ms", "forward_ms"), [(2, 0), (10, 4)])
def test_delay(rtt_ms, forward_ms):
    with bed.Link(forward_ms=forward_ms, rtt_ms=rtt_ms) as link:
        delayed = round_trips(link)
        link.delay(0)
        plain = round_trips(link)
    # Never early. The fastest of many says what the relay adds; the others, how busy the machine is.
    assert delayed[0] >= rtt_ms * 1000
    assert delayed[0] - plain[0] <= rtt_ms * 1000 + 500


@pytest.mark.parametrize("loss", [0.01, 0.1])
def test_loss(loss):
    count = 20_000
    with bed.Link(loss=loss) as link:
        before = link.counters()
        link.a.run(python(FLOOD, link.b.address, 9, count))
        after = link.counters()
    sent, lost = (after[name][0] - before[name][0] for name in ("forward", "lost"))
    assert sent == count
    five_sigma = 5 * (count * loss * (1 - loss)) ** 0.5
    assert abs(lost - count * loss) < five_sigma


def test_rate_with_packets_of_the_wire():
    """Cubic fills a link and no more, and what crosses is packets of MTU size, not segments of 64 KB."""
    with bed.Link(100e6, rtt_ms=2) as link:
        shares = []
        # A busy machine may keep the sender from filling the link, or the receiver from what came before.
        while len(shares) < 2 or (not link.queue_drops() and len(shares) < 20):
            shares.append(run.measure(KernelTcp("cubic"), link, seconds=1.5)["share"])
        packets, size = link.counters()["forward"]
        assert link.queue_drops() > 0, f"nothing waited at the link's end: {shares}"
    assert min(shares) < 0.96, shares
    assert 1400 < size / packets <= 1500


def test_a_cut_link_carries_nothing_until_it_is_restored():
    with bed.Link() as link:
        link.cut()
        with pytest.raises(RuntimeError, match="timed out"):
            round_trips(link, 1)
        assert link.counters()["cut"][0] >= 1
        link.restore()
        assert round_trips(link, 1)


def test_a_flipped_bit_arrives(spoiled):
    link, send, shown = spoiled
    link.fault("flip", protocol="udp", bytes_min=8, offset=2, bit=5)
    send(b"small", b"the first", b"the second")
    assert shown(3) == [b"small", b"thE first", b"the second"]


def test_duplicates_and_drops(spoiled):
    link, send, shown = spoiled
    link.fault("duplicate", protocol="udp")
    link.fault("drop", protocol="udp", skip=1)
    send(b"twice", b"never", b"last")
    assert shown(3) == [b"twice", b"twice", b"last"]
    assert link.relay.stats("forward")["dropped"] == 1


def test_a_replay_comes_as_it_was(spoiled):
    link, send, shown = spoiled
    link.fault("remember", count=8)
    send(b"one", b"two", b"three")
    assert shown(3) == [b"one", b"two", b"three"]
    assert link.fault("replay", count=2) == "2"
    assert shown(2) == [b"two", b"three"]


def test_a_held_packet_is_overtaken(spoiled):
    link, send, shown = spoiled
    link.fault("hold", us=2_000_000, count=1)
    send(b"first", b"second")
    assert shown(2) == [b"second", b"first"]


def test_a_wrong_command_is_named(spoiled):
    link, _, _ = spoiled
    with pytest.raises(RuntimeError, match="no command `explode`"):
        link.fault("explode")


def test_an_exception_leaves_nothing():
    with pytest.raises(ZeroDivisionError), bed.Link() as link:
        link.b.start(["sleep", "600"])
        assert len(bed.remaining()) == 3
        raise ZeroDivisionError


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_nothing(sign):
    """After SIGKILL, which cannot be caught, the next link cleans."""
    program = textwrap.dedent(f"""
        import signal, sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})
        # A shell that starts the tests in the background leaves SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        import bed
        with bed.Link(rtt_ms=1) as link:
            link.b.start(["sleep", "600"])
            print("ready", flush=True)
            time.sleep(600)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    bed.Lines(process.stdout).until("ready", ANSWER_SECONDS)
    process.send_signal(sign)
    process.wait(bed.STOP_SECONDS_MAX + ANSWER_SECONDS)
    if sign == signal.SIGKILL:
        bed.remove_stale()
    assert not [name for name in bed._names() if f"-{process.pid}-" in name]


def test_an_idle_relay_sleeps():
    from measure import process_seconds

    with bed.Link(rtt_ms=2) as link:
        before = sum(process_seconds(link.relay.process.pid))
        time.sleep(0.5)
        assert sum(process_seconds(link.relay.process.pid)) - before <= 0.02


def test_report_and_picture():
    cell = run.Cell(1, 2, 0.001)
    found = {"share": 0.5, "endpoint_cpu_s_per_gb": 1.0, "machine_cpu_s_per_gb": 2.0, "marks": "c"}
    report = {
        **{"date": "today", "kernel": "6", "cores": 2, "seconds": 1, "rounds": 1, "capacity": 1e10},
        **{"contenders": ["tcp-cubic"], "missing": {"genie-udp": "why"}, "fairness": {}},
        "cells": {cell.name: {"tcp-cubic": found}},
    }
    assert "| 1g, 2ms, 0.1% | 50.0 (1.0/2.0) c |" in run.page(report)
    assert 'height="75.0"' in plot.bars(report)


def test_masks_of_cores(monkeypatch):
    written = []
    namespace = bed.Namespace("none")
    monkeypatch.setattr(namespace, "run", lambda command: written.append(command[-1].split()[1]))
    for core in (0, 1, 31, 32, 40):
        bed.Link()._steer(namespace, "up0", core)
    assert written == ["1", "2", "80000000", "1,00000000", "100,00000000"]


