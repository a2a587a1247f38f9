"""The networks of DG-Net."""

from dgnet_fast.models.appearance_encoder import Appearance, AppearanceEncoder
from dgnet_fast.models.decoder import AdainParameters, AppearanceMlp, Decoder
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.discriminator import Discriminator
from dgnet_fast.models.structure_encoder import StructureEncoder

__all__ = [
    "AdainParameters",
    "Appearance",
    "AppearanceEncoder",
    "AppearanceMlp",
    "DGNet",
    "Decoder",
    "Discriminator",
    "StructureEncoder",
]
