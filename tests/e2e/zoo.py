"""Small models of the common families, random weights: name -> (module, args, kwargs)."""

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY = 1000


def tokens(batch=2, length=24):
    return torch.randint(5, VOCABULARY, (batch, length))


def picture(batch=1, pixels=64):
    return torch.randn(batch, 3, pixels, pixels)


def mlp():
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 10)), (torch.randn(8, 32),), {}


def resnet18():
    from torchvision.models import resnet18

    return resnet18(weights=None, num_classes=10), (picture(2),), {}


def mobilenet():
    from torchvision.models import mobilenet_v3_small

    return mobilenet_v3_small(weights=None, num_classes=10), (picture(2),), {}


def vit():
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)
    nn.init.normal_(model.heads.head.weight)
    return model, (picture(2, 32),), {}


def bert():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[1, 16:] = 0
    return BertModel(config), (tokens(),), {"attention_mask": mask}


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_positions=128, n_embd=64, n_layer=2, n_head=4)
    return GPT2LMHeadModel(config), (tokens(),), {}


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config), (tokens(),), {}


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config), (), {"input_ids": tokens(), "decoder_input_ids": tokens(2, 8)}


def clip():
    from transformers import CLIPConfig, CLIPModel

    tower = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    config = CLIPConfig(
        text_config=dict(vocab_size=VOCABULARY, max_position_embeddings=32, **tower),
        vision_config=dict(image_size=32, patch_size=8, **tower),
        projection_dim=32,
    )
    return CLIPModel(config), (), {"input_ids": tokens(2, 16), "pixel_values": picture(2, 32)}


class Dlrm(nn.Module):
    """Embedding bags, a dense tower and pairwise dot products."""

    ROWS = (100, 500, 37)

    def __init__(self, width=16):
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for rows in self.ROWS)
        self.dense = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, width), nn.ReLU())
        count = len(self.ROWS) + 1
        self.register_buffer("pairs", torch.tril_indices(count, count, -1))
        self.top = nn.Sequential(nn.Linear(width + count * (count - 1) // 2, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, dense, indices, offsets):
        x = self.dense(dense)
        rows = torch.stack([x] + [bag(indices[i], offsets[i]) for i, bag in enumerate(self.bags)], 1)
        dots = torch.bmm(rows, rows.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return torch.sigmoid(self.top(torch.cat([x, dots], 1)))


def dlrm():
    batch, hot = 16, 4
    indices = torch.stack([torch.randint(rows, (batch * hot,)) for rows in Dlrm.ROWS])
    offsets = torch.arange(0, batch * hot, hot).repeat(len(Dlrm.ROWS), 1)
    return Dlrm(), (torch.rand(batch, 13), indices, offsets), {}


class Forecaster(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 32, 2, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def lstm():
    return Forecaster(), (torch.randn(4, 12, 8),), {}


class UNet(nn.Module):
    """Two levels down, two up, skip connections by concatenation."""

    def __init__(self, width=16):
        super().__init__()

        def block(inputs, outputs):
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1), nn.SiLU(),
            )  # fmt: skip

        self.down = nn.ModuleList([block(3, width), block(width, 2 * width)])
        self.middle = block(2 * width, 2 * width)
        self.rise = nn.ModuleList(
            [nn.ConvTranspose2d(2 * width, 2 * width, 2, 2), nn.ConvTranspose2d(width, width, 2, 2)]
        )
        self.up = nn.ModuleList([block(4 * width, width), block(2 * width, width)])
        self.out = nn.Conv2d(width, 3, 1)

    def forward(self, x):
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for rise, block in zip(self.rise, self.up):
            x = block(torch.cat([rise(x), skips.pop()], 1))
        return self.out(x)


def unet():
    return UNet(), (picture(1, 32),), {}


MODELS = {
    build.__name__: build
    for build in (mlp, resnet18, mobilenet, vit, bert, gpt2, llama, t5, clip, dlrm, lstm, unet)
}


def build(name):
    """The same weights and inputs at every call."""
    torch.manual_seed(0)
    return MODELS[name]()
