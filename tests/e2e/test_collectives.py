"""torch.distributed over device tensors: two processes, a session each, against what one process computes."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.remote

PROLOGUE = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
torch.set_num_threads(1)
DEVICE, RANK, COUNT = "remote_accelerator", int(sys.argv[2]), 2
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=RANK, world_size=COUNT)
def on_device(*values): return torch.tensor(values, device=DEVICE)
"""


def both(source, tmp_path):
    """Runs the program as rank 0 and as rank 1."""
    command = [sys.executable, "-c", PROLOGUE + source + "\ndist.destroy_process_group()\n", str(tmp_path / "rendezvous")]
    ranks = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True, env=dict(os.environ)) for rank in (0, 1)
    ]
    try:
        for rank, process in enumerate(ranks):
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, f"rank {rank}: {errors[-3000:]}"
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def test_every_collective(tmp_path):
    both(
        """
mine, other = float(RANK), float(1 - RANK)
x = on_device(mine + 1, 4.0); dist.all_reduce(x); assert x.tolist() == [3, 8], x
x = on_device(mine, 4.0); dist.all_reduce(x, dist.ReduceOp.MAX, async_op=True).wait(); assert x.tolist() == [1, 4], x
x = on_device(mine); dist.broadcast(x, 1); assert x.tolist() == [1], x
x = on_device(mine + 1); dist.reduce(x, 0); assert RANK or x.tolist() == [3], x
many = [on_device(-1.0) for _ in range(2)]; dist.all_gather(many, on_device(mine)); assert [m.item() for m in many] == [0, 1]
x = on_device(0.0, 0.0); dist.all_gather_into_tensor(x, on_device(mine)); assert x.tolist() == [0, 1], x
x = on_device(0.0); dist.reduce_scatter_tensor(x, on_device(1.0, 2.0)); assert x.item() == 2 * (RANK + 1), x
many = [on_device(-1.0) for _ in range(2)] if RANK == 0 else None
dist.gather(on_device(mine), many, dst=0); assert RANK or [m.item() for m in many] == [0, 1]
x = on_device(-1.0); dist.scatter(x, [on_device(5.0), on_device(6.0)] if RANK == 0 else None, src=0); assert x.item() == 5 + RANK
x = on_device(0.0, 0.0); dist.all_to_all_single(x, on_device(10 * mine, 10 * mine + 1)); assert x.tolist() == [RANK, 10 + RANK], x
x = on_device(-1.0)
pending = [dist.irecv(x, 1 - RANK), dist.isend(on_device(mine + 7), 1 - RANK)]  # the receive first
for each in pending: each.wait()
assert x.item() == other + 7, x
part = torch.arange(4.0, device=DEVICE)[::2]; dist.all_reduce(part); assert part.tolist() == [0, 4], part
cpu = torch.ones(2); dist.all_reduce(cpu); assert cpu.tolist() == [2, 2]
dist.barrier()
""",
        tmp_path,
    )


def test_ddp_has_the_gradients_of_one_process(tmp_path):
    both(
        """
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
torch.manual_seed(1)
inputs, targets = torch.randn(8, 6), torch.randn(8, 2)
whole = model()
torch.nn.functional.mse_loss(whole(inputs), targets).backward()
parallel = DistributedDataParallel(model().to(DEVICE))
mine = slice(4 * RANK, 4 * RANK + 4)
torch.nn.functional.mse_loss(parallel(inputs[mine].to(DEVICE)), targets[mine].to(DEVICE)).backward()
for one, many in zip(whole.parameters(), parallel.module.parameters()):
    assert many.grad.device.type == DEVICE
    torch.testing.assert_close(many.grad.cpu(), one.grad, rtol=1e-5, atol=1e-6)
""",
        tmp_path,
    )


def test_a_group_without_a_backend_for_the_cpu_is_told_what_it_lacks(tmp_path):
    both(
        """
from genie import _collectives
group = dist.group.WORLD
class NoCPU:
    _device_types = [torch.device("cuda")]
unbox = dist.ProcessGroup.unbox
dist.ProcessGroup.unbox = staticmethod(lambda group: NoCPU)
try:
    dist.all_reduce(on_device(1.0))
except NotImplementedError as error:
    assert "init_process_group" in str(error) and "cuda" in str(error), error
else:
    raise AssertionError("it went through")
finally:
    dist.ProcessGroup.unbox = unbox
""",
        tmp_path,
    )
