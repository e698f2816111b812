"""Linear layers some of whose connections are cut."""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class MaskedLinear(nn.Linear):
    """y = (W ⊙ M) x + b. The mask is applied in each pass and the weights stay as they are.

    Every unit has a degree, the last place of an order that it may know, and M keeps the connection from input j to
    output k where that of k is at least that of j (Germain et al. 2015, eq. 8), or above it (eq. 9).

    Args:
        inputs, outputs: the degrees, of shape (units,); or several such sets for the same weights, (sets, units).
        strict: above, not only at least.
        bias: whether there is b.

    >>> import torch
    >>> from companion.nets.masked import MaskedLinear
    >>> layer = MaskedLinear(torch.tensor([1, 2]), torch.tensor([1, 2]), strict=True)
    >>> layer.mask().tolist()  # the second output sees the first input
    [[False, False], [True, False]]
    """

    inputs: Tensor
    outputs: Tensor

    def __init__(self, inputs: Int[Tensor, "*sets in"], outputs: Int[Tensor, "*sets out"], strict: bool, bias=True):
        if inputs.ndim not in (1, 2) or inputs.shape[:-1] != outputs.shape[:-1]:
            raise ValueError(
                "inputs and outputs must have shapes (in,) and (out,), or (sets, in) and (sets, out), "
                f"got {tuple(inputs.shape)} and {tuple(outputs.shape)}"
            )
        super().__init__(inputs.shape[-1], outputs.shape[-1], bias)
        self.strict = strict
        # Not the masks, which are as large as the weights, and many times so where there are several.
        self.register_buffer("inputs", inputs.int().reshape(-1, self.in_features))
        self.register_buffer("outputs", outputs.int().reshape(-1, self.out_features))

    def mask(self, which: int = 0) -> Bool[Tensor, "out in"]:
        """M, True where a connection stays, by `which` of the sets of degrees."""
        outputs, inputs = self.outputs[which][:, None], self.inputs[which]
        return outputs > inputs if self.strict else outputs >= inputs

    def forward(self, x: Float[Tensor, "*batch in"], which: int = 0) -> Float[Tensor, "*batch out"]:
        return F.linear(x, self.weight * self.mask(which), self.bias)
