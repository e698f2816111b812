"""Networks that turn noise into an image and an image into features, after DCGAN (Radford et al. 2016)."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from companion.nets.conv import _halved_twice
from companion.nets.normalisation import VirtualBatchNorm


class Affine(nn.Module):
    """scale · x + shift, with fixed numbers."""

    def __init__(self, scale: float, shift: float):
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.scale * x + self.shift


def dcgan_generator(
    latent_dim: int, channels: int, event_shape: tuple[int, ...], normalise: Callable[[int], nn.Module]
) -> nn.Sequential:
    """(batch, latent_dim) to (batch, image channels, height, width), intensities within [0, 1].

    Two transposed convolutions double the sides twice, with 2 · channels, then channels maps; `normalise` makes a
    layer for so many maps, and stands everywhere but at the output. Inside, an image lies within [-1, 1].

    Raises ValueError for an image whose sides are not divisible by 4.
    """
    colours, height, width = _halved_twice(event_shape)
    # No bias where the normalisation would take it away again.
    return nn.Sequential(
        nn.Linear(latent_dim, 2 * channels * height * width, bias=False),
        nn.Unflatten(1, (2 * channels, height, width)),
        normalise(2 * channels),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1, bias=False),
        normalise(channels),
        nn.ReLU(),
        nn.ConvTranspose2d(channels, colours, 4, stride=2, padding=1),
        nn.Tanh(),
        Affine(0.5, 0.5),
    )


def dcgan_features(event_shape: tuple[int, ...], channels: int, batch_norm: bool) -> tuple[list[nn.Sequential], int]:
    """The two hidden layers of a discriminator of images within [0, 1], and the number of features they end in.

    Strided convolutions halve the sides twice, with channels, then 2 · channels maps; batch normalisation stands
    everywhere but at the input.

    Raises ValueError for an image whose sides are not divisible by 4.
    """
    colours, height, width = _halved_twice(event_shape)
    norm = [nn.BatchNorm2d(2 * channels)] if batch_norm else []
    layers = [
        nn.Sequential(Affine(2, -1), nn.Conv2d(colours, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)),
        nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=not batch_norm), *norm, nn.LeakyReLU(0.2)
        ),
    ]
    return layers, 2 * channels * height * width


def dcgan_init(module: nn.Module) -> None:
    """Weights from N(0, 0.02²), those of a normalisation from N(1, 0.02²), biases 0. For `Module.apply`."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | VirtualBatchNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
