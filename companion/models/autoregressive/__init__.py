"""Models that take one pixel after the other: exact densities, and samplers that keep what does not change."""

from companion.models.autoregressive.fvsbn import FVSBN
from companion.models.autoregressive.made import MADE
from companion.models.autoregressive.nade import NADE
from companion.models.autoregressive.pixelcnn import PixelCNN
from companion.models.autoregressive.pixelrnn import PixelRNN
from companion.models.autoregressive.transformer import CausalTransformer
from companion.models.autoregressive.wavenet import WaveNet

__all__ = ["FVSBN", "MADE", "NADE", "CausalTransformer", "PixelCNN", "PixelRNN", "WaveNet"]
