"""Networks that know no probability: they map tensors to tensors."""

from companion.nets.conv import conv_decoder, conv_encoder
from companion.nets.mlp import mlp

__all__ = ["conv_decoder", "conv_encoder", "mlp"]
