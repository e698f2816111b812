"""The invertible 1 × 1 convolution of Glow (Kingma and Dhariwal 2018, sec. 3.2)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.models.flows.layers import Transformed, positions


class InvertibleConv(nn.Module):
    """z = W x at each pixel, or for a vector, with W = P L (U + diag(s)): P is a permutation that stays as it is, L and
    U are learned triangular matrices, L with ones on its diagonal and U with zeros (eqs. 10 and 11).

    log|det ∂z/∂x| = h · w · Σ log|s|. The signs of s stay as they are: no step of training leads through a singular W.

    Args:
        channels: c, of vectors the number of coordinates.
        matrix: W at the start, (c, c); a random rotation where None.

    Raises ValueError for a matrix of another shape, not finite, or singular.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, matrix: Float[Tensor, "channels channels"] | None = None):
        super().__init__()
        if matrix is None:
            matrix = torch.linalg.qr(torch.randn(channels, channels)).Q
        if tuple(matrix.shape) != (channels, channels):
            raise ValueError(f"matrix must have shape ({channels}, {channels}), got {tuple(matrix.shape)}")
        if not matrix.isfinite().all():
            raise ValueError("matrix must be finite, got NaN or infinite entries")
        rank = int(torch.linalg.matrix_rank(matrix))
        if rank < channels:
            raise ValueError(f"matrix must be invertible, got a singular one, of rank {rank} for {channels} channels")
        permutation, lower, upper = torch.linalg.lu(matrix)
        diagonal = upper.diagonal()
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.log_diagonal = nn.Parameter(diagonal.abs().log())
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", diagonal.sign())

    def matrix(self) -> Float[Tensor, "channels channels"]:
        """W."""
        lower, upper = self._factors()
        return self.permutation @ lower @ upper

    def forward(self, z: Float[Tensor, "batch channels *space"], label: Tensor | None = None) -> Transformed:
        with torch.autocast(z.device.type, enabled=False):
            lower, upper = self._factors()
            inverse = torch.linalg.solve_triangular(lower, self.permutation.T, upper=False, unitriangular=True)
            inverse = torch.linalg.solve_triangular(upper, inverse, upper=True)
            return _at_each_pixel(inverse, z), -positions(z) * self.log_diagonal.sum().expand(len(z))

    def inverse(self, x: Float[Tensor, "batch channels *space"], label: Tensor | None = None) -> Transformed:
        # In bfloat16 `forward` would not be its inverse.
        with torch.autocast(x.device.type, enabled=False):
            return _at_each_pixel(self.matrix(), x), positions(x) * self.log_diagonal.sum().expand(len(x))

    def _factors(self) -> tuple[Tensor, Tensor]:
        """L and U + diag(s). Only their triangles are ever read: the rest of the parameters stays what it was."""
        identity = torch.eye(len(self.sign), dtype=self.sign.dtype, device=self.sign.device)
        return self.lower.tril(-1) + identity, self.upper.triu(1) + (self.sign * self.log_diagonal.exp()).diag()


def _at_each_pixel(matrix: Float[Tensor, "c c"], x: Float[Tensor, "batch c *space"]) -> Float[Tensor, "batch c *space"]:
    # With so few channels, a product of matrices takes less than a convolution, above all for its gradient.
    return F.linear(x.movedim(1, -1), matrix).movedim(-1, 1)
