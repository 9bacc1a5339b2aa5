"""What goes wrong between a host and a node elsewhere: links, packets, certificates, versions,
transports, quotas. Programs get the same answers, or a typed error in time; nothing is restarted."""

import os
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path

import far as far_away
import pytest
from conftest import wait_until
from far import Certificates, Far, node_binary, tool

WHY_NOT = far_away.bed.why_not()
pytestmark = [pytest.mark.remote, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "")]

CUT_SECONDS = 5
DEADLINE_S = 5
# Between the deadline and the error: a busy machine, and timers that tick.
SLACK_SECONDS = 60
READY_SECONDS_MAX = 300
# Bytes that a handshake, a refusal and their repeats may take. No tensor of these tests is so small.
FEW_BYTES = 200_000


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """1 Gb/s, through a relay that can spoil packets."""
    with Far(tmp_path_factory.mktemp("far"), rate_bits=10**9, faults=True) as far:
        yield far


@pytest.fixture
def far(bed):
    """The link without faults, nodes or hosts; they are ended afterwards."""
    yield bed
    bed.end_all()


# The link is cut

# One upload after the other, each of something new, until it is told that it is enough.
UPLOAD = """
torch.ones(3, device=DEVICE).sum().item()
enough = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), enough.set()), daemon=True).start()
say(ready=True)
equal, rounds = True, 0
while not enough.is_set():
    data = torch.randint(0, 255, (32 << 20,), dtype=torch.uint8)
    equal = equal and torch.equal(data.to(DEVICE).cpu(), data)
    rounds += 1
say(equal=equal, rounds=rounds, transport=genie.stats()["transport"])
"""
# One token after the other, each from the last, until it is told that it is enough.
DECODE = """
torch.manual_seed(3)
size = 256
embedding, weight = torch.randn(size, size), torch.randn(size, size)
def tokens(where, count):
    table, matrix, state = embedding.to(where), weight.to(where), torch.zeros(size).to(where)
    token = 1
    while count():
        state = torch.tanh(state @ matrix + table[token])
        token = int(state.argmax().item())
        yield token
enough = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), enough.set()), daemon=True).start()
got = []
for token in tokens(DEVICE, lambda: not enough.is_set()):
    got.append(token)
    if len(got) % 50 == 0:
        say(tokens=len(got))
left = iter(range(len(got)))
say(equal=got == list(tokens("cpu", lambda: next(left, None) is not None)), total=len(got),
    transport=genie.stats()["transport"])
"""


@pytest.mark.parametrize("data", ["udp", "tcp", pytest.param("quic", marks=pytest.mark.slow)])
def test_upload_survives_a_cut_of_five_seconds(data, far):
    node = far.node()
    far.worker.begin(UPLOAD, far.environment(node.address, data=data))
    assert far.worker.heard()["ready"]
    far.wait_crossed(40)
    with far.cut():
        time.sleep(CUT_SECONDS)
        assert far.link.counters()["cut"][0] > 0, "nothing was lost by the cut"
    far.wait_crossed(40)
    far.worker.tell("enough")
    said = far.worker.finish()
    assert said["equal"] and said["transport"] == data and not said["warnings"], said


@pytest.mark.parametrize("data", ["udp", pytest.param("tcp", marks=pytest.mark.slow)])
def test_decoding_survives_a_cut_of_five_seconds(data, far):
    node = far.node()
    far.worker.begin(DECODE, far.environment(node.address, data=data))
    far.worker.heard()
    with far.cut():
        time.sleep(CUT_SECONDS)
    # It said nothing while the link was cut, and goes on now.
    before = far.worker.heard()["tokens"]
    while far.worker.heard()["tokens"] < before + 200:
        pass
    far.worker.tell("enough")
    said = far.worker.finish()
    assert said["equal"] and said["transport"] == data and not said["warnings"], said


# Joined by GENIE_HOST: neither host nor node is started again.
LOSE_AND_RETURN = """
x = torch.ones(1 << 20, device=DEVICE)
assert x.sum().item() == 1 << 20
before = genie.stats()
say(ready=True)
sys.stdin.readline()
start = time.monotonic()
try:
    (x + 1).sum().item()
    say(error=None)
except Exception as error:
    say(error=type(error).__name__, text=str(error), lost=isinstance(error, genie.NodeLost),
        seconds=time.monotonic() - start)
sys.stdin.readline()
genie.shutdown()
genie.init()
after = genie.stats()
say(value=torch.full((1 << 20,), 2.0, device=DEVICE).sum().item(),
    same=all(before[pid] == after[pid] for pid in ("host_pid", "node_pid")), route=after["route"])
"""


