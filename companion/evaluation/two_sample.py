"""Are two sets of samples from the same density? From the samples alone.

energy_distance(samples, test), energy_distance(train, test)
classifier_two_sample(samples, test)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.stats import hypergeom
from torch import Tensor, nn

from companion.evaluation.features import Conditions, Samples, as_pair, with_conditions
from companion.validate import require_events

# Rows of distances at a time.
_CHUNK = 1000


def energy_distance(x: Float[Tensor, " n *event"], y: Float[Tensor, " m *event"]) -> float:
    """2 E‖X - Y‖ - E‖X - X'‖ - E‖Y - Y'‖, from all pairs (Székely and Rizzo 2013, eq. 1.1): zero if both have the same
    distribution, and only then, in the unit of x.

    Unbiased, as no point is compared with itself, and so below zero at times: what counts is how far it is above that
    of two sets of data.

    Raises TypeError or ValueError for less than two examples, other shapes, or values that are not finite.
    """
    require_events(x, tuple(x.shape[1:]))
    require_events(y, tuple(x.shape[1:]), "y")
    for name, sample in (("x", x), ("y", y)):
        if len(sample) < 2:
            raise ValueError(f"{name} must hold at least two examples, got {len(sample)}")
    x, y = (sample.detach().double().flatten(1) for sample in (x, y))
    within = (_total(sample, sample) / (len(sample) * (len(sample) - 1)) for sample in (x, y))
    return 2 * _total(x, y) / (len(x) * len(y)) - sum(within)


def _total(x: Tensor, y: Tensor) -> float:
    # By products, in double precision: a point is about 1e-8 from itself.
    return sum(torch.cdist(part, y).sum().item() for part in x.split(_CHUNK))


@dataclass(frozen=True)
class ClassifierTwoSample:
    """What `classifier_two_sample` found. It prints itself with its conditions.

    Attributes:
        accuracy: the share of held-out points that the classifier tells right; 1/2 is expected if both have one
            distribution, and 1/2 + TV/2 of the best classifier, with the total variation distance TV.
        p: how likely at least such an accuracy is if both have one distribution.
        tested: held-out points, of both sets together.
        dim: of the features.
    """

    accuracy: float
    p: float
    tested: int
    dim: int
    conditions: Conditions

    def __str__(self) -> str:
        found = f"accuracy {self.accuracy:.3f} on {self.tested:,} held-out points, p = {self.p:.3g}"
        return with_conditions(found, f"{self.dim} dimensions", self.conditions)


def classifier_two_sample(x: Samples, reference: Samples, seed: int = 0) -> ClassifierTwoSample:
    """Train a classifier to tell one half of x from one half of reference, and test it on the others (Lopez-Paz and
    Oquab 2017).

    A network of one hidden layer, on inputs that are standardised by the halves it is trained on. However well it
    does, the test is exact: given its answers, under equal distributions every choice of the held-out points is as
    likely to be x, and the number of right answers is hypergeometric. (A binomial, as if every held-out point's label
    were an independent coin, rejects too often, since both sets have the same number of them.)

    Args:
        seed: of the halves and of the network's first parameters.

    Raises TypeError or ValueError for features that are not like that (see `Features`), of two nets or of two
    dimensions, and for sets of different sizes.
    """
    x, reference = as_pair(x, reference)
    if len(x) != len(reference):
        raise ValueError(f"x and reference must have the same size, got {len(x)} and {len(reference)}")
    half, generator = len(x) // 2, torch.Generator().manual_seed(seed)
    shuffled = [
        sample.values.detach().double()[torch.randperm(len(sample), generator=generator)] for sample in (x, reference)
    ]
    train, test = torch.cat([part[:half] for part in shuffled]), [part[half:] for part in shuffled]
    mean, std = train.mean(0), train.std(0)
    std = torch.where(std > 0, std, 1)  # a coordinate that never changes
    net = _fit((train - mean) / std, seed)
    with torch.no_grad():
        right, wrong = (int((net((part - mean) / std) > 0).sum()) for part in test)
    tested = len(test[0])
    return ClassifierTwoSample(
        (right + tested - wrong) / (2 * tested),
        float(hypergeom.sf(right - 1, 2 * tested, tested, right + wrong)),
        2 * tested,
        x.values.shape[1],
        Conditions.taken(x, reference, seed),
    )


def _fit(train: Float[Tensor, "n dim"], seed: int) -> nn.Module:
    """A network whose logit is above zero for points like the first half of the rows."""
    label = (torch.arange(len(train), device=train.device) < len(train) // 2).double()[:, None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(train.shape[1], 64), nn.ReLU(), nn.Linear(64, 1)).to(train)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(net(train), label).backward()
        optimizer.step()
    return net
