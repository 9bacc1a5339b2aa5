"""The programs of the soak: `python programs.py NAME`, with GENIE_HOST set.

Each does its work again and again, says `{"count": N}` after every round, and ends when its input does.
What it meets differs each time: data, lengths, sessions.
"""

import json
import os
import random
import select
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import nn

import genie

DEVICE = "remote_accelerator"
BATCH = 256
STEPS_A_ROUND = 10


def training():
    """A convolutional network on batches that were never seen before, 1 MiB each."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(1800, 10)
    ).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters())
    while True:
        for _ in range(STEPS_A_ROUND):
            pictures, labels = torch.randn(BATCH, 1, 32, 32).to(DEVICE), torch.randint(10, (BATCH,)).to(DEVICE)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(pictures), labels)
            loss.backward()
            optimizer.step()
        assert loss.isfinite().item()
        yield


def generation():
    """A language model that answers prompts of any length with any number of tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().to(DEVICE)
    lengths = random.Random(0)
    while True:
        asked, wanted = lengths.randint(1, 96), lengths.randint(1, 32)
        prompt = torch.randint(5, config.vocab_size, (1, asked)).to(DEVICE)
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=wanted, do_sample=True)
        assert out.cpu().shape[1] == asked + wanted
        yield


def sessions():
    """A session after the other, each with a model of its own."""
    while True:
        genie.init()
        model = nn.Linear(256, 256).to(DEVICE)
        assert model(torch.randn(8, 256).to(DEVICE)).sum().isfinite().item()
        del model
        genie.shutdown()
        yield


PROGRAMS = {program.__name__: program for program in (training, generation, sessions)}


def is_over():
    """Whether standard input has ended."""
    return bool(select.select([sys.stdin], [], [], 0)[0]) and not sys.stdin.read(1)


def main():
    torch.set_num_threads(1)
    for count, _ in enumerate(PROGRAMS[sys.argv[1]](), 1):
        print(json.dumps({"count": count}), flush=True)
        if is_over():
            break


if __name__ == "__main__":
    main()
