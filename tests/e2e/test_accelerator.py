"""What PyTorch asks of every accelerator: `torch.accelerator`, `torch.Event`, `torch.Stream`, and
`nn.DataParallel` with what it is made of."""

import inspect
import threading
import time

import pytest
import torch
from conftest import DEVICE, REMOTE, wait_until
from torch import nn
from torch.nn import parallel

pytestmark = pytest.mark.remote
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
if REMOTE:
    remote = torch.remote_accelerator

# What each name of torch.accelerator is called with, and what it answers.
ANSWERS = {
    "current_accelerator": lambda ask: ask() == torch.device(DEVICE) == ask(check_available=True),
    "current_device_idx": lambda ask: ask() == 0,
    "current_device_index": lambda ask: ask() == 0,
    "current_stream": lambda ask: ask() == ask(0) == ask(DEVICE) == remote.current_stream(),
    "device_count": lambda ask: ask() == 1,
    "device_index": lambda ask: enters(ask(0)) and enters(ask(None)),
    "empty_cache": lambda ask: ask() is None,
    "get_device_capability": lambda ask: torch.float32 in ask()["supported_dtypes"],
    "get_memory_info": lambda ask: 0 < ask()[0] <= ask(0)[1],
    "is_available": lambda ask: ask() is True,
    "max_memory_allocated": lambda ask: ask() >= torch.accelerator.memory_allocated() > 0,
    "max_memory_reserved": lambda ask: ask() >= torch.accelerator.memory_reserved() > 0,
    "memory_allocated": lambda ask: ask() == remote.memory_allocated() > 0,
    "memory_reserved": lambda ask: ask() == remote.memory_reserved() > 0,
    "memory_stats": lambda ask: remote.memory_stats().items() <= ask(0).items(),
    "reset_accumulated_memory_stats": lambda ask: ask() is None,
    "reset_peak_memory_stats": lambda ask: ask() is None,
    "set_device_idx": lambda ask: ask(0) is None,
    "set_device_index": lambda ask: ask(torch.device(DEVICE, 0)) is None,
    "set_stream": lambda ask: ask(torch.accelerator.current_stream()) is None,
    "synchronize": lambda ask: ask() is ask(0) is None,
}


def enters(context):
    with context:
        return torch.accelerator.current_device_index() == 0


def names_of_accelerator():
    return sorted(torch.accelerator.__all__) if hasattr(torch, "accelerator") else []


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", names_of_accelerator())
def test_each_name_of_torch_accelerator_answers(name):
    held = torch.ones(1000, device=DEVICE)
    answers = ANSWERS.get(name)
    if answers is None:
        pytest.skip(f"torch.accelerator.{name} is newer than this test") if TORCH > (2, 11) else pytest.fail(name)
    assert answers(getattr(torch.accelerator, name))
    del held


@pytest.mark.skipif(TORCH < (2, 9), reason="torch.accelerator asks the allocator from 2.9 on")
def test_memory_is_counted_as_it_is_made_and_freed():
    torch.accelerator.reset_peak_memory_stats()
    torch.accelerator.reset_accumulated_memory_stats()
    before = torch.accelerator.memory_stats()
    x = torch.empty(1 << 20, dtype=torch.uint8, device=DEVICE)
    held = torch.accelerator.memory_stats()
    assert held["allocated_bytes.all.current"] - before["allocated_bytes.all.current"] == 1 << 20
    assert held["allocated_bytes.all.allocated"] >= 1 << 20
    assert held["allocation.all.current"] - before["allocation.all.current"] == 1
    del x
    after = torch.accelerator.memory_stats()
    assert after["allocated_bytes.all.peak"] - after["allocated_bytes.all.current"] >= 1 << 20
    assert after["allocated_bytes.all.freed"] - before["allocated_bytes.all.freed"] == 1 << 20
    torch.accelerator.reset_peak_memory_stats()
    assert torch.accelerator.max_memory_allocated() == torch.accelerator.memory_allocated()


def test_another_device_is_refused_in_words():
    for ask in (remote.memory_stats, remote.synchronize, remote.set_device):
        with pytest.raises(RuntimeError, match="there is no device"):
            ask(3)
    if TORCH >= (2, 9):
        for ask in (torch.accelerator.memory_stats, torch.accelerator.set_device_index):
            with pytest.raises(RuntimeError, match="there is no device"):
                ask(3)


def kinds_of_event():
    yield pytest.param(lambda **options: remote.Event(**options), id="remote_accelerator")
    if TORCH >= (2, 5):
        yield pytest.param(lambda **options: torch.Event(DEVICE, **options), id="named")
        yield pytest.param(lambda **options: torch.Event(**options), id="generic")


def work():
    """Much to do for the device, asked for in no time."""
    x = torch.randn(1000, 1000, device=DEVICE)
    for _ in range(10):
        x = (x @ x) * 1e-3
    return x


