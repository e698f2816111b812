"""What an energy-based model minimises in place of -log p(x), whose Z it does not know."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from companion.models.ebm.laplacian import as_leaf, require_curvature, require_smooth, slope, with_laplacian
from companion.models.questions import Density, Loss, Sampler
from companion.samplers import langevin
from companion.validate import require_positive_int

if TYPE_CHECKING:
    from companion.models.ebm.ebm import EBM

Start = Literal["data", "buffer", "noise"]


class Objective(nn.Module, ABC):
    """Called with a model and a batch, says what each example costs; may learn parameters and keep state of its own.

    Under autocast, losses with a derivative of the energy in them are computed without it.
    """

    def prepare(self, model: EBM) -> None:
        """Called by the model that it becomes the objective of."""

    @abstractmethod
    def forward(self, model: EBM, x: Float[Tensor, " batch *event"]) -> Loss: ...


class ContrastiveDivergence(Objective):
    """E(x) - E(x̃), x̃ from Langevin chains of the model: its gradient is that of -log p(x) as far as they have mixed.

        ∇_θ -log p(x) = ∇_θ E(x) - E_p[∇_θ E]

    The chains are taken as given: no gradient flows through them. The value is no likelihood, and does not fall as
    the model learns; that it stays near 0 says that data and chains have the same mean energy.

    Args:
        steps: k, of each chain in each loss.
        step_size: ε of the chains.
        start: where they start.
            "data": at the examples themselves, CD-k (Hinton 2002). What lies far from all data is not seen;
            "buffer": where earlier ones ended, persistent contrastive divergence (Tieleman 2008), a few of them
            anew from noise (Du and Mordatch 2019, sec. 3.2);
            "noise": uniformly in the model's box, always (Nijkamp et al. 2019). What is learned with few steps is a
            sampler of as many steps rather than an energy.
        buffer_size: of the chains kept by "buffer"; at least a batch. They are in the state dict, and noise at first.
        reinit: of "buffer", the probability that a chain starts anew from noise.
        regulariser: α of α (E(x)² + E(x̃)²), which keeps energies, of which only differences count otherwise, near
            zero (Du and Mordatch 2019, sec. 3.3).

    Raises ValueError for an argument that means nothing.
    """

    buffer: Tensor | None

    def __init__(
        self,
        steps: int,
        step_size: float,
        start: Start = "data",
        buffer_size: int = 10_000,
        reinit: float = 0.05,
        regulariser: float = 0.0,
    ):
        super().__init__()
        require_positive_int(steps, "steps")
        _require_number(step_size, "step_size", above=True)
        if start not in get_args(Start):
            raise ValueError(f"start must be one of {', '.join(map(repr, get_args(Start)))}, got {start!r}")
        require_positive_int(buffer_size, "buffer_size")
        _require_number(reinit, "reinit", above=False, high=1)
        _require_number(regulariser, "regulariser", above=False)
        self.steps, self.step_size, self.start = steps, step_size, start
        self.buffer_size, self.reinit, self.regulariser = buffer_size, reinit, regulariser
        self.register_buffer("buffer", None)

    def prepare(self, model: EBM) -> None:
        """Draws the chains of "buffer" from the model's box. Raises ValueError where it has those of another model."""
        if self.start == "buffer":
            if self.buffer is not None:
                raise ValueError("this objective keeps the chains of another model; make one for each model")
            self.buffer = model.noise(self.buffer_size)

    def forward(self, model: EBM, x: Float[Tensor, " batch *event"]) -> Loss:
        """Raises FloatingPointError when a chain is lost, ValueError for a batch larger than the buffer."""
        start, chosen = self.starts(model, x)
        samples = langevin(model, start, self.step_size, self.steps, keep=False).last
        if chosen is not None and self.buffer is not None and self.training:
            self.buffer[chosen] = samples
        data, fake = model(torch.cat([x, samples])).chunk(2)
        parts = {"data": data, "samples": -fake}
        if self.regulariser:
            parts["regulariser"] = self.regulariser * (data.square() + fake.square())
        return Loss.of(parts, "energy")

    @torch.no_grad()
    def starts(self, model: EBM, x: Float[Tensor, " batch *event"]) -> tuple[Tensor, Tensor | None]:
        """Where the chains of a batch start, and which of the buffer they are, None for other starts.

        Raises ValueError for a batch larger than the buffer.
        """
        n = len(x)
        if self.start == "data":
            return x, None
        noise = model.noise(n)
        if self.start == "noise":
            return noise, None
        if n > self.buffer_size:
            raise ValueError(f"buffer_size must be at least the batch's {n}, got {self.buffer_size}")
        chosen = torch.randperm(self.buffer_size, device=x.device)[:n]
        anew = torch.rand(n, *[1] * (x.ndim - 1), device=x.device) < self.reinit
        assert self.buffer is not None  # since `prepare`
        return torch.where(anew, noise, self.buffer[chosen]), chosen


