"""DG-Net's networks written plainly, as the paper describes them: what the fast ones are measured against.

Nothing is fused: upsampling, padding, convolution, norm and activation are a call each, the appearance MLPs are
eight `nn.Sequential`, BatchNorm is PyTorch's own. Parameters have the names of `dgnet_fast.models`, so that one
state dict serves both (`copy_weights`). Only the paper's options are there; `check_options` refuses others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_fast.config import Config
from dgnet_fast.models.appearance_encoder import AppearanceEncoder
from dgnet_fast.models.dgnet import DGNet

SLOPE = 0.2
STRIPS = 4


def check_options(config: Config) -> None:
    """ValueError for options whose networks or losses are not written here."""
    allowed = {
        "ID_style": "AB", "single": "gray", "teacher_style": 0, "train_bn": True, "ID_upsample": True,
        "gen.activ": "lrelu", "gen.dec": "basic", "gen.dropout": 0, "gen.mlp_norm": "none", "gen.non_local": 0,
        "gen.pad_type": "reflect", "gen.tanh": False, "dis.activ": "lrelu", "dis.gan_type": "lsgan",
        "dis.non_local": 0, "dis.norm": "none", "dis.pad_type": "reflect",
    }  # fmt: skip
    for name, value in allowed.items():
        branch, _, leaf = name.rpartition(".")
        got = getattr(getattr(config, branch) if branch else config, leaf)
        if got != value:
            raise ValueError(f"{name} is {got!r}; the plain networks are written for {value!r} only")


class LayerNorm(nn.Module):
    """Per sample over C, H, W, unbiased deviation, eps outside the root, per-channel affine."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        mean, std = flat.mean(1).view(-1, 1, 1, 1), flat.std(1).view(-1, 1, 1, 1)
        x = (x - mean) / (std + 1e-5)
        return x * self.gamma.view(1, -1, 1, 1) + self.beta.view(1, -1, 1, 1)


def adain(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Adaptive instance normalisation as one instance norm over B·C channels."""
    planes = x.reshape(1, -1, *x.shape[2:])
    return F.instance_norm(planes, weight=scale.flatten(), bias=shift.flatten(), eps=1e-5).view_as(x)


class Block(nn.Module):
    """(upsample →) pad → conv → norm → activation. norm: none, in, ln or adain."""

    def __init__(
        self, n_in: int, n_out: int, kernel: int, stride: int = 1, padding: int = 0, *, norm: str = "none",
        act: bool = True, dilation: int = 1, upsample: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.padding, self.kind, self.act, self.upsample = padding, norm, act, upsample
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, dilation=dilation)
        self.norm = LayerNorm(n_out) if norm == "ln" else None

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if self.upsample:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.padding:
            x = F.pad(x, (self.padding,) * 4, mode="reflect")
        x = self.conv(x)
        if self.kind == "adain":
            x = adain(x, scale, shift)
        elif self.kind == "in":
            x = F.instance_norm(x, eps=1e-5)
        elif self.kind == "ln":
            x = self.norm(x)
        return F.leaky_relu(x, SLOPE) if self.act else x


class Residual(nn.Module):
    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = Block(channels, channels, 3, 1, 1, norm=norm)
        self.conv2 = Block(channels, channels, 3, 1, 1, norm=norm, act=False)

    def forward(self, x: Tensor, *codes: Tensor) -> Tensor:
        return self.conv2(self.conv1(x, *codes[:2]), *codes[2:]) + x


class Aspp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // 2
        self.point = Block(channels, width, 1, norm="in", act=False)
        self.reduce = nn.ModuleList(Block(channels, width, 1, norm="in") for _ in range(3))
        self.dilated = nn.ModuleList(
            Block(width, width, 3, 1, d, norm="in", act=False, dilation=d) for d in (3, 6, 9)
        )
        self.fuse = Block(4 * width, 2 * channels, 1, norm="in", act=False)

    def forward(self, x: Tensor) -> Tensor:
        branches = [d(r(x)) for r, d in zip(self.reduce, self.dilated, strict=True)]
        return self.fuse(torch.cat([self.point(x), *branches], dim=1))


class StructureEncoder(nn.Module):
    """E_s: (B, 1, H, W) → (B, 8·dim, H/4, W/4)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim = config.gen.dim
        stem = [Block(1, dim, 3, 2, 1, norm="in"), Block(dim, 2 * dim, 3, 1, 1, norm="in")]
        dim *= 2
        for _ in range(config.gen.n_downsample - 1):
            stem += [Block(dim, dim, 3, 1, 1, norm="in"), Block(dim, 2 * dim, 3, 2, 1, norm="in")]
            dim *= 2
        self.stem = nn.ModuleList(stem)
        self.residual = nn.ModuleList(Residual(dim, "in") for _ in range(config.gen.n_res))
        self.aspp = Aspp(dim)
        self.channels = 2 * dim

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.stem, *self.residual):
            x = block(x)
        return self.aspp(x)