@pytest.mark.parametrize("event", list(kinds_of_event()))
def test_an_event_is_reached_when_the_work_before_it_is_done(event):
    remote.synchronize()
    place = event()
    assert place.query(), "an event never recorded waits for nothing"
    result = work()
    place.record()
    assert not place.query()
    place.wait()
    place.synchronize()
    assert place.query()
    place.synchronize()
    # Recorded again it is another place.
    work()
    place.record()
    assert not place.query()
    result.cpu()
    place.synchronize()
    assert place.query()


@pytest.mark.parametrize("event", list(kinds_of_event()))
def test_events_measure_what_the_device_takes(event):
    start, middle, end = (event(enable_timing=True) for _ in range(3))
    remote.synchronize()
    begin = time.perf_counter()
    start.record()
    work()
    middle.record()
    asked = time.perf_counter()
    end.record()
    with pytest.raises(RuntimeError, match="completed"):
        start.elapsed_time(end)
    end.synchronize()
    elapsed_ms = (time.perf_counter() - begin) * 1e3
    assert 0 <= middle.elapsed_time(end) < start.elapsed_time(middle) <= start.elapsed_time(end) <= elapsed_ms
    # Recording does not wait: nearly all of the time passed afterwards.
    assert (asked - begin) * 1e3 < start.elapsed_time(end)
    with pytest.raises(ValueError, match="enable_timing"):
        event().elapsed_time(end)


@pytest.mark.skipif(TORCH < (2, 5), reason="torch.Event and torch.Stream came with 2.5")
def test_names_of_event_and_stream_answer():
    """Each public name, so that a new one is looked at."""
    stream, event = torch.Stream(DEVICE), torch.Event(DEVICE)
    known = {
        Event: set("device event_id from_ipc_handle record wait query elapsed_time synchronize ipc_handle".split())
        for Event in (torch.Event,)
    }
    known[torch.Stream] = set(
        "stream_id device_index device_type device query synchronize wait_event wait_stream record_event "
        "native_handle".split()
    )
    if TORCH <= (2, 11):
        for kind, names in known.items():
            assert {name for name in vars(kind) if not name.startswith("_")} <= names
    assert stream.device == event.device == torch.device(DEVICE, 0) or event.device == torch.device(DEVICE)
    assert stream.record_event() is not None and stream.record_event(event) is event
    stream.wait_event(event)
    stream.wait_stream(torch.accelerator.current_stream())
    assert stream == torch.accelerator.current_stream() and hash(stream) == hash(remote.current_stream())
    if hasattr(stream, "native_handle"):
        assert stream.native_handle in (None, 0) or callable(stream.native_handle)
    for sharing in (lambda: event.ipc_handle(), lambda: torch.Event.from_ipc_handle(torch.device(DEVICE), b"")):
        with pytest.raises((NotImplementedError, RuntimeError)) as told:
            sharing()
        assert "INTERNAL ASSERT" not in str(told.value)
    work()
    assert not stream.query()
    stream.synchronize()
    assert stream.query()


def test_a_stream_becomes_idle_by_itself():
    for stream in (remote.Stream(), remote.current_stream()):
        work()
        assert not stream.query()
        wait_until(stream.query, 120, "the stream does not become idle")
        assert stream.query()


@pytest.mark.skipif(TORCH < (2, 7), reason="streams are context managers from 2.7 on")
def test_a_stream_is_a_context():
    for stream in (torch.Stream(DEVICE), remote.Stream()):
        with stream:
            assert torch.accelerator.current_stream() == stream
            y = torch.ones(3, device=DEVICE) + 1
        assert y.tolist() == [2, 2, 2]
    with remote.stream(remote.Stream()):
        pass


def test_the_device_module_has_pytorchs_own_classes():
    assert isinstance(remote.current_stream(), remote.Stream)
    assert isinstance(remote.Stream().record_event(), remote.Event)
    if TORCH >= (2, 5):
        assert issubclass(remote.Stream, torch.Stream) and issubclass(remote.Event, torch.Event)
    with pytest.raises(NotImplementedError, match="shared"):
        remote.Event(interprocess=True)


def test_many_threads_wait_for_one_event():
    event = remote.Event()
    work()
    event.record()
    waiting = [threading.Thread(target=event.synchronize, daemon=True) for _ in range(4)]
    for thread in waiting:
        thread.start()
    for thread in waiting:
        thread.join(120)
    assert not [thread for thread in waiting if thread.is_alive()]


def test_any_number_of_events_may_be_outstanding():
    """More than the host allows: recording waits meanwhile."""
    work()
    events = [remote.Event() for _ in range(6000)]
    for event in events:
        event.record()
    assert len(events) > 4096
    events[-1].synchronize()
    assert all(event.query() for event in events)


