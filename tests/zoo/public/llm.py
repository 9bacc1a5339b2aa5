"""Decoder language models: prompt, decode steps, both, and training steps."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Decode, Generate, Prefill, TrainStep, adamw, ids, sgd
from ..registry import split

case = split("public")
HALF = {"prefill": ("llm.prefill",), "decode": ("llm.decode",)}
BOTH = ("llm.prefill", "llm.decode")


def config(kind: str) -> Any:
    """A small configuration of this family."""
    import transformers as t

    c = dict(vocab_size=V)
    h = dict(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=8, intermediate_size=688,
        max_position_embeddings=512, **c,
    )  # fmt: skip
    kv = dict(h, num_key_value_heads=4)
    ends = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    gpt = dict(n_positions=512, n_embd=256, n_layer=4, n_head=4, **c)
    return {
        "gpt2": lambda: t.GPT2Config(**gpt),
        "gpt_neo": lambda: t.GPTNeoConfig(
            hidden_size=256, num_layers=4, num_heads=4, max_position_embeddings=512,
            attention_types=[[["global", "local"], 2]], **c,
        ),
        "gptj": lambda: t.GPTJConfig(rotary_dim=32, **gpt),
        "gpt_neox": lambda: t.GPTNeoXConfig(**dict(h, intermediate_size=1024)),
        "gpt_bigcode": lambda: t.GPTBigCodeConfig(multi_query=True, **gpt),
        "opt": lambda: t.OPTConfig(
            hidden_size=256, ffn_dim=1024, num_hidden_layers=4, num_attention_heads=4,
            max_position_embeddings=512, word_embed_proj_dim=256, **c,
        ),
        "bloom": lambda: t.BloomConfig(hidden_size=256, n_layer=4, n_head=4, **c),
        "llama": lambda: t.LlamaConfig(**kv),
        "mistral": lambda: t.MistralConfig(sliding_window=64, **kv),
        "qwen2": lambda: t.Qwen2Config(**kv),
        "qwen3": lambda: t.Qwen3Config(head_dim=32, **kv),
        "gemma": lambda: t.GemmaConfig(head_dim=32, **kv),
        "gemma2": lambda: t.Gemma2Config(head_dim=32, query_pre_attn_scalar=32, **kv),
        "phi": lambda: t.PhiConfig(**h),
        "phi3": lambda: t.Phi3Config(**ends, **kv),
        "falcon": lambda: t.FalconConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=8, **c),
        "stablelm": lambda: t.StableLmConfig(**kv),
        "cohere": lambda: t.CohereConfig(**kv),
        "olmo2": lambda: t.Olmo2Config(**kv),
        "granite": lambda: t.GraniteConfig(**kv),
        "mixtral": lambda: t.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **kv),
        "qwen2_moe": lambda: t.Qwen2MoeConfig(
            num_experts=4, num_experts_per_tok=2, moe_intermediate_size=256,
            shared_expert_intermediate_size=256, **kv,
        ),
        "mamba": lambda: t.MambaConfig(hidden_size=256, num_hidden_layers=3, state_size=16, **c),
        "rwkv": lambda: t.RwkvConfig(hidden_size=128, num_hidden_layers=2, context_length=64, **c),
        "deepseek_v3": lambda: t.DeepseekV3Config(
            **dict(kv, num_key_value_heads=8, num_hidden_layers=3), n_routed_experts=8, num_experts_per_tok=2,
            n_group=2, topk_group=1, moe_intermediate_size=128, q_lora_rank=64, kv_lora_rank=64,
            qk_rope_head_dim=16, qk_nope_head_dim=32, v_head_dim=32, first_k_dense_replace=1,
        ),
    }[kind]()  # fmt: skip


def model(kind: str, attention: str = "sdpa") -> nn.Module:
    """The family's causal LM; eager attention where it knows no other."""
    import transformers as t

    made = config(kind)
    made.pad_token_id = 0
    options = {} if kind in ("mamba", "rwkv") else dict(attn_implementation=attention)
    try:
        lm = t.AutoModelForCausalLM.from_config(made, **options)
    except ValueError:
        lm = t.AutoModelForCausalLM.from_config(made, attn_implementation="eager")
    lm.generation_config.eos_token_id = None
    lm.generation_config.pad_token_id = 0
    return lm.eval()


def add(kind: str, way: str, attn: str = "sdpa", s: int = 96, n: int = 8, tag: str = "", **attrs: Any) -> None:
    """`way`: prefill, decode, generate, generate_static."""
    kv = "ssm" if kind in ("mamba", "rwkv") else "static" if way == "generate_static" else "dynamic"

    @case(f"llm.{kind}.{way}{tag}", "llm", HALF.get(way, BOTH), kv=kv, lm="model", attn=attn, prompt=s, **attrs)
    def make() -> Any:
        lm = model(kind, attn)
        if way == "prefill":
            return Prefill(lm), (ids(1, s),)
        if way == "decode":
            return Decode(lm, ids(1, s)), (ids(1, 1),)
        options = dict(cache_implementation="static") if way == "generate_static" else {}
        prompt = ids(2, s)
        return Generate(lm, n, **options), (prompt,), dict(attention_mask=torch.ones_like(prompt))


