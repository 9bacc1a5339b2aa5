"""Visual question answering: an image encoder, a text encoder and cross-attention that fuses them.

A real photograph (scikit-image's astronaut) and a real question. The weights are random, from a
fixed seed: the answer shows that both devices agree, not that the model understands the picture.
"""

import _example
import numpy
import torch
from skimage import data
from torch import nn
from transformers import AutoTokenizer

QUESTION = "What is the woman in the picture wearing?"
ANSWERS = ["a space suit", "a red dress", "a rain coat", "a uniform", "a swim suit", "a sweater"]
IMAGE_PIXELS = 224
PATCH_PIXELS = 16
WIDTH = 192
HEADS = 4


def encoder(layers):
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, activation="gelu", batch_first=True, norm_first=True, dropout=0.0
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class ImageEncoder(nn.Module):
    """A small vision transformer: (batch, 3, H, W) -> (batch, patches, WIDTH)."""

    def __init__(self):
        super().__init__()
        patches = (IMAGE_PIXELS // PATCH_PIXELS) ** 2
        self.patch = nn.Conv2d(3, WIDTH, PATCH_PIXELS, stride=PATCH_PIXELS)
        self.position = nn.Parameter(torch.randn(1, patches, WIDTH) * 0.02)
        self.encoder = encoder(4)

    def forward(self, image):
        return self.encoder(self.patch(image).flatten(2).transpose(1, 2) + self.position)


class TextEncoder(nn.Module):
    """Token ids (batch, words) -> (batch, words, WIDTH)."""

    def __init__(self, vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.position = nn.Embedding(64, WIDTH)
        self.encoder = encoder(4)

    def forward(self, tokens):
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return self.encoder(self.embedding(tokens) + self.position(place))


class VQAModel(nn.Module):
    """Each word of the question attends to the patches of the picture; the mean picks an answer."""

    def __init__(self, vocabulary, answers):
        super().__init__()
        self.image = ImageEncoder()
        self.text = TextEncoder(vocabulary)
        self.fusion = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, answers))

    def forward(self, image, tokens):
        words, patches = self.text(tokens), self.image(image)
        fused, _ = self.fusion(words, patches, patches, need_weights=False)
        return self.head(self.norm(words + fused).mean(1))


def photograph():
    """The astronaut, cropped and normalised: (1, 3, IMAGE_PIXELS, IMAGE_PIXELS), float32."""
    picture = torch.from_numpy(numpy.array(data.astronaut())).permute(2, 0, 1)[None] / 255.0
    picture = nn.functional.interpolate(picture, (IMAGE_PIXELS, IMAGE_PIXELS), mode="bilinear", antialias=True)
    return (picture - 0.5) / 0.5


def prepare(device):
    tokenizer = AutoTokenizer.from_pretrained(_example.minilm_directory())
    tokens = tokenizer(QUESTION, return_tensors="pt")["input_ids"]
    torch.manual_seed(0)
    model = VQAModel(len(tokenizer), len(ANSWERS)).eval().to(device)
    image = photograph()

    @torch.no_grad()
    def work():
        scores = model(image.to(device), tokens.to(device)).softmax(-1).cpu()[0]
        best = int(scores.argmax())
        answer = f'"{QUESTION}" -> "{ANSWERS[best]}" (p = {scores[best]:.4f}; random weights)'
        return answer, [scores]

    return work


if __name__ == "__main__":
    _example.main(prepare)
