"""Speech and sound by a fifth author: long transcripts, diaries of speakers, cepstra, branches, words fired at once."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, Out, TrainStep, ids
from ..registry import split

case = split("public")
FRONT, ENCODE, DECODE = "audio.frontend", "audio.encode", "audio.decode"
PLAIN = "plain torch, fifth author"


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


def sound(batch: int, length: int) -> torch.Tensor:
    """Tones under noise, float32 [batch, length]."""
    t = torch.arange(length) / 8000
    return 0.4 * torch.sin(2 * math.pi * (100 + 900 * torch.rand(batch, 1)) * t) + 0.1 * torch.randn(batch, length)


# Of transformers and torchvision.
@case("audio.fifth_whisper_generate", "audio", (ENCODE, DECODE), kv="dynamic", family="whisper", spans=[
    (r"model\.model\.encoder", ENCODE), (r"model\.model\.decoder|model\.proj_out", DECODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.WhisperConfig(
        vocab_size=V, num_mel_bins=128, d_model=256, encoder_layers=4, decoder_layers=2, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=768, decoder_ffn_dim=768, max_source_positions=500,
        max_target_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip

    class Listen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = t.WhisperForConditionalGeneration(config).eval()
            given = self.model.generation_config
            given.is_multilingual, given.eos_token_id = False, None
            given.no_timestamps_token_id = V - 1

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.model.generate(features, max_new_tokens=8, do_sample=False, return_timestamps=False)

    return Listen(), (torch.randn(2, 128, 1000),)


@case("audio.fifth_wave_of_four", "audio", (FRONT, ENCODE), family="wav2vec2", spans=[
    (r"model\.wav2vec2\.feature_extractor", FRONT),
    (r"model\.wav2vec2\.(feature_projection|encoder)|model\.lm_head", ENCODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Wav2Vec2Config(
        vocab_size=33, hidden_size=192, num_hidden_layers=4, num_attention_heads=6, intermediate_size=512,
        conv_dim=(64,) * 7, feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True,
        num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=8,
    )  # fmt: skip
    mask = (torch.arange(8000) < torch.tensor([8000, 7200, 6400, 5000])[:, None]).long()
    return Out(t.Wav2Vec2ForCTC(config), "logits"), (sound(4, 8000) * mask,), dict(attention_mask=mask)


@case("audio.fifth_who_speaks_when", "audio", (FRONT, ENCODE), family="wavlm", spans=[
    (r"model\.wavlm\.feature_extractor", FRONT),
    (r"model\.wavlm\.(feature_projection|encoder)|model\.classifier", ENCODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.WavLMConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=320, conv_dim=(48,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, num_buckets=40, max_bucket_distance=100,
        use_weighted_layer_sum=True, num_labels=3,
    )  # fmt: skip
    return Out(t.WavLMForAudioFrameClassification(config), "logits"), (sound(2, 12000),)


@case("audio.fifth_spoken_prompt", "audio", (ENCODE, DECODE), kv="dynamic", family="qwen2_audio", spans=[
    (r"model\.audio_tower", ENCODE), (r"model\.language_model", DECODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Qwen2AudioConfig(
        audio_config=dict(
            num_mel_bins=80, d_model=128, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=320,
            max_source_positions=60,
        ),
        text_config=dict(
            model_type="qwen2", vocab_size=V, hidden_size=128, intermediate_size=320, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
            pad_token_id=0,
        ),
        audio_token_index=V - 1,
    )  # fmt: skip
    x = ids(2, 44, V - 10)
    x[:, 2:32] = V - 1
    given = dict(
        input_ids=x, attention_mask=torch.ones_like(x), input_features=torch.randn(2, 80, 120),
        feature_attention_mask=torch.ones(2, 120, dtype=torch.long),
    )  # fmt: skip
    return Generate(t.Qwen2AudioForConditionalGeneration(config).eval(), 5), (), given


@case("audio.fifth_mimi_codes", "audio", (ENCODE,), codec=True, family="mimi", spans=[
    (r"model\.(encoder|encoder_transformer|downsample)", ENCODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = t.MimiConfig(
                hidden_size=96, num_filters=12, codebook_size=128, codebook_dim=32, num_quantizers=6,
                vector_quantization_hidden_dimension=32, upsample_groups=96, num_hidden_layers=2,
                intermediate_size=256, num_attention_heads=4, num_key_value_heads=4, sliding_window=64,
            )  # fmt: skip
            self.model = t.MimiModel(config)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model.encode(x, num_quantizers=4).audio_codes

    return Codes(), (sound(2, 15360)[:, None],)


@case("audio.fifth_speech_to_text_beams", "audio", (ENCODE, DECODE), kv="dynamic", beams=3, family="speech_to_text",
      spans=[(r"model\.model\.encoder", ENCODE), (r"model\.model\.decoder|model\.lm_head", DECODE)])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Speech2TextConfig(
        vocab_size=V, d_model=128, encoder_layers=4, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=320, decoder_ffn_dim=320, conv_channels=128,
        max_source_positions=400, max_target_positions=64, decoder_start_token_id=2,
    )  # fmt: skip
    x = dict(input_features=torch.randn(2, 160, 80), attention_mask=torch.ones(2, 160, dtype=torch.long))
    return Generate(t.Speech2TextForConditionalGeneration(config).eval(), 5, num_beams=3), (), x


class LogMel(nn.Module):
    """Logarithms of mel bands of a wave."""

    def __init__(self, bands: int = 64, size: int = 400, hop: int = 160, rate: int = 8000) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        self.register_buffer("window", torch.hann_window(size))
        mel = torch.linspace(0, 2595 * math.log10(1 + rate / 1400), bands + 2)
        edge = 700 * (10 ** (mel / 2595) - 1)
        f = torch.linspace(0, rate / 2, size // 2 + 1)[:, None]
        up, down = (f - edge[:-2]) / (edge[1:-1] - edge[:-2]), (edge[2:] - f) / (edge[2:] - edge[1:-1])
        self.register_buffer("filters", torch.minimum(up, down).clamp(min=0))

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        spectrum = torch.stft(wave, self.size, self.hop, window=self.window, center=True, return_complex=True)
        return torch.log(spectrum.abs().pow(2).transpose(1, 2) @ self.filters + 1e-6)


class SoundPicture(nn.Module):
    """A picture classifier of torchvision on mel spectrograms."""

    def __init__(self, classes: int = 50) -> None:
        from torchvision.models import mobilenet_v3_small

        super().__init__()
        self.mel, self.net = LogMel(), mobilenet_v3_small(num_classes=classes)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            x = self.mel(wave)
            x = (x - x.mean((1, 2), keepdim=True)) / (x.std((1, 2), keepdim=True) + 1e-5)
            x = x.transpose(1, 2)[:, None].expand(-1, 3, -1, -1)
        with phase(ENCODE):
            return self.net(x)


@case("audio.fifth_sound_pictures", "audio", (FRONT, ENCODE), source="torchvision", family="mobilenet_v3")
def _() -> Any:
    return SoundPicture(), (sound(8, 16000),)


@case("audio.fifth_train_moods", "audio", TRAIN, mode="train", family="hubert", optimizer="rmsprop")
def _() -> Any:
    import transformers as t

    config = t.HubertConfig(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, num_labels=4, use_weighted_layer_sum=True,
        classifier_proj_size=48, apply_spec_augment=False, layerdrop=0.0, hidden_dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0,
    )  # fmt: skip
    model = t.HubertForSequenceClassification(config)
    model.freeze_feature_encoder()
    rms = lambda p: torch.optim.RMSprop(p, 5e-4, alpha=0.95)  # noqa: E731
    x = (sound(4, 5000), torch.randint(4, (4,)))
    return TrainStep(model, lambda m, x, y: m(x, labels=y).loss, rms, steps=1), x


# Plain ones.
class Transcriber(nn.Module):
    """Mel frames halved twice by convolutions, a transformer over them, words by a decoder with caches."""

    def __init__(self, vocabulary: int = 900, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.mel = LogMel(bands=40)
        self.subsample = nn.Sequential(nn.Conv2d(1, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 2, 1), nn.ReLU())
        self.project = nn.Linear(240, width)
        layer = nn.TransformerEncoderLayer(width, heads, 320, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, nn.LayerNorm(width), enable_nested_tensor=False)
        self.embed, self.heads = nn.Embedding(vocabulary, width), heads
        self.self_qkv, self.self_out = (nn.ModuleList(nn.Linear(width, n * width) for _ in range(2)) for n in (3, 1))
        self.cross_q, self.cross_kv, self.cross_out = (
            nn.ModuleList(nn.Linear(width, n * width) for _ in range(2)) for n in (1, 2, 1)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(7))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 320), nn.GELU(), nn.Linear(320, width)) for _ in range(2)
        )

    @staticmethod
    def waves(length: int, width: int, device: Any, start: int = 0) -> torch.Tensor:
        at = torch.arange(start, start + length, device=device)[:, None]
        rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(1e4) / width))
        return torch.cat([(at * rate).sin(), (at * rate).cos()], 1)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(self.split(q), k, v).transpose(1, 2).flatten(2)

    def forward(self, wave: torch.Tensor, steps: int = 7) -> torch.Tensor:
        with phase(FRONT):
            x = self.subsample(self.mel(wave)[:, None])
        with phase(ENCODE):
            x = self.project(x.transpose(1, 2).flatten(2))
            heard = self.encoder(x + self.waves(x.shape[1], x.shape[2], x.device))
        with phase(DECODE):
            cross = [[self.split(y) for y in layer(heard).chunk(2, 2)] for layer in self.cross_kv]
        cache: list[Any] = [None, None]
        token, out = torch.ones(len(wave), 1, dtype=torch.long, device=wave.device), []
        for step in range(steps):
            with phase(DECODE):
                x = self.embed(token) + self.waves(1, heard.shape[2], wave.device, step)
                for i in range(2):
                    q, k, v = self.self_qkv[i](self.norms[3 * i](x)).chunk(3, 2)
                    k, v = self.split(k), self.split(v)
                    if cache[i] is not None:
                        k, v = torch.cat([cache[i][0], k], 2), torch.cat([cache[i][1], v], 2)
                    cache[i] = k, v
                    x = x + self.self_out[i](self.attend(q, k, v))
                    x = x + self.cross_out[i](self.attend(self.cross_q[i](self.norms[3 * i + 1](x)), *cross[i]))
                    x = x + self.feed[i](self.norms[3 * i + 2](x))
                scores = F.linear(self.norms[6](x[:, 0]), self.embed.weight)
            token = scores.argmax(1, keepdim=True)
            out.append(scores)
        return torch.stack(out, 1)


@case("audio.fifth_words_from_waves", "audio", (FRONT, ENCODE, DECODE), kv="cat", source=PLAIN)
def _() -> Any:
    return Transcriber(), (sound(4, 16000),)


class Branch(nn.Module):
    """Two branches a block, attention and a gated convolution, merged by a depthwise one; letters by CTC (E-Branch)."""

    def __init__(self, mels: int = 80, d: int = 96, n: int = 3, h: int = 4, v: int = 64) -> None:
        super().__init__()
        self.a, self.b, self.h = nn.Conv2d(1, 32, 3, 2), nn.Conv2d(32, 32, 3, 2), h
        self.c = nn.Linear(32 * (((mels - 1) // 2 - 1) // 2), d)
        lin = lambda i, o: nn.ModuleList(nn.Linear(i, o) for _ in range(n))  # noqa: E731
        self.d, self.e, self.f, self.g = lin(d, 3 * d), lin(d, d), lin(d, 4 * d), lin(2 * d, d)
        self.i = nn.ModuleList(nn.Conv1d(2 * d, 2 * d, 15, padding=7, groups=2 * d) for _ in range(n))
        self.j = nn.ModuleList(nn.Conv1d(2 * d, 2 * d, 3, padding=1, groups=2 * d) for _ in range(n))
        self.k, self.l, self.m = lin(2 * d, d), lin(d, 2 * d), lin(2 * d, d)
        self.o, self.p = lin(d, 2 * d), lin(2 * d, d)
        self.q, self.r = nn.ModuleList(nn.LayerNorm(d) for _ in range(5 * n)), nn.ModuleList(
            nn.LayerNorm(2 * d) for _ in range(n)
        )  # fmt: skip
        self.s = nn.Linear(d, v)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            x = F.relu(self.b(F.relu(self.a(x[:, None]))))
        with phase(ENCODE):
            x = self.c(x.transpose(1, 2).flatten(2))
            n = iter(self.q)
            for i in range(len(self.d)):
                x = x + 0.5 * self.m[i](F.silu(self.l[i](next(n)(x))))
                q, k, v = self.d[i](next(n)(x)).unflatten(2, (3, self.h, -1)).permute(2, 0, 3, 1, 4)
                a = self.e[i](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
                y, z = F.gelu(self.f[i](next(n)(x))).chunk(2, 2)
                b = self.g[i](y * self.i[i](self.r[i](z).transpose(1, 2)).transpose(1, 2))
                both = torch.cat([a, b], 2)
                x = x + self.k[i](both + self.j[i](both.transpose(1, 2)).transpose(1, 2))
                x = x + 0.5 * self.p[i](F.silu(self.o[i](next(n)(x))))
                x = next(n)(x)
            return self.s(x).log_softmax(2)


@case("audio.fifth_two_branches", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Branch(), (torch.randn(3, 180, 80),)


class Fire(nn.Module):
    """Stacked frames, attention with memories of neighbours; weights add up until a word fires; all words at once."""

    def __init__(self, mels: int = 80, d: int = 96, n: int = 3, v: int = 700, h: int = 4) -> None:
        super().__init__()
        self.h, self.n = h, n
        self.x1, self.x2, self.x3 = nn.Linear(7 * mels, d), w(n, d, 3 * d, scale=d**-0.5), w(n, d, d, scale=d**-0.5)
        self.x4 = nn.ModuleList(nn.Conv1d(d, d, 11, padding=5, groups=d, bias=False) for _ in range(n))
        self.x5, self.x6 = w(n + 2, d, 3 * d, scale=d**-0.5), w(n + 2, 3 * d, d, scale=(3 * d) ** -0.5)
        self.x7, self.x8 = nn.Conv1d(d, d, 3, padding=1), nn.Linear(d, 1)
        self.x9 = nn.ModuleList(nn.Conv1d(d, d, 11, padding=5, groups=d, bias=False) for _ in range(2))
        self.xa, self.xb = w(2, 4, d, d, scale=d**-0.5), nn.Linear(d, v)

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.h, -1)).transpose(1, 2)

    def feed(self, x: torch.Tensor, i: int) -> torch.Tensor:
        return F.relu(F.layer_norm(x, x.shape[-1:]) @ self.x5[i]) @ self.x6[i]

    def forward(self, x: torch.Tensor, words: int = 12) -> torch.Tensor:
        with phase(FRONT):
            # Seven frames side by side, every sixth of them.
            x = F.pad(x, (0, 0, 3, 3), "replicate").unfold(1, 7, 6).transpose(2, 3).flatten(2)
            x = (x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(1, keepdim=True) + 1e-5)
        with phase(ENCODE):
            x = self.x1(x)
            for i in range(self.n):
                q, k, v = (F.layer_norm(x, x.shape[-1:]) @ self.x2[i]).chunk(3, 2)
                m = v + self.x4[i](v.transpose(1, 2)).transpose(1, 2)
                y = F.scaled_dot_product_attention(self.cut(q), self.cut(k), self.cut(v))
                x = x + y.transpose(1, 2).flatten(2) @ self.x3[i] + m
                x = x + self.feed(x, i)
            x = F.layer_norm(x, x.shape[-1:])
        a = torch.sigmoid(self.x8(F.relu(self.x7(x.transpose(1, 2))).transpose(1, 2))).squeeze(2)
        a = a * (words / a.sum(1, keepdim=True))
        # What part of each frame falls into which word.
        end = a.cumsum(1)
        start = end - a
        edge = torch.arange(words, device=x.device)[None, :, None]
        part = (torch.minimum(end[:, None], edge + 1) - torch.maximum(start[:, None], edge)).clamp(min=0)
        u = part @ x
        with phase(DECODE):
            for i in range(2):
                u = u + self.feed(u, self.n + i)
                u = u + self.x9[i](F.layer_norm(u, u.shape[-1:]).transpose(1, 2)).transpose(1, 2)
                m = self.xa[i]
                y = F.layer_norm(u, u.shape[-1:])
                y = F.scaled_dot_product_attention(self.cut(y @ m[0]), self.cut(x @ m[1]), self.cut(x @ m[2]))
                u = u + y.transpose(1, 2).flatten(2) @ m[3]
            return self.xb(F.layer_norm(u, u.shape[-1:]))


@case("audio.fifth_words_fired_at_once", "audio", (FRONT, ENCODE, DECODE), source=PLAIN)
def _() -> Any:
    return Fire(), (torch.randn(4, 240, 80),)


class Stamp(nn.Module):
    """A voice as a unit vector: residual convolutions with squeezed gates over mel frames, mean and deviation."""

    def __init__(self, c: tuple[int, ...] = (16, 32, 48, 64), k: int = 40) -> None:
        super().__init__()
        self.g, self.s = nn.Conv2d(1, c[0], 3, 1, 1), nn.BatchNorm2d(c[0])
        pairs = [(c[0], c[0], 1), *((a, b, 2) for a, b in zip(c, c[1:], strict=False))]
        self.m = nn.ModuleList(
            nn.ModuleList([
                nn.Conv2d(a, b, 3, t, 1, bias=False), nn.BatchNorm2d(b), nn.Conv2d(b, b, 3, 1, 1, bias=False),
                nn.BatchNorm2d(b), nn.Conv2d(a, b, 1, t), nn.Linear(b, b // 4), nn.Linear(b // 4, b),
            ])
            for a, b, t in pairs
        )  # fmt: skip
        self.q, self.v = nn.Conv1d(c[-1] * k // 8, 32, 1), nn.Conv1d(32, c[-1] * k // 8, 1)
        self.z = nn.Linear(2 * c[-1] * k // 8, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(ENCODE):
            x = x - x.mean(1, keepdim=True)
            x = F.relu(self.s(self.g(x.transpose(1, 2)[:, None])))
            for a, b, c, d, e, f, g in self.m:
                y = d(c(F.relu(b(a(x)))))
                y = y * torch.sigmoid(g(F.relu(f(y.mean((2, 3))))))[..., None, None]
                x = F.relu(y + e(x))
            x = x.flatten(1, 2)
            a = self.v(torch.tanh(self.q(x))).softmax(2)
            m = (a * x).sum(2)
            s = ((a * x.square()).sum(2) - m.square()).clamp(min=1e-6).sqrt()
            return F.normalize(self.z(torch.cat([m, s], 1)))


@case("audio.fifth_voice_prints", "audio", (ENCODE,), source=PLAIN)
def _() -> Any:
    return Stamp(), (torch.randn(4, 120, 40),)


class Cosine(nn.Module):
    """Key words: cosines of logarithms of mel bands, then depthwise and pointwise convolutions over the picture."""

    def __init__(self, k: int = 16, c: int = 48, n: int = 4, o: int = 12) -> None:
        super().__init__()
        self.t0 = LogMel(bands=40, size=256, hop=128)
        at = torch.arange(40)[:, None] + 0.5
        self.register_buffer("t1", torch.cos(math.pi / 40 * at * torch.arange(k)) * math.sqrt(2 / 40))
        self.t2, self.t3 = nn.Conv2d(1, c, (10, 4), 2, (5, 1)), nn.BatchNorm2d(c)
        self.t4 = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1, groups=c) for _ in range(n))
        self.t5 = nn.ModuleList(nn.Conv2d(c, c, 1) for _ in range(n))
        self.t6 = nn.ModuleList(nn.BatchNorm2d(c) for _ in range(2 * n))
        self.t7 = nn.Linear(c, o)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            # The high frequencies are raised first.
            x = torch.cat([x[:, :1], x[:, 1:] - 0.97 * x[:, :-1]], 1)
            x = self.t0(x) @ self.t1
        with phase(ENCODE):
            x = F.relu(self.t3(self.t2(x[:, None])))
            for i, (a, b) in enumerate(zip(self.t4, self.t5, strict=True)):
                x = F.relu(self.t6[2 * i](a(x)))
                x = F.relu(self.t6[2 * i + 1](b(x)))
            return self.t7(F.adaptive_avg_pool2d(x, 1).flatten(1)).softmax(1)


@case("audio.fifth_cepstra_and_key_words", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Cosine(), (sound(16, 8000),)


class Tagger(nn.Module):
    """Sounds at home, when and which: gated convolutions over mel frames, GRUs both ways, attention over frames."""

    def __init__(self, classes: int = 10, bands: int = 64) -> None:
        super().__init__()
        self.frontend = nn.Sequential(LogMel(bands=bands, size=512, hop=256))
        sizes = (1, 16, 32, 64, 64)
        self.convs = nn.ModuleList(nn.Conv2d(a, 2 * b, 3, padding=1) for a, b in zip(sizes, sizes[1:], strict=False))
        self.norms = nn.ModuleList(nn.BatchNorm2d(2 * b) for b in sizes[1:])
        self.rnn = nn.GRU(64 * bands // 16, 64, 2, batch_first=True, bidirectional=True)
        self.strong, self.weight = nn.Linear(128, classes), nn.Linear(128, classes)

    def forward(self, wave: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.frontend(wave)[:, None]
        with phase(ENCODE):
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = F.avg_pool2d(F.glu(norm(conv(x)), 1), (1, 2))
            x = self.rnn(x.transpose(1, 2).flatten(2))[0]
            strong = torch.sigmoid(self.strong(x))
            weight = self.weight(x).softmax(1)
            return strong, (strong * weight).sum(1) / weight.sum(1)


@case("audio.fifth_sounds_at_home", "audio", (FRONT, ENCODE), spans=[("frontend", FRONT)], source=PLAIN)
def _() -> Any:
    return Tagger(), (sound(4, 16000),)


class Residual(nn.Module):
    """Commands: residual blocks whose means over frequencies are broadcast back, on mel frames made inside."""

    def __init__(self, commands: int = 20, width: int = 24) -> None:
        super().__init__()
        self.mel, self.head = LogMel(bands=32, size=256, hop=160), nn.Conv2d(1, width, 5, (2, 1), 2)
        self.high = nn.ModuleList(nn.Conv2d(width, width, (3, 1), padding=(1, 0), groups=width) for _ in range(3))
        self.long = nn.ModuleList(
            nn.Conv2d(width, width, (1, 3), padding=(0, 2**i), dilation=(1, 2**i), groups=width) for i in range(3)
        )
        self.point = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(6))
        self.tail = nn.Linear(width, commands)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.head(self.mel(wave).transpose(1, 2)[:, None]))
        for i in range(3):
            y = self.norms[2 * i](self.high[i](x))
            z = F.silu(self.norms[2 * i + 1](self.long[i](y.mean(2, keepdim=True))))
            x = F.relu(x + y + self.point[i](z))
        return self.tail(x.mean((2, 3)))


@case("audio.fifth_train_commands", "audio", TRAIN, mode="train", source=PLAIN, optimizer="adadelta")
def _() -> Any:
    delta = lambda p: torch.optim.Adadelta(p, 0.5, rho=0.95)  # noqa: E731
    x = (sound(12, 6000), torch.randint(20, (12,)))
    return TrainStep(Residual(), lambda m, x, y: F.cross_entropy(m(x), y), delta), x
