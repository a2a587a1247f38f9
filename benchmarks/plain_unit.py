"""One training step of UNIT done plainly: one pass per picture batch and network, fp32, NCHW, PyTorch's own layers.

It computes what `dgnet_fast.translation.step` computes, as a direct implementation does: pictures are encoded in both
phases, every decoding is a pass of its own, D's phase keeps graphs that no loss uses, D makes weight gradients in the
phase of the generators that nobody reads, and every network goes over the pictures of each loss on its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_fast.models.layers import ConvBlock, LayerNorm2d, ResidualBlock
from dgnet_fast.models.unit import (
    POOLED,
    VGG_MEAN,
    VGG_STAGES,
    Unit,
    UnitDecoder,
    UnitDiscriminator,
    UnitEncoder,
)

PADDING = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}


def block(layer: ConvBlock, x: Tensor) -> Tensor:
    """pad → conv → norm → activation."""
    if layer.padding:
        x = F.pad(x, (layer.padding,) * 4, mode=PADDING[layer.pad_type])
    x = F.conv2d(x, layer.conv.weight, layer.conv.bias, layer.conv.stride)
    if layer.norm_kind == "in":
        x = F.instance_norm(x, eps=1e-5)
    elif isinstance(layer.norm, LayerNorm2d):
        flat = x.flatten(1)
        mean, std = (part.view(-1, 1, 1, 1) for part in (flat.mean(1), flat.std(1)))
        x = (x - mean) / (std + 1e-5)
        x = x * layer.norm.gamma.view(1, -1, 1, 1) + layer.norm.beta.view(1, -1, 1, 1)
    elif layer.norm is not None:
        x = layer.norm(x)
    return x if layer.activation is None else layer.activation(x)


def residual(layer: ResidualBlock, x: Tensor) -> Tensor:
    return block(layer.conv2, block(layer.conv1, x)) + x


def encode(net: UnitEncoder, x: Tensor) -> Tensor:
    for layer in net.stem:
        x = block(layer, x)
    for layer in net.residual:
        x = residual(layer, x)
    return x


def decode(net: UnitDecoder, x: Tensor) -> Tensor:
    for layer in net.residual:
        x = residual(layer, x)
    for layer in net.upsample:
        x = block(layer, F.interpolate(x, scale_factor=2, mode="nearest"))
    return block(net.to_rgb, x)


def judge(net: UnitDiscriminator, x: Tensor) -> list[Tensor]:
    scores = []
    for scale in net.scales:
        y = x
        for layer in scale.stem:
            y = block(layer, y)
        scores.append(scale.to_score(y))
        x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
    return scores


def perceive(net: nn.Module, x: Tensor) -> Tensor:
    """relu5_3 of VGG-16, instance-normed."""
    x = (x + 1) * 127.5
    x = torch.stack([x[:, 2] - VGG_MEAN[0], x[:, 1] - VGG_MEAN[1], x[:, 0] - VGG_MEAN[2]], dim=1)
    convs = dict(net.named_modules())
    for stage, widths in enumerate(VGG_STAGES, 1):
        for k in range(1, len(widths) + 1):
            x = F.relu(convs[f"convs.conv{stage}_{k}"](x))
        x = F.max_pool2d(x, 2, stride=2) if stage <= POOLED else x
    return F.instance_norm(x, eps=1e-5)


class PlainUnit:
    """Networks with a model's weights, optimisers, and `step(x, index, noise)` → terms, as `UnitStep` names them."""

    def __init__(self, model: Unit) -> None:
        config = self.config = model.config
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        for module in self.model.modules():
            if isinstance(module, (nn.ReLU, nn.LeakyReLU, nn.SELU)):
                module.inplace = False
        adam = {"betas": (config.beta1, config.beta2), "weight_decay": config.weight_decay}
        self.gen = torch.optim.Adam(self.model.generator_parameters(), lr=config.lr, **adam)
        self.dis = torch.optim.Adam(self.model.discriminators.parameters(), lr=config.lr, **adam)

    def _adversarial(self, scores: list[Tensor], real: bool) -> Tensor:
        total = torch.zeros((), dtype=scores[0].dtype)
        for one in scores:
            if self.config.dis.gan_type == "lsgan":
                total = total + ((one - float(real)) ** 2).mean()
            else:
                total = total + F.binary_cross_entropy(one.sigmoid(), torch.full_like(one, float(real)))
        return total

    def step(
        self, x: Tensor, index: int, noise: Callable[[str, Tensor], Tensor]
    ) -> dict[str, list[float] | float]:
        """x (2, B, 3, H, W); ``noise(name, code)`` as in `UnitStep`."""
        config, model = self.config, self.model
        enc, dec, dis = model.encoders, model.decoders, model.discriminators
        x_a, x_b = x
        if config.lr_policy == "step":
            for optimiser in (self.gen, self.dis):
                optimiser.param_groups[0]["lr"] = config.lr * config.gamma ** (
                    (index + 1) // config.step_size
                )

        self.dis.zero_grad()
        h_a, h_b = encode(enc[0], x_a), encode(enc[1], x_b)
        n_a, n_b = noise("dis.n_a", h_a), noise("dis.n_b", h_b)
        x_ba, x_ab = decode(dec[0], h_b + n_b), decode(dec[1], h_a + n_a)
        learned = [
            self._adversarial(judge(net, fake.detach()), False) + self._adversarial(judge(net, real), True)
            for net, fake, real in ((dis[0], x_ba, x_a), (dis[1], x_ab, x_b))
        ]
        dis_total = config.gan_w * (learned[0] + learned[1])
        dis_total.backward()
        self.dis.step()

        self.gen.zero_grad()
        h_a, h_b = encode(enc[0], x_a), encode(enc[1], x_b)
        n_a, n_b = noise("gen.n_a", h_a), noise("gen.n_b", h_b)
        x_a_recon, x_b_recon = decode(dec[0], h_a + n_a), decode(dec[1], h_b + n_b)
        x_ba, x_ab = decode(dec[0], h_b + n_b), decode(dec[1], h_a + n_a)
        h_ba, h_ab = encode(enc[0], x_ba), encode(enc[1], x_ab)
        n_ba, n_ab = noise("gen.n_ba", h_ba), noise("gen.n_ab", h_ab)
        terms = {
            "recon_x": [(x_a_recon - x_a).abs().mean(), (x_b_recon - x_b).abs().mean()],
            "recon_kl": [h_a.square().mean(), h_b.square().mean()],
            "recon_kl_cyc": [h_ab.square().mean(), h_ba.square().mean()],
            "adv": [self._adversarial(judge(net, fake), True) for net, fake in zip(dis, (x_ba, x_ab), strict=True)],
        }  # fmt: skip
        if config.recon_x_cyc_w > 0:
            x_aba, x_bab = decode(dec[0], h_ab + n_ab), decode(dec[1], h_ba + n_ba)
            terms["recon_x_cyc"] = [(x_aba - x_a).abs().mean(), (x_bab - x_b).abs().mean()]
        vgg = model.perceptual
        if vgg is not None:
            pairs = ((x_ba, x_b), (x_ab, x_a))
            terms["vgg"] = [(perceive(vgg, y) - perceive(vgg, z)).square().mean() for y, z in pairs]
        weights = {
            "recon_x": config.recon_x_w, "recon_kl": config.recon_kl_w, "recon_x_cyc": config.recon_x_cyc_w,
            "recon_kl_cyc": config.recon_kl_cyc_w, "adv": config.gan_w, "vgg": config.vgg_w,
        }  # fmt: skip
        total = torch.stack([weights[name] * (a + b) for name, (a, b) in terms.items()]).sum()
        total.backward()
        self.gen.step()
        found: dict[str, list[float] | float] = {k: [a.item(), b.item()] for k, (a, b) in terms.items()}
        return found | {
            "dis": [one.item() for one in learned], "dis_total": dis_total.item(), "total": total.item()
        }  # fmt: skip
