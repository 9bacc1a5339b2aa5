"""Pictures and text by a fifth author: towers of two libraries, grounded phrases, pages, regions in place of pixels."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, Out, TrainStep, ids, img
from ..registry import split

case = split("public")
SEE, READ, FUSE = "mm.vision_encoder", "mm.text_encoder", "mm.fusion"
PLAIN = "plain torch, fifth author"
SIZE = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4)
ENDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


def placed(batch: int, length: int, places: slice, token: int = V - 1) -> torch.Tensor:
    """Prompts with places for a picture."""
    x = ids(batch, length, V - 10)
    x[:, places] = token
    return x


def regions(batch: int, count: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a detector gives: features that are not negative, boxes as parts of the picture."""
    corner = torch.rand(batch, count, 2) * 0.7
    return torch.relu(torch.randn(batch, count, width)), torch.cat([corner, corner + 0.05 + 0.25 * corner], 2)


# Of transformers and timm.
class TwoLibraries(nn.Module):
    """A convolutional tower of timm, a text tower of transformers, projections, cosines."""

    def __init__(self, width: int = 96) -> None:
        import timm
        import transformers as t

        super().__init__()
        self.image = timm.create_model("convnext_atto", pretrained=False, num_classes=0)
        self.text = t.DistilBertModel(
            t.DistilBertConfig(vocab_size=V, dim=128, hidden_dim=256, n_layers=3, n_heads=4, max_position_embeddings=64)
        )
        self.image_projection = nn.Linear(self.image.num_features, width, bias=False)
        self.text_projection = nn.Linear(128, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.66))

    def forward(self, pixels: torch.Tensor, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            seen = self.image_projection(self.image(pixels))
        with phase(READ):
            states = self.text(x, attention_mask=mask).last_hidden_state
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            read = self.text_projection(mean)
        with phase(FUSE):
            return self.scale.exp() * F.normalize(seen, dim=1) @ F.normalize(read, dim=1).t()


@case("multimodal.fifth_towers_of_two_libraries", "multimodal", (SEE, READ, FUSE), source="timm and transformers",
      family="convnext-distilbert")  # fmt: skip
def _() -> Any:
    mask = (torch.arange(20) < torch.linspace(9, 20, 8)[:, None]).long()
    return TwoLibraries(), (img(4, 96), ids(8, 20), mask)


@case("multimodal.fifth_siglip2", "multimodal", (SEE, READ, FUSE), default=FUSE, family="siglip2", spans=[
    (r"model\.vision_model", SEE), (r"model\.text_model", READ),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Siglip2Config(
        text_config=dict(vocab_size=V, max_position_embeddings=24, projection_size=128, **SIZE),
        vision_config=dict(num_patches=64, patch_size=16, **SIZE),
    )  # fmt: skip
    # Pictures of other proportions, padded with patches that do not count.
    shapes = torch.tensor([[6, 8], [8, 6], [7, 6], [4, 12]])
    patches = (torch.arange(48) < shapes.prod(1, keepdim=True)).long()
    x = dict(
        input_ids=ids(6, 24), pixel_values=torch.randn(4, 48, 3 * 16 * 16), pixel_attention_mask=patches,
        spatial_shapes=shapes,
    )  # fmt: skip
    return Out(t.Siglip2Model(config), "logits_per_image"), (), x


@case("multimodal.fifth_grounding_dino", "multimodal", (READ, SEE, FUSE), detection=True, family="grounding-dino",
      spans=[
          (r"model\.model\.(text_backbone|text_projection)", READ),
          (r"model\.model\.(backbone|input_proj_vision\.\d+)", SEE),
          (r"model\.model\.(encoder|decoder|enc_output|enc_output_norm)", FUSE),
          (r"model\.model\.encoder_output_(bbox|class)_embed", FUSE),
          (r"model\.(model\.decoder\.)?(bbox|class)_embed\.\d+", FUSE),
      ])  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = dict(
        model_type="swin", image_size=128, patch_size=4, embed_dim=24, depths=[1, 1, 2, 1], num_heads=[2, 2, 4, 4],
        window_size=4, out_indices=[2, 3, 4],
    )  # fmt: skip
    config = t.GroundingDinoConfig(
        backbone_config=eye, text_config=dict(vocab_size=V, max_position_embeddings=64, **SIZE), d_model=64,
        num_queries=30, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=128, decoder_ffn_dim=128,
        encoder_attention_heads=4, decoder_attention_heads=4, max_text_len=32,
    )  # fmt: skip
    x = ids(1, 12, 1000) % 90 + 5
    # Phrases end in full stops: 101 a cat . a remote control . 102.
    x[0, [0, 4, 8, 11]] = torch.tensor([101, 1012, 1012, 102])
    given = dict(pixel_values=img(1, 128), input_ids=x, attention_mask=torch.ones_like(x))

    class Found(nn.Module):
        """Boxes, and how well each goes with each word (minus infinity where there is none)."""

        def __init__(self) -> None:
            super().__init__()
            self.model = t.GroundingDinoForObjectDetection(config)

        def forward(self, **x: torch.Tensor) -> Any:
            r = self.model(**x)
            return r.logits.sigmoid(), r.pred_boxes

    return Found(), (), given


@case("multimodal.fifth_gemma3", "multimodal", (SEE, FUSE), kv="dynamic", family="gemma3", spans=[
    (r"model\.model\.vision_tower", SEE),
    (r"model\.model\.(multi_modal_projector|language_model)|model\.lm_head", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    text = dict(
        vocab_size=V, head_dim=32, num_key_value_heads=2, max_position_embeddings=256, sliding_window=16,
        query_pre_attn_scalar=32, sliding_window_pattern=2, **ENDS, **SIZE,
    )  # fmt: skip
    config = t.Gemma3Config(
        text_config=text, vision_config=dict(image_size=112, patch_size=14, **SIZE), mm_tokens_per_image=16,
        image_token_index=V - 1, boi_token_index=V - 2, eoi_token_index=V - 3,
    )  # fmt: skip
    x = placed(2, 34, slice(3, 19))
    x[:, 2], x[:, 19] = V - 2, V - 3
    given = dict(pixel_values=img(2, 112), input_ids=x, attention_mask=torch.ones_like(x))
    given["token_type_ids"] = (x == V - 1).long()
    return Generate(t.Gemma3ForConditionalGeneration(config).eval(), 4), (), given


@case("multimodal.fifth_qwen25_vl", "multimodal", (SEE, FUSE), kv="dynamic", family="qwen2_5_vl", spans=[
    (r"model\.model\.visual", SEE), (r"model\.model\.language_model|model\.lm_head", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Qwen2_5_VLConfig(
        vision_config=dict(
            depth=3, hidden_size=96, intermediate_size=192, num_heads=4, patch_size=8, window_size=32,
            fullatt_block_indexes=[2], out_hidden_size=128,
        ),
        text_config=dict(
            vocab_size=V, num_key_value_heads=2, max_position_embeddings=128,
            rope_scaling=dict(type="mrope", mrope_section=[4, 6, 6]), **ENDS, **SIZE,
        ),
        image_token_id=V - 1, video_token_id=V - 2, vision_start_token_id=V - 3, vision_end_token_id=V - 4,
    )  # fmt: skip
    x = placed(1, 36, slice(3, 23))
    x[:, 2], x[:, 23] = V - 3, V - 4
    given = dict(
        input_ids=x, attention_mask=torch.ones_like(x), pixel_values=torch.randn(80, 3 * 2 * 8 * 8),
        image_grid_thw=torch.tensor([[1, 8, 10]]),
    )  # fmt: skip
    return Generate(t.Qwen2_5_VLForConditionalGeneration(config).eval(), 4), (), given


@case("multimodal.fifth_pages_read", "multimodal", (SEE, FUSE), kv="dynamic", document=True, family="donut", spans=[
    (r"model\.encoder", SEE), (r"model\.decoder", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = t.DonutSwinConfig(
        image_size=[160, 128], patch_size=4, embed_dim=32, depths=[1, 2, 2], num_heads=[2, 4, 4], window_size=4
    )
    text = t.MBartConfig(
        vocab_size=V, d_model=128, decoder_layers=3, decoder_attention_heads=4, decoder_ffn_dim=320, encoder_layers=3,
        max_position_embeddings=64, is_decoder=True, add_cross_attention=True, scale_embedding=True,
        add_final_layer_norm=True,
    )  # fmt: skip
    model = t.VisionEncoderDecoderModel(encoder=t.DonutSwinModel(eye), decoder=t.MBartForCausalLM(text)).eval()
    model.generation_config.decoder_start_token_id, model.generation_config.pad_token_id = 6, 1
    return Generate(model, 7), (), dict(pixel_values=img(2, 160, 128))


@case("multimodal.fifth_lxmert_of_36", "multimodal", (READ, SEE, FUSE), regions=True, family="lxmert", spans=[
    (r"model\.lxmert\.encoder\.(visn_fc|r_layers\.\d+)", SEE),
    (r"model\.lxmert\.(embeddings|encoder\.layer\.\d+)", READ),
    (r"model\.lxmert\.(encoder\.x_layers\.\d+|pooler)|model\.(cls|answer_head|obj_predict_head)", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.LxmertConfig(
        vocab_size=V, hidden_size=192, intermediate_size=512, num_attention_heads=6, l_layers=4, x_layers=3, r_layers=3,
        visual_feat_dim=2048, num_qa_labels=300, num_object_labels=40, num_attr_labels=20,
        max_position_embeddings=64,
    )  # fmt: skip
    seen, boxes = regions(4, 36, 2048)
    mask = (torch.arange(18) < torch.tensor([18, 14, 11, 9])[:, None]).long()
    x = dict(input_ids=ids(4, 18), visual_feats=seen, visual_pos=boxes, attention_mask=mask)
    fields = ("prediction_logits", "cross_relationship_score", "question_answering_score")
    return Out(t.LxmertForPreTraining(config), *fields), (), x


@case("multimodal.fifth_train_locked_tower", "multimodal", TRAIN, mode="train", optimizer="radam",
      family="vision-text-dual")  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = t.CLIPVisionModel(t.CLIPVisionConfig(image_size=64, patch_size=16, **SIZE)).requires_grad_(False)
    text = t.RobertaConfig(
        vocab_size=2000, max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SIZE
    )
    model = t.VisionTextDualEncoderModel(vision_model=eye, text_model=t.RobertaModel(text))
    rectified = lambda p: torch.optim.RAdam([x for x in p if x.requires_grad], 5e-4)  # noqa: E731

    def loss(m: nn.Module, x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return m(input_ids=x, pixel_values=p, return_loss=True).loss

    return TrainStep(model, loss, rectified, steps=1), (ids(8, 16, 2000), img(8, 64))


# Plain ones.
class OneStream(nn.Module):
    """Words and regions in one transformer (UNITER): an answer and whether the two belong together."""

    def __init__(self, vocabulary: int = 2500, width: int = 160, features: int = 1024, answers: int = 200) -> None:
        super().__init__()
        self.words, self.places, self.kinds = (nn.Embedding(n, width) for n in (vocabulary, 48, 2))
        self.text_norm, self.image_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feature, self.geometry = nn.Linear(features, width), nn.Linear(7, width)
        layer = nn.TransformerEncoderLayer(width, 8, 448, 0.0, "gelu", batch_first=True)
        self.joint = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.pool = nn.Linear(width, width)
        self.answer = nn.Sequential(nn.Linear(width, 320), nn.GELU(), nn.LayerNorm(320), nn.Linear(320, answers))
        self.match = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor, seen: torch.Tensor, boxes: torch.Tensor) -> Any:
        with phase(READ):
            text = self.words(x) + self.places.weight[: x.shape[1]] + self.kinds.weight[0]
            text = self.text_norm(text)
        with phase(SEE):
            size = boxes[..., 2:] - boxes[..., :2]
            geometry = torch.cat([boxes, size, size.prod(2, keepdim=True)], 2)
            image = self.image_norm(self.feature(seen) + self.geometry(geometry) + self.kinds.weight[1])
        with phase(FUSE):
            hide = torch.cat([x == 0, torch.zeros_like(boxes[..., 0], dtype=torch.bool)], 1)
            y = self.joint(torch.cat([text, image], 1), src_key_padding_mask=hide)
            y = torch.tanh(self.pool(y[:, 0]))
            return self.answer(y), self.match(y)


@case("multimodal.fifth_one_stream_of_regions", "multimodal", (READ, SEE, FUSE), regions=True, vqa=True, source=PLAIN)
def _() -> Any:
    x = ids(6, 15, 2500) * (torch.arange(15) < torch.tensor([15, 9, 12, 8, 15, 10])[:, None])
    return OneStream(), (x, *regions(6, 30, 1024))


class Tilt(nn.Module):
    """Regions weighed by a question in one glance; both through gated tangents, multiplied, answers apart (BUTD)."""

    def __init__(self, n: int = 1500, f: int = 1024, d: int = 128, o: int = 250) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(n, 96), nn.GRU(96, d, batch_first=True)
        pair = lambda i: nn.ModuleList([nn.Linear(i, d), nn.Linear(i, d)])  # noqa: E731
        self.c, self.d, self.e, self.f = pair(2 * d), pair(d), pair(d), pair(d)
        self.g, self.h, self.i = nn.Linear(f, d), nn.Linear(d, 1), nn.Linear(d, o)

    @staticmethod
    def bend(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(m[0](x)) * torch.sigmoid(m[1](x))

    def forward(self, q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with phase(READ):
            q = self.b(self.a(q))[0][:, -1]
        with phase(SEE):
            v = F.relu(self.g(F.normalize(v, dim=2)))
        with phase(FUSE):
            s = self.h(self.bend(self.c, torch.cat([v, q[:, None].expand(-1, v.shape[1], -1)], 2)))
            v = (s.softmax(1) * v).sum(1)
            return self.i(self.bend(self.f, self.bend(self.d, q) * self.bend(self.e, v)))


@case("multimodal.fifth_gated_tangents", "multimodal", (READ, SEE, FUSE), regions=True, vqa=True, source=PLAIN)
def _() -> Any:
    return Tilt(), (ids(16, 14, 1500), regions(16, 36, 1024)[0])


class Knit(nn.Module):
    """Question blocks first, region blocks guided by their outcome, attention pools of both, a sum (MCAN)."""

    def __init__(self, n: int = 1400, f: int = 512, d: int = 96, k: int = 3, h: int = 4, o: int = 120) -> None:
        super().__init__()
        self.h, self.k = h, k
        self.t0, self.t1, self.t2 = nn.Embedding(n, 64), nn.LSTM(64, d, batch_first=True), nn.Linear(f, d)
        self.t3 = nn.ModuleList(nn.ModuleList(nn.Linear(d, d) for _ in range(4)) for _ in range(3 * k))
        self.t4 = nn.ModuleList(
            nn.Sequential(nn.Linear(d, 4 * d), nn.ReLU(), nn.Linear(4 * d, d)) for _ in range(2 * k)
        )
        self.t5 = nn.ModuleList(nn.LayerNorm(d) for _ in range(5 * k + 1))
        self.t6 = nn.ModuleList(nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 1)) for _ in range(2))
        self.t7, self.t8, self.t9 = nn.Linear(d, 2 * d), nn.Linear(d, 2 * d), nn.Linear(2 * d, o)
        self.ta = nn.LayerNorm(2 * d)

    def att(self, i: int, x: torch.Tensor, y: torch.Tensor, hide: Any = None) -> torch.Tensor:
        q, k, v = (m(z).unflatten(2, (self.h, -1)).transpose(1, 2) for m, z in zip(self.t3[i], (x, y, y), strict=False))
        s = q @ k.mT / q.shape[-1] ** 0.5
        s = s if hide is None else s.masked_fill(hide[:, None, None], -1e9)
        return self.t3[i][3]((s.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def forward(self, v: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        hide, k = q == 0, self.k
        with phase(SEE):
            v = self.t2(v)
        with phase(READ):
            q = self.t1(self.t0(q))[0]
            for i in range(k):
                q = self.t5[2 * i](q + self.att(i, q, q, hide))
                q = self.t5[2 * i + 1](q + self.t4[i](q))
        with phase(FUSE):
            for i in range(k):
                at = 2 * k + 3 * i
                v = self.t5[at](v + self.att(k + 2 * i, v, v))
                v = self.t5[at + 1](v + self.att(k + 2 * i + 1, v, q, hide))
                v = self.t5[at + 2](v + self.t4[k + i](v))
            a = self.t6[0](q).masked_fill(hide[..., None], -1e9).softmax(1)
            b = self.t6[1](v).softmax(1)
            z = self.ta(self.t7((a * q).sum(1)) + self.t8((b * v).sum(1)))
            return torch.sigmoid(self.t9(z))


@case("multimodal.fifth_guided_blocks", "multimodal", (SEE, READ, FUSE), regions=True, vqa=True, source=PLAIN)
def _() -> Any:
    q = ids(8, 14, 1400) * (torch.arange(14) < torch.linspace(6, 14, 8)[:, None])
    return Knit(), (regions(8, 40, 512)[0], q)


class Tell(nn.Module):
    """Captions of regions: blocks with memory slots over them, each word looks at all of their levels through gates."""

    def __init__(self, n: int = 1300, f: int = 512, d: int = 96, k: int = 2, h: int = 4, slots: int = 8) -> None:
        super().__init__()
        self.h, self.k = h, k
        self.a, self.b = nn.Linear(f, d), nn.LayerNorm(d)
        self.c, self.d = w(k, 4, d, d, scale=d**-0.5), w(k, 2, slots, d, scale=0.3)
        self.e, self.f = w(2 * k, d, 3 * d, scale=d**-0.5), w(2 * k, 3 * d, d, scale=(3 * d) ** -0.5)
        self.g, self.i = nn.Embedding(n, d), w(24, d)
        self.j, self.l = w(k, 4, d, d, scale=d**-0.5), w(k, 4, d, d, scale=d**-0.5)
        self.m = nn.ModuleList(nn.Linear(2 * d, d) for _ in range(k * k))

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.h, -1)).transpose(1, 2)

    def look(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(self.cut(q), k, v).transpose(1, 2).flatten(2)

    def forward(self, v: torch.Tensor, steps: int = 7) -> torch.Tensor:
        n = (self.a.out_features,)
        levels = []
        with phase(SEE):
            x = self.b(F.relu(self.a(v)))
            for i in range(self.k):
                m = self.c[i]
                k = torch.cat([x @ m[1], self.d[i, 0].expand(len(x), -1, -1)], 1)
                z = torch.cat([x @ m[2], self.d[i, 1].expand(len(x), -1, -1)], 1)
                x = F.layer_norm(x + self.look(x @ m[0], self.cut(k), self.cut(z)) @ m[3], n)
                x = F.layer_norm(x + F.relu(x @ self.e[i]) @ self.f[i], n)
                levels.append(x)
        with phase(FUSE):
            far = [[(self.cut(x @ m[1]), self.cut(x @ m[2])) for x in levels] for m in self.l]
        past: list[Any] = [None] * self.k
        token, out = torch.ones(len(v), 1, dtype=torch.long, device=v.device), []
        for t in range(steps):
            with phase(FUSE):
                y = self.g(token) + self.i[t]
                for i in range(self.k):
                    m = self.j[i]
                    k, z = self.cut(y @ m[1]), self.cut(y @ m[2])
                    if t:
                        k, z = torch.cat([past[i][0], k], 2), torch.cat([past[i][1], z], 2)
                    past[i] = k, z
                    y = F.layer_norm(y + self.look(y @ m[0], k, z) @ m[3], n)
                    s = torch.zeros_like(y)
                    for g, kv in zip(self.m[i * self.k : (i + 1) * self.k], far[i], strict=True):
                        u = self.look(y @ self.l[i, 0], *kv) @ self.l[i, 3]
                        s = s + torch.sigmoid(g(torch.cat([y, u], 2))) * u
                    y = F.layer_norm(y + s * len(levels) ** -0.5, n)
                    y = F.layer_norm(y + F.relu(y @ self.e[self.k + i]) @ self.f[self.k + i], n)
                s = y[:, 0] @ self.g.weight.T
            token = s.argmax(1, keepdim=True)
            out.append(s)
        return torch.stack(out, 1)


@case("multimodal.fifth_captions_with_slots", "multimodal", (SEE, FUSE), regions=True, kv="cat", source=PLAIN)
def _() -> Any:
    return Tell(), (regions(4, 32, 512)[0],)


class Late(nn.Module):
    """Every patch with every word: the best word of each patch and the best patch of each word, their means (FILIP)."""

    def __init__(self, n: int = 2000, d: int = 112, k: int = 3) -> None:
        super().__init__()
        self.p, self.q, self.r = nn.Conv2d(3, d, 16, 16), w(1, 36, d), w(1, 24, d)
        self.s = nn.Embedding(n, d)
        lay = lambda: nn.ModuleList(  # noqa: E731
            nn.TransformerEncoderLayer(d, 7, 3 * d, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(k)
        )
        self.t, self.u = lay(), lay()
        self.v, self.x, self.z = nn.Linear(d, 64, False), nn.Linear(d, 64, False), nn.Parameter(torch.tensor(2.6))

    def forward(self, y: torch.Tensor, x: torch.Tensor) -> Any:
        off = y == 0
        with phase(READ):
            y = self.s(y) + self.r[:, : y.shape[1]]
            for m in self.u:
                y = m(y, src_key_padding_mask=off)
            y = F.normalize(self.x(y), dim=-1)
        with phase(SEE):
            x = self.p(x).flatten(2).mT + self.q
            for m in self.t:
                x = m(x)
            x = F.normalize(self.v(x), dim=-1)
        with phase(FUSE):
            s = torch.einsum("ipd,jwd->ijpw", x, y)
            a = s.masked_fill(off[None, :, None], -1.0).amax(3).mean(2)
            b = (s.amax(2) * ~off).sum(2) / (~off).sum(1)
            return a * self.z.exp(), b * self.z.exp()


@case("multimodal.fifth_patches_and_words_late", "multimodal", (READ, SEE, FUSE), source=PLAIN)
def _() -> Any:
    y = ids(8, 20, 2000) * (torch.arange(20) < torch.linspace(7, 20, 8)[:, None])
    return Late(), (y, img(4, 96))


class Phrases(nn.Module):
    """A phrase and a picture in one encoder, queries that ask it for boxes and for words (MDETR)."""

    def __init__(self, vocabulary: int = 1800, width: int = 96, queries: int = 20) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((3, 24), (24, 48), (48, 96), (96, 96)):
            layers += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.backbone, self.project = nn.Sequential(*layers), nn.Conv2d(96, width, 1)
        self.rows, self.columns = nn.Embedding(16, width // 2), nn.Embedding(16, width // 2)
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(32, width)
        kind = dict(d_model=width, nhead=4, dim_feedforward=256, dropout=0.0, batch_first=True)
        self.reader = nn.TransformerEncoder(nn.TransformerEncoderLayer(**kind), 2, enable_nested_tensor=False)
        self.joint = nn.TransformerEncoder(nn.TransformerEncoderLayer(**kind), 2, enable_nested_tensor=False)
        self.queries = nn.Embedding(queries, width)
        self.asker = nn.TransformerDecoder(nn.TransformerDecoderLayer(**kind), 2)
        self.boxes = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4), nn.Sigmoid())
        self.tokens = nn.Linear(width, 32)

    def forward(self, picture: torch.Tensor, x: torch.Tensor) -> Any:
        with phase(SEE):
            seen = self.project(self.backbone(picture))
            _, _, h, wide = seen.shape
            rows = self.rows.weight[:h, None].expand(-1, wide, -1)
            columns = self.columns.weight[:wide].expand(h, -1, -1)
            seen = seen.flatten(2).transpose(1, 2) + torch.cat([rows, columns], 2).flatten(0, 1)
        with phase(READ):
            text = self.reader(self.words(x) + self.places.weight[: x.shape[1]])
        with phase(FUSE):
            memory = self.joint(torch.cat([seen, text], 1))
            y = self.asker(self.queries.weight.expand(len(x), -1, -1), memory)
            return self.boxes(y), self.tokens(y).log_softmax(-1)


@case("multimodal.fifth_phrases_to_boxes", "multimodal", (SEE, READ, FUSE), detection=True, source=PLAIN)
def _() -> Any:
    return Phrases(), (img(2, 160), ids(2, 13, 1800))


class Product(nn.Module):
    """Regions of a page through gates, a question's GRU, their product; many answers may hold."""

    def __init__(self, vocabulary: int = 1000, features: int = 256, width: int = 96, answers: int = 80) -> None:
        super().__init__()
        self.words, self.rnn = nn.Embedding(vocabulary, 64, padding_idx=0), nn.GRU(64, width, batch_first=True)
        self.region, self.position = nn.Linear(features, width), nn.Linear(4, width)
        self.look, self.left, self.right = nn.Linear(width, 2), nn.Linear(2 * width, width), nn.Linear(width, width)
        self.answer = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(width, 160)), nn.ReLU(),
                                    nn.Linear(160, answers))  # fmt: skip

    def forward(self, seen: torch.Tensor, boxes: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        question = self.rnn(self.words(x))[1][0]
        seen = F.relu(self.region(seen) + self.position(boxes))
        weights = self.look(seen * question[:, None]).softmax(1)
        seen = torch.einsum("bng,bnd->bgd", weights, seen).flatten(1)
        return self.answer(F.relu(self.left(seen)) * F.relu(self.right(question)))


@case("multimodal.fifth_train_soft_answers", "multimodal", TRAIN, mode="train", regions=True, source=PLAIN,
      optimizer="adamax")  # fmt: skip
def _() -> Any:
    def loss(m: nn.Module, seen: torch.Tensor, boxes: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(m(seen, boxes, x), y) * y.shape[1]

    adamax = lambda p: torch.optim.Adamax(p, 2e-3)  # noqa: E731
    soft = (torch.rand(16, 80) > 0.95).float() * 0.6
    return TrainStep(Product(), loss, adamax), (*regions(16, 24, 256), ids(16, 12, 1000), soft)
