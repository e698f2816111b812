"""Are samples recognisable, each of them, and diverse, all of them? The Inception Score, of any classifier.

    inception_score(extract(classifier, samples, net="digit classifier", of="samples of a VAE, seed 0"))

It knows no data: a single image of each class, drawn again and again, has the highest score there is.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from companion.evaluation.features import Conditions, Samples, as_features, with_conditions
from companion.validate import require_positive_int

# Logits at a time: what is made of them stays in the processor's cache.
_CHUNK = 2**17


@dataclass(frozen=True)
class InceptionScore:
    """What `inception_score` found. It prints itself with its conditions.

    Attributes:
        value: the mean over the splits, from 1 to `classes`.
        deviation: the standard deviation over the splits, not of their mean, with n in its denominator (ddof 0), as in
            Salimans et al. (2016).
        sample_deviation: the same with n - 1 (ddof 1), as other libraries report it; NaN for a single split.
        classes, splits: how many.
    """

    value: float
    deviation: float
    sample_deviation: float
    classes: int
    splits: int
    conditions: Conditions

    def __str__(self) -> str:
        many = self.splits > 1
        spread = f" ± {self.deviation:.2g}" if many else ""
        return with_conditions(
            f"Inception Score {self.value:.4g}{spread} of at most {self.classes:,}",
            f"{self.splits} splits, deviation with ddof 0" if many else "one split",
            self.conditions,
        )


def inception_score(logits: Samples, splits: int = 10) -> InceptionScore:
    """exp E[KL(p(y|x) ‖ p(y))], with p(y) the mean of p(y|x) over a split (Salimans et al. 2016, section 4).

    Splits are runs of images as they come, and differ in size by one at most. They all need all classes: shuffle
    samples that are sorted. Smaller splits have lower scores, as p(y) is estimated from their own images.

    Args:
        logits: a classifier's, (n, classes), up to a constant for each image, so that log-probabilities do, but for
            that of zero, which is not finite. Computed in their own precision, single at least; sums are in double.

    Raises TypeError or ValueError for logits as `Features` does, and for no splits or more than images.
    """
    features = as_features(logits, "logits")
    require_positive_int(splits, "splits")
    n, classes = features.values.shape
    if splits > n:
        raise ValueError(f"splits must be at most the {n} images, got {splits}")
    bounds = [i * n // splits for i in range(splits + 1)]
    values = features.values.detach()
    scores = torch.tensor(
        [math.exp(_information(values[start:end])) for start, end in pairwise(bounds)],
        dtype=torch.float64,
    )
    return InceptionScore(
        scores.mean().item(),
        scores.std(correction=0).item(),
        scores.std().item() if splits > 1 else math.nan,
        classes,
        splits,
        Conditions.taken(features),
    )


def _information(logits: Float[Tensor, "n classes"]) -> float:
    """Between image and class, in nats: the entropy of p(y) less the mean entropy of p(y|x)."""
    n, classes = logits.shape
    marginal, negative_entropy = logits.new_zeros(classes, dtype=torch.float64), 0.0
    for part in logits.split(max(1, _CHUNK // classes)):
        log_p = (part if part.dtype == torch.float64 else part.float()).log_softmax(1)
        p = log_p.exp()
        marginal += p.sum(0)
        negative_entropy += p.mul_(log_p).sum(1).sum(dtype=torch.float64).item()
    marginal /= n
    return negative_entropy / n - torch.special.xlogy(marginal, marginal).sum().item()
