"""The questions that a model may answer, each a protocol with one or two methods.

A model is an `nn.Module` that has the methods of the questions its family can answer, and no others, so
that `isinstance(model, Density)` says whether it has an exact density. A model whose density or bound is a probability
of discrete values, intensities k / (L - 1), has their number L as `levels`, 2 for binary pixels.
"""

from collections.abc import Callable, Iterable
from functools import reduce
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution


class Loss(NamedTuple):
    """What training minimises: a value per example, its parts by name, and its unit.

    The unit is "nats" only for a negative log-likelihood or a bound on one.
    """

    value: Float[Tensor, " batch"]
    parts: dict[str, Tensor]
    unit: str

    @classmethod
    def of(cls, parts: dict[str, Tensor], unit: str) -> "Loss":
        """The loss that is the sum of these parts."""
        return cls(reduce(torch.add, parts.values()), parts, unit)


class Player(NamedTuple):
    """One side of a game: what it may move, what it minimises, and its updates in one step of training.

    More than one keeps a player near its best answer to the others, as a Wasserstein GAN's critic has to be:
    Gulrajani et al. (2017) give it five.
    """

    parameters: Iterable[nn.Parameter]
    loss: Callable[[Tensor], Loss]
    updates: int = 1


@runtime_checkable
class Learner(Protocol):
    def loss(self, x: Tensor) -> Loss: ...


@runtime_checkable
class Game(Protocol):
    """Learns as a game: every player has a loss of its own, and nobody a loss of the whole."""

    def players(self) -> dict[str, Player]: ...


@runtime_checkable
class Sampler(Protocol):
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor: ...


@runtime_checkable
class Density(Protocol):
    def log_prob(self, x: Tensor) -> Float[Tensor, " batch"]: ...


@runtime_checkable
class Bound(Protocol):
    def elbo(self, x: Tensor) -> Float[Tensor, " batch"]: ...


@runtime_checkable
class Energy(Protocol):
    def energy(self, x: Tensor) -> Float[Tensor, " batch"]: ...


@runtime_checkable
class Score(Protocol):
    def score(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Code(Protocol):
    def encode(self, x: Tensor) -> Distribution: ...

    def decode(self, z: Tensor) -> Distribution: ...


QUESTIONS: dict[str, type | tuple[type, ...]] = {
    "loss": (Learner, Game),
    "sample": Sampler,
    "exact density": Density,
    "bound": Bound,
    "energy": Energy,
    "score": Score,
    "code": Code,
}


def answers(model: object) -> list[str]:
    """The questions that a model, or a class of models, answers.

    >>> from companion.models import GAN, VAE, answers
    >>> answers(VAE)
    ['loss', 'sample', 'bound', 'code']
    >>> answers(GAN)
    ['loss', 'sample']
    """
    kind = model if isinstance(model, type) else type(model)
    return [question for question, protocol in QUESTIONS.items() if issubclass(kind, protocol)]