def test_events_of_a_session_that_ended(program):
    running = program(
        """
        old = torch.remote_accelerator.Event(enable_timing=True)
        torch.ones(3, device=DEVICE)
        old.record()
        genie.shutdown()
        done = old.query()
        old.synchronize()
        torch.ones(3, device=DEVICE)
        new = torch.remote_accelerator.Event(enable_timing=True)
        new.record()
        new.synchronize()
        try:
            old.elapsed_time(new)
        except (RuntimeError, ValueError) as error:
            say(done=done, error=str(error))
        """
    )
    said, _ = running.finish()
    assert said["done"] and "session" in said["error"]


# nn.DataParallel.


def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


X = torch.linspace(-1, 1, 24).reshape(4, 6)


@pytest.mark.parametrize("device_ids", [None, [0]])
@pytest.mark.parametrize("where", ["cpu", DEVICE])
def test_data_parallel_trains_like_the_module(device_ids, where):
    reference, wrapped = model(), nn.DataParallel(model().to(where), device_ids=device_ids)
    assert {each.device.type for each in wrapped.parameters()} == {torch.device(where).type}
    assert wrapped.device_ids == ([] if where == "cpu" else [0])
    # Inputs may be on the CPU: they are scattered.
    outputs = wrapped(X)
    assert outputs.device.type == torch.device(where).type
    expected = reference(X)
    outputs.square().sum().backward()
    expected.square().sum().backward()
    assert torch.allclose(outputs.cpu(), expected, atol=1e-6)
    for ours, theirs in zip(wrapped.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours.grad.cpu(), theirs.grad, atol=1e-5)
    for ours, theirs in zip(wrapped.buffers(), reference.buffers(), strict=True):
        assert torch.allclose(ours.cpu().float(), theirs.float(), atol=1e-6)


def test_data_parallel_takes_nested_arguments():
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, pair, *, named, number):
            return {"sum": pair[0] * self.weight + named["x"] * number}

    out = nn.DataParallel(Takes().to(DEVICE))((X, X), named={"x": X}, number=3)
    assert torch.equal(out["sum"].cpu(), X * 4)


def test_the_function_data_parallel():
    net = model().to(DEVICE)
    out = parallel.data_parallel(net, X.to(DEVICE), device_ids=None)
    assert torch.allclose(out.cpu(), model()(X), atol=1e-6)
    with pytest.raises(RuntimeError):
        parallel.data_parallel(model(), X)


def test_replicate_scatter_and_gather():
    net = model().to(DEVICE)
    net.register_buffer("phase", torch.ones(2, dtype=torch.complex64, device=DEVICE))
    (replica,) = parallel.replicate(net, [0])
    assert torch.equal(replica[0].weight.cpu(), net[0].weight.cpu()) and replica.phase.is_complex()
    assert replica[0].weight.untyped_storage().data_ptr() == net[0].weight.untyped_storage().data_ptr()
    x = X.clone().requires_grad_()
    (inputs,) = parallel.scatter((x,), [0])
    outputs = parallel.parallel_apply([replica], [inputs], devices=[0]) if TORCH >= (2, 7) else [replica(*inputs)]
    gathered = parallel.gather(outputs, "cpu")
    assert gathered.device.type == "cpu"
    gathered.sum().backward()
    assert x.grad is not None and net[0].weight.grad is not None
    assert torch.equal(parallel.gather(outputs, 0).cpu(), gathered)


def test_functions_of_comm():
    comm = parallel.comm
    x, z = X.to(DEVICE), torch.ones(3, dtype=torch.complex64, device=DEVICE)
    assert comm.broadcast(X, [0])[0].device.type == torch.device(DEVICE).type
    assert comm.broadcast(x, out=[torch.empty_like(x)])[0].tolist() == X.tolist()
    assert comm.broadcast_coalesced([x, x], [0])[0][1].tolist() == X.tolist()
    assert comm.broadcast(z, [0])[0].shape == (3, 2)
    assert [each.tolist() for each in comm.scatter(X, [0])] == [X.tolist()]
    halves = [torch.empty(1, 6, device=DEVICE), torch.empty(3, 6, device=DEVICE)]
    assert [len(each) for each in comm.scatter(x, out=halves)] == [1, 3]
    assert halves[1].tolist() == X[1:].tolist()
    assert comm.gather([x, x], destination="cpu").tolist() == [*X.tolist(), *X.tolist()]
    assert comm.gather([x], out=torch.empty_like(x)).tolist() == X.tolist()
    assert comm.reduce_add([x], 0).tolist() == X.tolist()
    assert comm.reduce_add_coalesced([[x, x]], 0)[1].tolist() == X.tolist()
    for function in (comm.broadcast, comm.broadcast_coalesced, comm.scatter, comm.gather):
        assert function.__module__ == "torch.nn.parallel.comm" and inspect.signature(function).parameters
