"""Two-dimensional densities with a known log-density, as `torch.distributions`.

    target = density("moons")
    x = target.sample((1000,))  # (1000, 2), from torch's global generator
    target.log_prob(x)          # (1000,), nats

Of each, all but less than 10⁻⁶ of the mass lies within [-4.5, 4.5]².
"""

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal, constraints


def _check_points(value: Tensor) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        found = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise TypeError(f"log_prob needs a tensor of floating-point coordinates, got {found}")
    if value.shape[-1:] != (2,):
        raise ValueError(f"log_prob needs points of shape (..., 2), got shape {tuple(value.shape)}")
    if value.isnan().any():
        raise ValueError(f"log_prob got NaN for {int(value.isnan().sum())} of {value.numel()} coordinates")


class Rings(Distribution):
    """Points at a uniform angle and at the distance |R| from the origin.

    With f the density of R, the point x at distance r has density (f(r) + f(-r)) / (2πr): both signs of R lead
    to the same distance, and a circle of radius r has the length 2πr. Wherever f(0) > 0 it grows without bound
    towards the origin, though its integral is finite; at the origin itself log_prob is +inf.

    Args:
        radius: the distribution of R, a real number with or without a sign.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector

    def __init__(self, radius: Distribution, validate_args: bool | None = None):
        self.radius = radius
        super().__init__(radius.batch_shape, torch.Size((2,)), validate_args)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Float[Tensor, "*sample 2"]:
        r = self.radius.sample(sample_shape)
        angle = 2 * math.pi * torch.rand_like(r)
        # Minus the radius at some angle is the radius at the opposite one: no absolute value is needed.
        return torch.stack((r * angle.cos(), r * angle.sin()), dim=-1)

    def log_prob(self, value: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
        """Log-density in nats. Raises TypeError or ValueError unless value holds points without NaN."""
        if self._validate_args:
            _check_points(value)
        r = torch.linalg.vector_norm(value, dim=-1)
        folded = torch.logaddexp(self.radius.log_prob(r), self.radius.log_prob(-r))
        return folded - (2 * math.pi * r).log()


class Checkerboard(Distribution):
    """Uniform on the black half of 4 × 4 squares around the origin.

    A square contains its lower and its left edge. The one whose lower left corner is the origin is black.

    Args:
        side: length of a square's side.
    """

    arg_constraints: ClassVar = {"side": constraints.positive}
    support = constraints.real_vector

    def __init__(self, side: Tensor, validate_args: bool | None = None):
        self.side = side
        super().__init__(side.shape, torch.Size((2,)), validate_args)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Float[Tensor, "*sample 2"]:
        shape = self._extended_shape(sample_shape)
        # Uniform on the board, in units of a square; what falls on white moves one square to the right, around
        # the edge. No step rounds, so no sample leaves the black squares.
        x, y = (4 * (torch.rand(shape, dtype=self.side.dtype, device=self.side.device) - 0.5)).unbind(-1)
        x = x + (x.floor() + y.floor()).remainder(2)
        x = torch.where(x < 2, x, x - 4)
        return torch.stack((x, y), dim=-1) * self.side[..., None]

    def log_prob(self, value: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
        """Log-density in nats, -inf on white and outside the board.

        Raises TypeError or ValueError unless value holds points without NaN.
        """
        if self._validate_args:
            _check_points(value)
        square = (value / self.side[..., None]).floor()
        on_board = ((square >= -2) & (square < 2)).all(-1)
        black = square.sum(-1).remainder(2) == 0
        return torch.where(on_board & black, -(8 * self.side**2).log(), -math.inf).to(value.dtype)


class NoisyCurves(Distribution):
    """A point of one of several curves, chosen at random, plus isotropic Gaussian noise.

    The curve and its parameter t in [0, 1] are uniform. The density is the mean over the curves of
    ∫ N(x; c(t), scale² I) dt, by Gauss-Legendre quadrature in log-space.

    Args:
        curves: maps t of shape (...) to a point of each of the k curves, (..., k, 2).
        scale: standard deviation of the noise.
        nodes: number of quadrature nodes on each curve. It must grow with the curves' length over `scale`.
    """

    arg_constraints: ClassVar = {"scale": constraints.positive}
    support = constraints.real_vector

    def __init__(
        self,
        curves: Callable[[Float[Tensor, "*t"]], Float[Tensor, "*t k 2"]],
        scale: Tensor,
        nodes: int,
        validate_args: bool | None = None,
    ):
        self.curves, self.scale = curves, scale
        super().__init__(scale.shape, torch.Size((2,)), validate_args)
        t, weights = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(nodes))
        points = curves((t + 1) / 2).to(scale)
        k = points.shape[-2]
        self._nodes = points.reshape(-1, 2)
        # The nodes are those of [-1, 1], where the weights sum to 2.
        self._log_weights = (weights / (2 * k)).log().to(scale).repeat_interleave(k)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Float[Tensor, "*sample 2"]:
        shape = self._extended_shape(sample_shape)[:-1]
        points = self.curves(torch.rand(shape, dtype=self.scale.dtype, device=self.scale.device))
        chosen = torch.randint(points.shape[-2], (*shape, 1, 1), device=self.scale.device)
        on_curve = torch.take_along_dim(points, chosen, dim=-2).squeeze(-2)
        return on_curve + self.scale[..., None] * torch.randn_like(on_curve)

    def log_prob(self, value: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
        """Log-density in nats. Raises TypeError or ValueError unless value holds points without NaN."""
        if self._validate_args:
            _check_points(value)
        x, y = (value / self.scale[..., None]).split(1, dim=-1)
        node_x, node_y = (self._nodes / self.scale[..., None, None]).unbind(-1)
        squared = (x - node_x).square() + (y - node_y).square()
        mean = torch.logsumexp(self._log_weights - squared / 2, dim=-1)
        return mean - (2 * math.pi * self.scale**2).log()


def _moons(t: Float[Tensor, "*t"]) -> Float[Tensor, "*t 2 2"]:
    """Two interleaved half circles of radius 2."""
    c, s = 2 * (math.pi * t).cos(), 2 * (math.pi * t).sin()
    upper = torch.stack((c - 1, s - 0.5), dim=-1)
    return torch.stack((upper, -upper), dim=-2)


def _spirals(t: Float[Tensor, "*t"]) -> Float[Tensor, "*t 2 2"]:
    """Two Archimedean spirals of one and a half turns, at radii from 1/2 to 7/2.

    The parameter is linear in the squared radius: that makes the points nearly uniform in arc length.
    """
    r = (0.25 + 12 * t).sqrt()
    arm = torch.stack((r * (math.pi * r).cos(), r * (math.pi * r).sin()), dim=-1)
    return torch.stack((arm, -arm), dim=-2)


def _gaussians(means: Float[Tensor, "k 2"], scale: Tensor) -> MixtureSameFamily:
    """Equally probable, and all of the same width."""
    components = Independent(Normal(means, scale.expand_as(means)), 1)
    return MixtureSameFamily(Categorical(torch.ones_like(means[:, 0])), components)


def _eight_gaussians(number: Callable[[object], Tensor]) -> MixtureSameFamily:
    angles = number([i * math.pi / 4 for i in range(8)])
    return _gaussians(3 * torch.stack((angles.cos(), angles.sin()), dim=-1), number(0.3))


def _grid25(number: Callable[[object], Tensor]) -> MixtureSameFamily:
    """The 5 × 5 grid on which modes are counted (Lin et al. 2018, PacGAN): forty widths from one to the next."""
    axis = number([-4, -2, 0, 2, 4])
    return _gaussians(torch.cartesian_prod(axis, axis), number(0.05))


def _rings(number: Callable[[object], Tensor]) -> Rings:
    # Weights that grow with the radius make the rings about equally dense.
    radius = MixtureSameFamily(Categorical(number([1, 2, 3])), Normal(number([1, 2, 3]), number([0.1, 0.1, 0.1])))
    return Rings(radius)


# The numbers of nodes give log_prob in float64 to 1e-9 on [-8, 8]².
_DENSITIES = {
    "moons": lambda number: NoisyCurves(_moons, number(0.2), nodes=128),
    "rings": _rings,
    "eight_gaussians": _eight_gaussians,
    "grid25": _grid25,
    "checkerboard": lambda number: Checkerboard(number(2)),
    "spirals": lambda number: NoisyCurves(_spirals, number(0.15), nodes=512),
}
DENSITIES = tuple(_DENSITIES)


def density(name: str, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Distribution:
    """The density of this name: batch shape (), event shape (2,), `log_prob` in nats.

    Args:
        name: one of DENSITIES.
        dtype, device: of its parameters and samples; torch's defaults where None.

    Raises:
        ValueError: unknown name.
        TypeError: dtype is not a floating-point type.

    >>> import torch
    >>> from companion.data import DENSITIES, density
    >>> sorted(DENSITIES)
    ['checkerboard', 'eight_gaussians', 'grid25', 'moons', 'rings', 'spirals']
    >>> moons = density("moons")
    >>> moons.sample((3,)).shape, moons.log_prob(torch.zeros(5, 2)).shape
    (torch.Size([3, 2]), torch.Size([5]))
    """
    if name not in DENSITIES:
        raise ValueError(f"name is {name!r}; it must be one of {', '.join(DENSITIES)}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not dtype.is_floating_point:
        raise TypeError(f"dtype is {dtype}; it must be a floating-point type")
    return _DENSITIES[name](lambda number: torch.tensor(number, dtype=dtype, device=device))
