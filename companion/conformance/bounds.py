"""Is it a bound: below the exact value, higher with more samples, and made of the model's own distributions?"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from companion.conformance.faults import name_fault
from companion.conformance.outcomes import (
    Fault,
    Outcome,
    Undecided,
    agree,
    conformance,
    judge,
    mean_and_error,
    per_example,
    repeated,
    rounding_of,
    seeded,
    show,
)

Numbers = Callable[[Tensor], Tensor]


@conformance
def bound_below_exact(
    bound: Numbers, log_prob: Numbers, x: Float[Tensor, " batch *event"], repeats: int = 100, seed: int = 0
) -> Outcome:
    """E[bound(x)] ≤ log_prob(x) for each x. A bound without noise is evaluated as often, and held to rounding."""
    with torch.no_grad():
        exact = per_example(log_prob, x, "log_prob")
        draws = repeated(bound, x, repeats, seed, "bound")
    (mean, error), rounding, exact = mean_and_error(draws), rounding_of(exact), exact.double()

    def fault(i: int) -> str:
        named = name_fault(draws, exact.expand_as(draws), rounding, x[0].numel())
        text = f"the bound on {show(x, i)} is {mean[i]:.6g} ± {error[i]:.2g}, above the exact {exact[i]:.6g}"
        return f"{text}; {named}" if named else text

    return judge(mean - exact, error, rounding, fault, f"{len(x)} inputs")


@conformance
def bound_within_unit_mass(
    bound: Numbers, states: Float[Tensor, " states *event"], repeats: int = 100, seed: int = 0
) -> Outcome:
    """Σ_x exp(E[bound(x)]) ≤ 1 over all states: what lies below log p cannot add up to more than p does."""
    with torch.no_grad():
        mean, error = mean_and_error(repeated(bound, states, repeats, seed, "bound"))
    weights = mean.exp()
    total, spread = weights.sum(), (weights * error).square().sum().sqrt()
    return judge(
        (total - 1)[None],
        spread,
        1e-6,
        lambda _: f"exp(bound) over {len(states)} states sums to {total:.4g}: the bound is above log p somewhere",
        f"{len(states)} states",
        unit="",
    )


@conformance
def bounds_agree(
    first: Numbers, second: Numbers, x: Float[Tensor, " batch *event"], repeats: int = 100, seed: int = 0
) -> Outcome:
    """Two estimates of one number agree in expectation, such as the evidence lower bound and the
    importance-weighted bound with one sample."""
    with torch.no_grad():
        a, b = (repeated(f, x, repeats, seed, "bound") for f in (first, second))
    rounding = rounding_of(a.mean(0), x.dtype)

    def fault(i: int) -> str:
        named = name_fault(a, b, rounding, x[0].numel())
        text = f"on {show(x, i)} they are {a.mean(0)[i]:.6g} and {b.mean(0)[i]:.6g} on average"
        return f"{text}; {named}" if named else text

    return agree(a, b, rounding, fault, f"{len(x)} inputs")


@conformance
def bound_monotone(
    bound: Callable[[Tensor, int], Tensor],
    x: Float[Tensor, " batch *event"],
    samples: Sequence[int] = (1, 5, 50),
    repeats: int = 50,
    log_prob: Numbers | None = None,
    seed: int = 0,
) -> Outcome:
    """The importance-weighted bound `bound(x, K)` does not fall in expectation as K grows, and stays below `log_prob`.

    Where `samples` starts at 1, the bound at K is also held to the logarithm of the mean of K weights, which
    are K draws of exp(bound(x, 1)): a mean of logarithms would not rise at all, a sum in place of the mean rise
    without limit. The draws for the rows of a batch must be independent.

    Raises ValueError unless `samples` rises and has at least two entries.
    """
    samples = list(samples)
    if len(samples) < 2 or samples != sorted(set(samples)) or samples[0] < 1:
        raise ValueError(f"samples must be at least two rising positive numbers, got {samples}")
    with torch.no_grad():
        draws = {k: repeated(_with(bound, k), x, repeats, seed, f"bound with K = {k}") for k in samples}
        exact = None if log_prob is None else per_example(log_prob, x, "log_prob").double()
        singles = None
        if samples[0] == 1:
            # One call on many copies of x, not one call for each draw.
            top, many = samples[-1], x.repeat(samples[-1], *[1] * (x.ndim - 1))
            ones = repeated(lambda x: bound(x, 1), many, repeats, seed + repeats, "bound with K = 1")
            singles = ones.reshape(repeats * top, len(x))
    rounding = rounding_of(draws[samples[0]].mean(0), x.dtype)
    outcomes = []
    if singles is not None:
        outcomes += [_log_mean_weight(draws[k], singles, k, rounding) for k in samples[1:]]
    for k in samples:
        if exact is None:
            break
        mean, error = mean_and_error(draws[k])

        def above(i: int, k: int = k, mean: Tensor = mean, exact: Tensor = exact) -> str:
            return f"with K = {k} the bound on {show(x, i)} is {mean[i]:.6g}, above the exact {exact[i]:.6g}"

        outcomes.append(judge(mean - exact, error, rounding, above))
    for low, high in itertools.pairwise(samples):
        fall, error = mean_and_error(draws[low] - draws[high])

        def falls(i: int, low: int = low, high: int = high, fall: Tensor = fall) -> str:
            return f"from K = {low} to {high} the bound on {show(x, i)} falls by {fall[i]:.4g} nats"

        outcomes.append(judge(fall, error, rounding, falls))
    worst = next((o for o in outcomes if not o.passed), max(outcomes, key=lambda o: o.error / o.allowed))
    return worst if not worst.passed else replace(worst, detail=f"K = {', '.join(map(str, samples))}")


@conformance
def bound_matches_code(
    bound: Numbers,
    encode: Callable[[Tensor], Distribution],
    decode: Callable[[Tensor], Distribution],
    x: Float[Tensor, " batch *event"],
    log_prior: Numbers | None = None,
    repeats: int = 200,
    seed: int = 0,
) -> Outcome:
    """The evidence lower bound is E_q[log p(x|z) + log p(z) - log q(z|x)], with q and p(x|z) as the model gives them.

    Args:
        log_prior: log p(z), (batch,); standard normal where None.

    A failure says which term is wrong. Undecided for discrete z without a `log_prior`.
    """
    reconstruction, kl = code_terms(encode, decode, x, log_prior, repeats, seed)
    with torch.no_grad():
        got = repeated(bound, x, repeats, seed, "bound")
    expected, rounding, dims = reconstruction - kl, rounding_of(got.mean(0), x.dtype), x[0].numel()

    def fault(i: int) -> str:
        parts = {"reconstruction": reconstruction, "KL": -kl}
        named = name_fault(got, expected, rounding, dims, parts)
        terms = f"reconstruction {reconstruction.mean(0)[i]:.6g} and KL {kl.mean(0)[i]:.6g}"
        text = f"the bound on {show(x, i)} is {got.mean(0)[i]:.6g}, its terms are {terms}"
        return f"{text}; {named}" if named else text

    return agree(got, expected, rounding, fault, f"{len(x)} inputs")


@conformance
def posterior_matches_bayes(
    encode: Callable[[Tensor], Distribution],
    decode: Callable[[Tensor], Distribution],
    log_prob: Numbers,
    x: Float[Tensor, " batch *event"],
    log_prior: Numbers | None = None,
    repeats: int = 5,
    seed: int = 0,
) -> Outcome:
    """An encoder that claims to be exact: log p(x|z) + log p(z) - log q(z|x) is log p(x) at every z drawn from q.

    Args:
        log_prior: log p(z), (batch,); standard normal where None.
    """
    reconstruction, kl = code_terms(encode, decode, x, log_prior, repeats, seed)
    exact = per_example(log_prob, x, "log_prob")
    error = (reconstruction - kl - exact.double()).abs().max(0).values
    return judge(
        error,
        0.0,
        rounding_of(exact),
        lambda i: f"for {show(x, i)}, log p(x,z) - log q(z|x) is {error[i]:.4g} nats from log p(x): not the posterior",
        f"{len(x)} inputs",
    )


def code_terms(
    encode: Callable, decode: Callable, x: Tensor, log_prior: Numbers | None, repeats: int, seed: int
) -> tuple[Tensor, Tensor]:
    """log p(x|z) and log q(z|x) - log p(z) at draws of z from q, each (repeats, batch), float64."""
    with torch.no_grad():
        q = encode(x)
    if log_prior is None:
        if q.support.is_discrete:
            raise Undecided("z is discrete: log_prior is needed")
        log_prior = _standard_normal

    reconstruction, kl = [], []
    for r in range(repeats):
        with seeded(seed + r), torch.no_grad():  # the seeds of `repeated`: a bound that draws alike sees the same z
            z = q.sample()
            reconstruction.append(_summed(decode(z).log_prob(x), x).double())
            kl.append((_summed(q.log_prob(z), x) - log_prior(z)).double())
    return torch.stack(reconstruction), torch.stack(kl)


def _with(bound: Callable[[Tensor, int], Tensor], k: int) -> Numbers:
    return lambda x: bound(x, k)


def _standard_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)


def _summed(log_prob: Tensor, x: Tensor) -> Tensor:
    """Over the event, for distributions that count it as independent batch dimensions."""
    if log_prob.shape[:1] != (len(x),):
        raise Fault(f"the code's log_prob must start with the batch {len(x)}, got {tuple(log_prob.shape)}")
    return log_prob.flatten(1).sum(1) if log_prob.ndim > 1 else log_prob


def _log_mean_weight(draws: Tensor, singles: Tensor, k: int, rounding: Tensor) -> Outcome:
    """The mean over the batch of the bound at K, against the same from single weights."""
    groups = singles[: len(singles) // k * k].reshape(-1, k, singles.shape[1])
    right, right_error = mean_and_error((groups.logsumexp(1) - math.log(k)).mean(1))
    got, got_error = mean_and_error(draws.mean(1))
    error = (right_error.square() + got_error.square()).sqrt()

    def fault(_: int) -> str:
        text = f"with K = {k} the bound is {got:.6g} on average, the log of the mean weight {right:.6g} ± {error:.2g}"
        for wrong, name in (
            (singles.mean(), "the mean of the logarithms in place of the logarithm of the mean: constant in K"),
            (right + math.log(k), "the sum of the weights in place of their mean: grows by log K without limit"),
        ):
            if (got - wrong).abs() <= 5 * error + rounding.mean():
                return f"{text}; {name}"
        return text

    return judge((got - right).abs()[None], error, rounding.mean(), fault)
