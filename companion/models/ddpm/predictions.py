"""What a network may predict of x_t = √ᾱ x_0 + √(1 - ᾱ) ε; each of them gives all the others."""

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

Prediction = Literal["eps", "x0", "v", "score"]


def to_eps(
    value: Float[Tensor, " batch *event"],
    kind: Prediction,
    x: Float[Tensor, " batch *event"],
    signal: float | Tensor,
    noise: float | Tensor,
) -> Float[Tensor, " batch *event"]:
    """ε̂ from a prediction of this kind, with `signal` √ᾱ and `noise` √(1 - ᾱ), numbers or tensors that broadcast.

    x̂_0 = (x - √(1 - ᾱ) ε̂)/√ᾱ;  v = √ᾱ ε - √(1 - ᾱ) x_0 (Salimans and Ho 2022, app. D);  score = -ε̂/√(1 - ᾱ).

    Raises ValueError for an unknown kind.
    """
    require_prediction(kind)
    if kind == "eps":
        return value
    if kind == "x0":
        return (x - signal * value) / noise
    if kind == "v":
        return noise * x + signal * value
    return -noise * value


def from_eps(
    eps: Float[Tensor, " batch *event"],
    kind: Prediction,
    x: Float[Tensor, " batch *event"],
    signal: float | Tensor,
    noise: float | Tensor,
) -> Float[Tensor, " batch *event"]:
    """The inverse of `to_eps`. Raises ValueError for an unknown kind."""
    require_prediction(kind)
    if kind == "eps":
        return eps
    if kind == "x0":
        return (x - noise * eps) / signal
    if kind == "v":
        return (eps - noise * x) / signal
    return -eps / noise


def require_prediction(kind: str) -> None:
    if kind not in get_args(Prediction):
        raise ValueError(f"a prediction must be one of {', '.join(get_args(Prediction))}, got {kind!r}")
