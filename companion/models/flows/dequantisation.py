"""Discrete pixels under a continuous density: noise within each level's cell, and a logit from (0, 1) to the line.

    model = Dequantised(flow, levels=256, alpha=0.05)
    as_bits_per_dim(-model.elbo(x), model.event_shape)     # x: intensities k / 255, as everywhere

With y = (k + u) / L in [0, 1)^D and z = logit(α + (1 - 2α) y), every constant is a part of the model:

    log P(k) = log ∫ p_z(z) |det ∂z/∂u| du ≥ E_q(u|k) [log p_z(z) + log |det ∂z/∂y| - D log L - log q(u|k)]
"""

import math
from typing import Literal, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.models.questions import Loss
from companion.models.vae import few_rows
from companion.nets import mlp
from companion.validate import require_events, require_levels, require_positive_int


class Logit(nn.Module):
    """z = logit(α + (1 - 2α) x): a layer of a flow that takes [0, 1] to the line, α away from its infinite ends.

    Dinh et al. (2017, "RealNVP", sec. 4.1) print α + (1 - α) x with α = 0.05, which leaves out the upper end, where it
    is infinite; implementations mostly treat both ends alike, and so does this. For MNIST, Papamakarios et
    al. (2017, "MAF") use α = 1e-6.

    Raises ValueError unless 0 < alpha < 1/2.
    """

    def __init__(self, alpha: float = 0.05):
        super().__init__()
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 0.5:
            raise ValueError(f"alpha must lie strictly between 0 and 1/2, got {alpha!r}")
        self.alpha = float(alpha)

    def forward(
        self, z: Float[Tensor, " batch *event"], label: Tensor | None = None
    ) -> tuple[Float[Tensor, " batch *event"], Float[Tensor, " batch"]]:
        """x = (σ(z) - α) / (1 - 2α), a little beyond [0, 1] for large z, and log |det ∂x/∂z|."""
        log_det = F.logsigmoid(z) + F.logsigmoid(-z) - math.log1p(-2 * self.alpha)
        return (z.sigmoid() - self.alpha) / (1 - 2 * self.alpha), log_det.flatten(1).sum(1)

    def inverse(
        self, x: Float[Tensor, " batch *event"], label: Tensor | None = None
    ) -> tuple[Float[Tensor, " batch *event"], Float[Tensor, " batch"]]:
        """z and log |det ∂z/∂x| = Σ log(1 - 2α) - log s - log(1 - s) with s = α + (1 - 2α) x.

        Raises ValueError where s does not lie in (0, 1): no z has such an x.
        """
        # 1 - s from 1 - x, not from s: with a small α, s near 1 has lost the digits that 1 - s needs.
        low, high = (self.alpha + (1 - 2 * self.alpha) * t for t in (x, 1 - x))
        if not ((low > 0) & (high > 0)).all():
            beyond = self.alpha / (1 - 2 * self.alpha)
            found = x[~((low > 0) & (high > 0))][0].item()
            raise ValueError(f"x must lie strictly between {-beyond:.6g} and {1 + beyond:.6g}, got {found:.6g}")
        low, high = low.log(), high.log()
        return low - high, (math.log1p(-2 * self.alpha) - low - high).flatten(1).sum(1)


class UniformNoise(nn.Module):
    """q(u|x) = 1 on [0, 1)^D (Uria et al. 2013; Theis et al. 2016, sec. 3.1)."""

    def forward(self, x: Float[Tensor, " batch *event"]) -> tuple[Float[Tensor, " batch *event"], Tensor]:
        """u and log q(u|x) = 0, (batch,)."""
        return torch.rand_like(x), x.new_zeros(len(x))


class VariationalNoise(nn.Module):
    """u = σ(μ(x) + e^a(x) ε) with ε logistic: noise that learns where in its cell the flow wants each pixel.

    Ho et al. (2019, "Flow++", sec. 3.1) draw u from a conditional flow, its pixels dependent on each other. Here they
    are independent given x, and a small network gives each its μ and a. With μ = a = 0, where it starts, u is exactly
    uniform, so that the best of this family is at least as tight as uniform noise.

    Args:
        event_shape: (dim,), for a network of fully connected layers, or (colours, height, width), for convolutions.
        hidden: features of the two hidden layers.

    Raises ValueError for an argument that means nothing.
    """

    def __init__(self, event_shape: tuple[int, ...], hidden: int = 32):
        super().__init__()
        require_positive_int(hidden, "hidden")
        if len(event_shape) == 1:
            self.network = mlp([event_shape[0], hidden, hidden, 2 * event_shape[0]])
        elif len(event_shape) == 3:
            colours = event_shape[0]
            self.network = nn.Sequential(
                nn.Conv2d(colours, hidden, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(hidden, hidden, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(hidden, 2 * colours, 3, padding=1),
            )
        else:
            raise ValueError(f"event_shape must be (dim,) or (colours, height, width), got {tuple(event_shape)}")
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, " batch *event"]) -> tuple[Float[Tensor, " batch *event"], Tensor]:
        """u, differentiable in the parameters, and log q(u|x), (batch,)."""
        mean, log_scale = self.network(x).to(x.dtype).chunk(2, 1)
        p = torch.rand_like(x).clamp(min=torch.finfo(x.dtype).tiny)  # rand may be 0, and never is 1
        v = mean + log_scale.exp() * p.logit()
        # ε = logit p has the density p (1 - p), and du/dv is σ(v) σ(-v).
        log_q = p.log() + torch.log1p(-p) - log_scale - F.logsigmoid(v) - F.logsigmoid(-v)
        return v.sigmoid(), log_q.flatten(1).sum(1)


