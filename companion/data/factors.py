"""Pictures that a few known factors determine, to see which of them a model's code separates."""

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

FACTORS = {"horizontal": 8, "vertical": 8, "size": 4, "shape": 2}


@dataclass(frozen=True, eq=False)
class Factors:
    """All combinations of the factors, one picture each.

    pixels: uint8, (512, 1, 28, 28), 0 or 255. values: int64, (512, 4), columns in the order of `names`.
    """

    pixels: UInt8[Tensor, "n 1 28 28"]
    values: Int64[Tensor, "n factors"]
    names: tuple[str, ...] = tuple(FACTORS)

    def binary(self) -> Tensor:
        """The pictures as float32 zeros and ones, (512, 1, 28, 28)."""
        return (self.pixels > 0).float()


def factors() -> Factors:
    """White squares and discs of four sizes, on an 8 × 8 grid of positions.

    >>> from companion.data import factors
    >>> all_of_them = factors()
    >>> all_of_them.names, all_of_them.pixels.shape
    (('horizontal', 'vertical', 'size', 'shape'), torch.Size([512, 1, 28, 28]))
    """
    axis = torch.arange(28) + 0.5
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    values = torch.tensor(list(product(*(range(n) for n in FACTORS.values()))))
    horizontal, vertical, size, shape = (v[:, None, None] for v in values.unbind(1))
    radius = 3.5 + 0.9 * size
    right, down = (columns - 7 - 2 * horizontal).abs(), (rows - 7 - 2 * vertical).abs()
    square = torch.maximum(right, down) <= 0.89 * radius  # of the same area as the disc
    disc = right.square() + down.square() <= radius**2
    pixels = torch.where(shape == 0, square, disc)[:, None] * 255
    return Factors(pixels.to(torch.uint8), values)
