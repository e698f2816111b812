"""Layers that show an example the others of its batch, or keep it from seeing them."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class VirtualBatchNorm(nn.Module):
    """Normalises an example with the statistics of a reference batch and of itself (Salimans et al. 2016, sec. 3.5).

    The first `reference` rows of the input are the reference batch, the same in every call; they are normalised by
    their own mean and variance. Each further row x is normalised by those of the reference batch with x added to
    it, so that its output does not depend on the other rows. Where there are positions, (batch, features, height,
    width), the statistics are over them too.

    Args:
        features: how many there are, each with a mean, a variance, a weight γ and a bias β of its own.
        reference: rows of the reference batch.
        eps: added to the variance.
    """

    def __init__(self, features: int, reference: int, eps: float = 1e-5):
        super().__init__()
        self.reference, self.eps = reference, eps
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, x: Float[Tensor, " rows features *positions"]) -> Float[Tensor, " rows features *positions"]:
        n, positions = self.reference, tuple(range(2, x.ndim))
        # Under autocast the input is in bfloat16, whose variances would be wrong in the third digit.
        x = x.to(self.weight.dtype)
        all_variance, all_mean = torch.var_mean(x[:n], (0, *positions), correction=0, keepdim=True)
        # Without positions an example is its own mean.
        variance, mean = torch.var_mean(x[n:], positions, correction=0, keepdim=True) if positions else (0, x[n:])
        # Of the union of n parts and one: the mean of their variances, and the variance of their means.
        joint_variance = (n * all_variance + variance) / (n + 1) + n * (mean - all_mean).square() / (n + 1) ** 2
        joint_mean = (n * all_mean + mean) / (n + 1)
        weight, bias = (p.reshape(-1, *[1] * len(positions)) for p in (self.weight, self.bias))

        def normalise(rows: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
            return (rows - mean) * (weight * (variance + self.eps).rsqrt()) + bias

        return torch.cat([normalise(x[:n], all_mean, all_variance), normalise(x[n:], joint_mean, joint_variance)])


class MinibatchDiscrimination(nn.Module):
    """How close each example is to the others of its batch (Salimans et al. 2016, sec. 3.2).

    M_i = T h_i holds `kernels` vectors M_{i,b} of `dim` numbers, and o(x_i)_b = Σ_j exp(-‖M_{i,b} - M_{j,b}‖₁), where j
    runs over the whole batch, i included: from 1 for an example far from all others to the size of the batch.
    """

    def __init__(self, features: int, kernels: int, dim: int = 5):
        super().__init__()
        self.kernels = kernels
        self.project = nn.Linear(features, kernels * dim, bias=False)

    def forward(self, h: Float[Tensor, " batch features"]) -> Float[Tensor, " batch kernels"]:
        m = self.project(h).unflatten(1, (self.kernels, -1)).transpose(0, 1)
        # Under autocast too, cdist answers in float32.
        return torch.exp(-torch.cdist(m, m, p=1)).sum(2).T
