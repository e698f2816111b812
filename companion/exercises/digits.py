"""What a trained model of binary digits can have for a result: no right value, but a range."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch

from companion.data import load
from companion.exercises.checking import NotYet, numbers
from companion.models import IndependentPixels

# Nats an image. The best published models of binarised digits are near 78, and have ten times the data.
TOO_GOOD = 75.0


@cache
def independent_pixels() -> float:
    """-log p(x) of the test digits in nats, when each pixel has its own share of white ones and knows no other."""
    train, test = (load("mnist6k", split).binarized(seed=0) for split in ("train", "test"))
    with torch.no_grad():
        return -IndependentPixels((1, 28, 28)).fit(train).log_prob(test).mean().item()


def plausible(answer: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Raise NotYet unless each of these numbers may be a model's -log p of binary digits, in nats an image."""
    for name, nats in numbers(answer, names).items():
        hint = None
        if nats < 0:
            hint = "this is the log-likelihood, or its bound; give minus that, which is positive"
        elif nats < 1:
            hint = "this looks like nats a pixel: sum over the 784 pixels"
        elif nats < TOO_GOOD:
            hint = "no published model is as good; are all parts of the bound there, and the test digits binarised?"
        elif abs(nats - 784 * np.log(2)) < 5:
            hint = "784 log 2: every pixel is still a fair coin, and nothing was learned"
        elif nats > independent_pixels():
            hint = (
                f"independent pixels reach {independent_pixels():.0f} nats; train longer, or look at the learning rate"
            )
        if hint:
            raise NotYet(f"{name}: {hint}")
