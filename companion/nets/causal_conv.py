"""A convolution over time that sees no sample after its own, and the queue that draws with it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.validate import require_positive_int


class DilatedCausalConv1d(nn.Conv1d):
    """y[t] = Σ_i w[i] x[t - δi], i = 0 … k - 1, plus a bias: k taps, δ samples apart, back from the present one.

    What lies before the first sample is zero. `weight` is (outputs, inputs, k), with w[i] in `weight[..., k - 1 - i]`.

    Raises ValueError unless all arguments are positive integers.
    """

    bias: nn.Parameter

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1):
        for name, value in (("inputs", inputs), ("outputs", outputs), ("kernel", kernel), ("dilation", dilation)):
            require_positive_int(value, name)
        super().__init__(inputs, outputs, kernel, dilation=dilation)
        self.reach = (kernel - 1) * dilation

    def forward(self, x: Float[Tensor, "batch inputs time"]) -> Float[Tensor, "batch outputs time"]:
        # Padded on the left alone. What torch computes is a cross-correlation, Σ_j weight[j] x[t + δj] from the start
        # of the padding on: its last tap meets the present sample, its first the oldest. So w is stored backwards.
        return super().forward(F.pad(x, (self.reach, 0)))


class Queue:
    """A dilated causal convolution while its input comes into being sample by sample (Le Paine et al. 2016).

    Write the input at t into `at(t)`, (batch, inputs); then `queue(t, bias, out)` puts the output there into `out`,
    (batch, outputs), with `bias` for that of the convolution.

    What the taps at t see, t - δi for i = 0 … k - 1, are the k last samples with the same remainder of t / δ: they
    are kept together in a row of their own, of which the input at t takes the part of the oldest. So nothing is moved;
    instead there are k copies of the weight, one for each part that may be the newest.
    """

    def __init__(self, conv: DilatedCausalConv1d, batch: int, length: int):
        kernel, self.dilation = conv.kernel_size[0], conv.dilation[0]
        taps = conv.weight.detach().flip(2).permute(2, 1, 0)  # w[i] as (inputs, outputs)
        self.weights = [
            torch.cat([taps[(newest - part) % kernel] for part in range(kernel)]) for newest in range(kernel)
        ]
        rows = taps.new_zeros(min(self.dilation, length), batch, kernel, conv.in_channels)
        # Views made once, as to make one takes as long as the smaller of the products.
        self.rows = rows.flatten(2).unbind()
        self.parts = [part.unbind() for part in rows.unbind(2)]

    def at(self, t: int) -> Float[Tensor, "batch inputs"]:
        return self.parts[t // self.dilation % len(self.parts)][t % self.dilation]

    def __call__(
        self, t: int, bias: Float[Tensor, "#batch outputs"], out: Float[Tensor, "batch outputs"]
    ) -> Float[Tensor, "batch outputs"]:
        turn, row = divmod(t, self.dilation)
        return torch.addmm(bias, self.rows[row], self.weights[turn % len(self.parts)], out=out)
