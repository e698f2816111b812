"""A small convolutional network that tells digits apart; what it sees in an image serves as its features."""

from jaxtyping import Float
from torch import Tensor, nn


class DigitClassifier(nn.Module):
    """Three convolutions with strides of 2, then 64 features, then a logit for each of ten classes.

    `features(x)` are the 64 numbers, before their ReLU, so that none is zero for all images; the whole gives the
    logits. Images are grey or black and white, in [0, 1].
    """

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(64 * 4 * 4, 64),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch 10"]:
        return self.head(self.features(x))
