"""Cases of packages that exist only for torch 2.5.1 (requirements-torch25.txt)."""

from typing import Any

import torch
from torch import nn

from ..oracle import phase
from ..parts import mlp
from ..registry import split
from .recsys import CROSS, DENSE, LOOKUP

case = split("public")
TABLES = (100, 1000, 5000, 37)


@case(
    "recsys.torchrec_dlrm", "recsys", (LOOKUP, DENSE, CROSS), source="torchrec", torch25=True,
    spans=[("bags", LOOKUP), ("low|top", DENSE)],
)  # fmt: skip
def _() -> Any:
    import torchrec
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    class Dlrm(nn.Module):
        def __init__(self, d: int = 16) -> None:
            super().__init__()
            self.names = [f"t{i}" for i in range(len(TABLES))]
            self.bags = torchrec.EmbeddingBagCollection(
                tables=[
                    torchrec.EmbeddingBagConfig(
                        name=name, embedding_dim=d, num_embeddings=rows, feature_names=[name],
                    )
                    for name, rows in zip(self.names, TABLES, strict=True)
                ]
            )  # fmt: skip
            count = len(TABLES) + 1
            self.low, self.top = mlp(13, 64, d), mlp(d + count * (count - 1) // 2, 64, 1, last=True)
            self.register_buffer("pairs", torch.tril_indices(count, count, -1))

        def forward(self, dense: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            rows = self.bags(KeyedJaggedTensor(keys=self.names, values=values, lengths=lengths)).values()
            x = self.low(dense)
            with phase(CROSS):
                all_ = torch.cat([x.unsqueeze(1), rows.view(x.shape[0], len(TABLES), -1)], 1)
                dots = torch.bmm(all_, all_.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
            return self.top(torch.cat([x, dots], 1))

    batch = 32
    lengths = torch.randint(1, 4, (len(TABLES), batch))
    values = torch.cat([torch.randint(rows, (int(lengths[i].sum()),)) for i, rows in enumerate(TABLES)])
    return Dlrm(), (torch.rand(batch, 13), values, lengths.flatten())
