"""Likelihoods of discrete pixels, in the unit in which models of images are compared."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from companion.validate import require_positive_int


def bits_per_dim(nats: float | Tensor, event_shape: Sequence[int]) -> float | Tensor:
    """-log P(x) / (D log 2), D the number of values in an example: how many bits each of them costs.

    Nothing is left to add, whatever the model: `nats` is minus the log-probability of the discrete pixels, or minus
    a bound on it, as `PixelCNN.log_prob` and `Dequantised.elbo` give it, in which the density's constants (the width
    1 / 256 of a cell, the scale and the Jacobian of a logit) are counted already. A density of continuous values is
    no such number and may have any value; `Dequantised` makes a model of pixels from it.

    Args:
        nats: of one example, or of many as a tensor of any shape; the result is of the same kind.
        event_shape: the shape of one example, such as (1, 28, 28).

    Raises:
        TypeError: nats is neither a number nor a floating-point tensor.
        ValueError: nats is NaN, or below zero on average, which no -log P is; event_shape is empty or holds anything
            but positive integers.
    """
    tensor = isinstance(nats, Tensor)
    if not (nats.is_floating_point() if tensor else isinstance(nats, int | float)):
        found = f"a tensor of {nats.dtype}" if tensor else type(nats).__name__
        raise TypeError(f"nats must be a number or a floating-point tensor, got {found}")
    if isinstance(event_shape, int) or len(event_shape) == 0:
        raise ValueError(f"event_shape must be the shape of one example, such as (1, 28, 28), got {event_shape!r}")
    for size in event_shape:
        require_positive_int(size, "each size in event_shape")
    # A bound with a single draw of noise may be above zero by chance, its average may not.
    mean = float(nats.detach().mean() if tensor else nats)
    if not mean >= 0:
        raise ValueError(
            f"nats must be -log P of discrete pixels, not below zero, got {mean:.6g} on average: a log-likelihood"
            " without its minus sign, or a density of continuous values (see companion.models.flows.Dequantised)"
        )
    return nats / (math.prod(event_shape) * math.log(2))


def histogram_bits_per_dim(
    train: UInt8[Tensor, " n *event"],
    test: UInt8[Tensor, " m *event"],
    levels: int = 256,
    pseudo_count: float = 0.5,
) -> Float[Tensor, " m"]:
    """What each test image costs, in bits/dim, if every pixel is independent with a histogram of its own.

    The floor that a model of images has to beat: it knows where pixels are bright, and nothing of shapes. On
    `mnist6k` its mean is 1.73.

    Args:
        train, test: counts 0 … levels - 1, as `Images.pixels`.
        pseudo_count: imagined images for each level, added to each histogram, since a level never seen at a pixel
            would cost infinitely much; 1/2 is Krichevsky and Trofimov's (1981).

    Raises:
        TypeError: train or test is not a tensor of uint8.
        ValueError: the shapes do not fit, one of them is empty, a value is no level, or pseudo_count is not positive.
    """
    require_positive_int(levels, "levels")
    for name, pixels in (("train", train), ("test", test)):
        if not isinstance(pixels, Tensor) or pixels.dtype != torch.uint8:
            found = f"a tensor of {pixels.dtype}" if isinstance(pixels, Tensor) else type(pixels).__name__
            raise TypeError(f"{name} must be a tensor of torch.uint8, got {found}")
        if pixels.ndim < 2 or pixels.numel() == 0 or pixels.shape[1:] != train.shape[1:]:
            raise ValueError(
                f"train and test must be images of one shape, got {tuple(train.shape)} and {tuple(test.shape)}"
            )
        if int(pixels.max()) >= levels:  # not as a tensor: 256 is 0 in uint8
            raise ValueError(f"{name} must hold only the levels 0 to {levels - 1}, got {pixels.max()}")
    if not 0 < pseudo_count < math.inf:
        raise ValueError(f"pseudo_count must be positive and finite, got {pseudo_count!r}")
    # (levels, pixels), filled row by row of the training images.
    counts = torch.full((levels, train[0].numel()), float(pseudo_count), dtype=torch.float64, device=train.device)
    seen = train.flatten(1).long()
    counts.scatter_add_(0, seen, torch.ones_like(seen, dtype=torch.float64))
    nats = -(counts / counts.sum(0)).log().gather(0, test.flatten(1).long()).sum(1)
    return bits_per_dim(nats, train.shape[1:]).float()
