"""Layers that bring each channel to mean zero and variance one: by the first batch, or by every batch."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.models.flows.layers import Transformed, per_channel, positions


class ActNorm(nn.Module):
    """z = s ⊙ x + b, with a scale s = e^a > 0 and a shift b for each channel (Kingma and Dhariwal 2018, sec. 3.1).

    The first batch that is normalised in training mode sets s and b such that it comes out with mean zero and variance
    one in each channel; from then on they are parameters like any others. Until then, in evaluation mode and when it
    generates, the layer is the identity. Whether it has been set is part of the state dict.

    Raises ValueError when the first batch has one value only in each channel, or the same value everywhere in one.
    """

    initialised: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, z: Float[Tensor, "batch channels *space"], label: Tensor | None = None) -> Transformed:
        x = (z - per_channel(self.shift, z)) * per_channel((-self.log_scale).exp(), z)
        return x, -positions(z) * self.log_scale.sum().expand(len(z))

    def inverse(self, x: Float[Tensor, "batch channels *space"], label: Tensor | None = None) -> Transformed:
        if self.training and not self.initialised:
            self._initialise(x)
        z = torch.addcmul(per_channel(self.shift, x), x, per_channel(self.log_scale.exp(), x))
        return z, positions(x) * self.log_scale.sum().expand(len(x))

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        variance, mean = channel_moments(x)
        if not (variance > 0).all():
            constant = (variance <= 0).nonzero().flatten().tolist()
            raise ValueError(
                f"the first batch of ActNorm must vary in each channel, got {tuple(x.shape)} with no variance in "
                f"{len(constant)} of {x.shape[1]} channels, the first of them {constant[0]}"
            )
        self.log_scale.copy_(-0.5 * variance.log())
        self.shift.copy_(-mean * variance.rsqrt())
        self.initialised.fill_(True)


class BatchNorm(nn.Module):
    """z = (x - μ) / √(σ² + ε) by channel, as a layer of a flow (Dinh et al. 2017, sec. 3.7 and appendix E).

    In training mode `inverse` takes μ and σ² of the batch, which makes log p of one example depend on the others; in
    evaluation mode, and always when it generates, they are the running averages over past batches.

    Args:
        channels: of x.
        momentum: the weight of the newest batch in the running averages.
        epsilon: ε.

    Raises ValueError for a training batch with one value only in each channel.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, epsilon: float = 1e-5):
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, z: Float[Tensor, "batch channels *space"], label: Tensor | None = None) -> Transformed:
        variance = self.variance + self.epsilon
        x = torch.addcmul(per_channel(self.mean, z), z, per_channel(variance.sqrt(), z))
        return x, 0.5 * positions(z) * variance.log().sum().expand(len(z))

    def inverse(self, x: Float[Tensor, "batch channels *space"], label: Tensor | None = None) -> Transformed:
        mean, variance = self.mean, self.variance
        if self.training:
            if len(x) * positions(x) < 2:
                raise ValueError(f"BatchNorm in training needs two values in each channel, got {tuple(x.shape)}")
            variance, mean = channel_moments(x)
            self.mean.lerp_(mean.detach(), self.momentum)
            self.variance.lerp_(variance.detach(), self.momentum)
        variance = variance + self.epsilon
        z = (x - per_channel(mean, x)) * per_channel(variance.rsqrt(), x)
        return z, -0.5 * positions(x) * variance.log().sum().expand(len(x))


def channel_moments(x: Float[Tensor, "batch channels *space"]) -> tuple[Tensor, Tensor]:
    """Variance, with 1/N, and mean of each channel."""
    return torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
