"""Coupling layers: one part of x goes through as it is, and says how the other part is transformed.

In the normalising direction, with x_1 the part given and x_2 the part changed,

    z_1 = x_1,  z_2 = x_2 ⊙ e^{a(x_1)} + b(x_1),  log|det ∂z/∂x| = Σ a(x_1)

Neither direction inverts a network, and each runs it once.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.models.flows.layers import Transformed, no_change, per_channel


class Halves(nn.Module):
    """The first half of the coordinates, or of the channels, is given and the second changed; or the other way round.

    Raises ValueError for an odd number.
    """

    def __init__(self, size: int, flip: bool):
        super().__init__()
        if size % 2:
            raise ValueError(f"a coupling of halves needs an even number of coordinates or channels, got {size}")
        self.flip, self.given, self.changed = flip, size // 2, size // 2

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is given to the network, and what is changed by it."""
        first, second = x.chunk(2, 1)
        return (second, first) if self.flip else (first, second)

    def join(self, given: Tensor, changed: Tensor) -> Tensor:
        return torch.cat((changed, given) if self.flip else (given, changed), 1)

    def restrict(self, value: Tensor) -> Tensor:
        """A network's output, zero at what is given."""
        return value


class Checkerboard(nn.Module):
    """Every other pixel is given, those whose row + column is even; or, flipped, odd (Dinh et al. 2017, fig. 3).

    All of the image is "changed", the given pixels by a = b = 0.
    """

    mask: Tensor

    def __init__(self, event_shape: tuple[int, int, int], flip: bool):
        super().__init__()
        channels, height, width = event_shape
        self.given, self.changed = channels, channels
        parity = (torch.arange(height)[:, None] + torch.arange(width)) % 2
        # Kept as a float, so that it has the dtype of what it multiplies.
        self.register_buffer("mask", (parity == int(flip)).float(), persistent=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.mask, x

    def join(self, given: Tensor, changed: Tensor) -> Tensor:
        return changed

    def restrict(self, value: Tensor) -> Tensor:
        return value * (1 - self.mask)


class AdditiveCoupling(nn.Module):
    """z_2 = x_2 + b(x_1), which keeps volumes as they are (Dinh et al. 2015, eqs. 7 to 9).

    Args:
        part: what is given and what is changed.
        network: b, called with x_1 and the label.
    """

    def __init__(self, part: Halves | Checkerboard, network: nn.Module):
        super().__init__()
        self.part, self.network = part, network

    def forward(self, z: Float[Tensor, " batch *event"], label: Tensor | None = None) -> Transformed:
        given, changed = self.part.split(z)
        return self.part.join(given, changed - self._shift(given, label)), no_change(z)

    def inverse(self, x: Float[Tensor, " batch *event"], label: Tensor | None = None) -> Transformed:
        given, changed = self.part.split(x)
        return self.part.join(given, changed + self._shift(given, label)), no_change(x)

    def _shift(self, given: Tensor, label: Tensor | None) -> Tensor:
        return self.part.restrict(self.network(given, label).to(given.dtype))


class AffineCoupling(nn.Module):
    """z_2 = x_2 ⊙ e^{a(x_1)} + b(x_1) (Dinh et al. 2017, eqs. 7 and 8), with a bounded log-scale a.

    Args:
        part: what is given and what is changed.
        network: called with x_1 and the label; twice as many channels as are changed, first those of a.
        log_scale: makes a of the network's answer: `ScaledTanh` or `LogSigmoid`.
    """

    def __init__(self, part: Halves | Checkerboard, network: nn.Module, log_scale: nn.Module):
        super().__init__()
        self.part, self.network, self.log_scale = part, network, log_scale

    def forward(self, z: Float[Tensor, " batch *event"], label: Tensor | None = None) -> Transformed:
        given, changed = self.part.split(z)
        a, b = self._scale_and_shift(given, label)
        return self.part.join(given, (changed - b) * (-a).exp()), -a.flatten(1).sum(1)

    def inverse(self, x: Float[Tensor, " batch *event"], label: Tensor | None = None) -> Transformed:
        given, changed = self.part.split(x)
        a, b = self._scale_and_shift(given, label)
        return self.part.join(given, torch.addcmul(b, changed, a.exp())), a.flatten(1).sum(1)

    def _scale_and_shift(self, given: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        # Under autocast the network answers in bfloat16; what is done with it is done in the type of x.
        raw, b = self.network(given, label).to(given.dtype).chunk(2, 1)
        return self.part.restrict(self.log_scale(raw)), self.part.restrict(b)


class ScaledTanh(nn.Module):
    """a = c tanh(r) with a learned bound c for each channel, 1 at the start (Dinh et al. 2017, sec. 4.1)."""

    def __init__(self, channels: int):
        super().__init__()
        self.bound = nn.Parameter(torch.ones(channels))

    def forward(self, raw: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        return per_channel(self.bound, raw) * raw.tanh()


class LogSigmoid(nn.Module):
    """a = log σ(r + 2), so that the scale lies between 0 and 1, and near 1 at r = 0, as in the code of Glow.

    There the shift is added before the scale is applied; here after it, as in the paper's table 1.
    """

    def forward(self, raw: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        return F.logsigmoid(raw + 2)
