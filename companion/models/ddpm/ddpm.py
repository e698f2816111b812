"""Denoising diffusion probabilistic models (Ho, Jain and Abbeel 2020; Nichol and Dhariwal 2021).

model = DDPM(UNet(1), (1, 28, 28), linear_schedule(1000), levels=256)
fit(model, x, Settings(steps=10_000, ema_decay=0.999))
model.sample(64)
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.models.ddpm.decoder import discretised_gaussian
from companion.models.ddpm.levels import require_level_count, stretched, unstretched
from companion.models.ddpm.predictions import Prediction, from_eps, require_prediction, to_eps
from companion.models.ddpm.schedules import alpha_bars
from companion.models.flows.flow import require_shape
from companion.models.questions import Loss
from companion.samplers.diffusion import Eps, Grid, ancestral, follow
from companion.validate import require_events, require_label, require_positive_int

Variance = Literal["posterior", "forward", "learned"]
Objective = Literal["simple", "bound", "hybrid"]


class DDPM(nn.Module):
    """p(x_{t-1}|x_t) = N(μ_θ(x_t, t), σ_t² I) for t = T … 1, from x_T ~ N(0, I); the latents' posterior is fixed,
    q(x_t|x_0) = N(√ᾱ_t x_0, (1 - ᾱ_t) I).

    Args:
        network: (x_t, t, label) to the shape of x; t is on a scale from 0 to 1,000 whatever T. With a learned variance
            it has twice as many values on the first axis of an event, the second half ν.
        event_shape: the shape of one example.
        betas: β_1 … β_T; see `linear_schedule` and `cosine_schedule`.
        predicts: what the network's answer is, ε, x_0, v = √ᾱ ε - √(1 - ᾱ) x_0, or the score -ε/√(1 - ᾱ).
        variance: σ_t² is "posterior", β̃_t, or "forward", β_t, or "learned", β_t^ν β̃_t^(1-ν) with ν = (the answer + 1)/2
            (Nichol and Dhariwal 2021, eq. 15). As β̃_1 = 0, σ_1² is β̃_2 in the first two cases, as in both papers' code.
        objective: "simple", the mean squared error of what the network predicts (Ho et al. 2020, eq. 14; of the score
            times 1 - ᾱ_t); "bound", minus the ELBO in nats; "hybrid", for a learned variance, the first plus 0.001
            times the second in bits/dim, which then moves only the variance (Nichol and Dhariwal 2021, eq. 16).
        levels: examples hold intensities k/(levels - 1), are stretched to [-1, 1], and the ELBO bounds the probability
            of the levels (Ho et al. 2020, sec. 3.3); None for any real numbers, of a standard deviation about 1, and
            their density.
        label_dropout: the share of training examples that are shown without their label, if the network has classes.

    Raises ValueError for an argument that means nothing.

    >>> import torch
    >>> from companion.models import DDPM
    >>> from companion.models.ddpm import linear_schedule
    >>> from companion.nets.time_mlp import TimeMLP
    >>> _ = torch.manual_seed(0)
    >>> model = DDPM(TimeMLP(2, hidden=8), (2,), linear_schedule(10, 1e-3, 0.5))
    >>> model.loss(torch.zeros(4, 2)).value.shape, model.sample(3).shape
    (torch.Size([4]), torch.Size([3, 2]))
    """

    _like: Tensor

    def __init__(
        self,
        network: nn.Module,
        event_shape: tuple[int, ...],
        betas: Float[Tensor, " steps"],
        predicts: Prediction = "eps",
        variance: Variance = "posterior",
        objective: Objective = "simple",
        levels: int | None = None,
        label_dropout: float = 0.1,
    ):
        super().__init__()
        require_shape(event_shape)
        require_prediction(predicts)
        for name, value, allowed in (("variance", variance, Variance), ("objective", objective, Objective)):
            if value not in get_args(allowed):
                raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}")
        if (objective == "hybrid") != (variance == "learned") and objective != "bound":
            raise ValueError(
                f"objective 'hybrid' goes with variance 'learned', and 'simple' cannot learn one, got {objective!r} "
                f"with {variance!r}"
            )
        require_level_count(levels)
        if not (isinstance(label_dropout, int | float) and 0 <= label_dropout <= 1):
            raise ValueError(f"label_dropout must be a number from 0 to 1, got {label_dropout!r}")
        bars = alpha_bars(betas)
        if len(bars) < 3:
            raise ValueError(f"betas must hold at least two steps, got {len(bars) - 1}")
        self.network, self.event_shape = network, tuple(event_shape)
        self.predicts, self.variance, self.objective = predicts, variance, objective
        self.levels, self.label_dropout, self.steps = levels, label_dropout, len(bars) - 1
        self.classes: int | None = getattr(network, "classes", None)
        self.dims = math.prod(event_shape)
        beta = 1 - bars[1:] / bars[:-1]
        posterior = beta * (1 - bars[:-1]) / (1 - bars[1:])
        posterior[0] = posterior[1]
        forward = beta.clone()
        if variance != "learned":
            forward[0] = posterior[1]
        # Tables over t, computed in float64; index 0 is no step.
        table = {
            "signal": bars.sqrt(),
            "noise_level": (1 - bars).sqrt(),
            "from_x0": _padded(bars[:-1].sqrt() * beta / (1 - bars[1:])),
            "log_posterior": _padded(posterior.log()),
            "log_forward": _padded(forward.log()),
        }
        for name, values in table.items():
            self.register_buffer(name, values, persistent=False)
        # Where and in what precision to draw.
        self.register_buffer("_like", torch.empty(0), persistent=False)
        # log ᾱ/(1 - ᾱ) at times 1 to T.
        self.alpha_bars, self._log_snr = bars, torch.logit(bars[1:]).numpy()

    # Training

    def loss(self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None) -> Loss:
        """At a time drawn at random for each example, from 1 to T: what `objective` says. Its unit is nats for "bound".

        Raises TypeError or ValueError for a wrong shape or dtype of x, values that are no levels, NaN, and a label that
        is missing, not asked for, or out of range.
        """
        x0 = self.scaled(x)
        require_label(label, self.classes, len(x))
        if label is not None and self.classes is not None:
            hidden = torch.rand(len(x), device=x.device) < self.label_dropout
            label = label.masked_fill(hidden, self.classes)
        t = torch.randint(1, self.steps + 1, (len(x),), device=x.device)
        eps, xt = self._noised(x0, t)
        value, fraction = self._network(xt, t, label)
        mse = self._error(value, x0, eps, t).square().flatten(1).mean(1)
        if self.objective == "simple":
            return Loss(mse, {"squared error": mse}, f"mean squared error of {self.predicts}")
        mean_value = value if self.objective == "bound" else value.detach()
        nats = self.steps * self._term(mean_value, fraction, x0, xt, t)
        if self.objective == "bound":
            prior = self._prior_kl(x0)
            return Loss(nats + prior, {"steps": nats, "prior": prior}, "nats")
        bits = 1e-3 * nats / (self.dims * math.log(2))
        return Loss(mse + bits, {"squared error": mse, "0.001 bits/dim": bits}, "squared error + 0.001 bits/dim")

    # The bound

    @torch.no_grad()
    def elbo(
        self,
        x: Float[Tensor, " batch *event"],
        label: Int[Tensor, " batch"] | None = None,
        terms: int | None = 100,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        """A lower bound on log p(x), nats, with fresh noise at each time: of the levels' probability, or of a density.

            log p(x_0) ≥ E log p(x_0|x_1) - KL(q(x_T|x_0)‖p(x_T)) - Σ_{t≥2} E KL(q(x_{t-1}|x_t, x_0)‖p(x_{t-1}|x_t))

        Args:
            terms: how many of the T terms to take: the first, the largest, and one from each of `terms` - 1 equal parts
                of the others, drawn for each example: unbiased, as cheap as that many calls of the network, and noisy.
                None, or T and more, is all of them.
            generator: on the device of x.

        Raises as `loss`; ValueError for `terms` below 2.
        """
        x0 = self.scaled(x)
        self._require_optional_label(label, len(x))
        total = -self._prior_kl(x0)
        for times, weight in self._draw_times(len(x), terms, generator):
            total -= weight * self._evaluated_term(x0, times, label, generator)
        return total

    @torch.no_grad()
    def term(
        self,
        x: Float[Tensor, " batch *event"],
        t: int,
        label: Int[Tensor, " batch"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        """One draw of a term of -ELBO, nats: KL(q(x_{t-1}|x_t, x_0)‖p(x_{t-1}|x_t)), or -log p(x_0|x_1) for t = 1.

        As in the papers' evaluation, of the same x̂_0 as for sampling: within [-1, 1] where there are levels. Raises as
        `loss`; ValueError for a t that is no step.
        """
        if isinstance(t, bool) or not isinstance(t, int) or not 1 <= t <= self.steps:
            raise ValueError(f"t must be an integer from 1 to {self.steps}, got {t!r}")
        x0 = self.scaled(x)
        self._require_optional_label(label, len(x))
        return self._evaluated_term(x0, torch.full((len(x),), t, device=x.device), label, generator)

    def prior_kl(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch"]:
        """KL(q(x_T|x_0)‖N(0, I)), nats: what is left of the data at the end. Raises as `loss`."""
        return self._prior_kl(self.scaled(x))

    # Sampling

    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        label: Int[Tensor, " n"] | None = None,
        guidance: float = 0.0,
        steps: int | None = None,
        sampler: Callable[..., Tensor] | None = None,
        progress: bool = False,
    ) -> Float[Tensor, " n *event"]:
        """Draws, from N(0, I) at time T.

        Args:
            label: a class for each; None leaves it open.
            guidance: w of ε̃ = (1 + w) ε̂(x, t, label) - w ε̂(x, t); see `predictor`.
            steps: so many of the T times, evenly spaced; None is all of them.
            sampler: of `companion.samplers`; None is `ancestral` with the model's own variance.

        Raises ValueError for an argument that means nothing, FloatingPointError when samples are not finite.
        """
        require_positive_int(n, "n")
        self._require_optional_label(label, n)
        if sampler is None:
            sampler = ancestral if self.variance == "learned" else partial(ancestral, variance=self.variance)
            eps = self.predictor(label, guidance, variance=self.variance == "learned")
        else:
            eps = self.predictor(label, guidance)
        x = follow(sampler, eps, self.noise(n, generator), self.grid(steps), generator, progress)
        return self.unscaled(x)

    @torch.no_grad()
    def noise(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, " n *event"]:
        """N(0, I), where sampling starts. Raises ValueError unless n is a positive integer."""
        require_positive_int(n, "n")
        return self._like.new_empty(n, *self.event_shape).normal_(generator=generator)

    def grid(self, steps: int | None = None, spacing: Literal["time", "log_snr"] = "time") -> Grid:
        """So many steps from time T to 0, with whole times between: evenly spaced in t, or, but for the last, in the
        logarithm of ᾱ/(1 - ᾱ). None is all T.

        Raises ValueError for more than T steps, and for more than there are different times at this spacing.
        """
        steps = self.steps if steps is None else steps
        require_positive_int(steps, "steps")
        if steps > self.steps:
            raise ValueError(f"steps must be at most T = {self.steps}, got {steps}")
        if spacing == "time":
            times = np.linspace(self.steps, 0, steps + 1)
        elif spacing == "log_snr":
            wanted = np.linspace(self._log_snr[-1], self._log_snr[0], steps)
            times = np.append(np.interp(wanted, self._log_snr[::-1], np.arange(self.steps, 0, -1)), 0)
        else:
            raise ValueError(f"spacing must be 'time' or 'log_snr', got {spacing!r}")
        whole = [round(t) for t in times]
        if len(set(whole)) < len(whole):
            raise ValueError(f"steps must be fewer with this spacing: {steps} of them stop twice at the same time")
        return Grid(whole, self.alpha_bars[whole].tolist())

    def predictor(
        self, label: Int[Tensor, " batch"] | None = None, guidance: float = 0.0, variance: bool = False
    ) -> Eps:
        """eps(x, t) for samplers: ε̂ of this model, at a real t from 1 to T, changed, where there are levels, so that
        its x̂_0 is within [-1, 1].

        With `guidance` w, ε̃ = (1 + w) ε̂(x, t, label) - w ε̂(x, t), both from one batch of twice the size (Ho and
        Salimans 2022, eq. 6); w = 0 is the plain conditional model. With `variance`, the pair of ε̂ and ν.

        Raises ValueError for guidance without a label or classes.
        """
        if not (isinstance(guidance, int | float) and math.isfinite(guidance)):
            raise ValueError(f"guidance must be a finite number, got {guidance!r}")
        if label is not None:
            self._require_optional_label(label, len(label))
        classes = 0 if self.classes is None else self.classes  # without any, no label is let through
        if guidance and label is None:
            raise ValueError("label must be given for guidance: without one there is nothing to guide to")

        def eps(x: Tensor, t: float) -> Tensor | tuple[Tensor, Tensor | None]:
            with torch.autocast(x.device.type, enabled=False):
                time = torch.full((len(x),), float(t), device=x.device)
                if guidance and label is not None:
                    both = torch.cat([label, torch.full_like(label, classes)])
                    value, fraction = self._network(torch.cat([x, x]), torch.cat([time, time]), both)
                    named, open_ = value.chunk(2)
                    value = named + guidance * (named - open_)
                    fraction = None if fraction is None else fraction.chunk(2)[0]
                else:
                    value, fraction = self._network(x, time, label)
                answer = self._to_eps(value, x, t, clip=self.levels is not None)
            return (answer, fraction) if variance else answer

        return cast(Eps, eps)  # but for the pair

    def score(
        self, x: Float[Tensor, " batch *event"], t: float, label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch *event"]:
        """∇ log q(x_t) ≈ -ε̂/√(1 - ᾱ_t) at a real t from 1 to T, of x as it is inside, not stretched.

        Raises TypeError or ValueError for a wrong shape or dtype, NaN, and a t out of range.
        """
        require_events(x, self.event_shape)
        self._require_optional_label(label, len(x))
        with torch.autocast(x.device.type, enabled=False):
            value, _ = self._network(x, torch.full((len(x),), float(t), device=x.device), label)
            signal, noise = self._levels_at(t)
            return from_eps(to_eps(value, self.predicts, x, signal, noise), "score", x, signal, noise)

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """log ᾱ/(1 - ᾱ) at times T and 1."""
        return float(self._log_snr[-1]), float(self._log_snr[0])

    def time(self, log_snr: float) -> float:
        """The real t with log ᾱ_t/(1 - ᾱ_t) = `log_snr`, linear between whole ones. Raises ValueError out of range."""
        table = self._log_snr
        if not table[-1] - 1e-9 <= log_snr <= table[0] + 1e-9:
            raise ValueError(f"log_snr must be from {table[-1]:g} to {table[0]:g}, got {log_snr:g}")
        return float(np.interp(log_snr, table[::-1], np.arange(self.steps, 0, -1)))

    def scaled(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch *event"]:
        """x as it is inside: stretched from [0, 1] to [-1, 1] where there are levels. Raises as `loss`."""
        return stretched(x, self.event_shape, self.levels)

    def unscaled(self, x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch *event"]:
        """The inverse of `scaled`."""
        return unstretched(x, self.levels)

    # Inside

    def _noised(self, x0: Tensor, t: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        eps = torch.empty_like(x0).normal_(generator=generator)
        return eps, self._at("signal", t) * x0 + self._at("noise_level", t) * eps

    def _network(self, x: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The prediction in the type of x, and ν if the variance is learned."""
        answer = self.network(x, t * (1000 / self.steps), *(() if self.classes is None else (label,))).to(x.dtype)
        expected = x.shape[1] * (2 if self.variance == "learned" else 1)
        if answer.shape != (len(x), expected, *x.shape[2:]):
            raise ValueError(
                f"network must answer with the shape ({len(x)}, {', '.join(map(str, (expected, *x.shape[2:])))}), "
                f"got {tuple(answer.shape)}"
            )
        if self.variance != "learned":
            return answer, None
        value, raw = answer.chunk(2, 1)
        return value, (raw + 1) / 2

    def _error(self, value: Tensor, x0: Tensor, eps: Tensor, t: Tensor) -> Float[Tensor, " batch *event"]:
        """What the network's answer is off by; for the score, times √(1 - ᾱ)."""
        if self.predicts == "eps":
            return value - eps
        if self.predicts == "x0":
            return value - x0
        signal, noise = self._at("signal", t), self._at("noise_level", t)
        return value - (signal * eps - noise * x0) if self.predicts == "v" else noise * value + eps

    def _term(
        self, value: Tensor, fraction: Tensor | None, x0: Tensor, xt: Tensor, t: Tensor, clip: bool = False
    ) -> Float[Tensor, " batch"]:
        signal, noise = self._at("signal", t), self._at("noise_level", t)
        guess = (xt - noise * to_eps(value, self.predicts, xt, signal, noise)) / signal
        guess = guess.clamp(-1, 1) if clip else guess
        log_posterior = self._at("log_posterior", t)
        log_variance = log_posterior.expand_as(x0)
        if self.variance != "posterior":
            share = 1.0 if fraction is None else fraction
            log_variance = (log_posterior + share * (self._at("log_forward", t) - log_posterior)).expand_as(x0)
        distance = self._at("from_x0", t) * (x0 - guess)
        log_ratio = log_posterior - log_variance
        kl = (log_ratio.exp() - 1 - log_ratio + distance.square() * (-log_variance).exp()).flatten(1).sum(1) / 2
        first = t == 1
        if not first.any():
            return kl
        if self.levels is None:
            square = (x0 - guess).square() * (-log_variance).exp()
            decoder = (square + log_variance + math.log(2 * math.pi)).flatten(1).sum(1) / 2
        else:
            # Elsewhere it is not used, and far enough out the derivative of its logarithm is no number.
            near = torch.where(first.reshape(-1, *[1] * len(self.event_shape)), guess, x0)
            decoder = -discretised_gaussian(x0, near, log_variance / 2, self.levels)
        return torch.where(first, decoder, kl)

    def _prior_kl(self, x0: Tensor) -> Float[Tensor, " batch"]:
        last = self.alpha_bars[-1].item()
        return (last * x0.square() - last - math.log1p(-last)).flatten(1).sum(1) / 2

    def _to_eps(self, value: Tensor, x: Tensor, t: float, clip: bool) -> Tensor:
        signal, noise = self._levels_at(t)
        eps = to_eps(value, self.predicts, x, signal, noise)
        if not clip:
            return eps
        return (x - signal * ((x - noise * eps) / signal).clamp(-1, 1)) / noise

    def _levels_at(self, t: float) -> tuple[float, float]:
        """√ᾱ and √(1 - ᾱ) at a real t, by the logarithm of ᾱ/(1 - ᾱ), linear between whole times."""
        if not 1 <= t <= self.steps:
            raise ValueError(f"t must be from 1 to {self.steps}, got {t!r}")
        below = min(int(t), self.steps - 1)
        low, high = self._log_snr[below - 1 : below + 1].tolist()
        logit = low + (t - below) * (high - low)
        return math.sqrt(1 / (1 + math.exp(-logit))), math.sqrt(1 / (1 + math.exp(logit)))

    def _evaluated_term(
        self, x0: Tensor, times: Tensor, label: Tensor | None, generator: torch.Generator | None
    ) -> Float[Tensor, " batch"]:
        _, xt = self._noised(x0, times, generator)
        with torch.autocast(x0.device.type, enabled=False):
            value, fraction = self._network(xt, times, label)
            return self._term(value, fraction, x0, xt, times, clip=self.levels is not None)

    def _draw_times(
        self, batch: int, terms: int | None, generator: torch.Generator | None
    ) -> Iterator[tuple[Int[Tensor, " batch"], float]]:
        """Times, and the inverse of how often each of them is expected to be drawn."""
        one = torch.ones(batch, dtype=torch.long, device=self._like.device)
        if terms is not None and (isinstance(terms, bool) or not isinstance(terms, int) or terms < 2):
            raise ValueError(f"terms must be an integer of at least 2, or None, got {terms!r}")
        if terms is None or terms >= self.steps:
            yield from ((t * one, 1.0) for t in range(1, self.steps + 1))
            return
        yield one, 1.0
        width = (self.steps - 1) / (terms - 1)
        for part in range(terms - 1):
            u = torch.empty(batch, dtype=torch.float64, device=one.device).uniform_(generator=generator)
            yield 2 + ((part + u) * width).long().clamp(max=self.steps - 2), width

    def _at(self, name: str, t: Tensor) -> Tensor:
        return getattr(self, name)[t].to(self._like.dtype).reshape(-1, *[1] * len(self.event_shape))

    def _require_optional_label(self, label: Tensor | None, batch: int) -> None:
        if label is not None:
            require_label(label, self.classes, batch)


def _padded(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1), values])
