"""Does a code keep the factors of variation apart?"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from companion.validate import require_positive_int


def _mutual_information(table: Float[Tensor, "bins values"]) -> float:
    """In nats, from a table of counts."""
    joint = table / table.sum()
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return float((torch.xlogy(joint, joint) - torch.xlogy(joint, independent)).sum())


def mutual_information_gap(
    code: Float[Tensor, "n latent"], factors: Int64[Tensor, "n factors"], bins: int = 20
) -> float:
    """The mutual information gap (Chen et al. 2018, eq. 6), from 0 to 1.

    For each factor: how much more the best coordinate of the code tells of it than the second best, as a share
    of the factor's entropy. Coordinates are cut into `bins` of equal width.

    Args:
        code: means of the encoder.
        factors: integer values, each column with two values or more.

    Raises ValueError for a code of fewer than two coordinates, lengths that differ, NaN, or a constant factor.

    >>> import torch
    >>> from companion.evaluation import mutual_information_gap
    >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    >>> apart = factors.float()
    >>> mixed = apart @ torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    >>> round(mutual_information_gap(apart, factors), 3), round(mutual_information_gap(mixed, factors), 3)
    (1.0, 0.0)
    """
    require_positive_int(bins, "bins")
    if code.ndim != 2 or code.shape[1] < 2:
        raise ValueError(f"code must have shape (n, latent) with two coordinates or more, got {tuple(code.shape)}")
    if factors.ndim != 2 or len(factors) != len(code):
        raise ValueError(f"factors must have shape ({len(code)}, factors), got {tuple(factors.shape)}")
    if not torch.isfinite(code).all():
        raise ValueError("code must be finite, got NaN or infinite values")
    low, high = code.min(0).values, code.max(0).values
    width = torch.where(high > low, high - low, torch.ones_like(low))
    binned = ((code - low) / width * bins).long().clamp(max=bins - 1)
    gaps = []
    for factor in factors.unbind(1):
        values = torch.unique(factor, return_inverse=True)[1]
        if values.max() == 0:
            raise ValueError("every factor must take two values or more, got a constant one")
        one_hot = torch.nn.functional.one_hot(values).double()
        share = one_hot.mean(0)
        entropy = float(-torch.xlogy(share, share).sum())
        tables = (torch.nn.functional.one_hot(b, bins).double().T @ one_hot for b in binned.unbind(1))
        best, second = sorted((_mutual_information(table) for table in tables), reverse=True)[:2]
        gaps.append((best - second) / entropy)
    return sum(gaps) / len(gaps)
