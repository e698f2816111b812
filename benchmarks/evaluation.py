"""The Fréchet distance and the Inception Score, of as many features and classes as Inception-v3 has."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import compare, peer, stand_in_for_torchvision
from companion.evaluation import Moments, frechet_distance, gaussian_frechet_distance, inception_score

DIM, SAMPLES, FEW = 2048, 3000, 500
IMAGES, CLASSES = 10_000, 1000


def features(n: int, seed: int) -> Tensor:
    """As after a ReLU, with variances that fall by a factor of 10,000."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / DIM**0.5
    scale = torch.logspace(0, -2, DIM, dtype=torch.float64)
    return ((torch.randn(n, DIM, generator=generator, dtype=torch.float64) * scale) @ mix + 0.01 * seed).relu()


def distance(repeats: int = 3) -> dict:
    x, reference = Moments.of(features(SAMPLES, 1)), Moments.of(features(SAMPLES, 2))
    given = x.mean, x.covariance, reference.mean, reference.covariance
    arrays = [a.numpy() for a in given]
    candidates: dict[str, Callable[[], object]] = {}
    if (fidelity := peer("torch_fidelity.metric_fid")) is not None:
        first, second = ({"mu": mean, "sigma": c} for mean, c in (arrays[:2], arrays[2:]))
        candidates["torch-fidelity"] = lambda: fidelity.fid_statistics_to_metric(first, second, False)
    if (fid := peer("pytorch_fid.fid_score")) is not None:
        candidates["pytorch-fid"] = lambda: fid.calculate_frechet_distance(*arrays)
    candidates["companion"] = lambda: gaussian_frechet_distance(*given)
    return compare(f"Fréchet distance, dimension {DIM}, statistics given", candidates, repeats, 0)


def few_samples(repeats: int = 3) -> dict:
    x, reference = features(FEW, 1), features(FEW, 2)
    candidates: dict[str, Callable[[], object]] = {}
    if (fid := peer("torchmetrics.image.fid")) is not None:
        candidates["torchmetrics, eigenvalues of the product"] = lambda: fid._compute_fid(
            x.mean(0), x.T.cov(), reference.mean(0), reference.T.cov()
        )
    candidates["companion"] = lambda: frechet_distance(x, reference)
    return compare(f"Fréchet distance, {FEW} samples of dimension {DIM}", candidates, repeats, 0)


def score(repeats: int = 21) -> dict:
    logits = 3 * torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(0))
    candidates: dict[str, Callable[[], object]] = {}
    if (module := peer("torchmetrics.image.inception")) is not None:
        metric = module.InceptionScore(feature=torch.nn.Identity())
        metric.update(logits)

        def theirs() -> object:
            metric._computed = None  # or it would answer from its memory
            return metric.compute()

        candidates["torchmetrics"] = theirs
    candidates["companion"] = lambda: inception_score(logits)
    return compare(f"Inception Score, {IMAGES:,} images, {CLASSES:,} classes", candidates, repeats, 0)


def run() -> list[dict]:
    stand_in_for_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [distance(), few_samples(), score()]
