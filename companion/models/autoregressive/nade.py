"""The neural autoregressive distribution estimator: Larochelle and Murray (2011), and Uria et al. (2014)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from companion.models.autoregressive.binary import BinaryAutoregressive, bernoulli_log_likelihood
from companion.models.questions import Loss
from companion.validate import require_positive_int


class Recurrence(torch.autograd.Function):
    """l_d = V_d · σ(a_d) with a_1 = start and a_{d+1} = a_d + x_d W_d + shift_d: all D logits in O(DH).

    One matrix of hidden units is updated in place, and only its last state is kept for the gradient, which takes
    the steps back again: there is never more than one pixel's hidden units in memory. Autocast leaves alone what is
    computed in place.

    Args:
        x: (batch, pixels), in the order in which the pixels are taken.
        start: (batch, hidden).
        weight, out: W and V, (pixels, hidden).
        shift: (pixels, hidden), or None.
    """

    @staticmethod
    def forward(ctx, x: Tensor, start: Tensor, weight: Tensor, out: Tensor, shift: Tensor | None) -> Tensor:
        a, columns = start.clone(memory_format=torch.contiguous_format), x.T.contiguous()
        h, logits = torch.empty_like(a), torch.empty_like(columns)
        for d in range(len(columns)):
            torch.sigmoid(a, out=h)
            torch.mv(h, out[d], out=logits[d])
            a.addr_(columns[d], weight[d])
            if shift is not None:
                a += shift[d]
        ctx.save_for_backward(columns, a, weight, out, shift)
        return logits.T

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        columns, a, weight, out, shift = ctx.saved_tensors
        a, h, slope, grad = a.clone(), torch.empty_like(a), torch.empty_like(a), grad.T.contiguous()
        to_a, to_x = torch.zeros_like(a), torch.empty_like(columns) if ctx.needs_input_grad[0] else None
        to_weight, to_out = torch.empty_like(weight), torch.empty_like(out)
        to_shift = None if shift is None else torch.empty_like(shift)
        for d in reversed(range(len(columns))):
            torch.mv(to_a.T, columns[d], out=to_weight[d])
            a.addr_(columns[d], weight[d], alpha=-1)
            if to_x is not None:
                torch.mv(to_a, weight[d], out=to_x[d])
            if to_shift is not None:
                torch.sum(to_a, 0, out=to_shift[d])
                a -= shift[d]
            torch.sigmoid(a, out=h)
            torch.mv(h.T, grad[d], out=to_out[d])
            # σ' = σ - σ²
            torch.addcmul(h, h, h, value=-1, out=slope)
            to_a.addcmul_(slope.mul_(out[d]), grad[d][:, None])
        return None if to_x is None else to_x.T, to_a, to_weight, to_out, to_shift


class NADE(BinaryAutoregressive):
    """Hidden units of its own for each conditional, all from one shared matrix (Larochelle and Murray 2011, eqs. 5-8):

        h_d = σ(c + Σ_{j<d} W_j x_j),    p(x_d = 1|x_<d) = σ(b_d + V_d · h_d)

    One step turns the hidden units of one pixel into those of the next, so that all conditionals together cost O(DH).

    Args:
        event_shape: the shape of one image.
        hidden: H.
        classes: how many classes there are to condition on, by biases b and c of their own; None for none.
        orders: permutations of the pixels, orders[k, i] the one that comes i-th: the model is the equal mixture of its
            distributions in these orders, EoNADE (Uria et al. 2014). None is row by row, alone.
        orderless: train for all orders at once (there), with hidden units that also see which pixels are
            given, as zero is a value, too.

    Raises ValueError for an argument that means nothing.

    >>> import torch
    >>> from companion.conformance import all_binary
    >>> from companion.models import NADE
    >>> _ = torch.manual_seed(0)
    >>> model = NADE((1, 2, 2), hidden=8)
    >>> round(model.log_prob(all_binary((1, 2, 2), torch.float32)).exp().sum().item(), 5)
    1.0
    """

    orders: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...] = (1, 28, 28),
        hidden: int = 500,
        classes: int | None = None,
        orders: Int[Tensor, "orders pixels"] | None = None,
        orderless: bool = False,
    ):
        super().__init__(event_shape, classes)
        require_positive_int(hidden, "hidden")
        if orders is None:
            orders = torch.arange(self.pixels)[None]
        self._require_orders(orders)
        self.register_buffer("orders", orders.long())

        # Every sum over pixels or hidden units starts well below one: none is saturated, and the biases rule.
        def small() -> nn.Parameter:
            return nn.Parameter(torch.empty(self.pixels, hidden).uniform_(-1, 1) / math.sqrt(max(self.pixels, hidden)))

        self.weight, self.out = small(), small()
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.label_hidden_bias = None if classes is None else nn.Parameter(torch.zeros(classes, hidden))
        self.given = small() if orderless else None

    def log_prob(
        self,
        x: Float[Tensor, " batch *event"],
        label: Int[Tensor, " batch"] | None = None,
        orders: Int[Tensor, "orders pixels"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """log p(x), or log p(x|label), nats: the log of the mean of p over `orders`; over the model's own, if None.

        Raises ValueError or TypeError for a wrong shape or dtype, NaN, values other than 0 and 1, a label that is
        missing, not asked for or out of range, and orders that are no permutations.
        """
        if orders is not None:
            self._require_orders(orders)
        return self._log_mixture(x, label, self.orders if orders is None else orders.to(self.orders))

    def logits(
        self,
        x: Float[Tensor, " batch *event"],
        label: Int[Tensor, " batch"] | None = None,
        order: Int[Tensor, " pixels"] | None = None,
    ) -> Float[Tensor, " batch *event"]:
        """The logit of each pixel given those before it in `order`; in the model's first one, if None. Raises as
        `log_prob`."""
        self._require(x, label)
        if order is not None:
            self._require_orders(order[None])
        return self._logits(x.flatten(1), label, self.orders[0] if order is None else order.to(self.orders)).view_as(x)

    def loss(self, x: Float[Tensor, " batch *event"], label: Int[Tensor, " batch"] | None = None) -> Loss:
        """-log p(x). Where `orderless`, an unbiased estimate of its mean over all orders: a random number of random
        pixels is given, and the others are each predicted from these (Uria et al. 2014).

        Raises as `log_prob`.
        """
        if self.given is None:
            return super().loss(x, label)
        self._require(x, label)
        count = torch.randint(self.pixels, (len(x), 1), device=x.device)
        rank = torch.rand(len(x), self.pixels, device=x.device).argsort(1).argsort(1)
        negative = self._orderless(x.flatten(1), rank < count, label)
        return Loss(negative, {"negative log-likelihood": negative}, "nats, mean over orders")

    def _orderless(self, x: Tensor, given: Tensor, label: Tensor | None) -> Float[Tensor, " batch"]:
        """D / (D - d + 1) times the loss of the D - d + 1 pixels that are not given: d is any of 1, …, D, and what is
        predicted next any of these pixels."""
        assert self.given is not None  # as the model is orderless
        h = torch.sigmoid(self._start(label, len(x)) + (x * given) @ self.weight + given.to(x.dtype) @ self.given)
        logits = h @ self.out.T + self._pixel_bias(label)
        predicted = ~given
        log_likelihood = (bernoulli_log_likelihood(x, logits) * predicted).sum(1)
        return -self.pixels * log_likelihood / predicted.sum(1)

    def _components(self) -> Tensor:
        return self.orders

    def _order(self, order: Tensor) -> Tensor:
        return order

    def _start(self, label: Tensor | None, batch: int) -> Float[Tensor, "batch hidden"]:
        bias: Tensor = self.hidden_bias
        if label is not None and self.label_hidden_bias is not None:
            bias = bias + self.label_hidden_bias[label]
        return bias.expand(batch, -1)

    def _ordered(self, order: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.weight[order], self.out[order], None if self.given is None else self.given[order]

    def _logits(self, x: Tensor, label: Tensor | None, order: Tensor) -> Tensor:
        in_order = Recurrence.apply(x[:, order], self._start(label, len(x)), *self._ordered(order))
        return in_order[:, order.argsort()] + self._pixel_bias(label)

    def _draw(self, thresholds: Tensor, label: Tensor | None, order: Tensor) -> tuple[Tensor, Tensor]:
        a = self._start(label, len(thresholds)).clone(memory_format=torch.contiguous_format)
        logits = self._pixel_bias(label).expand_as(thresholds)[:, order].T.contiguous()
        thresholds, (weight, out, shift) = thresholds[:, order].T.contiguous(), self._ordered(order)
        h, x = torch.empty_like(a), torch.empty_like(thresholds)
        for d in range(self.pixels):
            torch.sigmoid(a, out=h)
            logits[d].addmv_(h, out[d])
            torch.lt(thresholds[d], logits[d], out=x[d])
            a.addr_(x[d], weight[d])
            if shift is not None:
                a += shift[d]
        back = order.argsort()
        return x[back].T, logits[back].T

    def _require_orders(self, orders: Tensor) -> None:
        allowed = f"a tensor of permutations of 0 to {self.pixels - 1}, of shape (orders, {self.pixels})"
        if not isinstance(orders, Tensor) or orders.is_floating_point():
            raise TypeError(f"orders must be {allowed}, got {getattr(orders, 'dtype', type(orders).__name__)}")
        if orders.ndim != 2 or not len(orders) or orders.shape[1] != self.pixels:
            raise ValueError(f"orders must be {allowed}, got shape {tuple(orders.shape)}")
        wrong = (orders.sort(1).values != torch.arange(self.pixels, device=orders.device)).any(1)
        if wrong.any():
            raise ValueError(f"orders must be {allowed}, got {orders[wrong][0].tolist()[:8]}")
