"""Latents that leave an image before all of its layers, and the learned priors that they meet there."""

import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.models.flows.layers import Layer, Transformed


class Split(nn.Module):
    """One half of the channels goes on, the other one leaves (Dinh et al. 2017, sec. 3.6).

    In the normalising direction x = (x_1, x_2), halves of the channels: z = (rest(x_1), x_2), as one vector, so that
    what left first is last. With a prior, x_2 ~ N(μ(x_1), diag σ²(x_1)), and (x_2 - μ(x_1)) / σ(x_1) stands in z in its
    place (Kingma and Dhariwal 2018, sec. 3): a conditional affine layer, with a standard normal left to the base.

    Args:
        event_shape: of x, (channels, height, width), an even number of channels.
        rest: the layer that x_1 goes through, from vectors to (channels / 2, height, width).
        prior: a network that answers x_1 and the label with μ and log σ, channels in all; None for x_2 as it is.
    """

    def __init__(self, event_shape: tuple[int, ...], rest: nn.Module, prior: nn.Module | None = None):
        super().__init__()
        channels, height, width = event_shape
        if channels % 2:
            raise ValueError(f"event_shape must have an even number of channels to split, got {tuple(event_shape)}")
        self.half_shape = channels // 2, height, width
        self.rest, self.prior = rest, prior

    def forward(self, z: Float[Tensor, "batch dims"], label: Tensor | None = None) -> Transformed:
        kept, left = z.split([z.shape[1] - math.prod(self.half_shape), math.prod(self.half_shape)], 1)
        x_1, log_det = self.rest(kept, label)
        x_2 = left.reshape(-1, *self.half_shape)
        if self.prior is not None:
            mean, log_std = _mean_and_log_std(self.prior, x_1, label)
            x_2 = torch.addcmul(mean, x_2, log_std.exp())
            log_det = log_det + log_std.flatten(1).sum(1)
        return torch.cat([x_1, x_2], 1), log_det

    def inverse(self, x: Float[Tensor, "batch channels height width"], label: Tensor | None = None) -> Transformed:
        x_1, x_2 = x.chunk(2, 1)
        kept, log_det = cast(Layer, self.rest).inverse(x_1, label)
        if self.prior is not None:
            mean, log_std = _mean_and_log_std(self.prior, x_1, label)
            x_2 = (x_2 - mean) * (-log_std).exp()
            log_det = log_det - log_std.flatten(1).sum(1)
        return torch.cat([kept, x_2.flatten(1)], 1), log_det


def _mean_and_log_std(prior: nn.Module, given: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
    mean, log_std = prior(given, label).to(given.dtype).chunk(2, 1)
    return mean, log_std


class GaussianPrior(nn.Module):
    """x ~ N(μ, diag σ²) with μ and σ learned for each channel, and for each class: x = μ + σ ⊙ z.

    All start from 0 and 1.
    """

    def __init__(self, channels: int, classes: int | None = None):
        super().__init__()
        self.channels = nn.Parameter(torch.zeros(2 * channels))
        self.of_class = None if classes is None else nn.Parameter(torch.zeros(classes, 2 * channels))

    def forward(self, z: Float[Tensor, "batch channels *space"], label: Tensor | None = None) -> Transformed:
        mean, log_std = self._mean_and_log_std(z, label)
        return torch.addcmul(mean, z, log_std.exp()), log_std.expand_as(z).flatten(1).sum(1)

    def inverse(self, x: Float[Tensor, "batch channels *space"], label: Tensor | None = None) -> Transformed:
        mean, log_std = self._mean_and_log_std(x, label)
        return (x - mean) * (-log_std).exp(), -log_std.expand_as(x).flatten(1).sum(1)

    def _mean_and_log_std(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        both = self.channels[None] if label is None or self.of_class is None else self.channels + self.of_class[label]
        mean, log_std = both.reshape(*both.shape, *[1] * (x.ndim - 2)).chunk(2, 1)
        return mean, log_std
