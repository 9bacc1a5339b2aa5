"""Exceptions and warnings of Genie, and the classes that errors of the node become."""

import warnings

import torch

NODE_LOST = 3
UNAVAILABLE = 12
# Known to the front end alone; no peer sends them.
PROGRAM_ENDS = 253
START_FAILED = 254


class NodeLost(RuntimeError):
    """The host or the node is gone, and with it every tensor on the device.

    `genie.init()` starts a new session in the same process.
    """

    code = NODE_LOST


class StartFailed(RuntimeError):
    """A session could not start; the message says what to do."""

    code = START_FAILED


class FallbackWarning(UserWarning):
    """An operator ran on the client's CPU, because the node cannot run it. Once per operator."""


# genie_wire::ErrorCode, or a code of the front end -> class; the others become RuntimeError.
CLASSES: dict[int, type[BaseException]] = {
    2: getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError),
    NODE_LOST: NodeLost,
    4: IndexError,
    5: ValueError,
    6: TypeError,
    7: NotImplementedError,
    8: torch.linalg.LinAlgError,
    UNAVAILABLE: StartFailed,
    # For a daemon thread that uses the device while the interpreter ends. `threading` prints nothing of
    # this class, and of no other, not even of one derived from it.
    PROGRAM_ENDS: SystemExit,
    START_FAILED: StartFailed,
}


def from_code(code: int, message: str) -> BaseException:
    """The exception for an error of the native module."""
    return CLASSES.get(code, RuntimeError)(message)


def warn_of_fallback(op: str, reason: str, only_here: bool) -> bool:
    """Warns at the line of the program that this thread runs. `only_here`: not at all without one.
    Whether it did."""
    message = (
        f"{op} runs on the client's CPU, not on remote_accelerator: {reason}. Its inputs are "
        "fetched and its results sent back (genie.stats()['fallbacks_by_op'] counts)"
    )
    from genie.marks import frame_of_program

    frame = frame_of_program()
    if frame is not None:
        warnings.warn_explicit(message, FallbackWarning, frame.f_code.co_filename, frame.f_lineno)
    elif not only_here:
        warnings.warn(message, FallbackWarning, stacklevel=2)
    return frame is not None or not only_here
