"""Whatever trains on the CPU does so on CUDA: no tensor, buffer or generator is left on the other device.

A stand-in takes the place of the GPU, so that every machine can tell. What only a GPU can, `test_training_gpu.py` does.
`test_devices.py` runs this file in a process of its own.
"""

import inspect
from dataclasses import replace

import cuda_stand_in
import pytest
import torch
from torch import nn

from companion import chapter
from companion.models.questions import Loss
from companion.presets import PRESETS, examples, find, fixed, splits, start, training_data
from companion.training import Settings, fit

pytestmark = pytest.mark.usefixtures("one_thread")
# Networks that are called once for every pixel or step: their samples take minutes here.
SLOW_SAMPLES = {"pixelcnn", "pixelrnn", "causal_transformer", "maf", "score_model", "ddpm", "vdm", "latent_diffusion"}


@pytest.fixture(scope="module", autouse=True)
def guard(tmp_path_factory):
    cuda_stand_in.load_guard(tmp_path_factory.mktemp("guard"))


class Net(nn.Module):
    """With a buffer that is on one device, and noise."""

    def __init__(self, lost: bool = False):
        super().__init__()
        self.net = nn.Linear(3, 3)
        self.register_buffer("scale", torch.full((3,), 2.0))
        self.lost = [torch.ones(3)] if lost else []

    def loss(self, x):
        x = x + 0.1 * torch.randn_like(x)
        error = (self.scale * self.net(x) - x).square().sum(1)
        return Loss(sum(self.lost, error), {}, "squared error")


@pytest.mark.parametrize("settings", [Settings(steps=3), Settings(steps=3, ema_decay=0.5, clip_norm=0.1)])
def test_the_stand_in_computes_what_the_cpu_does(settings):
    torch.manual_seed(0)
    models, x = [Net(), Net()], torch.randn(50, 3)
    models[1].load_state_dict(models[0].state_dict())
    settings = replace(settings, log_every=1, mixed_precision="no")
    cpu = fit(models[0], x, settings, progress=False)
    with cuda_stand_in.cuda_stand_in():
        cuda = fit(models[1], x, settings, device="cuda", progress=False)
        assert all(tensor.is_cuda for tensor in models[1].state_dict().values())
        models[1].to("cpu")
    assert cpu.history == cuda.history
    assert all(torch.equal(*pair) for pair in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_the_stand_in_refuses_what_cuda_does():
    with cuda_stand_in.cuda_stand_in():
        x, generator = torch.randn(3, 2, device="cuda"), torch.Generator("cuda").manual_seed(0)
        assert torch.rand(2, device="cuda", generator=generator).device == x.device == torch.device("cuda:0")
        for wrong in (
            lambda: x + torch.ones(2),
            lambda: torch.ones(3, 2)[x[:, 0].long()],
            lambda: torch.cat([x, torch.ones(3, 2)]),
            lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
            lambda: torch.rand(2, generator=generator),
            lambda: x.numpy(),
            lambda: fit(Net(lost=True), torch.zeros(50, 3), Settings(steps=1), device="cuda", progress=False),
        ):
            with pytest.raises(RuntimeError):
                wrong()
        assert x[[0, 2]].shape == (2, 2) and (x * torch.tensor(2.0)).sum().item() == 2 * x.sum().item()


@pytest.mark.parametrize(("event_shape", "device"), [((10, 10), "cuda"), ((3,), "cpu")])
def test_chapters_train_images_on_the_gpu_and_go_on_on_the_cpu(event_shape, device):
    model, seen = Net(), []
    model.event_shape = event_shape

    def data(n, generator):
        seen.append(next(model.parameters()).device.type)
        return torch.randn(n, 3, generator=generator)

    with cuda_stand_in.cuda_stand_in():
        assert chapter.fit(model, data, Settings(steps=2)).model is model
        assert "trains on a stand-in for CUDA;" in chapter.machine()
    assert seen == [device, device] and {t.device.type for t in model.state_dict().values()} == {"cpu"}


def test_chapters_train_on_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chapter.machine().endswith("trains on the CPU, in 1 thread")
    model = Net()
    model.event_shape = (28, 28)
    chapter.fit(model, torch.zeros(4, 3), Settings(steps=1))
    assert not any(tensor.is_cuda for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", PRESETS)
def test_every_model_trains_and_answers(name):
    preset = find(name, "quick")
    images, validation, test = splits("mnist6k")
    model = start(preset.make(), images, preset.binarised)
    if preset.first is not None:
        model.fit_scale(fixed(images, preset.binarised))
    settings = replace(preset.settings, steps=1, batch_size=4)
    held_out = tuple(part[:4] for part in examples(validation, preset)) if settings.validate_every else None
    data = training_data(images, preset.binarised, preset.labelled)
    with cuda_stand_in.cuda_stand_in():
        fit(model, data, settings, validation=held_out, device="cuda", progress=False)
        x = fixed(test, preset.binarised)[:2].to("cuda")
        label = {"label": test.labels[:2].to("cuda")} if preset.labelled else {}
        for question in ("log_prob", "elbo", "energy", "encode"):
            if hasattr(model, question):
                method = getattr(model, question)
                answer = method(x, **(label if "label" in inspect.signature(method).parameters else {}))
                assert (answer.mean if question == "encode" else answer).is_cuda
        if hasattr(model, "sample") and not any(slow in name for slow in SLOW_SAMPLES):
            assert model.sample(2, torch.Generator("cuda").manual_seed(0), **label).is_cuda
