"""What autoregressive models of images share: their values taken in raster order, and the colours of a pixel in theirs.

p(x) = Π over pixels i in raster order, and over the colours c of each, of p(x_ic | x_<i, x_i,<c)
"""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.models.autoregressive.outputs import Output, make_output
from companion.models.questions import Loss
from companion.validate import require_events, require_label, require_positive_int, require_rows


class Drawing(Protocol):
    """A network while its input comes into being pixel by pixel.

    Attributes:
        at: for each column j, pixel j of the row being drawn, (n, colours), to be written into.
    """

    at: list[Tensor]

    def begin_row(self) -> None:
        """The row drawn last, none before the first, joins those above."""

    def pixel(self, j: int) -> Float[Tensor, "n parameters"]:
        """What the network says of pixel j of this row, once for each of the output's groups of colours."""

    def row(self) -> Float[Tensor, "n colours width"]:
        """The row as drawn so far."""


class ImageAutoregressive(nn.Module, ABC):
    """A model adds a network for whole images, all conditionals in one pass, and the same network pixel by pixel.

    Args:
        event_shape: (colours, height, width).
        output, levels, mixtures: what each value's conditional is, as `make_output` has it.
        classes: with a number, every method takes a `label`, integers (batch,) from 0 to classes - 1, and answers for
            p(x|label); None is a model without labels.
    """

    def __init__(
        self,
        event_shape: tuple[int, int, int],
        output: Output,
        levels: int | None,
        mixtures: int | None,
        classes: int | None,
    ):
        super().__init__()
        if len(event_shape) != 3:
            raise ValueError(f"event_shape must be (colours, height, width), got {tuple(event_shape)}")
        for size in event_shape:
            require_positive_int(size, "each size in event_shape")
        if classes is not None:
            require_positive_int(classes, "classes")
        self.event_shape, self.classes = tuple(event_shape), classes
        self.output = make_output(output, self.event_shape[0], levels, mixtures)
        self.levels = self.output.levels

    @abstractmethod
    def _network(self, x: Tensor, label: Tensor | None) -> Float[Tensor, "batch parameters height width"]:
        """`forward` of what has been looked at."""

    @abstractmethod
    def _drawing(self, n: int, label: Tensor | None) -> Drawing:
        """The network for n new images."""

    def forward(
        self, x: Float[Tensor, "batch colours height width"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch parameters height width"]:
        """The parameters of every pixel's conditional: those of pixel i from the pixels before it.

        The parameters of a colour lie together; "categorical" has `levels` logits for each. Raises as `log_prob`.
        """
        self._require(x, label)
        # Under autocast the network answers in bfloat16; the probabilities are computed in the type of x.
        return self._network(x, label).to(x.dtype)

    def log_prob(
        self, x: Float[Tensor, "batch colours height width"], label: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """log p(x), or log p(x|label), in nats. Without autocast, in which it would be wrong by nats.

        Raises:
            TypeError: x has no floating dtype, or label is no integer tensor.
            ValueError: a wrong shape, NaN, values that are no level; a label missing, out of range or not asked for.
        """
        with torch.autocast(x.device.type if isinstance(x, Tensor) else "cpu", enabled=False):
            return self._log_prob(x, label)

    def loss(self, x: Float[Tensor, "batch colours height width"], label: Int[Tensor, " batch"] | None = None) -> Loss:
        """-log p(x). Raises as `log_prob`."""
        negative = -self._log_prob(x, label)
        return Loss(negative, {"negative log-likelihood": negative}, "nats")

    def sample(
        self, n: int, generator: torch.Generator | None = None, label: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n colours height width"]:
        """Pixel by pixel, from the parameters that `forward` would give, at a fraction of its cost.

        Raises ValueError or TypeError for a label as `log_prob` does.
        """
        require_positive_int(n, "n")
        require_label(label, self.classes, n)
        return self._sample(self._uniforms(n, generator), label)

    def complete(
        self,
        x: Float[Tensor, "n colours height width"],
        rows: int,
        generator: torch.Generator | None = None,
        label: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n colours height width"]:
        """Draw the rest of images whose first `rows` rows are those of x: a sample of p(rest|rows above).

        Raises as `log_prob`, and ValueError for rows that are not 0 to height.
        """
        self._require(x, label)
        require_rows(rows, self.event_shape[1])
        return self._sample(self._uniforms(len(x), generator), label, x[:, :, :rows])

    def _uniforms(self, n: int, generator: torch.Generator | None) -> Float[Tensor, "height width n draws"]:
        like = next(self.parameters())
        shape = *self.event_shape[1:], n, self.output.draws
        return torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)

    @torch.no_grad()
    def _sample(
        self,
        uniforms: Float[Tensor, "height width n draws"],
        label: Tensor | None,
        given: Float[Tensor, "n colours given width"] | None = None,
    ) -> Float[Tensor, "n colours height width"]:
        """Each value by the inverse of its distribution function; the rows `given` are kept as they are."""
        height, width, n, _ = uniforms.shape
        rows = []
        with torch.autocast(uniforms.device.type, enabled=False):
            drawing = self._drawing(n, label)
            for i in range(height):
                drawing.begin_row()
                for j in range(width):
                    pixel = drawing.at[j]
                    for colour in range(self.event_shape[0]):
                        if colour < self.output.groups:
                            parameters = drawing.pixel(j)
                        if given is not None and i < given.shape[2]:
                            pixel[:, colour] = given[:, colour, i, j]
                        else:
                            pixel[:, colour] = self.output.draw(parameters, pixel, colour, uniforms[i, j])
                rows.append(drawing.row().clone())
        return torch.stack(rows, 2)

    def _log_prob(self, x: Tensor, label: Tensor | None) -> Float[Tensor, " batch"]:
        return self.output.log_prob(self(x, label), x).flatten(1).sum(1)

    def _require(self, x: Tensor, label: Tensor | None) -> None:
        require_events(x, self.event_shape)
        self.output.require(x)
        require_label(label, self.classes, len(x))
