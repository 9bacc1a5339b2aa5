"""Pictures and text by a fourth author: towers, documents, questions, language models that look, and plain ones."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, Out, TrainStep, adam, ids, img
from ..registry import split

case = split("public")
SEE, READ, FUSE = "mm.vision_encoder", "mm.text_encoder", "mm.fusion"
PLAIN = "plain torch, fourth author"
SIZE = dict(hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4)
ENDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


def placed(length: int, at: slice, token: int = V - 1) -> torch.Tensor:
    """A prompt with places for a picture."""
    x = ids(1, length, V - 10)
    x[:, at] = token
    return x


# Of transformers.
@case("multimodal.fourth_align", "multimodal", (SEE, READ, FUSE), default=FUSE, spans=[
    (r"model\.vision_model", SEE), (r"model\.text_model|model\.text_projection", READ),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = dict(
        image_size=64, width_coefficient=1.0, depth_coefficient=1.0, kernel_sizes=[3, 5, 3], in_channels=[32, 16, 24],
        out_channels=[16, 24, 48], strides=[1, 2, 2], num_block_repeats=[1, 2, 2], expand_ratios=[1, 4, 4],
        hidden_dim=48,
    )  # fmt: skip
    config = t.AlignConfig(text_config=dict(vocab_size=V, **SIZE), vision_config=eye, projection_dim=48)
    x = dict(input_ids=ids(3, 11), pixel_values=img(2, 64), attention_mask=torch.ones(3, 11, dtype=torch.long))
    return Out(t.AlignModel(config), "logits_per_image", "logits_per_text"), (), x


@case("multimodal.fourth_xclip", "multimodal", (SEE, READ, FUSE), video=True, spans=[
    (r"model\.(vision_model|visual_projection|mit|prompts_visual_layernorm)", SEE),
    (r"model\.(text_model|text_projection)", READ), (r"model\.prompts_generator", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.XCLIPConfig(
        text_config=dict(vocab_size=V, max_position_embeddings=16, **SIZE),
        vision_config=dict(
            image_size=64, patch_size=16, num_frames=4, mit_hidden_size=64, mit_intermediate_size=128,
            mit_num_attention_heads=4, **SIZE,
        ),
        projection_dim=64, prompt_layers=1, prompt_num_attention_heads=4,
    )  # fmt: skip
    x = dict(input_ids=ids(3, 9), pixel_values=torch.randn(1, 4, 3, 64, 64), attention_mask=torch.ones(3, 9).long())
    return Out(t.XCLIPModel(config), "logits_per_video"), (), x


@case("multimodal.fourth_layoutlmv3", "multimodal", (READ, SEE, FUSE), document=True, spans=[
    (r"model\.layoutlmv3\.embeddings", READ), (r"model\.layoutlmv3\.patch_embed", SEE),
    (r"model\.layoutlmv3\.encoder|model\.classifier", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.LayoutLMv3Config(
        vocab_size=V, max_position_embeddings=64, max_2d_position_embeddings=128, coordinate_size=16, shape_size=16,
        input_size=64, patch_size=16, num_labels=7, **ENDS, **SIZE,
    )  # fmt: skip
    corner, extent = torch.randint(0, 60, (1, 14, 2)), torch.randint(1, 40, (1, 14, 2))
    x = dict(
        input_ids=ids(1, 14), bbox=torch.cat([corner, corner + extent], -1), pixel_values=img(1, 64),
        attention_mask=torch.ones(1, 14, dtype=torch.long),
    )  # fmt: skip
    return Out(t.LayoutLMv3ForTokenClassification(config), "logits"), (), x


@case("multimodal.fourth_kosmos2", "multimodal", (SEE, FUSE), spans=[
    (r"model\.vision_model(\.model\.post_layernorm)?", SEE), (r"model\.(image_to_text_projection|text_model)", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Kosmos2Config(
        text_config=dict(
            vocab_size=V, max_position_embeddings=64, embed_dim=96, layers=2, ffn_dim=192, attention_heads=4
        ),
        vision_config=dict(image_size=64, patch_size=16, **SIZE), latent_query_num=6,
    )  # fmt: skip
    where = torch.zeros(1, 18, dtype=torch.long)
    where[:, 2:8] = 1
    x = dict(
        pixel_values=img(1, 64), input_ids=ids(1, 18), image_embeds_position_mask=where,
        attention_mask=torch.ones(1, 18, dtype=torch.long),
    )  # fmt: skip
    return Out(t.Kosmos2ForConditionalGeneration(config), "logits"), (), x


@case("multimodal.fourth_idefics", "multimodal", (SEE, FUSE), spans=[
    (r"model\.model\.vision_model", SEE),
    (r"model\.model\.(perceiver_resampler|(layers|gated_cross_attn_layers)\.\d+|norm)", FUSE),
    (r"model\.lm_head", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.IdeficsConfig(
        vocab_size=V, cross_layer_interval=1, alpha_initializer="ones", alpha_type="vector", use_resampler=True,
        vision_config=dict(embed_dim=96, image_size=64, patch_size=16, intermediate_size=192, num_hidden_layers=2,
                           num_attention_heads=4),
        perceiver_config=dict(use_resampler=True, resampler_n_latents=6, resampler_depth=1, resampler_n_heads=4,
                              resampler_head_dim=24), **ENDS, **SIZE,
    )  # fmt: skip
    x = dict(
        input_ids=ids(1, 12), attention_mask=torch.ones(1, 12, dtype=torch.long), pixel_values=img(1, 64)[:, None],
        image_attention_mask=torch.ones(1, 12, 1, dtype=torch.long), use_cache=False,
    )  # fmt: skip
    return Out(t.IdeficsForVisionText2Text(config), "logits"), (), x


@case("multimodal.fourth_mllama", "multimodal", (SEE, FUSE), spans=[
    (r"model\.model\.vision_model", SEE),
    (r"model\.model\.(multi_modal_projector|language_model)|model\.lm_head", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    text = dict(
        vocab_size=V, num_key_value_heads=2, max_position_embeddings=64, cross_attention_layers=[1],
        rope_scaling=dict(rope_type="default"), **ENDS, **dict(SIZE, num_hidden_layers=3),
    )  # fmt: skip
    eye = dict(
        image_size=64, patch_size=16, num_hidden_layers=2, num_global_layers=1, hidden_size=96, intermediate_size=192,
        attention_heads=4, num_attention_heads=4, vision_output_dim=192, max_num_tiles=2,
        intermediate_layers_indices=[1], supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
    )  # fmt: skip
    config = t.MllamaConfig(vision_config=eye, text_config=text, image_token_index=V - 1)
    x = dict(
        input_ids=placed(13, slice(1, 2), V - 2), attention_mask=torch.ones(1, 13, dtype=torch.long),
        pixel_values=torch.randn(1, 1, 2, 3, 64, 64), aspect_ratio_ids=torch.tensor([[2]]),
        aspect_ratio_mask=torch.ones(1, 1, 2, dtype=torch.long),
        cross_attention_mask=torch.ones(1, 13, 1, 2, dtype=torch.long), use_cache=False,
    )  # fmt: skip
    return Out(t.MllamaForConditionalGeneration(config), "logits"), (), x


@case("multimodal.fourth_instructblip", "multimodal", (SEE, FUSE), spans=[
    (r"model\.vision_model", SEE), (r"model\.(qformer|language_projection|language_model)", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.InstructBlipConfig(
        vision_config=dict(image_size=64, patch_size=16, initializer_range=0.02, **SIZE),
        qformer_config=dict(vocab_size=V, encoder_hidden_size=96, **SIZE),
        text_config=dict(
            model_type="opt", vocab_size=V, hidden_size=96, word_embed_proj_dim=96, ffn_dim=192, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64, **ENDS,
        ),
        num_query_tokens=5, image_token_index=V - 1,
    )  # fmt: skip
    x = placed(15, slice(0, 5))
    asked = ids(1, 8)
    given = dict(
        pixel_values=img(1, 64), qformer_input_ids=asked, qformer_attention_mask=torch.ones_like(asked), input_ids=x,
        attention_mask=torch.ones_like(x),
    )  # fmt: skip
    return Out(t.InstructBlipForConditionalGeneration(config), "logits"), (), given


@case("multimodal.fourth_qwen2_vl", "multimodal", (SEE, FUSE), kv="dynamic", spans=[
    (r"model\.model\.visual", SEE), (r"model\.model\.language_model|model\.lm_head", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Qwen2VLConfig(
        vision_config=dict(depth=2, embed_dim=64, hidden_size=96, num_heads=4, mlp_ratio=2, patch_size=8),
        text_config=dict(
            vocab_size=V, num_key_value_heads=2, max_position_embeddings=64,
            rope_scaling=dict(type="mrope", mrope_section=[4, 4, 4]), **ENDS, **SIZE,
        ),
        image_token_id=V - 1, video_token_id=V - 2, vision_start_token_id=V - 3, vision_end_token_id=V - 4,
    )  # fmt: skip
    x = placed(16, slice(2, 8))
    x[:, 1], x[:, 8] = V - 3, V - 4
    given = dict(
        input_ids=x, attention_mask=torch.ones_like(x), pixel_values=torch.randn(24, 3 * 2 * 8 * 8),
        image_grid_thw=torch.tensor([[1, 4, 6]]),
    )  # fmt: skip
    return Generate(t.Qwen2VLForConditionalGeneration(config).eval(), 3), (), given


# Plain ones.
class Knot(nn.Module):
    """Towers aligned by a contrast; the text's later blocks look at the patches; do the two belong together?"""

    def __init__(self, n: int = 900, d: int = 64) -> None:
        super().__init__()
        self.a0, self.a1, self.a2 = nn.Conv2d(3, d, 8, 8), w(1, 1, d), w(1, 65, d)
        self.b0, self.b1 = nn.Embedding(n, d), nn.Embedding(32, d)
        kind = dict(d_model=d, nhead=4, dim_feedforward=2 * d, dropout=0.0, activation="gelu", batch_first=True)
        self.c0 = nn.ModuleList(nn.TransformerEncoderLayer(norm_first=True, **kind) for _ in range(2))
        self.c1 = nn.ModuleList(nn.TransformerEncoderLayer(**kind) for _ in range(2))
        self.c2 = nn.ModuleList(nn.TransformerDecoderLayer(**kind) for _ in range(2))
        self.d0, self.d1, self.d2 = nn.Linear(d, 32), nn.Linear(d, 32), nn.Linear(d, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        with phase(SEE):
            x = self.a0(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.a1.expand(x.shape[0], -1, -1), x], 1) + self.a2
            for m in self.c0:
                x = m(x)
        with phase(READ):
            y = self.b0(y) + self.b1(torch.arange(y.shape[1], device=y.device))
            for m in self.c1:
                y = m(y)
        with phase(FUSE):
            near = F.normalize(self.d0(x[:, 0]), dim=-1) @ F.normalize(self.d1(y[:, 0]), dim=-1).t() / 0.07
            for m in self.c2:
                y = m(y, x)
            return near, self.d2(y[:, 0])


