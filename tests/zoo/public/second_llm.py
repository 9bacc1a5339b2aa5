"""Decoder language models by a second author: plain tensors, odd caches, states instead of caches."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import TrainStep, adamw
from ..registry import split

case = split("public")
PRE, DEC = "llm.prefill", "llm.decode"
BOTH = (PRE, DEC)
PLAIN = "plain torch, second author"


def w(*shape: int, scale: float | None = None) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * (scale if scale is not None else shape[0] ** -0.5))


def text(*shape: int, n: int = 900) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(1, n, shape)


def rms(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return x * (x * x).mean(-1, keepdim=True).add(1e-6).rsqrt() * g


def norm(x: torch.Tensor, g: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    m = x - x.mean(-1, keepdim=True)
    return m / (m.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * g + b


def turn(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Rotary positions on the last dimension; `at` fits the one before it."""
    half = x.shape[-1] // 2
    angle = at[:, None].float() * torch.exp(torch.arange(half, device=x.device) * (-math.log(1e4) / half))
    c, s = angle.cos(), angle.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * c - b * s, b * c + a * s], -1)


class Flat(nn.Module):
    """No batch dimension, weights stored transposed, rotary, a preallocated cache written by slices."""

    def __init__(self, v: int = 900, d: int = 96, n: int = 3, h: int = 4, room: int = 40) -> None:
        super().__init__()
        self.x0, self.h, self.n, self.room = w(v, d, scale=0.5), h, n, room
        self.x1 = nn.ParameterList([w(3 * d, d, scale=d**-0.5) for _ in range(n)])
        self.x2 = nn.ParameterList([w(d, d) for _ in range(n)])
        self.x3 = nn.ParameterList([w(2 * d, d, scale=d**-0.5) for _ in range(n)])
        self.x4 = nn.ParameterList([w(d, 2 * d, scale=d**-0.5) for _ in range(n)])
        self.g = nn.Parameter(torch.ones(2 * n + 1, d))

    def run(self, ids: torch.Tensor, past: torch.Tensor, p: int) -> torch.Tensor:
        t, d = ids.shape[0], self.x0.shape[1]
        y = self.x0[ids]
        at = torch.arange(p, p + t, device=ids.device)
        for i in range(self.n):
            z = (rms(y, self.g[2 * i]) @ self.x1[i].T).view(t, 3, self.h, d // self.h).permute(1, 2, 0, 3)
            past[i, 0, :, p : p + t] = turn(z[1], at)
            past[i, 1, :, p : p + t] = z[2]
            k, v = past[i, 0, :, : p + t], past[i, 1, :, : p + t]
            a = turn(z[0], at) @ k.transpose(1, 2) / math.sqrt(d // self.h)
            if t > 1:
                a = a + torch.full((t, p + t), -1e9, device=ids.device).triu(p + 1)
            e = torch.exp(a - a.max(-1, keepdim=True).values)
            o = (e / e.sum(-1, keepdim=True)) @ v
            y = y + o.transpose(0, 1).reshape(t, d) @ self.x2[i].T
            y = y + F.silu(rms(y, self.g[2 * i + 1]) @ self.x3[i].T) @ self.x4[i].T
        return rms(y[-1], self.g[-1]) @ self.x0.T

    def forward(self, ids: torch.Tensor, steps: int = 5) -> torch.Tensor:
        d = self.x0.shape[1]
        past = torch.zeros(self.n, 2, self.h, self.room, d // self.h, device=ids.device)
        p = ids.shape[0]
        with phase(PRE):
            s = self.run(ids, past, 0)
        out = [s]
        for _ in range(steps):
            token = s.argmax(-1, keepdim=True)
            with phase(DEC):
                s = self.run(token, past, p)
            p += 1
            out.append(s)
        return torch.stack(out)


@case("llm2.flat_slices", "llm", BOTH, kv="static", source=PLAIN)
def _() -> Any:
    return Flat(), (text(11),)


@case("llm2.flat_two_tokens", "llm", BOTH, kv="static", source=PLAIN)
def _() -> Any:
    return Flat(d=64, n=2), (text(2),)


class Alibi(nn.Module):
    """Multi-query attention, ALiBi, post-norm, caches by torch.cat, top-k sampling at a temperature."""

    def __init__(self, v: int = 900, d: int = 80, n: int = 2, h: int = 5) -> None:
        super().__init__()
        self.a, self.h = nn.Parameter(torch.randn(v, d) * 0.3), h
        self.b = nn.ModuleList([nn.Linear(d, d + 2 * (d // h)) for _ in range(n)])
        self.c = nn.ModuleList([nn.Linear(d, d) for _ in range(n)])
        self.f = nn.ModuleList([nn.Sequential(nn.Linear(d, 3 * d), nn.Tanh(), nn.Linear(3 * d, d)) for _ in range(n)])
        self.m = nn.ModuleList([nn.LayerNorm(d) for _ in range(2 * n)])
        self.register_buffer("s", torch.tensor([2.0 ** -(i + 1) for i in range(h)]))

    def go(self, ids: torch.Tensor, kv: list[Any]) -> torch.Tensor:
        x = self.a.index_select(0, ids.reshape(-1)).reshape(*ids.shape, -1)
        q_n, d = ids.shape[1], x.shape[-1]
        e = d // self.h
        for i, (b, c, f) in enumerate(zip(self.b, self.c, self.f, strict=True)):
            q, k, v = b(x).split([d, e, e], -1)
            if kv[i] is not None:
                k, v = torch.cat((kv[i][0], k), 1), torch.cat((kv[i][1], v), 1)
            kv[i] = (k, v)
            k_n = k.shape[1]
            far = torch.arange(k_n, device=x.device)[None] - torch.arange(k_n - q_n, k_n, device=x.device)[:, None]
            bias = self.s[:, None, None] * far
            bias = torch.where(far > 0, torch.full_like(bias, -1e9), bias)
            a = torch.einsum("bqhe,bke->bhqk", q.reshape(*q.shape[:2], self.h, e), k) * e**-0.5 + bias
            o = torch.einsum("bhqk,bke->bqhe", a.softmax(-1), v).flatten(2)
            x = self.m[2 * i](x + c(o))
            x = self.m[2 * i + 1](x + f(x))
        return x[:, -1] @ self.a.t()

    def forward(self, ids: torch.Tensor, steps: int = 4) -> torch.Tensor:
        kv: list[Any] = [None] * len(self.b)
        with phase(PRE):
            y = self.go(ids, kv)
        got = [y]
        for _ in range(steps):
            top, at = torch.topk(y / 0.7, 20)
            pick = torch.multinomial(top.softmax(-1), 1)
            with phase(DEC):
                y = self.go(at.gather(1, pick), kv)
            got.append(y)
        return torch.stack(got, 1)


@case("llm2.mqa_alibi_sampled", "llm", BOTH, kv="legacy", source=PLAIN)
def _() -> Any:
    return Alibi(), (text(3, 14),)


class Ring(nn.Module):
    """Grouped heads over a ring buffer of the last tokens, written by index_copy_; sliding window."""

    def __init__(self, v: int = 900, d: int = 64, n: int = 2, h: int = 8, g: int = 2, room: int = 8) -> None:
        super().__init__()
        self.emb, self.pos = nn.Embedding(v, d), nn.Embedding(64, d)
        self.q = nn.ModuleList([nn.Linear(d, d, bias=False) for _ in range(n)])
        self.kv = nn.ModuleList([nn.Linear(d, 2 * g * (d // h), bias=False) for _ in range(n)])
        self.o = nn.ModuleList([nn.Linear(d, d, bias=False) for _ in range(n)])
        self.up = nn.ModuleList([nn.Linear(d, 4 * d) for _ in range(n)])
        self.dn = nn.ModuleList([nn.Linear(2 * d, d) for _ in range(n)])
        self.out = nn.Linear(d, v, bias=False)
        self.h, self.g, self.room, self.n = h, g, room, n

    def block(self, i: int, x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any) -> torch.Tensor:
        b, t, d = x.shape
        q = self.q[i](F.layer_norm(x, (d,))).view(b, t, self.h, -1).transpose(1, 2)
        k, v = (z.repeat_interleave(self.h // self.g, 1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.o[i](y.transpose(1, 2).reshape(b, t, d))
        u, r = self.up[i](F.layer_norm(x, (d,))).chunk(2, -1)
        return x + self.dn[i](u * F.gelu(r))

    def pair(self, i: int, x: torch.Tensor) -> Any:
        z = self.kv[i](F.layer_norm(x, x.shape[-1:])).view(*x.shape[:2], 2, self.g, -1)
        return z[:, :, 0].transpose(1, 2), z[:, :, 1].transpose(1, 2)

    def forward(self, ids: torch.Tensor, steps: int = 6) -> torch.Tensor:
        b, t = ids.shape
        size = (b, self.g, self.room, self.emb.weight.shape[1] // self.h)
        rings = [(torch.zeros(size, device=ids.device), torch.zeros(size, device=ids.device)) for _ in range(self.n)]
        with phase(PRE):
            r = torch.arange(t, device=ids.device)
            gap = r[:, None] - r[None]
            x = self.emb(ids) + self.pos(r)
            last = r[-self.room :]
            for i in range(self.n):
                k, v = self.pair(i, x)
                rings[i][0].index_copy_(2, last % self.room, k[:, :, -self.room :])
                rings[i][1].index_copy_(2, last % self.room, v[:, :, -self.room :])
                x = self.block(i, x, k, v, (gap >= 0) & (gap < self.room))
            y = self.out(x[:, -1:])
        out = [y]
        for step in range(steps):
            ids = y.argmax(-1)
            with phase(DEC):
                at = torch.tensor([t + step], device=ids.device)
                x = self.emb(ids) + self.pos(at)
                for i in range(self.n):
                    k, v = self.pair(i, x)
                    rings[i][0].index_copy_(2, at % self.room, k)
                    rings[i][1].index_copy_(2, at % self.room, v)
                    x = self.block(i, x, *rings[i], None)
                y = self.out(x)
            out.append(y)
        return torch.cat(out, 1)


@case("llm2.ring_buffer", "llm", BOTH, kv="static", source=PLAIN)
def _() -> Any:
    return Ring(), (text(1, 12),)


class Lists(nn.Module):
    """Each token's key and value is an entry of a list, stacked anew at every step; one vector at a time."""

    def __init__(self, v: int = 500, d: int = 64, n: int = 2) -> None:
        super().__init__()
        self.t, self.pos = w(v, d, scale=0.3), w(32, d, scale=0.1)
        self.q, self.k, self.v, self.o = (w(n, d, d, scale=d**-0.5) for _ in range(4))
        self.i, self.j = w(n, d, 3 * d, scale=d**-0.5), w(n, 3 * d, d, scale=0.07)
        self.n = n

    def forward(self, ids: torch.Tensor, steps: int = 6) -> torch.Tensor:
        d = self.t.shape[1]
        with phase(PRE):
            x = F.one_hot(ids, self.t.shape[0]).float() @ self.t + self.pos[: len(ids)]
            kept = []
            for i in range(self.n):
                y = F.layer_norm(x, (d,))
                k, v = y @ self.k[i], y @ self.v[i]
                kept.append((list(k.unbind(0)), list(v.unbind(0))))
                a = (y @ self.q[i]) @ k.t() / 8
                a = a.masked_fill(torch.ones_like(a).triu(1) > 0, -math.inf).softmax(1)
                x = x + a @ v @ self.o[i]
                x = x + (F.layer_norm(x, (d,)) @ self.i[i]).relu() @ self.j[i]
            s = self.t @ F.layer_norm(x[-1], (d,))
        out = [s]
        for step in range(steps):
            token = s.argmax()
            with phase(DEC):
                u = self.t[token] + self.pos[len(ids) + step]
                for i in range(self.n):
                    y = F.layer_norm(u, (d,))
                    kept[i][0].append(y @ self.k[i])
                    kept[i][1].append(y @ self.v[i])
                    a = (torch.stack(kept[i][0]) @ (y @ self.q[i]) / 8).softmax(0)
                    u = u + (a @ torch.stack(kept[i][1])) @ self.o[i]
                    u = u + (F.layer_norm(u, (d,)) @ self.i[i]).relu() @ self.j[i]
                s = self.t @ F.layer_norm(u, (d,))
            out.append(s)
        return torch.stack(out)


@case("llm2.token_lists", "llm", BOTH, kv="legacy", source=PLAIN)
def _() -> Any:
    return Lists(), (text(7, n=500),)


class LstmLm(nn.Module):
    """A two-layer LSTM language model: the prompt, then a token at a time from its state."""

    def __init__(self, v: int = 900, d: int = 64, h: int = 96) -> None:
        super().__init__()
        self.e, self.r, self.o = nn.Embedding(v, d), nn.LSTM(d, h, 2, batch_first=True), nn.Linear(h, v)

    def forward(self, ids: torch.Tensor, steps: int = 5) -> torch.Tensor:
        with phase(PRE):
            y, state = self.r(self.e(ids))
            s = self.o(y[:, -1:])
        out = [s]
        for _ in range(steps):
            token = s.argmax(-1)
            with phase(DEC):
                y, state = self.r(self.e(token), state)
                s = self.o(y)
            out.append(s)
        return torch.cat(out, 1)


@case("llm2.lstm_lm", "llm", BOTH, kv="ssm", source=PLAIN)
def _() -> Any:
    return LstmLm(), (text(2, 18),)


class GruLm(nn.Module):
    """A character model: GRU cells by hand, one-hot inputs, sampling by multinomial."""

    def __init__(self, v: int = 128, d: int = 96) -> None:
        super().__init__()
        self.wx, self.wh, self.b = w(v, 3 * d, scale=0.2), w(d, 3 * d), nn.Parameter(torch.zeros(3 * d))
        self.wo, self.bo = w(d, v), nn.Parameter(torch.zeros(v))

    def cell(self, one: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        xr, xz, xn = (one @ self.wx + self.b).chunk(3, 1)
        hr, hz, hn = (h @ self.wh).chunk(3, 1)
        z = torch.sigmoid(xz + hz)
        return (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * h

    def forward(self, ids: torch.Tensor, steps: int = 8) -> torch.Tensor:
        v, d = self.wx.shape[0], self.wh.shape[0]
        h = torch.zeros(ids.shape[0], d, device=ids.device)
        with phase(PRE):
            hot = F.one_hot(ids, v).float()
            for t in range(ids.shape[1]):
                h = self.cell(hot[:, t], h)
            s = h @ self.wo + self.bo
        out = [s]
        for _ in range(steps):
            token = torch.multinomial((s / 0.8).softmax(1), 1)[:, 0]
            with phase(DEC):
                h = self.cell(F.one_hot(token, v).float(), h)
                s = h @ self.wo + self.bo
            out.append(s)
        return torch.stack(out)


@case("llm2.gru_characters", "llm", BOTH, kv="ssm", source=PLAIN)
def _() -> Any:
    return GruLm(), (text(1, 10, n=128),)


class Scan(nn.Module):
    """Selective state space by hand: short causal convolution, input-dependent steps, a scan over time."""

    def __init__(self, v: int = 900, d: int = 48, n: int = 2, s: int = 8, c: int = 4) -> None:
        super().__init__()
        self.tab, self.n, self.s, self.c = nn.Embedding(v, d), n, s, c
        self.inp = nn.ModuleList([nn.Linear(d, 4 * d, bias=False) for _ in range(n)])
        self.conv = nn.ParameterList([w(2 * d, c, scale=0.5) for _ in range(n)])
        self.xp = nn.ModuleList([nn.Linear(2 * d, 1 + 2 * s) for _ in range(n)])
        self.dt = nn.ParameterList([w(2 * d, scale=0.1) for _ in range(n)])
        self.al = nn.ParameterList([nn.Parameter(torch.arange(1.0, s + 1).log().repeat(2 * d, 1)) for _ in range(n)])
        self.out = nn.ModuleList([nn.Linear(2 * d, d, bias=False) for _ in range(n)])

    def mix(self, i: int, x: torch.Tensor, tail: torch.Tensor, h: torch.Tensor) -> Any:
        u, gate = self.inp[i](F.rms_norm(x, x.shape[-1:])).chunk(2, -1)
        seen = torch.cat([tail, u], 1)
        tail = seen[:, -(self.c - 1) :]
        u = F.silu((seen.unfold(1, self.c, 1) * self.conv[i]).sum(-1))
        step, b, c = self.xp[i](u).split([1, self.s, self.s], -1)
        step = F.softplus(step + self.dt[i])
        decay = torch.exp(-step[..., None] * self.al[i].exp())
        fed = (step * u)[..., None] * b[:, :, None]
        ys = []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + fed[:, t]
            ys.append((h * c[:, t, None]).sum(-1))
        return x + self.out[i](torch.stack(ys, 1) * F.silu(gate)), tail, h

    def go(self, ids: torch.Tensor, state: list[Any]) -> torch.Tensor:
        x = self.tab(ids)
        for i in range(self.n):
            x, *state[i] = self.mix(i, x, *state[i])
        return F.linear(F.rms_norm(x[:, -1:], x.shape[-1:]), self.tab.weight)

    def forward(self, ids: torch.Tensor, steps: int = 4) -> torch.Tensor:
        b, e = ids.shape[0], self.tab.weight.shape[1] * 2
        with phase(PRE):
            state = [
                [torch.zeros(b, self.c - 1, e, device=ids.device), torch.zeros(b, e, self.s, device=ids.device)]
                for _ in range(self.n)
            ]
            s = self.go(ids, state)
        out = [s]
        for _ in range(steps):
            token = s.argmax(-1)
            with phase(DEC):
                s = self.go(token, state)
            out.append(s)
        return torch.cat(out, 1)


@case("llm2.selective_scan", "llm", BOTH, kv="ssm", source=PLAIN)
def _() -> Any:
    return Scan(), (text(1, 16),)


class Linear(nn.Module):
    """Linear attention: cumulative sums over the prompt, then a matrix of state per head."""

    def __init__(self, v: int = 900, d: int = 64, n: int = 2, h: int = 4) -> None:
        super().__init__()
        self.e, self.p = w(v, d, scale=0.4), w(48, d, scale=0.2)
        self.l = nn.ModuleList(
            [nn.ModuleList([nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d), nn.LayerNorm(d),
                            nn.Linear(d, 4 * d), nn.Linear(4 * d, d)]) for _ in range(n)]
        )  # fmt: skip
        self.h = h

    def forward(self, ids: torch.Tensor, steps: int = 5) -> torch.Tensor:
        b, t = ids.shape
        state: list[Any] = []
        with phase(PRE):
            x = self.e[ids] + self.p[:t]
            for n1, qkv, o, n2, f, g in self.l:
                q, k, v = (z.view(b, t, self.h, -1) for z in qkv(n1(x)).chunk(3, 2))
                q, k = F.elu(q) + 1, F.elu(k) + 1
                s = torch.einsum("bthe,bthf->bthef", k, v).cumsum(1)
                z = k.cumsum(1)
                y = torch.einsum("bthe,bthef->bthf", q, s) / (q * z).sum(-1, keepdim=True)
                state.append((s[:, -1], z[:, -1]))
                x = x + o(y.reshape(b, t, -1))
                x = x + g(F.gelu(f(n2(x))))
            score = x[:, -1] @ self.e.T
        out = [score]
        for i in range(steps):
            token = score.argmax(1)
            with phase(DEC):
                x = self.e[token] + self.p[t + i]
                for j, (n1, qkv, o, n2, f, g) in enumerate(self.l):
                    q, k, v = (z.view(b, self.h, -1) for z in qkv(n1(x)).chunk(3, 1))
                    q, k = F.elu(q) + 1, F.elu(k) + 1
                    s, z = state[j][0] + k[..., None] * v[..., None, :], state[j][1] + k
                    state[j] = (s, z)
                    y = (q[..., None, :] @ s).squeeze(-2) / (q * z).sum(-1, keepdim=True)
                    x = x + o(y.flatten(1))
                    x = x + g(F.gelu(f(n2(x))))
                score = x @ self.e.T
            out.append(score)
        return torch.stack(out)


@case("llm2.linear_attention", "llm", BOTH, kv="ssm", source=PLAIN)
def _() -> Any:
    return Linear(), (text(2, 12),)


class Experts(nn.Module):
    """Mixture of experts with two routes a token, gathered by index and added back; caches by torch.cat."""

    def __init__(self, v: int = 900, d: int = 64, n: int = 2, h: int = 4, many: int = 4) -> None:
        super().__init__()
        self.e, self.h = nn.Embedding(v, d), h
        self.att = nn.ModuleList([nn.ModuleList([nn.Linear(d, d, bias=False) for _ in range(4)]) for _ in range(n)])
        self.route = nn.ModuleList([nn.Linear(d, many, bias=False) for _ in range(n)])
        self.one = nn.ParameterList([w(many, d, 2 * d, scale=d**-0.5) for _ in range(n)])
        self.two = nn.ParameterList([w(many, 2 * d, d, scale=(2 * d) ** -0.5) for _ in range(n)])

    def mixture(self, i: int, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weight, which = self.route[i](flat).softmax(-1).topk(2, -1)
        out = torch.zeros_like(flat)
        for e in range(self.one[i].shape[0]):
            share = (weight * (which == e)).sum(-1, keepdim=True)
            out = out + share * (F.silu(flat @ self.one[i][e]) @ self.two[i][e])
        return out.view_as(x)

    def go(self, ids: torch.Tensor, past: dict[int, Any]) -> torch.Tensor:
        x = self.e(ids)
        for i, (q, k, v, o) in enumerate(self.att):
            y = F.rms_norm(x, x.shape[-1:])
            q_, k_, v_ = (m(y).unflatten(-1, (self.h, -1)).transpose(1, 2) for m in (q, k, v))
            at = torch.arange(ids.shape[1], device=x.device) + (past[i][0].shape[2] if i in past else 0)
            q_, k_ = turn(q_, at), turn(k_, at)
            if i in past:
                k_, v_ = torch.cat([past[i][0], k_], 2), torch.cat([past[i][1], v_], 2)
            past[i] = (k_, v_)
            y = F.scaled_dot_product_attention(q_, k_, v_, is_causal=ids.shape[1] > 1)
            x = x + o(y.transpose(1, 2).flatten(2))
            x = x + self.mixture(i, F.rms_norm(x, x.shape[-1:]))
        return x[:, -1:] @ self.e.weight.t()

    def forward(self, ids: torch.Tensor, steps: int = 4) -> torch.Tensor:
        past: dict[int, Any] = {}
        with phase(PRE):
            s = self.go(ids, past)
        out = [s]
        for _ in range(steps):
            token = s.argmax(-1)
            with phase(DEC):
                s = self.go(token, past)
            out.append(s)
        return torch.cat(out, 1)


@case("llm2.experts", "llm", BOTH, kv="legacy", moe=True, source=PLAIN)
def _() -> Any:
    return Experts(), (text(2, 9),)


class Beams(nn.Module):
    """Three beams: the prompt runs once, its cache is repeated, and each step the caches follow the beams."""

    def __init__(self) -> None:
        super().__init__()
        self.lm = Alibi(d=64, h=4)

    def forward(self, ids: torch.Tensor, width: int = 3, steps: int = 4) -> Any:
        kv: list[Any] = [None] * len(self.lm.b)
        with phase(PRE):
            s = self.lm.go(ids, kv)
        v = s.shape[1]
        score, token = s.log_softmax(-1)[0].topk(width)
        kv = [tuple(z.repeat(width, 1, 1) for z in pair) for pair in kv]
        path = token[:, None]
        for _ in range(steps):
            with phase(DEC):
                s = self.lm.go(path[:, -1:], kv)
            score, at = (score[:, None] + s.log_softmax(-1)).view(-1).topk(width)
            from_, token = at // v, at % v
            kv = [tuple(z.index_select(0, from_) for z in pair) for pair in kv]
            path = torch.cat([path[from_], token[:, None]], 1)
        return path, score


@case("llm2.beams", "llm", BOTH, kv="legacy", source=PLAIN)
def _() -> Any:
    return Beams(), (text(1, 10),)


class Chunks(nn.Module):
    """The prompt in chunks of six on one buffer of caches, then checks of three drafted tokens at a time."""

    def __init__(self, v: int = 900, d: int = 64, n: int = 2, h: int = 4, room: int = 48) -> None:
        super().__init__()
        self.wte, self.wpe, self.h, self.n, self.room = nn.Embedding(v, d), nn.Embedding(room, d), h, n, room
        self.wqkv = w(n, d, 3, h, d // h, scale=d**-0.5)
        self.wo, self.wi, self.wd = (
            w(n, h, d // h, d, scale=d**-0.5),
            w(n, d, 3 * d, scale=0.1),
            w(n, 3 * d, d, scale=0.07),
        )
        self.g, self.b = nn.Parameter(torch.ones(n, 2, d)), nn.Parameter(torch.zeros(n, 2, d))
        self.rel = w(h, room, scale=0.3)

    def feed(self, ids: torch.Tensor, store: torch.Tensor, p: int) -> torch.Tensor:
        t = ids.shape[1]
        at = torch.arange(p, p + t, device=ids.device)
        x = self.wte(ids) + self.wpe(at)
        every = torch.arange(self.room, device=ids.device)
        gap = at[:, None] - every[None]
        bias = self.rel[:, gap.clamp(0, self.room - 1)].masked_fill(gap < 0, -1e4)
        for i in range(self.n):
            qkv = torch.einsum("btd,dche->cbhte", norm(x, self.g[i, 0], self.b[i, 0]), self.wqkv[i])
            q = F.normalize(qkv[0], dim=-1)
            store[i, :, :, :, p : p + t] = torch.stack([F.normalize(qkv[1], dim=-1), qkv[2]])
            a = torch.softmax(10 * torch.einsum("bhqe,bhke->bhqk", q, store[i, 0]) + bias, -1)
            x = x + torch.einsum("bhqk,bhke,hed->bqd", a, store[i, 1], self.wo[i])
            x = x + F.gelu(norm(x, self.g[i, 1], self.b[i, 1]) @ self.wi[i]) @ self.wd[i]
        return x @ self.wte.weight.T

    def empty(self, ids: torch.Tensor) -> torch.Tensor:
        e = self.wqkv.shape[-1]
        return torch.zeros(self.n, 2, ids.shape[0], self.h, self.room, e, device=ids.device)

    def forward(self, ids: torch.Tensor, drafts: torch.Tensor, size: int = 6) -> torch.Tensor:
        store, p, out = self.empty(ids), 0, []
        for part in ids.split(size, 1):
            with phase(PRE):
                s = self.feed(part, store, p)
            p += part.shape[1]
        for draft in drafts.split(3, 1):
            with phase(DEC):
                s = self.feed(draft, store, p)
            agree = (s[:, :-1].argmax(-1) == draft[:, 1:]).sum()
            p += 3
            out.append(s.sum(1) + agree)
        return torch.stack(out)


@case("llm2.chunked_speculative", "llm", BOTH, kv="static", source=PLAIN)
def _() -> Any:
    return Chunks(), (text(1, 24), text(1, 9))


class Given(nn.Module):
    """Decoding alone, from caches that are given as inputs, with a mask of what is filled."""

    def __init__(self, d: int = 64, n: int = 2, h: int = 4, room: int = 32, filled: int = 17) -> None:
        super().__init__()
        self.lm, self.filled = Chunks(d=d, n=n, h=h, room=room), filled
        store = torch.randn(n, 2, 2, h, room, d // h)
        store[..., filled:, :] = 0
        self.register_buffer("store", store)

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        out = []
        for i in range(4):
            with phase(DEC):
                s = self.lm.feed(token, self.store, self.filled + i)
            token = s[:, -1:].argmax(-1)
            out.append(s)
        return torch.cat(out, 1)


@case("llm2.decode_given_buffer", "llm", (DEC,), kv="static", source=PLAIN)
def _() -> Any:
    return Given(), (text(2, 1),)


class Padded(nn.Module):
    """The prompts of a batch alone, padded on the left, talking heads; returns logits and caches."""

    def __init__(self, v: int = 900, d: int = 64, n: int = 3, h: int = 4) -> None:
        super().__init__()
        self.m = nn.ModuleDict({"tok": nn.Embedding(v, d), "fin": nn.LayerNorm(d), "voc": nn.Linear(d, v)})
        self.q, self.k, self.v, self.o, self.f1 = (nn.ModuleList(nn.Linear(d, d) for _ in range(n)) for _ in range(5))
        self.f2 = nn.ModuleList(nn.Linear(d, d) for _ in range(n))
        self.pre, self.post = w(n, h, h), w(n, h, h)
        self.h = h

    def forward(self, ids: torch.Tensor, real: torch.Tensor) -> Any:
        with phase(PRE):
            b, t = ids.shape
            x, kept = self.m["tok"](ids), []
            at = real.long().cumsum(1).clamp(min=1) - 1
            x = x + torch.sin(at[..., None] / 100 ** (torch.arange(x.shape[-1], device=x.device) / 64))
            allowed = torch.ones(t, t, device=x.device).tril()[None] * real[:, None].float()
            for i in range(len(self.q)):
                y = F.layer_norm(x, x.shape[-1:])
                q, k, v = (m[i](y).view(b, t, self.h, -1).permute(0, 2, 1, 3) for m in (self.q, self.k, self.v))
                kept.append(torch.stack([k, v]))
                a = torch.einsum("bhqk,hg->bgqk", q @ k.mT / 4, self.pre[i])
                a = a * allowed[:, None] + (1 - allowed[:, None]) * -1e4
                a = torch.einsum("bhqk,hg->bgqk", a.softmax(-1), self.post[i])
                x = x + self.o[i]((a @ v).permute(0, 2, 1, 3).reshape(b, t, -1))
                x = x + self.f2[i](F.relu(self.f1[i](F.layer_norm(x, x.shape[-1:]))).square())
            return self.m["voc"](self.m["fin"](x))[:, -1], torch.stack(kept)


@case("llm2.prefill_left_padded", "llm", (PRE,), kv="legacy", source=PLAIN)
def _() -> Any:
    real = torch.ones(3, 15, dtype=torch.bool)
    real[0, :6] = real[2, :3] = False
    return Padded(), (text(3, 15), real)


class Paged(nn.Module):
    """Caches in pages of four tokens; a table of pages is gathered at each step."""

    def __init__(self, v: int = 900, d: int = 64, n: int = 2, h: int = 2, pages: int = 16) -> None:
        super().__init__()
        self.emb = nn.Embedding(v, d)
        self.l = nn.ModuleList(
            nn.ModuleDict(dict(qkv=nn.Linear(d, 3 * d), out=nn.Linear(d, d), a=nn.RMSNorm(d), b=nn.RMSNorm(d),
                               gate=nn.Linear(d, 2 * d), up=nn.Linear(d, 2 * d), down=nn.Linear(2 * d, d)))
            for _ in range(n)
        )  # fmt: skip
        self.head = nn.Linear(d, v, bias=False)
        self.h, self.pages = h, pages
        self.register_buffer("table", torch.randperm(pages))

    def go(self, ids: torch.Tensor, at: torch.Tensor, pool: list[torch.Tensor], last: int) -> torch.Tensor:
        x, d = self.emb(ids), self.emb.weight.shape[1]
        slot = self.table[at // 4] * 4 + at % 4
        every = torch.arange(last + 1, device=ids.device)
        rows = self.table[every // 4] * 4 + every % 4
        for layer, store in zip(self.l, pool, strict=True):
            q, k, v = layer["qkv"](layer["a"](x)).view(-1, 3, self.h, d // self.h).unbind(1)
            q, k = turn(q.transpose(0, 1), at), turn(k.transpose(0, 1), at).transpose(0, 1)
            store.index_put_((slot,), torch.stack([k, v], 1))
            kv = store[rows]
            mask = every[None] <= at[:, None]
            y = F.scaled_dot_product_attention(q, kv[:, 0].transpose(0, 1), kv[:, 1].transpose(0, 1), mask)
            x = x + layer["out"](y.transpose(0, 1).flatten(1))
            z = layer["b"](x)
            x = x + layer["down"](F.silu(layer["gate"](z)) * layer["up"](z))
        return self.head(x[-1])

    def forward(self, ids: torch.Tensor, steps: int = 5) -> torch.Tensor:
        d = self.emb.weight.shape[1]
        pool = [torch.zeros(self.pages * 4, 2, self.h, d // self.h, device=ids.device) for _ in self.l]
        n = ids.shape[0]
        with phase(PRE):
            s = self.go(ids, torch.arange(n, device=ids.device), pool, n - 1)
        out = [s]
        for i in range(steps):
            token = s.argmax(-1, keepdim=True)
            with phase(DEC):
                s = self.go(token, torch.arange(n + i, n + i + 1, device=ids.device), pool, n + i)
            out.append(s)
        return torch.stack(out)


@case("llm2.paged", "llm", BOTH, kv="static", source=PLAIN)
def _() -> Any:
    return Paged(), (text(13),)


class Retention(nn.Module):
    """Retention: a decayed product over the prompt, a decayed state at each step."""

    def __init__(self, v: int = 900, d: int = 64, n: int = 2, h: int = 4) -> None:
        super().__init__()
        self.x, self.h = nn.Embedding(v, d), h
        self.y = nn.ModuleList([nn.Linear(d, 4 * d, bias=False) for _ in range(n)])
        self.z = nn.ModuleList([nn.Linear(d, d, bias=False) for _ in range(n)])
        self.k = nn.ModuleList([nn.GroupNorm(h, d) for _ in range(n)])
        self.u = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)) for _ in range(n)]
        )
        self.register_buffer("g", 1 - 2.0 ** -torch.arange(3, 3 + h).float())

    def forward(self, ids: torch.Tensor, steps: int = 4) -> torch.Tensor:
        b, t = ids.shape
        states = []
        with phase(PRE):
            x = self.x(ids)
            r = torch.arange(t, device=ids.device)
            gap = (r[:, None] - r[None]).float()
            decay = torch.where(gap >= 0, self.g[:, None, None] ** gap.clamp(min=0), torch.zeros_like(gap))
            for y, z, k_, u in zip(self.y, self.z, self.k, self.u, strict=True):
                q, k, v, g = (
                    s.view(b, t, self.h, -1).transpose(1, 2) for s in y(F.layer_norm(x, x.shape[-1:])).chunk(4, -1)
                )
                o = (q @ k.transpose(2, 3) * decay) @ v
                left = self.g[:, None] ** (t - 1 - r).float()
                states.append((k * left[..., None]).transpose(2, 3) @ v)
                o = k_(o.transpose(1, 2).reshape(b * t, -1)).view(b, t, -1)
                x = x + z(o * F.silu(g.transpose(1, 2).flatten(2)))
                x = x + u(x)
            s = x[:, -1] @ self.x.weight.T
        out = [s]
        for _ in range(steps):
            token = s.argmax(-1)
            with phase(DEC):
                x = self.x(token)
                for i, (y, z, k_, u) in enumerate(zip(self.y, self.z, self.k, self.u, strict=True)):
                    q, k, v, g = (m.view(b, self.h, 1, -1) for m in y(F.layer_norm(x, x.shape[-1:])).chunk(4, -1))
                    states[i] = self.g[:, None, None] * states[i] + k.transpose(2, 3) @ v
                    o = k_((q @ states[i]).reshape(b, -1))
                    x = x + z(o * F.silu(g.reshape(b, -1)))
                    x = x + u(x)
                s = x @ self.x.weight.T
            out.append(s)
        return torch.stack(out)


@case("llm2.retention", "llm", BOTH, kv="ssm", source=PLAIN)
def _() -> Any:
    return Retention(), (text(2, 11),)


class Latents(nn.Module):
    """Compressed caches (one latent vector a token for all heads), blocks with both branches in parallel."""

    def __init__(self, v: int = 900, d: int = 72, n: int = 2, h: int = 6, r: int = 16) -> None:
        super().__init__()
        self.e, self.h, self.n = nn.Embedding(v, d), h, n
        self.down, self.q = (
            nn.ModuleList(nn.Linear(d, r) for _ in range(n)),
            nn.ModuleList(nn.Linear(d, d) for _ in range(n)),
        )
        self.uk, self.uv = w(n, h, r, d // h, scale=0.3), w(n, h, r, d // h, scale=0.3)
        self.o, self.ff = (
            nn.ModuleList(nn.Linear(d, d) for _ in range(n)),
            nn.ModuleList(nn.Linear(d, d) for _ in range(n)),
        )
        self.head = nn.Linear(d, v)

    def go(self, ids: torch.Tensor, past: list[Any]) -> torch.Tensor:
        x = self.e(ids)
        b, t, d = x.shape
        for i in range(self.n):
            y = F.layer_norm(x, (d,))
            c = self.down[i](y) if past[i] is None else torch.cat([past[i], self.down[i](y)], 1)
            past[i] = c
            q = self.q[i](y).view(b, t, self.h, -1)
            inner = torch.einsum("bthe,hre->bhtr", q, self.uk[i])
            a = torch.einsum("bhtr,bsr->bhts", inner, c) * 0.3
            blocked = torch.ones(t, c.shape[1], device=x.device).triu(c.shape[1] - t + 1).bool()
            a = a.masked_fill(blocked, torch.finfo(a.dtype).min).softmax(-1)
            z = torch.einsum("bhts,bsr,hre->bthe", a, c, self.uv[i]).reshape(b, t, d)
            x = x + self.o[i](z) + F.gelu(self.ff[i](y))
        return self.head(x[:, -1:])

    def forward(self, ids: torch.Tensor, steps: int = 5) -> torch.Tensor:
        past: list[Any] = [None] * self.n
        with phase(PRE):
            s = self.go(ids, past)
        out = [s]
        for _ in range(steps):
            ids = s.argmax(-1)
            with phase(DEC):
                s = self.go(ids, past)
            out.append(s)
        return torch.cat(out, 1)


@case("llm2.latent_cache", "llm", BOTH, kv="legacy", source=PLAIN)
def _() -> Any:
    return Latents(), (text(1, 3),)


class Stock(nn.Module):
    """torch's own attention module, given as keys what a cache holds: the inputs of each layer so far."""

    def __init__(self, v: int = 900, d: int = 64, n: int = 2) -> None:
        super().__init__()
        self.emb, self.pos = nn.Embedding(v, d), nn.Parameter(torch.randn(1, 40, d) * 0.1)
        self.att = nn.ModuleList(nn.MultiheadAttention(d, 4, batch_first=True) for _ in range(n))
        self.one, self.two = (nn.ModuleList(nn.LayerNorm(d) for _ in range(n)) for _ in range(2))
        self.ff = nn.ModuleList(nn.Sequential(nn.Linear(d, 128), nn.ReLU(), nn.Linear(128, d)) for _ in range(n))
        self.fc = nn.Linear(d, v)

    def go(self, ids: torch.Tensor, past: list[Any], p: int) -> torch.Tensor:
        t = ids.shape[1]
        x = self.emb(ids) + self.pos[:, p : p + t]
        for i, att in enumerate(self.att):
            y = self.one[i](x)
            past[i] = y if past[i] is None else torch.cat([past[i], y], 1)
            mask = torch.triu(torch.full((t, p + t), float("-inf"), device=x.device), p + 1)
            x = x + att(y, past[i], past[i], attn_mask=mask, need_weights=False)[0]
            x = x + self.ff[i](self.two[i](x))
        return self.fc(x[:, -1:])

    def forward(self, ids: torch.Tensor, steps: int = 4) -> torch.Tensor:
        past: list[Any] = [None] * len(self.att)
        p = ids.shape[1]
        with phase(PRE):
            s = self.go(ids, past, 0)
        out = [s]
        for i in range(steps):
            ids = s.argmax(-1)
            with phase(DEC):
                s = self.go(ids, past, p + i)
            out.append(s)
        return torch.cat(out, 1)


@case("llm2.cached_inputs", "llm", BOTH, kv="legacy", source=PLAIN)
def _() -> Any:
    return Stock(), (text(2, 8),)


def next_token(m: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each next token under a model that gives logits for all tokens."""
    logits = m(ids[:, :-1])
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


class Trained(nn.Module):
    """A decoder of einsums over stacked weights, for training."""

    def __init__(self, v: int = 600, d: int = 48, n: int = 2, h: int = 4) -> None:
        super().__init__()
        self.t, self.n = w(v, d, scale=0.2), n
        self.a, self.b = w(n, d, 3, h, d // h, scale=d**-0.5), w(n, h, d // h, d, scale=d**-0.5)
        self.c, self.d = w(n, d, 2 * d, scale=d**-0.5), w(n, 2 * d, d, scale=0.1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = F.embedding(ids, self.t)
        t = ids.shape[1]
        mask = torch.ones(t, t, device=x.device).tril().log()
        for i in range(self.n):
            q, k, v = torch.einsum("btd,dche->cbhte", F.layer_norm(x, x.shape[-1:]), self.a[i])
            p = (torch.einsum("bhqe,bhke->bhqk", q, k) * q.shape[-1] ** -0.5 + mask).softmax(-1)
            x = x + torch.einsum("bhqk,bhke,hed->bqd", p, v, self.b[i])
            x = x + F.gelu(F.layer_norm(x, x.shape[-1:]) @ self.c[i]) @ self.d[i]
        return torch.einsum("btd,vd->btv", x, self.t)


class ByHand(nn.Module):
    """Momentum written out under no_grad, with gradients clipped to a norm."""

    def __init__(self, model: nn.Module, loss: Callable[..., torch.Tensor], steps: int = 2) -> None:
        super().__init__()
        self.model, self.loss, self.steps = model.train(), loss, steps

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        params = list(self.model.parameters())
        speed = [torch.zeros_like(p) for p in params]
        losses = []
        for _ in range(self.steps):
            with phase("train.forward"):
                loss = self.loss(self.model, *x)
            with phase("train.backward"):
                grads = torch.autograd.grad(loss, params)
            with phase("train.optimizer"), torch.no_grad():
                size = torch.sqrt(sum((g * g).sum() for g in grads))
                rate = torch.clamp(1 / (size + 1e-6), max=1.0)
                for p, g, s in zip(params, grads, speed, strict=True):
                    s.mul_(0.9).add_(g * rate)
                    p.sub_(0.05 * s)
            losses.append(loss.detach())
        return torch.stack(losses)


@case("train2.einsum_lm_momentum_by_hand", "llm", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    return ByHand(Trained(), next_token), (text(2, 17, n=600),)


class TrainedLstm(nn.Module):
    def __init__(self, v: int = 600, d: int = 48) -> None:
        super().__init__()
        self.e, self.r, self.o = nn.Embedding(v, d), nn.LSTM(d, d, 2, batch_first=True), nn.Linear(d, v)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.o(self.r(self.e(ids))[0])


@case("train2.lstm_lm", "llm", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    return TrainStep(TrainedLstm(), next_token, adamw), (text(2, 13, n=600),)
