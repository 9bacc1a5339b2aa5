"""Speech and sound by a seventh author: what is run most, at inference, with batches and caches."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, Out, TrainStep
from ..registry import split

case = split("blind")
FRONT, ENCODE, DECODE = "audio.frontend", "audio.encode", "audio.decode"
PLAIN = "plain torch, seventh author"
HEAR = [(r"model\.model\.encoder", ENCODE), (r"model\.model\.decoder|model\.(proj_out|lm_head)", DECODE)]


class Greedy(nn.Module):
    """Words one by one after a prompt of special tokens, with the cache of the library."""

    def __init__(self, model: nn.Module, prompt: tuple[int, ...] = (1,), steps: int = 5) -> None:
        super().__init__()
        self.model, self.steps = model, steps
        self.register_buffer("prompt", torch.tensor([prompt]))

    def forward(self, features: torch.Tensor, **more: Any) -> torch.Tensor:
        token = self.prompt.expand(features.shape[0], -1)
        heard, past, out = self.model.model.encoder(features, **more), None, []
        for _ in range(self.steps):
            result = self.model(
                encoder_outputs=heard, decoder_input_ids=token, past_key_values=past, use_cache=True
            )
            past = result.past_key_values
            out.append(result.logits[:, -1])
            token = out[-1].argmax(-1, keepdim=True)
        return torch.stack(out, 1)


def whisper(d: int, enc: int, dec: int, heads: int, mels: int, places: int) -> nn.Module:
    import transformers as t

    config = t.WhisperConfig(
        vocab_size=V, num_mel_bins=mels, d_model=d, encoder_layers=enc, decoder_layers=dec,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * d, decoder_ffn_dim=4 * d,
        max_source_positions=places, max_target_positions=96, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return t.WhisperForConditionalGeneration(config).eval()


# Of transformers.
@case("audio.seventh_tiny_of_thirty_seconds", "audio", (ENCODE, DECODE), kv="dynamic", spans=HEAR, family="whisper")
def _() -> Any:
    return Greedy(whisper(384, 4, 4, 6, 80, 1500), (1, 7, 9, 11), 6), (torch.randn(1, 80, 3000),)


@case("audio.seventh_turbo", "audio", (ENCODE, DECODE), kv="dynamic", spans=HEAR, family="whisper")
def _() -> Any:
    return Greedy(whisper(256, 8, 2, 8, 128, 200), (1, 5, 8), 8), (torch.randn(8, 128, 400),)


WAVE = dict(
    vocab_size=32, hidden_size=256, num_hidden_layers=6, num_attention_heads=8, intermediate_size=1024,
    conv_dim=(128,) * 7, num_conv_pos_embeddings=64, num_conv_pos_embedding_groups=8,
)  # fmt: skip


def wave_spans(path: str, *heads: str) -> list[tuple[str, str]]:
    return [
        (rf"model\.{path}feature_extractor", FRONT), (rf"model\.{path}(feature_projection|encoder|adapter)", ENCODE),
        *((rf"model\.{head}", ENCODE) for head in heads),
    ]  # fmt: skip


@case("audio.seventh_large_letters", "audio", (FRONT, ENCODE), spans=wave_spans(r"wav2vec2\.", "lm_head"),
      family="wav2vec2")  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Wav2Vec2Config(**WAVE, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
    mask = torch.ones(3, 16000, dtype=torch.long)
    mask[1, 12000:], mask[2, 9000:] = 0, 0
    return Out(t.Wav2Vec2ForCTC(config), "logits"), (torch.randn(3, 16000) * mask,), dict(attention_mask=mask)


@case("audio.seventh_feelings", "audio", (FRONT, ENCODE), spans=wave_spans(r"hubert\.", "projector", "classifier"),
      family="hubert")  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.HubertConfig(
        **dict(WAVE, num_hidden_layers=4), use_weighted_layer_sum=True, classifier_proj_size=96, num_labels=7
    )
    return Out(t.HubertForSequenceClassification(config), "logits"), (torch.randn(4, 12000),)


@case("audio.seventh_ten_seconds_of_spectrum", "audio", (ENCODE,), default=ENCODE, family="ast")
def _() -> Any:
    import transformers as t

    config = t.ASTConfig(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=6, intermediate_size=768, max_length=512,
        num_mel_bins=128, num_labels=50,
    )  # fmt: skip
    return Out(t.ASTForAudioClassification(config), "logits"), (torch.randn(2, 512, 128),)


@case("audio.seventh_speech_translated", "audio", (ENCODE, DECODE), kv="dynamic", spans=HEAR, family="speech_to_text")
def _() -> Any:
    import transformers as t

    config = t.Speech2TextConfig(
        vocab_size=V, d_model=256, encoder_layers=6, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=1024, decoder_ffn_dim=1024, conv_channels=256,
        max_source_positions=600, max_target_positions=64,
    )  # fmt: skip
    return Greedy(t.Speech2TextForConditionalGeneration(config).eval(), (2,), 5), (torch.randn(4, 300, 80),)


@case(
    "audio.seventh_wave_to_bart", "audio", (FRONT, ENCODE, DECODE), kv="dynamic", family="speech-encoder-decoder",
    spans=[*wave_spans(r"encoder\."), (r"model\.decoder", DECODE)],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    eye = t.Wav2Vec2Config(**dict(WAVE, num_hidden_layers=4), add_adapter=True, num_adapter_layers=2)
    text = t.BartConfig(
        vocab_size=V, d_model=256, decoder_layers=3, decoder_attention_heads=8, decoder_ffn_dim=1024,
        encoder_attention_heads=8, max_position_embeddings=64, add_cross_attention=True, is_decoder=True,
    )  # fmt: skip
    model = t.SpeechEncoderDecoderModel(encoder=t.Wav2Vec2Model(eye), decoder=t.BartForCausalLM(text)).eval()
    model.generation_config.decoder_start_token_id = 2
    return Generate(model, 5), (torch.randn(2, 16000),)


@case("audio.seventh_words_known_steps", "audio", TRAIN, mode="train", family="wav2vec2")
def _() -> Any:
    import transformers as t

    config = t.Wav2Vec2Config(
        **dict(WAVE, num_hidden_layers=2, conv_dim=(64,) * 7), num_labels=12, apply_spec_augment=False, layerdrop=0.0,
        classifier_proj_size=64,
    )  # fmt: skip
    model = t.Wav2Vec2ForSequenceClassification(config)
    model.freeze_feature_encoder()
    radam = lambda p: torch.optim.RAdam([q for q in p if q.requires_grad], 1e-4)  # noqa: E731
    return TrainStep(model, lambda m, x, y: m(x, labels=y).loss, radam), (
        torch.randn(4, 6400), torch.randint(12, (4,)),
    )  # fmt: skip


# Plain ones.
class LogMel(nn.Module):
    """Logarithms of bands of mel."""

    def __init__(self, size: int = 400, hop: int = 160, bands: int = 64, rate: int = 16000) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        mel = torch.linspace(0, 2595 * math.log10(1 + rate / 2 / 700), bands + 2)
        hz = 700 * (10 ** (mel / 2595) - 1)
        bins = torch.linspace(0, rate / 2, size // 2 + 1)[:, None]
        left, right = (bins - hz[:-2]) / (hz[1:-1] - hz[:-2]), (hz[2:] - bins) / (hz[2:] - hz[1:-1])
        self.register_buffer("filters", torch.minimum(left, right).clamp(min=0))
        self.register_buffer("window", torch.hann_window(size))

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        spectrum = torch.stft(wave, self.size, self.hop, window=self.window, return_complex=True)
        return torch.log10((spectrum.abs() ** 2).transpose(1, 2) @ self.filters + 1e-10)


class ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu_(self.bn1(self.conv1(x)))
        return F.avg_pool2d(F.relu_(self.bn2(self.conv2(x))), 2)


class Cnn14(nn.Module):
    """The audio tagger of PANNs, narrower: log-mel, blocks of two convolutions, the maximum and mean over time."""

    def __init__(self, classes: int = 527) -> None:
        super().__init__()
        self.logmel_extractor, self.bn0 = LogMel(), nn.BatchNorm2d(64)
        widths = (1, 16, 32, 64, 128, 256)
        self.conv_blocks = nn.ModuleList(ConvBlock(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.fc1, self.fc_audioset = nn.Linear(256, 256), nn.Linear(256, classes)

    def forward(self, wave: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.logmel_extractor(wave)[:, None]
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        with phase(ENCODE):
            for block in self.conv_blocks:
                x = block(x)
            x = x.mean(3)
            x = F.relu(self.fc1(x.max(2).values + x.mean(2)))
            return torch.sigmoid(self.fc_audioset(x)), x


@case("audio.seventh_cnn14", "audio", (FRONT, ENCODE), spans=[("logmel_extractor|bn0", FRONT)], source=PLAIN)
def _() -> Any:
    return Cnn14(), (torch.randn(4, 32000) * 0.1,)


class DeepSpeech(nn.Module):
    """Deep Speech 2: convolutions over the spectrum, GRUs of both directions with norms between them, CTC."""

    class BatchRNN(nn.Module):
        def __init__(self, inputs: int, hidden: int, first: bool) -> None:
            super().__init__()
            self.norm = None if first else nn.BatchNorm1d(inputs)
            self.rnn, self.hidden = nn.GRU(inputs, hidden, bidirectional=True, bias=True), hidden

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.norm is not None:
                x = self.norm(x.flatten(0, 1)).view_as(x)
            y = self.rnn(x)[0]
            return y[..., : self.hidden] + y[..., self.hidden :]

    def __init__(self, bins: int = 81, hidden: int = 192, labels: int = 29) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 32, (41, 11), (2, 2), (20, 5)), nn.BatchNorm2d(32), nn.Hardtanh(0, 20),
            nn.Conv2d(32, 32, (21, 11), (2, 1), (10, 5)), nn.BatchNorm2d(32), nn.Hardtanh(0, 20),
        )  # fmt: skip
        width = 32 * ((bins + 3) // 4)
        self.rnns = nn.ModuleList(self.BatchRNN(width if i == 0 else hidden, hidden, i == 0) for i in range(3))
        self.fc = nn.Sequential(nn.BatchNorm1d(hidden), nn.Linear(hidden, labels, bias=False))

    def forward(self, spectrum: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            x = self.conv(spectrum)
        with phase(ENCODE):
            x = x.flatten(1, 2).permute(2, 0, 1).contiguous()
            for rnn in self.rnns:
                x = rnn(x)
            return self.fc(x.flatten(0, 1)).view(x.shape[0], x.shape[1], -1).log_softmax(-1)


@case("audio.seventh_deep_speech", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return DeepSpeech(), (torch.randn(4, 1, 81, 100),)


class SpeechGate(nn.Module):
    """Is somebody speaking? Chunks of a stream: a spectrum by a fixed convolution, convolutions, an LSTM's state."""

    def __init__(self, size: int = 256, hop: int = 64, d: int = 64) -> None:
        super().__init__()
        n = torch.arange(size)
        angle = 2 * math.pi * torch.arange(size // 2 + 1)[:, None] * n / size
        basis = torch.cat([angle.cos(), -angle.sin()]) * torch.hann_window(size)
        self.register_buffer("forward_basis", basis[:, None])
        self.hop, self.half = hop, size // 2 + 1
        self.encoder = nn.Sequential(
            nn.Conv1d(self.half, 128, 3, 1, 1), nn.ReLU(), nn.Conv1d(128, d, 3, 2, 1), nn.ReLU(),
            nn.Conv1d(d, d, 3, 2, 1), nn.ReLU(), nn.Conv1d(d, 128, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip
        self.rnn, self.decoder = nn.LSTMCell(128, 128), nn.Sequential(nn.ReLU(), nn.Conv1d(128, 1, 1), nn.Sigmoid())

    def forward(self, wave: torch.Tensor, chunk: int = 512) -> torch.Tensor:
        h = c = torch.zeros(wave.shape[0], 128, device=wave.device)
        before, out = wave.new_zeros(wave.shape[0], 64), []
        for part in wave.split(chunk, 1):
            with phase(FRONT):
                x = F.pad(torch.cat([before, part], 1)[:, None], (0, 64), "reflect")
                real, imaginary = F.conv1d(x, self.forward_basis, stride=self.hop).split(self.half, 1)
                x = torch.sqrt(real**2 + imaginary**2)
            with phase(ENCODE):
                x = self.encoder(x)
                h, c = self.rnn(x[:, :, -1], (h, c))
                out.append(self.decoder(h[:, :, None])[:, 0, 0])
            before = part[:, -64:]
        return torch.stack(out, 1)


@case("audio.seventh_speech_gate", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return SpeechGate(), (torch.randn(4, 512 * 12),)


class Xa(nn.Module):
    """Windows of mel frames and their sines in, words out with caches that grow."""

    def __init__(self, n: int = 3000, d: int = 256, h: int = 8, k: int = 4, m: int = 80, t: int = 150) -> None:
        super().__init__()
        self.h = h
        self.a, self.b = nn.Conv1d(m, d, 3, padding=1), nn.Conv1d(d, d, 3, stride=2, padding=1)
        f = torch.arange(t)[:, None] * torch.exp(-math.log(10000) / (d // 2 - 1) * torch.arange(d // 2))
        self.register_buffer("c", torch.cat([f.sin(), f.cos()], 1))
        mk = lambda *s: nn.ModuleList(nn.Linear(*s) for _ in range(k))  # noqa: E731
        self.d, self.e, self.f, self.g = mk(d, 3 * d), mk(d, d), mk(d, 4 * d), mk(4 * d, d)
        self.i, self.j, self.l, self.m = mk(d, 3 * d), mk(d, d), mk(d, 4 * d), mk(4 * d, d)
        self.o, self.p, self.q = mk(d, d), mk(d, 2 * d), mk(d, d)
        self.r = nn.ModuleList(nn.LayerNorm(d) for _ in range(5 * k + 2))
        self.w, self.x = nn.Embedding(n, d), nn.Parameter(torch.randn(64, d) * 0.02)

    def y(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.h, -1)).transpose(1, 2)

    def forward(self, z: torch.Tensor, s: torch.Tensor, steps: int = 6) -> torch.Tensor:
        n, k = iter(self.r), len(self.d)
        with phase(ENCODE):
            z = F.gelu(self.b(F.gelu(self.a(z)))).transpose(1, 2)
            z = z + self.c[: z.shape[1]]
            for i in range(k):
                u, v, w = (self.y(t) for t in self.d[i](next(n)(z)).chunk(3, 2))
                z = z + self.e[i](F.scaled_dot_product_attention(u, v, w).transpose(1, 2).flatten(2))
                z = z + self.g[i](F.gelu(self.f[i](next(n)(z))))
            z = next(n)(z)
        rest = list(n)
        past: list[Any] = [None] * k
        far: list[Any] = [None] * k
        at, out = 0, []
        for _ in range(steps):
            with phase(DECODE):
                e = self.w(s) + self.x[at : at + s.shape[1]]
                for i in range(k):
                    u, v, w = (self.y(t) for t in self.i[i](rest[3 * i](e)).chunk(3, 2))
                    if past[i] is not None:
                        v, w = torch.cat([past[i][0], v], 2), torch.cat([past[i][1], w], 2)
                    past[i] = v, w
                    y = F.scaled_dot_product_attention(u, v, w, is_causal=u.shape[2] > 1)
                    e = e + self.j[i](y.transpose(1, 2).flatten(2))
                    if far[i] is None:
                        far[i] = [self.y(t) for t in self.p[i](z).chunk(2, 2)]
                    u = self.y(self.o[i](rest[3 * i + 1](e)))
                    e = e + self.q[i](F.scaled_dot_product_attention(u, *far[i]).transpose(1, 2).flatten(2))
                    e = e + self.m[i](F.gelu(self.l[i](rest[3 * i + 2](e))))
                y = rest[-1](e[:, -1]) @ self.w.weight.T
            at += s.shape[1]
            s = y.argmax(1, keepdim=True)
            out.append(y)
        return torch.stack(out, 1)


@case("audio.seventh_xa", "audio", (ENCODE, DECODE), source=PLAIN, kv="legacy")
def _() -> Any:
    return Xa(), (torch.randn(4, 80, 300), torch.tensor([[1, 7, 9]]).repeat(4, 1))


class Xb(nn.Module):
    """The raw wave through seven convolutions, a grouped one for places, twelve attentions, letters."""

    def __init__(self, c: int = 128, d: int = 192, h: int = 6, n: int = 6, v: int = 32) -> None:
        super().__init__()
        k, s = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
        self.a = nn.ModuleList(nn.Conv1d(c if i else 1, c, k[i], s[i], bias=False) for i in range(7))
        self.b, self.c, self.d = nn.GroupNorm(c, c), nn.LayerNorm(c), nn.Linear(c, d)
        self.e, self.f = nn.Conv1d(d, d, 32, padding=16, groups=8), nn.LayerNorm(d)
        self.g = nn.ModuleList(nn.TransformerEncoderLayer(d, h, 4 * d, 0.0, F.gelu, batch_first=True) for _ in range(n))
        self.h = nn.Linear(d, v)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-7).sqrt()
            x = x.unsqueeze(1)
            for i, a in enumerate(self.a):
                x = a(x)
                x = F.gelu(x if i else self.b(x))
        with phase(ENCODE):
            x = self.d(self.c(x.transpose(1, 2)))
            x = self.f(x + F.gelu(self.e(x.transpose(1, 2))[..., :-1]).transpose(1, 2))
            for g in self.g:
                x = g(x)
            return self.h(x).log_softmax(2)


@case("audio.seventh_xb", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Xb(), (torch.randn(3, 16000),)


class Xc(nn.Module):
    """Dilated convolutions over frames, mean and deviation over time, the vector of a voice."""

    def __init__(self, m: int = 24, d: int = 256) -> None:
        super().__init__()
        s = ((m, d, 5, 1), (d, d, 3, 2), (d, d, 3, 3), (d, d, 1, 1), (d, 768, 1, 1))
        self.a = nn.ModuleList(nn.Conv1d(i, o, k, dilation=q) for i, o, k, q in s)
        self.b = nn.ModuleList(nn.BatchNorm1d(o) for _, o, _, _ in s)
        self.c, self.d, self.e = nn.Linear(1536, 256), nn.BatchNorm1d(256), nn.Linear(256, 256)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        with phase(ENCODE):
            z = torch.cat([x, y]).transpose(1, 2)
            for a, b in zip(self.a, self.b, strict=True):
                z = b(F.relu(a(z)))
            z = torch.cat([z.mean(2), z.std(2)], 1)
            z = F.normalize(self.e(self.d(F.relu(self.c(z)))))
        u, v = z.chunk(2)
        return (u * v).sum(1), z


@case("audio.seventh_xc", "audio", (ENCODE,), source=PLAIN)
def _() -> Any:
    return Xc(), (torch.randn(8, 200, 24), torch.randn(8, 200, 24))


class M5(nn.Module):
    """The raw wave to one of the words, convolutions only."""

    def __init__(self, words: int = 35, c: int = 32) -> None:
        super().__init__()
        widths, kernels = (1, c, c, 2 * c, 2 * c), (80, 3, 3, 3)
        self.layers = nn.Sequential(*(
            nn.Sequential(nn.Conv1d(a, b, k, 16 if a == 1 else 1), nn.BatchNorm1d(b), nn.ReLU(), nn.MaxPool1d(4))
            for a, b, k in zip(widths, widths[1:], kernels, strict=False)
        ))  # fmt: skip
        self.fc = nn.Linear(2 * c, words)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layers(wave).mean(2)).log_softmax(1)


@case("audio.seventh_m5_steps", "audio", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    adamax = lambda p: torch.optim.Adamax(p, 2e-3, weight_decay=1e-4)  # noqa: E731
    return TrainStep(M5(), lambda m, x, y: F.nll_loss(m(x), y), adamax, steps=3), (
        torch.randn(32, 1, 8000), torch.randint(35, (32,)),
    )  # fmt: skip
