"""Recommenders by a sixth author: libraries' other models, graphs of sessions, tables in bytes, pages, and steps."""

import sys
import types
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import TrainStep, mlp
from ..registry import split

case = split("public")
LOOKUP, DENSE, CROSS = "recsys.embedding_lookup", "recsys.dense_mlp", "recsys.interaction"
PLAIN = "plain torch, sixth author"
SIZES = (900, 12000, 45, 3300, 7000, 18, 260, 5200)


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


def picks(batch: int, *sizes: int) -> torch.Tensor:
    """One column of ids for each size."""
    return torch.stack([torch.randint(1, n, (batch,)) for n in sizes], 1)


def pasts(batch: int, length: int, items: int) -> torch.Tensor:
    """Histories of unlike lengths, zeros behind them."""
    x = torch.randint(1, items, (batch, length))
    return x * (torch.arange(length) < torch.randint(3, length + 1, (batch, 1)))


# Of deepctr.
def deepctr() -> Any:
    # Its import would ask the network for the newest version.
    still = types.ModuleType("deepctr_torch.utils")
    still.check_version = lambda _version: None
    sys.modules.setdefault("deepctr_torch.utils", still)
    import deepctr_torch.models

    return deepctr_torch.models


def ctr(sizes: tuple[int, ...], width: int, numbers: int, batch: int) -> tuple[list[Any], torch.Tensor]:
    deepctr()
    from deepctr_torch.inputs import DenseFeat, SparseFeat

    columns = [SparseFeat(f"S{i}", n, embedding_dim=width) for i, n in enumerate(sizes)]
    columns += [DenseFeat(f"N{i}", 1) for i in range(numbers)]
    return columns, torch.cat([picks(batch, *sizes).float(), torch.rand(batch, numbers)], 1)


@case("recsys.sixth_convolved_fields", "recsys", (LOOKUP, CROSS, DENSE), source="deepctr-torch", family="CCPM", spans=[
    (r"embedding_dict\.\w+|linear_model\.embedding_dict\.\w+", LOOKUP), ("conv_layer", CROSS),
    ("dnn|dnn_linear", DENSE),
])  # fmt: skip
def _() -> Any:
    models = deepctr()
    columns, x = ctr(SIZES, 12, 0, 128)
    return models.CCPM(
        columns, columns, conv_kernel_width=(5, 4), conv_filters=(6, 4), dnn_hidden_units=(96,), init_std=0.1,
        device="cpu",
    ), (x,)  # fmt: skip


@case("recsys.sixth_experts_in_levels", "recsys", (LOOKUP, DENSE), source="deepctr-torch", family="PLE", spans=[
    (r"embedding_dict\.\w+", LOOKUP),
    (r"(specific|shared)_experts\.\d+\.\d+\.\d+|specific_gate_dnn\.\d+\.\d+\.\d+|shared_gate_dnn\.\d+", DENSE),
    (r"specific_gate_dnn_final_layer\.\d+\.\d+|shared_gate_dnn_final_layer\.\d+", DENSE),
    (r"tower_dnn(_final_layer)?\.\d+", DENSE),
])  # fmt: skip
def _() -> Any:
    models = deepctr()
    columns, x = ctr(SIZES, 16, 8, 256)
    return models.PLE(
        columns, shared_expert_num=1, specific_expert_num=2, expert_dnn_hidden_units=(128, 64),
        gate_dnn_hidden_units=(32,), tower_dnn_hidden_units=(32,), task_types=("binary", "binary", "regression"),
        task_names=("click", "buy", "stay"), init_std=0.05, device="cpu",
    ), (x,)  # fmt: skip


# Of torch-rechub.
class Fed(nn.Module):
    """Columns in the order of names."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return self.model(dict(zip(self.names, columns, strict=True)))


class Towers(Fed):
    """The user's vectors against those of the items; of several vectors the best counts."""

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        x = dict(zip(self.names, columns, strict=True))
        user, items = self.model.user_tower(x), self.model.item_tower(x)
        with phase(CROSS):
            return (user @ items.transpose(-1, -2)).amax(1)


TABLE = (r"model\.embedding\.embed_dict\.\w+", LOOKUP)


