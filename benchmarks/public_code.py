"""The public code from a checkout of it, driven as its training script drives it.

None of its code is here: `Public` imports it from the folder given, gives it our weights in its own checkpoint
layout and calls its three updates. torchvision is replaced by a stand-in (the ResNet it would download weights
for gets ours), `.cuda()` by nothing on a CPU; everything else runs as shipped. Only for a process of its own:
the checkout's module names are as common as `utils`.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import torch
import yaml
from torch import nn

from benchmarks.plain import ResNet
from dgnet_fast.checkpoints.public_layout import (
    discriminator_layout,
    encoder_layout,
    export_state,
    generator_layout,
)
from dgnet_fast.config import Config
from dgnet_fast.data import Batch
from dgnet_fast.models.dgnet import DGNet

CONFIG = "configs/latest.yaml"
OVERRIDDEN = (
    "ID_class", "ID_stride", "pool", "batch_size", "crop_image_height", "crop_image_width", "erasing_p",
    "recon_f_w", "recon_s_w", "recon_x_cyc_w", "teacher_w", "beta1", "beta2",
)  # fmt: skip
AS_SHIPPED = {"apex", "vgg_w", "new_size", "data_root", "max_iter"}
PAIRS = {
    "adv": "loss_gen_adv", "recon_x": "loss_gen_recon_x", "recon_xp": "loss_gen_recon_xp",
    "recon_s": "loss_gen_recon_s", "recon_f": "loss_gen_recon_f", "recon_x_cyc": "loss_gen_cycrecon_x",
}  # fmt: skip
SUMS = {"id": "loss_id", "pid": "loss_pid", "recon_id": "loss_gen_recon_id", "teacher": "loss_teacher"}


def _resnet(width: int, blocks: list[int]) -> nn.Module:
    net = ResNet(width, list(blocks), 2)
    net.relu, net.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    net.avgpool, net.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(32 * width, 1000)
    return net


def _resnet50(pretrained: bool = False) -> nn.Module:
    return _resnet(64, [3, 4, 6, 3])


def _stand_in_torchvision() -> None:
    package = types.ModuleType("torchvision")
    package.__path__ = []
    for name in ("models", "transforms", "datasets", "utils"):
        module = types.ModuleType(f"torchvision.{name}")
        setattr(package, name, module)
        sys.modules[module.__name__] = module
    package.models.resnet50 = _resnet50
    package.datasets.ImageFolder = type("ImageFolder", (), {})
    sys.modules["torchvision"] = package


def check_folder(folder: str) -> Path:
    """The folder as a path; ValueError where it is no checkout of the public code."""
    root = Path(folder)
    for name in ("trainer.py", CONFIG):
        if not (root / name).is_file():
            raise ValueError(f"{folder} holds no {name}: not a checkout of the public code")
    return root


def _make_small(config: Config) -> None:
    """Let the checkout build networks of our widths, where it has those of ResNet-50 written out: the ResNet itself, the
    heads, and the quarters in which G's appearance code is cut.
    """
    import networks  # both from the checkout
    import reIDmodel

    def thin(pretrained: bool = False) -> nn.Module:
        return _resnet(config.ID_width, config.ID_blocks)

    sys.modules["torchvision"].models.resnet50 = thin
    built = reIDmodel.ClassBlock.__init__

    def head(self, channels, ids, dropout=0.5, *rest) -> None:  # noqa: ANN001, ANN002
        built(self, 32 * config.ID_width, ids, dropout, False, config.ID_features)

    reIDmodel.ClassBlock.__init__ = head
    generator = networks.AdaINGen

    def decode(self, structure, code):  # noqa: ANN001, ANN202
        parameters = [
            torch.cat(
                [getattr(self, f"mlp_{kind}{k + 1}")(part) for k, part in enumerate(code.chunk(4, 1))], 1
            )
            for kind in "wb"
        ]
        self.assign_adain_params(*parameters, self.dec)
        return self.dec(structure)

    generator.decode = decode


class Public:
    """The public trainer with our weights. ValueError where the folder is no checkout of it.

    ``small``: networks of the model's own widths and every option of its configuration, instead of the shipped ones.
    """

    def __init__(self, model: DGNet, folder: str, device: str, *, small: bool = False) -> None:
        root = check_folder(folder)
        _stand_in_torchvision()
        if device == "cpu":
            torch.Tensor.cuda = lambda self, *args, **kwargs: self
            nn.Module.cuda = lambda self, *args, **kwargs: self
        torch.backends.cudnn.benchmark = True  # as its training script sets it
        sys.path.insert(0, str(root))
        if small:
            _make_small(model.config)
        import trainer  # from the checkout

        trainer.load_network = lambda network, name: network  # its weights come from our teacher below
        stride = model.config.teacher_stride if small else 1
        trainer.load_config = lambda name: {"stride": stride}
        self.options = yaml.safe_load((root / CONFIG).read_text(encoding="utf-8"))
        config = model.config
        options = config.to_dict()
        names = set(self.options) & set(options) - AS_SHIPPED if small else OVERRIDDEN
        self.options |= {name: options[name] for name in names}
        # vgg_w stays 0 and apex off; both are as shipped
        self.options["teacher"] = "ours"
        self.trainer = trainer.DGNet_Trainer(self.options)
        self._load(model)
        self.trainer.to(device)
        self.rates = [(m, m.p) for m in self.trainer.id_a.modules() if isinstance(m, nn.Dropout)]

    def _load(self, model: DGNet) -> None:
        net, encoder, teacher = self.trainer, model.appearance_encoder, model.teachers[0]
        for module, entries in (
            (net.gen_a, export_state(model, generator_layout(model))),
            (net.dis_a, export_state(model, discriminator_layout(model))),
            (net.id_a, export_state(encoder, encoder_layout(encoder))),
            (net.teacher_model[0], export_state(teacher, encoder_layout(teacher, teacher=True))),
        ):
            module.load_state_dict(entries)

    def set_dropout(self, on: bool) -> None:
        """Dropout and its own random erasing together: both draw numbers of their own."""
        for module, rate in self.rates:
            module.p = rate if on else 0.0
        self.trainer.erasing_p = self.options["erasing_p"] if on else 0.0

    def step(self, batch: Batch, index: int, *, train_encoder: bool) -> dict[str, list[float] | float]:
        net, options = self.trainer, self.options
        options["use_encoder_again"] = 1.0 if train_encoder else -1.0
        (x_a, x_b), (xp_a, xp_b) = batch.x.clone().unbind(), batch.xp.clone().unbind()
        net.update_learning_rate()
        outputs = net.forward(x_a.detach(), x_b.detach(), xp_a.detach(), xp_b.detach())
        pictures = (x_a.detach(), x_b.detach())
        net.dis_update(outputs[0].clone(), outputs[1].clone(), *pictures, options, num_gpu=1)
        net.gen_update(*outputs, *pictures, xp_a, xp_b, *batch.labels, options, index, num_gpu=1)
        terms: dict[str, list[float] | float] = {
            name: [float(getattr(net, f"{theirs}_{stream}")) for stream in "ab"]
            for name, theirs in PAIRS.items()
        }
        terms |= {name: float(getattr(net, theirs)) for name, theirs in SUMS.items()}
        terms["dis"] = [float(net.loss_dis_a), float(net.loss_dis_b)]
        return terms | {"dis_total": float(net.loss_dis_total), "total": float(net.loss_gen_total)}