class _Flow(Protocol):
    event_shape: tuple[int, ...]

    def log_prob(self, x: Tensor, **label: Tensor) -> Tensor: ...

    def sample(self, n: int, *, generator: torch.Generator | None, **options: Tensor | float) -> Tensor: ...


class Dequantised(nn.Module):
    """A model of discrete pixels from a continuous density: P(k) is what the density gives to the cell of k.

    x holds intensities k / (L - 1), on [0, 1] as everywhere; noise u makes them y = (k + u) / L, uniform or learned,
    and a `Logit` real. The flow is a density of logit(y), or of y itself on [0, 1) where `alpha` is None, as NICE and
    Glow have it. All numbers are nats of the discrete pixels: `as_bits_per_dim(-model.elbo(x), model.event_shape)`.

    A density that reaches beyond the cells gives what lies there to the least and the greatest level, as `sample`
    does. The noise does not reach it: for these levels the bounds rise to the mass in [0, 1)^D, at most P(k).

    Args:
        flow: has an `event_shape`, `log_prob(x)` and `sample(n, generator)`; with `classes`, both take a `label`.
        levels: L, 2 to 256.
        alpha: of the `Logit`; None leaves it out.
        noise: "uniform" or "variational", then `VariationalNoise` with `hidden` features.

    Raises ValueError for an argument that means nothing.

    >>> import torch
    >>> from companion.models import Dequantised, RealNVP
    >>> model = Dequantised(RealNVP((2,)), levels=4)
    >>> k = torch.tensor([[0.0, 1 / 3], [2 / 3, 1.0]])
    >>> model.elbo(k).shape, bool((model.sample(8) * 3 % 1 < 1e-5).all())
    (torch.Size([2]), True)
    """

    def __init__(
        self,
        flow: nn.Module,
        levels: int = 256,
        alpha: float | None = 0.05,
        noise: Literal["uniform", "variational"] = "uniform",
        hidden: int = 32,
    ):
        super().__init__()
        require_positive_int(levels, "levels")
        if not 2 <= levels <= 256:
            raise ValueError(f"levels must lie in 2..256, got {levels}")
        if noise not in ("uniform", "variational"):
            raise ValueError(f"noise must be 'uniform' or 'variational', got {noise!r}")
        self.flow = cast(_Flow, flow)
        self.levels, self.event_shape = levels, tuple(self.flow.event_shape)
        self.classes = getattr(flow, "classes", None)
        self.logit = None if alpha is None else Logit(alpha)
        self.noise = UniformNoise() if noise == "uniform" else VariationalNoise(self.event_shape, hidden)

    def elbo(
        self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """A lower bound on log P(x) in nats, with one draw of the noise (Theis et al. 2016, sec. 3.1; Ho et
        al. 2019, sec. 3.1). Without autocast, in which it would be wrong by nats.

        Raises:
            TypeError: x has no floating dtype.
            ValueError: a wrong shape, NaN, values that are no level k / (L - 1): counts up to 255, or pixels that have
                noise already; a label as the flow raises it.
        """
        with torch.autocast(x.device.type if isinstance(x, Tensor) else "cpu", enabled=False):
            return Loss.of(self._terms(x, label), "nats").value

    def loss(self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None) -> Loss:
        """Minus the bound. Raises as `elbo`."""
        parts = {name: -term for name, term in self._terms(x, label).items()}
        return Loss.of(parts, "nats")

    @torch.no_grad()
    def log_weights(
        self, x: Float[Tensor, " batch *event"], samples: int, label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " samples batch"]:
        """log p(x,u) - log q(u|x) for so many draws of the noise, in nats, with autocast off. Raises as `elbo`."""
        require_positive_int(samples, "samples")

        def weights(draws: int) -> Tensor:
            many = x.repeat(draws, *[1] * (x.ndim - 1))
            return self.elbo(many, None if label is None else label.repeat(draws)).reshape(draws, len(x))

        return few_rows(weights, len(x), samples)

    def importance_bound(
        self, x: Float[Tensor, " batch *event"], samples: int, label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """log of the mean of `samples` importance weights, in nats: in expectation a lower bound on log P(x) that
        rises with `samples` (Burda et al. 2016, eq. 8; Hoogeboom et al. 2020). Without gradients. Raises as `elbo`."""
        return self.log_weights(x, samples, label).logsumexp(0) - math.log(samples)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        label: Int[Tensor, " n"] | None = None,
        **options: float,
    ) -> Float[Tensor, " n *event"]:
        """Levels k / (L - 1): the cells that draws of the flow fall into. `options`, such as a temperature, are the
        flow's.

        Raises ValueError unless n is a positive integer, and as the flow does.
        """
        require_positive_int(n, "n")
        y = self.flow.sample(n, generator=generator, **_given(label), **options)
        if self.logit is not None:
            y, _ = self.logit(y)
        # What lies beyond the outermost cells counts as theirs.
        return (y * self.levels).floor().clamp(0, self.levels - 1) / (self.levels - 1)

    def _terms(self, x: Tensor, label: Tensor | None) -> dict[str, Float[Tensor, " batch"]]:
        """What adds up to the bound."""
        k = self._level(x)
        u, log_q = self.noise(x)
        z, log_det = (k + u) / self.levels, x.new_full((len(x),), -x[0].numel() * math.log(self.levels))
        if self.logit is not None:
            z, of_logit = self.logit.inverse(z)
            log_det = log_det + of_logit
        return {"flow": self.flow.log_prob(z, **_given(label)), "change of variables": log_det, "noise": -log_q}

    def _level(self, x: Tensor) -> Float[Tensor, " batch *event"]:
        """k of x = k / (L - 1)."""
        require_events(x, self.event_shape)
        return require_levels(x, self.levels)


def _given(label: Tensor | None) -> dict[str, Tensor]:
    """A flow without classes need not know what a label is."""
    return {} if label is None else {"label": label}
