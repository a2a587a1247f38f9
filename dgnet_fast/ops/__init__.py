"""Fused ops: one module each, with its plain-PyTorch reference; `registry` says which body serves what."""

from dgnet_fast.ops.act_pad import act_pad, act_pad_reference
from dgnet_fast.ops.adain_act import adain_act, adain_act_reference
from dgnet_fast.ops.appearance_mlp import appearance_mlp, appearance_mlp_reference
from dgnet_fast.ops.batch_norm_act import batch_norm_act, batch_norm_act_reference
from dgnet_fast.ops.conv3x3 import conv3x3, conv3x3_reference
from dgnet_fast.ops.conv3x3_act import conv3x3_act, conv3x3_act_reference
from dgnet_fast.ops.layer_norm_act import layer_norm_act, layer_norm_act_reference
from dgnet_fast.ops.loss_adversarial import loss_adversarial, loss_adversarial_reference
from dgnet_fast.ops.loss_identity import loss_identity, loss_identity_reference
from dgnet_fast.ops.loss_l1 import loss_l1, loss_l1_reference

__all__ = [
    "act_pad",
    "act_pad_reference",
    "adain_act",
    "adain_act_reference",
    "appearance_mlp",
    "appearance_mlp_reference",
    "batch_norm_act",
    "batch_norm_act_reference",
    "conv3x3",
    "conv3x3_act",
    "conv3x3_act_reference",
    "conv3x3_reference",
    "layer_norm_act",
    "layer_norm_act_reference",
    "loss_adversarial",
    "loss_adversarial_reference",
    "loss_identity",
    "loss_identity_reference",
    "loss_l1",
    "loss_l1_reference",
]
