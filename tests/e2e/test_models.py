"""Parity with eager CPU on the common model families: inference, and training."""

import pytest
import torch
from parity import assert_same, check_inference, check_training, move
from torch.nn import functional as F
from zoo import MODELS, build

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 1e-3),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, 1e-3, foreach=True),
}


def loss_of(output):
    output = getattr(output, "logits", getattr(output, "last_hidden_state", output))
    return (output.float() ** 2).mean()


@pytest.mark.parametrize("name", MODELS)
def test_inference(name, device):
    model, args, kwargs = build(name)
    check_inference(model, args, kwargs, device)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "resnet18", "gpt2", "llama", "dlrm", "lstm", "unet"])
def test_training(name, optimizer, device):
    model, args, kwargs = build(name)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    # Adam divides by the root of tiny second moments: rounding would be magnified, were there any.
    check_training(model, loss_of, OPTIMIZERS[optimizer], args, kwargs, device)


def test_training_with_dropout_and_language_loss(device):
    model, args, _ = build("gpt2")
    check_training(model, lambda out: out.loss, OPTIMIZERS["adamw_foreach"], args, {"labels": args[0]}, device)


def test_training_follows_labels(device):
    """Cross entropy with labels, batch norm's statistics, gradient clipping and a schedule."""
    results = []
    for where in ("cpu", device):
        model, (x,), _ = build("resnet18")
        model, x = model.to(where).train(), x.to(where)
        labels = torch.tensor([3, 7]).to(where)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        losses = []
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses += [loss.detach().cpu(), norm.cpu()]
        results.append(losses + [model.bn1.running_mean.cpu(), model.bn1.running_var.cpu()])
    assert_same(*results)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generate_with_cache(name, device):
    model, (prompt,), _ = build(name)
    model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    sequences = []
    for where in ("cpu", device):
        out = model.to(where).generate(
            prompt.to(where), attention_mask=torch.ones_like(prompt).to(where), max_new_tokens=12, do_sample=False
        )
        sequences.append(out.cpu())
    assert torch.equal(*sequences)
    assert sequences[0].shape[1] == prompt.shape[1] + 12


def test_vqa_example_shape(device):
    """Cross-attention fusion of two encoders, as in the running example."""
    torch.manual_seed(0)
    fusion = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    words, patches = torch.randn(2, 7, 32), torch.randn(2, 16, 32)
    check_inference(fusion, (words, patches, patches), {}, device)


@pytest.mark.parametrize("name", ["mlp", "resnet18", "bert"])
def test_autocast_bf16(name, device):
    model, args, kwargs = build(name)
    model.eval()
    outputs = []
    for where in ("cpu", device):
        with torch.no_grad(), torch.autocast(torch.device(where).type, dtype=torch.bfloat16):
            outputs.append(model.to(where)(*move(args, where), **move(kwargs, where)))
    assert_same([t.float() for t in first(outputs[0])], [t.float() for t in first(outputs[1])])
    assert {t.dtype for t in first(outputs[0])} == {t.dtype for t in first(outputs[1])}


def first(output):
    from parity import tensors

    return tensors(output)
