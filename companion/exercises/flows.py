"""Answers of the chapter "Normalising flows"."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import lognorm, norm
from torch import Tensor

from companion.exercises.checking import NotYet, checks, expect, function, number, numbers


@checks("flow-1")
def exponential_of_normal(answer: Callable[[np.ndarray], np.ndarray]) -> None:
    """A function of x, an array of positive numbers, that returns p_X(x).

    Held to SciPy's density of that distribution. Exact up to rounding.
    """

    def g(x):
        return norm.pdf(np.log(x))

    function(
        answer,
        lambda x: lognorm.pdf(x, s=1),
        [(np.array([0.2, 1.0, 3.0]),), (np.geomspace(0.01, 20, 7),), (np.array([2.5]),)],
        {
            "the factor |g'(x)| is missing: this does not integrate to one": g,
            "the factor is |g'(x)| = 1/x, not its inverse": lambda x: g(x) * x,
            "the factor 1/x belongs to g(x) = log x; this is |f'(x)|": lambda x: g(x) * np.exp(-x),
            "put x into g = f⁻¹, the logarithm, not into f": lambda x: norm.pdf(np.exp(x)) * np.exp(x),
            "this is the density of z at x": norm.pdf,
            "this is log p_X(x)": lambda x: lognorm.logpdf(x, s=1),
        },
        "p_X(x) = p_Z(g(x)) |g'(x)| with g(x) = log x",
    )


@checks("flow-2")
def coupling(answer: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """A function of x, a tensor of shape (batch, 2), that returns (z, log_det): the same z as in the text and its
    log-determinant of shape (batch,).

    The determinant is that of the Jacobian by autograd, one example at a time. Exact up to rounding, on three
    batches.
    """

    def transform(x: Tensor) -> Tensor:
        a, b = torch.tanh(2 * x[:, :1]), torch.sin(x[:, :1])
        return torch.cat([x[:, :1], (x[:, 1:] + b) * a.exp()], 1)

    def right(x: Float[Tensor, "batch 2"]) -> tuple[Tensor, Tensor]:
        def jacobian(row):
            return torch.autograd.functional.jacobian(lambda v: transform(v[None])[0], row)

        return transform(x), torch.stack([torch.linalg.slogdet(jacobian(row)).logabsdet for row in x])

    def a(x):
        return torch.tanh(2 * x[:, 0])

    generator = torch.Generator().manual_seed(0)
    function(
        answer,
        right,
        [(torch.randn(n, 2, generator=generator, dtype=torch.float64),) for n in (5, 3, 1)],
        {
            "this is the bug of the text: the shift b has no part in the determinant": (
                lambda x: (transform(x), a(x) + torch.sin(x[:, 0]))
            ),
            "the sign is inverted: that is the determinant of the way back": lambda x: (transform(x), -a(x)),
            "this is the determinant; its logarithm is asked for": lambda x: (transform(x), a(x).exp()),
            "the determinant is e^a: its logarithm is a, once": lambda x: (transform(x), 2 * a(x)),
            "the other coordinate does not change, but the determinant is not one": (
                lambda x: (transform(x), torch.zeros(len(x)))
            ),
        },
        "z has to stay as in the text, and log_det is the logarithm of the product of the Jacobian's diagonal",
        outputs=("z", "log_det"),
        absolute=1e-9,
    )


@checks("flow-3")
def couplings(answer: int) -> None:
    """A number: of couplings of alternating halves.

    Which inputs each output depends on is carried from coupling to coupling in a table of truth values. Exact.
    """

    def connected(count: int, halves: tuple[slice, slice] = (slice(0, 2), slice(2, 4))) -> bool:
        depends = np.eye(4, dtype=bool)
        for k in range(count):
            still, moved = halves[k % 2], halves[1 - k % 2]
            depends[moved] |= depends[still].any(0)
        return bool(depends.all())

    right = next(count for count in range(1, 9) if connected(count))
    expect(
        {"": number(answer)},
        {"": right},
        {
            "after one coupling a half is still what it was": {"": 1},
            "after two, the numbers of the half that was changed first do not yet depend on each other": {"": 2},
            "that many are enough, but fewer are, too": {"": right + 1},
        },
        "count the derivatives that are not zero in the Jacobian of 1, 2, 3, … couplings",
        absolute=0.1,
    )


@checks("flow-4")
def channels(answer: float) -> None:
    """A number: of channels.

    The multiplications of the elimination are counted in its loops, row by row. Relative tolerance 0.02: the count is
    c³/3 up to terms of lower order, which one may leave out.
    """

    def crossing(cost: Callable[[int], float], pixels: int = 49) -> int:
        return min(range(2, 500), key=lambda c: abs(cost(c) / (pixels * c**2) - 1))

    # Column k: each of the r = c - 1 - k rows below takes one division and r multiplications.
    def elimination(c):
        return sum(r * (r + 1) for r in range(c))

    expect(
        {"": number(answer)},
        {"": crossing(elimination)},
        {
            "elimination costs a third of c³: the rows get shorter": {"": crossing(lambda c: c**3)},
            "count multiplications only, in both: c³/3, not 2c³/3": {"": crossing(lambda c: 2 * c**3 / 3)},
            "this is c³/2; the sum of squares is a third": {"": crossing(lambda c: c**3 / 2)},
            "an image of 7 × 7 has 49 pixels, and W is applied at each": {"": crossing(elimination, 7)},
            "W is applied at 49 pixels, not at one": {"": crossing(elimination, 1)},
        },
        "elimination takes Σ r², W takes c² at each of 49 pixels",
        relative=0.02,
    )


@checks("flow-5")
def bits(answer: Mapping[str, float]) -> None:
    """A dictionary of two numbers, in bits per dimension: {"uniform": ..., "black or not": ...}.

    The entropy of each distribution over the 256 levels, all of them listed. Absolute tolerance 0.006, for two
    decimals.
    """
    known = np.array([0.8, *[0.2 / 255] * 255])

    def entropy(p):
        return -np.sum(p * np.log2(p))

    right = {"uniform": entropy(np.full(256, 1 / 256)), "black or not": entropy(known)}
    expect(
        numbers(answer, tuple(right)),
        right,
        {
            "these are nats; bits are asked for": {name: value * np.log(2) for name, value in right.items()},
            "this says black or not, and not yet which of the other 255 levels": {"black or not": entropy([0.8, 0.2])},
            "this is the cost of the level alone, where the pixel is not black": {"black or not": np.log2(255)},
            "log 255 in full: it is paid by the pixels that are not black only": {
                "black or not": entropy([0.8, 0.2]) + np.log2(255)
            },
            "a fifth of the pixels is not black; here the two shares are exchanged": {
                "black or not": entropy([0.8, 0.2]) + 0.8 * np.log2(255)
            },
        },
        "the sum of -p log₂ p over the 256 levels",
        absolute=0.006,
    )


@checks("flow-6")
def bridge(answer: float) -> None:
    """A number: the share of samples with |x_1| < 1.

    A result of training has only a range: below 5e-4, half of what the chapter's single flows leave at least, and
    sixteen times the share in the data, which comes from the distribution function.
    """
    share, true = number(answer), norm.cdf(1, 3, 0.5) - norm.cdf(-1, 3, 0.5)
    if not 0 <= share <= 1:
        raise NotYet("a share lies between 0 and 1; did you take its logarithm, or count samples?")
    if share > 0.9:
        raise NotYet("this is the share outside: count the samples with |x_1| < 1")
    if share > 5e-4:
        raise NotYet(
            f"the data have {true:.1e}, and this is as much as a single flow leaves: does each part of the mixture sit "
            "on one mode of its own?"
        )
