"""Ready-made trainings: for every trainable model "quick", a minute on a CPU, and "paper", as in its paper.

    preset = find("vae", "quick")
    train, validation, test = splits(preset.data)
    model = start(preset.make(), train, preset.binarised)
    fit(model, training_data(train, preset.binarised), preset.settings, validation=fixed(validation, preset.binarised))

`companion train NAME --preset PRESET` does this on the command line.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.data import Images, binarize, load
from companion.training import Batches, Examples, Fit, Settings, fit

if TYPE_CHECKING:
    from companion.models.faster_sampling import LatentDiffusion

Model = TypeVar("Model", bound=nn.Module)
Binarised = Literal["dynamic", "static", "no"]

# The full sets have no validation split of their own: the last of their training images serve as one.
HELD_OUT = 10_000


@dataclass(frozen=True)
class Preset:
    """One way to train a model.

    Attributes:
        about: what it is, and where it differs from the paper.
        make: a new model, its weights drawn with torch's global generator.
        data: the name of the image set.
        labelled: whether the model is given each image's label.
        binarised: "dynamic" draws the training pixels anew for every batch, "static" once, "no" leaves them grey.
            Validation and test are drawn once in both cases.
        first: the training of the model's `autoencoder`, which comes before that of the rest.
    """

    about: str
    make: Callable[[], nn.Module]
    settings: Settings
    data: str
    binarised: Binarised
    labelled: bool = False
    first: "Preset | None" = None


def _autoregressive(name: str, **arguments) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from companion.models import autoregressive

        return getattr(autoregressive, name)(**arguments)

    return make


def _autoencoder(**arguments) -> nn.Module:
    from companion.models.vae import Autoencoder

    return Autoencoder(**arguments)


def _bernoulli_mixture(components: int) -> nn.Module:
    from companion.models import BernoulliMixture

    return BernoulliMixture(components, (1, 28, 28))


def _flow(
    name: str, noise: Literal["uniform", "variational"] = "uniform", alpha: float | None = 1e-6, **arguments
) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from companion.models import flows

        return flows.Dequantised(getattr(flows, name)(**arguments), alpha=alpha, noise=noise)

    return make


def _rbm(**arguments) -> nn.Module:
    from companion.models.ebm import RBM

    return RBM(**arguments)


def _ebm(channels: int, steps: int) -> nn.Module:
    from companion.models.ebm import EBM, ContrastiveDivergence
    from companion.nets.energy import EnergyConvNet

    chains = ContrastiveDivergence(steps, 5e-3, "buffer")
    network = EnergyConvNet(channels=channels, scale=100.0)
    return EBM(network, (1, 28, 28), chains, box=(0.0, 1.0), step_size=5e-3, adjusted=False)


def _score_model(levels: tuple[float, float, int], network: dict, **arguments) -> nn.Module:
    from companion.models.ebm import ScoreModel, geometric_levels
    from companion.nets.unet import UNet

    return ScoreModel(UNet(1, **network), (1, 28, 28), geometric_levels(*levels), **arguments)


def _ddpm(schedule: str, network: dict, **arguments) -> nn.Module:
    from companion.models import ddpm
    from companion.nets.unet import UNet

    betas = getattr(ddpm, f"{schedule}_schedule")()
    return ddpm.DDPM(UNet(1, **network), (1, 28, 28), betas, levels=256, **arguments)


def _vdm(network: dict) -> nn.Module:
    from companion.models.ddpm import VDM
    from companion.nets.fourier import Fourier
    from companion.nets.unet import UNet

    return VDM(Fourier(UNet(5, channels_out=1, **network)), (1, 28, 28), levels=256)


def _consistency(network: dict, **arguments) -> nn.Module:
    from companion.models.faster_sampling import ConsistencyModel
    from companion.nets.unet import UNet

    return ConsistencyModel(UNet(1, **network), (1, 28, 28), levels=256, **arguments)


def _latent_diffusion(width: int, depth: int, **autoencoder) -> nn.Module:
    from companion.models.ddpm import DDPM, linear_schedule
    from companion.models.faster_sampling import LatentDiffusion
    from companion.nets.time_mlp import TimeMLP

    prior = DDPM(TimeMLP(20, width, depth), (20,), linear_schedule(), predicts="v", variance="forward")
    return LatentDiffusion(_vae(**autoencoder), prior)


def _gan(**arguments) -> nn.Module:
    from companion.models.gan import GAN

    return GAN(network="conv", **arguments)


def _hvae(**arguments) -> nn.Module:
    from companion.models.hvae import HVAE

    return HVAE(**arguments)


def _vae(**arguments) -> nn.Module:
    from companion.models.vae import VAE

    return VAE(**arguments)


# Early stopping: a few thousand digits are learned by heart within a thousand steps or two.
_QUICK = Settings(steps=2000, validate_every=100, patience=5, checkpoint_every=500)

# Averaged weights in place of a falling step size.
_BINARY = Settings(
    steps=100_000,
    batch_size=100,
    ema_decay=0.9995,
    log_every=500,
    validate_every=1000,
    patience=10,
    checkpoint_every=2000,
)

_FLOW = replace(_QUICK, steps=1000, batch_size=32, clip_norm=100.0, ema_decay=0.99)
_PAPER_FLOW = Settings(
    steps=200_000,
    batch_size=64,
    ema_decay=0.9995,
    log_every=500,
    validate_every=2000,
    patience=10,
    checkpoint_every=5000,
)

_DIFFUSION = Settings(steps=2000, batch_size=32, clip_norm=1.0, ema_decay=0.998, checkpoint_every=500)
_PAPER_DIFFUSION = Settings(
    steps=800_000,
    learning_rate=2e-4,
    clip_norm=1.0,
    ema_decay=0.9999,
    log_every=500,
    checkpoint_every=5000,
)

PRESETS: dict[str, dict[str, Preset]] = {
    "autoencoder": {
        "quick": Preset(
            "One hidden layer of 512, a code of 20 numbers.",
            _autoencoder,
            _QUICK,
            data="mnist6k",
            binarised="no",
        ),
        "paper": Preset(
            "The code of Hinton and Salakhutdinov (2006), 30 numbers, with one hidden layer of 1,000 in place of "
            "their three, squared error in place of cross-entropy, and AdamW in place of pre-training and conjugate "
            "gradients.",
            lambda: _autoencoder(latent_dim=30, hidden=1000),
            Settings(steps=50_000, batch_size=1000, validate_every=1000, checkpoint_every=5000),
            data="mnist",
            binarised="no",
        ),
    },
    "bernoulli_mixture": {
        "quick": Preset(
            "Twenty prototypes, by gradient descent.",
            lambda: _bernoulli_mixture(20),
            Settings(steps=2000, learning_rate=1e-2, validate_every=100, patience=5, checkpoint_every=500),
            data="mnist6k",
            binarised="static",
        ),
        "paper": Preset(
            "The 500 prototypes that Larochelle and Murray (2011) compare with, by gradient descent in place of EM, "
            "and with a binarisation drawn by our seed in place of theirs.",
            lambda: _bernoulli_mixture(500),
            Settings(
                steps=20_000, batch_size=500, learning_rate=1e-2, validate_every=500, patience=5, checkpoint_every=2000
            ),
            data="mnist",
            binarised="static",
        ),
    },
    "hvae": {
        "quick": Preset(
            "A ladder of two levels, 20 and 10 latents, with about as many weights as the VAE of the same preset.",
            lambda: _hvae(latent_dims=(20, 10), hidden=(488, 64), warm_up=500),
            _QUICK,
            data="mnist6k",
            binarised="dynamic",
        ),
        "paper": Preset(
            "The ladder of Sønderby et al. (2016): five levels of 64, 32, 16, 8 and 4 latents, mappings with two "
            "hidden layers of 512, 256, 128, 64 and 32, batch normalisation, 200 epochs of warm-up, batches of 256, "
            "2,000 epochs at 10⁻³. Theirs goes on with a smaller step size and more draws; ours stops there.",
            lambda: _hvae(latent_dims=(64, 32, 16, 8, 4), hidden=(512, 256, 128, 64, 32), depth=2, warm_up=39_000),
            Settings(steps=390_000, batch_size=256, log_every=1000, validate_every=5000, checkpoint_every=10_000),
            data="mnist",
            binarised="dynamic",
        ),
    },
    "vae": {
        "quick": Preset(
            "784-512-20, one hidden layer each way, Bernoulli pixels.",
            _vae,
            _QUICK,
            data="mnist6k",
            binarised="dynamic",
        ),
        "paper": Preset(
            "Kingma and Welling (2014): 784-500-20, one hidden layer each way, batches of 100, 10⁸ images seen. "
            "Theirs: tanh, Adagrad with a step size chosen by its first iterations, and a Gaussian prior on the "
            "weights; ours: ReLU and AdamW at 10⁻³ without weight decay.",
            lambda: _vae(hidden=500),
            Settings(steps=1_000_000, batch_size=100, log_every=1000, validate_every=5000, checkpoint_every=10_000),
            data="mnist",
            binarised="dynamic",
        ),
    },
    "fvsbn": {
        "quick": Preset(
            "One logistic regression for each pixel.",
            _autoregressive("FVSBN"),
            replace(_QUICK, learning_rate=1e-2, ema_decay=0.99),
            data="mnist6k",
            binarised="dynamic",
        ),
        "paper": Preset(
            "The comparison of Larochelle and Murray (2011), after Frey, Hinton and Dayan (1996). Theirs: stochastic "
            "gradient descent; ours: AdamW at 3 · 10⁻³ and averaged weights, and a binarisation drawn by our seed.",
            _autoregressive("FVSBN"),
            replace(_BINARY, learning_rate=3e-3),
            data="mnist",
            binarised="static",
        ),
    },
    "nade": {
        "quick": Preset(
            "200 hidden units.",
            _autoregressive("NADE", hidden=200),
            replace(_QUICK, steps=1000, learning_rate=5e-3, ema_decay=0.99),
            data="mnist6k",
            binarised="dynamic",
        ),
        "paper": Preset(
            "The 500 hidden units of Larochelle and Murray (2011). Theirs: stochastic gradient descent; ours: AdamW at "
            "2 · 10⁻³ and averaged weights, and a binarisation drawn by our seed.",
            _autoregressive("NADE", hidden=500),
            replace(_BINARY, learning_rate=2e-3),
            data="mnist",
            binarised="static",
        ),
    },
    "made": {
        "quick": Preset(
            "500 hidden units, and direct connections from pixel to pixel.",
            _autoregressive("MADE", hidden=(500,), direct=True),
            replace(_QUICK, learning_rate=3e-3, ema_decay=0.99),
            data="mnist6k",
            binarised="dynamic",
        ),
        "paper": Preset(
            "Two layers of 8,000 hidden units and 32 masks, the largest of Germain et al. (2015), in batches of 100. "
            "Ours: AdamW at 10⁻³ and averaged weights, and a binarisation drawn by our seed.",
            _autoregressive("MADE", hidden=(8000, 8000), masks=tuple(range(32))),
            _BINARY,
            data="mnist",
            binarised="static",
        ),
    },
    "pixelcnn": {
        "quick": Preset(
            "Seven residual blocks of 16 features.",
            _autoregressive("PixelCNN", hidden=16),
            replace(_QUICK, steps=1000, batch_size=32, learning_rate=3e-3, ema_decay=0.99),
            data="mnist6k",
            binarised="dynamic",
        ),
        "paper": Preset(
            "PixelCNN of van den Oord et al. (2016) as for their digits, seven blocks of 16 features, batches of 16. "
            "Theirs: RMSProp; ours: AdamW at 10⁻³ and averaged weights, and a binarisation drawn by our seed.",
            _autoregressive("PixelCNN", hidden=16),
            replace(_BINARY, steps=300_000, batch_size=16, mixed_precision="bf16"),
            data="mnist",
            binarised="static",
        ),
    },
    "pixelrnn": {
        "quick": Preset(
            "The Diagonal BiLSTM with two layers of 16 features, the slowest of the quick ones.",
            _autoregressive("PixelRNN", kind="diagonal", hidden=16, layers=2),
            replace(_QUICK, steps=300, batch_size=16, learning_rate=1e-2, clip_norm=100.0, ema_decay=0.99),
            data="mnist6k",
            binarised="dynamic",
        ),
        "paper": Preset(
            "The best model of van den Oord et al. (2016) for digits: seven layers of the Diagonal BiLSTM with 16 "
            "features, batches of 16. Theirs: RMSProp; ours: AdamW at 10⁻³ and averaged weights, and a binarisation "
            "drawn by our seed.",
            _autoregressive("PixelRNN", kind="diagonal", hidden=16, layers=7),
            replace(_BINARY, steps=300_000, batch_size=16),
            data="mnist",
            binarised="static",
        ),
    },
    "causal_transformer": {
        "quick": Preset(
            "Two layers of width 64 with two heads.",
            _autoregressive("CausalTransformer", width=64, layers=2, heads=2),
            replace(_QUICK, steps=600, batch_size=8, learning_rate=3e-3, betas=(0.9, 0.95), ema_decay=0.99),
            data="mnist6k",
            binarised="dynamic",
        ),
        "paper": Preset(
            "The blocks of Chen et al. (2020), whose smallest model has 24 layers of width 512 for other images; for "
            "binary digits six of width 128. The optimiser's decay rates are theirs, the rest is our choice.",
            _autoregressive("CausalTransformer", width=128, layers=6, heads=4),
            replace(_BINARY, batch_size=64, betas=(0.9, 0.95), mixed_precision="bf16"),
            data="mnist",
            binarised="static",
        ),
    },
    "conditional_pixelcnn": {
        "quick": Preset(
            "The gated PixelCNN with a label: seven layers of 16 features.",
            _autoregressive("PixelCNN", kind="gated", hidden=16, classes=10),
            replace(_QUICK, steps=1000, batch_size=32, learning_rate=3e-3, ema_decay=0.99),
            data="mnist6k",
            binarised="dynamic",
            labelled=True,
        ),
        "paper": Preset(
            "The gated PixelCNN with a label of van den Oord et al. (2016b), whose images are those of ImageNet, at "
            "the size of the digits: 15 layers of 32 features. The optimiser and the steps are our choice.",
            _autoregressive("PixelCNN", kind="gated", hidden=32, blocks=15, classes=10),
            replace(_BINARY, steps=100_000, batch_size=64, mixed_precision="bf16"),
            data="mnist",
            binarised="static",
            labelled=True,
        ),
    },
    "nice": {
        "quick": Preset(
            "Four additive couplings with three hidden layers of 500, a logit before them.",
            _flow("NICE", hidden=(500, 500, 500)),
            replace(_FLOW, steps=2000, batch_size=100),
            data="mnist6k",
            binarised="no",
        ),
        "paper": Preset(
            "Dinh et al. (2015) on digits: four additive couplings with five hidden layers of 1,000, a logistic prior, "
            "uniform noise and no logit, 1,500 epochs. Ours: batches of 200, AdamW at 10⁻³ and averaged weights, and "
            "early stopping.",
            _flow("NICE", alpha=None),
            replace(_PAPER_FLOW, steps=375_000, batch_size=200),
            data="mnist",
            binarised="no",
        ),
    },
    "realnvp": {
        "quick": Preset(
            "The multi-scale RealNVP with one residual block of 16 features in each network.",
            _flow("ImageRealNVP", hidden=16, blocks=1),
            replace(_FLOW, learning_rate=3e-3, ema_decay=None),
            data="mnist6k",
            binarised="no",
        ),
        "paper": Preset(
            "RealNVP with the residual blocks of Dinh et al. (2017) for images of 32 × 32 pixels, eight of 64 "
            "features, in batches of 64. Theirs: other images, and α = 0.05 in the logit; ours digits, with 10⁻⁶. The "
            "steps are our choice.",
            _flow("ImageRealNVP", hidden=64, blocks=8),
            replace(_PAPER_FLOW, ema_decay=None),
            data="mnist",
            binarised="no",
        ),
    },
    "glow": {
        "quick": Preset(
            "Glow with two levels of four steps, 32 features.",
            _flow("Glow", steps=4, hidden=32),
            replace(_FLOW, learning_rate=5e-3),
            data="mnist6k",
            binarised="no",
        ),
        "paper": Preset(
            "The 32 steps in each level and the 512 features of Kingma and Dhariwal (2018), with two levels, for which "
            "28 × 28 pixels have room. Theirs: other images; the logit, with α = 10⁻⁶, and the steps are our choice.",
            _flow("Glow", steps=32, hidden=512),
            _PAPER_FLOW,
            data="mnist",
            binarised="no",
        ),
    },
    "conditional_glow": {
        "quick": Preset(
            "The same Glow, given a label.",
            _flow("Glow", steps=4, hidden=32, classes=10),
            replace(_FLOW, learning_rate=5e-3),
            data="mnist6k",
            binarised="no",
            labelled=True,
        ),
        "paper": Preset(
            "The same Glow as without labels, each class with a prior and biases of its own. The paper's label enters "
            "the prior alone.",
            _flow("Glow", steps=32, hidden=512, classes=10),
            _PAPER_FLOW,
            data="mnist",
            binarised="no",
            labelled=True,
        ),
    },
    "maf": {
        "quick": Preset(
            "Five masked layers of 500 hidden units.",
            _flow("MAF", event_shape=(1, 28, 28), layers=5, hidden=(500,)),
            replace(_FLOW, batch_size=100),
            data="mnist6k",
            binarised="no",
        ),
        "paper": Preset(
            "MAF (5) of Papamakarios et al. (2017) on digits: five layers of 1,024 hidden units, batches of 100, Adam "
            "at 10⁻⁴, α = 10⁻⁶. Theirs: batch normalisation between the layers, unbounded log-scales, and early "
            "stopping after 30 epochs; ours: averaged weights.",
            _flow("MAF", event_shape=(1, 28, 28), layers=5, hidden=(1024,)),
            replace(_PAPER_FLOW, batch_size=100, learning_rate=1e-4),
            data="mnist",
            binarised="no",
        ),
    },
    "rbm": {
        "quick": Preset(
            "100 hidden units, persistent chains.",
            lambda: _rbm(hidden=100, chains=128),
            Settings(steps=2000, learning_rate=3e-3, ema_decay=0.998, checkpoint_every=500),
            data="mnist6k",
            binarised="dynamic",
        ),
        "paper": Preset(
            "Salakhutdinov and Murray (2008): 500 hidden units, contrastive divergence with 25 steps, batches of 100. "
            "Theirs: from 1 step to 25 as training goes on, momentum and weight decay; ours: AdamW at 10⁻³ and "
            "averaged weights. The number of steps is our choice.",
            lambda: _rbm(hidden=500, k=25),
            Settings(steps=300_000, batch_size=100, ema_decay=0.9995, log_every=500, checkpoint_every=5000),
            data="mnist",
            binarised="dynamic",
        ),
    },
    "ebm": {
        "quick": Preset(
            "A convolutional energy with 16 channels, 20 Langevin steps of persistent chains; its samples are noise "
            "with strokes in it.",
            lambda: _ebm(16, 20),
            Settings(steps=600, batch_size=32, learning_rate=5e-4, betas=(0.0, 0.999), checkpoint_every=100),
            data="mnist6k",
            binarised="no",
        ),
        "paper": Preset(
            "The buffer of 10,000 chains, 5 % of them drawn anew, 60 steps and the optimiser of Du and Mordatch "
            "(2019), Adam at 10⁻⁴ with decay rates 0 and 0.999, batches of 128. Theirs: other images, residual "
            "networks with spectral normalisation, and noise below that of the step size; ours: plain Langevin steps.",
            lambda: _ebm(64, 60),
            Settings(
                steps=100_000,
                batch_size=128,
                learning_rate=1e-4,
                betas=(0.0, 0.999),
                ema_decay=0.999,
                log_every=500,
                checkpoint_every=2000,
            ),
            data="mnist",
            binarised="no",
        ),
    },
    "score_model": {
        "quick": Preset(
            "75 levels of noise, a small U-Net on patches of 2 × 2 pixels.",
            lambda: _score_model((16.0, 0.05, 75), dict(channels=32, multipliers=(1, 1), patch=2)),
            replace(_QUICK, steps=1000, batch_size=32, learning_rate=2e-3, ema_decay=0.99),
            data="mnist6k",
            binarised="no",
        ),
        "paper": Preset(
            "Song and Ermon (2019) on digits: ten levels from 1 to 0.01, 100 steps at each with ε = 2 · 10⁻⁵, batches "
            "of 128, Adam at 10⁻³, 200,000 steps. Theirs: a RefineNet; ours: a U-Net, and averaged weights.",
            lambda: _score_model(
                (1.0, 0.01, 10), dict(channels=64, multipliers=(1, 2, 2), blocks=2), steps=100, step_size=2e-5
            ),
            Settings(
                steps=200_000,
                ema_decay=0.999,
                log_every=500,
                validate_every=5000,
                checkpoint_every=5000,
            ),
            data="mnist",
            binarised="no",
        ),
    },
    "ddpm": {
        "quick": Preset(
            "A linear schedule of 1,000 steps, the simple loss, a small U-Net on patches of 2 × 2 pixels.",
            lambda: _ddpm("linear", dict(channels=32, multipliers=(1, 2), patch=2)),
            _DIFFUSION,
            data="mnist6k",
            binarised="no",
        ),
        "paper": Preset(
            "Ho et al. (2020) as on CIFAR-10: 128 channels, two blocks at each level, self-attention from the second "
            "on, batches of 128, Adam at 2 · 10⁻⁴, gradients clipped to norm 1, averaged weights, 800,000 steps. "
            "Theirs: four levels for 32 × 32 pixels, dropout of 0.1 and a warm-up; ours: the three that 28 × 28 pixels "
            "have room for.",
            lambda: _ddpm(
                "linear", dict(channels=128, multipliers=(1, 2, 2), blocks=2, attention=2), variance="forward"
            ),
            _PAPER_DIFFUSION,
            data="mnist",
            binarised="no",
        ),
    },
    "conditional_ddpm": {
        "quick": Preset(
            "The quick DDPM, given the labels, one in ten of which is hidden, for guidance.",
            lambda: _ddpm("linear", dict(channels=32, multipliers=(1, 2), patch=2, classes=10)),
            _DIFFUSION,
            data="mnist6k",
            binarised="no",
            labelled=True,
        ),
        "paper": Preset(
            "Nichol and Dhariwal (2021), with labels: a cosine schedule of 1,000 steps, a learned variance, the hybrid "
            "loss, batches of 128, Adam at 10⁻⁴, 500,000 steps. Theirs on other images, with three blocks at each of "
            "four levels and 4,000 steps; the labels are hidden at times as in Ho and Salimans (2022).",
            lambda: _ddpm(
                "cosine",
                dict(channels=128, multipliers=(1, 2, 2), blocks=2, attention=2, classes=10, channels_out=2),
                variance="learned",
                objective="hybrid",
            ),
            replace(_PAPER_DIFFUSION, steps=500_000, learning_rate=1e-4),
            data="mnist",
            binarised="no",
            labelled=True,
        ),
    },
    "vdm": {
        "quick": Preset(
            "A learned schedule, Fourier features, a small U-Net on patches of 2 × 2 pixels.",
            lambda: _vdm(dict(channels=32, multipliers=(1, 2), patch=2)),
            replace(_DIFFUSION, clip_norm=None),
            data="mnist6k",
            binarised="no",
        ),
        "paper": Preset(
            "Kingma et al. (2021): no change of resolution, 128 channels, batches of 128, AdamW at 2 · 10⁻⁴ with "
            "weight decay 0.01, averaged weights. Theirs on CIFAR-10: 32 blocks each way, self-attention in the "
            "middle, dropout and 10 million steps; ours: 8 blocks, and 800,000 steps.",
            lambda: _vdm(dict(channels=128, multipliers=(1,), blocks=8, attention=0)),
            replace(_PAPER_DIFFUSION, clip_norm=None, weight_decay=0.01),
            data="mnist",
            binarised="no",
        ),
    },
    "consistency": {
        "quick": Preset(
            "Training without a teacher, 18 levels of noise, a small U-Net on patches of 2 × 2 pixels.",
            lambda: _consistency(dict(channels=32, multipliers=(1, 2), patch=2), metric="pseudo-huber"),
            replace(_DIFFUSION, steps=3000),
            data="mnist6k",
            binarised="no",
        ),
        "paper": Preset(
            "Song and Dhariwal (2023) as far as our model goes: no teacher, no lagging target network, a pseudo-Huber "
            "distance, batches of 1,024, Adam at 10⁻⁴, averaged weights, 400,000 steps. Theirs on CIFAR-10: a larger "
            "network, a number of levels that grows from 10 to 1,280, and levels drawn from a log-normal distribution; "
            "ours: 160 levels, drawn evenly.",
            lambda: _consistency(
                dict(channels=128, multipliers=(1, 2, 2), blocks=2, attention=2),
                noise_levels=160,
                metric="pseudo-huber",
            ),
            replace(_PAPER_DIFFUSION, steps=400_000, batch_size=1024, learning_rate=1e-4, clip_norm=None),
            data="mnist",
            binarised="no",
        ),
    },
    "gan": {
        "quick": Preset(
            "DCGAN at half its width: 32 and 64 channels, 64 latents.",
            lambda: _gan(hidden=32, latent_dim=64),
            Settings(steps=1000, batch_size=64, learning_rate=5e-4, betas=(0.5, 0.999), checkpoint_every=250),
            data="mnist6k",
            binarised="no",
        ),
        "paper": Preset(
            "The optimiser, batches, initial weights and layers of DCGAN (Radford et al. 2016), with 64 and 128 "
            "channels and 100 latents. Theirs: 64 × 64 pixels and four strided convolutions each way, noise uniform on "
            "[-1, 1]; ours: the two that 28 × 28 pixels have room for, and Gaussian noise. The steps are our choice.",
            lambda: _gan(hidden=64, latent_dim=100),
            Settings(steps=20_000, learning_rate=2e-4, betas=(0.5, 0.999), log_every=500, checkpoint_every=2000),
            data="mnist",
            binarised="no",
        ),
    },
    "wgan_gp": {
        "quick": Preset(
            "The networks of DCGAN with 16 and 32 channels, the critic's without batch normalisation, and 64 latents; "
            "five updates of the critic for each one of the generator.",
            lambda: _gan(hidden=16, latent_dim=64, loss="wasserstein"),
            Settings(steps=600, batch_size=64, learning_rate=5e-4, betas=(0.0, 0.9), checkpoint_every=200),
            data="mnist6k",
            binarised="no",
        ),
        "paper": Preset(
            "The algorithm of Gulrajani et al. (2017, algorithm 1): a penalty of weight 10, five updates of the critic "
            "for each one of the generator, Adam at 10⁻⁴ with decay rates 0 and 0.9, batches of 64, 128 latents. "
            "Theirs on other images, with networks that differ from set to set; ours those of DCGAN for 28 × 28 pixels "
            "with 64 and 128 channels, and weights from N(0, 0.02²). The steps are our choice.",
            lambda: _gan(hidden=64, latent_dim=128, loss="wasserstein"),
            Settings(
                steps=20_000,
                batch_size=64,
                learning_rate=1e-4,
                betas=(0.0, 0.9),
                log_every=500,
                checkpoint_every=2000,
            ),
            data="mnist",
            binarised="no",
        ),
    },
}


PRESETS["latent_diffusion"] = {
    "quick": Preset(
        "The quick VAE, then a diffusion of its 20 latents by an MLP.",
        lambda: _latent_diffusion(256, 3),
        Settings(steps=2000, batch_size=256, ema_decay=0.995, checkpoint_every=500),
        data="mnist6k",
        binarised="dynamic",
        first=PRESETS["vae"]["quick"],
    ),
    "paper": Preset(
        "Rombach et al. (2022) at the size of digits: an autoencoder, then a DDPM of its codes with 1,000 steps of a "
        "linear schedule. Theirs on other images, whose codes are smaller images, with a U-Net, and losses of its own "
        "for the autoencoder; ours: the VAE of its paper preset, an MLP, and steps of our choice.",
        lambda: _latent_diffusion(1024, 5, hidden=500),
        Settings(steps=500_000, batch_size=256, ema_decay=0.9999, log_every=500, checkpoint_every=5000),
        data="mnist",
        binarised="dynamic",
        first=PRESETS["vae"]["paper"],
    ),
}


def find(name: str, preset: str) -> Preset:
    """Raises ValueError, with what there is, for an unknown name or preset."""
    if name not in PRESETS:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(PRESETS)}")
    if preset not in PRESETS[name]:
        raise ValueError(f"{name} has no preset {preset!r}; it has {', '.join(PRESETS[name])}")
    return PRESETS[name][preset]


def splits(data: str) -> tuple[Images, Images, Images]:
    """Training, validation and test images of a set. Raises ValueError for an unknown one."""
    train, test = load(data, "train"), load(data, "test")
    if data == "mnist6k":
        return train, load(data, "validation"), test
    kept = len(train) - HELD_OUT
    return (
        Images(data, "train", train.pixels[:kept], train.labels[:kept]),
        Images(data, "validation", train.pixels[kept:], train.labels[kept:]),
        test,
    )


def fixed(images: Images, binarised: Binarised) -> Float[Tensor, "n 1 28 28"]:
    """The images to measure on, always the same ones: binarised once, or grey."""
    return images.intensities() if binarised == "no" else images.binarized(seed=0)


def examples(images: Images, preset: Preset) -> tuple[Tensor, ...]:
    """What a model of this preset is measured on: the images, and their labels if it is given them."""
    x = fixed(images, preset.binarised)
    return (x, images.labels) if preset.labelled else (x,)


def training_data(images: Images, binarised: Binarised, labelled: bool = False) -> Examples | Batches:
    """The images to train on, for `fit`; where `labelled`, with their labels."""
    if binarised != "dynamic":
        return (fixed(images, binarised), images.labels) if labelled else fixed(images, binarised)
    grey = images.intensities()

    def batch(n: int, generator: torch.Generator) -> Examples:
        chosen = torch.randint(len(grey), (n,), generator=generator)
        x = binarize(grey[chosen], generator)
        return (x, images.labels[chosen]) if labelled else x

    return batch


def start(model: Model, images: Images, binarised: Binarised) -> Model:
    """A new model, where it can be at the pixels' own frequencies: nearer to the data than weights alone."""
    if hasattr(model, "initialise"):
        cast(Callable, model.initialise)(fixed(images, binarised))
    return model


