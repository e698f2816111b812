"""A VAE of 784-512-20: a training step, and the importance-weighted log-likelihood of an image."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.harness import compare, count, peer
from companion.data import load
from companion.models import VAE

BATCH, DRAWS = 128, 5000


def bare() -> tuple[nn.Module, nn.Module]:
    """The same networks with nothing around them: a floor that no model can go below."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 40))
    decoder = nn.Sequential(nn.Linear(20, 512), nn.ReLU(), nn.Linear(512, 784))
    return encoder, decoder


def pythae_vae() -> nn.Module | None:
    if peer("pythae") is None:
        return None
    from pythae.models import VAE as PeerVAE
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU())
            self.mean, self.log_variance = nn.Linear(512, 20), nn.Linear(512, 20)

        def forward(self, x):
            hidden = self.hidden(x)
            return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_variance(hidden))

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(20, 512), nn.ReLU(), nn.Linear(512, 784), nn.Sigmoid())

        def forward(self, z):
            return ModelOutput(reconstruction=self.net(z).reshape(-1, 1, 28, 28))

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    return PeerVAE(config, Encoder(), Decoder())


def step(loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, bfloat16: bool = False) -> Callable:
    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            value = loss()
        value.backward()
        optimizer.step()

    return run


def training(repeats: int = 60) -> dict:
    x = load("mnist6k").binarized(seed=0)[:BATCH]
    candidates = {}
    if (other := pythae_vae()) is not None:
        from pythae.data.datasets import DatasetOutput

        inputs = DatasetOutput(data=x)
        candidates["pythae, Adam"] = step(lambda: other(inputs).loss, torch.optim.Adam(other.parameters()))
    for name, fused, bfloat16 in (
        ("companion, AdamW", False, False),
        ("companion, fused AdamW", True, False),
        ("companion, fused AdamW, bfloat16", True, True),
    ):
        model = VAE()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0, fused=fused)
        candidates[name] = step(lambda model=model: model.loss(x).value.mean(), optimizer, bfloat16)
    encoder, decoder = bare()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0, fused=True)
    candidates["floor: the networks alone, fused AdamW"] = step(
        lambda: decoder(encoder(x)[:, :20]).square().mean(), optimizer
    )
    return compare(f"VAE 784-512-20, batch {BATCH}: training step", candidates, repeats, count(VAE()))


def likelihood(repeats: int = 9) -> dict:
    x = load("mnist6k", "test").binarized(seed=0)[:1]
    model, candidates = VAE(), {}
    if (other := pythae_vae()) is not None:

        def theirs() -> None:
            with torch.no_grad():
                other.get_nll(x, n_samples=DRAWS, batch_size=100)

        candidates["pythae, get_nll"] = theirs
    candidates["companion, importance_bound"] = lambda: model.importance_bound(x, DRAWS)
    _, decoder = bare()

    @torch.no_grad()
    def floor() -> None:
        for _ in range(math.ceil(DRAWS / 512)):
            F.softplus(decoder(torch.randn(512, 20))).sum()

    candidates["floor: the decoder and its softplus"] = floor
    return compare(f"log-likelihood of one image by {DRAWS} draws", candidates, repeats, count(model))


def run() -> list[dict]:
    return [training(), likelihood()]
