"""Answers of the chapter "Generative adversarial networks"."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy import optimize
from scipy.special import expit
from scipy.stats import norm
from torch import Tensor

from companion.exercises.checking import checks, expect, function, numbers


def best_discriminator(real: float, fake: float) -> float:
    """argmax of real · log D + fake · log(1 - D), by a search over the logit."""

    def payoff(l):
        return real * np.logaddexp(0, -l) + fake * np.logaddexp(0, l)

    return float(
        expit(optimize.minimize_scalar(payoff, bounds=(-30, 30), method="bounded", options={"xatol": 1e-10}).x)
    )


@checks("gan-1")
def value_of_the_game(answer: Mapping[str, float]) -> None:
    """A dictionary of three numbers: {"shared": D* where the generator draws, "missing": D* where it never does, "V":
    the value in nats}.

    D* is found by a numerical maximisation on each half. Absolute tolerance 5e-4, for three digits.
    """
    shared, missing = best_discriminator(0.5, 1.0), 1.0
    value = 0.5 * np.log(shared) + 0.5 * np.log(missing) + np.log(1 - shared)

    def V(d):
        return 0.5 * np.log(d) + np.log(1 - d)

    expect(
        numbers(answer, ("shared", "missing", "V")),
        {"shared": shared, "missing": missing, "V": value},
        {
            "one half is for equal densities; on its half the generator's density is twice that of the data": {
                "shared": 0.5,
                "missing": 0.5,
            },
            "this is p_g/(p_data + p_g), the probability of the other answer": {"shared": 1 - shared, "missing": 0.0},
            "this is the value of a perfect generator, -log 4": {"V": -np.log(4)},
            "this is the value for D = ½ on the shared half": {"V": V(0.5)},
            "these are bits; the book counts in nats": {"V": value / np.log(2)},
            "the data lie on the shared half with probability one half only": {"V": V(shared) + 0.5 * np.log(shared)},
            "the generated samples all lie on the shared half: their log(1 - D) counts with one, not with a half": {
                "V": V(shared) - 0.5 * np.log(1 - shared)
            },
            "this is half of the value: V is a sum of two means, not their mean": {"V": value / 2},
        },
        "D* = p_data/(p_data + p_g) on each half, and V averages log D* over data and log(1 - D*) over samples",
        absolute=5e-4,
    )


@checks("gan-2")
def discriminator_loss(answer: Callable[..., Tensor]) -> None:
    """A function of (real, fake), the discriminator's logits of data and of samples, two tensors of shape (batch,),
    that returns its loss.

    Held to -log D and -log(1 - D) of the probabilities themselves, for three batches, one of which has logits of ±30:
    relative tolerance 1e-6.
    """

    def right(real: Float[Tensor, " batch"], fake: Float[Tensor, " batch"]) -> float:
        # -log σ(l) = log(1 + e^{-l})
        return np.mean(np.log1p(np.exp(-real.numpy()))) + np.mean(np.log1p(np.exp(fake.numpy())))

    loss = torch.nn.functional.binary_cross_entropy_with_logits

    def bce(real: Tensor, fake: Tensor, reduction: str = "mean") -> Tensor:
        ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
        return loss(real, ones, reduction=reduction) + loss(fake, zeros, reduction=reduction)

    generator = torch.Generator().manual_seed(0)
    draws = [scale * torch.randn(2, 8, generator=generator, dtype=torch.float64) for scale in (1, 3, 15)]
    function(
        answer,
        right,
        [tuple(draw) for draw in draws],
        {
            "this is the bug of the text: a sigmoid before a loss that takes one itself": (
                lambda real, fake: bce(real.sigmoid(), fake.sigmoid())
            ),
            "data and samples are exchanged: the target is 1 for data": lambda real, fake: bce(fake, real),
            "this is half of it: the two means are added": lambda real, fake: bce(real, fake) / 2,
            "this is summed over the batch; the value averages": lambda real, fake: bce(real, fake, "sum"),
            "the sign is inverted: a loss falls as the value rises": lambda real, fake: -bce(real, fake),
            "this is the loss of the generator": lambda real, fake: loss(fake, torch.ones_like(fake)),
        },
        "the mean of -log σ(real) plus the mean of -log(1 - σ(fake))",
    )


@checks("gan-3")
def best_logit(answer: Callable[..., np.ndarray]) -> None:
    """A function of (x, mu), an array and a number, that returns ℓ*(x) for data N(0, 1) and a generator N(mu, 1).

    A numerical maximisation of the payoff at each x. Absolute tolerance 1e-4, what a search for a maximum can find.
    """

    def right(x: Float[np.ndarray, " points"], mu: float) -> np.ndarray:
        # Maximised in the logit: p log σ(l) + q log σ(-l), scaled by the larger of the two densities.
        logits = []
        for point in x:
            p, q = norm.pdf(point), norm.pdf(point, mu)

            def slope(l, p=p, q=q):
                return (p * expit(-l) - q * expit(l)) / max(p, q)

            logits.append(optimize.brentq(slope, -40, 40, xtol=1e-12))
        return np.array(logits)

    points = np.array([-1.0, 0.0, 0.7, 2.0, 4.0])

    def log_ratio(x, mu):
        return norm.logpdf(x) - norm.logpdf(x, mu)

    function(
        answer,
        right,
        [(points, 3.0), (points, -1.5), (points, 0.5)],
        {
            "the sign is inverted: the logit is large where data are": lambda x, mu: -log_ratio(x, mu),
            "this is D*; its logit is asked for": lambda x, mu: expit(log_ratio(x, mu)),
            "the ratio of the densities; its logarithm is asked for": lambda x, mu: np.exp(log_ratio(x, mu)),
            "the constant μ²/2 is missing": lambda x, mu: -mu * x,
            "the constant μ²/2 has the wrong sign": lambda x, mu: -mu * x - mu**2 / 2,
            "this is the slope, -μ; ℓ* itself is asked for": lambda x, mu: np.full_like(x, -mu),
            "expand the squares: (x - μ)²/2 - x²/2": lambda x, mu: mu**2 - 2 * mu * x,
        },
        "ℓ* = log p_data(x) - log p_g(x)",
        absolute=1e-4,
    )


@checks("gan-4")
def smoothed(answer: Callable[..., float]) -> None:
    """A function of (p_data, p_g, s), three numbers, that returns the best D at a point, with targets 1 - s and 0.

    A numerical maximisation. Absolute tolerance 1e-3, of a grid search with a thousand points.
    """

    def right(p_data: float, p_g: float, s: float) -> float:
        return best_discriminator((1 - s) * p_data, s * p_data + p_g)

    function(
        answer,
        right,
        [(0.3, 0.1, 0.1), (0.2, 0.7, 0.25), (0.9, 0.05, 0.2)],
        {
            "this is D* without smoothing": lambda p, g, s: p / (p + g),
            "the share s of the data counts as log(1 - D): it does not vanish": lambda p, g, s: (
                (1 - s) * p / ((1 - s) * p + g)
            ),
            "this smooths both sides: the target of samples is 0": lambda p, g, s: ((1 - s) * p + s * g) / (p + g),
            "data and samples are exchanged": lambda p, g, s: (1 - s) * g / (p + g),
            "this is p_g's share of the payoff, 1 - D": lambda p, g, s: 1 - right(p, g, s),
        },
        "maximise p_data ((1-s) log D + s log(1-D)) + p_g log(1-D) over D",
        absolute=1e-3,
    )


@checks("gan-5")
def penalty(answer: Callable[..., Tensor]) -> None:
    """A function of the critic's gradients, a tensor of shape (batch, dim), that returns the mean penalty, without
    its weight λ.

    An example at a time, on three batches, and on the linear critic with slope one, where it is zero. Exact up to
    rounding.
    """

    def right(gradients: Float[Tensor, "batch dim"]) -> float:
        return float(np.mean([(np.sqrt(sum(g * g for g in row)) - 1) ** 2 for row in gradients.tolist()]))

    def norms(gradients):
        return gradients.norm(dim=1)

    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (64, 5, 3)]
    linear = torch.tensor([[0.6, 0.8]], dtype=torch.float64).expand(64, 2).contiguous()
    function(
        answer,
        right,
        [*((draw,) for draw in draws), (linear,)],
        {
            "this is the bug of the text: one norm for the whole batch, which grows with its size": lambda g: (
                (g.norm() - 1) ** 2
            ),
            "average the penalties, not the norms": lambda g: (norms(g).mean() - 1) ** 2,
            "this is the norm of the mean gradient, in which opposite slopes cancel": lambda g: (
                (g.mean(0).norm() - 1) ** 2
            ),
            "this sums over the batch; the loss averages": lambda g: ((norms(g) - 1) ** 2).sum(),
            "this norm runs over the batch, one for each coordinate: the examples are the rows": (
                lambda g: ((g.norm(dim=0) - 1) ** 2).mean()
            ),
            "the norm is pulled to one, not to zero": lambda g: (norms(g) ** 2).mean(),
            "this takes the square of the norm for the norm": lambda g: ((norms(g) ** 2 - 1) ** 2).mean(),
            "this punishes slopes above one only; the chapter's penalty does so below one too": (
                lambda g: ((norms(g) - 1).clamp(min=0) ** 2).mean()
            ),
            "the difference to one is squared": lambda g: (norms(g) - 1).abs().mean(),
        },
        "one norm for each example, its difference to one squared, and the mean over the batch",
        absolute=1e-9,
    )


@checks("gan-6")
def closer_each_round(answer: Callable[..., float]) -> None:
    """A function of (k, eta, lam) that returns the factor by which a round brings the players closer to zero in the
    long run; in a round ψ takes k steps of size eta up θψ - ½ lam ψ², and then θ one down.

    The game is played from the two starts (1, 0) and (0, 1), which makes the matrix of a round; the factor is its
    largest absolute eigenvalue. Relative tolerance 1e-3, for a factor measured over a thousand rounds; in three of the
    games the players circle, in two they do not.
    """

    def play(k: int, eta: float, lam: float, length: float = 1, at_once: bool = False) -> Float[np.ndarray, " 2"]:
        """The absolute eigenvalues of a round, the smaller first; ψ's steps are of size eta times length."""
        theta, psi = np.eye(2)
        seen = psi
        for _ in range(k):
            psi = psi + length * eta * (theta - lam * psi)
        theta = theta - eta * (seen if at_once else psi)
        return np.sort(np.abs(np.linalg.eigvals([theta, psi])))

    def right(k: int, eta: float, lam: float) -> float:
        return play(k, eta, lam)[1]

    function(
        answer,
        right,
        [(1, 0.1, 0.2), (5, 0.1, 0.2), (3, 0.5, 0.3), (5, 0.2, 1.0), (20, 0.3, 1.5)],
        {
            "this is for a single step of ψ: the others are missing": lambda k, eta, lam: right(1, eta, lam),
            "θ answers the ψ before its steps here; it moves last, and sees them": (
                lambda k, eta, lam: play(k, eta, lam, at_once=True)[1]
            ),
            "this is the determinant, the product of two eigenvalues": lambda k, eta, lam: (1 - eta * lam) ** k,
            "this is the root of the determinant, right while the players circle; when ψ follows fast enough both "
            "eigenvalues are real, and the larger one decides": lambda k, eta, lam: (1 - eta * lam) ** (k / 2),
            "this is the factor of θ² + ψ², the square of the one asked for": lambda k, eta, lam: (
                right(k, eta, lam) ** 2
            ),
            "this is the smaller eigenvalue; in the long run the larger one decides": (
                lambda k, eta, lam: play(k, eta, lam)[0]
            ),
            "this is for a perfect ψ = θ/λ, after infinitely many steps": lambda k, eta, lam: 1 - eta / lam,
            "this is the factor of a single step; a round has k + 1": lambda k, eta, lam: (
                right(k, eta, lam) ** (1 / (k + 1))
            ),
            "k steps are not one of k times the size: ψ is pulled back in each": lambda k, eta, lam: play(
                1, eta, lam, length=k
            )[1],
            "this is the game without λ, whose orbit closes": lambda k, eta, lam: 1.0,
            "the slope of ½ λψ² is λψ, not ½ λψ": lambda k, eta, lam: right(k, eta, lam / 2),
            "the slope of ½ λψ² is λψ, not 2 λψ": lambda k, eta, lam: right(k, eta, 2 * lam),
        },
        "write a round as a matrix that maps (θ, ψ) to the next: what do its powers grow like?",
        relative=1e-3,
    )
