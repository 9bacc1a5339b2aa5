"""Pictures and text together: towers, fusion, captions, questions, and training steps."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, Out, TrainStep, adamw, ids, img
from ..registry import split

case = split("public")
SEE, READ, FUSE = "mm.vision_encoder", "mm.text_encoder", "mm.fusion"
TOWER = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4)
SMALL = dict(TOWER, num_hidden_layers=2)
EYE = dict(image_size=112, patch_size=16, **TOWER)
ENDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)


def ones(batch: int, length: int) -> torch.Tensor:
    return torch.ones(batch, length, dtype=torch.long)


# Dual encoders.
def clip(name: str) -> Any:
    import transformers as t

    text = dict(vocab_size=V, max_position_embeddings=32, **TOWER)
    if name == "Siglip":
        config = t.SiglipConfig(text_config=text, vision_config=EYE)
    else:
        config = getattr(t, f"{name}Config")(text_config=text, vision_config=EYE, projection_dim=64)
    return getattr(t, f"{name}Model")(config)


TOWERS = [
    (r"model\.vision_model|model\.visual_projection", SEE),
    (r"model\.text_model|model\.text_projection", READ),
]


@case("mm.clip", "multimodal", (SEE, READ, FUSE), spans=TOWERS, default=FUSE)
def _() -> Any:
    x = dict(input_ids=ids(2, 16), pixel_values=img(2, 112), attention_mask=ones(2, 16))
    return Out(clip("CLIP"), "logits_per_image", "logits_per_text"), (), x


@case("mm.clip_short", "multimodal", (SEE, READ, FUSE), spans=TOWERS, default=FUSE, family="clip", attn="eager")
def _() -> Any:
    model = clip("CLIP")
    model.set_attn_implementation("eager")
    return Out(model, "logits_per_image"), (), dict(input_ids=ids(3, 6), pixel_values=img(1, 112))


@case("mm.siglip", "multimodal", (SEE, READ, FUSE), spans=TOWERS, default=FUSE)
def _() -> Any:
    return Out(clip("Siglip"), "logits_per_image"), (), dict(input_ids=ids(2, 16), pixel_values=img(2, 112))


@case("mm.vit_bert_dual", "multimodal", (SEE, READ, FUSE), spans=TOWERS, default=FUSE, family="vision-text-dual")
def _() -> Any:
    import transformers as t

    model = t.VisionTextDualEncoderModel(
        vision_model=t.ViTModel(t.ViTConfig(**EYE)), text_model=t.BertModel(t.BertConfig(vocab_size=V, **TOWER))
    )
    return Out(model, "logits_per_image"), (), dict(input_ids=ids(2, 12), pixel_values=img(2, 112))


@case(
    "mm.owlvit", "multimodal", (SEE, READ, FUSE), detection=True,
    spans=[
        (r"model\.owlvit\.vision_model", SEE), (r"model\.owlvit\.(text_model|text_projection)", READ),
        (r"model\.(class_head|box_head)", FUSE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.OwlViTConfig(
        text_config=dict(vocab_size=V, max_position_embeddings=16, **SMALL), vision_config=dict(EYE, image_size=64),
        projection_dim=128,
    )  # fmt: skip
    x = dict(input_ids=ids(2, 8), pixel_values=img(1, 64), attention_mask=ones(2, 8))
    return Out(t.OwlViTForObjectDetection(config), "logits", "pred_boxes"), (), x


@case(
    "mm.clipseg", "multimodal", (SEE, READ, FUSE), segmentation=True,
    spans=[
        (r"model\.clip\.vision_model", SEE), (r"model\.clip\.(text_model|text_projection)", READ),
        (r"model\.decoder", FUSE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.CLIPSegConfig(
        text_config=dict(vocab_size=V, max_position_embeddings=32, **SMALL),
        vision_config=dict(EYE, image_size=64), projection_dim=64, extract_layers=[1, 2], reduce_dim=32,
        decoder_num_attention_heads=4, decoder_intermediate_size=64, conditional_layer=0,
    )  # fmt: skip
    x = dict(input_ids=ids(2, 10), pixel_values=img(2, 64), attention_mask=ones(2, 10))
    return Out(t.CLIPSegForImageSegmentation(config), "logits"), (), x


# Joint encoders.
@case(
    "mm.vilt_vqa", "multimodal", (READ, SEE, FUSE), vqa=True, default=FUSE,
    spans=[
        (r"model\.vilt\.embeddings\.patch_embeddings", SEE), (r"model\.vilt\.embeddings\.text_embeddings", READ),
        (r"model\.vilt\.encoder", FUSE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.ViltConfig(
        vocab_size=V, image_size=128, patch_size=32, hidden_size=192, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=6, num_labels=100, max_image_length=-1,
    )  # fmt: skip
    x = dict(
        input_ids=ids(2, 12), pixel_values=img(2, 128), attention_mask=ones(2, 12),
        pixel_mask=torch.ones(2, 128, 128, dtype=torch.long),
    )  # fmt: skip
    return Out(t.ViltForQuestionAnswering(config), "logits"), (), x


@case(
    "mm.flava", "multimodal", (SEE, FUSE, READ),
    spans=[
        (r"model\.image_model", SEE), (r"model\.text_model", READ),
        (r"model\.(image_to_mm_projection|text_to_mm_projection|multimodal_model)", FUSE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.FlavaConfig(
        image_config=dict(EYE, image_size=64, num_hidden_layers=2), text_config=dict(vocab_size=V, **SMALL),
        multimodal_config=SMALL, projection_dim=64,
    )  # fmt: skip
    x = dict(input_ids=ids(1, 10), pixel_values=img(1, 64))
    return Out(t.FlavaModel(config), "multimodal_embeddings"), (), x


@case(
    "mm.lxmert", "multimodal", (SEE, READ, FUSE),
    spans=[
        (r"model\.encoder\.(visn_fc|r_layers\.\d+)", SEE), (r"model\.(embeddings|encoder\.layer\.\d+)", READ),
        (r"model\.encoder\.x_layers\.\d+|model\.pooler", FUSE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.LxmertConfig(
        vocab_size=V, hidden_size=128, intermediate_size=256, num_attention_heads=4, l_layers=2, x_layers=2, r_layers=2,
        visual_feat_dim=64,
    )  # fmt: skip

    class Seen(nn.Module):
        """Region features come from a small net over pictures of the regions."""

        def __init__(self) -> None:
            super().__init__()
            self.model = t.LxmertModel(config)
            self.eye = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 4), nn.ReLU())

        def forward(self, x: torch.Tensor, regions: torch.Tensor, boxes: torch.Tensor) -> Any:
            with phase(SEE):
                seen = self.eye(regions).mean((2, 3)).unsqueeze(0)
            result = self.model(x, visual_feats=seen, visual_pos=boxes)
            return result.pooled_output, result.language_output

    return Seen(), (ids(1, 9), img(10, 32), torch.rand(1, 10, 4))


@case(
    "mm.visual_bert", "multimodal", (SEE, FUSE), vqa=True,
    spans=[("eye", SEE), (r"model\.visual_bert\.encoder|model\.cls", FUSE)],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.VisualBertConfig(vocab_size=V, visual_embedding_dim=64, num_labels=50, **TOWER)

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = t.VisualBertForQuestionAnswering(config)
            self.eye = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU())

        def forward(self, x: torch.Tensor, mask: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
            seen = self.eye(picture).flatten(2).transpose(1, 2)
            return self.model(x, attention_mask=mask, visual_embeds=seen).logits

    return Seen(), (ids(2, 11), ones(2, 11), img(2, 48))


# Captions and questions: the whole text decoder is fusion.
def blip() -> Any:
    import transformers as t

    text = dict(
        vocab_size=V, encoder_hidden_size=128, projection_dim=64, max_position_embeddings=64, sep_token_id=2,
        **ENDS, **SMALL,
    )  # fmt: skip
    return t.BlipConfig(text_config=text, vision_config=dict(EYE, projection_dim=64))


@case("mm.vit_gpt2_caption", "multimodal", (SEE, FUSE), kv="dynamic", family="vision-encoder-decoder",
      spans=[(r"model\.encoder", SEE), (r"model\.decoder", FUSE)])  # fmt: skip
def _() -> Any:
    import transformers as t

    decoder = t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=V, n_embd=128, n_layer=3, n_head=4, n_positions=64, add_cross_attention=True)
    )
    model = t.VisionEncoderDecoderModel(encoder=t.ViTModel(t.ViTConfig(**EYE)), decoder=decoder).eval()
    model.generation_config.decoder_start_token_id = 1
    model.generation_config.pad_token_id = 0
    return Generate(model, 6), (), dict(pixel_values=img(1, 112))


@case("mm.blip_caption", "multimodal", (SEE, FUSE), kv="dynamic",
      spans=[(r"model\.vision_model", SEE), (r"model\.text_decoder", FUSE)])  # fmt: skip
def _() -> Any:
    import transformers as t

    class Caption(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = t.BlipForConditionalGeneration(blip())

        def forward(self, picture: torch.Tensor) -> torch.Tensor:
            return self.model.generate(picture, max_new_tokens=5, min_new_tokens=5, do_sample=False)

    return Caption(), (img(1, 112),)


@case("mm.blip_vqa", "multimodal", (SEE, READ, FUSE), vqa=True, spans=[
    (r"model\.vision_model", SEE), (r"model\.text_encoder\.embeddings", READ),
    (r"model\.text_encoder\.encoder|model\.text_decoder", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    class Answer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = t.BlipForQuestionAnswering(blip())

        def forward(self, question: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
            return self.model.generate(question, picture, max_new_tokens=4, min_new_tokens=4)

    return Answer(), (ids(1, 8), img(1, 112))


@case("mm.blip_retrieval", "multimodal", (SEE, READ, FUSE), spans=[
    (r"model\.vision_model", SEE), (r"model\.text_encoder\.embeddings", READ),
    (r"model\.text_encoder\.encoder|model\.itm_head", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    return Out(t.BlipForImageTextRetrieval(blip()), "itm_score"), (ids(1, 8), img(1, 112))


@case("mm.git", "multimodal", (SEE, FUSE), spans=[
    (r"model\.git\.(image_encoder|visual_projection)", SEE), (r"model\.git\.encoder|model\.output", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.GitConfig(
        vocab_size=V, vision_config=dict(EYE, image_size=64), max_position_embeddings=64, **ENDS, **SMALL
    )
    return Out(t.GitForCausalLM(config), "logits"), (ids(1, 6),), dict(pixel_values=img(1, 64))


# A picture before a language model: what joins them and the language model are fusion.
def llama(vocabulary: int = V) -> Any:
    import transformers as t

    return t.LlamaConfig(vocab_size=vocabulary, num_key_value_heads=2, max_position_embeddings=128, **ENDS, **SMALL)


def with_picture(places: int, length: int, token: int) -> torch.Tensor:
    x = ids(1, length, V - 10)
    x[0, 1 : 1 + places] = token
    return x


@case("mm.llava", "multimodal", (SEE, FUSE), kv="dynamic", spans=[
    (r"model\.model\.vision_tower", SEE),
    (r"model\.model\.(multi_modal_projector|language_model)|model\.lm_head", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = t.CLIPVisionConfig(**dict(EYE, image_size=64))
    config = t.LlavaConfig(
        vision_config=eye, text_config=llama(), image_token_index=V - 1, vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    x = with_picture(16, 24, V - 1)
    model = t.LlavaForConditionalGeneration(config).eval()
    return Generate(model, 4), (), dict(pixel_values=img(1, 64), input_ids=x, attention_mask=torch.ones_like(x))


@case("mm.paligemma", "multimodal", (SEE, FUSE), spans=[
    (r"model\.model\.vision_tower", SEE),
    (r"model\.model\.(multi_modal_projector|language_model)|model\.lm_head", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    text = t.GemmaConfig(vocab_size=V, head_dim=32, num_key_value_heads=1, max_position_embeddings=128, **SMALL)
    config = t.PaliGemmaConfig(
        vision_config=t.SiglipVisionConfig(**dict(EYE, image_size=64)), text_config=text, projection_dim=128,
        image_token_index=V - 1,
    )  # fmt: skip
    x = with_picture(16, 23, V - 1)
    given = dict(pixel_values=img(1, 64), input_ids=x, attention_mask=torch.ones_like(x))
    return Out(t.PaliGemmaForConditionalGeneration(config), "logits"), (), given


@case("mm.idefics3", "multimodal", (SEE, FUSE), spans=[
    (r"model\.model\.vision_model", SEE), (r"model\.model\.(connector|text_model)|model\.lm_head", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = dict(image_size=64, patch_size=16, **SMALL)
    text = llama()
    config = t.Idefics3Config(vision_config=eye, text_config=text, scale_factor=2, image_token_id=V - 1)
    x = with_picture(4, 12, V - 1)
    given = dict(pixel_values=img(1, 64).unsqueeze(1), input_ids=x, attention_mask=torch.ones_like(x))
    return Out(t.Idefics3ForConditionalGeneration(config), "logits"), (), given


# Plain models.
class Question(nn.Module):
    """Visual question answering: grid features, a text encoder, cross-attention, an answer."""

    def __init__(self, d: int = 96, answers: int = 50) -> None:
        super().__init__()
        self.eye = nn.Sequential(
            nn.Conv2d(3, 32, 7, 4, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64),
            nn.ReLU(), nn.Conv2d(64, d, 3, 2, 1),
        )  # fmt: skip
        self.words, self.places = nn.Embedding(V, d), nn.Embedding(32, d)
        layer = nn.TransformerEncoderLayer(d, 4, 2 * d, batch_first=True, dropout=0.0)
        self.reader = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.look = nn.ModuleList(nn.MultiheadAttention(d, 4, batch_first=True) for _ in range(2))
        self.norm = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))
        self.answer = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, answers))

    def forward(self, picture: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            seen = self.eye(picture).flatten(2).transpose(1, 2)
        with phase(READ):
            y = self.words(question) + self.places(torch.arange(question.shape[1], device=question.device))
            y = self.reader(y)
        with phase(FUSE):
            for look, norm in zip(self.look, self.norm, strict=True):
                y = norm(y + look(y, seen, seen, need_weights=False)[0])
            return self.answer(y.mean(1))


@case("mm.plain_vqa", "multimodal", (SEE, READ, FUSE), vqa=True, source="plain torch")
def _() -> Any:
    return Question(), (img(2, 96), ids(2, 9))


@case("train.clip", "multimodal", TRAIN, mode="train")
def _() -> Any:
    return TrainStep(
        clip("CLIP"), lambda m, x, p: m(input_ids=x, pixel_values=p, return_loss=True).loss, adamw, steps=1
    ), (ids(2, 10), img(2, 112))  # fmt: skip


@case("train.plain_vqa", "multimodal", TRAIN, mode="train", source="plain torch")
def _() -> Any:
    return TrainStep(
        Question(), lambda m, p, x, y: F.cross_entropy(m(p, x), y), adamw, steps=1
    ), (img(2, 96), ids(2, 9), torch.randint(50, (2,)))  # fmt: skip