for kind, way in (
    ("gpt2", "prefill"), ("gpt2", "decode"), ("gpt2", "generate"), ("llama", "prefill"), ("llama", "decode"),
    ("llama", "generate_static"), ("opt", "generate"), ("gpt_neo", "prefill"),
):  # fmt: skip
    add(kind, way)
add("mixtral", "generate", s=32, n=4, moe=True)

# Short prompts and eager attention.
add("gpt2", "generate_static", s=6, n=5)
add("llama", "generate", attn="eager", s=5, n=5)
add("gpt_neox", "generate", attn="eager", s=8, n=6)
add("bloom", "generate", s=6, n=6)
add("gemma2", "generate", attn="eager", s=7, n=5)
add("olmo2", "generate", attn="eager", s=4, n=5)
add("qwen2", "generate_static", s=8, n=6)
add("phi", "prefill", attn="eager", s=5)
add("gpt_bigcode", "generate", s=8, n=5)
add("opt", "prefill", attn="eager", s=6)

add("gptj", "decode")
add("falcon", "prefill")
add("mistral", "generate", s=40, n=5)
add("qwen3", "decode")
add("stablelm", "decode", attn="eager")
add("cohere", "prefill")
add("granite", "generate_static", attn="eager", s=24, n=5)
add("phi3", "decode", s=8)
add("gemma", "prefill", s=33)
add("qwen2_moe", "generate", s=16, n=3, moe=True)
add("deepseek_v3", "prefill", s=20, moe=True)
add("mamba", "generate", s=12, n=5)


class RwkvLoop(nn.Module):
    """RWKV carries a state instead of a KV cache."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.model = lm

    def forward(self, tokens: torch.Tensor, steps: int = 4) -> torch.Tensor:
        result = self.model(tokens, use_cache=True)
        logits = [result.logits[:, -1]]
        for _ in range(steps):
            result = self.model(logits[-1].argmax(-1, keepdim=True), state=result.state, use_cache=True)
            logits.append(result.logits[:, -1])
        return torch.stack(logits)


@case("llm.rwkv.loop", "llm", BOTH, kv="ssm", lm="model")
def _() -> Any:
    return RwkvLoop(model("rwkv")), (ids(1, 10),)


class MiniGpt(nn.Module):
    """A decoder LM with an explicit torch.cat KV cache; its names say nothing."""

    def __init__(self, v: int = V, d: int = 192, layers: int = 3, h: int = 6) -> None:
        super().__init__()
        self.h = h
        self.e = nn.Embedding(v, d)
        self.p = nn.Embedding(512, d)
        self.b = nn.ModuleList(
            nn.ModuleList(
                [nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d),
                 nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)]
            )
            for _ in range(layers)
        )  # fmt: skip
        self.f = nn.LayerNorm(d)

    def step(self, x: torch.Tensor, cache: Any) -> Any:
        before = 0 if cache is None else cache[0][0].shape[2]
        t = x.shape[1]
        y = self.e(x) + self.p(torch.arange(before, before + t, device=x.device))
        kept = []
        for i, (l1, qkv, pr, l2, f1, f2) in enumerate(self.b):
            q, k, v = (z.view(*z.shape[:2], self.h, -1).transpose(1, 2) for z in qkv(l1(y)).chunk(3, -1))
            if cache is not None:
                k, v = torch.cat([cache[i][0], k], 2), torch.cat([cache[i][1], v], 2)
            kept.append((k, v))
            a = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            m = torch.ones(t, k.shape[2], dtype=torch.bool, device=x.device).tril(k.shape[2] - t)
            a = a.masked_fill(~m, float("-inf")).softmax(-1) @ v
            y = y + pr(a.transpose(1, 2).flatten(2))
            y = y + f2(F.gelu(f1(l2(y))))
        return self.f(y) @ self.e.weight.t(), kept

    def forward(self, x: torch.Tensor, steps: int = 6) -> torch.Tensor:
        with phase("llm.prefill"):
            g, cache = self.step(x, None)
        out = [g[:, -1]]
        for _ in range(steps):
            with phase("llm.decode"):
                g, cache = self.step(out[-1].argmax(-1, keepdim=True), cache)
            out.append(g[:, -1])
        return torch.stack(out)


@case("llm.plain_gpt.generate", "llm", BOTH, kv="legacy", source="plain torch")
def _() -> Any:
    return MiniGpt(), (ids(2, 48),)


@case("llm.plain_gpt.generate_short", "llm", BOTH, kv="legacy", source="plain torch")
def _() -> Any:
    return MiniGpt(d=96, layers=2, h=4), (ids(1, 5),)


def add_training(kind: str, optimizer: Any, attn: str = "sdpa") -> None:
    @case(f"train.{kind}", "llm", TRAIN, mode="train", attn=attn)
    def make() -> Any:
        return TrainStep(
            model(kind, attn), lambda m, x: m(x, labels=x, use_cache=False).loss, optimizer
        ), (ids(2, 48),)  # fmt: skip


add_training("gpt2", adamw)
add_training("llama", adamw, "eager")
add_training("gpt_neox", sgd)
