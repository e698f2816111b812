"""Energy-based models: densities known but for their normaliser, and how to learn and sample them without it."""

from companion.models.ebm.adversarial import AdversarialEBM
from companion.models.ebm.ebm import EBM
from companion.models.ebm.laplacian import with_laplacian
from companion.models.ebm.objectives import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    NoiseContrastive,
    ScoreMatching,
    SlicedScoreMatching,
)
from companion.models.ebm.plane import Divergence, divergence, log_normaliser
from companion.models.ebm.rbm import RBM
from companion.models.ebm.score_model import (
    ScoreModel,
    annealed_step_size,
    geometric_levels,
    largest_distance,
    number_of_levels,
    variance_ratio,
)

__all__ = [
    "EBM",
    "RBM",
    "AdversarialEBM",
    "ContrastiveDivergence",
    "DenoisingScoreMatching",
    "Divergence",
    "NoiseContrastive",
    "ScoreMatching",
    "ScoreModel",
    "SlicedScoreMatching",
    "annealed_step_size",
    "divergence",
    "geometric_levels",
    "largest_distance",
    "log_normaliser",
    "number_of_levels",
    "variance_ratio",
    "with_laplacian",
]
