"""What networks claim about their own Jacobian: its determinant, or its triangle."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from companion.conformance.faults import name_fault
from companion.conformance.outcomes import (
    Fault,
    Outcome,
    Undecided,
    conformance,
    judge,
    per_example,
    rounding_of,
    show,
)


@conformance
def log_det_matches_autograd(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]], x: Float[Tensor, " batch *event"]
) -> Outcome:
    """`forward(x)` returns y and log|det ∂y/∂x| of shape (batch,): held to the Jacobian by autograd.

    A layer whose Jacobian is the identity at every x, as a coupling layer with zero weights is, has log-det
    zero with any formula: that is undecided, not passed.

    Raises TypeError unless x is float64: in float32 the determinant's own rounding hides small faults.

    >>> import torch
    >>> from companion.conformance import log_det_matches_autograd
    >>> x = torch.linspace(-1, 1, 6).double().reshape(3, 2)
    >>> log_det_matches_autograd(lambda x: (x.exp(), x.sum(1)), x)
    passed: log_det_matches_autograd: within 2.6e-09 nats; 3 inputs of 2 dimensions
    >>> log_det_matches_autograd(lambda x: (x.exp(), -x.sum(1)), x).passed
    False
    """
    if x.dtype != torch.float64:
        raise TypeError(f"x must be float64, got {x.dtype}; use layer.double() and x.double()")
    y, _ = forward(x)
    got = per_example(lambda x: forward(x)[1], x, "the log-det")
    if len(y) != len(x) or y.numel() != x.numel():
        raise Fault(f"y has shape {tuple(y.shape)} for x of shape {tuple(x.shape)}: no square Jacobian")
    dims = x[0].numel()
    jacobians = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda one: forward(one)[0], x[i : i + 1]).reshape(dims, dims)
            for i in range(len(x))
        ]
    )
    if (jacobians - torch.eye(dims, dtype=x.dtype, device=x.device)).abs().max() < 1e-12:
        raise Undecided("the Jacobian is the identity at every x: a layer at its identity initialisation tests nothing")
    expected = torch.linalg.slogdet(jacobians).logabsdet
    rounding = rounding_of(expected)

    def fault(i: int) -> str:
        named = name_fault(got, expected, rounding, dims)
        text = f"at {show(x, i)} the log-det is {got[i]:.6g}, that of the Jacobian {expected[i]:.6g}"
        return f"{text}; {named}" if named else text

    return judge((got - expected).abs(), 0.0, rounding, fault, f"{len(x)} inputs of {dims} dimensions")


@conformance
def autoregressive(
    conditional_parameters: Callable[[Tensor], Tensor],
    x: Float[Tensor, " batch *event"],
    order: Sequence[int] | None = None,
    sees: Bool[Tensor, "dims dims"] | None = None,
) -> Outcome:
    """Output i depends on x_j for j before i only, and every x_j but the last reaches some later output.

    Dependence is looked for twice, by gradient and by changing one x_j at a time: a gradient misses hard
    decisions, a single change misses saturated units.

    With `sees`, an expected receptive field, output i depends on exactly the x_j of this field. A convolution that is
    a step too short still passes for autoregressive; its field says so. Give several random x: a connection counts
    as there if it shows at any of them, by either route, and one that is dead at all of them as missing.

    Args:
        conditional_parameters: maps x to (batch, *event, ...): any number of parameters for each dimension,
            the event flattened row by row.
        order: order[k] is the dimension that comes k-th; 0, 1, 2, … where None.
        sees: [i, j] is True where output i should depend on x_j, False where it should not; of dimensions numbered
            row by row, whatever the order. None asks only that every x_j but the last reach some later output.

    Raises:
        TypeError: sees is no bool tensor.
        ValueError: order is no permutation of the dimensions; sees has another shape than (dims, dims), or has an
            output depend on what does not come before it.

    >>> import torch
    >>> from companion.conformance import autoregressive
    >>> weight = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    >>> x = torch.randn(4, 3)
    >>> bool(autoregressive(lambda x: x @ weight.T, x))
    True
    >>> autoregressive(lambda x: x @ (weight + torch.eye(3)).T, x).detail.split("; ")[0]
    'output 0 depends on x_0, by gradient and by perturbation'
    """
    dims = x[0].numel()
    order = list(range(dims)) if order is None else [int(d) for d in order]
    if sorted(order) != list(range(dims)):
        raise ValueError(f"order must be a permutation of 0 to {dims - 1}, got {order}")
    rank = torch.tensor(order).argsort()
    earlier = rank[None, :] < rank[:, None]  # [i, j]: x_j comes before output i
    if sees is not None:
        _require_field(sees, earlier)
    if dims < 2:
        raise Undecided("one dimension has no order")
    by_gradient, by_change = _by_gradient(conditional_parameters, x).cpu(), _by_change(conditional_parameters, x).cpu()
    depends = by_gradient | by_change
    forbidden = depends & ~earlier
    if forbidden.any():
        i, j = forbidden.nonzero()[0].tolist()
        found = [w for w, d in (("gradient", by_gradient), ("perturbation", by_change)) if d[i, j]]
        text = f"output {i} depends on x_{j}, by {' and by '.join(found)}"
        if not (depends & (rank[None, :] > rank[:, None])).any():
            text += "; only on its own input: mask B in the first layer, or a shift by one is missing"
        elif not (depends & ~earlier.T).any():
            text += "; the order is reversed"
        raise Fault(text)
    if sees is not None:
        wrong = (depends != sees.cpu()).nonzero().tolist()
        if wrong:
            i, j = wrong[0]
            text = (
                f"output {i} depends on x_{j}, outside of" if depends[i, j] else f"output {i} misses x_{j}, inside of"
            )
            raise Fault(f"{text} the field that it should see; {len(wrong)} pairs are wrong")
        return Outcome("", True, 0.0, 0.0, f"{dims} dimensions and their field by gradient and perturbation")
    blind = [j for j in order[:-1] if not depends[:, j].any()]
    if blind:
        text = f"no later output depends on x_{blind[0]}"
        if blind == [order[-2]]:
            text += ": mask A after the first layer, or shifted once too often"
        elif len(blind) == dims - 1:
            text += ", nor on any other input: all outputs are constant"
        raise Fault(text)
    return Outcome("", True, 0.0, 0.0, f"{dims} dimensions by gradient and perturbation")


def _require_field(sees: Tensor, earlier: Tensor) -> None:
    dims = len(earlier)
    if not isinstance(sees, Tensor) or sees.dtype != torch.bool:
        raise TypeError(f"sees must be a bool tensor, got {getattr(sees, 'dtype', type(sees).__name__)}")
    if sees.shape != earlier.shape:
        raise ValueError(f"sees must have shape ({dims}, {dims}), got {tuple(sees.shape)}")
    impossible = (sees.cpu() & ~earlier).nonzero()
    if len(impossible):
        i, j = impossible[0].tolist()
        raise ValueError(f"sees must leave out what does not come before an output, got x_{j} for output {i}")


@torch.enable_grad()
def _by_gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[i, j]: some parameter of output i has a gradient to x_j, at some x."""
    dims, x = x[0].numel(), x.detach().clone()
    if not x.is_floating_point():
        return torch.zeros(dims, dims, dtype=torch.bool)
    out = _outputs(f(x.requires_grad_()), dims)
    if not out.requires_grad:
        return torch.zeros(dims, dims, dtype=torch.bool)
    # Random weights: the gradients of several parameters might cancel in a plain sum.
    weighted = (out * torch.linspace(0.5, 1.5, out.shape[-1], dtype=out.dtype, device=out.device)).sum((0, 2))
    rows = [torch.autograd.grad(w, x, retain_graph=True, allow_unused=True)[0] for w in weighted]
    return torch.stack(
        [
            (r != 0).flatten(1).any(0) if r is not None else torch.zeros_like(x[0], dtype=torch.bool).flatten()
            for r in rows
        ]
    )


@torch.no_grad()
def _by_change(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[i, j]: output i moves when x_j does, at some x."""
    dims = x[0].numel()
    before, binary = _outputs(f(x), dims), bool(((x == 0) | (x == 1)).all())
    columns = []
    for j in range(dims):
        flat = x.flatten(1).clone()
        flat[:, j] = 1 - flat[:, j] if binary else flat[:, j] + 1
        moved = (_outputs(f(flat.view_as(x)), dims) - before).abs()
        columns.append((moved > 1e-3 * rounding_of(before, before.dtype)).any(-1).any(0))
    return torch.stack(columns, 1)


def _outputs(out: Tensor, dims: int) -> Tensor:
    """(batch, dims, parameters)"""
    out = out.flatten(1)
    if out.shape[1] % dims:
        raise Fault(f"{out.shape[1]} outputs for {dims} dimensions: not the same number for each")
    return out.reshape(len(out), dims, -1)
