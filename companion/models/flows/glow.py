"""Glow (Kingma and Dhariwal 2018, "Glow: generative flow with invertible 1 × 1 convolutions")."""

import torch
from torch import nn

from companion.models.flows.coupling import AffineCoupling, Halves, LogSigmoid
from companion.models.flows.flow import Flow, require_classes, require_shape
from companion.models.flows.invertible_conv import InvertibleConv
from companion.models.flows.layers import Chain, Squeeze, Unflatten
from companion.models.flows.normalisation import ActNorm
from companion.models.flows.realnvp import require_squeezes
from companion.models.flows.split import GaussianPrior, Split
from companion.nets.coupling import GlowMLP, GlowNet, SplitPrior
from companion.validate import require_positive_int


class Glow(Flow):
    """Steps of ActNorm, an invertible 1 × 1 convolution and an affine coupling, at several scales (fig. 2).

    At each level, from x: a squeeze, the steps, and, but at the last one, half of the channels leave for z, where they
    meet a prior given the other half. At the end there is a learned prior, of each class where there are labels. The
    latent holds the last level first, and what left first last; all of it is standard normal.

    Args:
        event_shape: (channels, height, width), sides that can be halved `squeezes` times; or, with no squeezes, any
            image with an even number of channels, or a vector (dims,) with an even number of coordinates.
        squeezes: levels, each of which starts with one: 2 makes 28 × 28 pixels 14 × 14, then 7 × 7.
        steps: K, at each level.
        hidden: feature maps, or units, in the two hidden layers of the networks.
        classes: of labels, a bias for each in the networks' first layer and in the prior; None for none.

    Raises ValueError for sides that do not squeeze, an odd number of channels, and other arguments that mean nothing.

    >>> import torch
    >>> from companion.models import Glow
    >>> model = Glow((1, 8, 8), squeezes=2, steps=1, hidden=8)
    >>> model.loss(torch.rand(4, 1, 8, 8)).unit
    'nats'
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] = (1, 28, 28),
        squeezes: int = 2,
        steps: int = 8,
        hidden: int = 64,
        classes: int | None = None,
    ):
        require_shape(event_shape)
        require_classes(classes)
        if len(event_shape) not in (1, 3):
            raise ValueError(f"event_shape must be (channels, height, width) or (dims,), got {tuple(event_shape)}")
        require_squeezes(squeezes, event_shape)
        require_positive_int(steps, "steps")
        require_positive_int(hidden, "hidden")
        network = GlowNet if len(event_shape) == 3 else GlowMLP

        def step(channels: int) -> list[nn.Module]:
            """Written from x to z, as are the levels."""
            part = Halves(channels, flip=False)
            coupling = AffineCoupling(part, network(part.given, hidden, 2 * part.changed, classes), LogSigmoid())
            return [ActNorm(channels), InvertibleConv(channels), coupling]

        def level(shape: tuple[int, ...], left: int) -> Chain:
            layers: list[nn.Module] = []
            if left:
                shape = Squeeze.shape(shape)
                layers += [Squeeze()]
            layers += [layer for _ in range(steps) for layer in step(shape[0])]
            if left > 1:
                half = shape[0] // 2, *shape[1:]
                layers += [Split(shape, level(half, left - 1), SplitPrior(shape[0] // 2))]
            else:
                layers += [GaussianPrior(shape[0], classes), Unflatten(shape)]
            return Chain(reversed(layers))

        super().__init__(event_shape, level(tuple(event_shape), squeezes), "gaussian", classes)
        # The convolutions, most of the time that a step takes, are a fifth faster so.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it, its stubs do not
