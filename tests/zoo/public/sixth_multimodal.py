"""Pictures and text by a sixth author: several pictures in a prompt, regions, queries for boxes, and plain ones."""

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
ALL = (SEE, READ, FUSE)
PLAIN = "plain torch, sixth author"
ENDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
SIZE = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4)


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.long)


# Of transformers.
@case("multimodal.sixth_two_pictures_asked", "multimodal", (SEE, FUSE), kv="dynamic", family="idefics2", spans=[
    (r"model\.model\.vision_model", SEE), (r"model\.model\.(connector|text_model)|model\.lm_head", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Idefics2Config(
        vision_config=dict(image_size=112, patch_size=14, **SIZE),
        perceiver_config=dict(
            hidden_size=160, resampler_n_latents=8, resampler_depth=2, resampler_n_heads=4, resampler_head_dim=40,
            num_key_value_heads=2,
        ),
        text_config=dict(
            model_type="mistral", vocab_size=V, hidden_size=160, intermediate_size=448, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, **ENDS,
        ),
        image_token_id=V - 1,
    )  # fmt: skip
    x = ids(2, 30, V - 10)
    x[:, 2:10], x[:, 13:21] = V - 1, V - 1
    given = dict(
        input_ids=x, attention_mask=torch.ones_like(x), pixel_values=torch.randn(2, 2, 3, 112, 112),
        pixel_attention_mask=ones(2, 2, 112, 112),
    )  # fmt: skip
    return Generate(t.Idefics2ForConditionalGeneration(config).eval(), 4), (), given


@case("multimodal.sixth_turning_patches", "multimodal", (SEE, FUSE), kv="dynamic", family="mistral3", spans=[
    (r"model\.model\.vision_tower", SEE),
    (r"model\.model\.(multi_modal_projector|language_model)|model\.lm_head", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Mistral3Config(
        vision_config=dict(model_type="pixtral", image_size=128, patch_size=8, head_dim=32, **SIZE),
        text_config=dict(
            model_type="mistral", vocab_size=V, head_dim=32, num_key_value_heads=2, max_position_embeddings=128,
            sliding_window=None, **ENDS, **dict(SIZE, hidden_size=192, num_attention_heads=6),
        ),
        image_token_index=V - 1, spatial_merge_size=2, vision_feature_layer=-1,
    )  # fmt: skip
    x = ids(1, 44, V - 10)
    x[:, 1:17], x[:, 20:36] = V - 1, V - 1
    given = dict(
        input_ids=x, attention_mask=torch.ones_like(x), pixel_values=img(2, 64),
        image_sizes=torch.tensor([[64, 64], [64, 64]]),
    )  # fmt: skip
    return Generate(t.Mistral3ForConditionalGeneration(config).eval(), 4), (), given


@case("multimodal.sixth_patches_in_groups", "multimodal", ALL, family="groupvit", default=FUSE, spans=[
    (r"model\.(vision_model|visual_projection)", SEE), (r"model\.(text_model|text_projection)", READ),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = dict(
        hidden_size=128, intermediate_size=384, depths=[2, 2, 1], num_hidden_layers=5, num_group_tokens=[16, 8, 0],
        num_output_groups=[16, 8, 8], num_attention_heads=4, image_size=112, patch_size=16,
    )  # fmt: skip
    config = t.GroupViTConfig(
        text_config=dict(vocab_size=V, max_position_embeddings=32, **SIZE), vision_config=eye, projection_dim=64,
        projection_intermediate_dim=256,
    )  # fmt: skip
    x = dict(input_ids=ids(12, 14), attention_mask=ones(12, 14), pixel_values=img(4, 112))
    return Out(t.GroupViTModel(config), "logits_per_image"), (), x


@case("multimodal.sixth_named_things_found", "multimodal", ALL, detection=True, family="owlv2", spans=[
    (r"model\.owlv2\.vision_model", SEE), (r"model\.owlv2\.(text_model|text_projection)", READ),
    (r"model\.(class_head|box_head|objectness_head)", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Owlv2Config(
        text_config=dict(vocab_size=V, max_position_embeddings=16, **SIZE),
        vision_config=dict(image_size=128, patch_size=16, **SIZE), projection_dim=128,
    )  # fmt: skip
    x = dict(input_ids=ids(8, 10), pixel_values=img(2, 128), attention_mask=ones(8, 10))
    return Out(t.Owlv2ForObjectDetection(config), "logits", "pred_boxes", "objectness_logits"), (), x


@case("multimodal.sixth_lines_of_text_read", "multimodal", (SEE, FUSE), kv="dynamic", family="trocr", spans=[
    (r"model\.encoder", SEE), (r"model\.decoder", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = t.DeiTModel(t.DeiTConfig(image_size=128, patch_size=16, qkv_bias=False, **SIZE), add_pooling_layer=False)
    pen = t.TrOCRForCausalLM(
        t.TrOCRConfig(
            vocab_size=V, d_model=192, decoder_layers=4, decoder_attention_heads=6, decoder_ffn_dim=768,
            max_position_embeddings=64, cross_attention_hidden_size=128, use_learned_position_embeddings=False,
            layernorm_embedding=True, scale_embedding=True, activation_function="relu",
        )
    )  # fmt: skip
    model = t.VisionEncoderDecoderModel(encoder=eye, decoder=pen).eval()
    model.generation_config.decoder_start_token_id, model.generation_config.pad_token_id = 2, 1
    return Generate(model, 6), (), dict(pixel_values=img(4, 128))


@case("multimodal.sixth_true_of_both", "multimodal", (READ, SEE, FUSE), family="vilt", spans=[
    (r"model\.vilt\.embeddings\.patch_embeddings", SEE), (r"model\.vilt\.embeddings\.text_embeddings", READ),
    (r"model\.(vilt\.(encoder|layernorm|pooler)|classifier)", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.ViltConfig(
        vocab_size=V, image_size=96, patch_size=16, num_labels=2, num_images=2, modality_type_vocab_size=3,
        max_image_length=-1, **SIZE,
    )  # fmt: skip
    x = dict(
        input_ids=ids(3, 18), attention_mask=ones(3, 18), pixel_values=torch.randn(3, 2, 3, 96, 96),
        pixel_mask=ones(3, 2, 96, 96),
    )  # fmt: skip
    return Out(t.ViltForImagesAndTextClassification(config), "logits"), (), x


@case("multimodal.sixth_four_answers_to_a_scene", "multimodal", (READ, SEE, FUSE), regions=True, family="visual_bert",
      spans=[
          (r"model\.visual_bert\.embeddings\.word_embeddings", READ),
          (r"model\.visual_bert\.embeddings\.visual_projection", SEE),
          (r"model\.(visual_bert\.(encoder|pooler)|cls)", FUSE),
      ])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.VisualBertConfig(vocab_size=V, visual_embedding_dim=512, **SIZE)
    x = dict(
        input_ids=ids(8, 24).view(2, 4, 24), attention_mask=ones(2, 4, 24),
        visual_embeds=torch.randn(2, 1, 20, 512).expand(-1, 4, -1, -1).contiguous(),
        visual_attention_mask=ones(2, 4, 20), visual_token_type_ids=ones(2, 4, 20),
    )  # fmt: skip
    return Out(t.VisualBertForMultipleChoice(config), "logits"), (), x


class Grounded(nn.Module):
    """A map of torchvision and words of transformers in one encoder; queries decode boxes and the words they mean."""

    def __init__(self, d: int = 128, queries: int = 20) -> None:
        import torchvision
        import transformers as t

        super().__init__()
        net = torchvision.models.resnet18(weights=None)
        self.backbone = nn.Sequential(*list(net.children())[:-2])
        self.text_encoder = t.RobertaModel(
            t.RobertaConfig(vocab_size=V, max_position_embeddings=40, **SIZE), add_pooling_layer=False
        )
        self.input_proj, self.resizer = nn.Conv2d(512, d, 1), nn.Sequential(nn.Linear(128, d), nn.LayerNorm(d))
        self.position, self.query_embed = w(1, 64, d), nn.Embedding(queries, d)
        self.transformer = nn.Transformer(d, 8, 2, 2, 256, 0.0, batch_first=True)
        self.bbox_embed = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 4))
        self.class_embed = nn.Linear(d, 64)
        self.align_query, self.align_text = nn.Linear(d, 32), nn.Linear(d, 32)

    def forward(self, picture: torch.Tensor, words: torch.Tensor) -> Any:
        with phase(SEE):
            seen = self.input_proj(self.backbone(picture)).flatten(2).mT
        with phase(READ):
            text = self.resizer(self.text_encoder(words).last_hidden_state)
        with phase(FUSE):
            both = torch.cat([seen + self.position[:, : seen.shape[1]], text], 1)
            memory = self.transformer.encoder(both)
            queries = self.query_embed.weight.expand(len(picture), -1, -1)
            found = self.transformer.decoder(queries, memory)
            boxes = self.bbox_embed(found).sigmoid()
            a = F.normalize(self.align_query(found), dim=-1)
            b = F.normalize(self.align_text(memory[:, -words.shape[1] :]), dim=-1)
            return boxes, self.class_embed(found), a @ b.mT / 0.07


@case("multimodal.sixth_sentence_grounded", "multimodal", ALL, detection=True, source="torchvision and transformers")
def _() -> Any:
    return Grounded(), (img(2, 160), ids(2, 16))


@case("multimodal.sixth_train_captions", "multimodal", TRAIN, mode="train", family="git")
def _() -> Any:
    import transformers as t

    size = dict(SIZE, num_hidden_layers=2)
    config = t.GitConfig(
        vocab_size=2000, max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        vision_config=dict(image_size=64, patch_size=16, **size), **ENDS, **size,
    )  # fmt: skip
    adadelta = lambda p: torch.optim.Adadelta(p, 0.5, rho=0.95)  # noqa: E731
    return TrainStep(
        t.GitForCausalLM(config), lambda m, p, x: m(input_ids=x, pixel_values=p, labels=x).loss, adadelta, steps=1
    ), (img(4, 64), ids(4, 14, 2000))  # fmt: skip


# Plain ones, whose names say nothing.
class Pairs(nn.Module):
    """All pictures' regions against all sentences' words: each word gathers what it sees, the cosines are pooled."""

    def __init__(self, n: int = 1500, seen: int = 1024, d: int = 128) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(seen, d), nn.Embedding(n, 96)
        self.c = nn.GRU(96, d, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            x = F.normalize(self.a(x), dim=-1)
        with phase(READ):
            z = self.c(self.b(y))[0]
            p, q = z.chunk(2, 2)
            z = F.normalize((p + q) / 2, dim=-1)
        out = []
        for i in range(len(z)):
            with phase(FUSE):
                t = z[i].expand(len(x), -1, -1)
                a = F.leaky_relu(x @ t.mT, 0.1)
                a = F.normalize(a, dim=2)
                a = (a.mT * 9).softmax(2)
                s = F.cosine_similarity(t, a @ x, dim=2)
                out.append((s * 6).logsumexp(1) / 6)
        return torch.stack(out, 1)


@case("multimodal.sixth_every_region_every_word", "multimodal", ALL, regions=True, source=PLAIN)
def _() -> Any:
    return Pairs(), (torch.randn(12, 36, 1024), torch.randint(1, 1500, (12, 13)))


class Mesh(nn.Module):
    """Regions in layers with remembered slots beside them; each step looks at all the layers through gates."""

    def __init__(self, n: int = 1000, seen: int = 1024, d: int = 128, layers: int = 3, slots: int = 10) -> None:
        super().__init__()
        self.u, self.e, self.p = nn.Sequential(nn.Linear(seen, d), nn.ReLU()), nn.Embedding(n, d), w(30, d)
        self.k, self.v = w(layers, slots, d, scale=0.3), w(layers, slots, d, scale=0.3)
        stack = lambda m: nn.ModuleList(nn.Linear(d, m * d) for _ in range(layers))  # noqa: E731
        self.q, self.o, self.f, self.g = stack(3), stack(1), stack(2), nn.ModuleList(
            nn.Linear(2 * d, d) for _ in range(layers)
        )  # fmt: skip
        self.a, self.b, self.c, self.x, self.h = stack(3), stack(1), stack(1), stack(2), stack(2)
        self.i = nn.ModuleList(nn.Linear(2 * d, d) for _ in range(layers))
        self.w = nn.ModuleList(nn.Linear(2 * d, d) for _ in range(layers * layers))
        self.l, self.m = layers, nn.ModuleList(nn.LayerNorm(d) for _ in range(5 * layers + 1))

    @staticmethod
    def look(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (z.unflatten(2, (8, -1)).transpose(1, 2) for z in (q, k, v))
        return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def forward(self, x: torch.Tensor, steps: int = 6) -> torch.Tensor:
        b, n = len(x), self.l
        with phase(SEE):
            x, every = self.u(x), []
            for i in range(n):
                q, k, v = self.q[i](x).chunk(3, 2)
                k, v = (torch.cat([z, s[i].expand(b, -1, -1)], 1) for z, s in ((k, self.k), (v, self.v)))
                x = self.m[2 * i](x + self.o[i](self.look(q, k, v)))
                x = self.m[2 * i + 1](x + self.g[i](F.relu(self.f[i](x))))
                every.append(x)
        with phase(FUSE):
            far = [[self.x[i](z).chunk(2, 2) for z in every] for i in range(n)]
        token, out = torch.ones(b, 1, dtype=torch.long, device=x.device), []
        past: list[Any] = [None] * n
        for step in range(steps):
            with phase(FUSE):
                y = self.e(token) + self.p[step]
                for i in range(n):
                    q, k, v = self.a[i](y).chunk(3, 2)
                    if step:
                        k, v = torch.cat([past[i][0], k], 1), torch.cat([past[i][1], v], 1)
                    past[i] = k, v
                    m = self.m[2 * n + 3 * i :]
                    y = m[0](y + self.b[i](self.look(q, k, v)))
                    q, z = self.c[i](y), 0
                    for j in range(n):
                        r = self.look(q, *far[i][j])
                        z = z + torch.sigmoid(self.w[n * i + j](torch.cat([y, r], 2))) * r
                    y = m[1](y + z / n**0.5)
                    y = m[2](y + self.i[i](F.relu(self.h[i](y))))
                s = F.linear(self.m[-1](y[:, 0]), self.e.weight).log_softmax(1)
            token = s.argmax(1, keepdim=True)
            out.append(s)
        return torch.stack(out, 1)


@case("multimodal.sixth_meshed_layers_of_regions", "multimodal", (SEE, FUSE), regions=True, kv="legacy", source=PLAIN)
def _() -> Any:
    return Mesh(), (torch.randn(4, 30, 1024),)


class Signs(nn.Module):
    """Questions about signs: words, regions and what is written in the picture; answers from a list or copied."""

    def __init__(self, n: int = 1200, answers: int = 200, d: int = 96) -> None:
        super().__init__()
        layer = lambda: nn.TransformerEncoderLayer(d, 4, 2 * d, 0.0, "gelu", batch_first=True)  # noqa: E731
        self.m0, self.m1 = nn.Embedding(n, d), w(1, 40, d)
        self.m2 = nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False)
        self.m3, self.m4, self.m5, self.m6 = (nn.Linear(i, d) for i in (512, 4, 300 + 512, 4))
        self.m7 = nn.TransformerEncoder(layer(), 3, enable_nested_tensor=False)
        self.m8, self.m9 = w(answers, d), w(1, 8, d)
        self.q, self.k = nn.Linear(d, d), nn.Linear(d, d)

    def forward(
        self, y: torch.Tensor, x: torch.Tensor, box: torch.Tensor, signs: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        with phase(READ):
            y = self.m2(self.m0(y) + self.m1[:, : y.shape[1]])
        with phase(SEE):
            x = F.layer_norm(self.m3(x), self.m9.shape[-1:]) + F.layer_norm(self.m4(box), self.m9.shape[-1:])
            z = F.layer_norm(self.m5(signs), self.m9.shape[-1:]) + F.layer_norm(self.m6(at), self.m9.shape[-1:])
        steps, first, size = self.m9.shape[1], y.shape[1] + x.shape[1], z.shape[1]
        token = torch.ones(len(y), steps, dtype=torch.long, device=y.device)
        with phase(FUSE):
            length = first + size + steps
            mask = torch.zeros(length, length, device=y.device)
            mask[:, -steps:] = float("-inf")
            mask[-steps:, -steps:] = torch.full((steps, steps), float("-inf"), device=y.device).triu(1)
        for i in range(4):
            with phase(FUSE):
                table = torch.cat([self.m8.expand(len(y), -1, -1), z], 1)
                said = table.gather(1, token[:, :, None].expand(-1, -1, table.shape[2])) + self.m9
                h = self.m7(torch.cat([y, x, z, said], 1), mask=mask)
                written, last = h[:, first : first + size], h[:, -steps:]
                s = torch.cat([last @ self.m8.t(), self.q(last) @ self.k(written).mT], 2)
            token = torch.cat([token[:, : i + 1], s[:, i : i + 1].argmax(2), token[:, i + 2 :]], 1)
        return s


@case("multimodal.sixth_what_the_signs_say", "multimodal", (READ, SEE, FUSE), regions=True, vqa=True, source=PLAIN)
def _() -> Any:
    seen = (torch.randn(3, 24, 512), torch.rand(3, 24, 4), torch.randn(3, 16, 812), torch.rand(3, 16, 4))
    return Signs(), (torch.randint(1, 1200, (3, 12)), *seen)


class Instead(nn.Module):
    """A picture and how it should differ, against a shelf of pictures: gates keep, a residual changes."""

    def __init__(self, n: int = 800, d: int = 96) -> None:
        super().__init__()
        self.a = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1, bias=False) for i, o in ((3, 24), (24, 48), (48, d), (d, d)))
        self.b = nn.ModuleList(nn.BatchNorm2d(o) for o in (24, 48, d, d))
        self.c, self.d = nn.Embedding(n, d), nn.LSTM(d, d, batch_first=True)
        self.e = nn.Sequential(nn.Conv2d(2 * d, d, 1), nn.ReLU(), nn.Conv2d(d, d, 1))
        self.f = nn.Sequential(nn.Conv2d(2 * d, d, 3, 1, 1), nn.ReLU(), nn.Conv2d(d, d, 3, 1, 1))
        self.g, self.h = w(2, scale=1.0), nn.Linear(d, d)

    def see(self, x: torch.Tensor) -> torch.Tensor:
        for a, b in zip(self.a, self.b, strict=True):
            x = F.relu6(b(a(x)))
        return x

    def forward(self, x: torch.Tensor, y: torch.Tensor, shelf: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            x = self.see(x)
            shelf = F.normalize(self.h(self.see(shelf).mean((2, 3))))
        with phase(READ):
            y = self.d(self.c(y))[1][0][0]
        with phase(FUSE):
            both = torch.cat([x, y[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)
            z = self.g[0] * torch.sigmoid(self.e(both)) * x + self.g[1] * self.f(both)
            z = F.normalize(self.h(z.mean((2, 3))))
            return 4 * z @ shelf.t()


@case("multimodal.sixth_this_but_instead", "multimodal", ALL, source=PLAIN)
def _() -> Any:
    return Instead(), (img(4, 96), torch.randint(1, 800, (4, 9)), img(16, 96))


# Plain ones with names.
class ExpertBlock(nn.Module):
    """One attention for all, a feed-forward for each kind of input."""

    def __init__(self, d: int, experts: tuple[str, ...]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj, self.scale = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Parameter(torch.full((d,), 0.1))
        self.experts = nn.ModuleDict(
            {e: nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)) for e in experts}
        )

    def forward(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.scale * self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.scale * self.experts[kind](self.norm2(x))


class ExpertsOfKinds(nn.Module):
    """Blocks whose attention pictures and words share, apart at first and together above; is the sentence true?"""

    def __init__(self, d: int = 128, patch: int = 16, side: int = 128) -> None:
        super().__init__()
        self.patch_embed, self.word_embed = nn.Conv2d(3, d, patch, patch), nn.Embedding(V, d)
        self.cls, self.image_pos, self.text_pos = w(1, 1, d), w(1, (side // patch) ** 2 + 1, d), w(1, 32, d)
        self.kinds = nn.Embedding(2, d)
        self.lower = nn.ModuleList(ExpertBlock(d, ("image", "text")) for _ in range(3))
        self.upper = nn.ModuleList(ExpertBlock(d, ("both",)) for _ in range(2))
        self.head = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d), nn.Tanh(), nn.Linear(d, 2))

    def forward(self, picture: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            x = self.patch_embed(picture).flatten(2).mT
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.image_pos + self.kinds.weight[0]
            for block in self.lower:
                x = block(x, "image")
        with phase(READ):
            y = self.word_embed(words) + self.text_pos[:, : words.shape[1]] + self.kinds.weight[1]
            for block in self.lower:
                y = block(y, "text")
        with phase(FUSE):
            z = torch.cat([y, x], 1)
            for block in self.upper:
                z = block(z, "both")
            return self.head(z[:, 0])


@case("multimodal.sixth_experts_of_kinds", "multimodal", ALL, source=PLAIN)
def _() -> Any:
    return ExpertsOfKinds(), (img(4, 128), ids(4, 20))


class Ranked(nn.Module):
    """Regions pooled by a mean and sentences by a GRU, in one space; the hardest wrong one must be further away."""

    def __init__(self, words: int = 1000, seen: int = 512, d: int = 128) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(seen, d), nn.ReLU(), nn.Linear(d, d))
        self.words, self.sentence = nn.Embedding(words, 64), nn.GRU(64, d, batch_first=True)

    def forward(self, regions: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        x = F.normalize(self.image(regions).mean(1))
        y = F.normalize(self.sentence(self.words(words))[1][0])
        s = x @ y.t()
        right = s.diagonal()
        s = s - 2 * torch.eye(len(s), device=s.device)
        return (F.relu(0.2 + s.amax(1) - right) + F.relu(0.2 + s.amax(0) - right)).mean()


class Orthogonal(nn.Module):
    """Matrices are moved by Muon, all else by AdamW."""

    def __init__(self, model: nn.Module, steps: int = 2) -> None:
        super().__init__()
        self.model, self.steps = model.train(), steps

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and not n.startswith("words")]
        rest = [p for p in self.model.parameters() if all(p is not m for m in matrices)]
        optimizers = torch.optim.Muon(matrices, 0.02), torch.optim.AdamW(rest, 1e-3)
        out = []
        for _ in range(self.steps):
            with phase("train.forward"):
                loss = self.model(*x)
            with phase("train.backward"):
                loss.backward()
            with phase("train.optimizer"):
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            out.append(loss.detach())
        return torch.stack(out)


@case("multimodal.sixth_train_hardest_pairs", "multimodal", TRAIN, mode="train", regions=True, source=PLAIN)
def _() -> Any:
    return Orthogonal(Ranked()), (torch.randn(16, 20, 512), torch.randint(1, 1000, (16, 11)))
