"""What a network sees in images: the numbers that most metrics of samples are about, and where they come from.

net = digit_classifier()
real = extract(net.features, test, net="digit classifier, 64 features", of="mnist6k, test")
fake = extract(net.features, model.sample(1000), net="digit classifier, 64 features", of="samples of a VAE, seed 0")
frechet_distance(fake, real)
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.validate import require_events, require_positive_int

UNNAMED = "features without a name"
# Characters of a line on a page, as of the chapters' code.
_LINE = 84


@dataclass(frozen=True, eq=False)
class Features:
    """Features of many images, or any other vectors, with what they are.

    Attributes:
        values: one row for each image, finite, floating.
        net: what computed them; features of two nets cannot be compared.
        of: the images: data set, split, seed.

    Raises TypeError or ValueError for values that are not like that, or less than two rows.
    """

    values: Float[Tensor, "n dim"]
    net: str = UNNAMED
    of: str = "a sample"

    def __post_init__(self):
        if isinstance(self.values, Tensor) and (self.values.ndim != 2 or self.values.shape[1] == 0):
            raise ValueError(f"values must have shape (n, dim), got {tuple(self.values.shape)}; flatten images first")
        require_events(self.values, tuple(self.values.shape[1:]) if isinstance(self.values, Tensor) else (), "values")
        if len(self.values) < 2:
            raise ValueError(f"values must hold two rows or more, got {len(self.values)}")

    def __len__(self) -> int:
        return len(self.values)


Samples = Features | Float[Tensor, "n dim"] | Float[np.ndarray, "n dim"]


@torch.no_grad()
def extract(
    network: Callable[[Tensor], Tensor],
    images: Float[Tensor, " n *event"],
    *,
    net: str = UNNAMED,
    of: str = "a sample",
    batch_size: int = 500,
) -> Features:
    """The network's answers to images, a batch at a time, in evaluation mode.

    Args:
        network: images to vectors, (batch, *event) to (batch, dim); any module will do.
        net, of: names, see `Features`.

    Raises TypeError or ValueError for images that are no tensor, empty, or not finite, and for answers that are no
    vectors.
    """
    require_positive_int(batch_size, "batch_size")
    require_events(images, tuple(images.shape[1:]) if isinstance(images, Tensor) else (), "images")
    training = isinstance(network, nn.Module) and network.training
    if isinstance(network, nn.Module):
        network.eval()
    try:
        return Features(torch.cat([network(part) for part in images.split(batch_size)]), net, of)
    finally:
        if isinstance(network, nn.Module):
            network.train(training)


def as_features(x: Samples, name: str) -> Features:
    """Arrays and tensors as `Features` without a name. Raises as `Features`, with the argument's name."""
    if isinstance(x, Features):
        return x
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    try:
        return Features(x)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def as_pair(x: Samples, reference: Samples, names: tuple[str, str] = ("x", "reference")) -> tuple[Features, Features]:
    """Both as `Features`. Raises ValueError, with the names, for features of two nets or of two dimensions."""
    x, reference = as_features(x, names[0]), as_features(reference, names[1])
    both = " and ".join(names)
    if x.net != reference.net:
        raise ValueError(f"{both} must be features of one net, got {x.net!r} and {reference.net!r}")
    if x.values.shape[1] != reference.values.shape[1]:
        raise ValueError(
            f"{both} must have the same dimension, got {x.values.shape[1]} and {reference.values.shape[1]}"
        )
    return x, reference


@dataclass(frozen=True)
class Conditions:
    """Without which a number says nothing.

    Attributes:
        n, of: how many samples, and which.
        features: what computed the features.
        reference_n, reference: what they were compared with, if with anything.
        seed: of what was drawn to compute the number, if anything was.
    """

    n: int
    of: str
    features: str
    reference_n: int | None = None
    reference: str | None = None
    seed: int | None = None

    @classmethod
    def taken(cls, x: Features, reference: Features | None = None, seed: int | None = None) -> "Conditions":
        """Those of a number about x, compared with the reference if there is one."""
        if reference is None:
            return cls(len(x), x.of, x.net, seed=seed)
        return cls(len(x), x.of, x.net, len(reference), reference.of, seed)

    def __str__(self) -> str:
        against = "" if self.reference is None else f" against {self.reference_n:,} of {self.reference}"
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.n:,} of {self.of}{against}; {self.features}{seed}"


def with_conditions(found: str, *conditions: object) -> str:
    """What was found, and below it, in brackets, under which conditions, in lines that fit on a page."""
    brackets = f"({'; '.join(map(str, conditions))})"
    return f"{found}\n{textwrap.fill(brackets, _LINE, subsequent_indent=' ', break_on_hyphens=False)}"
