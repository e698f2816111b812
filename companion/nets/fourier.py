"""What makes the finest digits of an input large enough for a network to see."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.validate import require_positive_int


class Fourier(nn.Module):
    """A network that is shown x, then sin(2ⁿπx) for each n of `powers`, then cos(2ⁿπx), all on the first axis of an
    event (Kingma et al. 2021, eq. 34). Between neighbouring ones of 256 levels on [-1, 1], 2⁻⁷ apart, these angles turn
    by half a circle and by a whole one: what is small beside x, the distance from a level, they make large.

        Fourier(UNet(1 + 2 * 2, channels_out=1))

    Args:
        network: of x and a time, and of labels if it has classes, for 1 + 2 · `len(powers)` times the channels of x.

    Raises ValueError for powers that are no positive integers, or none at all.
    """

    def __init__(self, network: nn.Module, powers: Sequence[int] = (7, 8)):
        super().__init__()
        if not powers:
            raise ValueError("powers must hold at least one integer, got none")
        for power in powers:
            require_positive_int(power, "each of powers")
        self.network, self.powers, self.classes = network, tuple(powers), getattr(network, "classes", None)

    def forward(
        self, x: Float[Tensor, "batch channels *rest"], t: Tensor, *label: Tensor
    ) -> Float[Tensor, "batch channels *rest"]:
        """Raises as the network."""
        angles = torch.cat([2**power * math.pi * x for power in self.powers], 1)
        return self.network(torch.cat([x, angles.sin(), angles.cos()], 1), t, *label)
