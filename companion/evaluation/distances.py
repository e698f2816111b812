"""Squared distances between many points and many others, as several measures need them."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

# Distances at a time: 32 MB in double precision.
_CHUNK = 2**22


def squared_distances(x: Float[Tensor, "batch dim"], y: Float[Tensor, "n dim"]) -> Iterator[Tensor]:
    """Squared Euclidean distances in double precision, in chunks of rows, (rows, n).

    Their rounding is that of the points' squared norms around the mean of y: that of a point to itself may be just
    above or below zero.
    """
    # One matrix product. Around the origin its rounding would be that of where the points lie, not of their spread.
    centre = y.double().mean(0)
    y = y.double() - centre
    for rows in x.split(max(1, _CHUNK // len(y))):
        z = rows.double() - centre
        yield torch.addmm(y.square().sum(1) + z.square().sum(1, keepdim=True), z, y.T, alpha=-2)
