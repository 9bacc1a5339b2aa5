"""Speech and sound by a sixth author: prompts before words, adapters, notes, rates that change, pitch, and voices."""

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
PLAIN = "plain torch, sixth author"


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


# Of transformers.
class Prompted(nn.Module):
    """Four tokens of language and task in one step, then a token at a time."""

    def __init__(self, model: nn.Module, steps: int = 6) -> None:
        super().__init__()
        self.model, self.steps = model, steps

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        heard = self.model.model.encoder(features)
        token = torch.tensor([[1, 11, 12, 13]], device=features.device).expand(features.shape[0], -1)
        past, out = None, []
        for _ in range(self.steps):
            r = self.model(encoder_outputs=heard, decoder_input_ids=token, past_key_values=past, use_cache=True)
            past = r.past_key_values
            token = r.logits[:, -1].argmax(-1, keepdim=True)
            out.append(r.logits[:, -1])
        return torch.stack(out, 1)


def whisper(layers: int = 4) -> Any:
    import transformers as t

    return t.WhisperConfig(
        vocab_size=V, num_mel_bins=80, d_model=256, encoder_layers=layers, decoder_layers=2,
        encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=1024, decoder_ffn_dim=1024,
        max_source_positions=400, max_target_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None, classifier_proj_size=64,
        num_labels=9, dropout=0.0,
    )  # fmt: skip


