"""Noise-conditional score networks (Song and Ermon 2019, "Generative modeling by estimating gradients of the data
distribution"; Song and Ermon 2020, "Improved techniques for training score-based generative models").

    sigmas = geometric_levels(high=largest_distance(x), low=0.01, n=100)
    model = ScoreModel(UNet(1), (1, 28, 28), sigmas)
    fit(model, x, Settings(steps=1000, ema_decay=0.999))
    model.sample(64)

Steps of Langevin dynamics are x + (α/2) s + √α ξ throughout. The second paper writes x + α s + √(2α) ξ: its step sizes
are half of those here.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from companion.models.flows.flow import require_shape
from companion.models.questions import Loss
from companion.samplers.annealed_langevin import annealed_langevin, require_levels, require_pace
from companion.validate import require_events, require_positive_int


class ScoreModel(nn.Module):
    """s(x, σ) ≈ ∇ log p_σ(x), the score of the data with noise of standard deviation σ, at levels σ_1 > … > σ_L.

    The network sees x/√(1 + σ²), about the same size at all levels, and a time that falls from 1,000 at σ_1 to 0 at
    σ_L as log σ does; s is its answer over σ. The second paper's technique 3 divides by σ, too, where the network does
    not see the level at all.

    Args:
        network: (batch, *event) and times (batch,) to (batch, *event): a `TimeMLP` for vectors, a `UNet` for images.
        event_shape: the shape of one example.
        sigmas: the levels, falling, two at least; see `geometric_levels`.
        steps: T of annealed Langevin dynamics in `sample`, at each level.
        step_size: ε there; None is that of `annealed_step_size`, technique 4.
        denoise: end `sample` with one step x + σ_L² s(x, σ_L), the mean of the data given x where s is the score
            (Jolicoeur-Martineau et al. 2020).

    Raises ValueError for an argument that means nothing.
    """

    sigmas: Tensor

    def __init__(
        self,
        network: nn.Module,
        event_shape: tuple[int, ...],
        sigmas: Sequence[float] | Float[Tensor, " levels"],
        steps: int = 5,
        step_size: float | None = None,
        denoise: bool = True,
    ):
        super().__init__()
        require_shape(event_shape)
        levels = require_levels(sigmas)
        best = annealed_step_size(levels, steps)
        step_size = best if step_size is None else step_size
        require_pace(step_size, steps)
        self.network, self.event_shape, self.steps, self.denoise = network, tuple(event_shape), steps, denoise
        self.step_size = step_size
        self.register_buffer("sigmas", torch.tensor(levels))

    def score(
        self, x: Float[Tensor, " batch *event"], sigma: float | Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch *event"]:
        """s(x, σ), of one level for all or of one for each, without autocast. Between the levels it was trained at, the
        network interpolates.

        Raises TypeError or ValueError for a wrong shape or dtype of x, for NaN, and for a σ outside the levels.
        """
        require_events(x, self.event_shape)
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        if sigma.shape not in ((), (len(x),)):
            raise ValueError(f"sigma must be a number or have shape ({len(x)},), got {tuple(sigma.shape)}")
        # Levels are rounded to the precision of the model.
        wrong = ~((sigma > self.sigmas[-1] * (1 - 1e-5)) & (sigma < self.sigmas[0] * (1 + 1e-5)))
        if wrong.any():
            raise ValueError(
                f"sigma must be from {self.sigmas[-1]:g} to {self.sigmas[0]:g}, the levels the network was trained at, "
                f"got {sigma[wrong].flatten()[0]:g}"
            )
        sigma = sigma.expand(len(x))
        with torch.autocast(x.device.type, enabled=False):
            return self._scaled(x, sigma) / self._broadcast(sigma)

    def loss(self, x: Float[Tensor, " batch *event"]) -> Loss:
        """λ(σ) ½ ‖s(x + σξ, σ) + ξ/σ‖² with λ(σ) = σ², ξ ~ N(0, I) and a level σ drawn at random for each example: an
        unbiased draw of denoising score matching over all levels (Song and Ermon 2019, eqs. 5 and 6). No nats.

        Raises TypeError or ValueError for a wrong shape or dtype of x, and for NaN.
        """
        require_events(x, self.event_shape)
        sigma = self.sigmas[torch.randint(len(self.sigmas), (len(x),), device=x.device)].to(x.dtype)
        noise = torch.randn_like(x)
        # Under autocast the network answers in bfloat16; the sum has the type of x.
        scaled = self._scaled(x + self._broadcast(sigma) * noise, sigma)
        error = (scaled + noise).square().flatten(1).sum(1) / 2
        return Loss(error, {"squared distance": error}, "weighted Fisher divergence")

    @torch.no_grad()
    def noise(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n *event"]:
        """N(0, σ_1² I), where chains start: if σ_1 is far above the size of the data, nearly p_σ1.

        Raises ValueError unless n is a positive integer.
        """
        require_positive_int(n, "n")
        return self.sigmas[0] * self.sigmas.new_empty(n, *self.event_shape).normal_(generator=generator)

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, progress: bool = False
    ) -> Float[Tensor, " n *event"]:
        """By annealed Langevin dynamics, from `noise` through all levels, with the network L · T times, and once more
        if there is a last step to denoise.

        Raises ValueError for an n that means nothing, and FloatingPointError when a chain is lost.
        """
        chains = annealed_langevin(
            self.score,
            self.noise(n, generator),
            self.sigmas,
            self.step_size,
            self.steps,
            generator=generator,
            progress=progress,
        )
        return self.denoised(chains.last) if self.denoise else chains.last

    @torch.no_grad()
    def denoised(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch *event"]:
        """x + σ_L² s(x, σ_L). Raises as `score`."""
        sigma = float(self.sigmas[-1])
        return x + sigma**2 * self.score(x, sigma)

    def _scaled(self, x: Tensor, sigma: Float[Tensor, " batch"]) -> Float[Tensor, " batch *event"]:
        """σ s(x, σ): the network itself."""
        high, low = self.sigmas[0], self.sigmas[-1]
        time = 1000 * (sigma / low).log() / (high / low).log()
        return self.network(x / self._broadcast((1 + sigma.square()).sqrt()), time)

    def _broadcast(self, sigma: Float[Tensor, " batch"]) -> Tensor:
        return sigma.reshape(-1, *[1] * len(self.event_shape))


def geometric_levels(high: float, low: float, n: int) -> Float[Tensor, " n"]:
    """n levels from `high` to `low` in equal ratios (Song and Ermon 2019, sec. 4.1).

    Raises ValueError unless high > low > 0, and for n below 2.
    """
    _require_range(high, low)
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise ValueError(f"n must be an integer of at least 2, got {n!r}")
    return torch.from_numpy(np.geomspace(high, low, n)).float()


def largest_distance(x: Float[Tensor, " batch *event"]) -> float:
    """Between any two examples, Euclidean: technique 1's σ_1, under which a chain can go from any of them to any other.

    Raises ValueError for less than two examples.
    """
    if len(x) < 2:
        raise ValueError(f"x must hold at least two examples, got {len(x)}")
    # About the mean: cdist subtracts squared norms.
    flat = (x - x.mean(0)).flatten(1)
    return max(torch.cdist(part, flat).max().item() for part in flat.split(1000))


def number_of_levels(high: float, low: float, dims: int) -> int:
    """Technique 2's L: the least number of levels from `high` to `low` in equal ratios γ with at least half of each
    level's noise where the noise of the level before is, Φ(√(2d) (γ - 1) + 3γ) - Φ(√(2d) (γ - 1) - 3γ) ≥ 1/2.

    In d dimensions the norm of N(0, σ²I) is about N(√d σ, σ²/2); "where" is within three of its deviations. The
    difference is 1/2 where the second argument is 0, as the first is above 6 there: γ = √(2d) / (√(2d) - 3).

    Raises ValueError unless high > low > 0, and for less than five dimensions, where any γ passes.
    """
    _require_range(high, low)
    require_positive_int(dims, "dims")
    if dims < 5:
        raise ValueError(f"dims must be at least 5, got {dims}: with less, levels of any ratio overlap by this measure")
    spread = math.sqrt(2 * dims)
    return math.ceil(1 + math.log(high / low) / math.log(spread / (spread - 3)))


def annealed_step_size(sigmas: Sequence[float] | Float[Tensor, " levels"], steps: int) -> float:
    """Technique 4's ε for so many steps at each level: the one whose chains, of the score -x/σ², have a variance at the
    end of a level that is nearest to σ², as it was at the one before. See `variance_ratio`.

    Raises ValueError for less than two levels, or `sigmas` that do not fall.
    """
    levels = require_levels(sigmas)
    require_positive_int(steps, "steps")
    if len(levels) < 2:
        raise ValueError(f"sigmas must hold at least two levels, got {len(levels)}")
    low = levels[-1]
    ratio = (levels[0] / low) ** (1 / (len(levels) - 1))
    # The variance falls with ε to its least, above σ², and then rises.
    best = minimize_scalar(
        lambda log_delta: variance_ratio(2 * math.exp(log_delta), ratio, steps),
        bounds=(math.log(1e-8), 0),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return 2 * math.exp(best.x) * low**2


def variance_ratio(relative_step: float, ratio: float, steps: int) -> float:
    """The variance of a chain after so many steps at level σ, over σ² (Song and Ermon 2020, prop. 3).

    The score is -x/σ², a step is x + (α/2) s + √α ξ with α = `relative_step` · σ² (ε/σ_L²), and the chain comes from
    the level before with the variance (ratio · σ)².

        v_T/σ² = (1 - δ)^{2T} (γ² - v) + v,  δ = α / (2σ²),  v = 1 / (1 - δ/2)
    """
    delta = relative_step / 2
    limit = 1 / (1 - delta / 2)
    return (1 - delta) ** (2 * steps) * (ratio**2 - limit) + limit


def _require_range(high: float, low: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(f"high and low must be finite with high > low > 0, got {high!r} and {low!r}")