@pytest.mark.parametrize("data", ["udp", "tcp", "quic"])
def test_cut_beyond_the_deadline_is_an_error_and_a_new_session_works(data, far):
    lose_and_return(far, data, DEADLINE_S, cut_seconds=0)


@pytest.mark.slow
def test_cut_of_two_minutes_with_the_deadline_as_it_comes(far):
    lose_and_return(far, "udp", 30, cut_seconds=120)


def lose_and_return(far, data, deadline_s, cut_seconds):
    flags = ["--deadline-s", str(deadline_s)]
    node = far.node(*flags)
    host = far.host(node.address, data=data, flags=[*flags, "--no-local-node"])
    far.worker.begin(LOSE_AND_RETURN, host.environment, seconds=deadline_s + cut_seconds + 120)
    far.worker.heard()
    with far.cut():
        start = time.monotonic()
        far.worker.tell("read")
        said = far.worker.heard()
        assert said["lost"], said
        assert deadline_s - 1 < said["seconds"] < deadline_s + SLACK_SECONDS, said
        assert "genie.init" in said["text"], "the message tells what to do next"
        time.sleep(max(0.0, start + cut_seconds - time.monotonic()))
    far.worker.tell("return")
    said = far.worker.finish()
    assert said["value"] == 2 << 20 and said["same"], said
    assert said["route"].startswith("quic://") and f"tensors over {data}" in said["route"], said


# Packets are spoiled

THERE_AND_BACK = """
data = torch.randint(0, 255, (48 << 20,), dtype=torch.uint8)
torch.ones(3, device=DEVICE).sum().item()
say(ready=True)
sys.stdin.readline()
far = data.to(DEVICE)
back = far.cpu()
stats = genie.stats()
say(equal=torch.equal(back, data), transport=stats["transport"],
    link={key.removeprefix("host.session.link."): value for key, value in stats.items() if ".link." in key})
"""


def test_flipped_bits_are_found_and_mended(far):
    node = far.node()
    far.worker.begin(THERE_AND_BACK, far.environment(node.address, data="udp"))
    far.worker.heard()
    flipped = 10
    for lane in ("forward", "back"):
        for number in range(flipped):
            aim = {"protocol": "udp", "port": data_port(node, "udp"), "bytes_min": 1000}
            far.link.fault("flip", lane, skip=100 * number, offset=-1 - 90 * number, bit=number % 8, **aim)
    far.worker.tell("go")
    said = far.worker.finish()
    assert said["equal"] and said["transport"] == "udp", said
    for lane in ("forward", "back"):
        assert far.link.relay.stats(lane)["flipped"] == flipped
    assert said["link"]["data.corrupt_dropped"] == flipped, "what came to the host"
    assert said["link"]["data.retransmitted"] > 0, "what went to the node"


def test_replayed_datagrams_are_ignored_and_counted(far):
    node = far.node()
    far.worker.begin(THERE_AND_BACK.replace("back = far.cpu()", AGAIN), far.environment(node.address, data="udp"))
    far.worker.heard()
    for lane in ("forward", "back"):
        far.link.fault("remember", lane, count=64)
    far.worker.tell("go")
    assert far.worker.heard()["moved"]
    aim = {"protocol": "udp", "port": data_port(node, "udp")}
    sent = {lane: int(far.link.fault("replay", lane, count=200, **aim)) for lane in ("forward", "back")}
    far.worker.tell("go on")
    said = far.worker.finish()
    assert said["equal"] and said["transport"] == "udp", said
    assert min(sent.values()) > 0, sent
    assert said["link"]["data.replays_ignored"] >= sent["back"], (sent, said)


AGAIN = """
back = far.cpu()
say(moved=torch.equal(back, data))
sys.stdin.readline()
back = far.cpu()
"""


def data_port(node, protocol):
    """The port at which a node takes tensors: the one that it has besides those it listens at."""
    own = {int(address.rsplit(":", 1)[1]) for address in node.addresses}
    lines = Path(f"/proc/{node.process.pid}/net/{protocol}").read_text().splitlines()[1:]
    ports = {int(line.split()[1].rsplit(":", 1)[1], 16) for line in lines} - own
    assert len(ports) == 1, ports
    return ports.pop()


