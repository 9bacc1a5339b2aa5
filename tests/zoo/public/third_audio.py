"""Speech and sound by a third author: other acoustic transformers, transducers, separation, voices, codecs."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, Out, ids
from ..registry import split
from .third_seq2seq import PLAIN, Guarded, w

case = split("public")
FRONT, ENCODE, DECODE = "audio.frontend", "audio.encode", "audio.decode"

# Families of transformers.
WAVE = dict(
    vocab_size=32, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
    conv_dim=(32,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip


@case(
    "audio.third_wav2vec2_conformer", "audio", (FRONT, ENCODE), family="wav2vec2_conformer",
    spans=[
        (r"model\.wav2vec2_conformer\.feature_extractor", FRONT),
        (r"model\.wav2vec2_conformer\.(feature_projection|encoder)|model\.lm_head", ENCODE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Wav2Vec2ConformerConfig(**WAVE, conv_depthwise_kernel_size=7, position_embeddings_type="relative")
    return Out(t.Wav2Vec2ConformerForCTC(config), "logits"), (torch.randn(1, 6400),)


@case("audio.third_w2v_bert", "audio", (ENCODE,), family="wav2vec2_bert",
      spans=[(r"model\.wav2vec2_bert|model\.lm_head", ENCODE)])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Wav2Vec2BertConfig(
        vocab_size=40, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
        feature_projection_input_dim=160, conv_depthwise_kernel_size=7, left_max_position_embeddings=16,
        right_max_position_embeddings=4,
    )  # fmt: skip
    x = dict(input_features=torch.randn(2, 40, 160), attention_mask=torch.ones(2, 40, dtype=torch.long))
    return Out(t.Wav2Vec2BertForCTC(config), "logits"), (), x


@case(
    "audio.third_unispeech_voice", "audio", (FRONT, ENCODE), family="unispeech_sat",
    spans=[
        (r"model\.unispeech_sat\.feature_extractor", FRONT),
        (r"model\.unispeech_sat\.(feature_projection|encoder)", ENCODE),
        (r"model\.(projector|tdnn\.\d+|feature_extractor|classifier)", ENCODE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.UniSpeechSatConfig(
        **WAVE, tdnn_dim=(64, 64, 96), tdnn_kernel=(5, 3, 1), tdnn_dilation=(1, 2, 1), xvector_output_dim=48
    )
    return Out(t.UniSpeechSatForXVector(config), "embeddings"), (torch.randn(2, 8000),)


@case(
    "audio.third_moonshine", "audio", (FRONT, ENCODE, DECODE), kv="dynamic", family="moonshine",
    spans=[
        (r"model\.model\.encoder\.(conv\d|groupnorm)", FRONT),
        (r"model\.model\.encoder\.(layers\.\d+|layer_norm|rotary_emb)", ENCODE),
        (r"model\.(model\.decoder|proj_out)", DECODE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.MoonshineConfig(
        vocab_size=V, hidden_size=96, intermediate_size=192, encoder_num_hidden_layers=2, decoder_num_hidden_layers=2,
        encoder_num_attention_heads=4, decoder_num_attention_heads=4, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return Generate(t.MoonshineForConditionalGeneration(config).eval(), 5), (torch.randn(1, 9000),)


@case(
    "audio.third_parakeet", "audio", (FRONT, ENCODE), family="parakeet",
    spans=[
        (r"model\.encoder\.subsampling", FRONT),
        (r"model\.encoder\.(encode_positions|layers\.\d+)|model\.ctc_head", ENCODE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    side = dict(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, conv_kernel_size=9,
        subsampling_conv_channels=16, num_mel_bins=40, max_position_embeddings=200,
    )  # fmt: skip
    model = t.ParakeetForCTC(t.ParakeetCTCConfig(vocab_size=65, pad_token_id=64, encoder_config=side))
    return Out(model, "logits"), (torch.randn(1, 120, 40),)


@case("audio.third_dac_round_trip", "audio", (ENCODE,), codec=True, family="dac", spans=[(r"model\.encoder", ENCODE)])
def _() -> Any:
    import transformers as t

    config = t.DacConfig(
        encoder_hidden_size=8, downsampling_ratios=[2, 4, 4], decoder_hidden_size=64, n_codebooks=3, codebook_size=64,
        codebook_dim=8,
    )  # fmt: skip
    return Out(t.DacModel(config), "audio_values", "audio_codes"), (torch.randn(1, 1, 2048),)


@case("audio.third_vits", "audio", (), tts=True, family="vits")
def _() -> Any:
    import transformers as t

    config = t.VitsConfig(
        vocab_size=40, hidden_size=48, num_hidden_layers=2, num_attention_heads=2, ffn_dim=96, flow_size=48,
        spectrogram_bins=65, upsample_initial_channel=64, upsample_rates=[4, 4], upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3, 5], resblock_dilation_sizes=[[1, 3], [1, 3]], depth_separable_num_layers=2,
        duration_predictor_num_flows=2, duration_predictor_filter_channels=32, prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=2, posterior_encoder_num_wavenet_layers=2,
    )  # fmt: skip
    return Out(t.VitsModel(config), "waveform"), (ids(1, 11, 40),)


@case(
    "audio.third_hubert_bert", "audio", (FRONT, ENCODE, DECODE), kv="dynamic", family="speech-encoder-decoder",
    spans=[
        (r"model\.encoder\.feature_extractor", FRONT), (r"model\.encoder\.(feature_projection|encoder)", ENCODE),
        (r"model\.decoder", DECODE),
    ],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    text = t.BertConfig(
        vocab_size=V, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
        is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    model = t.SpeechEncoderDecoderModel(
        encoder=t.HubertModel(t.HubertConfig(**WAVE)), decoder=t.BertLMHeadModel(text)
    ).eval()
    model.generation_config.decoder_start_token_id = 1
    return Generate(model, 4), (torch.randn(1, 6400),)


# Plain models.
class Mel(nn.Module):
    """Logarithms of mel bands: torch.stft, triangles between equal steps of mel."""

    def __init__(self, size: int = 256, hop: int = 128, bands: int = 40, rate: int = 8000) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        top = 2595 * math.log10(1 + rate / 2 / 700)
        at = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
        f = torch.linspace(0, rate / 2, size // 2 + 1)[:, None]
        up, down = (f - at[:-2]) / (at[1:-1] - at[:-2]), (at[2:] - f) / (at[2:] - at[1:-1])
        self.register_buffer("bank", torch.minimum(up, down).clamp(min=0))
        self.register_buffer("shape", torch.hann_window(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = torch.stft(x, self.size, self.hop, window=self.shape, return_complex=True).abs().square()
        return (s.transpose(1, 2) @ self.bank).clamp(min=1e-8).log()


class Transducer(nn.Module):
    """RNN-T: stacked mel frames, LSTMs, one greedy symbol a frame; a blank leaves the state as it was."""

    def __init__(self, v: int = 40, d: int = 48) -> None:
        super().__init__()
        self.mel, self.heard, self.down = Mel(), nn.LSTM(160, d, 2, batch_first=True), nn.Linear(d, d)
        self.said, self.cell, self.up = nn.Embedding(v, d), nn.LSTMCell(d, d), nn.Linear(d, d)
        self.joint = nn.Linear(d, v)

    def forward(self, x: torch.Tensor) -> Any:
        with phase(FRONT):
            m = self.mel(x)
            m = m[:, : m.shape[1] // 4 * 4].unflatten(1, (-1, 4)).flatten(2)
            m = (m - m.mean(1, keepdim=True)) / (m.std(1, keepdim=True) + 1e-5)
        with phase(ENCODE):
            m = self.down(self.heard(m)[0])
        b = x.shape[0]
        token = torch.zeros(b, dtype=torch.long, device=x.device)
        with phase(DECODE):
            h, c = self.cell(self.said(token))
        words, scores = [], []
        for t in range(m.shape[1]):
            with phase(DECODE):
                s = self.joint(torch.tanh(m[:, t] + self.up(h))).log_softmax(1)
            new = s.argmax(1)
            with phase(DECODE):
                h2, c2 = self.cell(self.said(new), (h, c))
                keep = (new == 0)[:, None]
                h, c = torch.where(keep, h, h2), torch.where(keep, c, c2)
            words.append(new)
            scores.append(s)
        return torch.stack(words, 1), torch.stack(scores, 1)


@case("audio.third_transducer", "audio", (FRONT, ENCODE, DECODE), source=PLAIN)
def _() -> Any:
    return Transducer(), (torch.randn(2, 6000),)


class Spell(nn.Module):
    """Listen, attend and spell: a pyramid of LSTMs halves the frames, a cell attends to what is left."""

    def __init__(self, mels: int = 40, v: int = 60, d: int = 40) -> None:
        super().__init__()
        self.a = nn.ModuleList(
            nn.LSTM(n, d, batch_first=True, bidirectional=True) for n in (mels, 4 * d, 4 * d)
        )  # fmt: skip
        self.b, self.c, self.d, self.e = nn.Embedding(v, d), nn.LSTMCell(3 * d, d), nn.Linear(2 * d, d), nn.Linear(d, d)
        self.f, self.g = nn.Conv1d(1, d, 5, padding=2), nn.Linear(d, 1)
        self.h = nn.Linear(3 * d, v)

    def forward(self, x: torch.Tensor, steps: int = 6) -> torch.Tensor:
        with phase(ENCODE):
            for i, r in enumerate(self.a):
                if i:
                    x = x[:, : x.shape[1] // 2 * 2].reshape(x.shape[0], -1, 2 * x.shape[2])
                x = r(x)[0]
        b, t, _ = x.shape
        token, look = torch.ones(b, dtype=torch.long, device=x.device), torch.full((b, t), 1 / t, device=x.device)
        h = c = torch.zeros(b, self.g.in_features, device=x.device)
        ctx, out = torch.zeros_like(x[:, 0]), []
        for _ in range(steps):
            with phase(DECODE):
                h, c = self.c(torch.cat([self.b(token), ctx], 1), (h, c))
                near = self.f(look[:, None]).transpose(1, 2)
                look = self.g(torch.tanh(self.d(x) + self.e(h)[:, None] + near)).squeeze(2).softmax(1)
                ctx = torch.bmm(look[:, None], x)[:, 0]
                s = self.h(torch.cat([h, ctx], 1))
            token = s.argmax(1)
            out.append(s)
        return torch.stack(out, 1)


@case("audio.third_pyramid_speller", "audio", (ENCODE, DECODE), source=PLAIN)
def _() -> Any:
    return Spell(), (torch.randn(2, 64, 40),)


class Apart(nn.Module):
    """Two speakers apart: a learned basis, masks by dilated depthwise convolutions, the basis transposed."""

    def __init__(self, n: int = 48, d: int = 32, who: int = 2) -> None:
        super().__init__()
        self.into, self.back, self.who = nn.Conv1d(1, n, 16, 8, bias=False), nn.ConvTranspose1d(n, 1, 16, 8), who
        self.first, self.mask = nn.Conv1d(n, d, 1), nn.Conv1d(d, who * n, 1)
        self.rows = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(d, 2 * d, 1), nn.PReLU(), nn.GroupNorm(1, 2 * d),
                nn.Conv1d(2 * d, 2 * d, 3, padding=2**i, dilation=2**i, groups=2 * d), nn.PReLU(),
                nn.GroupNorm(1, 2 * d), nn.Conv1d(2 * d, d, 1),
            )
            for _ in range(2) for i in range(4)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            y = F.relu(self.into(x[:, None]))
        with phase(ENCODE):
            z = self.first(F.group_norm(y, 1))
            for row in self.rows:
                z = z + row(z)
            m = torch.sigmoid(self.mask(z)).unflatten(1, (self.who, -1))
        y = m * y[:, None]
        return self.back(y.flatten(0, 1)).unflatten(0, (-1, self.who)).squeeze(2)


@case("audio.third_speakers_apart", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Apart(), (torch.randn(1, 2400),)


class Voice(nn.Module):
    """ECAPA: convolutions in scales with squeezed gates, all layers together, attentive mean and deviation."""

    def __init__(self, d: int = 48, s: int = 4) -> None:
        super().__init__()
        self.x0, self.x1, self.s = Mel(bands=32), nn.Conv1d(32, d, 5, padding=2), s
        self.x2 = nn.ModuleList(nn.Conv1d(d, d, 1) for _ in range(6))
        self.x3 = nn.ModuleList(
            nn.ModuleList(nn.Conv1d(d // s, d // s, 3, padding=k, dilation=k) for _ in range(s - 1)) for k in (2, 3, 4)
        )
        self.x4 = nn.ModuleList(nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.Linear(16, d)) for _ in range(3))
        self.x5 = nn.Conv1d(3 * d, 3 * d, 1)
        self.x6 = nn.Sequential(nn.Conv1d(9 * d, 24, 1), nn.Tanh(), nn.Conv1d(24, 3 * d, 1))
        self.x7, self.x8 = nn.BatchNorm1d(6 * d), nn.Linear(6 * d, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            x = self.x0(x).transpose(1, 2)
            x = x - x.mean(2, keepdim=True)
        with phase(ENCODE):
            x = F.relu(self.x1(x))
            every = []
            for i, (scales, gate) in enumerate(zip(self.x3, self.x4, strict=True)):
                y = F.relu(self.x2[2 * i](x))
                part = y.chunk(self.s, 1)
                done = [part[0]]
                for c, p in zip(scales, part[1:], strict=True):
                    done.append(F.relu(c(p if len(done) == 1 else p + done[-1])))
                y = F.relu(self.x2[2 * i + 1](torch.cat(done, 1)))
                x = x + y * torch.sigmoid(gate(y.mean(2)))[:, :, None]
                every.append(x)
            h = F.relu(self.x5(torch.cat(every, 1)))
            m, v = h.mean(2, keepdim=True), h.var(2, keepdim=True).clamp(min=1e-6).sqrt()
            a = self.x6(torch.cat([h, m.expand_as(h), v.expand_as(h)], 1)).softmax(2)
            m = (a * h).sum(2)
            v = ((a * h * h).sum(2) - m * m).clamp(min=1e-6).sqrt()
            return F.normalize(self.x8(self.x7(torch.cat([m, v], 1))))


@case("audio.third_voice_scales", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Voice(), (torch.randn(2, 5000),)


class Separable(nn.Module):
    """Depthwise and pointwise convolutions over mel frames in residual groups, CTC logits; channels before time."""

    def __init__(self, mels: int = 64, d: int = 48, v: int = 30) -> None:
        super().__init__()
        self.head = nn.Conv1d(mels, d, 11, 2, 5)
        cell = lambda k: nn.ModuleList(  # noqa: E731
            nn.Sequential(nn.Conv1d(d, d, k, padding=k // 2, groups=d), nn.Conv1d(d, d, 1), nn.BatchNorm1d(d))
            for _ in range(3)
        )
        self.body = nn.ModuleList(cell(k) for k in (7, 9, 11))
        self.side = nn.ModuleList(nn.Conv1d(d, d, 1) for _ in range(3))
        self.tail, self.out = nn.Conv1d(d, d, 13, padding=12, dilation=2), nn.Conv1d(d, v, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(ENCODE):
            x = F.relu(self.head(x))
            for cells, side in zip(self.body, self.side, strict=True):
                y = x
                for i, c in enumerate(cells):
                    y = c(y)
                    y = F.relu(y if i < 2 else y + side(x))
                x = y
            return self.out(F.relu(self.tail(x))).log_softmax(1).transpose(1, 2)


@case("audio.third_separable_ctc", "audio", (ENCODE,), source=PLAIN)
def _() -> Any:
    return Separable(), (torch.randn(2, 64, 100),)


class Sinc(nn.Module):
    """Band-pass filters made of two learned frequencies each, over the raw wave; transformer blocks; phones."""

    def __init__(self, n: int = 32, size: int = 65, d: int = 48) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.linspace(0.005, 0.35, n))
        self.wide = nn.Parameter(torch.full((n,), 0.04))
        self.register_buffer("t", torch.arange(-(size // 2), size // 2 + 1).float())
        self.register_buffer("soft", torch.hamming_window(size, periodic=False))
        self.c, self.n = nn.Conv1d(n, d, 8, 4), nn.GroupNorm(4, d)
        self.b = nn.ModuleList(nn.TransformerEncoderLayer(d, 4, 96, 0.0, "gelu", batch_first=True) for _ in range(2))
        self.o = nn.Linear(d, 42)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            low = self.low.abs()
            high = (low + self.wide.abs()).clamp(max=0.5)
            f = 2 * high[:, None] * torch.special.sinc(2 * high[:, None] * self.t)
            f = f - 2 * low[:, None] * torch.special.sinc(2 * low[:, None] * self.t)
            x = F.conv1d(x[:, None], (f * self.soft)[:, None], stride=16).abs()
            x = F.leaky_relu(self.n(self.c(torch.log1p(x))))
        with phase(ENCODE):
            x = x.transpose(1, 2)
            for b in self.b:
                x = b(x)
            return self.o(x).log_softmax(-1)


@case("audio.third_sinc_filters", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Sinc(), (torch.randn(2, 4000),)


class Hybrid(nn.Module):
    """Conformer blocks with shifted relative scores; CTC scores and an attention decoder that is given its words."""

    def __init__(self, mels: int = 40, d: int = 48, n: int = 2, h: int = 4, v: int = 300) -> None:
        super().__init__()
        self.h, self.n, self.d = h, n, d
        self.p1, self.p2, self.p3 = nn.Conv2d(1, 12, 3, 2), nn.Conv2d(12, 12, 3, 2), nn.Linear(12 * 9, d)
        self.q1, self.q2, self.q3 = w(n, 4, d, d, scale=d**-0.5), w(n, d, d, scale=d**-0.5), w(n, 2, h, d // h)
        self.r1, self.r2 = w(n, 2, d, 2 * d), w(n, 2, 2 * d, d)
        self.s1, self.s2, self.s3 = w(n, d, 2 * d), w(n, d, 1, 7, scale=0.3), w(n, d, d)
        self.t1, self.t2 = nn.Embedding(v, d), nn.Linear(d, 60)
        self.t3, self.t4 = w(n, 8, d, d, scale=d**-0.5), nn.ModuleList(nn.Linear(d, d) for _ in range(n))
        self.t5 = nn.Linear(d, v)

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.h, -1)).transpose(-3, -2)

    def relative(self, x: torch.Tensor, i: int) -> torch.Tensor:
        t = x.shape[1]
        far = torch.arange(t - 1, -t, -1, device=x.device)[:, None] * torch.exp(
            torch.arange(0, self.d, 2, device=x.device) * (-math.log(1e4) / self.d)
        )
        r = self.cut(torch.cat([far.sin(), far.cos()], 1) @ self.q2[i])
        q, k, v = (self.cut(x @ self.q1[i, j]) for j in range(3))
        a = (q + self.q3[i, 0][:, None]) @ k.mT
        b = (q + self.q3[i, 1][:, None]) @ r.mT
        z = F.pad(b, (1, 0)).view(b.shape[0], self.h, 2 * t, t)[:, :, 1:].reshape(b.shape)[..., :t]
        a = ((a + z) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return a.transpose(1, 2).flatten(2) @ self.q1[i, 3]

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        norm = lambda z: F.layer_norm(z, z.shape[-1:])  # noqa: E731
        with phase(FRONT):
            x = F.relu(self.p2(F.relu(self.p1(x[:, None]))))
        with phase(ENCODE):
            x = self.p3(x.transpose(1, 2).flatten(2))
            for i in range(self.n):
                x = x + F.silu(norm(x) @ self.r1[i, 0]) @ self.r2[i, 0] / 2
                x = x + self.relative(norm(x), i)
                z = F.glu(norm(x) @ self.s1[i], -1).transpose(1, 2)
                z = F.conv1d(z, self.s2[i], padding=3, groups=self.d).transpose(1, 2)
                x = x + F.silu(norm(z)) @ self.s3[i]
                x = norm(x + F.silu(norm(x) @ self.r1[i, 1]) @ self.r2[i, 1] / 2)
            ctc = self.t2(x).log_softmax(-1)
        with phase(DECODE):
            u = self.t1(y) * self.d**0.5
            for i in range(self.n):
                z, m = norm(u), self.t3[i]
                a = F.scaled_dot_product_attention(*(self.cut(z @ m[j]) for j in range(3)), is_causal=True)
                u = u + a.transpose(1, 2).flatten(2) @ m[3]
                a = F.scaled_dot_product_attention(self.cut(norm(u) @ m[4]), self.cut(x @ m[5]), self.cut(x @ m[6]))
                u = u + a.transpose(1, 2).flatten(2) @ m[7]
                u = u + F.gelu(self.t4[i](norm(u)))
            return ctc, self.t5(norm(u))


@case("audio.third_hybrid_conformer", "audio", (FRONT, ENCODE, DECODE), source=PLAIN)
def _() -> Any:
    return Hybrid(), (torch.randn(1, 100, 40), torch.randint(1, 300, (1, 12)))


class Chunks(nn.Module):
    """A stream: each piece of the wave is convolved and attends to itself and to the keys of the pieces before."""

    def __init__(self, d: int = 48, n: int = 2, piece: int = 1200) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(1, d, 40, 20), nn.Conv1d(d, d, 6, 3)
        self.c, self.e = (nn.ModuleList(nn.Linear(d, k * d) for _ in range(n)) for k in (3, 1))
        self.f = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 96), nn.SiLU(), nn.Linear(96, d)) for _ in range(n)
        )
        self.o, self.piece = nn.Linear(d, 32), piece

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        past: list[Any] = [None] * len(self.c)
        out = []
        for s in x.split(self.piece, 1):
            with phase(FRONT):
                y = F.gelu(self.b(F.gelu(self.a(s[:, None])))).transpose(1, 2)
            with phase(ENCODE):
                for i, (c, e, f) in enumerate(zip(self.c, self.e, self.f, strict=True)):
                    q, k, v = c(F.layer_norm(y, y.shape[-1:])).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
                    if past[i] is not None:
                        k, v = torch.cat([past[i][0], k], 2), torch.cat([past[i][1], v], 2)
                    past[i] = k[:, :, -40:], v[:, :, -40:]
                    y = y + e(((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
                    y = y + f(y)
                out.append(self.o(y).log_softmax(-1))
        return torch.cat(out, 1)


@case("audio.third_stream_of_chunks", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Chunks(), (torch.randn(1, 4800),)


class Events(nn.Module):
    """Sounds tagged: blocks of two convolutions over the picture of mel frames, mean of bands, both poolings."""

    def __init__(self, classes: int = 20) -> None:
        super().__init__()
        sizes = (1, 16, 32, 64)
        self.mel, self.norm = Mel(bands=48), nn.BatchNorm2d(48)
        self.net = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
                nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.AvgPool2d(2),
            )
            for a, b in zip(sizes, sizes[1:], strict=False)
        )  # fmt: skip
        self.mid, self.out = nn.Linear(64, 64), nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            x = self.norm(self.mel(x)[:, None].transpose(1, 3)).transpose(1, 3)
        with phase(ENCODE):
            for block in self.net:
                x = block(x)
            x = x.mean(3)
            return torch.sigmoid(self.out(F.relu(self.mid(x.amax(2) + x.mean(2)))))


@case("audio.third_sound_events", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Events(), (torch.randn(2, 8000),)


class Reader(nn.Module):
    """Letters become mel frames, two at a step, fed back (Tacotron); no phase is argued for."""

    def __init__(self, v: int = 50, d: int = 48, mels: int = 20) -> None:
        super().__init__()
        self.e, self.c = nn.Embedding(v, d), nn.Conv1d(d, d, 5, padding=2)
        self.r = nn.GRU(d, d // 2, batch_first=True, bidirectional=True)
        self.pre = nn.Sequential(nn.Linear(mels, d), nn.ReLU())
        self.cell, self.q = nn.GRUCell(2 * d, d), nn.Linear(d, d)
        self.out, self.post, self.mels = nn.Linear(2 * d, 2 * mels), nn.Conv1d(mels, mels, 5, padding=2), mels

    def forward(self, x: torch.Tensor, steps: int = 8) -> torch.Tensor:
        m = self.r(F.relu(self.c(self.e(x).transpose(1, 2))).transpose(1, 2))[0]
        last, h, ctx, out = m.new_zeros(len(x), self.mels), torch.zeros_like(m[:, 0]), torch.zeros_like(m[:, 0]), []
        for _ in range(steps):
            h = self.cell(torch.cat([self.pre(last), ctx], 1), h)
            a = torch.einsum("btd,bd->bt", m, self.q(h)).softmax(1)
            ctx = torch.einsum("bt,btd->bd", a, m)
            y = self.out(torch.cat([h, ctx], 1)).unflatten(1, (2, -1))
            last = y[:, 1]
            out.append(y)
        y = torch.cat(out, 1).transpose(1, 2)
        return y + self.post(y)


@case("audio.third_letters_to_frames", "audio", (), tts=True, source=PLAIN)
def _() -> Any:
    return Reader(), (torch.randint(1, 50, (2, 14)),)


# Training steps.
@case("audio.third_train_separable_ctc", "audio", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, y: torch.Tensor, n: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return F.ctc_loss(m(x).transpose(0, 1), y, n, k, zero_infinity=True)

    momentum = lambda p: torch.optim.SGD(p, 0.02, momentum=0.9)  # noqa: E731
    return Guarded(Separable(mels=32, d=32), loss, momentum, value=0.5), (
        torch.randn(2, 32, 60),
        torch.randint(1, 30, (2, 6)),
        torch.tensor([30, 26]),
        torch.tensor([6, 4]),
    )


class Future(nn.Module):
    """What comes after is told from what came before: the right frame among all of the batch (CPC)."""

    def __init__(self, d: int = 32, ahead: int = 3) -> None:
        super().__init__()
        self.f = nn.ModuleList(nn.Conv1d(a, d, k, s) for a, k, s in ((1, 20, 10), (d, 8, 4), (d, 4, 2)))
        self.g, self.w = nn.GRU(d, d, batch_first=True), nn.ModuleList(nn.Linear(d, d) for _ in range(ahead))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None]
        for f in self.f:
            x = F.relu(f(x))
        z = x.transpose(1, 2)
        c = self.g(z)[0]
        total = z.new_zeros(())
        for i, p in enumerate(self.w, 1):
            s = p(c[:, :-i]).flatten(0, 1) @ z[:, i:].flatten(0, 1).t()
            total = total + F.cross_entropy(s, torch.arange(len(s), device=s.device))
        return total / len(self.w)


@case("audio.third_train_future_frames", "audio", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    rms = lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.5, centered=True)  # noqa: E731
    return Guarded(Future(), lambda m, x: m(x), rms, slow=0.99), (torch.randn(3, 1600),)
