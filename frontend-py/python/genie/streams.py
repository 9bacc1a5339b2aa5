"""Streams and events of `torch.remote_accelerator`: PyTorch's own, for this device.

There is one stream, in which operators run in the order of the program. An event is a place in it;
with `enable_timing` also the node's clock when it came there.
"""

from typing import Any

import torch

from genie import _native

NAME = "remote_accelerator"
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

if TORCH >= (2, 5):

    class Stream(torch.Stream):
        """The one stream of the device."""

        priority = 0

        def __new__(cls, device: Any = None, priority: int = 0, **numbers: int) -> "Stream":
            if "stream_id" in numbers:
                return super().__new__(cls, priority=priority, **numbers)
            index = device if isinstance(device, int) else torch.device(device or NAME).index
            return super().__new__(cls, torch.device(NAME, index or 0), priority=priority)

        def record_event(self, event: torch.Event | None = None) -> torch.Event:
            event = Event() if event is None else event
            event.record(self)
            return event

        def __repr__(self) -> str:
            return f"<torch.{NAME}.Stream device={self.device}>"

    class _OfDevice(type):
        def __instancecheck__(cls, event: object) -> bool:
            return isinstance(event, torch.Event) and event.device.type == NAME

    class Event(torch.Event, metaclass=_OfDevice):
        """A place in the stream, to be waited for or asked about.

        What is made is a `torch.Event` of this device: PyTorch's functions take no class below it.
        """

        def __new__(  # type: ignore[misc]
            cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
        ) -> torch.Event:
            if interprocess:
                raise NotImplementedError(f"events of {NAME} cannot be shared between processes")
            return torch.Event(NAME, enable_timing=enable_timing, blocking=blocking)

else:

    class Stream:  # type: ignore[no-redef]
        """The one stream of the device. PyTorch has none of its own for other devices yet."""

        stream_id = 0
        priority = 0

        def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
            index = device if isinstance(device, int) else torch.device(device or NAME).index
            self.device = torch.device(NAME, index or 0)

        def query(self) -> bool:
            return _native.is_idle()

        def synchronize(self) -> None:
            _native.synchronize()

        def wait_event(self, event: "Event") -> None:
            """Nothing to do: everything recorded before has run before."""

        def wait_stream(self, stream: "Stream") -> None:
            """Nothing to do: it is the same stream."""

        def record_event(self, event: "Event | None" = None) -> "Event":
            event = Event() if event is None else event
            event.record(self)
            return event

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Stream) and other.device == self.device

        def __hash__(self) -> int:
            return hash((NAME, self.stream_id))

    class Event:  # type: ignore[no-redef]
        """A place in the stream, to be waited for or asked about."""

        def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
            if interprocess:
                raise NotImplementedError(f"events of {NAME} cannot be shared between processes")
            self.enable_timing = enable_timing
            self._token: int | None = None
            self._session = 0

        def record(self, stream: Stream | None = None) -> None:
            self._drop()
            if self.enable_timing or _native.is_live():
                self._token = _native.fence()
                self._session = _native.session_number()

        def query(self) -> bool:
            return not self._is_open() or _native.fence_reached(self._token)

        def synchronize(self) -> None:
            if self._is_open():
                _native.wait_fence(self._token)

        def wait(self, stream: Stream | None = None) -> None:
            """Nothing to do: everything recorded before has run before."""

        def elapsed_time(self, end_event: "Event") -> float:
            """Milliseconds from this event to another."""
            if not (self.enable_timing and end_event.enable_timing and self._is_open() and end_event._is_open()):
                raise ValueError("both events must be made with enable_timing=True and recorded in this session")
            if not (self.query() and end_event.query()):
                raise RuntimeError("both events must be completed: synchronize first")
            begin, end = _native.wait_fence(self._token), _native.wait_fence(end_event._token)
            if begin is None or end is None:
                raise RuntimeError("the node is of an older version and does not tell when it reached an event")
            return (end - begin) / 1e6

        def _is_open(self) -> bool:
            return self._token is not None and self._session == _native.session_number()

        def _drop(self) -> None:
            if self._is_open():
                _native.drop_fence(self._token)
            self._token = None

        def __del__(self) -> None:
            self._drop()
