"""An energy with its gradient and its Laplacian, which score matching minimises: exact, and fast for an MLP.

    energy, gradient, laplacian = with_laplacian(network, x)     # (batch,), (batch, *event), (batch,)

All three are differentiable in the parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.nets.energy import EnergyMLP

# Their slope jumps, and so does the gradient of an energy made of them: integration by parts then leaves a term at each
# jump, which no second derivative sees.
KINKED = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Threshold,
    nn.MaxPool1d,
    nn.MaxPool2d,
)


def _silu(layer: nn.SiLU, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = a.sigmoid()
    slope = s * (1 + a * (1 - s))
    return a * s, slope, s * (1 - s) * (2 + a * (1 - 2 * s))


def _softplus(layer: nn.Softplus, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # torch takes it for linear beyond a threshold.
    s = torch.where(layer.beta * a > layer.threshold, 1.0, (layer.beta * a).sigmoid())
    return layer(a), s, layer.beta * s * (1 - s)


def _tanh(layer: nn.Tanh, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = a.tanh()
    slope = 1 - t.square()
    return t, slope, -2 * t * slope


def _sigmoid(layer: nn.Sigmoid, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = a.sigmoid()
    slope = s * (1 - s)
    return s, slope, slope * (1 - 2 * s)


# An activation φ to (φ(a), φ'(a), φ''(a)).
DERIVATIVES: dict[type[nn.Module], Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    nn.SiLU: _silu,
    nn.Softplus: _softplus,
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
}


def with_laplacian(
    network: nn.Module, x: Float[Tensor, " batch *event"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch *event"], Float[Tensor, " batch"]]:
    """E(x), ∇E(x) and ΔE(x) = Σ_d ∂²E/∂x_d²: forward through an `EnergyMLP` of activations in `DERIVATIVES`, and by
    as many backward passes as there are dimensions through anything else.

    Raises ValueError for a network with kinks, such as those of ReLU: its Laplacian misses the jumps of its gradient.
    """
    require_smooth(network)
    if isinstance(network, EnergyMLP) and all(type(a) in DERIVATIVES for a in list(network.layers)[1::2]):
        e, gradient, laplacian = forward_laplacian(network.layers, x)
        precision = 1 / network.width**2
        return (
            e + x.square().sum(1) * precision / 2,
            gradient + precision * x,
            laplacian + precision * x.shape[1],
        )
    return backward_laplacian(network, x)


def forward_laplacian(
    layers: nn.Sequential, x: Float[Tensor, "batch dims"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch dims"], Float[Tensor, " batch"]]:
    """Value, gradient and Laplacian of linear layers and activations with one output, in one pass (Li et al. 2023).

    Each layer takes along, beside its values h, their Jacobian J = ∂h/∂x and their Laplacians Δh. A linear layer acts
    on all three alike, and a = φ(h) has

        ∂a/∂x = φ'(h) J,    Δa = φ'(h) Δh + φ''(h) Σ_d J_d²
    """
    h = x
    jacobian = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[None]  # (1 or batch, dims, units)
    laplacian = x.new_zeros(1, x.shape[1])
    for layer in layers:
        if isinstance(layer, nn.Linear):
            h = layer(h)
            jacobian, laplacian = jacobian @ layer.weight.T, laplacian @ layer.weight.T
        else:
            h, slope, curvature = DERIVATIVES[type(layer)](layer, h)
            laplacian = slope * laplacian + curvature * jacobian.square().sum(1)
            jacobian = slope[:, None] * jacobian
    return h.squeeze(1), jacobian.squeeze(2).expand_as(x), laplacian.squeeze(1).expand(len(x))


def backward_laplacian(
    energy: Callable[[Tensor], Tensor], x: Float[Tensor, " batch *event"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch *event"], Float[Tensor, " batch"]]:
    """The same of any energy: the gradient by one backward pass, and of each of its components one more."""
    with torch.enable_grad():
        leaf = as_leaf(x)
        e = energy(leaf)
        gradient = slope(e, leaf)
        columns = gradient.flatten(1).unbind(1)
        second = [slope(column, leaf).flatten(1)[:, d] for d, column in enumerate(columns)]
    curvature = torch.stack(second, 1)
    require_curvature(curvature, gradient)
    return e, gradient, curvature.sum(1)


def as_leaf(x: Tensor) -> Tensor:
    """x where it is differentiated already, otherwise a leaf with the same values."""
    return x if x.requires_grad else x.detach().requires_grad_()


def slope(y: Float[Tensor, " batch"], x: Float[Tensor, " batch *event"]) -> Float[Tensor, " batch *event"]:
    """∂y_i/∂x_i for each example i, to be differentiated again; 0 where y does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    [gradient] = torch.autograd.grad(y.sum(), x, create_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def require_smooth(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, KINKED):
            raise ValueError(
                f"score matching needs an energy with a continuous gradient, but {name!r} is {type(module).__name__}, "
                "whose slope jumps; use SiLU or softplus"
            )


def require_curvature(second: Tensor, gradient: Float[Tensor, " batch *event"]) -> None:
    """Second derivatives that are all exactly 0 where the gradient differs from example to example belong to an energy
    of flat pieces: one with kinks that are no modules of their own."""
    if len(gradient) > 1 and not second.any() and not torch.equal(gradient, gradient[:1].expand_as(gradient)):
        raise ValueError(
            "score matching needs an energy with a continuous gradient, but its second derivatives are all zero and "
            "its gradient is not constant: it is piecewise linear; use SiLU or softplus in place of ReLU"
        )
