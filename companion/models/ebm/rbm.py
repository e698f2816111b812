"""The restricted Boltzmann machine: Smolensky (1986), trained by contrastive divergence as in Hinton (2002)."""

import math
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent

from companion.models.generative_problem import IndependentPixels
from companion.models.questions import Loss
from companion.samplers.ais import Path
from companion.samplers.gibbs import gibbs
from companion.validate import require_binary, require_events, require_positive_int

# Units on the side that is enumerated: 20 take seconds, each further one twice as long.
MOST_UNITS = 25

# States that are enumerated at once: more does not fit in the processor's cache.
STATES = 1 << 10


class RBM(nn.Module):
    """Binary pixels v and hidden units h, each unit connected to all of the other kind and to none of its own:

        p(v, h) = e^{-E(v, h)} / Z,    E(v, h) = -b·v - c·h - h·Wv

    Given the one kind, the units of the other are independent: each has the log-odds Wv + c, or Wᵀh + b.

    Args:
        event_shape: the shape of one image.
        hidden: the number of hidden units.
        k: Gibbs steps in each loss, from the data (CD-k) or from the persistent chains.
        chains: how many persistent chains there are (PCD, Tieleman 2008), a buffer of this name; None for CD-k.

    Raises ValueError for an argument that means nothing.

    >>> import torch
    >>> from companion.models import RBM
    >>> model = RBM((1, 2, 2), hidden=3)
    >>> with torch.no_grad():
    ...     _ = model.weight.zero_()
    >>> round(model.log_partition().item(), 4)  # without weights, every state counts the same: 7 log 2
    4.852
    """

    levels = 2

    chains: Tensor | None

    def __init__(
        self, event_shape: tuple[int, ...] = (1, 28, 28), hidden: int = 500, k: int = 1, chains: int | None = None
    ):
        super().__init__()
        require_positive_int(hidden, "hidden")
        require_positive_int(k, "k")
        if chains is not None:
            require_positive_int(chains, "chains")
        self.event_shape, self.hidden, self.k = tuple(event_shape), hidden, k
        self.pixels = math.prod(self.event_shape)
        # Hinton's (2012, sec. 8) choice: small, so that the hidden units differ, and nothing is saturated.
        self.weight = nn.Parameter(0.01 * torch.randn(hidden, self.pixels))
        self.bias = nn.Parameter(torch.zeros(self.pixels))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.register_buffer("chains", None if chains is None else torch.zeros(chains, self.pixels))
        self._restart()

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, " batch *event"]) -> Self:
        """Set the pixels' biases to the log-odds of independent pixels, so that training starts near those, and draw
        the persistent chains from them. Raises as `energy`."""
        self.bias.copy_(IndependentPixels(self.event_shape).to(self.bias).fit(x).logits.flatten())
        self._restart()
        return self

    def energy(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        """The free energy, -log Σ_h e^{-E(x, h)} = -b·x - Σ_j log(1 + e^{c_j + (Wx)_j}). Autocast is off.

        Raises ValueError or TypeError for a wrong shape or dtype, NaN, and values other than 0 and 1.
        """
        self._require(x)
        return self._energy(x.flatten(1))

    def unnormalised_log_prob(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        """log p(x) + log Z, which is minus the energy; nats. Raises as `energy`."""
        return -self.energy(x)

    @torch.no_grad()
    def log_partition(self) -> Float[Tensor, ""]:
        """log Z, nats: the states of the smaller side are enumerated, the other side is summed in closed form.

        In the precision of the weights, but for the sum over the states. `ais` estimates it for larger models.

        Raises ValueError if both sides have more than 25 units.
        """
        weight: Tensor = self.weight
        few, many = self.hidden_bias, self.bias
        if self.pixels < self.hidden:
            few, many, weight = many, few, weight.T
        if len(few) > MOST_UNITS:
            raise ValueError(
                f"the smaller of {self.pixels} pixels and {self.hidden} hidden units must be at most {MOST_UNITS} to be"
                " enumerated; estimate log Z with companion.samplers.ais"
            )
        place, logs = torch.arange(len(few), device=few.device), []
        for codes in torch.arange(2 ** len(few), device=few.device).split(STATES):
            states = (codes[:, None] >> place & 1).to(few)
            logs.append((states @ few + F.softplus(many + states @ weight).sum(1)).double().logsumexp(0))
        return torch.stack(logs).logsumexp(0)

    def hidden_given_visible(self, x: Float[Tensor, " batch *event"]) -> Independent:
        """p(h|x), batch shape (batch,), event shape (hidden,). Raises as `energy`."""
        self._require(x)
        return _bernoulli(self._hidden_logits(x.flatten(1)), 1)

    def visible_given_hidden(self, h: Float[Tensor, "batch hidden"]) -> Independent:
        """p(x|h), batch shape (batch,), event shape that of an image. Raises as `energy`."""
        require_events(h, (self.hidden,), "h")
        require_binary(h, "h")
        return _bernoulli(self._visible_logits(h).unflatten(1, self.event_shape), len(self.event_shape))

    @torch.no_grad()
    def gibbs(
        self, x: Float[Tensor, " batch *event"], steps: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, " batch *event"]:
        """Chains that start at x, after so many steps: in each all hidden units, then all pixels. Raises as `energy`,
        and ValueError for steps that are no positive integer."""
        self._require(x)
        return self._gibbs(x.flatten(1), steps, generator).view_as(x)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None, steps: int = 1000) -> Float[Tensor, " n *event"]:
        """Independent Gibbs chains, started from fair coins: draws of the model as the steps go to infinity. A model
        with modes far apart keeps a chain in the first that it finds for much longer than a thousand steps.

        Raises ValueError unless n is a positive integer.
        """
        require_positive_int(n, "n")
        noise = _draw(self.bias.new_full((n, self.pixels), 0.5), generator)
        return self._gibbs(noise, steps, generator).unflatten(1, self.event_shape)

    def loss(self, x: Float[Tensor, " batch *event"]) -> Loss:
        """E(x) - E(x̃), x̃ from k Gibbs steps, which start at x (CD-k), or where the persistent chains are (PCD); of
        these the mean energy counts.

        No gradient is taken through x̃, so that the mean loss has that of contrastive divergence (Hinton 2002, sec. 3):
        that of -log p(x), but with x̃ for a draw of the model. Its value shows no progress. In evaluation mode the
        persistent chains stay where they are. Raises as `energy`.
        """
        self._require(x)
        v = x.flatten(1)
        with torch.no_grad():
            samples = self._gibbs(v if self.chains is None else self.chains, self.k)
            if self.chains is not None and self.training:
                self.chains.copy_(samples)
        data, model = self._energy(v), self._energy(samples)
        if self.chains is not None:
            model = model.mean().expand_as(data)
        return Loss(data - model, {"energy of the data": data, "minus energy of samples": -model}, "energy difference")

    def path(self, logits: Float[Tensor, " *event"]) -> Path:
        """For `ais`: from independent pixels with these logits to this model (Salakhutdinov and Murray 2008).

        f_β(v, h) = (p_0(v) / 2^H)^{1-β} e^{-βE(v, h)}, its sum over h in closed form, and one Gibbs step. Chains start
        at draws of p_0; an `IndependentPixels` fitted to the data has both. States are images, as in `energy`.

        Raises ValueError unless the logits have the shape of an image.
        """
        if tuple(logits.shape) != self.event_shape:
            raise ValueError(f"logits must have shape {self.event_shape}, got {tuple(logits.shape)}")
        base = logits.detach().flatten().to(self.bias)
        log_base_z = F.softplus(base).sum() + self.hidden * math.log(2)

        @torch.no_grad()
        def path(x: Tensor, before: float, after: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
            v = x.flatten(1)
            a = self._hidden_logits(v)
            # Differences of each term: those of the sums would lose digits, in thousands of steps.
            log_ratio = (after - before) * (v @ (self.bias - base) + log_base_z)
            log_ratio += (F.softplus(after * a) - F.softplus(before * a)).sum(1)
            h = _draw(torch.sigmoid(after * a), generator)
            b = after * self._visible_logits(h) + (1 - after) * base
            return log_ratio, _draw(torch.sigmoid(b), generator).view_as(x)

        return path

    def _require(self, x: Tensor) -> None:
        require_events(x, self.event_shape)
        require_binary(x)

    @torch.no_grad()
    def _restart(self) -> None:
        """The persistent chains, anew: draws of the model without weights, from which small ones differ little."""
        if self.chains is not None:
            self.chains.copy_(_draw(self.bias.sigmoid().expand_as(self.chains), None))

    def _energy(self, v: Float[Tensor, "batch pixels"]) -> Float[Tensor, " batch"]:
        with torch.autocast(v.device.type, enabled=False):
            return -(v @ self.bias) - F.softplus(self._hidden_logits(v)).sum(1)

    def _hidden_logits(self, v: Float[Tensor, "batch pixels"]) -> Float[Tensor, "batch hidden"]:
        return F.linear(v, self.weight, self.hidden_bias)

    def _visible_logits(self, h: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch pixels"]:
        return torch.addmm(self.bias, h, self.weight)

    def _gibbs(self, v: Tensor, steps: int, generator: torch.Generator | None = None) -> Float[Tensor, "batch pixels"]:
        # Under autocast logits are in bfloat16, in which random numbers are far too coarse.
        def draw_hidden(v: Tensor, generator: torch.Generator | None) -> Tensor:
            return _draw(self._hidden_logits(v).to(v.dtype).sigmoid(), generator)

        def draw_visible(h: Tensor, generator: torch.Generator | None) -> Tensor:
            return _draw(self._visible_logits(h).to(h.dtype).sigmoid(), generator)

        return gibbs(draw_hidden, draw_visible, v, steps, generator=generator, keep=False).last


def _bernoulli(logits: Tensor, event_dims: int) -> Independent:
    return Independent(Bernoulli(logits=logits, validate_args=False), event_dims, validate_args=False)


def _draw(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """`torch.bernoulli`, four times as fast on a processor."""
    return (torch.rand(p.shape, generator=generator, device=p.device, dtype=p.dtype) < p).to(p.dtype)
