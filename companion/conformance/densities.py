"""Is it a density: does it sum to 1, and do its samples come from it?"""

import inspect
import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from companion.conformance.integral import MOST_NODES, cells_for, integral, log_density, whole_space
from companion.conformance.outcomes import (
    STANDARD_ERRORS_ALLOWED,
    Fault,
    Outcome,
    Undecided,
    conformance,
    judge,
    mean_and_error,
    repeated,
    rounding_of,
    seeded,
    show,
)

MOST_BINARY_DIMS = 16
# Samples that show an integral where the density is.
SEEN = 500


def all_binary(event_shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Float[Tensor, " states *event"]:
    """Every binary event of this shape. Raises ValueError beyond 2^16 of them.

    >>> from companion.conformance import all_binary
    >>> all_binary((2,)).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    dims = math.prod(event_shape)
    if dims > MOST_BINARY_DIMS:
        raise ValueError(f"{dims} binary values have 2^{dims} states; at most 2^{MOST_BINARY_DIMS} are enumerated")
    codes = torch.arange(2**dims)[:, None] >> torch.arange(dims - 1, -1, -1)
    return (codes & 1).to(dtype).reshape(-1, *event_shape)


@conformance
def normalised_by_enumeration(
    log_prob: Callable[[Tensor], Tensor], states: Float[Tensor, " states *event"], tolerance: float | None = None
) -> Outcome:
    """Σ_x exp(log_prob(x)) is 1, over all `states`, each of them given once.

    >>> import torch
    >>> from companion.conformance import all_binary, normalised_by_enumeration
    >>> fair = lambda x: torch.full((len(x),), 0.25).log()
    >>> normalised_by_enumeration(fair, all_binary((2,)))
    passed: normalised_by_enumeration: within 2e-05; 4 states
    >>> bool(normalised_by_enumeration(lambda x: fair(x) / 2, all_binary((2,))))
    False
    """
    logs = log_density(log_prob, states)
    total = logs.double().logsumexp(0).exp()
    rounding = rounding_of(total, logs.dtype) if tolerance is None else tolerance

    def fault(_: int) -> str:
        dims, excess = states[0].numel(), float(total.log())
        return f"the probabilities of {len(states)} states sum to {total:.6g} = exp({excess / dims:.4g} · {dims})"

    return judge((total - 1).abs()[None], 0.0, rounding, fault, f"{len(states)} states", unit="")


@conformance
def normalised_by_quadrature(
    log_prob: Callable[[Tensor], Tensor],
    reach: float = 8.0,
    points: int = 201,
    dim: int = 1,
    tolerance: float = 1e-6,
    dtype: torch.dtype = torch.float64,
    seen: Float[Tensor, "seen dim"] | None = None,
) -> Outcome:
    """∫ exp(log_prob(x)) dx is 1 over the real line or plane.

    Gauss-Lobatto nodes in cells, about `points` nodes per axis on [-reach, reach]^dim and as many beyond. Where halving
    a cell moves its integral the halves are halved again, and also where log_prob is as steep as beside a peak between
    the nodes: kinks, jumps and narrow peaks are resolved. Points `seen` where the density is, such as samples, show
    peaks that are narrower still. What the last halving moved is the error of the integral. A density fails where two
    meshes put it further from 1 than three times that and what they differ by; where they do not tell, it is undecided.

    Raises ValueError unless dim is 1 or 2, reach positive and points at least 3.

    >>> from torch.distributions import Laplace
    >>> from companion.conformance import normalised_by_quadrature
    >>> normalised_by_quadrature(lambda x: Laplace(0.02, 0.5).log_prob(x)[:, 0])
    passed: normalised_by_quadrature: within 1e-06
    """
    if dim not in (1, 2):
        raise ValueError(f"dim must be 1 or 2, got {dim!r}")
    if not reach > 0 or points < 3:
        raise ValueError(f"reach must be positive and points at least 3, got {reach} and {points}")
    space = whole_space(log_prob, reach, dim, dtype, seen)
    total, error, _ = integral(log_prob, cells_for(points), space, tolerance)
    if abs(total - 1) <= tolerance:
        return Outcome("", True, abs(total - 1), tolerance, "")
    # Other cells, so that no kink has the same place in them, and more of them.
    finer, its_error, _ = integral(log_prob, 3 * cells_for(points) // 2 + 1, space, tolerance, 4 * MOST_NODES)
    off, error = abs(finer - 1), max(its_error, abs(finer - total))
    numbers = f"the integral is {finer:.8g} ± {error:.2g}"
    if off <= tolerance:
        return Outcome("", True, off, tolerance, "")
    if finer <= tolerance:
        raise Undecided(f"{numbers}: the density lies elsewhere, or between the nodes; change reach, or raise points")
    if off <= tolerance + 3 * error:
        raise Undecided(f"{numbers}, which may be 1: too rough for a tolerance of {tolerance:.2g}; raise points")
    where = f" = exp({math.log(finer) / dim:.4g} · {dim})" if finer < math.inf else ""
    unseen = ", unless a peak lies between the nodes: show it, by points `seen`" if finer < 1 and seen is None else ""
    return Outcome("", False, off, tolerance, f"{numbers}: not 1{where}{unseen}")


@conformance
def sampler_agrees(
    sample: Callable[[int], Tensor],
    log_prob: Callable[[Tensor], Tensor],
    *,
    states: Float[Tensor, " states *event"] | None = None,
    reach: float | None = None,
    points: int = 256,
    n: int = 20_000,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Outcome:
    """The samples come from the density.

    With `states`, all there are: their frequencies against exp(log_prob) by chi-square. With `reach`, for one
    or two real dimensions: the frequencies of boxes, and the mean of -log_prob over the samples, against
    quadrature on [-reach, reach]^dim. Rare states or boxes are put together.

    Raises ValueError unless exactly one of `states` and `reach` is given, and for real events of other sizes.

    >>> import torch
    >>> from torch.distributions import Independent, Normal
    >>> from companion.conformance import sampler_agrees
    >>> zero = torch.zeros(2, dtype=torch.float64)
    >>> p, wide = (Independent(Normal(zero, zero + scale), 1) for scale in (1.0, 1.1))
    >>> bool(sampler_agrees(lambda n: p.sample((n,)), p.log_prob, reach=8.0))
    True
    >>> bool(sampler_agrees(lambda n: wide.sample((n,)), p.log_prob, reach=8.0))
    False
    """
    if (states is None) == (reach is None):
        raise ValueError("give either states, for a discrete density, or reach, for one on the real line or plane")
    with seeded(seed):
        x = _draw(sample, n)
    if reach is not None:
        return _continuous(x.to(dtype), log_prob, reach, points)
    assert states is not None
    return _discrete(x, log_density(log_prob, states).double(), states)


@conformance
def sampler_agrees_by_gradient(
    sample: Callable[[int], Tensor],
    log_prob: Callable[[Tensor], Tensor],
    parameters: Iterable[Tensor],
    *,
    n: int = 2_000,
    seed: int = 0,
) -> Outcome:
    """E[∇_θ log p(x)] = 0 over the model's own samples, whatever the size of x, along 20 random directions.

    Any normalised density has this property under its own samples. A constant or a factor in log_prob goes
    unnoticed, a sampler or a normaliser of another distribution does not.

    Args:
        parameters: what log_prob can be differentiated by; those that require no gradient are left out.
        n: samples, 50 or more.

    Fails where `sample` does not answer with as many events as it is asked for; undecided without parameters, and
    where none of them changes log_prob. Raises ValueError for an n below 50.
    """
    batches, draws = 50, []
    if isinstance(n, bool) or not isinstance(n, int) or n < batches:
        raise ValueError(f"n must be an integer of at least {batches}, got {n!r}")
    parameters = [p for p in parameters if p.requires_grad]
    if not parameters:
        raise Undecided("no parameter to take the gradient for")
    with seeded(seed):
        x = _draw(sample, n // batches * batches)
        directions = [torch.randn(20, *p.shape, dtype=p.dtype, device=p.device) for p in parameters]
    for batch in x.chunk(batches):
        value = log_prob(batch).mean()
        if not value.requires_grad:
            raise Undecided("log_prob keeps no gradient")
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        dots = [(v * g).flatten(1).sum(1) for v, g in zip(directions, gradients, strict=True) if g is not None]
        draws.append(torch.stack(dots).sum(0).double() if dots else torch.zeros(20, dtype=torch.float64))
    if not any(draw.any() for draw in draws):
        raise Undecided("no parameter changes log_prob")
    mean, error = mean_and_error(torch.stack(draws))
    return judge(
        mean.abs(),
        error,
        rounding_of(mean, x.dtype),
        lambda i: (
            f"log_prob of the model's own samples still rises, by {mean[i]:.4g}, along direction {i} of the parameters:"
            " the samples come from another distribution, or the normaliser is wrong"
        ),
        f"{len(x)} samples",
    )


@conformance
def sampler_repeatable(
    sample: Callable[..., Tensor],
    event_shape: tuple[int, ...] | None = None,
    support: str | None = None,
    n: int = 16,
    seed: int = 0,
) -> Outcome:
    """Samples have their shape, lie in the support, repeat with a seed and differ without.

    A sampler with an argument `generator` must draw from it and from nothing else.

    Args:
        event_shape: of one event; any where None.
        support: "binary", or anything finite.

    Fails where one of these does not hold, and where `sample(n)` is no tensor of n events.
    """
    takes_generator = "generator" in inspect.signature(sample).parameters

    def draw(s: int, global_seed: int) -> Tensor:
        with seeded(global_seed):
            kwargs = {"generator": torch.Generator().manual_seed(s)} if takes_generator else {}
            return _draw(lambda m: sample(m, **kwargs), n)

    try:
        x = draw(seed, seed)
    except RuntimeError as error:  # a generator lives on a device, and this one on the processor
        if "generator" not in str(error):
            raise
        takes_generator = False
        x = draw(seed, seed)
    if event_shape is not None and tuple(x.shape[1:]) != tuple(event_shape):
        raise Fault(f"sample({n}) has shape {tuple(x.shape)}, expected {(n, *event_shape)}")
    other = (x != 0) & (x != 1) if support == "binary" else ~torch.isfinite(x)
    if other.any():
        means = ": means instead of draws" if support == "binary" and ((x > 0) & (x < 1))[other].all() else ""
        raise Fault(f"sample holds {x[other][0]:.4g}, which is not {support or 'finite'}{means}")
    # With a generator, the global seed must not matter; without, it must be all that matters.
    if not torch.equal(x, draw(seed, seed + takes_generator)):
        raise Fault(f"the same {'generator' if takes_generator else 'seed'} gives other samples")
    if torch.equal(x, draw(seed + 1, seed + 1 - takes_generator)):
        raise Fault("another seed gives the same samples: nothing is drawn, or a seed is fixed inside")
    return Outcome("", True, 0.0, 0.0, "by its generator" if takes_generator else "by the global seed")


@conformance
def normalised_in_expectation(
    importance_bound: Callable[[Tensor, int], Tensor],
    states: Float[Tensor, " states *event"],
    samples: int = 20,
    repeats: int = 100,
    seed: int = 0,
) -> Outcome:
    """Σ_x E[exp(importance_bound(x, samples))] is 1: importance weights are unbiased for p(x).

    This normalises a model without an exact density, such as a small VAE. It needs an encoder whose weights
    have a finite variance.
    """
    draws = repeated(lambda x: importance_bound(x, samples), states, repeats, seed, "importance_bound").exp().sum(1)
    mean, error = mean_and_error(draws[:, None])
    return judge(
        (mean - 1).abs(),
        error,
        1e-6,
        lambda _: f"the estimated probabilities of {len(states)} states sum to {mean.item():.4g} ± {error.item():.2g}",
        f"{len(states)} states",
        unit="",
    )


def _draw(sample: Callable[[int], Tensor], n: int) -> Tensor:
    try:
        x = sample(n)
    except TypeError as error:
        if "iterable" not in str(error):
            raise
        raise Fault(f"sample({n}) raises TypeError: {error}; for torch.distributions it is sample(({n},))") from error
    if not isinstance(x, Tensor) or x.ndim == 0 or len(x) != n:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise Fault(f"sample({n}) must be a tensor of {n} events, got {got}")
    return x.detach()


def _chi_square(counts: Tensor, probs: Tensor) -> float:
    """The statistic of observed counts, as a number of standard errors above its mean (Wilson and Hilferty 1931)."""
    expected = probs * counts.sum()
    rare = expected < 10
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    if expected[-1] == 0:
        if counts[-1] > 0:
            return math.inf
        counts, expected = counts[:-1], expected[:-1]
    if len(counts) < 2:
        raise Undecided("nearly all the probability is in one state: nothing to compare")
    freedom = len(counts) - 1
    ratio = float(((counts - expected).square() / expected).sum()) / freedom
    return (ratio ** (1 / 3) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom))


def _discrete(x: Tensor, logs: Tensor, states: Tensor) -> Outcome:
    flat = states.flatten(1)
    both = torch.cat([flat, x.flatten(1).to(flat)])
    rows, code = both.unique(dim=0, return_inverse=True)
    known, drawn = code[: len(flat)], code[len(flat) :]
    strange = ~torch.isin(drawn, known)
    if strange.any():
        raise Fault(f"sample is no state: {show(x, int(strange.nonzero()[0]))}: a mean instead of a draw?")
    counts, probs = torch.bincount(drawn, minlength=len(rows))[known].double(), logs.exp()
    if abs(probs.sum() - 1) > 0.01:
        raise Undecided(f"the probabilities sum to {probs.sum():.4g}: normalise them first")
    error = _chi_square(counts, probs)
    if error <= STANDARD_ERRORS_ALLOWED:
        return Outcome("", True, max(error, 0.0), STANDARD_ERRORS_ALLOWED, f"{len(states)} states", "standard errors")
    worst = int(((counts / len(x) - probs).abs() / (probs + 1e-12).sqrt()).argmax())
    frequency = counts[worst] / len(x)
    detail = f"{show(states, worst)} has frequency {frequency:.4g} in {len(x)} samples, probability {probs[worst]:.4g}"
    detail = "; ".join(filter(None, [detail, _name_discrete_fault(counts, logs, flat.double())]))
    return Outcome("", False, error, STANDARD_ERRORS_ALLOWED, detail, "standard errors")


def _name_discrete_fault(counts: Tensor, logs: Tensor, states: Tensor) -> str:
    n = counts.sum()
    if counts.max() == n:
        return "all samples are the same: the mode instead of a draw"
    of_samples, of_density = (weights @ states for weights in (counts / n, logs.exp()))
    slack = 5 / (2 * n.sqrt())
    for inner, outer, where in ((of_samples, of_density, "log_prob"), (of_density, of_samples, "sample")):
        if ((inner.sigmoid() - outer).abs() < slack).all():
            return f"the sigmoid is applied twice in {where}"
    if ((1 - of_samples - of_density).abs() < slack).all():
        return "ones and zeros are swapped"
    inverse = torch.linspace(0.1, 10, 397, dtype=logs.dtype)
    finite = logs.clamp(min=-700)
    tempered = (inverse[:, None] * finite).log_softmax(1)
    best = int((tempered @ counts).argmax())
    if _chi_square(counts, tempered[best].exp()) <= STANDARD_ERRORS_ALLOWED:
        return f"the samples are those of p^(1/T) at the temperature T ≈ {1 / inverse[best]:.2g}"
    return ""


def _continuous(x: Tensor, log_prob: Callable, reach: float, points: int) -> Outcome:
    dim = x[0].numel()
    if dim not in (1, 2) or x.ndim != 2:
        raise ValueError(f"real samples must be (n, 1) or (n, 2) for quadrature, got {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise Fault("a sample is not finite")
    # Whole cells belong to one box.
    boxes = 32 if dim == 1 else 16
    cells = math.ceil(cells_for(points) / boxes) * boxes
    space = whole_space(log_prob, reach, dim, x.dtype, x[:SEEN])
    total, error, mesh = integral(log_prob, cells, space, 1e-3)
    # A normaliser that is off would be taken for samples that lie elsewhere.
    if abs(total - 1) > min(2e-3 + 3 * error, 5e-3):
        raise Undecided(f"the integral is {total:.4g}: normalise it first, or change reach or points")
    probs, nodes = mesh.mass, mesh.nodes

    def box(points: Tensor) -> Tensor:
        index = ((points + reach) / (2 * reach) * boxes).floor().long().clamp(0, boxes - 1)
        return index @ torch.tensor([boxes**k for k in range(dim)])

    inside = (x.abs() < reach).all(1)
    counts = torch.bincount(box(x[inside]), minlength=boxes**dim).double()
    in_boxes = torch.bincount(box(nodes), weights=probs, minlength=boxes**dim)
    outside = torch.tensor([float((~inside).sum()), max(1 - float(probs.sum()), 0.0)], dtype=torch.float64)
    by_boxes = _chi_square(torch.cat([counts, outside[:1]]), torch.cat([in_boxes, outside[1:]]))
    log_p = log_density(log_prob, x).double()
    if log_p.isneginf().any():
        raise Fault(f"the density is zero at the sample {show(x, int(log_p.isneginf().nonzero()[0]))}")
    # Tails beyond reach are in neither.
    surprise = torch.where(inside, -log_p, 0.0)
    entropy = -torch.special.xlogy(probs, mesh.log_p.exp()).sum()
    mean, spread = surprise.mean(), surprise.std() / math.sqrt(len(x))
    # Under a uniform density all samples are equally surprising, and the integral alone is uncertain.
    slack = 1e-3 + 3 * mesh.error * (1 + entropy.abs())
    by_entropy = float((mean - entropy).abs() / (spread + slack / STANDARD_ERRORS_ALLOWED))
    worst = max(by_boxes, by_entropy, 0.0)
    if worst <= STANDARD_ERRORS_ALLOWED:
        return Outcome("", True, worst, STANDARD_ERRORS_ALLOWED, f"{len(x)} samples", "standard errors")
    centre = probs @ nodes.double()
    scale = (probs @ (nodes.double() - centre).square()).sqrt()
    ratio = x.double().std(0) / scale
    moments = (x.double().mean(0), centre, x.double().std(0), scale)
    got_mean, want_mean, got_scale, want_scale = (", ".join(f"{v:.3g}" for v in m.tolist()) for m in moments)
    detail = (
        f"over {len(x)} samples -log p is {mean:.4g} on average, the entropy is {entropy:.4g}; mean ({got_mean}) for"
        f" ({want_mean}), standard deviation ({got_scale}) for ({want_scale})"
    )
    if (ratio < 1e-6).all():
        detail += ": all samples are the same, the mean instead of a draw"
    elif (ratio - 1).abs().max() > 0.02:
        detail += ": a mean instead of a draw, a temperature, or a variance for a standard deviation"
    return Outcome("", False, worst, STANDARD_ERRORS_ALLOWED, detail, "standard errors")