@case("recsys.sixth_fields_and_numbers_attend", "recsys", (LOOKUP, DENSE, CROSS), source="torch-rechub",
      family="AutoInt", spans=[
          (r"model\.sparse_embedding\.embed_dict\.\w+", LOOKUP), (r"model\.interacting_layers\.\d+", CROSS),
          (r"model\.(dense_embeddings\.\w+|mlp|linear|attn_linear)", DENSE),
      ])  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.ranking import AutoInt

    symbols = [SparseFeature(f"s{i}", vocab_size=n, embed_dim=16) for i, n in enumerate(SIZES)]
    numbers = [DenseFeature(f"d{i}") for i in range(4)]
    net = {"dims": [128, 64], "dropout": 0.0, "activation": "relu"}
    model = AutoInt(symbols, numbers, num_layers=2, num_heads=4, mlp_params=net)
    names = [f"s{i}" for i in range(len(SIZES))] + [f"d{i}" for i in range(4)]
    return Fed(model, *names), (*picks(128, *SIZES).unbind(1), *torch.rand(4, 128).unbind(0))


@case("recsys.sixth_attentive_field_aware", "recsys", (LOOKUP, CROSS, DENSE), source="torch-rechub",
      family="FatDeepFFM", spans=[
          (r"model\.(linear|ffm)_embedding\.embed_dict\.\w+", LOOKUP), (r"model\.(ffm|cen)", CROSS),
          (r"model\.mlp_out", DENSE),
      ])  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.ranking import FatDeepFFM

    sizes = (300, 2000, 45, 900, 18, 700)
    line = [SparseFeature(f"f{i}", vocab_size=n, embed_dim=1) for i, n in enumerate(sizes)]
    cross = [SparseFeature(f"f{i}", vocab_size=n * len(sizes), embed_dim=10) for i, n in enumerate(sizes)]
    model = FatDeepFFM(line, cross, 10, 3, {"dims": [96, 48], "dropout": 0.0, "activation": "relu"})
    return Fed(model, *(f"f{i}" for i in range(len(sizes)))), tuple(picks(100, *sizes).unbind(1))


def sequences() -> tuple[list[Any], list[Any], list[Any], list[Any], tuple[torch.Tensor, ...]]:
    """A user, the past, an item and others that were not chosen."""
    from torch_rechub.basic.features import SequenceFeature, SparseFeature

    share = dict(vocab_size=6000, embed_dim=32, pooling="concat", shared_with="item")
    users = [SparseFeature("user", vocab_size=2000, embed_dim=16), SparseFeature("age", vocab_size=12, embed_dim=16)]
    x = (*picks(48, 2000, 12).unbind(1), pasts(48, 25, 6000), *picks(48, 6000).unbind(1), picks(48, *[6000] * 9))
    past, others = [SequenceFeature("past", **share)], [SequenceFeature("others", **share)]
    return users, past, [SparseFeature("item", vocab_size=6000, embed_dim=32)], others, x


NAMES = ("user", "age", "past", "item", "others")


@case("recsys.sixth_clicks_in_gates", "recsys", (LOOKUP, DENSE, CROSS), source="torch-rechub", family="GRU4Rec",
      spans=[TABLE, (r"model\.user_mlp", DENSE)])  # fmt: skip
def _() -> Any:
    from torch_rechub.models.matching import GRU4Rec

    users, past, item, others, x = sequences()
    net = {"dims": [96, 32], "dropout": 0.0, "activation": "relu"}
    return Towers(GRU4Rec(users, past, item, others, net, 0.05), *NAMES), x


@case("recsys.sixth_interests_by_routing", "recsys", (LOOKUP, CROSS), source="torch-rechub", family="MIND",
      spans=[TABLE, (r"model\.capsule", CROSS)])  # fmt: skip
def _() -> Any:
    from torch_rechub.models.matching import MIND

    users, past, item, others, x = sequences()
    return Towers(MIND(users, past, item, others, 25, 0.05, 4), *NAMES), x


class NextItems(nn.Module):
    """A language model's blocks over items in place of words; all items scored with the same table."""

    def __init__(self, items: int = 8000, actions: int = 5, d: int = 128) -> None:
        import transformers as t

        super().__init__()
        self.items, self.actions = nn.Embedding(items, d), nn.Embedding(actions, d)
        self.body = t.GPT2Model(t.GPT2Config(vocab_size=1, n_embd=d, n_layer=3, n_head=4, n_positions=64))

    def forward(self, past: torch.Tensor, acts: torch.Tensor) -> Any:
        with phase(LOOKUP):
            x = self.items(past) + self.actions(acts)
        with phase(CROSS):
            h = self.body(inputs_embeds=x, use_cache=False).last_hidden_state[:, -1]
            s = h @ self.items.weight.t()
        return s.topk(20)


@case("recsys.sixth_blocks_over_items", "recsys", (LOOKUP, CROSS), source="transformers and torch", family="gpt2")
def _() -> Any:
    return NextItems(), (torch.randint(8000, (16, 50)), torch.randint(5, (16, 50)))


