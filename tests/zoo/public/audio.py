"""Speech and sound: acoustic encoders, transcription, codecs, and training steps."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..parts import VOCABULARY as V
from ..parts import Out, TrainStep, adamw, sgd
from ..registry import split

case = split("public")
FRONT, ENCODE, DECODE = "audio.frontend", "audio.encode", "audio.decode"


def whisper() -> nn.Module:
    import transformers as t

    config = t.WhisperConfig(
        vocab_size=V, num_mel_bins=80, d_model=128, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=512, decoder_ffn_dim=512, max_source_positions=200,
        max_target_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return t.WhisperForConditionalGeneration(config).eval()


class Transcribe(nn.Module):
    """Greedy steps by hand, without transformers' rules about special tokens."""

    def __init__(self, model: nn.Module, steps: int = 5) -> None:
        super().__init__()
        self.model = model
        self.steps = steps

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        token = torch.ones(features.shape[0], 1, dtype=torch.long, device=features.device)
        encoded = self.model.model.encoder(features)
        cache, logits = None, []
        for _ in range(self.steps):
            result = self.model(encoder_outputs=encoded, decoder_input_ids=token, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            logits.append(result.logits[:, -1])
            token = logits[-1].argmax(-1, keepdim=True)
        return torch.stack(logits)


SPEAK = [(r"model\.model\.encoder", ENCODE), (r"model\.model\.decoder|model\.(proj_out|lm_head)", DECODE)]


@case("audio.whisper.generate", "audio", (ENCODE, DECODE), kv="dynamic", spans=SPEAK)
def _() -> Any:
    return Transcribe(whisper()), (torch.randn(1, 80, 400),)


@case("audio.speech_to_text", "audio", (ENCODE, DECODE), kv="dynamic", spans=SPEAK)
def _() -> Any:
    import transformers as t

    config = t.Speech2TextConfig(
        vocab_size=V, d_model=96, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=192, decoder_ffn_dim=192, conv_channels=64,
        max_source_positions=400, max_target_positions=64,
    )  # fmt: skip
    return Transcribe(t.Speech2TextForConditionalGeneration(config).eval(), 4), (torch.randn(1, 120, 80),)


CONV = dict(
    vocab_size=32, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256,
    conv_dim=(64,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip
SPEECH = {
    "wav2vec2": ("Wav2Vec2", "wav2vec2", {}),
    "hubert": ("Hubert", "hubert", {}),
    "wavlm": ("WavLM", "wavlm", {}),
    "data2vec_audio": ("Data2VecAudio", "data2vec_audio", dict(num_conv_pos_embeddings=3)),
    "sew": ("SEW", "sew", dict(squeeze_factor=2, conv_dim=(32, 64, 64), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 1))),
}


def speech(kind: str) -> nn.Module:
    import transformers as t

    name, _path, more = SPEECH[kind]
    return getattr(t, f"{name}ForCTC")(getattr(t, f"{name}Config")(**dict(CONV, **more)))


def add_speech(kind: str) -> None:
    path = SPEECH[kind][1]
    where = [
        (rf"model\.{path}\.feature_extractor", FRONT),
        (rf"model\.{path}\.(encoder|feature_projection|layer_norm)|model\.lm_head", ENCODE),
    ]

    @case(f"audio.{kind}", "audio", (FRONT, ENCODE), spans=where)
    def make() -> Any:
        return Out(speech(kind), "logits"), (torch.randn(1, 4000 if kind == "sew" else 16000),)


for kind in SPEECH:
    add_speech(kind)


@case("audio.ast", "audio", (ENCODE,), default=ENCODE)
def _() -> Any:
    import transformers as t

    config = t.ASTConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256, max_length=128,
        num_mel_bins=64,
    )  # fmt: skip
    return Out(t.ASTForAudioClassification(config), "logits"), (torch.randn(1, 128, 64),)


@case("audio.clap", "audio", (ENCODE,), default=ENCODE)
def _() -> Any:
    import transformers as t

    config = t.ClapAudioConfig(
        hidden_size=128, patch_embeds_hidden_size=32, depths=[1, 1, 1], num_attention_heads=[2, 4, 4], spec_size=64,
        num_mel_bins=16, window_size=4, projection_dim=32, num_hidden_layers=3,
    )  # fmt: skip
    model = t.ClapAudioModelWithProjection(config)
    return Out(model, "audio_embeds"), (torch.randn(1, 1, 256, 16),), dict(is_longer=torch.tensor([False]))


@case("audio.encodec_encode", "audio", (ENCODE,), spans=[("encoder", ENCODE)], codec=True)
def _() -> Any:
    import transformers as t

    class Encode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = t.EncodecConfig(num_filters=8, hidden_size=32, codebook_dim=32, codebook_size=64)
            model = t.EncodecModel(config)
            self.encoder, self.quantizer = model.encoder, model.quantizer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.quantizer.encode(self.encoder(x), 6.0)

    return Encode(), (torch.randn(1, 1, 6400),)


@case("audio.speecht5_asr", "audio", (FRONT, ENCODE, DECODE), spans=[
    (r"model\.speecht5\.encoder\.prenet\.feature_encoder", FRONT),
    (r"model\.speecht5\.encoder\.prenet\.feature_projection|model\.speecht5\.encoder\.wrapped_encoder", ENCODE),
    (r"model\.speecht5\.decoder|model\.text_decoder_postnet", DECODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.SpeechT5Config(
        vocab_size=40, hidden_size=96, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=192, decoder_ffn_dim=192, conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    model = t.SpeechT5ForSpeechToText(config)
    x = dict(input_values=torch.randn(1, 8000), decoder_input_ids=torch.randint(3, 38, (1, 9)))
    return Out(model, "logits"), (), x


class Keywords(nn.Module):
    """Keyword spotting on the raw wave: strided conv1d, then a GRU."""

    def __init__(self, words: int = 12) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in ((1, 32, 80, 16), (32, 64, 8, 4), (64, 64, 4, 2)):
            layers += [nn.Conv1d(inputs, outputs, kernel, stride), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.front = nn.Sequential(*layers)
        self.encode = nn.GRU(64, 64, batch_first=True)
        self.out = nn.Linear(64, words)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return self.out(self.encode(self.front(wave).transpose(1, 2))[0].mean(1))


@case(
    "audio.plain_keywords", "audio", (FRONT, ENCODE), spans=[("front", FRONT), ("encode|out", ENCODE)],
    source="plain torch",
)  # fmt: skip
def _() -> Any:
    return Keywords(), (torch.randn(2, 1, 8000),)


class Spectrogram(nn.Module):
    """log-mel by stft and a fixed matrix, then conv1d over frames."""

    def __init__(self, bands: int = 40) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(256))
        self.register_buffer("mel", torch.rand(bands, 129))
        self.net = nn.Sequential(
            nn.Conv1d(bands, 64, 5, padding=2), nn.ReLU(), nn.Conv1d(64, 64, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv1d(64, 64, 3, dilation=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        power = torch.stft(wave, 256, 128, window=self.window, return_complex=True).abs() ** 2
        return self.net(torch.log(self.mel @ power + 1e-6))


@case("audio.plain_spectrogram", "audio", (ENCODE,), spans=[("net", ENCODE)], source="plain torch")
def _() -> Any:
    return Spectrogram(), (torch.randn(1, 4096),)


@case("train.wav2vec2", "audio", TRAIN, mode="train")
def _() -> Any:
    # Masks and dropped layers are drawn by numpy: without them two runs are equal.
    model = speech("wav2vec2")
    model.config.apply_spec_augment, model.config.layerdrop = False, 0.0
    return TrainStep(
        model, lambda m, x, y: m(x, labels=y).loss, adamw, steps=1
    ), (torch.randn(2, 6000), torch.randint(1, 31, (2, 5)))  # fmt: skip


@case("train.whisper", "audio", TRAIN, mode="train")
def _() -> Any:
    return TrainStep(
        whisper(), lambda m, x, y: m(input_features=x, labels=y).loss, sgd, steps=1
    ), (torch.randn(1, 80, 400), torch.randint(5, V, (1, 8)))  # fmt: skip


@case("train.plain_keywords", "audio", TRAIN, mode="train", source="plain torch")
def _() -> Any:
    return TrainStep(
        Keywords(), lambda m, x, y: F.cross_entropy(m(x), y), adamw, steps=1
    ), (torch.randn(2, 1, 4000), torch.randint(12, (2,)))  # fmt: skip
