"""What each pixel's conditional may be: a bit, one of several levels, or a mixture of logistics over the levels.

An output has `parameters` for each pixel, in `groups` of which each is computed once the colours before it are known
(1: all colours at once), and takes `draws` uniform numbers for a pixel.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from companion.validate import require_binary, require_levels, require_positive_int

Output = Literal["bernoulli", "categorical", "logistic"]

# The least log of a logistic's scale, that of the authors' code: one level of 256 is then 8 scales wide.
LEAST_LOG_SCALE = -7.0


class BernoulliOutput:
    """A logit for each colour."""

    levels = 2

    def __init__(self, colours: int):
        self.parameters = self.groups = self.draws = colours

    def require(self, x: Tensor) -> None:
        require_binary(x)

    def log_prob(
        self, parameters: Float[Tensor, "batch parameters *space"], x: Float[Tensor, "batch colours *space"]
    ) -> Float[Tensor, " batch *space"]:
        """In nats, summed over the colours."""
        return (x * parameters - F.softplus(parameters)).sum(1)

    def draw(
        self,
        parameters: Float[Tensor, "batch parameters"],
        pixel: Float[Tensor, "batch colours"],
        colour: int,
        uniforms: Float[Tensor, "batch draws"],
    ) -> Float[Tensor, " batch"]:
        """This colour of a pixel whose colours before it are known, by the inverse of its distribution function."""
        return (uniforms[:, colour] < parameters[:, colour].sigmoid()).to(pixel)


class CategoricalOutput:
    """A logit for each level of each colour."""

    def __init__(self, colours: int, levels: int):
        self.levels, self.groups, self.draws = levels, colours, colours
        self.parameters = colours * levels

    def require(self, x: Tensor) -> None:
        require_levels(x, self.levels)

    def log_prob(
        self, parameters: Float[Tensor, "batch parameters *space"], x: Float[Tensor, "batch colours *space"]
    ) -> Float[Tensor, " batch *space"]:
        logits = parameters.unflatten(1, (self.groups, self.levels)).log_softmax(2)
        level = (x * (self.levels - 1)).round().long()
        return logits.gather(2, level.unsqueeze(2)).squeeze(2).sum(1)

    def draw(self, parameters: Tensor, pixel: Tensor, colour: int, uniforms: Tensor) -> Float[Tensor, " batch"]:
        logits = parameters[:, colour * self.levels : (colour + 1) * self.levels]
        return inverse_cdf(logits, uniforms[:, colour]) / (self.levels - 1)


class LogisticOutput:
    """A mixture of logistics on [-1, 1], each level the interval of width 2 / (L - 1) around it, the least and the
    greatest with all of the tail beyond (Salimans et al. 2017, sec. 2.1).

    Each component has a weight, a mean and a log-scale for each colour, and a coefficient, within ±1, for each pair of
    colours, by which an earlier colour moves the mean of a later one (sec. 2.2).
    """

    groups = 1

    def __init__(self, colours: int, levels: int, mixtures: int):
        self.colours, self.levels, self.mixtures, self.draws = colours, levels, mixtures, colours + 1
        self.sizes = [1, colours, colours, colours * (colours - 1) // 2]
        self.parameters = mixtures * sum(self.sizes)

    def require(self, x: Tensor) -> None:
        require_levels(x, self.levels)

    def log_prob(
        self, parameters: Float[Tensor, "batch parameters *space"], x: Float[Tensor, "batch colours *space"]
    ) -> Float[Tensor, " batch *space"]:
        weights, *components = self._split(parameters)
        total = weights.log_softmax(1)
        for colour in range(self.colours):
            mean, log_scale = self._mean_and_scale(components, x, colour)
            total = total + self._log_interval(x[:, colour, None], mean, log_scale)
        return total.logsumexp(1)

    def draw(self, parameters: Tensor, pixel: Tensor, colour: int, uniforms: Tensor) -> Float[Tensor, " batch"]:
        weights, *components = self._split(parameters)
        # The last of the uniform numbers is that of the component, the same for all colours of a pixel.
        component = inverse_cdf(weights, uniforms[:, -1]).long()[:, None]
        mean, log_scale = (t.gather(1, component)[:, 0] for t in self._mean_and_scale(components, pixel, colour))
        y = mean + log_scale.exp() * uniforms[:, colour].logit()
        return ((y + 1) / 2 * (self.levels - 1)).round().clamp(0, self.levels - 1) / (self.levels - 1)

    def _split(self, parameters: Tensor) -> tuple[Tensor, ...]:
        """Logits of the weights, (batch, mixtures, *space); means, log-scales and coefficients, one axis more."""
        weights, *components = parameters.unflatten(1, (self.mixtures, -1)).split(self.sizes, 2)
        return weights.squeeze(2), *components

    def _mean_and_scale(self, components: list[Tensor], x: Tensor, colour: int) -> tuple[Tensor, Tensor]:
        """(batch, mixtures, *space) each: the mean given the colours before, on [-1, 1], and log s."""
        means, log_scales, coefficients = components
        mean, before = means[:, :, colour], colour * (colour - 1) // 2
        for earlier in range(colour):
            mean = mean + coefficients[:, :, before + earlier].tanh() * (2 * x[:, earlier, None] - 1)
        return mean, log_scales[:, :, colour].clamp(min=LEAST_LOG_SCALE)

    def _log_interval(self, x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        """log(σ(b) - σ(a)) of the ends a < b of the interval of x, as log σ(b) + log σ(-a) + log(1 - exp(a - b)).

        No difference of two rounded numbers, so that it holds however far x is from the mean. An end at infinity
        leaves out its own term and the last.
        """
        half, rate = 1 / (self.levels - 1), (-log_scale).exp()
        below, above = (2 * x - 1 - half - mean) * rate, (2 * x - 1 + half - mean) * rate
        level = (x * (self.levels - 1)).round()
        lowest, highest = level == 0, level == self.levels - 1
        zero = torch.zeros_like(below)
        return (
            torch.where(highest, zero, F.logsigmoid(above))
            + torch.where(lowest, zero, F.logsigmoid(-below))
            + torch.where(lowest | highest, zero, (-torch.expm1(-2 * half * rate)).log())
        )


def make_output(
    output: str, colours: int, levels: int | None, mixtures: int | None
) -> BernoulliOutput | CategoricalOutput | LogisticOutput:
    if output not in get_args(Output):
        raise ValueError(f"output must be one of {', '.join(map(repr, get_args(Output)))}, got {output!r}")
    if mixtures is not None and output != "logistic":
        raise ValueError(f"mixtures is for the output 'logistic', got {mixtures!r} with {output!r}")
    if output == "bernoulli":
        if levels is not None:
            raise ValueError(f"levels is for the outputs 'categorical' and 'logistic', got {levels!r} with {output!r}")
        return BernoulliOutput(colours)
    levels = 256 if levels is None else levels
    require_positive_int(levels, "levels")
    if not 2 <= levels <= 256:
        raise ValueError(f"levels must lie in 2..256, got {levels}")
    if output == "categorical":
        return CategoricalOutput(colours, levels)
    mixtures = 5 if mixtures is None else mixtures
    require_positive_int(mixtures, "mixtures")
    return LogisticOutput(colours, levels, mixtures)


def inverse_cdf(logits: Float[Tensor, "batch categories"], uniform: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """The first category whose cumulated probability exceeds the uniform number; the last, whatever rounding says."""
    return (logits.softmax(1).cumsum(1)[:, :-1] <= uniform[:, None]).sum(1).to(logits)
