"""The models, one module for each chapter. `capability_table()` says what each of them can do."""

from companion.models.autoregressive import FVSBN, MADE, NADE, CausalTransformer, PixelCNN, PixelRNN, WaveNet
from companion.models.ddpm import DDPM, VDM
from companion.models.ebm import EBM, RBM, AdversarialEBM, ScoreModel
from companion.models.elbo import BernoulliMixture
from companion.models.faster_sampling import ConsistencyModel, LatentDiffusion, ProgressiveDistillation
from companion.models.flows import MAF, NICE, Dequantised, Glow, ImageRealNVP, RealNVP
from companion.models.gan import GAN
from companion.models.generative_problem import GaussianMixture, IndependentPixels, ProbabilisticPCA
from companion.models.hvae import HVAE
from companion.models.questions import QUESTIONS, Loss, Player, answers
from companion.models.vae import VAE, Autoencoder

MODELS = (
    IndependentPixels,
    GaussianMixture,
    ProbabilisticPCA,
    BernoulliMixture,
    Autoencoder,
    VAE,
    HVAE,
    GAN,
    FVSBN,
    NADE,
    MADE,
    PixelRNN,
    PixelCNN,
    WaveNet,
    CausalTransformer,
    NICE,
    RealNVP,
    ImageRealNVP,
    Glow,
    MAF,
    Dequantised,
    RBM,
    EBM,
    AdversarialEBM,
    ScoreModel,
    DDPM,
    VDM,
    LatentDiffusion,
    ProgressiveDistillation,
    ConsistencyModel,
)

__all__ = [
    "MODELS",
    "QUESTIONS",
    "Loss",
    "Player",
    "answers",
    "capability_table",
    *(model.__name__ for model in MODELS),
]


def capability_table() -> str:
    """The questions each model answers, as a Markdown table, read off the models' own methods."""
    header = f"| model | {' | '.join(QUESTIONS)} |\n| --- |{' :-: |' * len(QUESTIONS)}"
    rows = (
        f"| `{model.__name__}` | {' | '.join('✓' if question in answers(model) else '' for question in QUESTIONS)} |"
        for model in MODELS
    )
    return "\n".join([header, *rows])
