"""A causal transformer over the values of an image (Chen et al. 2020, "Generative pretraining from pixels"), built as
GPT-2 is (Radford et al. 2019, "Language models are unsupervised multitask learners").

    p(x) = Π over values t in raster order, the colours of a pixel one after another, of p(x_t | x_<t)

One more mask: the one that keeps attention from seeing ahead. All conditionals come from one pass. A sample takes one
step for each value, which attends to the keys and values kept of all before it.
"""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from companion.models.autoregressive.images import ImageAutoregressive
from companion.validate import require_positive_int

# The standard deviation of GPT-2's weights at the start.
STD = 0.02


class CausalTransformer(ImageAutoregressive):
    """p(x) of an image as a product over its values, each given all before it: no distance is too far.

    Each value of each colour is a token. The token before the first is a learned start, one for each class, so that
    output t, which sits on top of the token of value t - 1, sees x_<t alone.

    Args:
        event_shape: (colours, height, width): T = colours · height · width tokens, and T² pairs in every head.
        output: what each value's conditional is: "bernoulli", for values 0 and 1, or "categorical", a probability for
            each level.
        levels: L of "categorical", 2 to 256; None is 256. Values are k / (L - 1), k = 0 … L - 1.
        width: features of a token, a multiple of `heads`.
        layers: blocks of attention and perceptron.
        heads: of each attention.
        classes: with a number, every density is of x given a label 0 … classes - 1, which chooses the start token.

    Raises ValueError for an argument, or two of them together, that mean nothing.

    >>> import torch
    >>> from companion.models import CausalTransformer
    >>> model = CausalTransformer((1, 4, 4), width=8, layers=1, heads=2)
    >>> model.log_prob(torch.zeros(2, 1, 4, 4)).shape
    torch.Size([2])
    """

    def __init__(
        self,
        event_shape: tuple[int, int, int] = (1, 28, 28),
        output: Literal["bernoulli", "categorical"] = "bernoulli",
        levels: int | None = None,
        width: int = 64,
        layers: int = 4,
        heads: int = 4,
        classes: int | None = None,
    ):
        if output not in ("bernoulli", "categorical"):
            raise ValueError(
                f"output must be 'bernoulli' or 'categorical', which take one value after another, got {output!r}"
            )
        super().__init__(event_shape, output, levels, None, classes)
        for name, value in (("width", width), ("layers", layers), ("heads", heads)):
            require_positive_int(value, name)
        if width % heads:
            raise ValueError(f"width must be a multiple of the {heads} heads, got {width}")
        self.tokens = math.prod(self.event_shape)
        self.start = nn.Embedding(classes or 1, width)
        self.value = nn.Embedding(self.levels, width)
        self.position = nn.Embedding(self.tokens, width)
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, self.output.parameters // self.output.groups, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                # The 2 · layers terms of the residual stream add up to what one would be.
                residual = name.endswith(("mix.weight", "narrow.weight"))
                nn.init.normal_(parameter, std=STD / math.sqrt(2 * layers) if residual else STD)

    def _network(self, x: Tensor, label: Tensor | None) -> Float[Tensor, "batch parameters height width"]:
        before = self._embed(x.permute(0, 2, 3, 1).flatten(1)[:, :-1])
        h = torch.cat([self._start(len(x), label), before], 1) + self.position.weight
        for block in self.blocks:
            h = block(h)
        colours, height, width = self.event_shape
        return self.head(self.norm(h)).unflatten(1, (height, width, colours)).permute(0, 3, 4, 1, 2).flatten(1, 2)

    def _drawing(self, n: int, label: Tensor | None) -> "TransformerCache":
        return TransformerCache(self, n, label)

    def _start(self, n: int, label: Tensor | None) -> Float[Tensor, "n 1 width"]:
        return (self.start.weight.expand(n, -1) if label is None else self.start(label))[:, None]

    def _embed(self, values: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens width"]:
        return self.value((values * (self.levels - 1)).round().long())


class Block(nn.Module):
    """Attention and a perceptron, each added to its input, whose normalised form is all they see."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.perceptron_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(
        self, h: Float[Tensor, "batch tokens width"], past: "KeyValueCache | None" = None
    ) -> Float[Tensor, "batch tokens width"]:
        """With a `past`, h is the one token after it, and joins it."""
        joint = self.queries_keys_values(self.attention_norm(h)).unflatten(2, (3, self.heads, -1))
        q, k, v = joint.permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = past.append(k, v)
        # The last token may see all.
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        h = h + self.mix(seen.transpose(1, 2).flatten(2))
        return h + self.narrow(F.gelu(self.widen(self.perceptron_norm(h)), approximate="tanh"))


class KeyValueCache:
    """The keys and values of one block, of all tokens so far."""

    def __init__(self, like: Tensor, n: int, heads: int, tokens: int):
        width = like.shape[1]
        self.keys_values = like.new_empty(2, n, heads, tokens, width // heads)
        self.count = 0

    def append(
        self, key: Float[Tensor, "n heads 1 features"], value: Float[Tensor, "n heads 1 features"]
    ) -> Float[Tensor, "2 n heads count features"]:
        """Those of all tokens, this one the last."""
        self.keys_values[0, :, :, self.count] = key.squeeze(2)
        self.keys_values[1, :, :, self.count] = value.squeeze(2)
        self.count += 1
        return self.keys_values[:, :, :, : self.count]


class TransformerCache:
    """`CausalTransformer` for one token after the other: O(t) for token t, where a pass over all so far is O(t²)."""

    def __init__(self, model: CausalTransformer, n: int, label: Tensor | None):
        self.model, self.t, weight = model, 0, model.position.weight
        self.colours, _, width = model.event_shape
        self.h = model._start(n, label)
        self.line = weight.new_empty(n, width * self.colours)
        self.at = list(self.line.split(self.colours, 1))
        self.parameters = weight.new_zeros(n, self.colours, model.head.out_features)
        self.pasts = [KeyValueCache(weight, n, block.heads, model.tokens) for block in model.blocks]

    def begin_row(self) -> None:
        """Rows mean nothing here: the first value of one follows the last of the one above."""

    def pixel(self, j: int) -> Float[Tensor, "n parameters"]:
        """The parameters of the next colour, and of those of this pixel that came before it."""
        if self.t:
            # What was drawn last: until now the row above is still in the line.
            last = (self.t - 1) % self.line.shape[1]
            self.h = self.model._embed(self.line[:, last : last + 1])
        h = self.h + self.model.position.weight[self.t]
        for block, past in zip(self.model.blocks, self.pasts, strict=True):
            h = block(h, past)
        self.parameters[:, self.t % self.colours] = self.model.head(self.model.norm(h))[:, 0]
        self.t += 1
        return self.parameters.flatten(1)

    def row(self) -> Float[Tensor, "n colours width"]:
        return self.line.unflatten(1, (-1, self.colours)).mT
