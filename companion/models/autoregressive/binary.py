"""What autoregressive models of binary pixels share: p(x) = Π_d p(x_d|x_<d), every factor a Bernoulli by its logit."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from companion.models.generative_problem import IndependentPixels
from companion.models.questions import Loss
from companion.validate import require_binary, require_events, require_label, require_positive_int, require_rows


class BinaryAutoregressive(nn.Module, ABC):
    """An equal mixture of products of conditionals that share their parameters; most often of one product alone.

    A model adds the components of its mixture, such as the orders in which it may take the pixels, the logits of
    one component for given pixels, and its own fast way to draw. Each pixel has a bias, and one more for each class.

    Args:
        event_shape: the shape of one image.
        classes: every method then takes a `label`, integers (batch,) from 0 to classes - 1, and answers for p(x|label);
            None is a model without labels.
    """

    levels = 2

    def __init__(self, event_shape: tuple[int, ...], classes: int | None):
        super().__init__()
        if classes is not None:
            require_positive_int(classes, "classes")
        self.event_shape, self.classes = tuple(event_shape), classes
        self.pixels = math.prod(self.event_shape)
        self.bias = nn.Parameter(torch.zeros(self.pixels))
        self.label_bias = None if classes is None else nn.Parameter(torch.zeros(classes, self.pixels))

    def _components(self) -> Sequence[Any] | Tensor:
        return (0,)

    @abstractmethod
    def _logits(self, x: Float[Tensor, "batch pixels"], label: Tensor | None, component: Any) -> Tensor:
        """(batch, pixels): the logit of each pixel, given those before it."""

    def _order(self, component: Any) -> Int[Tensor, " pixels"]:
        """The pixels, in the order in which a component takes them."""
        return torch.arange(self.pixels, device=self.bias.device)

    @abstractmethod
    def _draw(
        self, thresholds: Float[Tensor, "batch pixels"], label: Tensor | None, component: Any
    ) -> tuple[Tensor, Tensor]:
        """Pixels that are 1 where the logit is above its threshold, and their logits, both (batch, pixels)."""

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, " batch *event"]) -> Self:
        """Set the biases to the logits of independent pixels, so that training starts near those. Raises as `log_prob`,
        labels aside."""
        self.bias.copy_(IndependentPixels(self.event_shape).to(self.bias).fit(x).logits.flatten())
        return self

    def log_prob(self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None) -> Tensor:
        """log p(x), or log p(x|label), (batch,), nats. In full precision: autocast is off.

        Raises ValueError or TypeError for a wrong shape or dtype, NaN, values other than 0 and 1, and a label that is
        missing, not asked for, or out of range.
        """
        return self._log_mixture(x, label, self._components())

    def loss(self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None) -> Loss:
        """-log p(x); of one component, drawn at random for the whole batch, where there are several: on average no
        less than -log p(x) (Jensen)."""
        self._require(x, label)
        components = self._components()
        which = int(torch.randint(len(components), ())) if len(components) > 1 else 0
        negative = -self._log_likelihood(x.flatten(1), label, components[which])
        unit = "nats" if len(components) == 1 else "nats, of one component"
        return Loss(negative, {"negative log-likelihood": negative}, unit)

    def sample(
        self, n: int, generator: torch.Generator | None = None, label: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n *event"]:
        """One pixel after the other; what does not change from one to the next is kept."""
        require_positive_int(n, "n")
        require_label(label, self.classes, n)
        device, dtype = self.bias.device, self.bias.dtype
        which = torch.randint(len(self._components()), (n,), generator=generator, device=device)
        uniforms = torch.rand(n, self.pixels, generator=generator, device=device, dtype=dtype)
        return self._sample(uniforms, label, which)

    @torch.no_grad()
    def complete(
        self,
        x: Float[Tensor, " n *event"],
        rows: int,
        generator: torch.Generator | None = None,
        label: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, " n *event"]:
        """Draw the rest of images whose first `rows` rows are those of x: a sample of p(rest|rows above).

        Of a mixture, the component is drawn given these rows: p(k|given) ∝ p_k(given).

        Raises as `log_prob`, and ValueError for rows that are not 0 to height, events that are no single image of
        (1, height, width) or (height, width), and a component that takes a pixel further down before all of these rows.
        """
        self._require(x, label)
        if len(self.event_shape) < 2 or self.event_shape[:-2] not in ((), (1,)):
            raise ValueError(f"event_shape must be (1, height, width) or (height, width), got {self.event_shape}")
        height, width = self.event_shape[-2:]
        require_rows(rows, height)
        if rows == 0:
            return self.sample(len(x), generator, label)
        given, x, components = rows * width, x.flatten(1), self._components()
        for component in components:
            last = self._order(component)[:given].max()
            if last >= given:
                raise ValueError(
                    f"rows above must be taken first, got {rows} rows for a model that takes pixel {last}, in row "
                    f"{last // width}, before the last of them"
                )
        with torch.autocast(x.device.type, enabled=False):
            logits = [self._logits(x, label, component) for component in components]
        logs = torch.stack([bernoulli_log_likelihood(x, each)[:, :given].sum(1) for each in logits], 1)
        which = torch.multinomial(logs.softmax(1), 1, generator=generator).squeeze(1)
        # Every probability is above 0, which makes a pixel 1, and none above 1, which makes it 0.
        uniforms = torch.rand(x.shape, generator=generator, dtype=self.bias.dtype, device=self.bias.device)
        uniforms[:, :given] = 1 - x[:, :given]
        return self._sample(uniforms, label, which)

    @torch.no_grad()
    def _sample(
        self, uniforms: Float[Tensor, "n pixels"], label: Tensor | None, which: Int[Tensor, " n"]
    ) -> Float[Tensor, " n *event"]:
        """Pixel d of image i is 1 where uniforms[i, d] is below its probability in component which[i]."""
        x, thresholds, components = torch.empty_like(uniforms), uniforms.logit(), self._components()
        for k in which.unique().tolist():
            rows = (which == k).nonzero().squeeze(1)
            x[rows], _ = self._draw(thresholds[rows], None if label is None else label[rows], components[k])
        return x.reshape(-1, *self.event_shape)

    def _log_mixture(
        self, x: Tensor, label: Tensor | None, components: Sequence[Any] | Tensor
    ) -> Float[Tensor, " batch"]:
        self._require(x, label)
        with torch.autocast(x.device.type, enabled=False):
            logs = torch.stack([self._log_likelihood(x.flatten(1), label, component) for component in components])
            return logs.logsumexp(0) - math.log(len(components))

    def _log_likelihood(self, x: Tensor, label: Tensor | None, component: Any) -> Float[Tensor, " batch"]:
        return bernoulli_log_likelihood(x, self._logits(x, label, component)).sum(1)

    def _pixel_bias(self, label: Tensor | None) -> Tensor:
        """(pixels,), or (batch, pixels) with labels."""
        return self.bias if label is None or self.label_bias is None else self.bias + self.label_bias[label]

    def _require(self, x: Tensor, label: Tensor | None) -> None:
        require_events(x, self.event_shape)
        require_binary(x)
        require_label(label, self.classes, len(x))


def bernoulli_log_likelihood(x: Float[Tensor, "*shape"], logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log p(x_d) of each pixel in nats, from the logits l: x_d l_d - log(1 + exp l_d)."""
    return x * logits - F.softplus(logits)
