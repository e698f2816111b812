"""Runs every check that applies to a model, by the questions it answers."""

import inspect
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from companion.conformance import bounds, densities, losses, scores
from companion.conformance.outcomes import Outcome, Report, seeded

SUPPORTS = ("binary", "real")

# A bound is estimated a thousand times for each state, where a density is evaluated once.
ESTIMATED_STATES = 1024


def check(
    model: object,
    x: Tensor | None = None,
    *,
    event_shape: tuple[int, ...] | None = None,
    support: Literal["binary", "real"] | None = None,
    states: Tensor | None = None,
    reach: float = 8.0,
    points: int | None = None,
    repeats: int = 100,
    n: int = 20_000,
    log_prior: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> Report:
    """Every check that applies, chosen by the methods the model has.

    The methods are found by name: `log_prob`, `elbo`, `importance_bound(x, samples)`, `sample(n)`, `encode` and
    `decode`, `loss`, `score`, `energy`. The model is used as it is: in its own dtype, device and mode.

    Args:
        x: inputs to test at; all states of a small discrete model, or random events, where None.
        event_shape: the shape of one event; that of `x` or the model's own attribute where None.
        support: "binary" or "real"; where None, read off `x` or `states`.
        states: all states of a discrete model that is not binary.
        reach, points: the quadrature of real events of one or two dimensions starts with about `points` nodes per axis
            on [-reach, reach]^dim and as many beyond; the model's samples show it where the density is.
        repeats: evaluations of whatever is random, for its standard error.
        n: samples drawn where a sampler meets a density.
        log_prior: log p(z) of the model's code, (batch,); standard normal where None.

    Raises:
        TypeError: `model` is a class, or `event_shape` no tuple of integers.
        ValueError: the events' shape or support is neither given nor known, or they contradict each other; or a
            number is out of its range.

    >>> from companion.conformance import check
    >>> from companion.models import IndependentPixels
    >>> report = check(IndependentPixels((1, 2, 2)).double(), support="binary")
    >>> [outcome.name for outcome in report.outcomes]
    ['log_prob sums to 1', 'sample is repeatable', 'sample agrees with log_prob', 'loss is in its unit']
    """
    if isinstance(model, type):
        raise TypeError(f"model must be an object, got the class {model.__name__}; make one: {model.__name__}(…)")
    for name, number, least in (("repeats", repeats, 2), ("n", n, 2), ("points", 3 if points is None else points, 3)):
        if not isinstance(number, int) or number < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {number!r}")
    if not 0 < reach < math.inf:
        raise ValueError(f"reach must be positive and finite, got {reach!r}")
    event_shape = _event_shape(model, event_shape, {"x": x, "states": states})
    dims, data = math.prod(event_shape), x if x is not None else states
    binary = data is not None and bool(((data == 0) | (data == 1)).all())
    if support is None:
        if data is None:
            raise ValueError("the kind of data is not known: give x, or support='binary' or 'real'")
        support = "binary" if binary else "real"
    if states is None and data is not None and not data.is_floating_point() and not binary:
        raise ValueError(
            f"x has the dtype {data.dtype}: give all states of a discrete model, or x.float() for a real one"
        )
    if support not in SUPPORTS:
        raise ValueError(f"support must be one of {', '.join(SUPPORTS)}, got {support!r}")
    parameters = list(model.parameters()) if hasattr(model, "parameters") else []
    like = data if data is not None else next((p for p in parameters if p.is_floating_point()), torch.zeros(()))
    dtype, device = like.dtype, like.device

    too_large = ""
    if states is None and support == "binary":
        try:
            states = densities.all_binary(event_shape, dtype).to(device)
        except ValueError as error:
            too_large = str(error)
    elif states is None and dims > 2:
        too_large = f"quadrature is for one or two real dimensions, these events have {dims}"
    discrete = states is not None
    if x is None:
        x = _inputs(event_shape, support, states, dtype, device, seed)

    methods = ("log_prob", "elbo", "importance_bound", "sample", "encode", "decode", "loss", "score", "energy")
    found = {m: getattr(model, m) for m in methods if callable(getattr(model, m, None))}
    if not found:
        raise ValueError(f"{type(model).__name__} answers none of the questions: {', '.join(methods)}")
    outcomes: list[Outcome] = []
    skipped = {m: why for m, function in found.items() if (why := _other_arguments(m, function))}
    log_prob, elbo, importance, sample, encode, decode, loss, score, energy = (
        None if m in skipped else found.get(m) for m in methods
    )
    if states is not None and not log_prob and len(states) > ESTIMATED_STATES:
        too_large = (
            f"a bound on each of {len(states):,} states would take too long; at most {ESTIMATED_STATES:,} are tried"
        )
        states, discrete = None, False

    def run(name: str, function: Callable[..., Outcome], *args, **kwargs) -> None:
        try:
            found = function(*args, **kwargs)
        except Exception as error:  # a model that raises is what this is for: the report says so
            found = Outcome(name, False, math.inf, 0.0, _first_line(error))
        outcomes.append(Outcome(name, found.passed, found.error, found.allowed, found.detail, found.unit))

    # The quadrature has its nodes on the processor, as rows.
    def of_rows(x: Tensor) -> Tensor:
        assert log_prob is not None
        return log_prob(x.reshape(-1, *event_shape).to(device)).cpu()

    def as_rows(m: int) -> Tensor:
        assert sample is not None
        x = sample(m)
        return x.reshape(-1, dims).cpu() if isinstance(x, Tensor) else x

    again = {"repeats": repeats, "seed": seed}
    dim = {"dtype": dtype} | ({"points": points} if points else {})
    if log_prob:
        if too_large:
            skipped["log_prob is normalised"] = too_large
        elif discrete:
            run("log_prob sums to 1", densities.normalised_by_enumeration, log_prob, states)
        else:
            tolerance = 1e-6 if dtype == torch.float64 else 1e-3
            quadrature = densities.normalised_by_quadrature
            seen = _seen(as_rows, seed) if sample else None
            name = "log_prob integrates to 1"
            run(name, quadrature, of_rows, reach, dim=dims, tolerance=tolerance, seen=seen, **dim)
    if sample:
        run("sample is repeatable", densities.sampler_repeatable, sample, event_shape, support, seed=seed)
    if sample and log_prob:
        name = "sample agrees with log_prob"
        if discrete:
            run(name, densities.sampler_agrees, sample, log_prob, states=states, n=n, seed=seed)
        elif not too_large:
            run(name, densities.sampler_agrees, as_rows, of_rows, reach=reach, n=n, seed=seed, **dim)
        elif any(p.requires_grad for p in parameters):
            run(name, densities.sampler_agrees_by_gradient, sample, log_prob, parameters, seed=seed)
        else:
            skipped[name] = f"{too_large}, and there are no parameters to take gradients for"
    if elbo and log_prob:
        run("elbo ≤ log_prob", bounds.bound_below_exact, elbo, log_prob, x, **again)
    elif elbo and discrete:
        run("exp(elbo) sums to at most 1", bounds.bound_within_unit_mass, elbo, states, **again)
    elif elbo:
        skipped["elbo ≤ log p"] = "no log_prob to compare with"
    if importance:
        _importance(run, skipped, importance, elbo, log_prob, sample, x, states, too_large, n, again)
    if encode and decode:
        _code(run, skipped, elbo, log_prob, encode, decode, x, log_prior, again)
    if loss:
        bound, k = elbo, getattr(model, "samples", 1)
        if importance and isinstance(k, int) and k > 1:  # trained on the importance-weighted bound
            bound = lambda x: importance(x, k)  # noqa: E731
        # Where both are exact, the loss is held to the exact one.
        run("loss is in its unit", losses.loss_in_unit, loss, x, log_prob, None if log_prob else bound, **again)
    if score or energy:
        _score(run, skipped, score, energy, log_prob, x)
    return Report(type(model).__name__, tuple(outcomes), skipped)


def _event_shape(model: object, given: object, data: dict[str, Tensor | None]) -> tuple[int, ...]:
    """That of the data, as given, or the model's own."""
    if given is not None and not (isinstance(given, (tuple, list)) and all(isinstance(d, int) for d in given)):
        raise TypeError(f"event_shape must be a tuple of integers, such as (2,), got {given!r}")
    for name, batch in data.items():
        if batch is None:
            continue
        if not isinstance(batch, Tensor) or batch.ndim == 0 or len(batch) == 0:
            got = f"the shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
            raise ValueError(f"{name} must be a tensor with an event in each row, got {got}")
        if given is not None and tuple(given) != tuple(batch.shape[1:]):
            raise ValueError(f"event_shape must be {tuple(batch.shape[1:])} as for {name}, got {tuple(given)}")
        given = tuple(batch.shape[1:])
    if given is None:
        given = getattr(model, "event_shape", None)
    if given is None:
        raise ValueError("the shape of an event is not known: give x or event_shape")
    return tuple(given)


def _other_arguments(name: str, function: Callable) -> str:
    """Why the method cannot be called as the checks do; empty where it can."""
    arguments = {"importance_bound": ("x", "samples"), "sample": ("n",), "decode": ("z",)}.get(name, ("x",))
    try:
        signature = inspect.signature(function)
        signature.bind(*arguments)
    except TypeError as error:
        return f"{name}({', '.join(arguments)}) does not fit {name}{signature}, {error}: wrap the model"
    except ValueError:  # some built-in functions tell no signature
        pass
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def _inputs(event_shape, support, states, dtype, device, seed) -> Tensor:
    """Up to 16 states, or 8 random events."""
    with seeded(seed):
        if states is not None:
            return states[torch.randperm(len(states))[:16].sort().values.to(states.device)]
        noise = torch.randn(8, *event_shape, dtype=dtype).to(device)
        return (noise > 0).to(dtype) if support == "binary" else noise


def _seen(as_rows: Callable[[int], Tensor], seed: int) -> Tensor | None:
    """Samples to show the quadrature where the density is; what is wrong with them, the sampler's checks say."""
    try:
        with seeded(seed), torch.no_grad():
            x = as_rows(densities.SEEN)
        return x[x.isfinite().all(1)]
    except Exception:
        return None


def _importance(run, skipped, importance, elbo, log_prob, sample, x, states, too_large, n, again) -> None:
    few = {"repeats": min(again["repeats"], 50), "seed": again["seed"]}
    run("importance_bound rises with K", bounds.bound_monotone, importance, x, log_prob=log_prob, **few)
    if elbo:
        one = lambda x: importance(x, 1)  # noqa: E731
        run("elbo = importance_bound with K = 1", bounds.bounds_agree, elbo, one, x, **again)
    if states is None:
        why = too_large or "the importance weights of real events are not integrated"
        skipped["importance weights are normalised"] = why
        return
    run("importance weights sum to 1", densities.normalised_in_expectation, importance, states, **few)
    if sample and not log_prob:
        # With as many weights as samples, the estimate's noise is below that of the frequencies.
        n = min(n, 5_000)

        def estimate(x: Tensor) -> Tensor:
            return torch.stack([importance(x, 500) for _ in range(20)]).logsumexp(0) - math.log(20)

        run("sample agrees with importance_bound", densities.sampler_agrees, sample, estimate, states=states, n=n)


def _code(run, skipped, elbo, log_prob, encode, decode, x, log_prior, again) -> None:
    name = "elbo is that of encode and decode"
    try:
        q = encode(x)
        for method, answer in (("encode(x)", q), ("decode(z)", decode(q.sample()) if hasattr(q, "sample") else q)):
            if not hasattr(answer, "log_prob"):
                got = type(answer).__name__
                raise TypeError(f"{method} must be a distribution, as of torch.distributions, got {got}")
        discrete = log_prior is None and q.support.is_discrete
    except Exception as error:
        outcome = Outcome(name, False, math.inf, 0.0, _first_line(error))
        return run(name, lambda: outcome)
    if discrete:
        skipped[name] = "z is discrete and no log_prior is given"
    elif elbo:
        run(name, bounds.bound_matches_code, elbo, encode, decode, x, log_prior, **again)
    if log_prob and not discrete:

        def bound(x: Tensor) -> Tensor:
            reconstruction, kl = bounds.code_terms(encode, decode, x, log_prior, 1, int(torch.randint(2**31, ())))
            return (reconstruction - kl)[0]

        run("the bound of encode and decode ≤ log_prob", bounds.bound_below_exact, bound, log_prob, x, **again)


def _score(run, skipped, score, energy, log_prob, x) -> None:
    negative = (lambda x: -energy(x)) if energy else None
    if score and (log_prob or energy):
        run("score is the gradient", scores.score_matches_gradient, score, log_prob or negative, x)
    elif score:
        skipped["score is the gradient"] = "no log_prob or energy to differentiate"
    if energy and log_prob:
        run("energy is -log_prob but for a constant", scores.energy_matches_log_prob, energy, log_prob, x)
    elif energy and not score:
        skipped["energy"] = "no log_prob or score to compare with"
