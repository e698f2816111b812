"""The U-Net of diffusion and score models (Ronneberger et al. 2015; Ho et al. 2020, app. B)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from companion.nets.time_embedding import TimeEmbedding
from companion.validate import require_positive_int


class UNet(nn.Module):
    """Images to images of the same sides, given a number t for each, and zero at the start.

    On the way down residual blocks, each level but the first after a halving of the sides; two blocks in the middle; on
    the way up, at each level, one block more than on the way down, given also what the way down had there, which the
    blocks take back in reverse order.

    Args:
        channels_in: of the images, in and out.
        channels: features at the first level.
        multipliers: of `channels`, one for each level: (1, 2, 2) has three, whose sides are full, half and a quarter.
        blocks: residual blocks at each level on the way down.
        attention: how many of the lowest levels have self-attention after each of their blocks. Unless it is 0, there
            is some in the middle too.
        embedding: features of t's embedding; None is 4 times `channels`.
        classes: of labels; see `TimeEmbedding`. None is a network without labels.
        patch: p × p pixels make one position with p² as many channels, and are taken apart again at the end: the
            network is p² times cheaper, and coarser.
        channels_out: of the answer, if not those of the images, as for a learned variance.

    Raises ValueError for an argument that means nothing.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: int = 1,
        embedding: int | None = None,
        classes: int | None = None,
        patch: int = 1,
        channels_out: int | None = None,
    ):
        super().__init__()
        embedding = 4 * channels if embedding is None else embedding
        channels_out = channels_in if channels_out is None else channels_out
        _require(channels_in, channels, multipliers, blocks, attention, patch, channels_out)
        self.channels_in, self.classes, self.patch = channels_in, classes, patch
        self.multiple = patch * 2 ** (len(multipliers) - 1)
        self.embed = TimeEmbedding(channels, embedding, classes)
        self.first = nn.Conv2d(channels_in * patch**2, channels, 3, padding=1)
        levels = [(channels * m, level >= len(multipliers) - attention) for level, m in enumerate(multipliers)]

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, kept = channels, [channels]
        for level, (features, attend) in enumerate(levels):
            if level:
                self.down.append(Halve(width))
                kept.append(width)
            for _ in range(blocks):
                self.down.append(Block(width, features, embedding, attend))
                width = features
                kept.append(width)
        middle = (Block(width, width, embedding, attend) for attend in (attention > 0, False))
        self.middle = nn.ModuleList(middle)
        for level, (features, attend) in reversed(list(enumerate(levels))):
            for _ in range(blocks + 1):
                self.up.append(Block(width + kept.pop(), features, embedding, attend))
                width = features
            if level:
                self.up.append(Double(width))
        self.norm = group_norm(width)
        self.last = zeroed(nn.Conv2d(width, channels_out * patch**2, 3, padding=1))

    def forward(
        self,
        x: Float[Tensor, "batch channels_in height width"],
        t: Shaped[Tensor, " batch"],
        label: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels_out height width"]:
        """t: of the order of 1 to 1,000; two that differ by about 1 are told apart.

        Raises TypeError or ValueError for images, times or labels that do not fit: the sides must be multiples of
        `patch` · 2^(levels - 1).
        """
        if x.ndim != 4 or x.shape[1] != self.channels_in:
            raise ValueError(f"x must have shape (batch, {self.channels_in}, height, width), got {tuple(x.shape)}")
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ValueError(
                f"x must have sides divisible by {self.multiple}, got {x.shape[2]} × {x.shape[3]}; pad it, or take "
                "fewer levels or a smaller patch"
            )
        embedding = F.silu(self.embed(len(x), t, label))
        # Not in channels_last: on a CPU group normalisation loses more by it than convolutions gain.
        kept = [h := self.first(F.pixel_unshuffle(x, self.patch))]
        for part in self.down:
            kept.append(h := part(h, embedding))
        for part in self.middle:
            h = part(h, embedding)
        for part in self.up:
            if isinstance(part, Block):
                h = torch.cat([h, kept.pop()], 1)
            h = part(h, embedding)
        return F.pixel_shuffle(self.last(F.silu(self.norm(h))), self.patch)


class Block(nn.Module):
    """Normalise, activate, convolve, twice, with the embedding between; added to the input. Then self-attention, if
    there is any. Both start as the identity, up to a 1 × 1 convolution where the number of features changes."""

    def __init__(self, inputs: int, outputs: int, embedding: int, attend: bool):
        super().__init__()
        self.norm, self.conv = group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shift = nn.Linear(embedding, outputs)
        self.last_norm, self.last = group_norm(outputs), zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.attention = Attention(outputs) if attend else nn.Identity()

    def forward(self, x: Float[Tensor, "batch inputs h w"], embedding: Tensor) -> Float[Tensor, "batch outputs h w"]:
        h = self.conv(F.silu(self.norm(x)))
        h = h + self.shift(embedding)[:, :, None, None]
        h = self.last(F.silu(self.last_norm(h)))
        return self.attention(self.shortcut(x) + h)


class Attention(nn.Module):
    """Every position looks at all others, with one head; added to the input."""

    def __init__(self, features: int):
        super().__init__()
        self.norm = group_norm(features)
        self.query_key_value = nn.Linear(features, 3 * features)
        self.out = zeroed(nn.Linear(features, features))

    def forward(self, x: Float[Tensor, "batch features h w"]) -> Float[Tensor, "batch features h w"]:
        positions = self.norm(x).flatten(2).transpose(1, 2)
        query, key, value = self.query_key_value(positions)[:, None].chunk(3, -1)
        seen = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        return x + self.out(seen).transpose(1, 2).unflatten(2, x.shape[2:])


class Halve(nn.Module):
    """Half the sides, by a convolution."""

    def __init__(self, features: int):
        super().__init__()
        self.conv = nn.Conv2d(features, features, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "batch features h w"], embedding: Tensor) -> Tensor:
        return self.conv(x)


class Double(nn.Module):
    """Twice the sides, by repetition and a convolution."""

    def __init__(self, features: int):
        super().__init__()
        self.conv = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch features h w"], embedding: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2))


def group_norm(features: int) -> nn.GroupNorm:
    """32 groups where each has at least 4 features, else fewer."""
    return nn.GroupNorm(math.gcd(32, features // 4), features)


def zeroed(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _require(channels_in, channels, multipliers, blocks, attention, patch, channels_out) -> None:
    sizes = {"channels_in": channels_in, "channels": channels, "blocks": blocks, "patch": patch}
    sizes["channels_out"] = channels_out
    for name, value in sizes.items():
        require_positive_int(value, name)
    if channels % 4:
        raise ValueError(f"channels must be a multiple of 4, for groups to normalise, got {channels}")
    if not isinstance(multipliers, Sequence) or not multipliers:
        raise ValueError(f"multipliers must be a sequence of integers, at least one, got {multipliers!r}")
    for value in multipliers:
        require_positive_int(value, "multipliers")
    if isinstance(attention, bool) or not isinstance(attention, int) or not 0 <= attention <= len(multipliers):
        raise ValueError(f"attention must be an integer from 0 to the {len(multipliers)} levels, got {attention!r}")
