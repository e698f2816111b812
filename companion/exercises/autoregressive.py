"""Answers of the chapter "Autoregressive models"."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Float
from scipy import optimize
from torch import Tensor

from companion.exercises.checking import NotYet, Unreadable, checks, expect, function, kind, number
from companion.exercises.digits import plausible


@checks("ar-1")
def orders(answer: Iterable[Sequence[int]]) -> None:
    """A list of those orders of the three pixels, such as (0, 1, 2), in which an FVSBN can represent x3 = x1 xor x2.

    In each of the six orders the three logistic regressions are fitted to the four states. An order counts where they
    come within 0.01 nats of the entropy, log 4; the next best are 0.69 away.
    """
    if isinstance(answer, str | bytes | Mapping) or not isinstance(answer, Iterable):
        raise Unreadable(f"got {kind(answer)} where a list was expected")
    try:
        given = {tuple(int(i) for i in order) for order in answer}
    except (TypeError, ValueError):
        raise Unreadable("an entry of the list is no order") from None
    every = list(permutations(range(3)))
    if not given <= set(every):
        raise Unreadable(f"{sorted(given - set(every))[0]} is no order of the pixels 0, 1 and 2")
    states = np.array([[a, b, a ^ b] for a in (0, 1) for b in (0, 1)])

    def nats(past: np.ndarray, pixel: np.ndarray) -> float:
        inputs, sign = np.column_stack([np.ones(4), past]), 1 - 2 * pixel

        def loss(w):
            return np.logaddexp(0, sign * (inputs @ w)).mean()

        return optimize.minimize(loss, np.full(inputs.shape[1], 0.1)).fun

    for order in every:
        x = states[:, order]
        best = sum(nats(x[:, :d], x[:, d]) for d in range(3))
        fits = best < np.log(4) + 0.01
        if fits != (order in given):
            found = f"in the order {order} the best logistic regressions reach {best:.2f} nats, of {np.log(4):.2f}"
            why = "" if fits else ": given two of the pixels the third is their exclusive or, whichever comes last"
            raise NotYet(found + why)


@checks("ar-2")
def image_loss(answer: Callable[..., Tensor]) -> None:
    """A function of (logits, x), two tensors of shape (batch, pixels), that returns -log p(x) of each image in nats.

    The probabilities are multiplied pixel by pixel and their product's logarithm is taken; logits up to ±6. Relative
    tolerance 1e-6.
    """

    def right(logits: Float[Tensor, "batch pixels"], x: Float[Tensor, "batch pixels"]) -> np.ndarray:
        p = 1 / (1 + np.exp(-logits.numpy()))
        return -np.log(np.prod(np.where(x.numpy() > 0.5, p, 1 - p), axis=1))

    bce = torch.nn.functional.binary_cross_entropy_with_logits

    def loss(logits, x):
        return bce(logits, x, reduction="none")

    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    instances = [(12 * draw(5, d) - 6, draw(5, d).round()) for d in (4, 12, 30)]
    function(
        answer,
        right,
        instances,
        {
            "this is the bug of the text: the outputs have gone through a sigmoid, and the loss takes another one": (
                lambda logits, x: loss(logits.sigmoid(), x).sum(1)
            ),
            "sum over pixels: a mean is not the log-likelihood of an image": lambda logits, x: loss(logits, x).mean(1),
            "this is the mean over images; one number for each is asked for": lambda logits, x: (
                loss(logits, x).sum(1).mean()
            ),
            "this is the mean over images and pixels; sum over pixels, one number for each image": (
                lambda logits, x: loss(logits, x).mean()
            ),
            "the sign is inverted: this is log p(x)": lambda logits, x: -loss(logits, x).sum(1),
            "black and white are exchanged": lambda logits, x: loss(logits, 1 - x).sum(1),
            "these are bits; the book counts in nats": lambda logits, x: loss(logits, x).sum(1) / np.log(2),
        },
        "one sigmoid, and the sum over pixels of -log p(x_d)",
    )


@checks("ar-3")
def connections(answer: Callable[[int, int], tuple[int, int]]) -> None:
    """A function of (m, d_x) that returns (reads, feeds): how many inputs a unit of degree m reads, and how many
    outputs it feeds, of d_x pixels.

    Both masks are written out and their entries counted. Exact.
    """

    def right(m: int, d_x: int) -> tuple[int, int]:
        degrees = range(1, d_x + 1)
        return sum(m >= d for d in degrees), sum(d > m for d in degrees)

    function(
        answer,
        right,
        [(m, d_x) for d_x in (4, 8, 20) for m in (1, 2, d_x - 1)],
        {
            "the two numbers are exchanged": lambda m, d: right(m, d)[::-1],
            "one too few: a unit of degree m may know pixel m itself": lambda m, d: (m - 1, d - m),
            "one too many: the output of pixel m may not know pixel m": lambda m, d: (m, d - m + 1),
            "the unit reads the first pixels and feeds the later ones, not all": lambda m, d: (d, d),
        },
        "the mask of the inputs has m ≥ d, that of the outputs d > m",
        outputs=("reads", "feeds"),
        absolute=0.1,
    )


@checks("ar-4")
def blocks(answer: int) -> None:
    """A number: of residual blocks.

    Which rows the last pixel sees is found by passing a set of rows back through the kernels, one layer at a time.
    Exact.
    """

    def needed(first: int, later: int, rows: int = 28) -> int:
        seen, count = {rows - 1 - k for k in range(first + 1)}, 0
        while 0 not in seen:
            seen, count = {row - k for row in seen for k in range(later + 1)}, count + 1
        return count

    right = needed(3, 1)
    expect(
        {"": number(answer)},
        {"": right},
        {
            "one too few: this many see the second row": {"": right - 1},
            "one too many: fewer suffice": {"": right + 1},
            "the first kernel counts as well: it looks three rows up": {"": needed(0, 1)},
            "a masked 7 × 7 kernel looks three rows up, not six": {"": needed(6, 1)},
            "a masked 3 × 3 kernel looks one row up, not two": {"": needed(3, 2)},
        },
        "how many rows up does each kernel look, and how many are there to go?",
        absolute=0.1,
    )


@checks("ar-5")
def stream(answer: Callable[..., Sequence[float]]) -> None:
    """A function of (signal, w_0, w_1, delta) that returns the outputs y[0], y[1], …; `signal` is an iterator, which
    gives each number once.

    Held to NumPy's convolution with the whole signal. Exact up to rounding, for three delays.
    """

    def right(signal: Iterator[float], w_0: float, w_1: float, delta: int) -> np.ndarray:
        x, kernel = np.array(list(signal)), np.zeros(delta + 1)
        kernel[0] += w_0
        kernel[delta] += w_1
        return np.convolve(x, kernel)[: len(x)]

    def anticausal(signal: Iterator[float], w_0: float, w_1: float, delta: int) -> np.ndarray:
        return right(reversed(list(signal)), w_0, w_1, delta)[::-1]

    def wrapped(signal: Iterator[float], w_0: float, w_1: float, delta: int) -> np.ndarray:
        x = np.array(list(signal))
        return w_0 * x + w_1 * np.roll(x, delta)

    rng = np.random.default_rng(0)
    function(
        answer,
        right,
        [
            (iter(rng.normal(size=20).tolist()), *w, delta)
            for w, delta in (((0.5, -2.0), 4), ((1.0, 3.0), 1), ((2.0, 0.3), 7))
        ],
        {
            "the two taps are exchanged": lambda x, a, b, delta: right(x, b, a, delta),
            "the delay is one step too long: the queue has one number too many": (
                lambda x, a, b, delta: right(x, a, b, delta + 1)
            ),
            "the delay is one step too short: take from the queue before you append": (
                lambda x, a, b, delta: right(x, a, b, delta - 1)
            ),
            "this looks ahead, at x[t + δ]": anticausal,
            "the first inputs see the last ones: before the start there are zeros": wrapped,
        },
        "y[t] = w_0 x[t] + w_1 x[t - δ], with zeros before the start",
        absolute=1e-9,
    )


@checks("ar-6")
def better_order(answer: Mapping[str, float]) -> None:
    """A dictionary of three numbers: {"rows": ..., "columns": ..., "outwards": ...}, -log p of test digits in nats an
    image.

    A result of training has no right value, only a range: better than independent pixels, which are fitted for this,
    and worse than any model of binarised digits yet.
    """
    plausible(answer, ("rows", "columns", "outwards"))