# Certificates

TRY = """
try:
    value = torch.full((1 << 20,), 1.0).to(DEVICE).sum().item()
    say(error=None, value=value, route=genie.stats()["route"])
except Exception as error:
    say(error=type(error).__name__, text=str(error), lost=isinstance(error, genie.NodeLost))
"""


def refused(far, environment):
    """What a program is told that gets no session; nearly nothing crossed."""
    before = far.link.counters()
    said = far.worker.do(TRY, {**environment, "GENIE_NO_LOCAL_NODE": "1"})
    assert said["error"], said
    after = far.link.counters()
    for lane in ("forward", "back"):
        assert after[lane][1] - before[lane][1] < FEW_BYTES, lane
    return said


def test_wrong_authority_is_refused_by_the_host(far):
    strangers = Certificates(far.fresh("strangers"))
    node = far.node(certs=strangers.node(far.link.b.address))
    said = refused(far, far.environment(node.address))
    assert "not from an authority in our ca.pem" in said["text"], said


def test_wrong_authority_is_refused_by_the_node(far):
    """The host believes the node, which does not know who signed the host."""
    strangers = Certificates(far.fresh("strangers"))
    shutil.copy(far.certificates.host / "ca.pem", strangers.host / "ca.pem")
    node = far.node(env={"GENIE_LOG": "info"})
    said = refused(far, far.environment(node.address, GENIE_CERTS=strangers.host))
    assert "authority" in said["text"], said


def test_no_certificate_is_refused(far):
    node = far.node()
    # Nor are there any in the usual place.
    nowhere = {"XDG_CONFIG_HOME": str(far.fresh("config"))}
    said = tool("serve", "--node", node.address, prefix=far.at_a, may_fail=True, env={**nowhere, "GENIE_CERTS": ""})
    assert "no certificates were given" in said and "--certs" in said, said
    environment = far.environment(node.address, GENIE_CERTS="", **nowhere)
    said = refused(far, environment)
    assert said["error"] == "StartFailed", said


def test_expired_certificate_is_refused(far):
    seconds, lasted = 8, False
    while not lasted:
        far.end_all()
        assert seconds < 1000, "no session begins before a certificate of minutes ends"
        out = far.fresh("brief")
        command = ["cargo", "run", "--release", "--quiet", "-p", "genie-tls", "--example", "issue_for_seconds", "--"]
        issue = [*command, far.certificates.host, "brief", far.link.b.address, out, seconds]
        subprocess.run(list(map(str, issue)), cwd=far_away.bed.ROOT, check=True, timeout=600)
        ends = time.time() + seconds
        node = far.node(certs=out)
        said = far.worker.do(TRY, far.environment(node.address))
        # A machine may be too busy to begin a session in that time.
        lasted, seconds = time.time() < ends, 4 * seconds
    assert said["error"] is None, f"it is good as yet: {said}"
    wait_until(lambda: time.time() > ends + 1, seconds, "the certificate does not expire")
    said = refused(far, far.environment(node.address))
    assert "certificate expired on" in said["text"], said


def test_address_that_the_certificate_does_not_name(far):
    node = far.node(certs=far.certificates.node("10.9.9.9", name="elsewhere"))
    said = refused(far, far.environment(node.address))
    assert "10.9.9.9" in said["text"] and far.link.b.address in said["text"], said


ROTATE = """
x = torch.ones(1 << 20, device=DEVICE)
while True:
    say(value=x.sum().item())
    if sys.stdin.readline().strip() == "end":
        break
"""


def test_certificates_are_changed_without_a_restart(far):
    """The authority is replaced: what was begun goes on, what begins needs the new certificates."""
    ours = Certificates(far.fresh("rotating"))
    tool("certs", "issue", "node", "far", "--address", far.link.b.address, "--dir", ours.host)
    issued, there = ours.host / "issued" / "node-far", far.fresh("node-certs")
    shutil.copytree(issued, there)
    before = far.fresh("before")
    shutil.copytree(ours.host, before)
    node = far.node(certs=there)
    host = far.host(node.address, certs=ours.host, flags=["--no-local-node"])
    far.worker.begin(ROTATE, host.environment)

    def still_works():
        assert far.worker.heard()["value"] == 1 << 20
        far.worker.tell()
        assert "host.session.transport" in tool("status", "--host", host.address), "a new session"

    still_works()
    tool("certs", "rotate", "--ca", "--dir", ours.host)
    still_works()
    for name in ("ca.pem", "cert.pem", "key.pem"):
        shutil.copy(issued / name, there / name)
    still_works()
    tool("certs", "rotate", "--finish", "--dir", ours.host)
    # Both the old and the new authority are still trusted by the node.
    still_works()
    shutil.copy(ours.host / "ca.pem", there / "ca.pem")
    still_works()
    assert far.worker.heard()["value"] == 1 << 20
    far.worker.tell("end")
    far.worker.finish()
    # Who did not take part is shut out: the new files are really the ones in use.
    late = far.host(node.address, certs=before, flags=["--no-local-node"])
    assert "authority" in tool("status", "--host", late.address, may_fail=True)


