"""CUDA against the CPU: the same training, the same numbers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from companion.models.questions import Loss
from companion.training import Settings, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"),
]

SETTINGS = Settings(
    steps=20,
    batch_size=32,
    weight_decay=0.01,
    clip_norm=1.0,
    ema_decay=0.9,
    log_every=1,
    validate_every=5,
    patience=3,
    checkpoint_every=5,
)


class Net(nn.Module):
    """Without noise: the devices' generators differ."""

    def __init__(self, noise=0.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64))
        self.noise = noise

    def loss(self, x):
        error = (self.net(x + self.noise * torch.randn_like(x)).to(x.dtype) - x).square().sum(1)
        return Loss(error, {"error": error}, "squared error")


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def data(dtype):
    return torch.randn(200, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


def train(device, dtype=torch.float32, settings=SETTINGS, noise=0.0, **kwargs):
    x = kwargs.pop("data", data(dtype))
    model = Net(noise).to(dtype)
    return fit(model, x, settings, validation=data(dtype)[:64], device=device, progress=False, **kwargs)


def close(one, two, tolerance):
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach().cpu(), rtol=tolerance, atol=tolerance)
    for row, other in zip(one.history, two.history, strict=True):
        assert row == pytest.approx(other, rel=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_cuda_trains_as_the_cpu(dtype, tolerance):
    fitted = train("cuda", dtype)
    assert next(fitted.model.parameters()).is_cuda
    close(fitted, train("cpu", dtype), tolerance)


def test_bf16_on_cuda_is_near_float32():
    """bf16 keeps 8 bits: a loss of rounded activations is right to a few parts in 2⁸."""
    half, full = (train("cuda", settings=replace(SETTINGS, mixed_precision=p)) for p in ("bf16", "no"))
    losses = [[row["loss"] for row in fitted.history] for fitted in (half, full)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_resumes_exactly_with_noise_of_the_device(tmp_path):
    def interrupted(n, generator):
        interrupted.calls += 1
        if interrupted.calls == 13:
            raise KeyboardInterrupt
        return data(torch.float32)[torch.randint(200, (n,), generator=generator)]

    interrupted.calls = 100
    before = torch.cuda.get_rng_state()
    whole = train("cuda", noise=0.1, data=interrupted)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    interrupted.calls = 0
    with pytest.raises(KeyboardInterrupt):
        train("cuda", noise=0.1, data=interrupted, folder=tmp_path)
    resumed = train("cuda", noise=0.1, data=interrupted, folder=tmp_path)
    assert whole.history == resumed.history
    with pytest.raises(ValueError, match="device is 'cuda' there and 'cpu' here"):
        train("cpu", noise=0.1, folder=tmp_path)