class NoiseContrastive(Objective):
    """Logistic regression between data and noise y of a known density, log Z one of its parameters.

        softplus(-ℓ(x)) + Σ_j softplus(ℓ(y_j)),    ℓ(x) = -E(x) - log Z - log p_n(x) - log ν,    j = 1 … ν

    is minus ν + 1 times the mean log-probability of the classes (Gutmann and Hyvärinen 2012, eq. 8, of 2010 for ν = 1).
    Where p_n is positive wherever the data are, its minimum over all E is at e^{-E}/Z = p_data: the model is normalised
    by learning. It has to resemble the data, or else the classes are told apart without knowing either.

    Attributes:
        log_z: log Z, learned.

    Args:
        noise: a `Distribution`, or a model with `log_prob(x)` and `sample(n)`; held fixed.
        samples: ν, draws from the noise for each example.

    Raises TypeError or ValueError for noise without a density or a number of samples that means nothing.
    """

    def __init__(self, noise: Distribution | Sampler, samples: int = 1):
        super().__init__()
        if not all(callable(getattr(noise, method, None)) for method in ("log_prob", "sample")):
            raise TypeError(f"noise must have log_prob(x) and sample(n), got {type(noise).__name__}")
        require_positive_int(samples, "samples")
        self.samples = samples
        # In a tuple: a model would become a part of this one, and be trained with it.
        self._noise = (noise,)
        self.log_z = nn.Parameter(torch.zeros(()))

    def forward(self, model: EBM, x: Float[Tensor, " batch *event"]) -> Loss:
        """Raises ValueError where the noise's events are of another shape, or its density is zero at an example."""
        batch, [noise] = len(x), self._noise
        with torch.no_grad():
            n = batch * self.samples
            y = noise.sample((n,)) if isinstance(noise, Distribution) else noise.sample(n)
            if y.shape != (n, *x.shape[1:]):
                raise ValueError(f"noise must draw events of shape {tuple(x.shape[1:])}, got {tuple(y.shape[1:])}")
            # In the noise's own precision and on its device, which a Distribution does not tell otherwise.
            log_noise = cast(Density, noise).log_prob(torch.cat([x.to(y), y])).to(x)
            if log_noise.shape != (batch + n,):
                raise ValueError(
                    f"noise must give each event one log-density, got {tuple(log_noise.shape[1:])}; "
                    "torch.distributions.Independent makes coordinates an event"
                )
            if not torch.isfinite(log_noise).all():
                raise ValueError(
                    "noise must have a finite log-density wherever there are data, got "
                    f"{int((~torch.isfinite(log_noise)).sum())} infinite or NaN values"
                )
        log_ratio = -model(torch.cat([x, y.to(x)])) - self.log_z - log_noise - math.log(self.samples)
        real, fake = log_ratio.split([batch, n])
        # softplus(-ℓ) = -log σ(ℓ)
        parts = {"data": F.softplus(-real), "noise": F.softplus(fake).view(batch, self.samples).sum(1)}
        return Loss.of(parts, "cross-entropy")


