"""Inception-v3 against torch-fidelity's own, with weights at random: no download."""

import sys

import pytest
import torch

from companion.evaluation import extract, inception_v3
from companion.evaluation.inception import InceptionV3, _bytes


@pytest.fixture
def peer(torchvision):
    return pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture
def weights(peer, tmp_path, monkeypatch):
    """A file as torch-fidelity reads them."""
    torch.manual_seed(0)
    with monkeypatch.context() as without_download:
        without_download.setattr(peer, "load_state_dict_from_url", lambda *_, **__: {})
        without_download.setattr(peer.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = peer.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


class Means(torch.nn.Module):
    """Answers as the real one, at once: the channels' means, and twice those."""

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3 and not self.training
        means = x.double().mean((2, 3))
        return means, 2 * means


def test_agrees_with_torch_fidelity(peer, weights):
    images = torch.randint(256, (2, 3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = peer.FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], str(weights))
    features, logits = theirs(images)
    ours = inception_v3(weights)
    x = images.float() / 255
    torch.testing.assert_close(ours.features(x), features, rtol=0, atol=0)
    torch.testing.assert_close(ours(x), logits, rtol=0, atol=0)
    assert (features.shape[1], logits.shape[1]) == (2048, 1008)
    # Weights at random see something, and something else in each image.
    assert (features[0] - features[1]).abs().max() > 1e-3 * features.abs().max() > 0
    assert not torch.allclose(logits, theirs.fc(features))
    assert not any(p.requires_grad for p in ours.parameters())


def test_is_frozen_and_gives_features_to_extract():
    net = InceptionV3(Means())
    net.train()
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    grey = (images[:, 0] * 255).round().double().mean((1, 2))
    features = extract(net.features, images, net="Inception-v3", batch_size=2)
    torch.testing.assert_close(features.values, grey[:, None].expand(5, 3))
    torch.testing.assert_close(extract(net, images).values, 2 * features.values)
    assert not any(module.training for module in net.modules())


def test_levels_are_those_of_the_image():
    levels = torch.arange(256)
    for dtype in (torch.float32, torch.float64):
        x = (levels.to(dtype) / 255).reshape(1, 1, 16, 16)
        assert (_bytes(x) == levels.reshape(1, 1, 16, 16)).all()
    assert _bytes(x).shape == (1, 3, 16, 16)
    colours = torch.tensor([0.0, 0.2, 1.0]).reshape(1, 3, 1, 1)
    assert _bytes(colours).flatten().tolist() == [0, 51, 255]
    between = torch.tensor([0.4999, 0.6, 254.4, 254.6]).reshape(1, 1, 2, 2) / 255
    assert _bytes(between)[0, 0].flatten().tolist() == [0, 1, 254, 255]


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(3, 28, 28), ValueError, "1 or 3"),
        (torch.zeros(2, 2, 28, 28), ValueError, "1 or 3"),
        (torch.zeros(0, 1, 28, 28), ValueError, "none of them 0"),
        (torch.full((1, 1, 4, 4), 1.01), ValueError, r"in \[0, 1\], got values from 1.01"),
        (torch.full((1, 1, 4, 4), -0.5), ValueError, r"in \[0, 1\], got values from -0.5"),
        (torch.full((1, 1, 4, 4), torch.nan), ValueError, "finite"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, "floating"),
        ([0.0], TypeError, "torch"),
    ],
)
def test_refuses_what_is_no_image(x, error, words):
    with pytest.raises(error, match=words):
        _bytes(x)


def test_says_what_is_missing(peer, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="weights must be a file"):
        inception_v3(tmp_path / "none.pth")
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ImportError, match=r"generative-models-verified\[inception\]"):
        inception_v3()
