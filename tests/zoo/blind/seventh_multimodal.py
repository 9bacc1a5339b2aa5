"""Pictures and text by a seventh author: what is run most, at inference; regions in place of pixels in some."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, Out, TrainStep, ids, img
from ..registry import split

case = split("blind")
SEE, READ, FUSE = "mm.vision_encoder", "mm.text_encoder", "mm.fusion"
ALL = (SEE, READ, FUSE)
PLAIN = "plain torch, seventh author"
ENDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)


def size(d: int, layers: int, heads: int) -> dict[str, int]:
    return dict(hidden_size=d, intermediate_size=4 * d, num_hidden_layers=layers, num_attention_heads=heads)


def masks(batch: int, length: int) -> torch.Tensor:
    """Ones, and zeros behind the shorter sentences."""
    n = torch.randint(length // 2, length + 1, (batch, 1))
    n[0] = length
    return (torch.arange(length) < n).long()


# Of transformers.
@case(
    "multimodal.seventh_zero_shot", "multimodal", ALL, family="clip", default=FUSE,
    spans=[
        (r"model\.(vision_model|visual_projection)", SEE), (r"model\.(text_model|text_projection)", READ),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.CLIPConfig(
        text_config=dict(vocab_size=V, max_position_embeddings=77, eos_token_id=2, **size(256, 6, 4)),
        vision_config=dict(image_size=224, patch_size=32, **size(384, 6, 6)), projection_dim=256,
    )  # fmt: skip
    x = dict(input_ids=ids(16, 20), attention_mask=masks(16, 20), pixel_values=img(4, 224))
    return Out(t.CLIPModel(config), "logits_per_image", "image_embeds", "text_embeds"), (), x


@case("multimodal.seventh_captions_of_four", "multimodal", (SEE, FUSE), kv="dynamic", family="blip",
      spans=[(r"model\.vision_model", SEE), (r"model\.text_decoder", FUSE)])  # fmt: skip
def _() -> Any:
    import transformers as t

    class Caption(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            text = dict(
                vocab_size=V, encoder_hidden_size=256, projection_dim=64, max_position_embeddings=64, sep_token_id=2,
                **ENDS, **size(192, 4, 6),
            )  # fmt: skip
            eye = dict(image_size=160, patch_size=16, **size(256, 4, 4))
            self.model = t.BlipForConditionalGeneration(t.BlipConfig(text_config=text, vision_config=eye)).eval()

        def forward(self, picture: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            return self.model.generate(picture, input_ids=words, max_new_tokens=5, min_new_tokens=5, do_sample=False)

    return Caption(), (img(4, 160), torch.cat([ids(4, 3), torch.full((4, 1), 2)], 1))


@case(
    "multimodal.seventh_assistant", "multimodal", (SEE, FUSE), kv="dynamic", family="llava",
    spans=[
        (r"model\.model\.vision_tower", SEE),
        (r"model\.model\.(multi_modal_projector|language_model)|model\.lm_head", FUSE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = t.SiglipVisionConfig(image_size=96, patch_size=16, **size(192, 5, 6))
    text = t.Qwen2Config(
        vocab_size=V, num_key_value_heads=2, max_position_embeddings=256, **ENDS, **size(256, 4, 8)
    )
    config = t.LlavaConfig(
        vision_config=eye, text_config=text, image_token_index=V - 1, vision_feature_layer=-2,
        vision_feature_select_strategy="full", image_seq_length=36,
    )  # fmt: skip
    x = ids(2, 60, V - 10)
    x[:, 8:44] = V - 1
    model = t.LlavaForConditionalGeneration(config).eval()
    return Generate(model, 6), (), dict(pixel_values=img(2, 96), input_ids=x, attention_mask=torch.ones_like(x))


@case("multimodal.seventh_two_tiles", "multimodal", (SEE, FUSE), kv="dynamic", family="internvl", spans=[
    (r"model\.model\.vision_tower", SEE),
    (r"model\.model\.(multi_modal_projector|language_model)|model\.lm_head", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = dict(image_size=[112, 112], patch_size=[14, 14], **size(192, 4, 6))
    text = t.Qwen2Config(
        vocab_size=V, num_key_value_heads=4, max_position_embeddings=256, **ENDS, **size(256, 3, 8)
    )
    config = t.InternVLConfig(vision_config=eye, text_config=text, image_token_id=V - 1, image_seq_length=16)
    x = ids(1, 50, V - 10)
    x[:, 4:36] = V - 1
    model = t.InternVLForConditionalGeneration(config).eval()
    return Generate(model, 5), (), dict(pixel_values=img(2, 112), input_ids=x, attention_mask=torch.ones_like(x))


@case("multimodal.seventh_deit_bert_caption", "multimodal", (SEE, FUSE), kv="dynamic", beams=3,
      family="vision-encoder-decoder", spans=[(r"model\.encoder|model\.enc_to_dec_proj", SEE),
                                              (r"model\.decoder", FUSE)])  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = t.DeiTModel(t.DeiTConfig(image_size=128, patch_size=16, **size(192, 5, 3)), add_pooling_layer=False)
    text = t.BertConfig(
        vocab_size=V, is_decoder=True, add_cross_attention=True, max_position_embeddings=64, **size(192, 3, 6)
    )
    model = t.VisionEncoderDecoderModel(encoder=eye, decoder=t.BertLMHeadModel(text)).eval()
    model.generation_config.decoder_start_token_id, model.generation_config.pad_token_id = 1, 0
    return Generate(model, 4, num_beams=3), (img(2, 128),)


@case(
    "multimodal.seventh_regions_asked", "multimodal", (READ, SEE, FUSE), regions=True, vqa=True, family="visual_bert",
    spans=[
        (r"model\.visual_bert\.embeddings\.word_embeddings", READ),
        (r"model\.visual_bert\.embeddings\.visual_projection", SEE),
        (r"model\.(visual_bert\.(encoder|pooler)|cls)", FUSE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.VisualBertConfig(vocab_size=V, visual_embedding_dim=2048, num_labels=3129, **size(256, 6, 8))
    x = dict(input_ids=ids(4, 18), attention_mask=masks(4, 18), visual_embeds=torch.randn(4, 36, 2048))
    x["visual_attention_mask"] = torch.ones(4, 36, dtype=torch.long)
    return Out(t.VisualBertForQuestionAnswering(config), "logits"), (), x


@case(
    "multimodal.seventh_regions_crossed", "multimodal", (READ, SEE, FUSE), regions=True, family="lxmert",
    spans=[
        (r"model\.encoder\.(visn_fc|r_layers\.\d+)", SEE), (r"model\.(embeddings|encoder\.layer\.\d+)", READ),
        (r"model\.(encoder\.x_layers\.\d+|pooler)", FUSE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.LxmertConfig(
        vocab_size=V, hidden_size=192, intermediate_size=768, num_attention_heads=6, l_layers=5, x_layers=3, r_layers=3,
        visual_feat_dim=1024,
    )  # fmt: skip
    x = dict(input_ids=ids(6, 16), visual_feats=torch.randn(6, 24, 1024), visual_pos=torch.rand(6, 24, 4))
    x["attention_mask"] = masks(6, 16).float()
    return Out(t.LxmertModel(config), "pooled_output", "vision_output"), (), x


@case("multimodal.seventh_sigmoid_pairs_steps", "multimodal", TRAIN, mode="train", family="siglip")
def _() -> Any:
    import transformers as t

    config = t.SiglipConfig(
        text_config=dict(vocab_size=V, max_position_embeddings=16, projection_size=128, **size(128, 2, 4)),
        vision_config=dict(image_size=64, patch_size=16, **size(128, 2, 4)),
    )  # fmt: skip
    factored = lambda p: torch.optim.Adafactor(p, 1e-2)  # noqa: E731
    return TrainStep(
        t.SiglipModel(config), lambda m, x, p: m(input_ids=x, pixel_values=p, return_loss=True).loss, factored, steps=1
    ), (ids(6, 12), img(6, 64))  # fmt: skip


# Plain ones.
class Layer(nn.Module):
    """Attention to itself and, where there is something else, to that; norms before the parts."""

    def __init__(self, d: int, heads: int, cross: bool = False) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(d), nn.MultiheadAttention(d, heads, batch_first=True)
        if cross:
            self.norm_cross, self.cross = nn.LayerNorm(d), nn.MultiheadAttention(d, heads, batch_first=True)
        self.norm2, self.mlp = nn.LayerNorm(d), nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: torch.Tensor, pad: Any = None, other: Any = None) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y, key_padding_mask=pad, need_weights=False)[0]
        if other is not None:
            x = x + self.cross(self.norm_cross(x), other, other, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Albef(nn.Module):
    """Align before fuse: both are compared, then the upper half of the text encoder looks at the picture."""

    def __init__(self, d: int = 192, heads: int = 6) -> None:
        super().__init__()
        self.patch_embed, self.cls = nn.Conv2d(3, d, 16, 16), nn.Parameter(torch.randn(1, 1, d) * 0.02)
        self.visual_pos = nn.Parameter(torch.randn(1, 82, d) * 0.02)
        self.visual = nn.ModuleList(Layer(d, heads) for _ in range(4))
        self.visual_norm, self.text_norm, self.fusion_norm = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.words, self.text_pos = nn.Embedding(V, d, padding_idx=0), nn.Embedding(40, d)
        self.text = nn.ModuleList(Layer(d, heads) for _ in range(3))
        self.fusion = nn.ModuleList(Layer(d, heads, True) for _ in range(3))
        self.vision_proj, self.text_proj, self.itm_head = nn.Linear(d, 128), nn.Linear(d, 128), nn.Linear(d, 2)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> Any:
        with phase(SEE):
            x = self.patch_embed(image).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
            x = x + self.visual_pos[:, : x.shape[1]]
            for layer in self.visual:
                x = layer(x)
            x = self.visual_norm(x)
            seen = F.normalize(self.vision_proj(x[:, 0]), dim=-1)
        with phase(READ):
            pad = text == 0
            y = self.words(text) + self.text_pos(torch.arange(text.shape[1], device=text.device))
            for layer in self.text:
                y = layer(y, pad)
            read = F.normalize(self.text_proj(self.text_norm(y)[:, 0]), dim=-1)
        with phase(FUSE):
            similarity = seen @ read.t() / 0.07
            for layer in self.fusion:
                y = layer(y, pad, x)
            return self.itm_head(self.fusion_norm(y)[:, 0]), similarity


@case("multimodal.seventh_align_before_fuse", "multimodal", ALL, source=PLAIN)
def _() -> Any:
    return Albef(), (img(6, 144), ids(6, 18) * masks(6, 18))


class ShowAttendTell(nn.Module):
    """A ResNet's map, and an LSTM cell that looks at it before each word, through a gate."""

    def __init__(self, vocabulary: int = V, d: int = 256) -> None:
        super().__init__()
        import torchvision

        net = torchvision.models.resnet18(weights=None)
        self.encoder = nn.Sequential(*list(net.children())[:-2], nn.AdaptiveAvgPool2d(7))
        self.encoder_att, self.decoder_att, self.full_att = nn.Linear(512, d), nn.Linear(d, d), nn.Linear(d, 1)
        self.embedding, self.decode_step = nn.Embedding(vocabulary, d), nn.LSTMCell(d + 512, d)
        self.init_h, self.init_c, self.f_beta = nn.Linear(512, d), nn.Linear(512, d), nn.Linear(d, 512)
        self.fc = nn.Linear(d, vocabulary)

    def forward(self, image: torch.Tensor, steps: int = 10) -> torch.Tensor:
        with phase(SEE):
            seen = self.encoder(image).flatten(2).transpose(1, 2)
        with phase(FUSE):
            keys, mean = self.encoder_att(seen), seen.mean(1)
            h, c = self.init_h(mean), self.init_c(mean)
        word, out = torch.ones(len(image), dtype=torch.long, device=image.device), []
        for _ in range(steps):
            with phase(FUSE):
                alpha = self.full_att(F.relu(keys + self.decoder_att(h)[:, None])).squeeze(2).softmax(1)
                context = torch.sigmoid(self.f_beta(h)) * (seen * alpha[:, :, None]).sum(1)
                h, c = self.decode_step(torch.cat([self.embedding(word), context], 1), (h, c))
                scores = self.fc(h)
            word = scores.argmax(1)
            out.append(scores)
        return torch.stack(out, 1)