@case("multimodal.fourth_knot", "multimodal", (SEE, READ, FUSE), source=PLAIN)
def _() -> Any:
    return Knot(), (img(2, 64), ids(2, 10, 900))


class Braid(nn.Module):
    """Answers by a low-rank bilinear product of a picture's vector and a question's, summed over ranks."""

    def __init__(self, n: int = 1200, d: int = 64, r: int = 5, answers: int = 60) -> None:
        super().__init__()
        self.m = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1, bias=False) for a, b in ((3, 16), (16, 32), (32, 64)))
        self.n = nn.ModuleList(nn.BatchNorm2d(a) for a in (16, 32, 64))
        self.s = nn.ModuleList(nn.Conv2d(a, a, 3, 1, 1) for a in (16, 32, 64))
        self.e, self.g = nn.Embedding(n, 48), nn.GRU(48, d, batch_first=True)
        self.u, self.v, self.o = nn.Linear(64, r * d), nn.Linear(d, r * d), nn.Linear(d, answers)
        self.d = d

    def forward(self, q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with phase(READ):
            q = self.g(self.e(q))[1].squeeze(0)
        with phase(SEE):
            for m, n, s in zip(self.m, self.n, self.s, strict=True):
                x = F.relu(n(m(x)))
                x = F.relu(x + s(x))
            x = F.normalize(x.mean((2, 3)))
        with phase(FUSE):
            z = (torch.tanh(self.u(x)) * torch.tanh(self.v(q))).view(-1, self.u.out_features // self.d, self.d).sum(1)
            z = z.sign() * z.abs().sqrt()
            return self.o(F.normalize(z))


@case("multimodal.fourth_braid", "multimodal", (READ, SEE, FUSE), vqa=True, source=PLAIN)
def _() -> Any:
    return Braid(), (ids(3, 11, 1200), img(3, 64))


class Mirror(nn.Module):
    """Regions and words, phrases and the sentence weigh each other by affinities, level upon level."""

    def __init__(self, n: int = 1000, d: int = 48, k: int = 24, answers: int = 40) -> None:
        super().__init__()
        self.f, self.e, self.r = nn.Linear(128 + 4, d), nn.Embedding(n, d), nn.LSTM(d, d, batch_first=True)
        self.c = nn.ModuleList(nn.Conv1d(d, d, i, padding=i // 2) for i in (1, 2, 3))
        self.a, self.p, self.q = w(3, d, d), w(3, d, k), w(3, d, k)
        self.s, self.t = w(3, k, scale=0.3), w(3, k, scale=0.3)
        self.l, self.o = nn.ModuleList(nn.Linear(i * d, d) for i in (1, 2, 2)), nn.Linear(d, answers)

    def forward(self, x: torch.Tensor, boxes: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            x = torch.relu(self.f(torch.cat([x, boxes], -1)))
        with phase(READ):
            y = self.e(y)
            z = y.transpose(1, 2)
            phrase = torch.stack([c(z)[..., : z.shape[2]] for c in self.c]).amax(0).tanh().transpose(1, 2)
            levels = [y, phrase, self.r(phrase)[0]]
        with phase(FUSE):
            h = None
            for i, y in enumerate(levels):
                c = torch.tanh(y @ self.a[i] @ x.transpose(1, 2))
                u, v = x @ self.p[i], y @ self.q[i]
                at_x = (torch.tanh(u + c.transpose(1, 2) @ v) @ self.s[i]).softmax(1)
                at_y = (torch.tanh(v + c @ u) @ self.t[i]).softmax(1)
                both = (at_x[..., None] * x).sum(1) + (at_y[..., None] * y).sum(1)
                h = torch.tanh(self.l[i](both if h is None else torch.cat([both, h], 1)))
            return self.o(h)


@case("multimodal.fourth_mirror", "multimodal", (SEE, READ, FUSE), vqa=True, source=PLAIN, regions=True)
def _() -> Any:
    return Mirror(), (torch.randn(2, 15, 128), torch.rand(2, 15, 4), ids(2, 9, 1000))


class Glance(nn.Module):
    """A language model whose layers look at latents of two pictures through gates; words one after the other."""

    def __init__(self, n: int = 700, d: int = 64, h: int = 4, latents: int = 5) -> None:
        super().__init__()
        self.c, self.z, self.h = nn.ModuleList([nn.Conv2d(3, 24, 5, 4, 2), nn.Conv2d(24, d, 3, 2, 1)]), w(latents, d), h
        mats = lambda k, *s: nn.ParameterList([w(k, *s, scale=d**-0.5) for _ in range(2)])  # noqa: E731
        self.r, self.g = mats(4, d, d), nn.ParameterList([nn.Parameter(torch.tensor(0.5)) for _ in range(4)])
        self.s, self.x = mats(4, d, d), mats(4, d, d)
        self.i, self.j, self.k, self.l = mats(1, d, 2 * d), mats(1, 2 * d, d), mats(1, d, 2 * d), mats(1, 2 * d, d)
        self.e, self.p = nn.Embedding(n, d), w(40, d)

    def att(self, x: torch.Tensor, m: torch.Tensor, y: Any, causal: bool = False) -> torch.Tensor:
        n = x.shape[-1:]
        q = F.layer_norm(x, n) @ m[0]
        k, v = y
        q, k, v = (t.unflatten(-1, (self.h, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2) @ m[3]

    def step(self, ids: torch.Tensor, past: list[Any], seen: list[Any]) -> torch.Tensor:
        at = 0 if past[0] is None else past[0][0].shape[1]
        x = self.e(ids) + self.p[at : at + ids.shape[1]]
        n = x.shape[-1:]
        for i in range(2):
            x = x + self.g[2 * i].tanh() * self.att(x, self.x[i], seen[i])
            x = x + self.g[2 * i + 1].tanh() * (F.gelu(F.layer_norm(x, n) @ self.k[i][0]) @ self.l[i][0])
            y = F.layer_norm(x, n)
            k, v = y @ self.s[i][1], y @ self.s[i][2]
            if past[i] is not None:
                k, v = torch.cat([past[i][0], k], 1), torch.cat([past[i][1], v], 1)
            past[i] = k, v
            x = x + self.att(x, self.s[i], past[i], causal=at == 0)
            x = x + F.gelu(F.layer_norm(x, n) @ self.i[i][0]) @ self.j[i][0]
        return F.layer_norm(x[:, -1], n) @ self.e.weight.T

    def forward(self, pictures: torch.Tensor, ids: torch.Tensor, steps: int = 4) -> torch.Tensor:
        with phase(SEE):
            b = pictures.shape[0]
            x = F.gelu(self.c[0](pictures.flatten(0, 1)))
            x = self.c[1](x).flatten(2).transpose(1, 2).reshape(b, -1, self.z.shape[1])
        with phase(FUSE):
            z = self.z.expand(b, -1, -1)
            for m in self.r:
                both = torch.cat([x, z], 1)
                z = z + self.att(z, m, (both @ m[1], both @ m[2]))
            seen = [(z @ m[1], z @ m[2]) for m in self.x]
            past: list[Any] = [None, None]
            s = self.step(ids, past, seen)
        out = [s]
        for _ in range(steps):
            token = s.argmax(1, keepdim=True)
            with phase(FUSE):
                s = self.step(token, past, seen)
            out.append(s)
        return torch.stack(out, 1)


@case("multimodal.fourth_glance", "multimodal", (SEE, FUSE), kv="cat", source=PLAIN)
def _() -> Any:
    return Glance(), (torch.randn(1, 2, 3, 64, 64), ids(1, 7, 700))


class Tint(nn.Module):
    """The question scales and shifts the channels of each residual block over the picture, then a classifier."""

    def __init__(self, n: int = 600, d: int = 40, blocks: int = 3, answers: int = 28) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(n, 32), nn.GRU(32, 64, bidirectional=True, batch_first=True)
        self.c, self.d = nn.Conv2d(3, d, 4, 4), nn.Conv2d(d, d, 3, 1, 1)
        self.n, self.o = nn.BatchNorm2d(d), nn.BatchNorm2d(d)
        self.e = nn.ModuleList(nn.Linear(128, 2 * d) for _ in range(blocks))
        self.f, self.g = (nn.ModuleList(nn.Conv2d(i, d, k, 1, k // 2) for _ in range(blocks)) for i, k in
                          ((d + 2, 1), (d, 3)))  # fmt: skip
        self.h = nn.ModuleList(nn.BatchNorm2d(d, affine=False) for _ in range(blocks))
        self.i, self.j, self.k = nn.Conv2d(d, 64, 1), nn.Linear(64, 64), nn.Linear(64, answers)

    def forward(self, x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        with phase(READ):
            q = self.b(self.a(q))[1].transpose(0, 1).flatten(1)
        with phase(SEE):
            x = F.relu(self.o(self.d(F.relu(self.n(self.c(x))))))
        b, _, t, s = x.shape
        ys, xs = torch.linspace(-1, 1, t, device=x.device), torch.linspace(-1, 1, s, device=x.device)
        place = torch.stack([ys[:, None].expand(t, s), xs[None].expand(t, s)]).expand(b, -1, -1, -1)
        with phase(FUSE):
            for e, f, g, h in zip(self.e, self.f, self.g, self.h, strict=True):
                y = F.relu(f(torch.cat([x, place], 1)))
                scale, shift = e(q)[:, :, None, None].chunk(2, 1)
                x = y + F.relu((1 + scale) * h(g(y)) + shift)
            return self.k(F.relu(self.j(F.relu(self.i(x)).amax((2, 3)))))


@case("multimodal.fourth_tint", "multimodal", (READ, SEE, FUSE), vqa=True, source=PLAIN)
def _() -> Any:
    return Tint(), (img(2, 56), ids(2, 12, 600))


# Training steps.
@case("multimodal.fourth_internvl_steps", "multimodal", TRAIN, mode="train")
def _() -> Any:
    import transformers as t

    config = t.InternVLConfig(
        vision_config=dict(image_size=[64, 64], patch_size=[16, 16], **SIZE),
        text_config=dict(
            model_type="qwen2", vocab_size=V, num_key_value_heads=2, max_position_embeddings=64, **ENDS, **SIZE
        ),
        image_token_id=V - 1, image_seq_length=4,
    )  # fmt: skip
    x = placed(14, slice(1, 5))

    def loss(m: nn.Module, p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return m(input_ids=x, pixel_values=p, attention_mask=torch.ones_like(x), labels=x).loss

    return TrainStep(t.InternVLForConditionalGeneration(config), loss, adam, steps=1), (img(1, 64), x)


class Rivals(nn.Module):
    """Pictures and sentences in one space: a convolutional net and a GRU, unit vectors."""

    def __init__(self, n: int = 500, d: int = 48) -> None:
        super().__init__()
        self.a = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in ((3, 16), (16, 32), (32, 64)))
        self.b, self.c, self.d = nn.Linear(64, d), nn.Embedding(n, 32), nn.GRU(32, d, batch_first=True)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for m in self.a:
            x = F.relu(m(x))
        x = F.normalize(self.b(x.mean((2, 3))), dim=1)
        y = F.normalize(self.d(self.c(y))[0].mean(1), dim=1)
        return x @ y.T


@case("multimodal.fourth_rivals_steps", "multimodal", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        # The hardest of the others, in both directions.
        s = m(x, y)
        own, same = s.diagonal(), torch.eye(len(s), dtype=torch.bool, device=s.device)
        one = (0.2 + s - own[:, None]).clamp(min=0).masked_fill(same, 0.0)
        two = (0.2 + s - own[None]).clamp(min=0).masked_fill(same, 0.0)
        return one.amax(1).sum() + two.amax(0).sum()

    momentum = lambda p: torch.optim.SGD(p, 0.02, momentum=0.8, weight_decay=1e-4)  # noqa: E731
    return TrainStep(Rivals(), loss, momentum), (img(4, 48), ids(4, 8, 500))
