"""The node within 2 cores and 8 GB, and what it weighs when idle."""

import pytest

pytestmark = pytest.mark.remote

IDLE_BYTES_MAX = 512 << 20
GATE_BYTES_MAX = 15 << 20


def test_runs_under_two_cores_and_eight_gigabytes(program):
    """The whole tree inherits the limits: 2 CPUs by affinity, 8 GB of data by rlimit."""
    said, _ = program(
        """
        import resource
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
        resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
        torch.manual_seed(0)
        model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(20)]).to(DEVICE)
        out = model(torch.ones(64, 1024, device=DEVICE)).sum().item()
        import psutil
        limits = psutil.Process(children()["genie-worker"]).rlimit(psutil.RLIMIT_DATA)
        say(finite=out == out, limit=limits[0])
        """
    ).finish()
    assert said == {"finite": True, "limit": 8 << 30}


def test_more_than_the_limit_is_out_of_memory_and_the_node_lives(program):
    said, _ = program(
        """
        import resource
        torch.ones(1)
        resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
        x = torch.ones(4, device=DEVICE)
        x.sum().item()
        big = torch.empty(12 << 30, dtype=torch.uint8, device=DEVICE)
        try:
            big[:8].fill_(1)
            big[0].item()
            say(error=None)
        except torch.OutOfMemoryError as error:
            say(error=str(error), after=x.sum().item())
        """
    ).finish()
    assert said["error"] and said["after"] == 4.0


def test_idle_resident_memory(program, record_property):
    said, _ = program(
        """
        import psutil
        torch.ones(1, device=DEVICE).item()
        say(**{name: psutil.Process(pid).memory_info().rss for name, pid in children().items()})
        """
    ).finish()
    record_property("resident", said)
    assert said["genie-worker"] < IDLE_BYTES_MAX
    assert said["genie-node"] < GATE_BYTES_MAX
    assert said["genie-host"] < 64 << 20
