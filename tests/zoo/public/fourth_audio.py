"""Speech and sound by a fourth author: transducers, spellers, voices, separation, and speech models of transformers."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, Out, TrainStep, adam, ids
from ..registry import split

case = split("public")
FRONT, ENCODE, DECODE = "audio.frontend", "audio.encode", "audio.decode"
PLAIN = "plain torch, fourth author"


def wave(batch: int, length: int) -> torch.Tensor:
    """Sounds, float32 [batch, length]."""
    return torch.randn(batch, length) * 0.3


# Of transformers.
@case("audio.fourth_sew_d", "audio", (FRONT, ENCODE), spans=[
    (r"model\.sew_d\.feature_extractor", FRONT),
    (r"model\.sew_d\.(layer_norm|feature_projection|encoder)|model\.lm_head", ENCODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.SEWDConfig(
        vocab_size=32, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
        squeeze_factor=2, max_position_embeddings=128, position_buckets=32, conv_dim=(32, 48, 64),
        conv_stride=(5, 4, 4), conv_kernel=(10, 4, 4), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    return Out(t.SEWDForCTC(config), "logits"), (wave(1, 6400),)


@case("audio.fourth_wav2vec2_bert", "audio", (ENCODE,), spans=[
    (r"model\.wav2vec2_bert|model\.lm_head", ENCODE)
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Wav2Vec2BertConfig(
        vocab_size=40, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
        conv_depthwise_kernel_size=7, add_adapter=True, output_hidden_size=96,
    )  # fmt: skip
    return Out(t.Wav2Vec2BertForCTC(config), "logits"), (torch.randn(2, 60, 160),)


class Heard(nn.Module):
    """Greedy words after one pass of the speech encoder; the encoder runs once."""

    def __init__(self, model: nn.Module, steps: int = 4) -> None:
        super().__init__()
        self.model, self.steps = model, steps

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        seen = self.model.speech_encoder(features)
        token = torch.full((features.shape[0], 1), 3, device=features.device)
        past, out = None, []
        for _ in range(self.steps):
            r = self.model(encoder_outputs=seen, decoder_input_ids=token, past_key_values=past, use_cache=True)
            past = r.past_key_values
            out.append(r.logits[:, -1])
            token = out[-1].argmax(1, keepdim=True)
        return torch.stack(out, 1)


@case("audio.fourth_seamless", "audio", (ENCODE, DECODE), kv="dynamic", spans=[
    (r"model\.speech_encoder", ENCODE), (r"model\.text_decoder|model\.lm_head", DECODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.SeamlessM4TConfig(
        vocab_size=V, hidden_size=96, max_position_embeddings=64, encoder_layers=1, encoder_ffn_dim=96,
        encoder_attention_heads=4, decoder_layers=2, decoder_ffn_dim=192, decoder_attention_heads=4,
        speech_encoder_layers=2, speech_encoder_attention_heads=4, speech_encoder_intermediate_size=192,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, conv_depthwise_kernel_size=7,
        adaptor_kernel_size=4, adaptor_stride=4, max_source_positions=128,
    )  # fmt: skip
    return Heard(t.SeamlessM4TForSpeechToText(config).eval()), (torch.randn(1, 72, 160),)


@case("audio.fourth_wave_to_gpt", "audio", (FRONT, ENCODE, DECODE), kv="dynamic", family="speech-encoder-decoder",
      spans=[
          (r"model\.encoder\.feature_extractor", FRONT),
          (r"model\.encoder\.(feature_projection|encoder|adapter)", ENCODE), (r"model\.decoder", DECODE),
      ])  # fmt: skip
def _() -> Any:
    import transformers as t

    ear = t.Wav2Vec2Config(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, conv_dim=(32,) * 5,
        conv_stride=(5, 4, 4, 2, 2), conv_kernel=(10, 4, 4, 3, 2), feat_extract_norm="layer", conv_bias=True,
        do_stable_layer_norm=True, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    mouth = t.GPT2Config(vocab_size=V, n_embd=96, n_layer=2, n_head=4, n_positions=32, add_cross_attention=True)
    model = t.SpeechEncoderDecoderModel(encoder=t.Wav2Vec2Model(ear), decoder=t.GPT2LMHeadModel(mouth)).eval()
    model.generation_config.decoder_start_token_id, model.generation_config.pad_token_id = 1, 0
    return Generate(model, 5), (), dict(inputs=wave(1, 6000))


@case("audio.fourth_parakeet", "audio", (FRONT, ENCODE), spans=[
    (r"model\.encoder\.subsampling\.layers\.\d+", FRONT),
    (r"model\.encoder\.(subsampling\.linear|encode_positions|layers\.\d+)|model\.ctc_head", ENCODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.ParakeetCTCConfig(vocab_size=65, pad_token_id=64, encoder_config=dict(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, conv_kernel_size=5,
        subsampling_factor=4, subsampling_conv_channels=24, num_mel_bins=40, max_position_embeddings=128,
    ))  # fmt: skip
    return Out(t.ParakeetForCTC(config), "logits"), (torch.randn(2, 96, 40),)


@case("audio.fourth_dac", "audio", (ENCODE,), spans=[(r"model\.encoder", ENCODE)], codec=True)
def _() -> Any:
    import transformers as t

    config = t.DacConfig(
        encoder_hidden_size=8, downsampling_ratios=[2, 4, 4], decoder_hidden_size=64, n_codebooks=3, codebook_size=64,
        codebook_dim=4,
    )  # fmt: skip
    return Out(t.DacModel(config), "audio_values", "audio_codes"), (torch.randn(1, 1, 3200) * 0.3,)


@case("audio.fourth_voice_vectors", "audio", (FRONT, ENCODE), family="wav2vec2-xvector", default=ENCODE,
      spans=[(r"model\.wav2vec2\.feature_extractor", FRONT)])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Wav2Vec2Config(
        hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, conv_dim=(32,) * 4,
        conv_stride=(5, 4, 4, 2), conv_kernel=(10, 8, 4, 4), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, use_weighted_layer_sum=True, tdnn_dim=(64, 64, 96), tdnn_kernel=(5, 3, 1),
        tdnn_dilation=(1, 2, 1), xvector_output_dim=48, num_labels=10,
    )  # fmt: skip
    return Out(t.Wav2Vec2ForXVector(config), "embeddings", "logits"), (wave(2, 8000),)


# Plain ones.
class Relay(nn.Module):
    """A transducer: convolutions and LSTMs over mel frames, a predictor of letters, and what joins the two."""

    def __init__(self, mels: int = 40, d: int = 56, n: int = 80) -> None:
        super().__init__()
        self.m0, self.m1 = nn.Conv2d(1, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, 2, 1)
        self.m2, self.m3 = nn.Linear(12 * mels // 4, d), nn.LSTM(d, d, 2, batch_first=True)
        self.m4, self.m5 = nn.Embedding(n, d), nn.LSTMCell(d, d)
        self.m6, self.m7, self.m8 = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            x = F.relu(self.m1(F.relu(self.m0(x.unsqueeze(1)))))
        with phase(ENCODE):
            x = self.m2(x.transpose(1, 2).flatten(2))
            x = self.m3(x)[0]
        b, t, d = x.shape
        h, c = torch.zeros(b, d, device=x.device), torch.zeros(b, d, device=x.device)
        token, out = torch.zeros(b, dtype=torch.long, device=x.device), []
        for i in range(t):
            with phase(DECODE):
                h2, c2 = self.m5(self.m4(token), (h, c))
                s = self.m8(torch.tanh(self.m6(x[:, i]) + self.m7(h2)))
            best = s.argmax(1)
            said = best != 0
            token = torch.where(said, best, token)
            h, c = torch.where(said[:, None], h2, h), torch.where(said[:, None], c2, c)
            out.append(s)
        return torch.stack(out, 1)


@case("audio.fourth_relay", "audio", (FRONT, ENCODE, DECODE), source=PLAIN)
def _() -> Any:
    return Relay(), (torch.randn(2, 64, 40),)


class Pyramid(nn.Module):
    """Listen, attend and spell: LSTMs both ways over pairs of frames, then an LSTM that looks at what they heard."""

    def __init__(self, mels: int = 40, d: int = 40, n: int = 60) -> None:
        super().__init__()
        self.l = nn.ModuleList(
            nn.LSTM(i, d, batch_first=True, bidirectional=True) for i in (mels, 4 * d, 4 * d)
        )  # fmt: skip
        self.e, self.c, self.g = nn.Embedding(n, d), nn.LSTMCell(3 * d, 2 * d), nn.LSTMCell(2 * d, 2 * d)
        self.q, self.k, self.o = nn.Linear(2 * d, d), nn.Linear(2 * d, d), nn.Linear(4 * d, n)

    def forward(self, x: torch.Tensor, steps: int = 7) -> torch.Tensor:
        with phase(ENCODE):
            x = self.l[0](x)[0]
            for m in self.l[1:]:
                b, t, d = x.shape
                x = m(x.reshape(b, t // 2, 2 * d))[0]
        with phase(DECODE):
            keys = F.relu(self.k(x))
        zero = torch.zeros_like(x[:, 0])
        s1, s2, ctx = (zero, zero), (zero, zero), x[:, 0]
        token, out = torch.ones(x.shape[0], dtype=torch.long, device=x.device), []
        for _ in range(steps):
            with phase(DECODE):
                s1 = self.c(torch.cat([self.e(token), ctx], 1), s1)
                s2 = self.g(s1[0], s2)
                a = torch.einsum("btd,bd->bt", keys, F.relu(self.q(s2[0]))).softmax(1)
                ctx = torch.einsum("bt,btd->bd", a, x)
                y = self.o(torch.cat([s2[0], ctx], 1))
            token = y.argmax(1)
            out.append(y)
        return torch.stack(out, 1)


@case("audio.fourth_pyramid", "audio", (ENCODE, DECODE), source=PLAIN)
def _() -> Any:
    return Pyramid(), (torch.randn(2, 48, 40),)


class Res2(nn.Module):
    """A block of scaled dilated convolutions in groups, each adding to the next, with a channel gate."""

    def __init__(self, d: int, dilation: int, s: int = 4) -> None:
        super().__init__()
        self.a, self.z, self.n = nn.Conv1d(d, d, 1), nn.Conv1d(d, d, 1), s
        self.m = nn.ModuleList(
            nn.Conv1d(d // s, d // s, 3, dilation=dilation, padding=dilation) for _ in range(s - 1)
        )
        self.b = nn.ModuleList(nn.BatchNorm1d(d // s) for _ in range(s - 1))
        self.p, self.q = nn.BatchNorm1d(d), nn.BatchNorm1d(d)
        self.u, self.v = nn.Linear(d, d // 4), nn.Linear(d // 4, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = list(self.p(F.relu(self.a(x))).chunk(self.n, 1))
        for i, (m, b) in enumerate(zip(self.m, self.b, strict=True)):
            y[i + 1] = b(F.relu(m(y[i + 1] + (y[i] if i else 0))))
        z = self.q(F.relu(self.z(torch.cat(y, 1))))
        return x + z * torch.sigmoid(self.v(F.relu(self.u(z.mean(2)))))[..., None]


class Ecapa(nn.Module):
    """Voices: three such blocks, all their outputs together, attentive mean and deviation over time."""

    def __init__(self, mels: int = 40, d: int = 64) -> None:
        super().__init__()
        self.i, self.n = nn.Conv1d(mels, d, 5, padding=2), nn.BatchNorm1d(d)
        self.r, self.j = nn.ModuleList(Res2(d, k) for k in (2, 3, 4)), nn.Conv1d(3 * d, 3 * d, 1)
        self.s, self.t = nn.Conv1d(9 * d, 32, 1), nn.Conv1d(32, 3 * d, 1)
        self.w, self.f, self.c = nn.BatchNorm1d(6 * d), nn.Linear(6 * d, 48), nn.Parameter(torch.randn(20, 48))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(ENCODE):
            x = self.n(F.relu(self.i(x)))
            every = []
            for r in self.r:
                x = r(x)
                every.append(x)
            x = F.relu(self.j(torch.cat(every, 1)))
            t = x.shape[2]
            m, v = x.mean(2, keepdim=True), x.var(2, keepdim=True).clamp(min=1e-6).sqrt()
            a = torch.cat([x, m.expand(-1, -1, t), v.expand(-1, -1, t)], 1)
            a = self.t(torch.tanh(self.s(a))).softmax(2)
            mean = (a * x).sum(2)
            dev = ((a * x.square()).sum(2) - mean.square()).clamp(min=1e-6).sqrt()
            y = F.normalize(self.f(self.w(torch.cat([mean, dev], 1))))
            return F.linear(y, F.normalize(self.c))


@case("audio.fourth_ecapa", "audio", (ENCODE,), source=PLAIN)
def _() -> Any:
    return Ecapa(), (torch.randn(3, 40, 90),)


class Bands(nn.Module):
    """The first filters are differences of sinc functions with learned edges; then usual convolutions and layers."""

    def __init__(self, n: int = 32, k: int = 101, classes: int = 24) -> None:
        super().__init__()
        self.low, self.wide = nn.Parameter(torch.linspace(30, 3000, n)[:, None]), nn.Parameter(torch.full((n, 1), 90.0))
        t = torch.arange(-(k // 2), k // 2 + 1) / 16000
        self.register_buffer("t", t)
        self.register_buffer("h", torch.hamming_window(k, periodic=False))
        self.c = nn.ModuleList([nn.Conv1d(n, 32, 5), nn.Conv1d(32, 48, 5)])
        self.g = nn.ModuleList([nn.GroupNorm(1, n), nn.GroupNorm(1, 32), nn.GroupNorm(1, 48)])
        self.d = nn.ModuleList([nn.Linear(48 * 6, 96), nn.Linear(96, 96)])
        self.o = nn.Linear(96, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            a = self.low.abs()
            b = (a + self.wide.abs()).clamp(max=8000.0)
            band = 2 * b * torch.sinc(2 * b * self.t) - 2 * a * torch.sinc(2 * a * self.t)
            band = band / band.abs().amax(1, keepdim=True) * self.h
            x = F.conv1d(x.unsqueeze(1), band.unsqueeze(1), stride=4)
            x = F.leaky_relu(self.g[0](F.max_pool1d(x.abs(), 5)))
        with phase(ENCODE):
            for c, g in zip(self.c, self.g[1:], strict=True):
                x = F.leaky_relu(g(F.max_pool1d(c(x), 4)))
            x = F.adaptive_avg_pool1d(x, 6).flatten(1)
            for d in self.d:
                x = F.leaky_relu(d(x))
            return self.o(x).log_softmax(1)


@case("audio.fourth_bands", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Bands(), (wave(2, 3200),)


class Apart(nn.Module):
    """Two speakers apart: a learned basis, dilated depthwise convolutions that give masks, and the basis back."""

    def __init__(self, n: int = 48, k: int = 16, d: int = 64, speakers: int = 2) -> None:
        super().__init__()
        self.f, self.b = nn.Conv1d(1, n, k, k // 2, bias=False), nn.ConvTranspose1d(n, 1, k, k // 2, bias=False)
        self.i, self.o = nn.Conv1d(n, n, 1), nn.Conv1d(n, speakers * n, 1)
        self.p = nn.ModuleList(nn.Conv1d(n, d, 1) for _ in range(8))
        self.q = nn.ModuleList(
            nn.Conv1d(d, d, 3, padding=2 ** (i % 4), dilation=2 ** (i % 4), groups=d) for i in range(8)
        )
        self.r, self.s = (nn.ModuleList(nn.Conv1d(d, n, 1) for _ in range(8)) for _ in range(2))
        self.u, self.v = (nn.ModuleList(nn.GroupNorm(1, d) for _ in range(8)) for _ in range(2))
        self.a, self.z = nn.GroupNorm(1, n), nn.PReLU()
        self.n = n

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            e = F.relu(self.f(x.unsqueeze(1)))
        with phase(ENCODE):
            y, total = self.i(self.a(e)), 0
            for p, q, r, s, u, v in zip(self.p, self.q, self.r, self.s, self.u, self.v, strict=True):
                h = v(self.z(q(u(self.z(p(y))))))
                y, total = y + r(h), total + s(h)
            mask = torch.sigmoid(self.o(self.z(total))).unflatten(1, (-1, self.n))
        each = mask * e.unsqueeze(1)
        return self.b(each.flatten(0, 1)).view(x.shape[0], -1, x.shape[1])


@case("audio.fourth_apart", "audio", (FRONT, ENCODE), source=PLAIN, separation=True)
def _() -> Any:
    return Apart(), (wave(1, 3200),)


class Singing(nn.Module):
    """A voice out of a mix: magnitudes of the transform in the model, a U-Net over them, its mask."""

    def __init__(self, size: int = 254, d: int = 12) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("w", torch.hann_window(size))
        self.x0, self.x1, self.x2 = (nn.Conv2d(a, b, 5, 2, 2) for a, b in ((1, d), (d, 2 * d), (2 * d, 4 * d)))
        self.y0, self.y1, self.y2 = (
            nn.ConvTranspose2d(a, b, 5, 2, 2, 1) for a, b in ((4 * d, 2 * d), (4 * d, d), (2 * d, 1))
        )
        self.n0, self.n1, self.n2 = nn.BatchNorm2d(d), nn.BatchNorm2d(2 * d), nn.BatchNorm2d(4 * d)
        self.n3, self.n4 = nn.BatchNorm2d(2 * d), nn.BatchNorm2d(d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            m = torch.stft(x, self.size, 64, window=self.w, return_complex=True).abs()[..., :48]
            y = torch.log1p(m).unsqueeze(1)
        with phase(ENCODE):
            a = F.leaky_relu(self.n0(self.x0(y)), 0.2)
            b = F.leaky_relu(self.n1(self.x1(a)), 0.2)
            c = F.leaky_relu(self.n2(self.x2(b)), 0.2)
            u = F.relu(self.n3(self.y0(c)))
            u = F.relu(self.n4(self.y1(torch.cat([u, b], 1))))
            return m * torch.sigmoid(self.y2(torch.cat([u, a], 1))).squeeze(1)


@case("audio.fourth_singing", "audio", (FRONT, ENCODE), source=PLAIN, separation=True)
def _() -> Any:
    return Singing(), (wave(2, 3200),)


# Training steps.
@case("audio.fourth_spectrogram_steps", "audio", TRAIN, mode="train", family="ast")
def _() -> Any:
    import transformers as t

    config = t.ASTConfig(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, max_length=64,
        num_mel_bins=48, num_labels=9, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    rmsprop = lambda p: torch.optim.RMSprop(p, 1e-4, momentum=0.5)  # noqa: E731
    return TrainStep(
        t.ASTForAudioClassification(config), lambda m, x, y: m(x, labels=y).loss, rmsprop
    ), (torch.randn(2, 64, 48), torch.randint(9, (2,)))  # fmt: skip


class Deep(nn.Module):
    """Letters from mel frames: two convolutions, GRUs both ways whose directions are added, letters or blank."""

    def __init__(self, mels: int = 40, d: int = 48, n: int = 29) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, (11, 9), (2, 2), (5, 4)), nn.Conv2d(8, 16, (11, 5), (1, 2), (5, 2))
        self.p, self.q = nn.BatchNorm2d(8), nn.BatchNorm2d(16)
        self.g = nn.ModuleList(
            nn.GRU(i, d, batch_first=True, bidirectional=True) for i in (16 * mels // 4, d)
        )  # fmt: skip
        self.n, self.o = nn.LayerNorm(d), nn.Linear(d, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.hardtanh(self.p(self.a(x.unsqueeze(1))), 0, 20)
        x = F.hardtanh(self.q(self.b(x)), 0, 20).transpose(1, 2).flatten(2)
        for g in self.g:
            x = g(x)[0].unflatten(2, (2, -1)).sum(2)
        return self.o(self.n(x)).log_softmax(-1)


@case("audio.fourth_letters_steps", "audio", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        s = m(x).transpose(0, 1)
        return F.ctc_loss(s, y, (s.shape[0],) * y.shape[0], (y.shape[1],) * y.shape[0])

    return TrainStep(Deep(), loss, adam, steps=1), (torch.randn(2, 32, 40), ids(2, 6, 29))
