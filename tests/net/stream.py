"""One TCP stream of the kernel's, as a baseline: `receive` in one namespace, `send` in the other.

    stream.py receive --listen ADDRESS           prints `ready ADDRESS:PORT`, then the result
    stream.py send --connect ADDRESS:PORT --congestion cubic --seconds 5

The receiver counts what arrives in the window that opens `warm-up` after the first byte. Large buffers and
one system call per megabyte: the interpreter is no part of the cost.
"""

import argparse
import json
import socket
import struct
import time

CHUNK = 128 << 10
IDLE_SECONDS_MAX = 15
TOTAL_RETRANSMITS_AT = 100  # in Linux's struct tcp_info


def receive(options):
    with socket.create_server((options.listen, 0)) as server:
        server.settimeout(IDLE_SECONDS_MAX)
        print(f"ready {options.listen}:{server.getsockname()[1]}", flush=True)
        stream, _ = server.accept()
    stream.settimeout(IDLE_SECONDS_MAX)
    header = stream.recv(16, socket.MSG_WAITALL)
    warm_up, seconds = struct.unpack("!dd", header)
    buffer = memoryview(bytearray(CHUNK))
    opens = time.monotonic() + warm_up
    total, counted, begun, ended = 0, 0, None, None
    while n := stream.recv_into(buffer):
        total += n
        now = time.monotonic()
        if begun is None:
            begun = now if now >= opens else None
        elif ended is None:
            counted += n
            if now >= begun + seconds:
                ended = now
    if ended is None:
        raise SystemExit("the sender stopped before the window was over")
    print(json.dumps({"goodput_bits_per_s": counted * 8 / (ended - begun), "bytes": total}), flush=True)


def send(options):
    host, _, port = options.connect.rpartition(":")
    with socket.socket() as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, options.congestion.encode())
        stream.settimeout(IDLE_SECONDS_MAX)
        stream.connect((host, int(port)))
        stream.sendall(struct.pack("!dd", options.warm_up, options.seconds))
        chunk = memoryview(bytes(CHUNK))
        # A little longer than the receiver's window, which opens a trip later.
        until = time.monotonic() + options.warm_up + options.seconds + 0.25
        while time.monotonic() < until:
            stream.sendall(chunk)
        info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        retransmitted = struct.unpack_from("=I", info, TOTAL_RETRANSMITS_AT)[0]
    print(json.dumps({"retransmitted": retransmitted}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("receive")
    command.add_argument("--listen", required=True)
    command.set_defaults(run=receive)
    command = commands.add_parser("send")
    command.add_argument("--connect", required=True)
    command.add_argument("--congestion", default="cubic")
    command.add_argument("--seconds", type=float, default=5)
    command.add_argument("--warm-up", type=float, default=1)
    command.set_defaults(run=send)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
