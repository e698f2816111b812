"""What makes a diffusion sample faster: students of one step or a few, and a diffusion of short codes."""

from companion.models.faster_sampling.consistency import ConsistencyModel, karras_levels
from companion.models.faster_sampling.distillation import ProgressiveDistillation
from companion.models.faster_sampling.latent import LatentDiffusion

__all__ = ["ConsistencyModel", "LatentDiffusion", "ProgressiveDistillation", "karras_levels"]