# Versions


def greet(address, protocol):
    """What a host says to a client that speaks this protocol: the kind of its frame, and its body."""
    hello, welcome_or_refusal = 1, (129, 135)
    body = bytes([0x08, protocol])  # field 1, a varint
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
        raw.settimeout(READY_SECONDS_MAX)
        raw.connect(address.removeprefix("unix:"))
        raw.sendall(struct.pack("<IB3x", len(body), hello) + body)
        reader = raw.makefile("rb")
        while True:
            length, kind = struct.unpack("<IB3x", reader.read(8))
            body = reader.read(length)
            if kind in welcome_or_refusal:
                return kind, body


def test_client_of_the_last_protocol_is_served_and_older_ones_are_told_both_versions(far):
    node = far.node()
    host = far.host(node.address, flags=["--no-local-node"])
    kind, body = greet(host.address, 1)
    assert kind == 129 and body[:2] == bytes([0x08, 1]), (kind, body[:200])
    kind, body = greet(host.address, 0)
    assert kind == 135 and b"speaks protocol 0" in body and b"speaks 1 to 3" in body, (kind, body)
    assert greet(host.address, 2)[0] == 129, "the others are served as before"


# Transports that are missing, or stop to work


def test_transport_missing_on_the_node_gives_way_to_the_next(far):
    some = far.fresh("transports")
    some.mkdir(mode=0o755)
    for name in ("quic.so", "tcp.so"):
        shutil.copy(transports_directory() / name, some / name)
    node = far.node("--transports", some)
    said = far.worker.do(TRY, far.environment(node.address, data="udp,tcp,quic"))
    assert said["error"] is None and "tensors over tcp" in said["route"], said
    assert "not over udp: the node has no such transport" in said["route"], said


def transports_directory():
    """Where the plugins of this installation lie."""
    named = os.environ.get("GENIE_TRANSPORTS")
    return Path(named) if named else Path(far_away.host_binary()).parent.parent / "share" / "genie" / "transports"


# One upload after the other until another transport carries them.
DOWNGRADE = """
torch.ones(3, device=DEVICE).sum().item()
say(ready=True, transport=genie.stats()["transport"])
equal = True
while (stats := genie.stats())["transport"] == "udp":
    data = torch.randint(0, 255, (32 << 20,), dtype=torch.uint8)
    equal = equal and torch.equal(data.to(DEVICE).cpu(), data)
say(equal=equal, **{key: stats[key] for key in ("mode", "route", "transport")})
"""


def test_transport_that_stops_to_work_gives_way_in_the_middle(far):
    flags = ["--deadline-s", str(DEADLINE_S)]
    node = far.node(*flags)
    environment = far.environment(node.address, data="udp,tcp,quic", GENIE_DEADLINE_S=DEADLINE_S)
    far.worker.begin(DOWNGRADE, environment)
    assert far.worker.heard()["transport"] == "udp"
    far.wait_crossed(20)
    for end in ("dport", "sport"):
        far.link.r.run(["nft", f"add rule inet bed cuts udp {end} {data_port(node, 'udp')} drop"])
    said = far.worker.finish()
    assert said["equal"] and said["transport"] == "tcp" and said["mode"] == "remote", said
    assert "(not over udp: " in said["route"], said


def test_node_that_is_not_there_gives_way_to_one_on_this_machine(far):
    address = f"quic://{far.link.b.address}:9"
    said = far.worker.do(TRY, far.environment(address))
    assert said["error"] is None and said["value"] == 1 << 20, said
    [warning] = said["warnings"]
    assert "mode local_remote" in warning and f"{address} is not reached" in warning, said


