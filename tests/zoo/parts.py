"""What the cases are made of: inputs, and wrappers that run a model in one way."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .oracle import phase

VOCABULARY = 4000


def ids(batch: int = 1, length: int = 64, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Token ids, int64 [batch, length]; none of the special ones."""
    return torch.randint(5, vocabulary, (batch, length))


def img(batch: int = 1, height: int = 224, width: int | None = None) -> torch.Tensor:
    """Pictures, float32 [batch, 3, height, width]."""
    return torch.randn(batch, 3, height, width or height)


def mlp(*widths: int, last: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between them, and after the last one unless `last`."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*(layers[:-1] if last else layers))


def tensors(tree: Any) -> list[torch.Tensor]:
    """All tensors of a nested result, in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [tensor for each in tree for tensor in tensors(each)]
    return []


class Out(nn.Module):
    """Picks named outputs of a model, so the result is a tuple of tensors."""

    def __init__(self, model: nn.Module, *fields: str) -> None:
        super().__init__()
        self.model = model
        self.fields = fields

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        result = self.model(*args, **kwargs)
        return tuple(getattr(result, field) for field in self.fields)


class Prefill(nn.Module):
    """One pass over the prompt that fills a DynamicCache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from transformers import DynamicCache

        result = self.model(input_ids, past_key_values=DynamicCache(), use_cache=True)
        return result.logits[:, -1], result.past_key_values[0][0]


class Decode(nn.Module):
    """Greedy steps on a cache that was filled while building (it lives in buffers, so it moves with `.to`)."""

    def __init__(self, model: nn.Module, prompt: torch.Tensor, steps: int = 4) -> None:
        super().__init__()
        self.model = model
        self.steps = steps
        with torch.no_grad():
            past = model(prompt, use_cache=True).past_key_values
        past = past.to_legacy_cache() if hasattr(past, "to_legacy_cache") else past
        self.layers = len(past)
        for i, (key, value) in enumerate(past):
            self.register_buffer(f"k{i}", key.clone())
            self.register_buffer(f"v{i}", value.clone())

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        from transformers import DynamicCache

        cache = DynamicCache()
        with phase("llm.decode"):
            for i in range(self.layers):
                cache.update(getattr(self, f"k{i}"), getattr(self, f"v{i}"), i)
        logits = []
        for _ in range(self.steps):
            result = self.model(token, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            logits.append(result.logits[:, -1])
            token = logits[-1].argmax(-1, keepdim=True)
        return torch.stack(logits)


class Generate(nn.Module):
    """Greedy `generate` of transformers; returns the token ids and the logits of every step."""

    def __init__(self, model: nn.Module, steps: int = 8, **options: Any) -> None:
        super().__init__()
        self.model = model
        self.options = dict(
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
        config = model.generation_config
        config.eos_token_id = config.forced_eos_token_id = config.forced_bos_token_id = None
        if config.pad_token_id is None:
            config.pad_token_id = 0

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        result = self.model.generate(*args, **self.options, **kwargs)
        return result.sequences, torch.stack(result.logits)


class TrainStep(nn.Module):
    """Training steps: zero_grad, forward and loss, backward, optimizer; returns the losses."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., torch.Tensor],
        optimizer: Callable[..., torch.optim.Optimizer] = lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
        steps: int = 2,
    ) -> None:
        super().__init__()
        self.model = model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.loss = loss
        self.make_optimizer = optimizer
        self.steps = steps

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        optimizer = self.make_optimizer(self.model.parameters())
        losses = []
        for _ in range(self.steps):
            with phase("train.optimizer"):
                optimizer.zero_grad(set_to_none=True)
            with phase("train.forward"):
                loss = self.loss(self.model, *args, **kwargs)
            with phase("train.backward"):
                loss.backward()
            with phase("train.optimizer"):
                optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Adam with its usual rate."""
    return torch.optim.Adam(parameters, 1e-3)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """AdamW with its usual rate."""
    return torch.optim.AdamW(parameters, 1e-3)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Plain SGD."""
    return torch.optim.SGD(parameters, 0.01)
