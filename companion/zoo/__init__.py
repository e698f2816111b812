"""Trained weights that come with the package: `pretrained("nade")` is a model that has learned.

Each file carries a card: what it was trained on, with which settings, for how long, and what it reached.
"""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from companion.experiments import ddpm, ebm, flows
from companion.experiments.autoregressive import DIGITS, WAVENET
from companion.models import Dequantised, WaveNet
from companion.nets.digit_classifier import DigitClassifier
from companion.training import load_model

FOLDER = Path(__file__).parent

ZOO: dict[str, Callable[[], nn.Module]] = {
    "nade": DIGITS["NADE"][0],
    "pixelrnn": DIGITS["Diagonal BiLSTM"][0],
    "wavenet": lambda: WaveNet(**WAVENET),
    "ebm": ebm.energy_model,
    "score_model": ebm.score_model,
    "ddpm": ddpm.ddpm,
    "digit_classifier": DigitClassifier,
    "glow": lambda: Dequantised(flows.MNIST["Glow"][0](), alpha=flows.ALPHA),
}


def pretrained(name: str) -> nn.Module:
    """A trained model, on the CPU and in evaluation mode. Raises ValueError for an unknown name.

    >>> from companion.zoo import pretrained
    >>> model = pretrained("nade")
    >>> type(model).__name__, model.sample(1).shape
    ('NADE', torch.Size([1, 1, 28, 28]))
    """
    return _read(name)[0].eval()


def card(name: str) -> dict[str, str]:
    """What is known of a trained model. Raises as `pretrained`.

    >>> from companion.zoo import card
    >>> card("nade")["data"]
    'mnist6k'
    """
    return _read(name)[1]


def _read(name: str) -> tuple[nn.Module, dict[str, str]]:
    if name not in ZOO:
        raise ValueError(f"there is no trained model {name!r}; there are {', '.join(ZOO)}")
    model = ZOO[name]()
    return model, load_model(model, FOLDER / f"{name}.safetensors")
