"""Pictures and text by a third author: regions in place of pixels, bilinear products, co-attention, gated captions."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, Out, TrainStep, ids, img
from ..registry import split
from .third_seq2seq import PLAIN, Guarded, w

case = split("public")
SEE, READ, FUSE = "mm.vision_encoder", "mm.text_encoder", "mm.fusion"
ALL = (SEE, READ, FUSE)
SMALL = dict(hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4)
ENDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)


# Families of transformers.
@case(
    "multimodal.third_align", "multimodal", ALL, default=FUSE, family="align",
    spans=[(r"model\.vision_model", SEE), (r"model\.text_model|model\.text_projection", READ)],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = dict(
        image_size=64, width_coefficient=1.0, depth_coefficient=1.0, depth_divisor=8, kernel_sizes=[3, 5, 3],
        in_channels=[32, 16, 24], out_channels=[16, 24, 40], strides=[1, 2, 2], num_block_repeats=[1, 2, 1],
        expand_ratios=[1, 4, 4], hidden_dim=64,
    )  # fmt: skip
    config = t.AlignConfig(text_config=dict(vocab_size=V, **SMALL), vision_config=eye, projection_dim=40)
    x = dict(input_ids=ids(3, 9), pixel_values=img(2, 64))
    return Out(t.AlignModel(config), "logits_per_image"), (), x


@case(
    "multimodal.third_bridgetower", "multimodal", (READ, SEE, FUSE), family="bridgetower",
    spans=[
        (r"model\.bridgetower\.text_model\.(embeddings|encoder\.layer\.\d+)", READ),
        (r"model\.bridgetower\.vision_model\.visual\.(embeddings|ln_pre|ln_post|transformer\.resblocks\.\d+)", SEE),
        (r"model\.bridgetower\.cross_modal_(text|image)_(transform|layernorm|pooler|(layers|link_tower)\.\d+)", FUSE),
        (r"model\.itm_score", FUSE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    side = dict(SMALL, num_hidden_layers=3)
    config = t.BridgeTowerConfig(
        hidden_size=96, num_attention_heads=4, num_hidden_layers=2,
        text_config=dict(vocab_size=V, max_position_embeddings=40, **side),
        vision_config=dict(hidden_size=128, num_hidden_layers=3, patch_size=16, image_size=64),
    )  # fmt: skip
    x = dict(input_ids=ids(1, 10), pixel_values=img(1, 64))
    return Out(t.BridgeTowerForImageAndTextRetrieval(config), "logits"), (), x


def blip2() -> Any:
    import transformers as t

    return t.Blip2Config(
        vision_config=dict(image_size=64, patch_size=16, **SMALL), num_query_tokens=6, image_token_index=V - 1,
        qformer_config=dict(
            vocab_size=V, encoder_hidden_size=96, cross_attention_frequency=2, max_position_embeddings=40,
            use_qformer_text_input=True, **SMALL,
        ),
        text_config=dict(model_type="opt", vocab_size=V, hidden_size=96, ffn_dim=192, num_hidden_layers=2,
                         num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=96, **ENDS),
        image_text_hidden_size=32,
    )  # fmt: skip


@case(
    "multimodal.third_blip2_matching", "multimodal", ALL, family="blip_2",
    spans=[(r"model\.vision_model", SEE), (r"model\.embeddings", READ), (r"model\.(qformer|itm_head)", FUSE)],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    x = dict(pixel_values=img(2, 64), input_ids=ids(2, 9), attention_mask=torch.ones(2, 9, dtype=torch.long))
    x["use_image_text_matching_head"] = True
    return Out(t.Blip2ForImageTextRetrieval(blip2()), "logits_per_image"), (), x


@case(
    "multimodal.third_blip2_caption", "multimodal", (SEE, FUSE), kv="dynamic", family="blip_2",
    spans=[(r"model\.vision_model", SEE), (r"model\.(qformer|language_projection|language_model)", FUSE)],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    class Caption(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = blip2()
            config.qformer_config.use_qformer_text_input = False
            self.model = t.Blip2ForConditionalGeneration(config).eval()
            self.model.language_model.generation_config.eos_token_id = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model.generate(x, max_new_tokens=4, min_new_tokens=4, do_sample=False)

    return Caption(), (img(1, 64),)


@case(
    "multimodal.third_lxmert_regions", "multimodal", (READ, SEE, FUSE), regions=True, family="lxmert",
    spans=[
        (r"model\.lxmert\.encoder\.(visn_fc|r_layers\.\d+)", SEE),
        (r"model\.lxmert\.(embeddings|encoder\.layer\.\d+)", READ),
        (r"model\.lxmert\.(encoder\.x_layers\.\d+|pooler)|model\.answer_head", FUSE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.LxmertConfig(
        vocab_size=V, hidden_size=96, intermediate_size=192, num_attention_heads=4, l_layers=3, x_layers=2, r_layers=1,
        visual_feat_dim=256, num_qa_labels=60,
    )  # fmt: skip
    x = dict(input_ids=ids(2, 12), visual_feats=torch.randn(2, 15, 256), visual_pos=torch.rand(2, 15, 4))
    x["attention_mask"] = torch.ones(2, 12)
    return Out(t.LxmertForQuestionAnswering(config), "question_answering_score"), (), x


@case(
    "multimodal.third_visual_bert_regions", "multimodal", (READ, SEE, FUSE), regions=True, family="visual_bert",
    spans=[
        (r"model\.visual_bert\.embeddings\.word_embeddings", READ),
        (r"model\.visual_bert\.embeddings\.visual_projection", SEE),
        (r"model\.(visual_bert\.(encoder|pooler)|cls)", FUSE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.VisualBertConfig(vocab_size=V, visual_embedding_dim=128, num_labels=2, **SMALL)
    given = dict(input_ids=ids(2, 14), attention_mask=torch.ones(2, 14), visual_embeds=torch.randn(2, 10, 128))
    given["visual_attention_mask"] = torch.ones(2, 10)
    return Out(t.VisualBertForVisualReasoning(config), "logits"), (), given


@case(
    "multimodal.third_layoutlmv3", "multimodal", (READ, SEE, FUSE), document=True, family="layoutlmv3",
    spans=[
        (r"model\.layoutlmv3\.embeddings", READ), (r"model\.layoutlmv3\.patch_embed", SEE),
        (r"model\.layoutlmv3\.encoder|model\.classifier", FUSE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.LayoutLMv3Config(
        vocab_size=V, input_size=64, patch_size=16, coordinate_size=16, shape_size=16, max_2d_position_embeddings=128,
        max_position_embeddings=64, num_labels=5, **SMALL,
    )  # fmt: skip
    corner = torch.randint(0, 60, (1, 18, 2))
    x = dict(input_ids=ids(1, 18), bbox=torch.cat([corner, corner + torch.randint(1, 40, (1, 18, 2))], 2))
    x.update(attention_mask=torch.ones(1, 18, dtype=torch.long), pixel_values=img(1, 64))
    return Out(t.LayoutLMv3ForTokenClassification(config), "logits"), (), x


@case(
    "multimodal.third_florence2", "multimodal", (SEE, FUSE), kv="dynamic", family="florence2",
    spans=[
        (r"model\.model\.vision_tower", SEE),
        (r"model\.model\.(multi_modal_projector|language_model\.(encoder|decoder))|model\.lm_head", FUSE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = dict(
        depths=(1, 1), patch_size=(7, 3), patch_stride=(4, 2), patch_padding=(3, 1), patch_prenorm=(False, True),
        embed_dim=(32, 64), num_heads=(2, 4), num_groups=(2, 4), window_size=4, projection_dim=96,
    )  # fmt: skip
    text = dict(
        model_type="bart", vocab_size=V, d_model=96, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=192, decoder_ffn_dim=192, max_position_embeddings=160,
        decoder_start_token_id=2, **ENDS,
    )  # fmt: skip
    config = t.Florence2Config(text_config=text, vision_config=eye, image_token_id=V - 1)
    x = ids(1, 72, V - 10)
    x[0, 1:66] = V - 1  # 64 places of the map and one for its mean
    given = dict(pixel_values=img(1, 64), input_ids=x, attention_mask=torch.ones_like(x))
    return Generate(t.Florence2ForConditionalGeneration(config).eval(), 4), (), given


@case(
    "multimodal.third_pix2struct", "multimodal", (SEE, FUSE), family="pix2struct",
    spans=[(r"model\.encoder", SEE), (r"model\.decoder", FUSE)],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Pix2StructConfig(
        text_config=dict(vocab_size=V, hidden_size=96, d_kv=24, d_ff=192, num_layers=2, num_heads=4),
        vision_config=dict(hidden_size=96, patch_embed_hidden_size=192, d_ff=192, d_kv=24, num_hidden_layers=2,
                           num_attention_heads=4, seq_len=64, initializer_range=0.02),
    )  # fmt: skip
    where = torch.stack(torch.meshgrid(torch.arange(1.0, 7), torch.arange(1.0, 7), indexing="ij"), -1).view(1, 36, 2)
    x = dict(flattened_patches=torch.cat([where, torch.randn(1, 36, 192)], 2), decoder_input_ids=ids(1, 8))
    return Out(t.Pix2StructForConditionalGeneration(config), "logits"), (), x


# Plain models.
class Attend(nn.Module):
    """Multi-head attention of one projection each, from one sequence to another, with a feed-forward."""

    def __init__(self, d: int, h: int = 4, wide: int = 2) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.a, self.b, self.h = nn.LayerNorm(d), nn.LayerNorm(d), h
        self.f = nn.Sequential(nn.Linear(d, wide * d), nn.GELU(), nn.Linear(wide * d, d))

    def forward(self, x: torch.Tensor, y: torch.Tensor, causal: bool = False) -> torch.Tensor:
        q, k, v = (z.unflatten(2, (self.h, -1)).transpose(1, 2) for z in (self.q(x), self.k(y), self.v(y)))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
        x = self.a(x + self.o(z))
        return self.b(x + self.f(x))


class Streams(nn.Module):
    """Two streams that look at each other (ViLBERT): regions and their boxes, words; three answers."""

    def __init__(self, v: int = 900, d: int = 48, seen: int = 96) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(seen, d), nn.Linear(5, d), nn.Embedding(v, d), nn.Embedding(30, d)
        self.e, self.f, self.g = (nn.ModuleList(Attend(d) for _ in range(n)) for n in (1, 3, 4))
        self.h, self.i, self.o = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 3)

    def forward(self, r: torch.Tensor, box: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            size = (box[..., 2:] - box[..., :2]).prod(2, keepdim=True)
            r = self.a(r) + self.b(torch.cat([box, size], 2))
            for m in self.e:
                r = m(r, r)
        with phase(READ):
            y = self.c(x) + self.d.weight[: x.shape[1]]
            for m in self.f:
                y = m(y, y)
        with phase(FUSE):
            for i in range(2):
                r, y = self.g[2 * i](r, y), self.g[2 * i + 1](y, r)
            return self.o(F.relu(self.h(r[:, 0])) * F.relu(self.i(y[:, 0])))


@case("multimodal.third_two_streams", "multimodal", ALL, regions=True, source=PLAIN)
def _() -> Any:
    return Streams(), (torch.randn(2, 12, 96), torch.rand(2, 12, 4), torch.randint(1, 900, (2, 9)))


class Bilinear(nn.Module):
    """Factorized bilinear pooling of a question with the places of a map, twice: for the attention, for the answer."""

    def __init__(self, v: int = 800, d: int = 40, k: int = 5, o: int = 32, answers: int = 60) -> None:
        super().__init__()
        self.u = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 16), (16, 32), (32, d)))
        self.e, self.r = nn.Embedding(v, d), nn.GRU(d, d, batch_first=True)
        self.a, self.b = w(2, d, k * o, scale=0.3), w(2, d, k * o, scale=0.3)
        self.s, self.o, self.k = nn.Linear(o, 2), nn.Linear(2 * o, answers), k

    def pool(self, x: torch.Tensor, y: torch.Tensor, i: int) -> torch.Tensor:
        z = ((x @ self.a[i]) * (y @ self.b[i])).unflatten(-1, (-1, self.k)).sum(-1)
        z = z.sign() * (z.abs() + 1e-8).sqrt()
        return F.normalize(z, dim=-1)

    def forward(self, x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            for u in self.u:
                x = F.leaky_relu(u(x))
            x = x.flatten(2).transpose(1, 2)
        with phase(READ):
            q = self.r(self.e(q))[1][0]
        with phase(FUSE):
            a = self.s(self.pool(x, q[:, None], 0)).softmax(1)
            seen = a.transpose(1, 2) @ x
            return self.o(torch.cat([self.pool(seen[:, i], q, 1) for i in range(2)], 1))


@case("multimodal.third_bilinear_pools", "multimodal", ALL, vqa=True, source=PLAIN)
def _() -> Any:
    return Bilinear(), (img(2, 48), torch.randint(1, 800, (2, 10)))


class Film(nn.Module):
    """The question scales and shifts channels of residual blocks above the map (FiLM); coordinates are appended."""

    def __init__(self, v: int = 90, d: int = 32, n: int = 3) -> None:
        super().__init__()
        self.c = nn.Sequential(
            nn.Conv2d(3, d, 4, 2, 1), nn.BatchNorm2d(d), nn.ReLU(), nn.Conv2d(d, d, 4, 2, 1), nn.ReLU()
        )
        self.e, self.r, self.t = nn.Embedding(v, d), nn.GRU(d, 2 * d, batch_first=True), nn.Linear(2 * d, 2 * n * d)
        self.p = nn.ModuleList(nn.Conv2d(d + 2, d, 1) for _ in range(n))
        self.q = nn.ModuleList(nn.Conv2d(d, d, 3, padding=1) for _ in range(n))
        self.o, self.n = nn.Sequential(nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 28)), n

    def forward(self, q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with phase(READ):
            q = self.r(self.e(q))[0][:, -1]
        with phase(SEE):
            x = self.c(x)
        with phase(FUSE):
            scale, shift = self.t(q).unflatten(1, (2, self.n, -1)).unbind(1)
            h, wide = x.shape[2:]
            up = torch.linspace(-1, 1, h, device=x.device).view(1, 1, h, 1).expand(len(x), 1, h, wide)
            side = torch.linspace(-1, 1, wide, device=x.device).expand(len(x), 1, h, wide)
            for i in range(self.n):
                y = F.relu(self.p[i](torch.cat([x, up, side], 1)))
                z = F.instance_norm(self.q[i](y))
                x = y + F.relu((1 + scale[:, i, :, None, None]) * z + shift[:, i, :, None, None])
            return self.o(x.amax((2, 3)))


@case("multimodal.third_scaled_channels", "multimodal", (READ, SEE, FUSE), vqa=True, source=PLAIN)
def _() -> Any:
    return Film(), (torch.randint(1, 90, (2, 12)), img(2, 40))


class Gather(nn.Module):
    """Learned queries share blocks with the words and alone look at the patches: is this the picture of that text?"""

    def __init__(self, v: int = 800, d: int = 48, n: int = 2, k: int = 6) -> None:
        super().__init__()
        self.p0, self.p1, self.p2 = nn.Conv2d(3, d, 8, 8), w(1, 37, d), nn.ModuleList(Attend(d) for _ in range(2))
        self.p3, self.p4 = nn.Embedding(v, d), w(1, 20, d)
        self.p5, self.p6, self.p7 = w(1, k, d, scale=0.5), nn.ModuleList(Attend(d) for _ in range(n)), nn.ModuleList(
            Attend(d) for _ in range(n)
        )  # fmt: skip
        self.p8, self.k = nn.Linear(d, 2), k

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            x = self.p0(x).flatten(2).mT
            x = x + self.p1[:, : x.shape[1]]
            for m in self.p2:
                x = m(x, x)
        with phase(READ):
            t = self.p3(t) + self.p4[:, : t.shape[1]]
        with phase(FUSE):
            z = torch.cat([self.p5.expand(len(t), -1, -1), t], 1)
            for both, look in zip(self.p6, self.p7, strict=True):
                z = both(z, z)
                z = torch.cat([look(z[:, : self.k], x), z[:, self.k :]], 1)
            return self.p8(z[:, : self.k]).mean(1)


@case("multimodal.third_queries_and_words", "multimodal", ALL, source=PLAIN)
def _() -> Any:
    return Gather(), (img(2, 48), torch.randint(1, 800, (2, 11)))


class Genre(nn.Module):
    """Late fusion by a gate: a poster through residual convolutions, a plot through windows over words (GMU)."""

    def __init__(self, v: int = 1200, d: int = 40, classes: int = 18) -> None:
        super().__init__()
        self.i, self.j = nn.Conv2d(3, d, 7, 4, 3), nn.ModuleList(nn.Conv2d(d, d, 3, 1, 1) for _ in range(4))
        self.e, self.c = nn.Embedding(v, d), nn.ModuleList(nn.Conv1d(d, d, k) for k in (2, 3, 4))
        self.u, self.v, self.g = nn.Linear(d, d), nn.Linear(3 * d, d), nn.Linear(4 * d, d)
        self.o = nn.Linear(d, classes)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            x = F.max_pool2d(F.relu(self.i(x)), 2)
            for a, b in zip(self.j[::2], self.j[1::2], strict=True):
                x = F.relu(x + b(F.relu(a(x))))
            x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        with phase(READ):
            y = self.e(y).mT
            y = torch.cat([F.relu(c(y)).amax(2) for c in self.c], 1)
        with phase(FUSE):
            z = torch.sigmoid(self.g(torch.cat([x, y], 1)))
            return torch.sigmoid(self.o(z * torch.tanh(self.u(x)) + (1 - z) * torch.tanh(self.v(y))))


@case("multimodal.third_gated_posters", "multimodal", ALL, source=PLAIN)
def _() -> Any:
    return Genre(), (img(3, 64), torch.randint(1, 1200, (3, 20)))


class Interleaved(nn.Module):
    """Pictures are resampled to latents; a causal model of words looks at them through gates (Flamingo)."""

    def __init__(self, v: int = 700, d: int = 48, n: int = 2, k: int = 5) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, d, 8, 8), nn.ModuleList(Attend(d) for _ in range(2))
        self.c, self.l = w(1, k, d, scale=0.5), nn.ModuleList(Attend(d) for _ in range(2))
        self.e, self.p, self.n = nn.Embedding(v, d), w(40, d), n
        self.q, self.o = w(n, d, 3 * d), w(n, d, d)
        self.f = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 96), nn.GELU(), nn.Linear(96, d)) for _ in range(n)
        )
        self.x, self.g = nn.ModuleList(nn.MultiheadAttention(d, 4, batch_first=True) for _ in range(n)), w(n, scale=1.0)

    def forward(self, x: torch.Tensor, t: torch.Tensor, steps: int = 4) -> torch.Tensor:
        b, many = x.shape[:2]
        with phase(SEE):
            x = self.a(x.flatten(0, 1)).flatten(2).mT
            for m in self.b:
                x = m(x, x)
        with phase(FUSE):
            z = self.c.expand(b * many, -1, -1)
            for m in self.l:
                z = m(z, torch.cat([x, z], 1))
            z = z.unflatten(0, (b, many)).flatten(1, 2)
        past: list[Any] = [None] * self.n
        at, out = 0, []
        for _ in range(steps + 1):
            with phase(FUSE):
                y = self.e(t) + self.p[at : at + t.shape[1]]
                for i in range(self.n):
                    y = y + torch.tanh(self.g[i]) * self.x[i](y, z, z, need_weights=False)[0]
                    u = F.layer_norm(y, y.shape[-1:]) @ self.q[i]
                    q, k, v = u.unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
                    if past[i] is not None:
                        k, v = torch.cat([past[i][0], k], 2), torch.cat([past[i][1], v], 2)
                    past[i] = k, v
                    s = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
                    y = y + s.transpose(1, 2).flatten(2) @ self.o[i]
                    y = y + self.f[i](y)
                s = y[:, -1:] @ self.e.weight.t()
            at += t.shape[1]
            t = s.argmax(2)
            out.append(s)
        return torch.cat(out, 1)


@case("multimodal.third_gated_looks", "multimodal", (SEE, FUSE), kv="legacy", source=PLAIN)
def _() -> Any:
    return Interleaved(), (torch.randn(1, 2, 3, 40, 40), torch.randint(1, 700, (1, 8)))


class Coca(nn.Module):
    """One text decoder cut in two: its lower half reads alone and is compared, its upper half looks and captions."""

    def __init__(self, v: int = 700, d: int = 48) -> None:
        super().__init__()
        self.patch, self.eye = nn.Linear(192, d), nn.ModuleList(Attend(d) for _ in range(2))
        self.pool, self.ask = Attend(d), w(1, 9, d, scale=0.5)
        self.words, self.low = nn.Embedding(v, d), nn.ModuleList(Attend(d) for _ in range(2))
        self.high, self.look, self.last = (nn.ModuleList(Attend(d) for _ in range(n)) for n in (2, 2, 1))
        self.mark, self.heat = w(1, 1, d), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> Any:
        with phase(SEE):
            x = self.patch(F.unfold(x, 8, stride=8).mT)
            for m in self.eye:
                x = m(x, x)
            x = self.pool(self.ask.expand(len(x), -1, -1), x)
            one, x = F.normalize(x[:, 0], dim=1), x[:, 1:]
        with phase(READ):
            y = torch.cat([self.words(t), self.mark.expand(len(t), -1, -1)], 1)
            for m in self.low:
                y = m(y, y, causal=True)
            two, y = F.normalize(y[:, -1], dim=1), y[:, :-1]
        with phase(FUSE):
            same = self.heat.exp() * one @ two.t()
            for m, look in zip(self.high, self.look, strict=True):
                y = look(m(y, y, causal=True), x)
            return same, F.linear(self.last[0](y, y, causal=True), self.words.weight)


@case("multimodal.third_compare_and_caption", "multimodal", ALL, source=PLAIN)
def _() -> Any:
    return Coca(), (img(3, 40), torch.randint(1, 700, (3, 10)))


class Refer(nn.Module):
    """The thing that a sentence means, as a mask: words look at the map, every place is compared with the sentence."""

    def __init__(self, v: int = 600, d: int = 32) -> None:
        super().__init__()
        self.m1, self.m2, self.m3 = nn.Conv2d(3, d, 3, 2, 1), nn.Conv2d(d, d, 3, 2, 1), nn.Conv2d(d, d, 3, 2, 1)
        self.m4, self.m5 = nn.Embedding(v, d), nn.LSTM(d, d // 2, bidirectional=True, batch_first=True)
        self.m6, self.m7, self.m8 = Attend(d), Attend(d), nn.Linear(d, d)
        self.m9, self.m10 = nn.Conv2d(2 * d, d, 3, 1, 1), nn.Conv2d(2 * d, 1, 3, 1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            a = F.relu(self.m1(x))
            b = F.relu(self.m2(a))
            c = F.relu(self.m3(b))
        with phase(READ):
            t = self.m5(self.m4(t))[0]
        with phase(FUSE):
            z = c.flatten(2).mT
            t = self.m6(t, z)
            z = self.m7(z, t).mT.view_as(c)
            z = z * torch.sigmoid(self.m8(t.mean(1)))[:, :, None, None]
            z = F.relu(self.m9(torch.cat([F.interpolate(z, scale_factor=2), b], 1)))
            return torch.sigmoid(self.m10(torch.cat([F.interpolate(z, scale_factor=2, mode="bilinear"), a], 1)))


@case("multimodal.third_referred_mask", "multimodal", ALL, segmentation=True, source=PLAIN)
def _() -> Any:
    return Refer(), (img(1, 64), torch.randint(1, 600, (1, 7)))


class UpDown(nn.Module):
    """Captions of region features: one cell decides where to look, another says the word."""

    def __init__(self, v: int = 600, d: int = 40, seen: int = 80) -> None:
        super().__init__()
        self.r, self.e = nn.Sequential(nn.Linear(seen, d), nn.ReLU()), nn.Embedding(v, d)
        self.a, self.b = nn.LSTMCell(3 * d, d), nn.LSTMCell(2 * d, d)
        self.k, self.q, self.s, self.o = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 1), nn.Linear(d, v)

    def forward(self, x: torch.Tensor, steps: int = 6) -> torch.Tensor:
        with phase(SEE):
            x = self.r(x)
            whole = x.mean(1)
        with phase(FUSE):
            keys = self.k(x)
        h1 = c1 = h2 = c2 = torch.zeros_like(whole)
        token, out = torch.ones(len(x), dtype=torch.long, device=x.device), []
        for _ in range(steps):
            with phase(FUSE):
                h1, c1 = self.a(torch.cat([h2, whole, self.e(token)], 1), (h1, c1))
                a = self.s(torch.tanh(keys + self.q(h1)[:, None])).softmax(1)
                h2, c2 = self.b(torch.cat([(a * x).sum(1), h1], 1), (h2, c2))
                s = self.o(h2).log_softmax(1)
            token = s.argmax(1)
            out.append(s)
        return torch.stack(out, 1)


@case("multimodal.third_region_captions", "multimodal", (SEE, FUSE), regions=True, source=PLAIN)
def _() -> Any:
    return UpDown(), (torch.randn(2, 10, 80),)


# Training steps.
@case("multimodal.third_train_compare_and_caption", "multimodal", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        same, words = m(x, t[:, :-1])
        # Each pair is a decision of its own (as in SigLIP).
        sign = 2 * torch.eye(len(same), device=same.device) - 1
        return -F.logsigmoid(sign * same).mean() + F.cross_entropy(words.flatten(0, 1), t[:, 1:].flatten())

    amsgrad = lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.05, amsgrad=True, foreach=True)  # noqa: E731
    return Guarded(Coca(), loss, amsgrad, norm=0.5, slow=0.9, steps=1), (img(2, 32), torch.randint(1, 700, (2, 9)))


@case("multimodal.third_train_bilinear", "multimodal", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, q: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(m(x, q), y) * y.shape[1]

    adagrad = lambda p: torch.optim.Adagrad(p, 0.01)  # noqa: E731
    return TrainStep(Bilinear(), loss, adagrad), (img(2, 40), torch.randint(1, 800, (2, 8)), torch.rand(2, 60))
