"""Does the score, or the energy, belong to the density?"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from companion.conformance.outcomes import Fault, Outcome, Undecided, conformance, judge, per_example, rounding_of, show

Numbers = Callable[[Tensor], Tensor]


@conformance
def score_matches_gradient(score: Numbers, log_prob: Numbers, x: Float[Tensor, " batch *event"]) -> Outcome:
    """score(x) is ∇_x log_prob(x), in sign and scale. Minus an energy does as well for `log_prob`.

    Fails for a score of another shape than x; undecided where the gradient is zero at every x.

    >>> import torch
    >>> from companion.conformance import score_matches_gradient
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> log_prob = lambda x: -x.square().sum(1) / 2
    >>> bool(score_matches_gradient(lambda x: -x, log_prob, x))
    True
    >>> score_matches_gradient(lambda x: 2 * x, log_prob, x).detail
    'at x[0] = [1, 2] the score is [2, 4], the gradient [-1, -2]; the sign is inverted and it is scaled by 2'
    """
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        [gradient] = torch.autograd.grad(log_prob(leaf).sum(), leaf)
    got = score(x).detach()
    if got.shape != x.shape:
        raise Fault(f"the score has shape {tuple(got.shape)}, x has {tuple(x.shape)}")
    got, gradient = got.flatten(1), gradient.flatten(1)
    if not gradient.any():
        raise Undecided("the gradient of log_prob is zero at every x: a score of any sign and scale would fit")
    error, size = (got - gradient).abs().max(1).values, gradient.abs().max(1).values

    def fault(i: int) -> str:
        text = f"at {show(x, i)} the score is {_row(got[i])}, the gradient {_row(gradient[i])}"
        scale = float((got * gradient).sum() / gradient.square().sum())
        if ((got - scale * gradient).abs().max(1).values > rounding_of(size)).any():
            return text
        sign = "the sign is inverted" if scale < 0 else ""
        factor = f"it is scaled by {abs(scale):.4g}" if abs(abs(scale) - 1) > 1e-6 else ""
        return "; ".join([text, " and ".join(filter(None, [sign, factor]))])

    return judge(error, 0.0, rounding_of(size), fault, f"{len(x)} inputs", unit="")


@conformance
def energy_matches_log_prob(energy: Numbers, log_prob: Numbers, x: Float[Tensor, " batch *event"]) -> Outcome:
    """log_prob(x) + energy(x) is the same constant, minus the log of the normaliser, at every x.

    Fails where one of them does not answer (batch,); undecided for a single x.
    """
    if len(x) < 2:
        raise Undecided("one x shows no constant")
    with torch.no_grad():
        log_p, e = (per_example(f, x, name).double() for f, name in ((log_prob, "log_prob"), (energy, "energy")))
    constant, rounding = log_p + e, rounding_of(log_p.abs() + e.abs(), x.dtype)

    def fault(i: int) -> str:
        inverted = ((log_p - e) - (log_p - e)[0]).abs() <= rounding
        text = f"log p + energy is {constant[0]:.6g} at {show(x, 0)}, {constant[i]:.6g} at {show(x, i)}"
        return f"{text}; the sign of the energy is inverted" if inverted.all() else text

    return judge((constant - constant[0]).abs(), 0.0, rounding, fault, f"{len(x)} inputs")


def _row(values: Tensor) -> str:
    return f"[{', '.join(f'{v:.4g}' for v in values[:4].tolist())}{', …' if len(values) > 4 else ''}]"
