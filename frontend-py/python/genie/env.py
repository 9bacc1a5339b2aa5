"""Every environment variable that the front end reads. Read when used, never written."""

import os

MODE = "GENIE_MODE"
"""Where operators run: `auto` (default), `local`, `local_remote`, `remote`, `remote_zero_copy`."""

HOST = "GENIE_HOST"
"""`unix:PATH` of a running genie-host to join. Unset: one is started for this program."""

NODES = "GENIE_NODES"
"""Nodes on other machines, such as `quic://10.0.0.2:4610`, separated by commas. The host that is
started for this program runs sessions there."""

CERTS = "GENIE_CERTS"
"""Directory of the certificates by which host and nodes know each other (`genie-host certs`)."""

TRUSTED_NETWORK = "GENIE_TRUSTED_NETWORK"
"""`1`: no certificates and no encryption of tensors, on a network where nobody else is."""

DATA = "GENIE_DATA"
"""Transports that tensors may take, the preferred first (default: `dpdk,udp,tcp,quic`)."""

HOST_BINARY = "GENIE_HOST_BINARY"
"""The genie-host to start; otherwise it is looked for beside Python, in the package and on PATH."""

TORCH_LIB = "GENIE_TORCH_LIB"
"""Directory of libtorch for the node. Default: that of this program's torch."""

START_TIMEOUT_S = "GENIE_START_TIMEOUT_S"
"""Seconds that host and node may take to start (default 60)."""

UPLOAD_BYTES = "GENIE_UPLOAD_BYTES"
"""Shared memory for uploads (default 64 MiB, 32 MiB to a node of this machine). Larger tensors pass through it in steps."""

DOWNLOAD_BYTES = "GENIE_DOWNLOAD_BYTES"
"""Shared memory for reads (default 64 MiB)."""

LOCAL_BYTES = "GENIE_LOCAL_BYTES"
"""In mode `local`: bytes that tensors of the device may take (default: half of the machine's)."""

MODULE_MARKS = "GENIE_MODULE_MARKS"
"""`0`: do not record which module operators belong to (saves some microseconds a module call)."""

SCRIPTS = "GENIE_SCRIPTS"
"""`0`: compiled graphs are sent operator by operator, as without `torch.compile`, not as one record a call."""

INTEGRATIONS = "GENIE_INTEGRATIONS"
"""`0`: libraries that list devices by name (accelerate, safetensors, Lightning) are not told of this one."""

LOG_INTERCEPTS = "GENIE_LOG_INTERCEPTS"
"""`1`: write every captured operator to stderr."""

ENABLE_META_INFER = "GENIE_ENABLE_META_INFER"
"""`0`: do not ask PyTorch's Python metas for shapes; such operators run synchronously instead."""

ENABLE_ATEN_IMPL = "GENIE_ENABLE_ATEN_IMPL"
"""`0`: no kernels of its own for aten; every operator falls back to the client's CPU. For
finding out whether a wrong answer comes from the node."""

ENABLE_ELEMENTWISE_FASTPATH = "GENIE_ENABLE_ELEMENTWISE_FASTPATH"
"""Accepted, and without effect: the template cache makes a repeat of any operator as cheap."""

ANALYZER_DEBUG = "GENIE_ANALYZER_DEBUG"
"""Passed on to the host, which analyses; the front end does nothing with it."""

DEBUG = "GENIE_DEBUG"
"""`1`: errors that appear late carry the program's source line."""


def text(name: str, default: str = "") -> str:
    return os.environ.get(name, "").strip() or default


def flag(name: str, default: bool) -> bool:
    """Off is `0`, `false`, `off` or `no`; unset or empty is the default."""
    value = text(name).lower()
    return default if not value else value not in ("0", "false", "off", "no")


def number(name: str, default: float) -> float:
    value = text(name)
    if not value:
        return default
    try:
        parsed = float(value)
    except ValueError:
        parsed = -1.0
    if not 0 < parsed < float("inf"):
        raise ValueError(f"{name}={value!r} is not a positive number; unset it to get {default:g}")
    return parsed
