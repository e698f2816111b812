"""Small convolutional networks that halve an image twice, and their mirror images."""

from torch import nn


def _halved_twice(event_shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(event_shape) != 3 or event_shape[1] % 4 or event_shape[2] % 4:
        raise ValueError(
            f"event_shape must be (channels, height, width) with sides divisible by 4, got {tuple(event_shape)}"
        )
    channels, height, width = event_shape
    return channels, height // 4, width // 4


def conv_encoder(event_shape: tuple[int, ...], hidden: int, outputs: int) -> nn.Sequential:
    """(batch, channels, height, width) to (batch, outputs).

    Raises ValueError for an image whose sides are not divisible by 4.
    """
    channels, height, width = _halved_twice(event_shape)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * height * width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


def conv_decoder(inputs: int, hidden: int, event_shape: tuple[int, ...]) -> nn.Sequential:
    """(batch, inputs) to (batch, channels, height, width).

    Raises ValueError for an image whose sides are not divisible by 4.
    """
    channels, height, width = _halved_twice(event_shape)
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 64 * height * width),
        nn.ReLU(),
        nn.Unflatten(1, (64, height, width)),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, channels, 4, stride=2, padding=1),
    )