def train(
    preset: Preset,
    data: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    *,
    folder: Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Fit:
    """A new model, trained as the preset says; with `first`, in two stages.

    Args:
        data: the images; the preset's own if None.
        seed: of the first weights, the order of the images and the noise.
        steps: of each stage; the preset's own if None.
        folder: where to keep checkpoints, from which a training that was stopped goes on; None for nowhere.
        device, progress: as for `fit`.

    Raises as `splits` and `fit`.
    """
    images, held_out, _ = splits(data or preset.data)
    # A game has no loss of the whole that could be validated.
    validation = None if preset.settings.validate_every is None else cast(Examples, examples(held_out, preset))
    torch.manual_seed(seed)
    model = start(preset.make(), images, preset.binarised)
    if preset.first is not None:
        place = None if folder is None else folder / "first"
        first = train(preset.first, data or preset.data, seed, steps, folder=place, device=device, progress=progress)
        latent = cast("LatentDiffusion", model)  # the one model with two stages
        latent.autoencoder.load_state_dict(first.model.state_dict())
        latent.fit_scale(fixed(images, preset.binarised))
    return fit(
        model,
        training_data(images, preset.binarised, preset.labelled),
        settings(preset, seed, steps),
        validation=validation,
        folder=folder,
        device=device,
        progress=progress,
    )


def settings(preset: Preset, seed: int = 0, steps: int | None = None) -> Settings:
    """The preset's, with this seed, and this number of steps if one is given."""
    return replace(preset.settings, seed=seed, steps=preset.settings.steps if steps is None else steps)
