"""The last step of a diffusion of images: from a Gaussian to one of the levels of a pixel."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.special import log_ndtr


def discretised_gaussian(
    x: Float[Tensor, " batch *event"],
    mean: Float[Tensor, " batch *event"],
    log_std: float | Float[Tensor, " batch *event"],
    levels: int,
) -> Float[Tensor, " batch"]:
    """log ∏ ∫ N(y; mean, std²) dy over the cell of each x, nats (Ho et al. 2020, eq. 13).

    x holds levels -1 + 2k/(levels - 1); a cell reaches half way to the next level, and the first and the last to ∓∞.
    """
    half, std = 1 / (levels - 1), torch.exp(torch.as_tensor(log_std, dtype=x.dtype, device=x.device))
    low = torch.where(x < -1 + half, -torch.inf, (x - half - mean) / std)
    high = torch.where(x > 1 - half, torch.inf, (x + half - mean) / std)
    # In the lower tail, where both logarithms are exact: Φ(b) - Φ(a) = Φ(-a) - Φ(-b).
    swap = low + high > 0
    low, high = torch.where(swap, -high, low), torch.where(swap, -low, high)
    # log(Φ(b) - Φ(a)) = log Φ(b) + log(1 - Φ(a)/Φ(b)), with an exact 0 for a = -∞.
    below, above = log_ndtr(low), log_ndtr(high)
    return (above + torch.log(-torch.expm1(below - above))).flatten(1).sum(1)
