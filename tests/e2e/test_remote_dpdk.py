"""The same programs with their tensors over DPDK, on the software device af_packet. The plugin is
not part of the default build: `make test-dpdk` builds it and runs this."""

import os
from pathlib import Path

import far as far_away
import pytest
from far import Far, host_binary
from test_remote import WORK

WHY_NOT = far_away.bed.why_not()
PLUGINS = Path(os.environ.get("GENIE_TRANSPORTS") or Path(host_binary()).parent.parent / "share/genie/transports")
pytestmark = [
    pytest.mark.remote,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or ""),
    pytest.mark.skipif(not (PLUGINS / "dpdk.so").exists(), reason=f"no dpdk.so in {PLUGINS} (make test-dpdk)"),
]


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    with Far(tmp_path_factory.mktemp("far")) as far:
        yield far


def device(end):
    """The settings that let DPDK take packets off this end's interface."""
    settings = {
        "device": f"net_af_packet0,iface={end.interface}",
        "ip": f"{end.raw_address}/24",
        "gateway": end.gateway,
    }
    return [word for key, value in settings.items() for word in ("--set", f"dpdk.{key}={value}")]


@pytest.mark.parametrize("mode", ["remote", "remote_zero_copy"])
def test_answers_are_equal_bit_for_bit_over_dpdk(mode, far):
    """Encrypted, or sent from where it lies on a network that is trusted."""
    trusted = {"remote": [], "remote_zero_copy": ["--trusted-network"]}[mode]
    node = far.node(*device(far.link.b), *trusted)
    host = far.host(node.address, flags=device(far.link.a) + trusted)
    said = far.worker.do(WORK, {"GENIE_HOST": host.address})
    assert not said["warnings"]
    assert all(said["answers"].values()), said
    assert (said["transport"], said["mode"]) == ("dpdk", mode), said
    assert said["node_pid"] == node.process.pid
    far.end_all()


def test_a_device_that_is_not_there_gives_way_to_udp(far):
    node = far.node(*device(far.link.b))
    missing = [word.replace(far.link.a.interface, "nothing0") for word in device(far.link.a)]
    host = far.host(node.address, flags=missing)
    said = far.worker.do(WORK, {"GENIE_HOST": host.address})
    assert all(said["answers"].values()), said
    assert said["transport"] == "udp" and "not over dpdk" in said["route"], said
