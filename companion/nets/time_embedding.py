"""How a number for each example enters a network: a diffusion's time, or the logarithm of a noise level."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from companion.nets.label import LabelBias
from companion.validate import require_label, require_positive_int


def sinusoidal(t: Float[Tensor, " batch"], features: int) -> Float[Tensor, "batch features"]:
    """sin(ω_i t) for i < features / 2, then cos(ω_i t), with ω from 1 down to 10⁻⁴ in equal ratios: the positions of
    Vaswani et al. (2017, sec. 3.5), for any real t. Two t are told apart where they differ by about 1."""
    frequencies = torch.logspace(0, -4, features // 2, dtype=t.dtype, device=t.device)
    angles = t[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


class TimeEmbedding(nn.Module):
    """Sinusoids of t, and two layers that make them `width` features, as in Ho et al. (2020, app. B).

    With `classes` = C, labels 0 … C - 1 have a learned vector each, added to these features, and so has the null class
    C, "no label": what classifier-free guidance trains beside the classes (Ho and Salimans 2022). None is the null
    class for the whole batch.

    Args:
        features: of the sinusoids, an even number, at least 4.
        width: of the embedding.

    Raises ValueError for an argument that means nothing.
    """

    def __init__(self, features: int, width: int, classes: int | None = None):
        super().__init__()
        require_positive_int(width, "width")
        if isinstance(features, bool) or not isinstance(features, int) or features < 4 or features % 2:
            raise ValueError(f"features must be an even number of at least 4, got {features!r}")
        if classes is not None:
            require_positive_int(classes, "classes")
        self.features, self.classes = features, classes
        self.layers = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.label_bias = LabelBias(None if classes is None else classes + 1, width)

    def forward(
        self, batch: int, t: Shaped[Tensor, " batch"], label: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch width"]:
        """Raises TypeError or ValueError unless t and label hold one for each of `batch` examples, labels in range."""
        if not isinstance(t, Tensor):
            raise TypeError(f"t must be a torch.Tensor, got {type(t).__name__}")
        if tuple(t.shape) != (batch,):
            raise ValueError(f"t must have shape ({batch},), one number for each example, got {tuple(t.shape)}")
        if self.classes is not None and label is None:
            label = torch.full((batch,), self.classes, device=t.device)
        require_label(label, None if self.classes is None else self.classes + 1, batch)
        # Under autocast too the sinusoids are computed in the type of the weights: bfloat16 has no 999.
        return self.label_bias(self.layers(sinusoidal(t.to(next(self.parameters()).dtype), self.features)), label)
