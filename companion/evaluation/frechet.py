"""How far apart are two sets of features, seen as Gaussians? The Fréchet inception distance (Heusel et al. 2017), for
the features of any network.

    frechet_distance(fake, real)              # features of both
    unbiased_frechet_distance(fake, real)     # the same, had there been infinitely many of x

    moments = Moments(net=real.net, of="samples of a VAE, seed 0")      # more images than fit into memory
    for _ in range(100):
        moments.update(net.features(model.sample(500)))
    frechet_distance(moments, real)

With a few samples the distance is above that of many: its bias falls as 1/n, by a constant that depends on the model
(Chong and Forsyth 2020). Only distances of the same n can be compared, of the same network anyway.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from companion.evaluation.features import UNNAMED, Conditions, Features, Samples, as_features, with_conditions
from companion.validate import require_events, require_positive_int

# Numbers of a batch that become double precision at a time: 32 MB.
_CHUNK = 2**22
# Columns at a time of a product with a triangular matrix.
_BLOCK = 256
# As a part of both traces, the error by rounding up to which the fast way is taken.
_ACCURACY = 1e-9
_EPS = torch.finfo(torch.float64).eps
# What is below zero, or asymmetric, by as many times the rounding as this is no covariance.
_NONE = 100


class Moments:
    """The mean and the covariance of features, in double precision, a batch at a time.

    Args:
        net, of: names, see `Features`.

    Attributes:
        mean: (dim,)
        net, images: what computed the features, and of which images.

    `len` is the number of rows seen.
    """

    mean: Float[Tensor, " dim"]

    def __init__(self, *, net: str = UNNAMED, of: str = "a sample"):
        self.net, self.images = net, of
        self._n = 0

    @classmethod
    def of(cls, x: Samples) -> "Moments":
        """The moments of features, with their names. Raises as `Features` does."""
        x = as_features(x, "x")
        moments = cls(net=x.net, of=x.of)
        moments.update(x.values)
        return moments

    def update(self, batch: Samples) -> None:
        """Take in further rows, one or more.

        Merges means and scatter matrices (Chan, Golub and LeVeque 1983), which loses no digits where the mean
        is large, as sums of squares would.

        Raises TypeError or ValueError for a batch that is no (n, dim) of finite numbers, of another dimension than the
        batches before, or features of another net.
        """
        if isinstance(batch, Features):
            if batch.net != self.net:
                raise ValueError(f"batch must be features of {self.net!r}, got those of {batch.net!r}")
            batch = batch.values
        values = torch.from_numpy(batch) if isinstance(batch, np.ndarray) else batch
        if isinstance(values, Tensor) and (values.ndim != 2 or 0 in values.shape):
            raise ValueError(f"batch must have shape (n, dim), neither of them 0, got {tuple(values.shape)}")
        require_events(values, tuple(values.shape[1:]) if isinstance(values, Tensor) else (), "batch")
        dim = values.shape[1]
        if self._n == 0:
            self.mean = torch.zeros(dim, dtype=torch.float64, device=values.device)
            self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=values.device)
        elif dim != len(self.mean):
            raise ValueError(f"batch must have dimension {len(self.mean)}, as the batches before, got {dim}")
        for part in values.detach().split(max(1, _CHUNK // dim)):
            self._merge(part.to(self.mean))

    def _merge(self, part: Float[Tensor, "n dim"]) -> None:
        n, total = len(part), self._n + len(part)
        mean = part.mean(0)
        centred, difference = part - mean, mean - self.mean
        self._scatter.addmm_(centred.T, centred).addr_(difference, difference, alpha=self._n * n / total)
        self.mean = self.mean + difference * (n / total)
        self._n = total

    def __len__(self) -> int:
        return self._n

    @property
    def covariance(self) -> Float[Tensor, "dim dim"]:
        """Unbiased: the scatter over n - 1. Raises ValueError for less than two rows."""
        if self._n < 2:
            raise ValueError(f"moments must be of two rows or more, got {self._n}")
        return self._scatter / (self._n - 1)


@dataclass(frozen=True)
class FrechetDistance:
    """What `frechet_distance` found. It prints itself with its conditions.

    Attributes:
        value: the squared distance, in squared units of the features.
        route: how it was computed: "cholesky", "gram" or "eigenvalues".
        dim: of the features.
    """

    value: float
    route: str
    dim: int
    conditions: Conditions

    def __str__(self) -> str:
        found = f"Fréchet distance {self.value:.6g}"
        return with_conditions(found, self.conditions, f"dimension {self.dim:,}, by {self.route}")


@dataclass(frozen=True, eq=False)
class UnbiasedFrechetDistance:
    """What `unbiased_frechet_distance` found. It prints itself with its conditions.

    Attributes:
        value: where the line meets 1/n = 0; below zero at times.
        standard_error: of the line's intercept, from the scatter of the distances around it.
        sizes, distances: the points that the line goes through.
        dim: of the features.
    """

    value: float
    standard_error: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]
    dim: int
    conditions: Conditions

    def __str__(self) -> str:
        found = (
            f"Fréchet distance {self.value:.6g} ± {self.standard_error:.2g}, extrapolated from {len(self.sizes)} sizes "
            f"from {self.sizes[0]:,} to {self.sizes[-1]:,}"
        )
        return with_conditions(found, self.conditions, f"dimension {self.dim:,}")


def frechet_distance(x: Samples | Moments, reference: Samples | Moments) -> FrechetDistance:
    """‖μ - μ′‖² + Tr(Σ + Σ′ - 2 (ΣΣ′)^½), the squared distance of two Gaussians (Dowson and Landau 1982), with the
    means and the unbiased covariances of x and the reference (Heusel et al. 2017, eq. 6).

    With Σ = AA′ and Σ′ = BB′ the trace of the root is the sum of the singular values of A′B, whichever factors A and B
    are. No matrix root is taken, and nothing is added to a diagonal. The route is

    - "gram" if x or the reference are features of no more rows than columns: these rows, centred, are the factor;
    - "cholesky" if both covariances have full rank;
    - "eigenvalues" otherwise: a singular covariance's factor is made of its eigenvectors.

    A distance that rounding would put below zero is zero. Raises TypeError or ValueError for features that are none, of
    two nets, or of two dimensions, and for moments of less than two rows.
    """
    x, reference = _comparable(x, reference)
    if _is_wide(x) or _is_wide(reference):
        (mean, rows), (mean2, rows2) = _factored(x), _factored(reference)
        traces = rows.square().sum() + rows2.square().sum()
        value, route = _assemble(mean, mean2, traces, _root_trace(rows, rows2)), "gram"
    else:
        first, second = _moments(x), _moments(reference)
        value, route = _between(
            first.mean, first.covariance, second.mean, second.covariance, _rounding(first), _rounding(second)
        )
    return FrechetDistance(value, route, _dim(x), _conditions(x, reference))


def gaussian_frechet_distance(
    mean: Float[Tensor, " dim"] | Float[np.ndarray, " dim"],
    covariance: Float[Tensor, "dim dim"] | Float[np.ndarray, "dim dim"],
    mean2: Float[Tensor, " dim"] | Float[np.ndarray, " dim"],
    covariance2: Float[Tensor, "dim dim"] | Float[np.ndarray, "dim dim"],
) -> float:
    """The same of two Gaussians, such as published statistics. The covariances may be singular.

    Raises:
        TypeError: not tensors or arrays of floating-point numbers.
        ValueError: other shapes, values that are not finite, or a covariance that is asymmetric or has eigenvalues
            below zero by more than the rounding of its dtype.
    """
    given = {"mean": mean, "covariance": covariance, "mean2": mean2, "covariance2": covariance2}
    tensors = {name: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for name, a in given.items()}
    require_events(tensors["mean"], (), "mean")
    dim = len(tensors["mean"])
    for name, a in tensors.items():
        require_events(a, (dim,) if name.startswith("covariance") else (), name)
        if len(a) != dim or dim == 0:
            raise ValueError(f"{name} must have as many rows as the mean, and one or more, got {len(a)}")
    first, second = tensors["covariance"], tensors["covariance2"]
    rounding, rounding2 = (dim * torch.finfo(c.dtype).eps for c in (first, second))
    for c, relative, name in ((first, rounding, "covariance"), (second, rounding2, "covariance2")):
        # In blocks, which stay in the processor's cache.
        blocks = (slice(k, k + _BLOCK) for k in range(0, dim, _BLOCK))
        asymmetry = max((c[block] - c[:, block].T).abs().max().item() for block in blocks)
        if asymmetry > _NONE * relative * c.diagonal().abs().max().item():
            raise ValueError(f"{name} must be symmetric, got values that differ by {asymmetry:.3g} across its diagonal")
    return _between(tensors["mean"], first, tensors["mean2"], second, rounding, rounding2)[0]


def unbiased_frechet_distance(
    x: Samples, reference: Samples | Moments, sizes: Sequence[int] | None = None, seed: int = 0
) -> UnbiasedFrechetDistance:
    """The distance that infinitely many samples would have: FID∞ (Chong and Forsyth 2020).

    Random subsets of x, each drawn without replacement, have distances that are linear in 1/n to leading order; least
    squares give the intercept. The reference is taken as it is, with the bias that its own number of rows leaves. The
    standard error tells of the choice of the subsets, which share their rows, and not of the choice of x.

    Args:
        x: features, not their moments.
        sizes: of the subsets, each above the dimension, where the linear law starts to hold: at twice the
            dimension it is good to a few per cent of the bias. Default: 15 sizes evenly from a tenth of x, but at
            least twice the dimension, to all of it.

    Raises TypeError or ValueError as `frechet_distance` does, and for less than three sizes, sizes that are not above
    the dimension, above the number of rows or all the same, or too few rows for the default.
    """
    features = as_features(x, "x")
    _, against = _comparable(features, reference)
    n, dim = len(features), _dim(features)
    if sizes is None:
        start = max(math.ceil(n / 10), 2 * dim)
        if n < 2 * start:
            raise ValueError(
                f"x must hold {4 * dim:,} rows or more, or sizes be given, got {n:,} rows of dimension {dim:,}"
            )
        sizes = np.linspace(start, n, 15).round().astype(int).tolist()
    chosen = tuple(sorted(sizes))
    for size in chosen:
        require_positive_int(size, "sizes")
    if len(chosen) < 3 or chosen[0] == chosen[-1] or not dim < chosen[0] <= chosen[-1] <= n:
        raise ValueError(
            f"sizes must be three or more, not all the same, above the dimension, {dim:,}, and at most the "
            f"{n:,} rows of x, got {list(sizes)}"
        )
    generator, moments = torch.Generator().manual_seed(seed), _moments(against)
    distances = []
    for size in chosen:
        rows = torch.randperm(n, generator=generator)[:size].to(features.values.device)
        distances.append(frechet_distance(Features(features.values[rows], features.net), moments).value)
    value, error = _intercept(1 / np.array(chosen), np.array(distances))
    return UnbiasedFrechetDistance(value, error, chosen, tuple(distances), dim, _conditions(features, against, seed))


def _intercept(u: Float[np.ndarray, " k"], y: Float[np.ndarray, " k"]) -> tuple[float, float]:
    """Of the least-squares line through (u, y), and its standard error."""
    centred, k = u - u.mean(), len(u)
    slope = centred @ y / (centred @ centred)
    intercept = y.mean() - slope * u.mean()
    variance = np.square(y - intercept - slope * u).sum() / (k - 2)
    return float(intercept), float(np.sqrt(variance * (1 / k + u.mean() ** 2 / (centred @ centred))))


# What can be compared


def _comparable(x: Samples | Moments, reference: Samples | Moments) -> tuple[Features | Moments, Features | Moments]:
    """Both, arrays and tensors as features; of one net, one dimension, and two rows or more."""
    x = x if isinstance(x, Moments) else as_features(x, "x")
    reference = reference if isinstance(reference, Moments) else as_features(reference, "reference")
    for name, s in (("x", x), ("reference", reference)):
        if len(s) < 2:
            raise ValueError(f"{name} must be of two rows or more, got {len(s)}")
    if x.net != reference.net:
        raise ValueError(f"x and reference must be features of one net, got {x.net!r} and {reference.net!r}")
    if _dim(x) != _dim(reference):
        raise ValueError(f"x and reference must have the same dimension, got {_dim(x)} and {_dim(reference)}")
    return x, reference


def _dim(s: Features | Moments) -> int:
    return len(s.mean) if isinstance(s, Moments) else s.values.shape[1]


def _conditions(x: Features | Moments, reference: Features | Moments, seed: int | None = None) -> Conditions:
    of, against = (s.images if isinstance(s, Moments) else s.of for s in (x, reference))
    return Conditions(len(x), of, x.net, len(reference), against, seed)


# The distance: of factors, rows A′ with AA′ = Σ, or of covariances


def _moments(s: Features | Moments) -> Moments:
    return s if isinstance(s, Moments) else Moments.of(s)


def _is_wide(s: Features | Moments) -> bool:
    """A covariance would be singular, and larger than the features."""
    return isinstance(s, Features) and len(s) <= _dim(s)


def _rounding(moments: Moments) -> float:
    """Of the covariance, next to its own size: sums of n terms, and what is done with them."""
    return _EPS * max(math.sqrt(len(moments)), len(moments.mean))


def _factored(s: Features | Moments) -> tuple[Float[Tensor, " dim"], Float[Tensor, "rows dim"]]:
    """The mean and the rows of a factor, which are the centred samples themselves where they are few."""
    if isinstance(s, Moments) or not _is_wide(s):
        moments = _moments(s)
        return moments.mean, _factor(moments.covariance, _rounding(moments), "covariance")[0]
    values = s.values.detach().double()
    mean = values.mean(0)
    return mean, (values - mean).div_(math.sqrt(len(values) - 1))


def _root_trace(rows: Float[Tensor, "n dim"], others: Float[Tensor, "m dim"]) -> Tensor:
    """Tr (ΣΣ′)^½, the sum of the singular values of A′B.

    Not the roots of the eigenvalues of its square, whose rounding, of 1e-16, would become 1e-8.
    """
    return torch.linalg.svdvals(rows @ others.to(rows.device).T).sum()


def _assemble(mean: Tensor, mean2: Tensor, traces: Tensor, root_trace: Tensor) -> float:
    difference = mean.detach().double() - mean2.detach().to(mean.device, torch.float64)
    return max(0.0, (difference.square().sum() + traces - 2 * root_trace).item())


def _between(
    mean: Float[Tensor, " dim"],
    covariance: Float[Tensor, "dim dim"],
    mean2: Float[Tensor, " dim"],
    covariance2: Float[Tensor, "dim dim"],
    rounding: float,
    rounding2: float,
) -> tuple[float, str]:
    """The distance of two Gaussians, and its route. Raises ValueError for eigenvalues below zero."""
    first, second = (c.detach().to(mean.device, torch.float64) for c in (covariance, covariance2))
    root_trace, route = _fast_root_trace(first, second, rounding), "cholesky"
    if root_trace is None:
        rows, full = _factor(first, rounding, "covariance")
        rows2, full2 = _factor(second, rounding2, "covariance2")
        root_trace, route = _root_trace(rows, rows2), "cholesky" if full and full2 else "eigenvalues"
    return _assemble(mean, mean2, first.trace() + second.trace(), root_trace), route


def _fast_root_trace(
    first: Float[Tensor, "dim dim"], second: Float[Tensor, "dim dim"], rounding: float
) -> Tensor | None:
    """Tr (ΣΣ′)^½ from the eigenvalues of A′Σ′A, which take a fifth of the time of singular values; None where their
    rounding would be seen, or one of the covariances is singular or none at all."""
    lower = _cholesky(first, rounding)
    if lower is None:
        return None
    eigenvalues = torch.linalg.eigvalsh(_congruence(lower, second))
    # Those of A′Σ′A and of Σ′ have the same signs (Sylvester's law of inertia).
    if eigenvalues[0] <= 0:
        return None
    # An error of δ moves a root √λ by δ / √λ at most, and by √δ at most.
    roots, error = eigenvalues.sqrt(), _EPS * eigenvalues[-1]
    bound = torch.minimum(error / roots, error.sqrt()).sum()
    return roots.sum() if bound <= _ACCURACY * (first.trace() + second.trace()) else None


def _congruence(lower: Float[Tensor, "dim dim"], c: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """The lower triangle of A′CA, with a lower triangular A, without the products with its zeros: a third of them."""
    product = torch.zeros_like(c)
    for k in range(0, len(c), _BLOCK):
        columns = slice(k, k + _BLOCK)
        product[k:, columns] = lower[k:, k:].T @ (c[k:, k:] @ lower[k:, columns])
    return product


def _cholesky(c: Float[Tensor, "dim dim"], rounding: float) -> Float[Tensor, "dim dim"] | None:
    """The lower triangular A with AA′ = C, or None for what is not positive definite, or not by more than rounding."""
    lower, failed = torch.linalg.cholesky_ex(c)
    # A pivot is the variance that the features before leave of this one: next to its own, it is rounding or more.
    if failed or (lower.diagonal().square() <= rounding * c.diagonal()).any():
        return None
    return lower


def _factor(c: Float[Tensor, "dim dim"], rounding: float, name: str) -> tuple[Float[Tensor, "rank dim"], bool]:
    """Rows A′ with AA′ = C, and if C has full rank. Eigenvalues within rounding of zero are left out.

    Raises ValueError for eigenvalues far below that.
    """
    lower = _cholesky(c, rounding)
    if lower is not None:
        return lower.T, True
    values, vectors = torch.linalg.eigh(c)
    zero = rounding * values.abs().max()
    if values[0] < -_NONE * zero:
        raise ValueError(f"{name} must have no eigenvalue below zero, got {values[0].item():.6g}")
    kept = values > zero
    return (vectors[:, kept] * values[kept].sqrt()).T, False
