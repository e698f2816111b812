"""RealNVP (Dinh et al. 2017, "Density estimation using Real NVP"), for vectors and for images."""

import math
from collections.abc import Sequence

from torch import nn

from companion.models.flows.coupling import AffineCoupling, Checkerboard, Halves, ScaledTanh
from companion.models.flows.flow import Flow, require_classes, require_shape
from companion.models.flows.layers import Chain, Squeeze, Unflatten
from companion.models.flows.nice import require_couplings
from companion.models.flows.normalisation import BatchNorm
from companion.models.flows.split import Split
from companion.nets.coupling import CouplingMLP, ResidualConvNet
from companion.validate import require_positive_int


class RealNVP(Flow):
    """Affine couplings of the two halves of a vector in turn.

    Args:
        event_shape: an even number of coordinates in all.
        couplings: at least two, so that every coordinate is changed.
        hidden: the widths of each network's hidden layers.
        batch_norm: a `BatchNorm` behind each coupling, on its side of z.
        classes: of labels, a bias for each in the networks' first layer; None for none.

    Raises ValueError for an odd number of coordinates, and for other arguments that mean nothing.

    >>> import torch
    >>> from companion.models import RealNVP
    >>> _ = torch.manual_seed(0)
    >>> model = RealNVP((2,)).double().eval()
    >>> x, log_det = model.generate(torch.randn(5, 2).double())
    >>> z, back = model.normalise(x)
    >>> torch.allclose(log_det, -back)
    True
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] = (2,),
        couplings: int = 8,
        hidden: Sequence[int] = (128, 128),
        batch_norm: bool = False,
        classes: int | None = None,
    ):
        require_shape(event_shape)
        require_classes(classes)
        require_couplings(couplings)
        dims = math.prod(event_shape)
        layers: list[nn.Module] = []
        for k in range(couplings):
            part = Halves(dims, flip=bool(k % 2))
            network = CouplingMLP(part.given, hidden, 2 * part.changed, classes)
            layers += [BatchNorm(dims)] if batch_norm else []
            layers += [AffineCoupling(part, network, ScaledTanh(part.changed))]
        super().__init__(event_shape, [*layers, Unflatten(event_shape)], "gaussian", classes)


class ImageRealNVP(Flow):
    """The multi-scale architecture (sec. 3.6, fig. 4).

    At each scale, from x: three couplings with checkerboard masks, a squeeze, three with channel masks; then half of
    the channels leave for z. At the last one: four with checkerboard masks. The networks are residual, with weight
    normalisation. The latent holds the last scale first, and what left first last.

    Args:
        event_shape: (channels, height, width), sides that can be halved `squeezes` times.
        squeezes: 2 makes 28 × 28 pixels 14 × 14, then 7 × 7.
        hidden: feature maps in the networks.
        blocks: residual blocks in each network.
        batch_norm: in the networks, and in the flow behind each coupling, on its side of z (sec. 3.7).
        classes: of labels, a bias for each in the networks' first layer; None for none.

    Raises ValueError for sides that do not squeeze, and for other arguments that mean nothing.
    """

    def __init__(
        self,
        event_shape: tuple[int, int, int] = (1, 28, 28),
        squeezes: int = 2,
        hidden: int = 32,
        blocks: int = 2,
        batch_norm: bool = True,
        classes: int | None = None,
    ):
        require_image(event_shape)
        require_classes(classes)
        require_squeezes(squeezes, event_shape)
        require_positive_int(hidden, "hidden")
        require_positive_int(blocks, "blocks")

        def coupling(part: Checkerboard | Halves) -> list[nn.Module]:
            network = ResidualConvNet(part.given, hidden, blocks, 2 * part.changed, batch_norm, classes)
            layer = AffineCoupling(part, network, ScaledTanh(part.changed))
            channels = part.changed if isinstance(part, Checkerboard) else 2 * part.changed
            return [layer, BatchNorm(channels)] if batch_norm else [layer]

        def scale(shape: tuple[int, int, int], left: int) -> Chain:
            """Written from x to z, as the paper does."""
            layers = [layer for k in range(3 if left else 4) for layer in coupling(Checkerboard(shape, bool(k % 2)))]
            if not left:
                return Chain(reversed([*layers, Unflatten(shape)]))
            shape = Squeeze.shape(shape)
            layers += [Squeeze()]
            layers += [layer for k in range(3) for layer in coupling(Halves(shape[0], bool(k % 2)))]
            layers += [Split(shape, scale((shape[0] // 2, *shape[1:]), left - 1))]
            return Chain(reversed(layers))

        channels, height, width = event_shape
        super().__init__(event_shape, scale((channels, height, width), squeezes), "gaussian", classes)


def require_image(event_shape: tuple[int, ...]) -> None:
    require_shape(event_shape)
    if len(event_shape) != 3:
        raise ValueError(f"event_shape must be (channels, height, width), got {tuple(event_shape)}")


def require_squeezes(squeezes: int, event_shape: tuple[int, ...]) -> None:
    if isinstance(squeezes, bool) or not isinstance(squeezes, int) or squeezes < 0:
        raise ValueError(f"squeezes must be an integer, not negative, got {squeezes!r}")
    if squeezes and (len(event_shape) != 3 or any(side % 2**squeezes for side in event_shape[1:])):
        raise ValueError(
            f"event_shape must be (channels, height, width) with sides divisible by {2**squeezes} to be squeezed "
            f"{squeezes} times, got {tuple(event_shape)}"
        )
