"""Consistency models (Song, Dhariwal, Chen and Sutskever 2023, "Consistency models"; Song and Dhariwal 2023, "Improved
techniques for training consistency models").

    model = ConsistencyModel(UNet(1), (1, 28, 28), metric="pseudo-huber", levels=256)
    fit(model, x, Settings(steps=10_000, ema_decay=0.999))
    model.sample(64)

Noise is that of x̄ = x_0 + σ̄ε, for a diffusion x̄ = x_t/√ᾱ and σ̄ = √((1 - ᾱ)/ᾱ).
"""

import copy
import math
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.models.ddpm import DDPM, to_eps
from companion.models.ddpm.levels import require_level_count, stretched, unstretched
from companion.models.flows.flow import require_shape
from companion.models.questions import Loss
from companion.validate import require_events, require_label, require_positive_int

Metric = Literal["squared", "pseudo-huber"]
Solver = Literal["heun", "euler"]


class ConsistencyModel(nn.Module):
    """f(x̄, σ̄), which leads from any point of a path of the ODE dx̄/dσ̄ = ε̂ to where the path ends, at σ̄_min.

        f(x̄, σ̄) = c_skip x̄ + c_out F(c_in x̄, time),    f(x̄, σ̄_min) = x̄
        c_skip = σ_d²/((σ̄ - σ̄_min)² + σ_d²),    c_out = σ_d (σ̄ - σ̄_min)/√(σ_d² + σ̄²),    c_in = 1/√(σ_d² + σ̄²)

    (Song et al. 2023, eq. 5 and app. C), with a time that goes from 0 at σ̄_min to 1,000 at σ̄_max as log σ̄ does. It
    learns that f is the same at two points of a path at neighbouring levels of σ̄. The one with less noise is found by a
    step of the ODE with a teacher's ε̂, which is distillation (their algorithm 2), or it has the x_0 and ε of the other
    one, which is training without a teacher (algorithm 3). There f has the weights θ⁻, a running mean of θ.

    Args:
        network: F, (batch, *event), times (batch,) and, if it has classes, labels to (batch, *event).
        event_shape: the shape of one example.
        teacher: a DDPM with the same event shape, classes and `levels`, or any module from x̄, σ̄ (batch,) and, if the
            network has classes, labels to ε̂ = -σ̄ ∇log p(x̄; σ̄). A frozen copy is kept. None is no teacher.
        noise_levels: N, of them; see `karras_levels`.
        sigma_min: σ̄_min. A DDPM has σ̄ from t = 1 to T, and here less of it at most.
        sigma_max: σ̄_max.
        sigma_data: σ_d, about the standard deviation of the data; of those stretched to [-1, 1] where there are levels.
        decay: μ of θ⁻ ← μ θ⁻ + (1 - μ) θ after each step; with 0, θ⁻ is θ, held fixed. Without a teacher only 0 has the
            gradient of distillation in the limit of many levels (Song and Dhariwal 2023, sec. 3.2).
        metric: d, "squared", ‖f - f⁻‖², or "pseudo-huber", √(‖f - f⁻‖² + c²) - c with c = 0.00054 √dims (there, sec.
            3.3), for which large distances count less.
        solver: of the teacher's ODE, "heun", of second order, or "euler", that is DDIM.
        levels: examples hold intensities k/(levels - 1), and are stretched to [-1, 1]; None for any real numbers.

    Raises TypeError or ValueError for an argument that means nothing.
    """

    sigmas: Tensor
    _like: Tensor

    def __init__(
        self,
        network: nn.Module,
        event_shape: tuple[int, ...],
        teacher: nn.Module | None = None,
        noise_levels: int = 18,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        decay: float = 0.0,
        metric: Metric = "squared",
        solver: Solver = "heun",
        levels: int | None = None,
    ):
        super().__init__()
        require_shape(event_shape)
        for name, value, allowed in (("metric", metric, Metric), ("solver", solver, Solver)):
            if value not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}")
        if not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data must be above 0 and finite, got {sigma_data!r}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay!r}")
        require_level_count(levels)
        self.network, self.event_shape = network, tuple(event_shape)
        self.classes = getattr(network, "classes", None)
        self.sigma_data, self.decay, self.metric, self.solver, self.levels = sigma_data, decay, metric, solver, levels
        # In float64, and rounded where they are used.
        self.register_buffer("sigmas", karras_levels(noise_levels, sigma_min, sigma_max), persistent=False)
        # Where and in what precision to draw.
        self.register_buffer("_like", torch.empty(0), persistent=False)
        self.target = copy.deepcopy(network).requires_grad_(False)
        if isinstance(teacher, DDPM):
            self._require_fit(teacher)
            teacher = _Direction(teacher)
        elif not (teacher is None or isinstance(teacher, nn.Module)):
            raise TypeError(f"teacher must be a DDPM, a module or None, got {type(teacher).__name__}")
        self.teacher = None if teacher is None else copy.deepcopy(teacher).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "ConsistencyModel":
        """The teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def loss(self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None) -> Loss:
        """d(f(x̄', σ̄'), f⁻(x̄, σ̄))/(σ̄' - σ̄), two neighbouring levels drawn for each example. By the division (Song and
        Dhariwal 2023, sec. 3.1) the gradient of the squared distance has a limit for many levels.

        In training mode θ⁻ first follows what the last step made of θ. Raises TypeError or ValueError for a wrong shape
        or dtype of x, values that are no levels, NaN, and a label that is missing, not asked for, or out of range.
        """
        x0 = stretched(x, self.event_shape, self.levels)
        require_label(label, self.classes, len(x))
        if self.training:
            self._follow()
        level = torch.randint(len(self.sigmas) - 1, (len(x),), device=x.device)
        low, high = self.sigmas[level].to(x0.dtype), self.sigmas[level + 1].to(x0.dtype)
        noise = torch.randn_like(x0)
        noisy = x0 + self._broadcast(high) * noise
        value = self._f(self.network, noisy, high, label)
        with torch.no_grad():
            less = x0 + self._broadcast(low) * noise if self.teacher is None else self._step(noisy, high, low, label)
            target = self._f(self.target, less, low, label)
        distance = (value - target).square().flatten(1).sum(1)
        if self.metric == "pseudo-huber":
            c = 0.00054 * math.prod(self.event_shape) ** 0.5
            distance = (distance + c**2).sqrt() - c
        weighted = distance / (high - low)
        return Loss(weighted, {"distance": weighted}, f"{self.metric} distance over the difference of noise")

    def forward(
        self,
        x: Float[Tensor, " batch *event"],
        sigma: float | Float[Tensor, " batch"],
        label: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch *event"]:
        """f(x̄, σ̄), of one σ̄ for all or of one for each, without autocast; x̄ and f as they are inside, not stretched.

        Raises as `loss`, and ValueError for a σ̄ out of range.
        """
        require_events(x, self.event_shape)
        require_label(label, self.classes, len(x))
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        if sigma.shape not in ((), (len(x),)):
            raise ValueError(f"sigma must be a number or have shape ({len(x)},), got {tuple(sigma.shape)}")
        low, high = self.sigmas[[0, -1]].to(x.dtype)
        wrong = ~((sigma >= low) & (sigma <= high))
        if wrong.any():
            raise ValueError(f"sigma must be from {low:g} to {high:g}, got {sigma[wrong].flatten()[0]:g}")
        with torch.autocast(x.device.type, enabled=False):
            return self._f(self.network, x, sigma.expand(len(x)), label)

    @torch.no_grad()
    def noise(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n *event"]:
        """N(0, σ̄_max² I), where sampling starts. Raises ValueError unless n is a positive integer."""
        require_positive_int(n, "n")
        return self.sigmas[-1].item() * self._like.new_empty(n, *self.event_shape).normal_(generator=generator)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        label: Int[Tensor, " n"] | None = None,
        steps: int = 1,
    ) -> Float[Tensor, " n *event"]:
        """f of `noise`; in each further step f of that, with new noise added up to a lower level (Song et al. 2023,
        algorithm 1). The levels are evenly spaced among those of the training, from the highest.

        Raises ValueError for an n, a label or `steps` that mean nothing.
        """
        require_positive_int(steps, "steps")
        last = len(self.sigmas) - 1
        if steps > last:
            raise ValueError(f"steps must be at most {last}, the levels above sigma_min, got {steps}")
        x = self.forward(self.noise(n, generator), self.sigmas[-1], label)
        for k in range(1, steps):
            sigma = self.sigmas[round(last * (1 - k / steps))]
            width = (sigma.square() - self.sigmas[0].square()).sqrt().to(x.dtype)
            x = self.forward(x + width * torch.empty_like(x).normal_(generator=generator), sigma, label)
        return unstretched(x, self.levels)

    def _f(self, network: nn.Module, x: Tensor, sigma: Float[Tensor, " batch"], label: Tensor | None) -> Tensor:
        low, high = self.sigmas[[0, -1]].to(x.dtype)
        time = 1000 * (sigma / low).log() / (high / low).log()
        sigma, d = self._broadcast(sigma), self.sigma_data
        total = (sigma.square() + d**2).sqrt()
        answer = network(x / total, time, *self._labels(label)).to(x.dtype)
        if answer.shape != x.shape:
            raise ValueError(f"network must answer with the shape {tuple(x.shape)}, got {tuple(answer.shape)}")
        return d**2 / ((sigma - low).square() + d**2) * x + d * (sigma - low) / total * answer

    def _step(self, x: Tensor, high: Tensor, low: Tensor, label: Tensor | None) -> Float[Tensor, " batch *event"]:
        """One of the teacher's, from σ̄' to σ̄."""
        width, labels = self._broadcast(low - high), self._labels(label)
        assert self.teacher is not None
        first = self.teacher(x, high, *labels)
        if self.solver == "euler":
            return x + width * first
        return x + width * (first + self.teacher(x + width * first, low, *labels)) / 2

    @torch.no_grad()
    def _follow(self) -> None:
        for theirs, mine in zip(self.target.parameters(), self.network.parameters(), strict=True):
            theirs.lerp_(mine, 1 - self.decay)

    def _labels(self, label: Tensor | None) -> tuple[Tensor | None, ...]:
        return () if self.classes is None else (label,)

    def _broadcast(self, values: Float[Tensor, " batch"]) -> Tensor:
        return values.reshape(-1, *[1] * len(self.event_shape))

    def _require_fit(self, teacher: DDPM) -> None:
        for name in ("event_shape", "classes", "levels"):
            if getattr(teacher, name) != getattr(self, name):
                raise ValueError(
                    f"teacher must have the same {name} as the student, {getattr(self, name)}, got "
                    f"{getattr(teacher, name)}"
                )
        least, most = _sigmas(teacher)[[0, -1]].tolist()
        low, high = self.sigmas[[0, -1]].tolist()
        if not least <= low < high <= most:
            raise ValueError(
                f"sigma_min and sigma_max must be from {least:.6g} to {most:.6g}, the noise of the teacher from "
                f"t = 1 to T, got {low:g} and {high:g}"
            )


class _Direction(nn.Module):
    """ε̂(x̄, σ̄) of a DDPM, at the real time of each σ̄: log σ̄ is linear between whole ones, as in `DDPM.predictor`."""

    log_sigmas: Tensor

    def __init__(self, model: DDPM):
        super().__init__()
        self.model = model
        self.register_buffer("log_sigmas", _sigmas(model).log(), persistent=False)

    def forward(self, x: Tensor, sigma: Float[Tensor, " batch"], label: Tensor | None = None) -> Tensor:
        wanted, table = sigma.to(self.log_sigmas.dtype).log(), self.log_sigmas
        below = (torch.searchsorted(table, wanted) - 1).clamp(0, len(table) - 2)
        t = 1 + below + (wanted - table[below]) / (table[below + 1] - table[below])
        sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
        signal = (1 + sigma.square()).rsqrt()
        value, _ = self.model._network(signal * x, t.to(x.dtype), label)
        return to_eps(value, self.model.predicts, signal * x, signal, sigma * signal)


def _sigmas(model: DDPM) -> Float[Tensor, " steps"]:
    """σ̄ at t = 1 … T."""
    return ((1 - model.alpha_bars) / model.alpha_bars).sqrt()[1:]


def karras_levels(n: int, low: float, high: float, rho: float = 7.0) -> Float[Tensor, " n"]:
    """n levels from `low` to `high`, float64, with ρ-th roots at equal distances (Karras et al. 2022, eq. 5; they fall
    there). Raises ValueError for n below 2, and unless 0 < low < high.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise ValueError(f"the number of noise levels must be an integer of at least 2, got {n!r}")
    if not 0 < low < high < math.inf:
        raise ValueError(f"the noise levels must be finite and rise from above 0, got from {low!r} to {high!r}")
    roots = torch.linspace(low ** (1 / rho), high ** (1 / rho), n, dtype=torch.float64)
    levels = roots**rho
    levels[0], levels[-1] = low, high
    return levels
