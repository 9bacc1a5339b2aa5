"""An ordinary program that computes the same things again and again, until its standard input ends.

Each answer is compared to the bit with what PyTorch's CPU said at the start. A line of JSON on
standard output tells, some times a second, of rounds so far. Its tensors stay in one session: where that
is lost, PyTorch raises.
"""

import json
import sys
import threading
import time

import genie
import torch

DEVICE = "remote_accelerator"
TELL_SECONDS = 0.2
PERIOD = 7


def say(**fields):
    print(json.dumps(fields), flush=True)


def start(device):
    """Tensors that stay, with the same numbers everywhere."""
    numbers = torch.Generator().manual_seed(7)

    def make(*sizes):
        return torch.randn(*sizes, generator=numbers).to(device)

    state = {
        "a": make(48, 48),
        "b": make(48, 48),
        "image": make(2, 3, 12, 12),
        "kernel": make(4, 3, 3, 3),
        "counts": torch.arange(512, dtype=torch.int64).to(device),
        "sign": make(256),
    }
    return state


def step(state):
    """One round: its answers."""
    counts, sign = state["counts"], state["sign"]
    counts.add_(1).remainder_(PERIOD)
    sign[::2].neg_()
    sign[1::2].mul_(-1)
    product = state["a"] @ state["b"]
    image = torch.nn.functional.conv2d(state["image"], state["kernel"], padding=1)
    picked = torch.index_select(product, 0, counts[:5])
    softmax = torch.softmax(image.flatten(1), 1)
    tensors = (counts, sign, product, image, picked, softmax)
    return [each.to("cpu", copy=True) for each in tensors] + [counts.sum().item()]


def same(got, expected):
    return all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(got, expected, strict=True))


def main():
    torch.set_num_threads(1)
    genie.init()
    on_cpu = start("cpu")
    # Counts have a period of 7, signs of 2.
    expected = [step(on_cpu) for _ in range(2 * PERIOD)]
    state = start(DEVICE)
    enough = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), enough.set()), daemon=True).start()
    rounds, slowest, told = 0, 0.0, 0.0
    while not enough.is_set():
        began = time.monotonic()
        got = step(state)
        now = time.monotonic()
        slowest = max(slowest, now - began)
        if not same(got, expected[rounds % (2 * PERIOD)]):
            say(wrong=rounds)
            sys.exit("an answer is wrong")
        rounds += 1
        if now - told > TELL_SECONDS:
            say(at=now, rounds=rounds, slowest=slowest)
            slowest, told = 0.0, now
    say(at=time.monotonic(), rounds=rounds, slowest=slowest, finished=True)


if __name__ == "__main__":
    main()