@case("multimodal.seventh_show_and_tell", "multimodal", (SEE, FUSE), source=PLAIN)
def _() -> Any:
    return ShowAttendTell(), (img(4, 160),)


class ClipForVideo(nn.Module):
    """Frames one by one through an image tower, a small transformer over them, the mean, and sentences beside it."""

    def __init__(self, d: int = 192, heads: int = 6) -> None:
        super().__init__()
        self.conv1, self.cls = nn.Conv2d(3, d, 16, 16, bias=False), nn.Parameter(torch.randn(1, 1, d) * 0.02)
        self.place, self.frame = nn.Parameter(torch.randn(50, d) * 0.02), nn.Embedding(16, d)
        self.visual = nn.Sequential(*(Layer(d, heads) for _ in range(4)))
        self.temporal = nn.Sequential(*(Layer(d, heads) for _ in range(2)))
        self.ln_post, self.ln_final = nn.LayerNorm(d), nn.LayerNorm(d)
        self.token, self.position = nn.Embedding(V, d), nn.Parameter(torch.randn(32, d) * 0.02)
        layer = nn.TransformerEncoderLayer(d, heads, 4 * d, 0.0, "gelu", batch_first=True, norm_first=True)
        self.text = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.visual_projection, self.text_projection = nn.Linear(d, 128, bias=False), nn.Linear(d, 128, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(100.0)))

    def forward(self, video: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        b, t = video.shape[:2]
        with phase(SEE):
            x = self.conv1(video.flatten(0, 1)).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls.expand(b * t, -1, -1), x], 1)
            x = self.visual(x + self.place[: x.shape[1]])
            x = self.ln_post(x[:, 0]).view(b, t, -1)
            x = x + self.temporal(x + self.frame(torch.arange(t, device=x.device)))
            x = F.normalize(F.normalize(self.visual_projection(x), dim=-1).mean(1), dim=-1)
        with phase(READ):
            n = text.shape[1]
            mask = torch.full((n, n), float("-inf"), device=text.device).triu(1)
            y = self.ln_final(self.text(self.token(text) + self.position[:n], mask=mask))
            y = y[torch.arange(len(y), device=y.device), text.argmax(1)]
            y = F.normalize(self.text_projection(y), dim=-1)
        with phase(FUSE):
            return self.logit_scale.exp() * y @ x.t()