@case("recsys.sixth_train_wide_and_deep", "recsys", TRAIN, mode="train", source="torch-rechub", family="WideDeep")
def _() -> Any:
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.ranking import WideDeep

    symbols = [SparseFeature(f"s{i}", vocab_size=n, embed_dim=8) for i, n in enumerate(SIZES[:6])]
    numbers = [DenseFeature(f"d{i}") for i in range(3)]
    model = WideDeep(numbers, symbols, {"dims": [64, 32], "dropout": 0.0, "activation": "relu"})
    names = [f"d{i}" for i in range(3)] + [f"s{i}" for i in range(6)]

    def loss(m: nn.Module, y: torch.Tensor, *x: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy(m(*x), y)

    centered = lambda p: torch.optim.RMSprop(p, 1e-3, alpha=0.9, centered=True, weight_decay=1e-6)  # noqa: E731
    given = (torch.rand(128).round(), *torch.rand(3, 128).unbind(0), *picks(128, *SIZES[:6]).unbind(1))
    return TrainStep(Fed(model, *names), loss, centered), given


# Plain ones, whose names say nothing.
class Masks(nn.Module):
    """Each block is multiplied by a mask that a small net makes of all fields; three beside each other, then a net."""

    def __init__(self, sizes: tuple[int, ...] = SIZES, d: int = 16, blocks: int = 3, h: int = 96) -> None:
        super().__init__()
        self.register_buffer("o", torch.tensor([sum(sizes[:i]) for i in range(len(sizes))]))
        self.t, m = nn.Embedding(sum(sizes), d), len(sizes) * d
        self.n = nn.LayerNorm(d)
        self.a, self.b = (nn.ModuleList(nn.Linear(i, j) for _ in range(blocks)) for i, j in ((m, 2 * m), (2 * m, m)))
        self.c, self.g = nn.ModuleList(nn.Linear(m, h) for _ in range(blocks)), nn.ModuleList(
            nn.LayerNorm(h) for _ in range(blocks)
        )  # fmt: skip
        self.z = mlp(blocks * h, 64, 1, last=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = self.t(x + self.o)
        with phase(DENSE):
            y, e = self.n(e).flatten(1), e.flatten(1)
            out = [
                F.relu(g(c(b(F.relu(a(e))) * y))) for a, b, c, g in zip(self.a, self.b, self.c, self.g, strict=True)
            ]
            return torch.sigmoid(self.z(torch.cat(out, 1))).squeeze(1)


@case("recsys.sixth_masks_of_fields", "recsys", (LOOKUP, DENSE), source=PLAIN)
def _() -> Any:
    return Masks(), (picks(256, *SIZES),)


class Walk(nn.Module):
    """A session is a graph of its items: gates move messages along it, the last item weighs the others."""

    def __init__(self, n: int = 6000, d: int = 64) -> None:
        super().__init__()
        self.e, self.i, self.o = nn.Embedding(n, d), nn.Linear(d, d), nn.Linear(d, d)
        self.x, self.h = nn.Linear(2 * d, 3 * d), nn.Linear(d, 3 * d)
        self.p, self.q, self.r, self.s = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 1, False), nn.Linear(2 * d, d)

    def forward(self, nodes: torch.Tensor, into: torch.Tensor, back: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            h = self.e(nodes)
        for _ in range(2):
            m = torch.cat([into @ self.i(h), back @ self.o(h)], 2)
            r, z, c = self.x(m).chunk(3, 2)
            r2, z2, c2 = self.h(h).chunk(3, 2)
            z = torch.sigmoid(z + z2)
            h = z * h + (1 - z) * torch.tanh(c + torch.sigmoid(r + r2) * c2)
        y = h.gather(1, at[:, :, None].expand(-1, -1, h.shape[2]))
        with phase(CROSS):
            last = y[:, -1]
            a = self.r(torch.sigmoid(self.p(last)[:, None] + self.q(y)))
            z = self.s(torch.cat([(a * y).sum(1), last], 1))
            return z @ self.e.weight[1:].t()


@case("recsys.sixth_walks_of_sessions", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    batch, n, length = 32, 9, 12
    at = torch.randint(n, (batch, length))
    step = torch.zeros(batch, n, n)
    for a, b in zip(at.T, at.T[1:], strict=False):
        step[torch.arange(batch), a, b] += 1
    into, back = (s / s.sum(2, keepdim=True).clamp(min=1) for s in (step.mT, step))
    return Walk(), (torch.randint(1, 6000, (batch, n)), into, back, at)


class Twofold(nn.Module):
    """What was seen and of what kind it was, in two stacks of attention; their last states side by side, all items."""

    def __init__(self, n: int = 5000, kinds: int = 120, brands: int = 400, d: int = 64, longest: int = 40) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Embedding(n, d), nn.Embedding(kinds, d), nn.Embedding(brands, d)
        self.u, self.p = nn.Linear(d, 1), w(2, longest, d)
        layer = lambda: nn.TransformerEncoderLayer(d, 2, 2 * d, 0.0, "gelu", batch_first=True)  # noqa: E731
        self.v, self.w = (nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False) for _ in range(2))
        self.o = nn.Linear(2 * d, d)

    def forward(self, x: torch.Tensor, kind: torch.Tensor, brand: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            y, f = self.a(x), torch.stack([self.b(kind), self.c(brand)], 2)
        with phase(CROSS):
            g = self.u(f).softmax(2)
            f = (g * f).sum(2)
            t = x.shape[1]
            mask = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
            y = self.v(y + self.p[0, :t], mask=mask)
            f = self.w(f + self.p[1, :t], mask=mask)
            z = self.o(torch.cat([y[:, -1], f[:, -1]], 1))
            return F.linear(z, self.a.weight)


@case("recsys.sixth_twofold_pasts", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Twofold(), tuple(torch.randint(1, n, (24, 40)) for n in (5000, 120, 400))


class Bytes(nn.Module):
    """Tables in bytes, with a scale and a zero for each row; bags of three; dots of pairs between two nets."""

    def __init__(self, rows: tuple[int, ...] = (*SIZES, *SIZES), d: int = 32) -> None:
        super().__init__()
        n = len(rows)
        self.register_buffer("q", torch.randint(-128, 128, (sum(rows), d), dtype=torch.int8))
        self.register_buffer("s", torch.rand(sum(rows), 2) * 0.004)
        self.register_buffer("o", torch.tensor([sum(rows[:i]) for i in range(n)])[:, None])
        self.register_buffer("p", torch.tril_indices(n + 1, n + 1, -1))
        self.a, self.b = mlp(13, 128, 64, d), mlp(d + n * (n + 1) // 2, 256, 128, 1, last=True)

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            at = (at + self.o).flatten()
            e = self.q.index_select(0, at).float() * self.s[at, :1] + self.s[at, 1:]
            e = e.view(len(x), self.o.shape[0], -1, e.shape[1]).sum(2)
        with phase(DENSE):
            x = self.a(x)
        with phase(CROSS):
            z = torch.cat([x[:, None], e], 1)
            z = torch.bmm(z, z.mT)[:, self.p[0], self.p[1]]
        with phase(DENSE):
            return torch.sigmoid(self.b(torch.cat([x, z], 1)))


@case("recsys.sixth_tables_in_bytes", "recsys", (LOOKUP, DENSE, CROSS), source=PLAIN, quantized=True)
def _() -> Any:
    at = torch.stack([torch.randint(n, (128, 3)) for n in (*SIZES, *SIZES)], 1)
    return Bytes(), (torch.rand(128, 13), at)


# Plain ones with names.
class HomeFeed(nn.Module):
    """Recent actions, the candidate beside each, in a transformer; crosses and a net over all; five tasks."""

    def __init__(self, items: int = 20000, users: int = 4000, d: int = 32, recent: int = 8) -> None:
        super().__init__()
        self.item_table, self.user_table = nn.Embedding(items, d), nn.Embedding(users, d)
        self.action_table, self.surface_table, self.recent = nn.Embedding(12, 16), nn.Embedding(30, 8), recent
        wide = 2 * d + 16
        layer = nn.TransformerEncoderLayer(wide, 2, 2 * wide, 0.0, batch_first=True)
        self.action_encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        full = 2 * d + 8 + 10 + (recent + 1) * wide
        self.cross = nn.ModuleList(nn.Linear(full, full) for _ in range(2))
        self.deep, self.heads = mlp(full, 256, 128), nn.Linear(128, 5)

    def forward(
        self, user: torch.Tensor, surface: torch.Tensor, item: torch.Tensor, past: torch.Tensor, act: torch.Tensor,
        dense: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        with phase(LOOKUP):
            u, s, i = self.user_table(user), self.surface_table(surface), self.item_table(item)
            p, a = self.item_table(past), self.action_table(act)
        with phase(CROSS):
            x = torch.cat([p, a, i[:, None].expand(-1, p.shape[1], -1)], 2)
            x = self.action_encoder(x, src_key_padding_mask=past == 0)
            x = torch.cat([x[:, : self.recent].flatten(1), x.amax(1)], 1)
        with phase(DENSE):
            x0 = x = torch.cat([u, s, i, dense, x], 1)
            for cross in self.cross:
                x = x0 * cross(x) + x
            return torch.sigmoid(self.heads(self.deep(x)))


@case("recsys.sixth_feed_of_actions", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    past = torch.randint(1, 20000, (64, 30))
    past[:20, 22:] = 0
    given = (*picks(64, 4000, 30, 20000).unbind(1), past, torch.randint(12, (64, 30)), torch.rand(64, 10))
    return HomeFeed(), given


class PageRanker(nn.Module):
    """A page's candidates: a net scores each alone, attention compares them, and they are put in order."""

    def __init__(self, items: int = 15000, shops: int = 900, words: int = 3000, d: int = 24, hidden: int = 96) -> None:
        super().__init__()
        self.items, self.shops = nn.Embedding(items, d), nn.Embedding(shops, d)
        self.words = nn.EmbeddingBag(words, d, mode="mean", padding_idx=0)
        self.pointwise = mlp(3 * d + 12, 192, hidden)
        self.position = w(60, hidden)
        layer = nn.TransformerEncoderLayer(hidden, 4, 2 * hidden, 0.0, batch_first=True, norm_first=True)
        self.listwise = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.score = mlp(hidden, 32, 1, last=True)

    def forward(self, words: torch.Tensor, item: torch.Tensor, shop: torch.Tensor, dense: torch.Tensor) -> Any:
        with phase(LOOKUP):
            q, i, s = self.words(words), self.items(item), self.shops(shop)
        with phase(DENSE):
            x = torch.cat([q[:, None].expand(-1, i.shape[1], -1), i, s, dense], 2)
            x = self.pointwise(x)
        with phase(CROSS):
            x = self.listwise(x + self.position[: x.shape[1]])
        with phase(DENSE):
            p = self.score(x).squeeze(2)
        p = p.softmax(1)
        order = p.argsort(1, descending=True)
        return item.gather(1, order), p


@case("recsys.sixth_pages_put_in_order", "recsys", (LOOKUP, DENSE, CROSS), source=PLAIN)
def _() -> Any:
    words = torch.randint(1, 3000, (12, 6))
    words[::2, 4:] = 0
    return PageRanker(), (words, torch.randint(15000, (12, 48)), torch.randint(900, (12, 48)), torch.rand(12, 48, 12))


class Factors(nn.Module):
    """Ratings: biases, and an item's factors times the user's with what the user has rated (SVD++)."""

    def __init__(self, users: int = 2000, items: int = 4000, d: int = 24) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, d), nn.Embedding(items, d)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        self.rated, self.mean = nn.EmbeddingBag(items, d, mode="sum"), nn.Parameter(torch.tensor(3.5))

    def forward(self, user: torch.Tensor, item: torch.Tensor, rated: torch.Tensor) -> torch.Tensor:
        implicit = self.rated(rated) * rated.shape[1] ** -0.5
        factors = ((self.user(user) + implicit) * self.item(item)).sum(1)
        return self.mean + self.user_bias(user).squeeze(1) + self.item_bias(item).squeeze(1) + factors


class SignSteps(nn.Module):
    """Lion by hand: the sign of a mean of gradients is the step."""

    def __init__(self, steps: int = 2) -> None:
        super().__init__()
        self.model, self.steps = Factors().train(), steps

    def forward(self, user: torch.Tensor, item: torch.Tensor, rated: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        params, out = list(self.model.parameters()), []
        means = [torch.zeros_like(p) for p in params]
        for _ in range(self.steps):
            with phase("train.forward"):
                loss = F.mse_loss(self.model(user, item, rated), y)
                loss = loss + 0.02 * self.model.user(user).square().mean()
            with phase("train.backward"):
                grads = torch.autograd.grad(loss, params)
            with phase("train.optimizer"), torch.no_grad():
                for p, g, m in zip(params, grads, means, strict=True):
                    p.mul_(1 - 1e-5).add_(torch.lerp(g, m, 0.9).sign_(), alpha=-1e-3)
                    m.lerp_(g, 0.01)
            out.append(loss.detach())
        return torch.stack(out)


@case("recsys.sixth_train_ratings_by_signs", "recsys", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    user, item = torch.randint(2000, (256,)), torch.randint(4000, (256,))
    return SignSteps(), (user, item, torch.randint(4000, (256, 12)), torch.randint(1, 6, (256,)).float())
