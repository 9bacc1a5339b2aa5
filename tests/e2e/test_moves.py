"""A weight that one node has reaches another node from there, not from the program."""

import far as far_away
import pytest
from far import Far

WHY_NOT = far_away.bed.why_not()
pytestmark = [pytest.mark.remote, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "")]

# Four weights of 6 MB and small ones, the same in each program.
PROGRAM = """
torch.manual_seed(7)
model = torch.nn.Sequential(*[torch.nn.Linear(1225, 1225) for _ in range(4)])
x = torch.randn(3, 1225)
with torch.no_grad():
    expected = model(x)
    equal = torch.equal(expected, model.to(DEVICE)(x.to(DEVICE)).cpu())
say(equal=equal, **{key: value for key, value in genie.stats().items() if isinstance(value, (int, str))})
sys.stdin.readline()
"""
WEIGHT_BYTES = 4 * 1225 * 1225 * 4


@pytest.fixture
def far(tmp_path):
    with Far(tmp_path) as far:
        yield far


def crossed(far):
    """Bytes that went over the link to the nodes."""
    return far.link.counters()["forward"][1]


@pytest.mark.parametrize("data", ["udp", "tcp"])
def test_a_second_node_takes_weights_from_the_first(data, far, program):
    nodes = [far.node("--data", data), far.node("--data", data)]
    host = far.host(*(node.address for node in nodes))
    first = program(PROGRAM, env=host.environment, prefix=far.at_a)
    said = first.heard()
    assert said["equal"] and said["transport"] == data
    assert said["payload_bytes_up"] >= WEIGHT_BYTES

    before = crossed(far)
    second = program(PROGRAM, env=host.environment, prefix=far.at_a).heard()
    assert second["equal"], "the answers on the other node"
    assert {said["node_pid"], second["node_pid"]} == {node.process.pid for node in nodes}
    logs = [node.said() for node in nodes]
    assert second["host.weights_moved"] == 4, logs
    assert second["host.weight_bytes_moved"] == WEIGHT_BYTES
    assert second["node.weights_moved_in"] == 4
    assert second["node.upload_bytes"] < 200_000
    assert second["payload_bytes_up"] < 200_000, "the program uploaded them again"
    assert crossed(far) - before < WEIGHT_BYTES / 4, "they crossed the link again"

    # A third session finds them on either node.
    first.tell()
    first.finish()
    third = program(PROGRAM, env=host.environment, prefix=far.at_a).heard()
    assert third["equal"] and third["host.weights_moved"] == 4


def test_a_node_that_is_gone_costs_an_upload(far, program):
    nodes = [far.node(), far.node()]
    host = far.host(*(node.address for node in nodes))
    first = program(PROGRAM, env=host.environment, prefix=far.at_a).heard()
    gone = next(node for node in nodes if node.process.pid == first["node_pid"])
    gone.end()
    second = program(PROGRAM, env=host.environment, prefix=far.at_a).heard()
    assert second["equal"] and second["node_pid"] != first["node_pid"]
    assert second["host.weights_moved"] == 0
    assert second["payload_bytes_up"] >= WEIGHT_BYTES
    log = host.log.read_text()
    assert log.count("a weight is uploaded instead of moved") == 1, log
