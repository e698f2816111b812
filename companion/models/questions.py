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
    """How do I learn?"""

    def loss(self, x: Tensor) -> Loss:
        """What training minimises: a value for each example, (batch,), in a unit of its own."""
        ...


@runtime_checkable
class Game(Protocol):
    """Learns as a game: every player has a loss of its own, and nobody a loss of the whole."""

    def players(self) -> dict[str, Player]:
        """The players by name, in the order of their updates; each loss is (batch,), in a unit of its own."""
        ...


@runtime_checkable
class Sampler(Protocol):
    """What do my examples look like?"""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws, (n, *event_shape)."""
        ...


@runtime_checkable
class Density(Protocol):
    """How probable is x, exactly?"""

    def log_prob(self, x: Tensor) -> Float[Tensor, " batch"]:
        """log p(x) in nats, of discrete values log P(x)."""
        ...


@runtime_checkable
class Bound(Protocol):
    """How probable is x, at least?"""

    def elbo(self, x: Tensor) -> Float[Tensor, " batch"]:
        """A lower bound on log p(x) in nats, or an unbiased draw of one."""
        ...


@runtime_checkable
class Energy(Protocol):
    """How probable is x, next to another?"""

    def energy(self, x: Tensor) -> Float[Tensor, " batch"]:
        """E(x) = -log p(x) - log Z in nats, with a constant log Z that need not be known."""
        ...


@runtime_checkable
class Score(Protocol):
    """Where does the density rise?"""

    def score(self, x: Tensor) -> Tensor:
        """∇_x log p(x), of the shape of x, in nats per unit of x; of noised data at the noise or time given after x."""
        ...


@runtime_checkable
class Code(Protocol):
    """Which latents stand for x, and which x for latents?"""

    def encode(self, x: Tensor) -> Distribution:
        """q(z|x), the posterior or what stands for it, for each of the batch."""
        ...

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z) for each of the batch."""
        ...


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
