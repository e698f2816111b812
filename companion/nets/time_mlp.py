"""A network for vectors that is also given a time, or a noise level."""

from collections.abc import Iterable
from typing import cast

import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from companion.nets.time_embedding import TimeEmbedding
from companion.validate import require_positive_int


class TimeMLP(nn.Module):
    """Residual blocks h + W₂ silu(W₁ silu(h) + U e), with e the embedding of t and of the label; zero at the start.

    Args:
        dims: of the vectors, in and out.
        hidden: the width.
        blocks: of two layers each.
        classes: of labels; see `TimeEmbedding`.
        dims_out: of the answer, if not those of the vectors, as for a learned variance.

    Raises ValueError for an argument that means nothing.
    """

    def __init__(
        self, dims: int, hidden: int = 128, blocks: int = 2, classes: int | None = None, dims_out: int | None = None
    ):
        super().__init__()
        dims_out = dims if dims_out is None else dims_out
        for name, value in (("dims", dims), ("hidden", hidden), ("blocks", blocks), ("dims_out", dims_out)):
            require_positive_int(value, name)
        self.classes = classes
        self.embed = TimeEmbedding(32, hidden, classes)
        self.first = nn.Linear(dims, hidden)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Linear(hidden, hidden), nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden)])
            for _ in range(blocks)
        )
        self.last = nn.Linear(hidden, dims_out)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, x: Float[Tensor, "batch dims"], t: Shaped[Tensor, " batch"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch dims_out"]:
        """Raises TypeError or ValueError for a t or a label that does not fit."""
        embedding = F.silu(self.embed(len(x), t, label))
        h = self.first(x)
        for narrow, shift, widen in cast(Iterable[nn.ModuleList], self.blocks):
            h = h + widen(F.silu(narrow(F.silu(h)) + shift(embedding)))
        return self.last(F.silu(h))