@case("audio.sixth_prompt_of_four", "audio", (ENCODE, DECODE), kv="dynamic", family="whisper", spans=[
    (r"model\.model\.encoder", ENCODE), (r"model\.(model\.decoder|proj_out)", DECODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    return Prompted(t.WhisperForConditionalGeneration(whisper())), (torch.randn(2, 80, 800),)


class Translated(nn.Module):
    """Speech in one tongue into words of another; the first token names it."""

    def __init__(self, steps: int = 4) -> None:
        import transformers as t

        super().__init__()
        config = t.SeamlessM4Tv2Config(
            vocab_size=V, t2u_vocab_size=200, char_vocab_size=200, hidden_size=128, max_position_embeddings=128,
            encoder_layers=1, encoder_ffn_dim=128, encoder_attention_heads=4, decoder_layers=3, decoder_ffn_dim=512,
            decoder_attention_heads=4, speech_encoder_layers=3, speech_encoder_attention_heads=4,
            speech_encoder_intermediate_size=512, conv_depthwise_kernel_size=15, adaptor_kernel_size=8,
            adaptor_stride=8, speech_encoder_chunk_size=50, speech_encoder_left_chunk_num=2,
        )  # fmt: skip
        self.model, self.steps = t.SeamlessM4Tv2ForSpeechToText(config), steps

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        heard = self.model.speech_encoder(x, attention_mask=mask)
        token = torch.tensor([[3, 40]], device=x.device).expand(x.shape[0], -1)
        past, out = None, []
        for _ in range(self.steps):
            r = self.model(encoder_outputs=heard, decoder_input_ids=token, past_key_values=past, use_cache=True)
            past = r.past_key_values
            token = r.logits[:, -1:].argmax(-1)
            out.append(r.logits[:, -1])
        return torch.stack(out, 1)


@case("audio.sixth_speech_to_other_tongue", "audio", (ENCODE, DECODE), kv="dynamic", family="seamless_m4t_v2", spans=[
    (r"model\.speech_encoder", ENCODE), (r"model\.(text_decoder|lm_head)", DECODE),
])  # fmt: skip
def _() -> Any:
    mask = torch.ones(2, 128, dtype=torch.long)
    mask[1, 100:] = 0
    return Translated(), (torch.randn(2, 128, 160), mask)


DEEP = dict(
    vocab_size=40, hidden_size=192, num_hidden_layers=4, num_attention_heads=6, intermediate_size=512,
    conv_dim=(96,) * 7, feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True,
    num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=8,
)  # fmt: skip


@case("audio.sixth_commands_padded", "audio", (FRONT, ENCODE), family="hubert", spans=[
    (r"model\.hubert\.feature_extractor", FRONT),
    (r"model\.(hubert\.(feature_projection|encoder)|projector|classifier)", ENCODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.HubertConfig(**DEEP, use_weighted_layer_sum=True, classifier_proj_size=64, num_labels=12)
    mask = torch.ones(4, 12000, dtype=torch.long)
    mask[1, 9000:], mask[3, 7000:] = 0, 0
    return Out(t.HubertForSequenceClassification(config), "logits"), (torch.randn(4, 12000) * mask, mask)


@case("audio.sixth_letters_by_adapters", "audio", (FRONT, ENCODE), family="wav2vec2", adapters=True, spans=[
    (r"model\.wav2vec2\.feature_extractor", FRONT),
    (r"model\.(wav2vec2\.(feature_projection|encoder)|lm_head)", ENCODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    return Out(t.Wav2Vec2ForCTC(t.Wav2Vec2Config(**DEEP, adapter_attn_dim=16)), "logits"), (torch.randn(2, 16000),)


@case("audio.sixth_sound_before_words", "audio", (ENCODE, DECODE), kv="dynamic", family="voxtral", spans=[
    (r"model\.(audio_tower|multi_modal_projector)", ENCODE), (r"model\.language_model", DECODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    ear = dict(
        num_mel_bins=128, hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
        max_source_positions=160,
    )  # fmt: skip
    text = dict(
        vocab_size=V, hidden_size=192, intermediate_size=512, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=128, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    config = t.VoxtralConfig(audio_config=ear, text_config=text, audio_token_id=V - 1)
    x = ids(1, 54, V - 10)
    x[:, 3:43] = V - 1
    given = dict(input_features=torch.randn(1, 128, 320), attention_mask=torch.ones_like(x))
    return Generate(t.VoxtralForConditionalGeneration(config).eval(), 5), (x,), given


class Notes(nn.Module):
    """Spectra of beats, with the composer before them, into tokens of notes."""

    def __init__(self, steps: int = 6) -> None:
        import transformers as t

        super().__init__()
        config = t.Pop2PianoConfig(
            vocab_size=800, composer_vocab_size=6, d_model=128, d_kv=32, d_ff=384, num_layers=3, num_decoder_layers=3,
            num_heads=4,
        )  # fmt: skip
        self.model, self.steps = t.Pop2PianoForConditionalGeneration(config), steps

    def forward(self, x: torch.Tensor, who: torch.Tensor) -> torch.Tensor:
        x = self.model.mel_conditioner(feature=x, index_value=who, embedding_offset=0)
        heard = self.model.encoder(inputs_embeds=x)
        token, past, out = torch.zeros(x.shape[0], 1, dtype=torch.long, device=x.device), None, []
        for _ in range(self.steps):
            r = self.model(encoder_outputs=heard, decoder_input_ids=token, past_key_values=past, use_cache=True)
            past = r.past_key_values
            token = r.logits.argmax(-1)
            out.append(r.logits)
        return torch.cat(out, 1)


@case("audio.sixth_songs_to_notes", "audio", (ENCODE, DECODE), kv="dynamic", family="pop2piano", spans=[
    (r"model\.encoder", ENCODE), (r"model\.(decoder|lm_head)", DECODE),
])  # fmt: skip
def _() -> Any:
    return Notes(), (torch.randn(4, 48, 128), torch.randint(6, (4,)))


@case("audio.sixth_many_tongues_heard", "audio", (FRONT, ENCODE, DECODE), kv="dynamic",
      family="speech-encoder-decoder", spans=[
          (r"model\.encoder\.feature_extractor", FRONT),
          (r"model\.encoder\.(feature_projection|encoder|adapter)", ENCODE), (r"model\.decoder", DECODE),
      ])  # fmt: skip
def _() -> Any:
    import transformers as t

    ear = t.Wav2Vec2Config(
        **dict(DEEP, num_hidden_layers=3), add_adapter=True, output_hidden_size=128, num_adapter_layers=2
    )
    mouth = t.MBartConfig(
        vocab_size=V, d_model=128, decoder_layers=3, decoder_attention_heads=4, decoder_ffn_dim=512,
        max_position_embeddings=64, is_decoder=True, add_cross_attention=True, is_encoder_decoder=False,
    )  # fmt: skip
    model = t.SpeechEncoderDecoderModel(encoder=t.Wav2Vec2Model(ear), decoder=t.MBartForCausalLM(mouth)).eval()
    model.generation_config.decoder_start_token_id, model.generation_config.pad_token_id = 2, 1
    return Generate(model, 5, num_beams=1), (), dict(inputs=torch.randn(2, 14000))


# Of timm.
class Tagger(nn.Module):
    """Log mel bands by a convolution with a Fourier basis, and a mobile net of pictures on top of them."""

    def __init__(self, size: int = 400, hop: int = 160, bands: int = 64) -> None:
        import timm

        super().__init__()
        t, f = torch.arange(size), torch.arange(size // 2 + 1)
        angle = 2 * math.pi * f[:, None] * t[None] / size
        window = torch.hann_window(size)
        self.register_buffer("basis", torch.cat([angle.cos() * window, -angle.sin() * window])[:, None])
        self.register_buffer("filters", torch.rand(bands, size // 2 + 1) / size)
        self.hop, self.norm = hop, nn.BatchNorm1d(bands)
        self.net = timm.create_model("mobilenetv3_small_075", in_chans=1, num_classes=50)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            re, im = F.conv1d(wave[:, None], self.basis, stride=self.hop).chunk(2, 1)
            x = self.norm((self.filters @ (re.square() + im.square())).clamp(min=1e-7).log10())
        with phase(ENCODE):
            return torch.sigmoid(self.net(x[:, None]))


@case("audio.sixth_tags_by_mobile_net", "audio", (FRONT, ENCODE), source="timm and torch", family="mobilenetv3")
def _() -> Any:
    return Tagger(), (torch.randn(4, 16000) * 0.1,)


class Clipped(nn.Module):
    """Steps of RAdam whose gradients are clipped by their norm before."""

    def __init__(self, model: nn.Module, steps: int = 1) -> None:
        super().__init__()
        self.model, self.steps = model.train(), steps

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        weights = list(self.model.parameters())
        optimizer, out = torch.optim.RAdam(weights, 5e-4, weight_decay=1e-4), []
        for _ in range(self.steps):
            with phase("train.optimizer"):
                optimizer.zero_grad()
            with phase("train.forward"):
                loss = F.cross_entropy(self.model(x).logits, y)
            with phase("train.backward"):
                loss.backward()
            with phase("train.optimizer"):
                nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
            out.append(loss.detach())
        return torch.stack(out)


@case("audio.sixth_train_tongues_told", "audio", TRAIN, mode="train", family="whisper")
def _() -> Any:
    import transformers as t

    config = whisper(2)
    config.max_source_positions, config.d_model, config.encoder_attention_heads = 100, 128, 4
    return Clipped(t.WhisperForAudioClassification(config)), (torch.randn(4, 80, 200), torch.randint(9, (4,)))


# Plain ones, whose names say nothing.
class Rates(nn.Module):
    """Blocks at the rate of frames, then at a half and at a quarter of it, joined again by learned weights; letters."""

    def __init__(self, mels: int = 80, d: int = 96, n: int = 500) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 24, 3, (1, 2), 1), nn.Conv2d(24, 48, 3, 2, 1)
        self.c, self.o = nn.Linear(48 * mels // 4, d), nn.Linear(d, n)
        self.d = nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(5))
        self.e = nn.ModuleList(nn.Linear(d, d) for _ in range(5))
        self.f = nn.ModuleList(nn.Sequential(nn.Linear(d, 3 * d), nn.SiLU(), nn.Linear(3 * d, d)) for _ in range(5))
        self.g = nn.ModuleList(nn.Conv1d(d, d, 9, padding=4, groups=d) for _ in range(5))
        self.h, self.i = nn.ModuleList(nn.Linear(d, 2 * d) for _ in range(5)), w(5, d)
        self.j, self.k = w(2, d), (1, 2, 4, 2, 1)

    def block(self, x: torch.Tensor, i: int) -> torch.Tensor:
        x = x + self.f[i](x) * 0.5
        q, k, v = (z.unflatten(2, (4, -1)).transpose(1, 2) for z in self.d[i](x).chunk(3, 2))
        x = x + self.e[i](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = F.glu(self.h[i](x), -1).transpose(1, 2)
        x = x + F.silu(self.g[i](y)).transpose(1, 2)
        return x * torch.rsqrt((x - self.i[i]).square().mean(-1, keepdim=True) + 1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            x = F.silu(self.b(F.silu(self.a(x[:, None]))))
        with phase(ENCODE):
            x = self.c(x.transpose(1, 2).flatten(2))
            for i, r in enumerate(self.k):
                y = x.unflatten(1, (-1, r)).mean(2) if r > 1 else x
                y = self.block(y, i)
                if r > 1:
                    y = y.repeat_interleave(r, 1)
                    y = torch.lerp(x, y, torch.sigmoid(self.j[i % 2]))
                x = y
            return self.o(x).log_softmax(-1)


@case("audio.sixth_rates_that_change", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Rates(), (torch.randn(4, 160, 80),)


class Again(nn.Module):
    """Five guesses for each utterance, weighed again by a decoder that reads each of them at once."""

    def __init__(self, mels: int = 80, d: int = 96, n: int = 300) -> None:
        super().__init__()
        self.m = nn.ModuleList(nn.Conv2d(i, 32, 3, 2) for i in (1, 32))
        self.k, self.p = nn.Linear(32 * 19, d), w(1, 100, d)
        self.l = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(d, 4, 256, 0.0, batch_first=True, norm_first=True), 3, enable_nested_tensor=False
        )
        self.q, self.c = nn.Embedding(n, d), nn.Linear(d, n)
        self.r = nn.TransformerDecoder(nn.TransformerDecoderLayer(d, 4, 256, 0.0, batch_first=True, norm_first=True), 2)
        self.z = nn.Linear(d, n)

    def forward(self, x: torch.Tensor, y: torch.Tensor, s: torch.Tensor) -> Any:
        b, k, t = y.shape
        with phase(FRONT):
            x = x[:, None]
            for m in self.m:
                x = F.relu(m(x))
        with phase(ENCODE):
            x = self.k(x.transpose(1, 2).flatten(2))
            x = self.l(x + self.p[:, : x.shape[1]])
            c = self.c(x).log_softmax(2)
        with phase(DECODE):
            y = y.flatten(0, 1)
            mask = torch.full((t - 1, t - 1), float("-inf"), device=y.device).triu(1)
            z = self.q(y[:, :-1]) + self.p[:, : t - 1]
            z = self.z(self.r(z, x.repeat_interleave(k, 0), tgt_mask=mask)).log_softmax(2)
            z = z.gather(2, y[:, 1:, None]).sum((1, 2)).view(b, k)
        return (z + 0.5 * s).argmax(1), z, c


@case("audio.sixth_guesses_weighed_again", "audio", (FRONT, ENCODE, DECODE), source=PLAIN)
def _() -> Any:
    return Again(), (torch.randn(3, 140, 80), torch.randint(1, 300, (3, 5, 14)), -torch.rand(3, 5) * 20)


class Height(nn.Module):
    """How high a voice is: each frame of the wave through six wide convolutions into steps of twenty cents."""

    def __init__(self) -> None:
        super().__init__()
        n = (64, 16, 16, 16, 32, 64)
        self.a = nn.ModuleList(
            nn.Conv1d(i, o, k, s) for i, o, k, s in zip((1, *n), n, (512, *[64] * 5), (4, *[1] * 5), strict=False)
        )
        self.b, self.c = nn.ModuleList(nn.BatchNorm1d(o) for o in n), nn.Linear(64 * 4, 360)
        self.register_buffer("d", torch.linspace(0, 7180, 360) + 1997.38)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.unfold(1, 1024, 160).flatten(0, 1)
        y = (y - y.mean(1, keepdim=True)) / y.std(1, keepdim=True).clamp(min=1e-8)
        y = y[:, None]
        for i, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
            with phase(ENCODE if i else FRONT):
                k = a.kernel_size[0] - a.stride[0]
                y = F.max_pool1d(b(F.relu(a(F.pad(y, (k // 2, k - k // 2))))), 2)
        with phase(ENCODE):
            y = torch.sigmoid(self.c(y.transpose(1, 2).flatten(1)))
        at = y.argmax(1, keepdim=True)
        near = y * ((torch.arange(360, device=y.device) - at).abs() < 5)
        cents = (near * self.d).sum(1) / near.sum(1)
        return (10 * 2 ** (cents / 1200)).view(len(x), -1)


@case("audio.sixth_how_high", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Height(), (torch.randn(2, 4000),)


class Leaps(nn.Module):
    """What joins sound and letters says a letter and how many frames to leap; only the last two letters are kept."""

    def __init__(self, mels: int = 80, d: int = 96, n: int = 130, leaps: int = 5) -> None:
        super().__init__()
        self.u, self.v = nn.Conv2d(1, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.w, self.x = nn.Conv2d(16, 16, 3, 2, 1), nn.Linear(16 * mels // 8, d)
        self.a, self.b = nn.ModuleList(nn.MultiheadAttention(d, 4, batch_first=True) for _ in range(3)), nn.ModuleList(
            nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.SiLU(), nn.Linear(4 * d, d)) for _ in range(3)
        )  # fmt: skip
        self.c = nn.ModuleList(nn.Conv1d(d, d, 9, padding=4, groups=d) for _ in range(3))
        self.e, self.f, self.g = nn.Embedding(n, d), w(2, d, d), nn.Linear(d, d)
        self.h, self.n = nn.Linear(d, n + leaps), n

    def forward(self, x: torch.Tensor, rounds: int = 14) -> Any:
        with phase(FRONT):
            x = x[:, None]
            for m in (self.u, self.v, self.w):
                x = F.relu(m(x))
        with phase(ENCODE):
            x = self.x(x.transpose(1, 2).flatten(2))
            for a, b, c in zip(self.a, self.b, self.c, strict=True):
                y = F.layer_norm(x, x.shape[-1:])
                x = x + a(y, y, y, need_weights=False)[0]
                x = x + F.silu(c(x.transpose(1, 2))).transpose(1, 2)
                x = x + b(x)
            x = self.g(x)
        n, last = len(x), x.shape[1] - 1
        t = torch.zeros(n, dtype=torch.long, device=x.device)
        kept, said, out = torch.zeros(n, 2, dtype=torch.long, device=x.device), [], []
        for _ in range(rounds):
            with phase(DECODE):
                z = torch.einsum("bkd,kde->be", self.e(kept), self.f)
                here = x.gather(1, t[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]
                s, leap = self.h(torch.tanh(here + z)).split([self.n, self.h.out_features - self.n], 1)
            best, far = s.argmax(1), leap.argmax(1)
            blank = best == 0
            t = (t + torch.where(blank, far.clamp(min=1), far)).clamp(max=last)
            kept = torch.where(blank[:, None], kept, torch.stack([kept[:, 1], best], 1))
            said.append(best)
            out.append(s)
        return torch.stack(said, 1), torch.stack(out, 1)


@case("audio.sixth_leaps_over_frames", "audio", (FRONT, ENCODE, DECODE), source=PLAIN)
def _() -> Any:
    return Leaps(), (torch.randn(4, 160, 80),)


# Plain ones with names.
class DualPath(nn.Module):
    """Speakers apart: a learned basis, LSTMs within chunks and across them by turns, masks."""

    def __init__(self, filters: int = 64, hidden: int = 48, chunk: int = 40, n: int = 2, speakers: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, filters, 16, 8, bias=False)
        self.decoder = nn.ConvTranspose1d(filters, 1, 16, 8, bias=False)
        self.bottleneck, self.chunk, self.speakers = nn.Conv1d(filters, filters, 1), chunk, speakers
        lstm = lambda: nn.LSTM(filters, hidden, batch_first=True, bidirectional=True)  # noqa: E731
        self.intra, self.inter = (nn.ModuleList(lstm() for _ in range(n)) for _ in range(2))
        self.intra_out, self.inter_out = (
            nn.ModuleList(nn.Linear(2 * hidden, filters) for _ in range(n)) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, filters) for _ in range(2 * n))
        self.masks = nn.Sequential(nn.PReLU(), nn.Conv1d(filters, filters * speakers, 1), nn.ReLU())

    def forward(self, mixture: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            coded = F.relu(self.encoder(mixture[:, None]))
        with phase(ENCODE):
            x = self.bottleneck(F.group_norm(coded, 1))
            b, n, t = x.shape
            s = -(-t // self.chunk)
            x = F.pad(x, (0, s * self.chunk - t)).view(b, n, s, self.chunk)
            for i in range(len(self.intra)):
                y = x.permute(0, 2, 3, 1).reshape(b * s, self.chunk, n)
                y = self.intra_out[i](self.intra[i](y)[0]).view(b, s, self.chunk, n).permute(0, 3, 1, 2)
                x = x + self.norms[2 * i](y)
                y = x.permute(0, 3, 2, 1).reshape(b * self.chunk, s, n)
                y = self.inter_out[i](self.inter[i](y)[0]).view(b, self.chunk, s, n).permute(0, 3, 2, 1)
                x = x + self.norms[2 * i + 1](y)
            masks = self.masks(x.flatten(2)[..., :t]).unflatten(1, (self.speakers, n))
        apart = masks * coded[:, None]
        return self.decoder(apart.flatten(0, 1)).view(b, self.speakers, -1)


@case("audio.sixth_two_paths_apart", "audio", (FRONT, ENCODE), source=PLAIN, separation=True)
def _() -> Any:
    return DualPath(), (torch.randn(2, 4800) * 0.2,)


class VoiceNet(nn.Module):
    """Residual convolutions over mel frames, mean and deviation, a unit vector and its angles to the speakers."""

    def __init__(self, mels: int = 64, width: int = 16, speakers: int = 60) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.ModuleList(
            nn.Conv2d(width * 2**i, width * 2 ** (i + 1), 3, 2, 1, bias=False) for i in range(3)
        )
        self.same = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c))
            for c in (2 * width, 4 * width, 8 * width)
        )
        self.embedding, self.speakers = nn.Linear(2 * width * mels, 96), w(speakers, 96, scale=1.0)

    def forward(self, x: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
        x = self.stem(x[:, None])
        for down, same in zip(self.down, self.same, strict=True):
            x = down(x)
            x = F.relu(x + same(x))
        x = x.flatten(1, 2)
        x = self.embedding(torch.cat([x.mean(2), x.std(2)], 1))
        cosine = F.linear(F.normalize(x), F.normalize(self.speakers))
        sine = (1 - cosine.square()).clamp(min=1e-6).sqrt()
        return 30 * torch.where(margin, cosine * math.cos(0.2) - sine * math.sin(0.2), cosine)


@case("audio.sixth_train_voices_by_angles", "audio", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(m(x, F.one_hot(y, 60).bool()), y)

    nesterov = lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=2e-5, foreach=False)  # noqa: E731
    return TrainStep(VoiceNet(), loss, nesterov), (torch.randn(8, 64, 80), torch.randint(60, (8,)))
