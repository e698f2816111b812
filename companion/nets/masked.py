"""Linear layers some of whose connections are cut."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class MaskedLinear(nn.Linear):
    """y = (W ⊙ M) x + b. The mask is applied in each pass and the weights stay as they are.

    Args:
        mask: M, True where a connection stays; or several such masks for the same weights.
        bias: whether there is b.
    """

    def __init__(self, mask: Bool[Tensor, "*masks out in"], bias: bool = True):
        if mask.ndim not in (2, 3):
            raise ValueError(f"mask must have shape (out, in) or (masks, out, in), got {tuple(mask.shape)}")
        super().__init__(mask.shape[-1], mask.shape[-2], bias)
        self.register_buffer("mask", mask.bool().reshape(-1, *mask.shape[-2:]))

    def forward(self, x: Float[Tensor, "*batch in"], which: int = 0) -> Float[Tensor, "*batch out"]:
        """`which` of the masks to use."""
        return F.linear(x, self.weight * self.mask[which], self.bias)