def test_node_that_is_not_there_is_an_error_without_one_on_this_machine(far):
    address = f"quic://{far.link.b.address}:9"
    said = refused(far, far.environment(address))
    assert said["lost"] and f"{address} is not reached" in said["text"], said


def test_second_node_takes_over_when_the_first_is_not_there(far):
    node = far.node()
    said = far.worker.do(TRY, far.environment(f"quic://{far.link.b.address}:9", node.address))
    assert said["error"] is None and said["route"].startswith(node.address), said
    assert not said["warnings"], said


# Quotas


def test_quota_of_memory(far):
    node = far.node("--client-memory-bytes", 32 << 20)
    said = far.worker.do(
        """
        small = torch.ones(1 << 20, device=DEVICE)
        try:
            torch.ones(12 << 20).to(DEVICE).sum().item()
            say(error=None)
        except torch.OutOfMemoryError as error:
            say(error=str(error), after=small.sum().item())
        """,
        far.environment(node.address),
    )
    assert "--client-memory-bytes" in said["error"] and said["after"] == 1 << 20, said


def test_quota_of_sessions(far):
    node = far.node("--client-sessions", 1)
    host = far.host(node.address, flags=["--no-local-node"])
    far.worker.begin(ROTATE, host.environment)
    far.worker.heard()
    assert "--client-sessions" in tool("status", "--host", host.address, may_fail=True)
    far.worker.tell("end")
    far.worker.finish()
    wait_until(
        lambda: "host.session.transport" in tool("status", "--host", host.address, may_fail=True),
        READY_SECONDS_MAX,
        "the session's place is not given back",
    )


def test_a_full_node_says_so(far, program):
    node = far.node("--max-sessions", 1)
    host = far.host(node.address, flags=["--no-local-node"])
    first = program(ROTATE, env=host.environment, prefix=far.at_a)
    first.heard()
    said, _ = program(
        """
        try:
            torch.ones(1, device=DEVICE)
            say(error=None)
        except RuntimeError as error:
            say(error=str(error))
        """,
        env=host.environment,
        prefix=far.at_a,
    ).finish()
    assert "the node serves 1 connections already" in said["error"], said


TIMED_UPLOAD = """
data = torch.randint(0, 255, (48 << 20,), dtype=torch.uint8)
torch.ones(3, device=DEVICE).sum().item()
start = time.monotonic()
far = data.to(DEVICE)
value = far[-1].item()
say(seconds=time.monotonic() - start, equal=value == data[-1].item())
"""


def test_quota_of_bytes_per_second(far):
    rate = 12 << 20
    took = {}
    for name, flags in (("free", []), ("bounded", ["--client-bytes-per-s", rate])):
        node = far.node(*flags)
        # Small steps, so that the first does not carry all.
        environment = far.environment(node.address, GENIE_UPLOAD_BYTES=8 << 20)
        said = far.worker.do(TIMED_UPLOAD, environment)
        assert said["equal"], said
        took[name] = said["seconds"]
    # One second's worth is free, and what is on its way counts later: (48 - 12 - 8) / 12 s. Without a
    # bound it is as fast as the machine happens to be.
    assert took["bounded"] > 2.0, took


def test_quota_of_message_bytes(far):
    node = far.node("--client-message-bytes", 1 << 20)
    said = refused(far, far.environment(node.address))
    assert "GENIE_UPLOAD_BYTES" in said["text"], said
    smaller = {"GENIE_UPLOAD_BYTES": 512 << 10, "GENIE_DOWNLOAD_BYTES": 512 << 10}
    said = far.worker.do(TRY, far.environment(node.address, **smaller))
    assert said["error"] is None and said["value"] == 1 << 20, said


# What must not listen


@pytest.mark.parametrize("more", [["quic://0.0.0.0:0"], ["tcp://0.0.0.0:0", "--trusted-network"]], ids=["quic", "tcp"])
def test_node_listens_at_no_public_address_without_certificates(more, far):
    environment = {**os.environ, "LD_LIBRARY_PATH": far_away.TORCH_LIB}
    environment.pop("GENIE_CERTS", None)
    done = subprocess.run(
        far.link.b.command([node_binary(), "--device", "cpu", "--listen", *more]),
        env=environment,
        capture_output=True,
        text=True,
        timeout=READY_SECONDS_MAX,
    )
    assert done.returncode != 0 and "ready" not in done.stdout, done
    assert "without certificates" in done.stderr and "--certs" in done.stderr, done.stderr