class Decoder(nn.Module):
    """G with its eight MLPs: structure code (B, C, h, w) and appearance code (B, 4·id_dim) → (B, 3, H, W).

    `upsample_kernel` 3 has the multiplications that the 5×5 convolutions need at least (nine taps for
    twenty-five after nearest upsampling): for counting, not for use.
    """

    def __init__(self, config: Config, channels: int, upsample_kernel: int = 5) -> None:
        super().__init__()
        gen = config.gen
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.Linear(gen.id_dim, gen.mlp_dim), nn.LeakyReLU(SLOPE), nn.Linear(gen.mlp_dim, gen.mlp_dim),
                nn.LeakyReLU(SLOPE), nn.Linear(gen.mlp_dim, 2 * channels),
            )
            for _ in range(2 * STRIPS)
        )  # fmt: skip
        self.residual = nn.ModuleList(Residual(channels, "adain") for _ in range(gen.n_res))
        upsample = []
        for _ in range(gen.n_downsample):
            padding = upsample_kernel // 2
            upsample.append(
                Block(channels, channels // 2, upsample_kernel, 1, padding, norm="ln", upsample=True)
            )
            channels //= 2
        self.upsample = nn.ModuleList(upsample)
        self.refine = nn.ModuleList(Block(channels, channels, 3, 1, 1) for _ in range(2))
        self.to_rgb = Block(channels, 3, 1, act=False)

    def forward(self, structure: Tensor, code: Tensor) -> Tensor:
        quarters = code.chunk(STRIPS, dim=1)
        scales = [mlp(q).chunk(2, dim=1) for mlp, q in zip(self.mlps[:STRIPS], quarters, strict=True)]
        shifts = [mlp(q).chunk(2, dim=1) for mlp, q in zip(self.mlps[STRIPS:], quarters, strict=True)]
        x = structure
        for block, scale, shift in zip(self.residual, scales, shifts, strict=False):
            x = block(x, scale[0], shift[0], scale[1], shift[1])
        for block in (*self.upsample, *self.refine):
            x = block(x)
        return self.to_rgb(x)


class Scale(nn.Module):
    """One net of D."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim = config.dis.dim
        stem = [Block(3, dim, 1), Block(dim, dim, 3, 1, 1), Block(dim, dim, 3, 2, 1)]
        for _ in range(config.dis.n_layer - 1):
            wider = min(2 * dim, 512)
            stem += [Block(dim, dim, 3, 1, 1), Block(dim, wider, 3, 2, 1)]
            dim = wider
        self.stem = nn.ModuleList(stem)
        self.residual = nn.ModuleList(Residual(dim, "none") for _ in range(config.dis.n_res))
        self.to_score = nn.Conv2d(dim, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in (*self.stem, *self.residual):
            x = block(x)
        return self.to_score(x)


class Discriminator(nn.Module):
    """D: (B, 3, H, W) → one score map per scale."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.scales = nn.ModuleList(Scale(config) for _ in range(config.dis.num_scales))

    def forward(self, x: Tensor) -> list[Tensor]:
        scores = []
        for net in self.scales:
            scores.append(net(x))
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return scores


class Bottleneck(nn.Module):
    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        n_out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(n_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, n_out, 1, bias=False), nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """Bottleneck ResNet, names as torchvision's."""

    def __init__(self, width: int, blocks: list[int], last_stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage, (count, stride) in enumerate(zip(blocks, (1, 2, 2, last_stride), strict=True)):
            layers = []
            for k in range(count):
                layers.append(Bottleneck(channels, width * 2**stage, stride if k == 0 else 1))
                channels = 4 * width * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class Head(nn.Module):
    def __init__(self, channels: int, features: int, ids: int, dropout: float) -> None:
        super().__init__()
        self.bottleneck, self.norm = nn.Linear(channels, features), nn.BatchNorm1d(features)
        self.dropout, self.classifier = nn.Dropout(dropout), nn.Linear(features, ids)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.norm(self.bottleneck(x))
        return features, self.classifier(self.dropout(features))


class Encoder(nn.Module):
    """E_a (two heads, code detached) or a teacher (one head): (B, 3, H, W) → code, logits, features."""

    def __init__(self, config: Config, like: AppearanceEncoder) -> None:
        super().__init__()
        self.pool = F.adaptive_avg_pool2d if like.pool == "avg" else F.adaptive_max_pool2d
        stride = next(iter(like.backbone.layer4)).conv2.stride[0]
        self.backbone = ResNet(config.ID_width, config.ID_blocks, stride)
        self.heads = nn.ModuleList(
            Head(self.backbone.channels, config.ID_features, config.ID_class, head.dropout)
            for head in like.heads
        )

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        x = self.backbone(x)
        code = self.pool(x, (STRIPS, 1)).flatten(1).detach()
        pooled = self.pool(x, (1, 1)).flatten(1)
        features, logits = zip(*(head(pooled) for head in self.heads), strict=True)
        return code, list(logits), list(features)


@torch.no_grad()
def plain_decoder(model: DGNet, upsample_kernel: int = 5) -> Decoder:
    """The plain decoder with the weights of a model's MLPs and G."""
    decoder = Decoder(model.config, model.structure_encoder.channels, upsample_kernel)
    state = dict(model.decoder.state_dict())
    mlp = model.mlp.state_dict()
    for k in range(2 * STRIPS):
        for layer in range(3):
            state[f"mlps.{k}.{2 * layer}.weight"] = mlp[f"weights.{layer}"][k]
            state[f"mlps.{k}.{2 * layer}.bias"] = mlp[f"biases.{layer}"][k]
    if upsample_kernel == 5:
        decoder.load_state_dict(state)
    return decoder.to(next(model.parameters()))


def copy_weights(plain: nn.Module, fast: nn.Module) -> nn.Module:
    """`plain` with the weights, buffers, device and dtype of the fast module of the same names."""
    plain.load_state_dict(fast.state_dict())
    return plain.to(next(fast.parameters()))
