"""Are samples copies of the training set?

memorisation(samples, train, test)
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from companion.evaluation.distances import squared_distances
from companion.evaluation.features import Conditions, Samples, as_pair, with_conditions


@dataclass(frozen=True, eq=False)
class Memorisation:
    """What `memorisation` found. It prints itself with its conditions.

    Attributes:
        nearer: the share of the samples that are nearer to their nearest training example than to their nearest
            held-out one. Equal distances count half.
        expected_nearer: by a model that never saw the training set, good or bad: the training examples' share of both
            sets, 1/2 for equal sizes.
        copies: the share of the samples that are equal to a training example in every number.
        z: far below zero where samples are nearer to the training set than held-out examples are, far above where
            they are farther from it; standard normal for samples that are as good as held-out examples.
        nearest: of each sample, the index of its nearest training example.
        distance: to it.
        test_n, test: how many held-out examples, and which.
    """

    nearer: float
    expected_nearer: float
    copies: float
    z: float
    nearest: Int64[Tensor, " n"]
    distance: Float64[Tensor, " n"]
    test_n: int
    test: str
    conditions: Conditions

    def __str__(self) -> str:
        return with_conditions(
            f"{100 * self.nearer:.1f} % nearer to training than to held-out examples "
            f"({100 * self.expected_nearer:.1f} % expected without training),\n"
            f"{100 * self.copies:.1f} % copies, data-copying z = {self.z:.2f}",
            self.conditions,
            f"held out: {self.test_n:,} of {self.test}",
        )


def memorisation(samples: Samples, train: Samples, test: Samples) -> Memorisation:
    """Compare samples with the training set and with held-out examples, by distances between pixels or features.

    z is that of Meehan, Chaudhuri and Dasgupta (2020) with one cell for the whole space: Mann and Whitney's U of the
    distances to the training set, samples against held-out examples, standardised, with their correction for ties.
    Samples that fit badly in one place can so hide copies in another.

    Args:
        train: what the model has seen, all of it: a copy of what is not given is not found.
        test: what it has not seen, from the same distribution; sizes may differ.

    Raises TypeError or ValueError for features that are not like that (see `Features`), of two nets or of two
    dimensions, and where all distances to the training set are the same, so that there is no z.
    """
    samples, train = as_pair(samples, train, ("samples", "train"))
    test, _ = as_pair(test, train, ("test", "train"))
    nearest, distance = _nearest(samples.values, train.values)
    _, to_test = _nearest(samples.values, test.values)
    _, of_test = _nearest(test.values, train.values)
    nearer = (distance < to_test).double() + (distance == to_test).double() / 2
    return Memorisation(
        nearer.mean().item(),
        len(train) / (len(train) + len(test)),
        (distance == 0).double().mean().item(),
        _standardised_u(distance, of_test),
        nearest,
        distance,
        len(test),
        test.of,
        Conditions.taken(samples, train),
    )


def _nearest(x: Float[Tensor, "n dim"], others: Float[Tensor, "m dim"]) -> tuple[Tensor, Tensor]:
    """Of each x the index of the nearest other, and the distance to it."""
    x, others = x.detach(), others.detach()
    nearest = torch.cat([part.argmin(1) for part in squared_distances(x, others)])
    # Once more without a matrix product, so that copies are at zero and equal differences equally far.
    return nearest, (x.double() - others[nearest].double()).square().sum(1).sqrt()


def _standardised_u(first: Float64[Tensor, " n"], second: Float64[Tensor, " m"]) -> float:
    """Of all pairs, how many have the larger number first, less the mean and over the deviation under one law."""
    n, m, second = len(first), len(second), second.sort().values
    # Ties count half.
    u = sum(torch.searchsorted(second, first, right=right).sum().item() for right in (False, True)) / 2
    total, (_, ties) = n + m, torch.cat([first, second]).unique(return_counts=True)
    ties = ties.double()
    variance = n * m / 12 * (total + 1 - (ties**3 - ties).sum().item() / (total * (total - 1)))
    if not variance > 0:
        raise ValueError("samples and test must have different distances to train, got one for all of them")
    return (u - n * m / 2) / math.sqrt(variance)
