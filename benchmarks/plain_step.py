"""One training step of DG-Net done plainly: one pass per tensor and network, fp32, NCHW, deep copies.

It computes what `dgnet_fast.training.step` computes, in the way a direct implementation does: every picture
batch goes through E_s, E_a, G and D on its own, graphs are kept for passes that no loss uses, the frozen
encoders are deep copies with weight gradients nobody reads, and losses are read by the host every step.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain import (
    Discriminator,
    Encoder,
    StructureEncoder,
    check_options,
    copy_weights,
    plain_decoder,
)
from dgnet_fast.data import Batch, erase
from dgnet_fast.models.appearance_encoder import upsample_small
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.training.schedule import weights_at

HEAD_FACTOR = 10


def gray(x: Tensor) -> Tensor:
    return x.mean(dim=1, keepdim=True)


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target.detach()).abs().mean()


def batch_norm_trains(module: nn.Module) -> None:
    """BatchNorms use batch statistics although their network is in evaluation mode."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.train()


class PlainStep:
    """Networks with a model's weights, optimisers, and `step(batch, index)` → terms, per stream where they are.

    Names of terms as `TrainingStep` returns them. `dropout` False switches E_a's dropout off. Raises
    ValueError for options other than the paper's (see `benchmarks.plain.check_options`).
    """

    def __init__(self, model: DGNet, *, dropout: bool = True) -> None:
        config = self.config = model.config
        check_options(config)
        if len(model.teachers) != 1:
            raise ValueError(f"the plain step is written for one teacher, got {len(model.teachers)}")
        self.E_s = copy_weights(StructureEncoder(config), model.structure_encoder)
        self.G = plain_decoder(model)
        self.D = copy_weights(Discriminator(config), model.discriminator)
        self.E_a = copy_weights(Encoder(config, model.appearance_encoder), model.appearance_encoder)
        self.teacher = copy_weights(Encoder(config, model.teachers[0]), model.teachers[0]).eval()
        self.teacher.apply(batch_norm_trains)
        self.set_dropout(dropout)
        adam = {"betas": (config.beta1, config.beta2), "weight_decay": config.weight_decay}
        self.gen_optimiser = torch.optim.Adam(
            [*self.E_s.parameters(), *self.G.parameters()], lr=config.lr_g, **adam
        )
        self.dis_optimiser = torch.optim.Adam(self.D.parameters(), lr=config.lr_d, **adam)
        groups = [{"params": self.E_a.backbone.parameters(), "lr": config.lr2}]
        groups += [{"params": head.parameters(), "lr": HEAD_FACTOR * config.lr2} for head in self.E_a.heads]
        self.id_optimiser = torch.optim.SGD(
            groups, lr=config.lr2, weight_decay=config.weight_decay, momentum=0.9, nesterov=True
        )

    def set_dropout(self, on: bool) -> None:
        for head in self.E_a.heads:
            head.dropout.train(on)

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Code and logits of one batch of pictures."""
        return self.E_a(upsample_small(x))[:2]

    def forward(self, batch: Batch) -> dict[str, list]:
        """Codes, logits and the six decodes, a list over the two streams each."""
        x_a, x_b = batch.x.contiguous().unbind()
        xp_a, xp_b = batch.xp.contiguous().unbind()
        s = [self.E_s(gray(x_a)), self.E_s(gray(x_b))]
        f_a, p_a = self.encode(x_a)
        f_b, p_b = self.encode(x_b)
        x_ba, x_ab = self.G(s[1], f_a), self.G(s[0], f_b)
        recon = [self.G(s[0], f_a), self.G(s[1], f_b)]
        fp_a, pp_a = self.encode(xp_a)
        fp_b, pp_b = self.encode(xp_b)
        same_id = [self.G(s[0], fp_a), self.G(s[1], fp_b)]
        if batch.erasing_boxes is not None:
            erased = [
                erase(upsample_small(x).clone(), boxes)
                for x, boxes in zip((x_a, x_b, xp_a, xp_b), batch.erasing_boxes, strict=True)
            ]
            p_a, p_b, pp_a, pp_b = (self.E_a(one)[1] for one in erased)
        return {"x": [x_a, x_b], "s": s, "f": [f_a, f_b], "swapped": [x_ba, x_ab], "recon": recon,
                "same_id": same_id, "p": [p_a, p_b], "pp": [pp_a, pp_b]}  # fmt: skip

    def discriminator_step(self, forward: dict[str, list]) -> dict[str, list[Tensor] | Tensor]:
        self.dis_optimiser.zero_grad()
        losses = []
        for fake, real in zip(forward["swapped"], forward["x"], strict=True):
            real = real.detach().requires_grad_()
            loss = 0
            for score, true in zip(self.D(fake.detach().clone()), self.D(real), strict=True):
                (gradient,) = torch.autograd.grad(true.sum(), real, create_graph=True)
                penalty = gradient.square().flatten(1).sum(1).mean()
                loss = (
                    loss
                    + score.square().mean()
                    + (true - 1).square().mean()
                    + self.config.dis.LAMBDA * penalty
                )
            losses.append(loss)
        total = self.config.gan_w * (losses[0] + losses[1])
        total.backward()
        self.dis_optimiser.step()
        return {"dis": losses, "dis_total": total}

    def teacher_label(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            label = self.teacher(x)[1][0].softmax(1) + self.teacher(x.flip(-1))[1][0].softmax(1)
            return label / label.sum(1, keepdim=True)

    def teacher_term(self, fixed: list[Tensor], labels: list[Tensor]) -> list[Tensor]:
        terms = []
        for k, picture in enumerate(fixed):
            picture = upsample_small(picture)
            logits = self.E_a(picture)[1]
            divergence = F.kl_div(logits[0].log_softmax(1), self.teacher_label(picture), reduction="sum")
            fine = F.cross_entropy(logits[1], labels[1 - k])
            terms.append(self.config.T_w * divergence / len(picture) + self.config.B_w * fine)
        return terms

    def generator_step(
        self, forward: dict[str, list], batch: Batch, index: int, train_encoder: bool
    ) -> dict[str, list[Tensor] | Tensor]:
        config, weights = self.config, weights_at(self.config, index)
        self.gen_optimiser.zero_grad()
        self.id_optimiser.zero_grad()
        swapped, x, labels = forward["swapped"], forward["x"], list(batch.labels)
        fixed = [one.detach() for one in swapped]
        if train_encoder:
            s_b, s_a = self.E_s(gray(fixed[0])), self.E_s(gray(fixed[1]))
        else:
            frozen = copy.deepcopy(self.E_s).eval()
            s_b, s_a = frozen(gray(swapped[0])), frozen(gray(swapped[1]))
        frozen = copy.deepcopy(self.E_a).eval()
        frozen.apply(batch_norm_trains)
        again = [frozen(upsample_small(one)) for one in swapped]
        terms: dict[str, list[Tensor] | Tensor] = {
            "recon_x": [l1(r, one) for r, one in zip(forward["recon"], x, strict=True)],
            "recon_xp": [l1(r, one) for r, one in zip(forward["same_id"], x, strict=True)],
            "recon_id": [F.cross_entropy(a[1][0], y) for a, y in zip(again, labels, strict=True)],
            "pid": [F.cross_entropy(p[0], y) for p, y in zip(forward["pp"], labels, strict=True)],
            "id": [
                F.cross_entropy(p[0], y) + weights.teacher_w * config.B_w * F.cross_entropy(p[1], y)
                for p, y in zip(forward["p"], labels, strict=True)
            ],
        }
        if weights.teacher_w > 0:
            terms["teacher"] = self.teacher_term(fixed, labels)
        if weights.recon_s_w > 0:
            terms["recon_s"] = [l1(s_a, forward["s"][0]), l1(s_b, forward["s"][1])]
        if weights.recon_f_w > 0:
            terms["recon_f"] = [l1(a[0], f) for a, f in zip(again, forward["f"], strict=True)]
        if weights.recon_x_cyc_w > 0:
            cycled = self.G(s_a, again[0][0]), self.G(s_b, again[1][0])
            terms["recon_x_cyc"] = [l1(c, one) for c, one in zip(cycled, x, strict=True)]
        terms["adv"] = [sum(2 * (score - 1).square().mean() for score in self.D(one)) for one in swapped]
        weight = {
            "adv": config.gan_w, "recon_x": config.recon_x_w, "recon_xp": config.recon_xp_w, "id": config.id_w,
            "pid": config.pid_w, "recon_id": config.recon_id_w, "teacher": weights.teacher_w,
            "recon_s": weights.recon_s_w, "recon_f": weights.recon_f_w, "recon_x_cyc": weights.recon_x_cyc_w,
        }  # fmt: skip
        total = sum(weight[name] * (pair[0] + pair[1]) for name, pair in terms.items())
        total.backward()
        self.gen_optimiser.step()
        self.id_optimiser.step()
        return terms | {"total": total}

    def step(self, batch: Batch, index: int, *, train_encoder: bool) -> dict[str, list[float] | float]:
        """One update; the terms as numbers."""
        forward = self.forward(batch)
        terms = self.discriminator_step(forward) | self.generator_step(forward, batch, index, train_encoder)
        return {
            name: [one.item() for one in value] if isinstance(value, list) else value.item()
            for name, value in terms.items()
        }
