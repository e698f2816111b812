"""Answers of the chapter "Variational autoencoders"."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy import integrate, optimize
from scipy.stats import norm
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from companion.exercises.checking import checks, function
from companion.exercises.digits import plausible


@checks("vae-1")
def normaliser(answer: Callable[[float], float]) -> None:
    """A function of p, a number between 0 and 1, that returns the integral of exp(-cross-entropy) = p^x (1-p)^(1-x)
    over grey values x from 0 to 1.

    Relative tolerance 0.02, for a mean over a hundred grey values; held to an adaptive quadrature.
    """

    def right(p: float) -> float:
        return integrate.quad(lambda x: p**x * (1 - p) ** (1 - x), 0, 1)[0]

    function(
        answer,
        right,
        [(0.1,), (0.3,), (0.8,)],
        {
            "this is the sum over the two values 0 and 1, where the Bernoulli is a distribution; sum over grey ones": (
                lambda p: 1.0
            ),
            "this is the mean of the cross-entropy; its negative has to be exponentiated first": (
                lambda p: -0.5 * np.log(p * (1 - p))
            ),
            "this exponentiates the mean; average the exponential": lambda p: (p * (1 - p)) ** 0.5,
            "this is one over the integral": lambda p: 1 / right(p),
        },
        "average p^x (1-p)^(1-x) over x from 0 to 1",
        relative=0.02,
    )


@checks("vae-2")
def divergence(answer: Callable[..., Tensor]) -> None:
    """A function of (mean, log_variance), two tensors of shape (batch, latents), that returns KL(q‖N(0, I)) averaged
    over the batch.

    Exact up to rounding, against torch's `kl_divergence` for three batches.
    """

    def right(mean: Float[Tensor, "batch latents"], log_variance: Float[Tensor, "batch latents"]) -> Tensor:
        return kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()

    def terms(mean, log_variance):
        return -0.5 * (1 + log_variance - mean**2 - log_variance.exp())

    generator = torch.Generator().manual_seed(0)
    instances = [tuple(torch.randn(2, 16, d, generator=generator, dtype=torch.float64)) for d in (20, 7, 3)]
    function(
        answer,
        right,
        instances,
        {
            "this is the bug of the text: the mean runs over latents too, and divides by their number": lambda *q: (
                terms(*q).mean()
            ),
            "this is summed over the batch; the mean over examples belongs to a mean of cross-entropies": (
                lambda *q: terms(*q).sum()
            ),
            "this is one number for each example; average them": lambda *q: terms(*q).sum(1),
            "the sign is inverted: a divergence is never negative": lambda *q: -right(*q),
            "the factor one half is missing": lambda *q: 2 * right(*q),
            "the log of the variance was taken for that of the standard deviation": (
                lambda mean, log_variance: right(mean, 2 * log_variance)
            ),
            "this is the divergence the other way round, KL(N(0, I)‖q)": lambda mean, log_variance: (
                kl_divergence(Normal(0.0, 1.0), Normal(mean, (log_variance / 2).exp())).sum(1).mean()
            ),
        },
        "sum over latents, then average over the batch",
    )


@checks("vae-3")
def best_variance(answer: Callable[..., Tensor]) -> None:
    """A function of (x, x_hat), two tensors of shape (batch, pixels), that returns the σ_x² with the highest mean
    log-likelihood.

    The likelihood is maximised numerically on three batches. Relative tolerance 1e-5, what a search for a maximum can
    find in double precision.
    """

    def right(x: Float[Tensor, "batch pixels"], x_hat: Float[Tensor, "batch pixels"]) -> float:
        def loss(log_v):
            return -Normal(x_hat, np.exp(log_v / 2)).log_prob(x).sum(1).mean().item()

        return float(
            np.exp(optimize.minimize_scalar(loss, bounds=(-9, 9), method="bounded", options={"xatol": 1e-9}).x)
        )

    def square(x, x_hat):
        return (x - x_hat).square()

    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    instances = [(x := draw(8, d), x + 0.2 + scale * draw(8, d)) for d, scale in ((3, 0.3), (12, 1.0), (30, 2.0))]
    function(
        answer,
        right,
        instances,
        {
            "this is the squared error of an image, summed over its pixels: σ_x² is per pixel": (
                lambda x, x_hat: square(x, x_hat).sum(1).mean()
            ),
            "this is the sum of all squares; divide by their number": lambda x, x_hat: square(x, x_hat).sum(),
            "this is σ_x, the root": lambda x, x_hat: square(x, x_hat).mean().sqrt(),
            "half of it: the 2 of 1/2σ² meets the ½ of ½ log σ²": lambda x, x_hat: square(x, x_hat).mean() / 2,
            "this is the variance of the residuals about their mean; the decoder's mean is x_hat, bias and all": (
                lambda x, x_hat: (x - x_hat).var(correction=0)
            ),
            "this is the variance of the residuals about their mean, divided by n - 1": lambda x, x_hat: (
                x - x_hat
            ).var(),
            "this is the mean absolute error, which belongs to a Laplace decoder": lambda x, x_hat: (
                (x - x_hat).abs().mean()
            ),
            "this is one over it: the precision": lambda x, x_hat: 1 / square(x, x_hat).mean(),
        },
        "set the derivative of -‖x - x̂‖²/2σ² - (d/2) log σ² with respect to σ² to zero",
        relative=1e-5,
    )


@checks("vae-4")
def above(answer: Callable[[float], float]) -> None:
    """A function of k, how many times wider q is than the posterior of one latent, that returns the share of draws
    from q with log w above log p(x).

    Absolute tolerance 0.01, five standard errors of 60,000 draws; held to the integral of q over the set.
    """
    grid = np.linspace(-40, 40, 160_001)

    def share(k: float, of: float) -> float:
        inside = norm.logpdf(grid) > norm.logpdf(grid, 0, k)
        return float((norm.pdf(grid, 0, of) * inside).sum() * (grid[1] - grid[0]))

    function(
        answer,
        lambda k: share(k, k),
        [(1.3,), (2.0,), (4.0,)],
        {
            "this is the share of draws of the posterior; they are drawn from q": lambda k: share(k, 1.0),
            "this is the share below log p(x)": lambda k: 1 - share(k, k),
            "the width is a standard deviation: here the variance is k times that of the posterior": (
                lambda k: share(k**0.5, k**0.5)
            ),
            "here the variance is k⁴ times that of the posterior: square the width once": lambda k: share(k**2, k**2),
        },
        "log w - log p(x) = log p(z|x) - log q(z): for which z is this positive, and how probable are they under q?",
        absolute=0.01,
    )


@checks("vae-5")
def trained(answer: Mapping[str, float]) -> None:
    """A dictionary of two numbers: {"eight draws": ..., "one draw": ...}, minus the importance-weighted bound of test
    digits in nats an image.

    A result of training has no right value, only a range: better than independent pixels, which are fitted for this,
    and worse than any model of binarised digits yet.
    """
    plausible(answer, ("eight draws", "one draw"))
