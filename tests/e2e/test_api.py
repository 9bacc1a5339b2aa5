"""The surface: torch.remote_accelerator as PyTorch expects of a device module, and genie's own."""

import pytest
import torch

pytestmark = pytest.mark.remote


def test_import_torch_alone_finds_the_device(program):
    said, _ = program(
        """
        assert "genie" in sys.modules
        say(count=torch.remote_accelerator.device_count())
        """
    ).finish()
    assert said["count"] >= 1


def test_autoload_without_importing_genie():
    import subprocess
    import sys

    source = "import torch; print(torch.ones(2, device='remote_accelerator').sum().item())"
    out = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=600)
    assert out.stdout.strip() == "2.0", out.stderr


def test_module_surface():
    module = torch.remote_accelerator
    assert module.is_available() is True
    assert module.device_count() >= 1
    assert module.current_device() == 0
    module.set_device(0)
    module.synchronize()
    with module.device(0):
        assert torch.ones(1, device="remote_accelerator").device.index == 0
    module.manual_seed(1)
    module.manual_seed_all(1)
    assert module.get_rng_state().dtype == torch.uint8
    assert isinstance(module.memory_stats(), dict)
    module.empty_cache()
    assert torch.bfloat16 in module.get_amp_supported_dtype()
    module.Stream()
    module.Event()


def test_memory_allocated_follows_tensors():
    module = torch.remote_accelerator
    before = module.memory_allocated()
    x = torch.empty(1 << 20, device="remote_accelerator")
    assert module.memory_allocated() - before == 4 << 20
    del x
    assert module.memory_allocated() == before


def test_device_strings():
    assert torch.device("remote_accelerator").type == "remote_accelerator"
    x = torch.ones(2, device="remote_accelerator:0")
    assert x.device == torch.device("remote_accelerator", 0)
    assert x.is_remote_accelerator
    assert torch.ones(2).remote_accelerator().device == x.device
    assert torch.nn.Linear(2, 2).remote_accelerator().weight.device == x.device
    assert torch.zeros_like(x).device == x.device
    assert x.new_ones(3).device == x.device


def test_default_device():
    with torch.device("remote_accelerator"):
        assert torch.ones(2).device.type == "remote_accelerator"


def test_stats_keys(stats, device):
    torch.ones(3, device=device).add(1).sum().item()
    now = stats()
    for key in ("ops", "template_hits", "template_misses", "fallbacks", "bytes_up", "bytes_down", "round_trips", "capture_ns"):
        assert isinstance(now[key], int), key
    assert isinstance(now["fallbacks_by_op"], dict)
    assert now["ops"] > 0 and now["round_trips"] > 0


def test_template_hits_on_a_repeated_model(stats, device):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(4, 8, device=device)

    def step():
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    for _ in range(3):
        step()
    before = stats()
    for _ in range(50):
        step()
    after = stats()
    hits = after["template_hits"] - before["template_hits"]
    misses = after["template_misses"] - before["template_misses"]
    assert hits / (hits + misses) >= 0.99


def test_one_read_is_one_round_trip(stats, device):
    x = torch.ones(4, device=device)
    x.sum().item()
    before = stats()["round_trips"]
    (x * 2 + 1).sum().item()
    assert stats()["round_trips"] - before == 1


def test_phase_marks_do_not_change_answers(device):
    import genie

    with genie.phase("decode"):
        assert torch.ones(2, device=device).sum().item() == 2.0


def test_init_and_shutdown(program):
    said, _ = program(
        """
        genie.init()
        first = torch.ones(2, device=DEVICE).sum().item()
        genie.shutdown()
        say(first=first, left=children())
        """
    ).finish()
    assert said == {"first": 2.0, "left": {}}


def test_local_mode_runs_without_processes(program):
    said, _ = program(
        """
        value = (torch.ones(4, device=DEVICE) * 3).sum().item()
        say(value=value, children=children())
        """,
        env={"GENIE_MODE": "local"},
    ).finish()
    assert said == {"value": 12.0, "children": {}}


@pytest.mark.parametrize("mode", ["local_remote", "auto"])
def test_modes_with_processes(mode, program):
    said, _ = program(
        "say(value=torch.ones(4, device=DEVICE).sum().item(), children=sorted(children()))", env={"GENIE_MODE": mode}
    ).finish()
    assert said == {"value": 4.0, "children": ["genie-host", "genie-node", "genie-worker", "genie-zygote"]}


def test_directories_too_long_for_a_socket(program, tmp_path):
    """Where they are, `/tmp` serves: a socket's address holds 107 bytes."""
    long = tmp_path / ("d" * 90)
    long.mkdir()
    said, stderr = program(
        "say(value=torch.ones(4, device=DEVICE).sum().item(), mode=genie.stats()['mode'])",
        env={"TMPDIR": str(long), "XDG_RUNTIME_DIR": str(long)},
    ).finish()
    assert said == {"value": 4.0, "mode": "local_remote"}, stderr
    assert not list(long.iterdir())


def test_unknown_mode_is_refused(program):
    said, _ = program(
        """
        try:
            torch.ones(2, device=DEVICE).sum().item()
        except Exception as error:
            say(error=str(error))
        """,
        env={"GENIE_MODE": "sideways"},
    ).finish()
    assert "sideways" in said["error"] and "local_remote" in said["error"]


def test_log_intercepts(program):
    _, err = program("torch.ones(2, device=DEVICE).add(1).sum().item()", env={"GENIE_LOG_INTERCEPTS": "1"}).finish()
    assert "add" in err


def test_aten_impl_off_says_so(program):
    """GENIE_ENABLE_ATEN_IMPL=0: operators run on the client's CPU, with the right answer."""
    said, _ = program(
        """
        value = (torch.arange(4.0, device=DEVICE) * 2).sum().item()
        say(value=value, fallbacks=genie.stats()["fallbacks"])
        """,
        env={"GENIE_ENABLE_ATEN_IMPL": "0"},
    ).finish()
    assert said["value"] == 12.0 and said["fallbacks"] > 0


def test_doctor():
    import subprocess

    out = subprocess.run(["genie-host", "doctor"], capture_output=True, text=True, timeout=600)
    assert out.returncode == 0, out.stdout + out.stderr
    assert "genie-node" in out.stdout
