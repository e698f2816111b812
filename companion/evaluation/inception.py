"""The Inception-v3 of published Fréchet distances and Inception Scores, for colour images. Needs an extra:
`pip install generative-models-verified[inception]`.

    net = inception_v3()
    real = extract(net.features, images, net="Inception-v3, 2048 features", of="CIFAR-10, train", batch_size=50)
"""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from companion.validate import require_events


class InceptionV3(nn.Module):
    """Images to `features` and logits, as `DigitClassifier` does, by the network of torch-fidelity.

    Frozen: `train()` leaves it in evaluation mode, and no gradients reach the images, which become integers. Both
    answers are to images of one or three channels and any size, in [0, 1], which are scaled to 299 × 299.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.eval()

    def train(self, mode: bool = True) -> "InceptionV3":
        return super().train(False)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 2048"]:
        """What the last pooling gives. Raises TypeError or ValueError for images that are not as above."""
        return self.network(_bytes(x))[0]

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 1008"]:
        """Logits without their bias, which the original Inception Score leaves out. Raises as `features`."""
        return self.network(_bytes(x))[1]


def inception_v3(weights: Path | str | None = None) -> InceptionV3:
    """Inception-v3 with the weights of 2015-12-05 that published numbers are of.

    Args:
        weights: a file in torch-fidelity's format, unpickled, so from a source that you trust. Default: torch-fidelity
            downloads its own, about 90 MB.

    Raises:
        ImportError: without torch-fidelity and torchvision.
        FileNotFoundError: no such file.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError(
            f"Inception-v3 comes with torch-fidelity: pip install generative-models-verified[inception] ({error})"
        ) from error
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"weights must be a file, got {str(weights)!r}")
    path = None if weights is None else str(weights)
    return InceptionV3(FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], path))


def _bytes(x: Float[Tensor, "batch channels height width"]) -> UInt8[Tensor, "batch 3 height width"]:
    if isinstance(x, Tensor) and (x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape):
        raise ValueError(f"x must have shape (batch, 1 or 3, height, width), none of them 0, got {tuple(x.shape)}")
    require_events(x, tuple(x.shape[1:]) if isinstance(x, Tensor) else ())
    low, high = x.aminmax()
    if low < 0 or high > 1:
        raise ValueError(f"x must be in [0, 1], got values from {low.item():.6g} to {high.item():.6g}")
    # Rounded: k / 255 times 255 is below k at times.
    return (255 * x).round().to(torch.uint8).expand(-1, 3, -1, -1)