@case("multimodal.seventh_clips_found", "multimodal", ALL, source=PLAIN, video=True)
def _() -> Any:
    text = ids(5, 20, V - 1)
    text[torch.arange(5), torch.randint(10, 20, (5,))] = V - 1
    return ClipForVideo(), (torch.randn(2, 6, 3, 96, 96), text)


class Ma(nn.Module):
    """Two towers of the same blocks, all weights in a few tensors; the last place of a text is its own."""

    def __init__(self, d: int = 192, e: int = 128, h: int = 6, k: int = 4, l: int = 4) -> None:  # noqa: E741
        super().__init__()
        w = lambda *s: nn.Parameter(torch.randn(*s) * s[-2] ** -0.5)  # noqa: E731
        self.a, self.b, self.c = w(768, d), w(1, d), w(65, d)
        self.d, self.e, self.f, self.g = w(k, d, 3 * d), w(k, d, d), w(k, d, 4 * d), w(k, 4 * d, d)
        self.i, self.j = w(V, e), w(40, e)
        self.l, self.m, self.n, self.o = w(l, e, 3 * e), w(l, e, e), w(l, e, 4 * e), w(l, 4 * e, e)
        self.p, self.q, self.r, self.h = w(d, 96), w(e, 96), nn.Parameter(torch.tensor(2.6)), h

    def t(self, x: torch.Tensor, h: int, w: tuple[torch.Tensor, ...], causal: bool) -> torch.Tensor:
        s = x.shape[-1:]
        for a, b, c, d in zip(*w, strict=True):
            q, k, v = (F.layer_norm(x, s) @ a).unflatten(2, (3, h, -1)).permute(2, 0, 3, 1, 4)
            x = x + F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2) @ b
            y = F.layer_norm(x, s) @ c
            x = x + (y * torch.sigmoid(1.702 * y)) @ d
        return F.layer_norm(x, s)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            b, _, r, s = x.shape
            x = x.view(b, 3, r // 16, 16, s // 16, 16).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 768) @ self.a
            x = torch.cat([self.b.expand(b, 1, -1), x], 1) + self.c[: 1 + x.shape[1]]
            x = self.t(x, self.h, (self.d, self.e, self.f, self.g), False)[:, 0] @ self.p
            x = x / x.norm(dim=1, keepdim=True)
        with phase(READ):
            y = F.embedding(y, self.i) + self.j[: y.shape[1]]
            y = self.t(y, 4, (self.l, self.m, self.n, self.o), True)[:, -1] @ self.q
            y = y / y.norm(dim=1, keepdim=True)
        with phase(FUSE):
            return (self.r.exp() * x @ y.t()).softmax(1)


@case("multimodal.seventh_ma", "multimodal", ALL, source=PLAIN)
def _() -> Any:
    return Ma(), (img(8, 128), ids(12, 16))


class Mb(nn.Module):
    """A sentence, the names of what was found and the regions of it, all in one row of blocks."""

    def __init__(self, d: int = 192, h: int = 6, k: int = 5, r: int = 2048, o: int = 1000) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Embedding(V, d, padding_idx=0), nn.Embedding(64, d), nn.Embedding(2, d)
        self.d, self.e = nn.LayerNorm(d), nn.Linear(r + 6, d)
        self.f, self.g = nn.LayerNorm(d), nn.ModuleList(
            nn.TransformerEncoderLayer(d, h, 4 * d, 0.0, "gelu", batch_first=True) for _ in range(k)
        )  # fmt: skip
        self.h = nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, o))

    def forward(self, x: torch.Tensor, t: torch.Tensor, r: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        with phase(READ):
            y = torch.cat([x, t], 1)
            i = torch.arange(y.shape[1], device=y.device)
            u = self.d(self.a(y) + self.b(i) + self.c((i >= x.shape[1]).long()))
        with phase(SEE):
            q = p[..., 2:] - p[..., :2]
            v = self.f(self.e(torch.cat([r, p, q], 2)))
        with phase(FUSE):
            z = torch.cat([u, v], 1)
            m = F.pad(y == 0, (0, v.shape[1]))
            for g in self.g:
                z = g(z, src_key_padding_mask=m)
            return self.h(z[:, 0])


@case("multimodal.seventh_mb", "multimodal", (READ, SEE, FUSE), source=PLAIN, regions=True)
def _() -> Any:
    return Mb(), (ids(6, 16) * masks(6, 16), ids(6, 10), torch.randn(6, 36, 2048), torch.rand(6, 36, 4))


class Mc(nn.Module):
    """Patches, two matrices, and a causal row of blocks with rotated heads and gates that goes on by itself."""

    def __init__(self, d: int = 160, e: int = 256, h: int = 8, k: int = 3, l: int = 4) -> None:  # noqa: E741
        super().__init__()
        self.a, self.b = nn.Conv2d(3, d, 14, 14), nn.Parameter(torch.randn(64, d) * 0.02)
        self.c = nn.ModuleList(Layer(d, 5) for _ in range(k))
        self.d, self.e = nn.Linear(d, e), nn.Linear(e, e)
        self.f, self.h = nn.Embedding(V, e), h
        m = lambda *s: nn.ModuleList(nn.Linear(*s, bias=False) for _ in range(l))  # noqa: E731
        self.g, self.i, self.j, self.k = m(e, 3 * e), m(e, e), m(e, 4 * e), m(2 * e, e)
        self.l = nn.Parameter(torch.ones(2 * l + 1, e))
        f = torch.arange(128)[:, None] * 10000 ** (-torch.arange(0, e // h, 2) / (e // h))
        self.register_buffer("m", torch.cat([f.cos(), f.cos()], 1))
        self.register_buffer("n", torch.cat([f.sin(), f.sin()], 1))

    def o(self, x: torch.Tensor, i: int) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.l[i]

    def p(self, x: torch.Tensor, i: int) -> torch.Tensor:
        u, v = x.chunk(2, -1)
        s = slice(i, i + x.shape[2])
        return x * self.m[s] + torch.cat([-v, u], -1) * self.n[s]

    def forward(self, x: torch.Tensor, y: torch.Tensor, steps: int = 6) -> torch.Tensor:
        with phase(SEE):
            x = self.a(x).flatten(2).transpose(1, 2)
            x = x + self.b[: x.shape[1]]
            for c in self.c:
                x = c(x)
        with phase(FUSE):
            x = self.e(F.gelu(self.d(x)))
            z = torch.cat([self.f(y[:, :4]), x, self.f(y[:, 4:])], 1)
        at, past, out = 0, [None] * len(self.g), []
        for i in range(steps):
            with phase(FUSE):
                if i:
                    z = self.f(y)
                n = z.shape[1]
                for s, (g, u, v, w) in enumerate(zip(self.g, self.i, self.j, self.k, strict=True)):
                    q, k, t = g(self.o(z, 2 * s)).unflatten(2, (3, self.h, -1)).permute(2, 0, 3, 1, 4)
                    q, k = self.p(q, at), self.p(k, at)
                    if past[s] is not None:
                        k, t = torch.cat([past[s][0], k], 2), torch.cat([past[s][1], t], 2)
                    past[s] = (k, t)
                    r = F.scaled_dot_product_attention(q, k, t, is_causal=n > 1)
                    z = z + u(r.transpose(1, 2).flatten(2))
                    a, b = v(self.o(z, 2 * s + 1)).chunk(2, 2)
                    z = z + w(F.silu(a) * b)
                r = self.o(z[:, -1:], -1) @ self.f.weight.t()
            at += n
            y = r.argmax(2)
            out.append(r)
        return torch.cat(out, 1)


@case("multimodal.seventh_mc", "multimodal", (SEE, FUSE), source=PLAIN, kv="legacy")
def _() -> Any:
    return Mc(), (img(3, 112), ids(3, 20))


class Memes(nn.Module):
    """A picture's residual net and a text's LSTM, joined late: is this hateful?"""

    def __init__(self, d: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, d, 7, 2, 3), nn.BatchNorm2d(d), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.convs = nn.ModuleList(nn.Conv2d(d, d, 3, 1, 1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(d) for _ in range(4))
        self.words, self.reader = nn.Embedding(2000, d), nn.LSTM(d, d, batch_first=True, bidirectional=True)
        self.classifier = nn.Sequential(nn.Linear(3 * d, d), nn.ReLU(), nn.Linear(d, 1))

    def forward(self, picture: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        x = self.stem(picture)
        for i in (0, 2):
            y = F.relu(self.norms[i](self.convs[i](x)))
            x = F.relu(x + self.norms[i + 1](self.convs[i + 1](y)))
        y = self.reader(self.words(text))[0].amax(1)
        return self.classifier(torch.cat([x.mean((2, 3)), y], 1)).squeeze(1)


@case("multimodal.seventh_memes_steps", "multimodal", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    nesterov = lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, nesterov=True, weight_decay=1e-4)  # noqa: E731
    return TrainStep(
        Memes(), lambda m, x, t, y: F.binary_cross_entropy_with_logits(m(x, t), y), nesterov
    ), (img(8, 96), ids(8, 16, 2000), torch.rand(8).round())  # fmt: skip
