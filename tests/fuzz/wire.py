"""A raw client of a host: frames and records (host/wire) as bytes, without the product's code.

It says what it is told to, right or wrong. `Session` opens one, sends tapes and hands out replies.
"""

import socket
import struct
from dataclasses import dataclass

HELLO, TAPE = 1, 2
WELCOME, REPLY, REFUSAL = 129, 130, 135
PROTOCOL = 3
FREE, ALLOC, UPLOAD_INLINE, RUN = 1, 2, 4, 15
NODE_LOST = 3
# Storages that one call may make.
OUTPUTS = 64


class Refused(Exception):
    """The session ended: what the host said, or nothing when it hung up."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code, self.message = code, message


# Numbers


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed(value):
    """Of what fits 64 bits; the rest is cut off."""
    value = (value + (1 << 63)) % (1 << 64) - (1 << 63)
    return varint((value << 1) ^ (value >> 63))


def counted(data):
    return varint(len(data)) + data


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        self.at += count
        assert self.at <= len(self.data), "a message is too short"
        return self.data[self.at - count : self.at]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def counted(self):
        return self.take(self.varint())

    def fields(self):
        """{number: values} of a protobuf message."""
        found = {}
        while self.at < len(self.data):
            tag = self.varint()
            kind = tag & 7
            value = self.varint() if kind == 0 else self.take(8) if kind == 1 else self.counted()
            found.setdefault(tag >> 3, []).append(value)
        return found


# Arguments (value.rs). A tensor is described by bytes of its own, see `geometry`.


def none():
    return b"\x00"


def tensor(slot, meta):
    return b"\x01" + varint(slot) + meta


def undefined():
    return b"\x02"


def scalar_tensor(word, dtype, wrapped):
    return b"\x03" + varint(word) + bytes([dtype, wrapped])


def integer(value):
    return b"\x04" + signed(value)


def double(value):
    return b"\x05" + struct.pack("<d", value)


def boolean(value):
    return b"\x06" + bytes([value])


def complex_number(value):
    return b"\x07" + struct.pack("<dd", value.real, value.imag)


def string(value):
    return b"\x08" + counted(value)


def device(index):
    return b"\x0c" + bytes([index])


def generator():
    return b"\x0d"


def listed(items):
    return b"\x0e" + varint(len(items)) + b"".join(items)


def integers(values):
    return b"\x0f" + varint(len(values)) + b"".join(map(signed, values))


def geometry(dtype, offset, sizes, strides):
    """A tensor over a storage, in elements."""
    numbers = [offset, len(sizes), *sizes, *strides]
    return bytes([dtype, 0]) + b"".join(map(varint, numbers))


# Sessions


@dataclass
class Call:
    """An operator and what it is given."""

    op: str
    storages: list  # the content of each input storage
    slots: list  # input slots: which of the storages
    mutated: list
    args: list
    words: list  # scalars beside the template
    random: bool = False

    def template(self):
        slots = [len(self.slots), len(self.words), len(self.mutated), *self.mutated]
        head = counted(self.op.encode()) + b"".join(map(varint, slots)) + bytes([self.random])
        return head + varint(len(self.args)) + b"".join(self.args) + varint(0) + varint(0)


class Session:
    """One session at a host. `replies` come in the order of the calls."""

    def __init__(self, address, seconds_max):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.storages = self.tokens = 0
        self.buffer = b""
        try:
            self.socket.settimeout(seconds_max)
            self.socket.connect(address.removeprefix("unix:"))
            # Protocol, and one thread for each operator.
            self._send(HELLO, bytes([0x08, PROTOCOL, 0x20, 1]))
            kind, body = self._frame()
            assert kind == WELCOME, kind
            operators = Reader(body).fields().get(5, [])
            self.operators = {hash for (hash,) in struct.iter_unpack("<Q", b"".join(operators))}
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, calls, extra_free=()):
        """Sends calls, each with storages of its own; returns the first id of each one's outputs."""
        tape, firsts = bytearray(), []
        for id in extra_free:
            tape += self._free(id)
        for call in calls:
            own = []
            for content in call.storages:
                tape += varint(ALLOC) + varint(len(content))
                own.append(self.storages)
                self.storages += 1
                if content:
                    tape += varint(UPLOAD_INLINE) + varint(1) + varint(0) + counted(content)
            tape += varint(RUN) + varint(self.tokens) + varint(OUTPUTS) + counted(call.template())
            self.tokens += 1
            tape += b"".join(varint(self.storages - own[slot]) for slot in call.slots)
            tape += b"".join(word.to_bytes(8, "little") for word in call.words)
            firsts.append(self.storages)
            self.storages += OUTPUTS
            for id in own:
                tape += self._free(id)
        self._send(TAPE, bytes(tape))
        return firsts

    def _free(self, id):
        return varint(FREE) + varint(self.storages - id)

    def reply(self, seconds_max):
        """(storages made, None) or (0, error) of the next call. Raises TimeoutError or Refused."""
        self.socket.settimeout(seconds_max)
        while True:
            kind, body = self._frame()
            if kind == REPLY:
                break
        reader = Reader(body)
        reader.varint()
        what = reader.take(1)[0]
        if what == 3:
            code, message = reader.take(1)[0], reader.counted().decode(errors="replace")
            if code == NODE_LOST:
                # The host has kept the session, for programs that have more to ask.
                raise Refused(code, message)
            return 0, message
        return (reader.varint() if what == 2 else 0), None

    def _send(self, kind, body):
        try:
            self.socket.sendall(struct.pack("<IB3x", len(body), kind) + body)
        except (BrokenPipeError, ConnectionResetError):
            # Why is in what it said before.
            self._frame()
            raise

    def _frame(self):
        """The next frame; a time-out loses nothing of it."""
        length, kind = struct.unpack("<IB3x", self._peek(8))
        body = self._peek(8 + length)[8:]
        self.buffer = self.buffer[8 + length :]
        if kind == REFUSAL:
            said = Reader(body).fields()
            raise Refused(said.get(1, [0])[0], said.get(2, [b""])[0].decode(errors="replace"))
        return kind, body

    def _peek(self, count):
        while len(self.buffer) < count:
            try:
                more = self.socket.recv(1 << 16)
            except ConnectionResetError:
                more = b""
            if not more:
                raise Refused(0, "")
            self.buffer += more
        return self.buffer[:count]
