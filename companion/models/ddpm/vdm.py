"""The variational diffusion model (Kingma, Salimans, Poole and Ho 2021, "Variational diffusion models"): a diffusion
in continuous time, of as little noise as the bound asks for.

model = VDM(Fourier(UNet(5, channels_out=1)), (1, 28, 28), levels=256)
fit(model, x, Settings(steps=10_000, ema_decay=0.999))
model.elbo(x), model.sample(64)
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.models.ddpm.levels import require_level_count, stretched, unstretched
from companion.models.ddpm.predictions import from_eps, to_eps
from companion.models.flows.flow import require_shape
from companion.models.questions import Loss
from companion.samplers.diffusion import Eps, Grid, ancestral, follow
from companion.validate import require_events, require_positive_int


class VDM(nn.Module):
    """q(z_t|x) = N(a_t x, s_t² I) for all t from 0 to 1, with a² = sigmoid(-γ(t)) and s² = sigmoid(γ(t)), so that the
    signal-to-noise ratio a²/s² is exp(-γ). Backwards from z_1 ~ N(0, I), p(z_s|z_t) = q(z_s|z_t, x̂(z_t)), to z_0, which
    still has a little noise, and to the data by a decoder p(x|z_0) ∝ q(z_0|x), normalised over all values of x.

        γ(t) = γ_0 + (γ_1 - γ_0) m(t),  m(0) = 0,  m(1) = 1,  m' > 0   (Kingma et al. 2021, eq. 59)

    In continuous time the bound depends on γ_0 and γ_1, and not on m (sec. 5.1): the two learn from the bound, and m
    from the variance of its estimate.

    Args:
        network: ε̂ from (z_t, time), in the shape of z_t; time is 1,000 m(t). For images see `companion.nets.fourier`.
        event_shape: the shape of one example.
        gamma: γ_0 and γ_1, at the start where they are learned. These are the paper's for images of 256 levels.
        schedule: "learned", or "fixed" with these γ_0 and γ_1, and linear between.
        levels: examples hold intensities k/(levels - 1), are stretched to [-1, 1], and the ELBO bounds the probability
            of the levels; None for any real numbers, of a standard deviation about 1, and their density.

    Raises ValueError for an argument that means nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        event_shape: tuple[int, ...],
        gamma: tuple[float, float] = (-13.3, 5.0),
        schedule: Literal["learned", "fixed"] = "learned",
        levels: int | None = None,
    ):
        super().__init__()
        require_shape(event_shape)
        if len(gamma) != 2 or not (all(map(math.isfinite, gamma)) and gamma[0] < gamma[1]):
            raise ValueError(f"gamma must be two finite numbers, the first below the second, got {gamma!r}")
        if schedule not in ("learned", "fixed"):
            raise ValueError(f"schedule must be 'learned' or 'fixed', got {schedule!r}")
        require_level_count(levels)
        self.network, self.event_shape, self.levels = network, tuple(event_shape), levels
        self.dims = math.prod(event_shape)
        learned = schedule == "learned"
        self.ends = nn.Parameter(torch.tensor(gamma, dtype=torch.get_default_dtype()), requires_grad=learned)
        self.inside = Rising() if learned else None

    def gamma(self, t: Float[Tensor, " batch"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """γ(t) and γ'(t) for t from 0 to 1."""
        m, slope = self._inside(t)
        return self._gamma(m), self._span() * slope

    # Training

    def loss(self, x: Float[Tensor, " batch *event"]) -> Loss:
        """Minus the ELBO in continuous time, nats: an unbiased draw, at one time for each example.

            -log p(x) ≤ KL(q(z_1|x)‖p(z_1)) - E log p(x|z_0) + ½ ∫ γ'(t) E‖ε - ε̂(z_t, t)‖² dt   (eqs. 11 and 17)

        The times of a batch are at equal distances, from a random one on (app. I.1). Of the third part m gets the
        gradient of each example's square: as its mean does not depend on m, what falls is its variance (eqs. 60 to 62).
        This gradient is far larger than those of the other parameters, and to clip their common norm would silence
        them.

        Under autocast only the network is in bfloat16. Raises TypeError or ValueError for a wrong shape or dtype of x,
        values that are no levels, and NaN.
        """
        x0 = self.scaled(x)
        places = torch.arange(len(x0), dtype=x0.dtype, device=x0.device) / len(x0)
        m, slope = self._inside((torch.rand_like(places[:1]) + places) % 1)
        diffusion = self._span() * slope * self._error(x0, m)
        if m.requires_grad:
            twice = 2 * diffusion.detach()
            for way in (m, slope):
                way.register_hook(lambda gradient: twice * gradient)
        prior, reconstruction = self._prior_kl(x0), -self._log_decoder(x0)
        parts = {"diffusion": diffusion, "prior": prior, "reconstruction": reconstruction}
        return Loss(diffusion + prior + reconstruction, parts, "nats")

    # The bound

    @torch.no_grad()
    def elbo(
        self,
        x: Float[Tensor, " batch *event"],
        steps: int | None = None,
        terms: int | None = 100,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        """A lower bound on log p(x), nats, with fresh noise at each time: of the levels' probability, or of a density.
        As in DDPM, of the same x̂_0 as for sampling: within [-1, 1] where there are levels, and so never further from
        x than the one in `loss`.

        Args:
            steps: T of a chain in equal steps from t to s = t - 1/T, for which the integral of `loss` is a sum,
                ½ Σ (exp(γ(t) - γ(s)) - 1) E‖ε - ε̂(z_t, t)‖² (eq. 14); None for continuous time.
            terms: how many times to draw for each example, one from each of so many equal parts of [0, 1]: unbiased,
                as cheap as that many calls of the network, and noisy. None, or `steps` and more, is all the steps.
            generator: on the device of x.

        Raises as `loss`; ValueError for `steps` or `terms` that mean nothing.
        """
        for name, value in (("steps", steps), ("terms", terms)):
            if value is not None:
                require_positive_int(value, name)
        if terms is None:
            if steps is None:
                raise ValueError("terms must be a number where steps is None: continuous time has no last one")
            terms = steps
        every = steps is not None and terms >= steps
        count = steps if steps is not None and every else terms
        x0 = self.scaled(x)
        with torch.autocast(x0.device.type, enabled=False):
            total = self._log_decoder(x0, generator) - self._prior_kl(x0)
            for part in range(count):
                u = torch.full_like(total, 0.5) if every else torch.empty_like(total).uniform_(generator=generator)
                t = (part + u) / count
                if steps is None:
                    m, slope = self._inside(t)
                    weight = self._span() * slope
                else:
                    # Rounding may have made t 1.
                    step = (t * steps).floor().clamp(max=steps - 1)
                    m, before = self._inside((step + 1) / steps)[0], self._inside(step / steps)[0]
                    weight = steps * torch.expm1(self._span() * (m - before))
                total -= weight * self._error(x0, m, generator, clip=self.levels is not None) / count
        return total

    # Sampling

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        steps: int = 1000,
        sampler: Callable[..., Tensor] = ancestral,
        progress: bool = False,
    ) -> Float[Tensor, " n *event"]:
        """Draws: from N(0, I) to z_0 in so many steps, with a sampler of `companion.samplers`, of which `ancestral` is
        the model's own but that it adds no noise in the last step; then the mode of the decoder, which is z_0/a_0, or
        the level next to it.

        Raises ValueError for an argument that means nothing, FloatingPointError when samples are not finite.
        """
        grid = self.grid(steps)
        z = follow(sampler, self.predictor(), self.noise(n, generator), grid, generator, progress)
        x = self.unscaled(z / math.sqrt(grid.alpha_bars[-1]))
        return x if self.levels is None else (x * (self.levels - 1)).round() / (self.levels - 1)

    @torch.no_grad()
    def noise(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n *event"]:
        """N(0, I), where sampling starts. Raises ValueError unless n is a positive integer."""
        require_positive_int(n, "n")
        return self.ends.new_empty(n, *self.event_shape).normal_(generator=generator)

    @torch.no_grad()
    def grid(self, steps: int) -> Grid:
        """So many equal steps of time from 1 to 0, and ᾱ = a² there: it ends at sigmoid(-γ_0), a little below 1.

        Raises ValueError unless steps is a positive integer.
        """
        require_positive_int(steps, "steps")
        t = torch.linspace(1, 0, steps + 1, dtype=self.ends.dtype, device=self.ends.device)
        # In float64, as samplers take the difference of ᾱ from 1.
        return Grid(t.tolist(), torch.sigmoid(-self.gamma(t)[0].double()).tolist())

    def predictor(self) -> Eps:
        """eps(x, t) for samplers: ε̂ at a t from 0 to 1, changed, where there are levels, so that its x̂_0 is within
        [-1, 1]."""

        def eps(x: Tensor, t: float) -> Tensor:
            with torch.autocast(x.device.type, enabled=False):
                return self._eps(x, self._inside_at(t, x), clip=self.levels is not None)

        return eps

    def score(self, x: Float[Tensor, " batch *event"], t: float) -> Float[Tensor, " batch *event"]:
        """∇ log q(z_t) ≈ -ε̂/s_t at a t from 0 to 1, of x = z_t as it is inside, not stretched.

        Raises TypeError or ValueError for a wrong shape or dtype, NaN, and a t out of range.
        """
        require_events(x, self.event_shape)
        with torch.autocast(x.device.type, enabled=False):
            m = self._inside_at(t, x)
            return from_eps(self._eps(x, m), "score", x, *self._signal_and_noise(m))

    def scaled(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch *event"]:
        """x as it is inside: stretched from [0, 1] to [-1, 1] where there are levels. Raises as `loss`."""
        return stretched(x, self.event_shape, self.levels)

    def unscaled(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch *event"]:
        """The inverse of `scaled`."""
        return unstretched(x, self.levels)

    # Inside

    def _inside(self, t: Float[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        return (t, torch.ones_like(t)) if self.inside is None else self.inside(t)

    def _inside_at(self, t: float, x: Tensor) -> Float[Tensor, " batch"]:
        if not 0 <= t <= 1:
            raise ValueError(f"t must be from 0 to 1, got {t!r}")
        return self._inside(x.new_full((1,), t))[0].expand(len(x))

    def _span(self) -> Float[Tensor, ""]:
        return self.ends[1] - self.ends[0]

    def _gamma(self, m: Tensor) -> Tensor:
        return self.ends[0] + self._span() * m

    def _signal_and_noise(self, m: Float[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """a and s, for events."""
        gamma = self._gamma(m).reshape(-1, *[1] * len(self.event_shape))
        return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()

    def _error(
        self, x0: Tensor, m: Float[Tensor, " batch"], generator: torch.Generator | None = None, clip: bool = False
    ) -> Float[Tensor, " batch"]:
        """½‖ε - ε̂‖² of one draw."""
        signal, noise = self._signal_and_noise(m)
        eps = torch.empty_like(x0).normal_(generator=generator)
        return (eps - self._eps(signal * x0 + noise * eps, m, clip)).square().flatten(1).sum(1) / 2

    def _eps(self, z: Tensor, m: Float[Tensor, " batch"], clip: bool = False) -> Float[Tensor, " batch *event"]:
        answer = self.network(z, 1000 * m).to(z.dtype)
        if answer.shape != z.shape:
            raise ValueError(f"network must answer with the shape {tuple(z.shape)}, got {tuple(answer.shape)}")
        if not clip:
            return answer
        signal, noise = self._signal_and_noise(m)
        return to_eps(from_eps(answer, "x0", z, signal, noise).clamp(-1, 1), "x0", z, signal, noise)

    def _prior_kl(self, x0: Tensor) -> Float[Tensor, " batch"]:
        """KL(q(z_1|x)‖N(0, I))."""
        a2, log_s2 = torch.sigmoid(-self.ends[1]), F.logsigmoid(self.ends[1])
        return (a2 * x0.square() - a2 - log_s2).flatten(1).sum(1) / 2

    def _log_decoder(self, x0: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, " batch"]:
        """E log p(x|z_0): one draw of it for levels; exactly that of N(x; z_0/a_0, s_0²/a_0²), s_0²/a_0² = exp(γ_0)."""
        low = self.ends[0]
        if self.levels is None:
            return -self.dims / 2 * (1 + math.log(2 * math.pi) + low) * x0.new_ones(len(x0))
        signal, noise = torch.sigmoid(-low).sqrt(), torch.sigmoid(low).sqrt()
        z = signal * x0 + noise * torch.empty_like(x0).normal_(generator=generator)
        return log_softmax_of_levels(x0, z, signal, noise, self.levels)


class Rising(nn.Module):
    """m(t) and m'(t) with m(0) = 0 and m(1) = 1: f(t) = l₁(t) + l₃(sigmoid(l₂(l₁(t)))), linear layers with positive
    weights, minus f(0) and over f(1) - f(0) (Kingma et al. 2021, app. H and eq. 59).

    At the start the sigmoids rise one after the other, from one end to the other, and m is nearly linear.
    """

    def __init__(self, units: int = 1024):
        super().__init__()
        steep = 10.0
        self.slope, self.offset = nn.Parameter(_softplus_inverse(torch.ones(()))), nn.Parameter(torch.zeros(()))
        self.steep = nn.Parameter(_softplus_inverse(torch.full((units,), steep)))
        self.shift = nn.Parameter(-steep * torch.linspace(0, 1, units))
        self.height = nn.Parameter(_softplus_inverse(torch.ones(units)))

    def forward(self, t: Float[Tensor, " batch"]) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        slope, steep, height = (F.softplus(weight) for weight in (self.slope, self.steep, self.height))
        line = slope * torch.cat([t, t.new_tensor([0.0, 1.0])]) + self.offset
        bend = torch.sigmoid(line[:, None] * steep + self.shift)
        # Products and a mean, no matrix product, which autocast would make one of bfloat16.
        f = line + (height * bend).mean(1)
        f_slope = slope * (1 + (height * steep * bend * (1 - bend)).mean(1))
        start, rise = f[-2], f[-1] - f[-2]
        return (f[:-2] - start) / rise, f_slope[:-2] / rise


def log_softmax_of_levels(
    x: Float[Tensor, " batch *event"],
    z: Float[Tensor, " batch *event"],
    signal: Float[Tensor, ""],
    noise: Float[Tensor, ""],
    levels: int,
) -> Float[Tensor, " batch"]:
    """log ∏ N(z; a x, s²)/Σ_v N(z; a v, s²), nats, with v all levels -1 + 2k/(levels - 1), one of which each x is
    (Kingma et al. 2021, eq. 8)."""
    between = 2 / (levels - 1)
    # A level nine standard deviations of z/a further away than the nearest adds less than e⁻⁴⁰ of it to the sum.
    reach = min(math.ceil(9 * (noise / signal).item() / between), levels - 1)
    nearest = ((z / signal + 1) / between).detach().round().clamp(0, levels - 1)
    k = nearest[..., None] + torch.arange(-reach, reach + 1, device=x.device)
    of_each = ((z[..., None] - signal * (between * k - 1)) / noise).square() / -2
    of_each = of_each.masked_fill((k < 0) | (k > levels - 1), -torch.inf)
    own = ((z - signal * x) / noise).square() / -2
    return (own - of_each.logsumexp(-1)).flatten(1).sum(1)


def _softplus_inverse(x: Tensor) -> Tensor:
    return x.expm1().log()
