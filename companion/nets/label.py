"""How a class label enters a network: as a bias of its own on the features."""

from torch import Tensor, nn


class LabelBias(nn.Module):
    """A bias for each feature, to which a label adds one of its own."""

    def __init__(self, classes: int | None, features: int):
        super().__init__()
        self.of_class = None if classes is None else nn.Embedding(classes, features)
        if self.of_class is not None:
            nn.init.normal_(self.of_class.weight, std=0.1)

    def forward(self, features: Tensor, label: Tensor | None) -> Tensor:
        """Adds it to (batch, features, ...)."""
        if self.of_class is None:
            return features
        bias = self.of_class(label)
        return features + bias.reshape(*bias.shape, *[1] * (features.ndim - 2))
