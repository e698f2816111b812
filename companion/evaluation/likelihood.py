"""Likelihoods of discrete pixels, in the unit in which models of images are compared."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, overload

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from companion.evaluation.features import with_conditions
from companion.models.questions import Bound, Density, Energy, Sampler, Score, answers
from companion.validate import require_positive_int


@overload
def as_bits_per_dim(nats: float, event_shape: Sequence[int]) -> float: ...
@overload
def as_bits_per_dim(nats: Tensor, event_shape: Sequence[int]) -> Tensor: ...
def as_bits_per_dim(nats: float | Tensor, event_shape: Sequence[int]) -> float | Tensor:
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

    >>> import math
    >>> from companion.evaluation import as_bits_per_dim
    >>> round(as_bits_per_dim(784 * math.log(2), (1, 28, 28)), 6)  # every pixel a fair coin
    1.0
    """
    if not (nats.is_floating_point() if isinstance(nats, Tensor) else isinstance(nats, int | float)):
        found = f"a tensor of {nats.dtype}" if isinstance(nats, Tensor) else type(nats).__name__
        raise TypeError(f"nats must be a number or a floating-point tensor, got {found}")
    if isinstance(event_shape, int) or len(event_shape) == 0:
        raise ValueError(f"event_shape must be the shape of one example, such as (1, 28, 28), got {event_shape!r}")
    for size in event_shape:
        require_positive_int(size, "each size in event_shape")
    # A bound with a single draw of noise may be above zero by chance, its average may not.
    mean = float(nats.detach().mean() if isinstance(nats, Tensor) else nats)
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
    return as_bits_per_dim(nats, train.shape[1:]).float()


@dataclass(frozen=True)
class Likelihood:
    """What a model gives the pixels of examples it has not seen. It prints itself with its conditions.

    Attributes:
        nats: the mean of -log P(x), or of an upper bound on it.
        standard_error: of that mean, over the examples.
        bits_per_dim: nats / (D log 2).
        kind: "exact", or "bound" where the truth may be lower.
        estimator: how it was found.
        levels: how many levels a pixel has; numbers for other levels are about other data.
        n, of, seed: how many examples, which, and the seed of what was drawn.
    """

    nats: float
    standard_error: float
    bits_per_dim: float
    kind: Literal["exact", "bound"]
    estimator: str
    levels: int
    n: int
    of: str
    seed: int

    def __str__(self) -> str:
        at_most = "" if self.kind == "exact" else "at most "
        return with_conditions(
            f"{at_most}{self.nats:.2f} ± {self.standard_error:.2f} nats, {at_most}{self.bits_per_dim:.4f} bits/dim",
            self.estimator,
            f"{self.n:,} of {self.of}, {self.levels} levels, seed {self.seed}",
        )


def bits_per_dim(
    model: nn.Module,
    x: Float[Tensor, " n *event"],
    label: Int[Tensor, " n"] | None = None,
    *,
    importance_samples: int | None = None,
    of: str = "examples",
    seed: int = 0,
    batch_size: int = 100,
) -> Likelihood:
    """What discrete pixels cost under a model, by the best answer that it has.

    An exact `log_prob` where there is one, else the bound: `importance_bound` where `importance_samples` are asked for,
    else `elbo`. What remains has estimators of its own: `samplers.ais` for an energy's normaliser,
    `samplers.flow_log_prob` for a score, whose ODE has a density of continuous values, and `KernelDensity` for samples
    alone, which in many dimensions is no likelihood.

    Args:
        x: intensities of the model's `levels`.
        label: for a model that is given one.
        importance_samples: draws for each example; the time is proportional.
        of: what the examples are: data set, split, binarisation.
        seed: of the bound's draws.

    Raises:
        TypeError: the model has no likelihood and no bound, with what it has instead; or its values are no levels, so
            that its density is one of continuous values.
        ValueError: `importance_samples` for a model that has no such bound; x or label, as the model does.
    """
    if not isinstance(model, Density | Bound):
        can = ", ".join(answers(model)) or "nothing that we know of"
        instead = {
            Energy: "an energy is a density without its normaliser: estimate that with companion.samplers.ais",
            Score: "a score is a density's slope: integrate it with companion.samplers.flow_log_prob",
            Sampler: "samples alone give a companion.evaluation.KernelDensity, which in many dimensions says little",
        }
        hint = next((text for question, text in instead.items() if isinstance(model, question)), "there is no density")
        raise TypeError(f"{type(model).__name__} has no likelihood and no bound on one, only {can}; {hint}")
    levels = getattr(model, "levels", None)
    if levels is None:
        raise TypeError(
            f"{type(model).__name__} gives a density of continuous values, which has no bits/dim: it has no `levels`; "
            "companion.models.Dequantised makes a model of pixels from a flow"
        )
    require_positive_int(batch_size, "batch_size")
    if importance_samples is not None:
        require_positive_int(importance_samples, "importance_samples")
        if not hasattr(model, "importance_bound"):
            raise ValueError(f"importance_samples must be None: {type(model).__name__} has no importance_bound")
    kind: Literal["exact", "bound"] = "exact" if isinstance(model, Density) else "bound"
    answer: Callable[..., Tensor]
    if isinstance(model, Density):
        estimator, answer = "log_prob", model.log_prob
    elif importance_samples is not None:
        estimator, bound = f"importance-weighted, K = {importance_samples}", cast(Callable, model.importance_bound)
        answer = lambda x, *label: bound(x, importance_samples, *label)  # noqa: E731
    else:
        estimator, answer = "ELBO", model.elbo
    nats = -in_batches(answer, x, *(() if label is None else (label,)), seed=seed, batch_size=batch_size)
    return Likelihood(
        nats=nats.mean().item(),
        standard_error=(nats.std() / len(nats) ** 0.5).item(),
        bits_per_dim=as_bits_per_dim(nats, x.shape[1:]).mean().item(),
        kind=kind,
        estimator=estimator,
        levels=levels,
        n=len(x),
        of=of,
        seed=seed,
    )


@torch.no_grad()
def in_batches(
    answer: Callable[..., Tensor], *inputs: Tensor, seed: int = 0, batch_size: int = 100
) -> Float[Tensor, " n"]:
    """One number for each example, some examples at a time, with torch's global generator seeded for the draws and put
    back afterwards. In double precision, on the CPU."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = zip(*(tensor.split(batch_size) for tensor in inputs), strict=True)
        return torch.cat([answer(*part) for part in parts]).double().cpu()
