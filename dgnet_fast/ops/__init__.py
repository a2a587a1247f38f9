"""Fused ops: one module each, with its plain-PyTorch reference; `registry` says which body serves what."""

from dgnet_fast.ops.adain_act import adain_act, adain_act_reference

__all__ = ["adain_act", "adain_act_reference"]