class ScoreMatching(Objective):
    """½ ‖s(x)‖² + ∇·s(x), s = -∇E: half the Fisher divergence, but for a constant (Hyvärinen 2005, theorem 1).

        ½ E‖s - ∇ log p_data‖² = E[½ ‖s‖² + ∇·s] + ½ E‖∇ log p_data‖²

    by integration by parts, for a smooth E and a density of the data that is differentiable and falls to zero at the
    edge of its support. Exact: forward through an `EnergyMLP`, d_x backward passes for another network.
    """

    def forward(self, model: EBM, x: Float[Tensor, " batch *event"]) -> Loss:
        """Raises ValueError for an energy with kinks."""
        with torch.autocast(x.device.type, enabled=False):
            _, gradient, laplacian = with_laplacian(model.network, x)
        parts = {"squared score": gradient.square().flatten(1).sum(1) / 2, "divergence": -laplacian}
        return Loss.of(parts, "Fisher divergence")


class SlicedScoreMatching(Objective):
    """The same with the divergence in random directions v, E[v vᵀ] = I (Song et al. 2019):

        ½ (vᵀs)² + vᵀ(∇s)v,    or    ½ ‖s‖² + vᵀ(∇s)v

    each with the same mean as `ScoreMatching` has; in the second, SSM-VR, one of the two terms is exact.

    Args:
        projections: directions for each example, independent signs ±1 in each coordinate.
        variance_reduced: the second of the two.

    Raises ValueError for a number of projections that means nothing.
    """

    def __init__(self, projections: int = 1, variance_reduced: bool = True):
        super().__init__()
        require_positive_int(projections, "projections")
        self.projections, self.variance_reduced = projections, variance_reduced

    def directions(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " projections batch *event"]:
        """Independent signs ±1, drawn anew at each call."""
        return torch.randint(0, 2, (self.projections, *x.shape), device=x.device).to(x.dtype) * 2 - 1

    def forward(self, model: EBM, x: Float[Tensor, " batch *event"]) -> Loss:
        """Raises ValueError for an energy with kinks."""
        require_smooth(model.network)
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            leaf = as_leaf(x)
            s = -slope(model(leaf), leaf)
            v = self.directions(x)
            along = (v * s).flatten(2).sum(2)  # vᵀs, (projections, batch)
            curvature = torch.stack([(slope(a, leaf) * d).flatten(1).sum(1) for a, d in zip(along, v, strict=True)])
        require_curvature(curvature, s)
        squared = s.square().flatten(1).sum(1) if self.variance_reduced else along.square().mean(0)
        parts = {"squared score": squared / 2, "divergence": curvature.mean(0)}
        return Loss.of(parts, "Fisher divergence")


class DenoisingScoreMatching(Objective):
    """½ ‖s(x̃) + ε/σ‖², x̃ = x + σε, ε ~ N(0, I) (Vincent 2011, eq. 9).

    Its mean is ½ E‖s - ∇ log p_σ‖² but for a constant, with p_σ the data's density after the noise: p_σ is what is
    learned, and no second derivative is needed.

    Args:
        sigma: the standard deviation of the noise.

    Raises ValueError for a sigma that is not positive.
    """

    def __init__(self, sigma: float):
        super().__init__()
        _require_number(sigma, "sigma", above=True)
        self.sigma = sigma

    def forward(self, model: EBM, x: Float[Tensor, " batch *event"]) -> Loss:
        """At one draw of ε for each example. Raises ValueError for a network that does not answer (batch,)."""
        epsilon = torch.randn_like(x)
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            noisy = (x + self.sigma * epsilon).detach().requires_grad_()
            s = -slope(model(noisy), noisy)
        value = (s + epsilon / self.sigma).square().flatten(1).sum(1) / 2
        return Loss(value, {"squared distance": value}, "Fisher divergence")


def _require_number(value: float, name: str, above: bool, high: float = float("inf")) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and (value > 0 if above else value >= 0) and value <= high and value < float("inf")):
        low = "above 0" if above else "at least 0"
        upper = "finite" if high == float("inf") else f"at most {high:g}"
        raise ValueError(f"{name} must be {low} and {upper}, got {value!r}")
