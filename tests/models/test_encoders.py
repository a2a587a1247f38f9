"""E_s, E_a and the ResNet below it against straightforward formulations and known sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgnet_fast.checkpoints.pretrained import load_imagenet
from dgnet_fast.checkpoints.public_layout import encoder_layout
from dgnet_fast.config import Config, GeneratorConfig
from dgnet_fast.models.appearance_encoder import (
    AppearanceEncoder,
    Head,
    appearance_input_size,
    build_appearance_encoder,
    build_teacher,
    upsample_small,
)
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.resnet import ResNet
from dgnet_fast.models.structure_encoder import StructureEncoder
from dgnet_fast.models.structure_input import structure_input

EXACT = {"rtol": 1e-10, "atol": 1e-10}
RUNNING, BATCH = BatchNormMode(), BatchNormMode(1, "batch")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module):
    """Weights as initialised, everything of one dimension drawn, so that no bias and no norm is idle."""
    module = module.double()
    with torch.no_grad():
        for k, tensor in enumerate([*module.parameters(), *module.buffers()]):
            if tensor.ndim == 1:
                tensor.copy_(1 + 0.3 * noise(*tensor.shape, seed=400 + k).clamp(-2, 2))
    return module


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- ResNet


def torchvision_layout(blocks, width=64) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a bottleneck ResNet's entries in torchvision's file, without ``fc``."""
    shapes = {}

    def conv_and_norm(conv, norm, n_out, n_in, kernel):
        shapes[f"{conv}.weight"] = (n_out, n_in, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (n_out,)
        shapes[f"{norm}.num_batches_tracked"] = ()

    conv_and_norm("conv1", "bn1", width, 3, 7)
    channels = width
    for stage, number in enumerate(blocks):
        inner = width * 2**stage
        for k in range(number):
            name = f"layer{stage + 1}.{k}"
            conv_and_norm(f"{name}.conv1", f"{name}.bn1", inner, channels, 1)
            conv_and_norm(f"{name}.conv2", f"{name}.bn2", inner, inner, 3)
            conv_and_norm(f"{name}.conv3", f"{name}.bn3", 4 * inner, inner, 1)
            if k == 0:
                conv_and_norm(f"{name}.downsample.0", f"{name}.downsample.1", 4 * inner, channels, 1)
            channels = 4 * inner
    return shapes


def test_resnet_50_is_torchvisions():
    with torch.device("meta"):
        resnet = ResNet()
    assert {k: tuple(v.shape) for k, v in resnet.state_dict().items()} == torchvision_layout((3, 4, 6, 3))
    assert count(resnet) == 25_557_032 - (2048 * 1000 + 1000) == 23_508_032


def resnet_formula(state, x, blocks, last_stride, training=False):
    def norm(x, name):
        mean, variance = (state[f"{name}.running_{k}"].clone() for k in ("mean", "var"))
        return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], training)

    x = F.relu(norm(F.conv2d(x, state["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, number in enumerate(blocks):
        for k in range(number):
            name = f"layer{stage + 1}.{k}"
            stride = (1, 2, 2, last_stride)[stage] if k == 0 else 1
            y = F.relu(norm(F.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1"))
            y = F.relu(
                norm(F.conv2d(y, state[f"{name}.conv2.weight"], stride=stride, padding=1), f"{name}.bn2")
            )
            y = norm(F.conv2d(y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if k == 0:
                x = norm(
                    F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1"
                )
            x = F.relu(x + y)
    return x


@pytest.mark.parametrize("last_stride, size", [(1, (4, 3)), (2, (2, 2))])
def test_resnet_values_and_sizes(last_stride, size):
    blocks = (2, 1, 1, 2)
    resnet = filled(ResNet(4, blocks, last_stride))
    x = noise(3, 3, 64, 48)
    for mode, training in ((RUNNING, False), (BATCH, True)):
        expected = resnet_formula(resnet.state_dict(), x, blocks, last_stride, training)
        assert expected.shape == (3, 128, *size)
        torch.testing.assert_close(resnet(x, mode), expected, **EXACT)


def test_resnet_groups_are_separate_batches():
    resnet = filled(ResNet(2, (1, 1, 1, 1), 1))
    x = noise(6, 3, 32, 32)
    state = resnet.state_dict()
    expected = torch.cat([resnet_formula(state, part, (1, 1, 1, 1), 1, True) for part in x.chunk(2)])
    torch.testing.assert_close(resnet(x, BatchNormMode(2, "batch")), expected, **EXACT)


# --- appearance encoder


def encoder(style="AB", **options):
    generator = torch.Generator().manual_seed(0)
    small = {"stride": 1, "width": 2, "blocks": (1, 1, 1, 1), "features": 12, "generator": generator}
    return filled(AppearanceEncoder(7, style=style, **small, **options))


X = noise(3, 3, 128, 64)  # gives a map of 8×4: strips of two rows


def feature_map(made):
    return resnet_formula(made.backbone.state_dict(), X, (1, 1, 1, 1), 1)


def head_formula(head, x):
    norm = head.norm
    features = F.batch_norm(
        F.linear(x, head.bottleneck.weight, head.bottleneck.bias),
        norm.running_mean, norm.running_var, norm.weight, norm.bias,
    )  # fmt: skip
    return features, F.linear(features, head.classifier.weight, head.classifier.bias)


@pytest.mark.parametrize("style, pool", [("AB", "max"), ("AB", "avg"), ("normal", "avg"), ("normal", "max")])
def test_appearance_encoder_values(style, pool):
    made = encoder(style, pool=pool)
    out, y = made(X, RUNNING), feature_map(made)
    reduce = torch.amax if pool == "max" else torch.mean
    assert out.code.shape == (3, 4 * 64)
    for channel in (0, 1, 63):
        for strip in range(4):
            expected = reduce(y[:, channel, 2 * strip : 2 * strip + 2], dim=(1, 2))
            torch.testing.assert_close(out.code[:, 4 * channel + strip], expected, **EXACT)
    whole = reduce(y, dim=(2, 3))
    assert len(out.logits) == len(out.features) == {"AB": 2, "normal": 1}[style]
    for head, features, logits in zip(made.heads, out.features, out.logits, strict=True):
        expected = head_formula(head, whole)
        torch.testing.assert_close((features, logits), expected, **EXACT)


def test_pcb_has_a_head_a_strip():
    made = encoder("PCB", pool="max")  # its pooling is the average whatever is asked
    out, y = made(X, RUNNING), feature_map(made)
    strips = torch.stack([y[:, :, 2 * s : 2 * s + 2].mean(dim=(2, 3)) for s in range(4)], dim=2)
    torch.testing.assert_close(out.code, strips.flatten(1), **EXACT)
    assert len(out.logits) == 4 and out.features[0].shape == (3, 256)
    for s, head in enumerate(made.heads):
        torch.testing.assert_close(
            (out.features[s], out.logits[s]), head_formula(head, strips[:, :, s]), **EXACT
        )


def test_image_losses_reach_the_encoder_through_its_code_except_in_style_ab():
    assert not encoder("AB")(X, BATCH).code.requires_grad
    for style in ("normal", "PCB"):
        made = encoder(style)
        made(X, BATCH).code.square().sum().backward()
        assert made.backbone.conv1.weight.grad.norm() > 0


def test_norm_id_scales_the_code_of_style_normal_to_length_one():
    plain, scaled = encoder("normal"), encoder("normal", normalise_code=True)
    code = plain(X, RUNNING).code
    torch.testing.assert_close(
        scaled(X, RUNNING).code, code / code.norm(dim=1, keepdim=True), rtol=1e-8, atol=0
    )
    torch.testing.assert_close(scaled(X, RUNNING).logits, plain(X, RUNNING).logits, **EXACT)
    for style in ("AB", "PCB"):
        torch.testing.assert_close(
            encoder(style, normalise_code=True)(X, RUNNING).code, encoder(style)(X, RUNNING).code, **EXACT
        )


@pytest.mark.parametrize("style", ["AB", "normal", "PCB"])
def test_without_dropout_a_pass_is_deterministic_whatever_the_mode_flag(style):
    made = encoder(style)
    first = made.train()(X, BATCH)
    torch.testing.assert_close(made.eval()(X, BATCH).logits, first.logits, rtol=0, atol=0)
    torch.manual_seed(0)
    one = made(X, BATCH, dropout=True)
    other = made(X, BATCH, dropout=True)
    assert all((a - b).abs().max() > 1e-5 for a, b in zip(one.logits, other.logits, strict=True))
    torch.testing.assert_close(one.code, first.code, rtol=0, atol=0)


@pytest.mark.parametrize("style, shares", [("AB", [0.5, 0.75]), ("normal", [0.5]), ("PCB", [0.5] * 4)])
def test_dropout_shares_of_the_heads(style, shares):
    assert [head.dropout for head in encoder(style).heads] == shares
    torch.manual_seed(0)
    for share in shares[-1:]:
        head = Head(8, 400, 400, share, None)
        with torch.no_grad():
            head.classifier.weight.copy_(torch.eye(400))  # logits are the dropped features
        features, logits = head(torch.randn(50, 8), BATCH, True)
        kept = logits != 0
        assert abs(1 - kept.float().mean().item() - share) < 0.02
        torch.testing.assert_close(logits[kept], features[kept] / (1 - share))


def test_pcb_drops_the_pooled_strips():
    made = encoder("PCB")
    with torch.no_grad():
        for head in made.heads:
            head.bottleneck.weight.zero_()
            head.bottleneck.weight[:64].copy_(torch.eye(64))  # features are the strips
            head.bottleneck.bias.zero_()
            head.norm.running_mean.zero_()
            head.norm.bias.zero_()
    torch.manual_seed(0)
    features = torch.stack([f[:, :64] for f in made(X, RUNNING, dropout=True).features])
    alive = torch.stack([f[:, :64] for f in made(X, RUNNING).features]) != 0
    assert abs((features[alive] == 0).double().mean().item() - 0.5) < 0.06


def test_heads_start_as_the_paper_says():
    torch.manual_seed(0)
    head = Head(512, 256, 100, 0.5, torch.Generator().manual_seed(0))
    assert abs(head.bottleneck.weight.std().item() / (2 / 256) ** 0.5 - 1) < 0.02
    assert abs(head.classifier.weight.std().item() / 0.001 - 1) < 0.02
    assert (head.bottleneck.bias == 0).all() and (head.classifier.bias == 0).all()


def test_small_pictures_are_doubled():
    x = noise(2, 3, 128, 64)
    torch.testing.assert_close(
        upsample_small(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3), rtol=0, atol=0
    )
    assert upsample_small(x, False) is x
    tall = noise(2, 3, 129, 64)
    assert upsample_small(tall) is tall
    assert appearance_input_size(Config()) == (256, 128)
    assert appearance_input_size(Config(crop_image_height=128, crop_image_width=64)) == (256, 128)
    small = Config(crop_image_height=128, crop_image_width=64, ID_upsample=False)
    assert appearance_input_size(small) == (128, 64)


@pytest.mark.parametrize("style, stride", [("AB", 1), ("AB", 2), ("normal", 2), ("PCB", 1)])
def test_the_stride_follows_the_style(style, stride):
    config = Config(ID_class=3, ID_style=style, ID_width=1, ID_blocks=[1] * 4, ID_stride=stride)
    if style != "AB":
        config.ID_stride = 3 - stride  # has no say here
    made = build_appearance_encoder(config)
    assert made.backbone(torch.zeros(1, 3, 64, 64), RUNNING).shape[2] == {1: 4, 2: 2}[stride]


def test_the_teacher_is_a_normal_network_with_average_pooling_and_its_own_stride():
    config = Config(ID_class=3, ID_width=1, ID_blocks=[1] * 4, pool="max", ID_stride=1)
    made = build_teacher(config, stride=2)
    assert (made.style, made.pool, len(made.heads), made.ids) == ("normal", "avg", 1, 3)
    assert made.backbone(torch.zeros(1, 3, 64, 64), RUNNING).shape[2] == 2


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="style is 'BA'; allowed: AB, normal, PCB"):
        AppearanceEncoder(3, style="BA", width=1, blocks=(1, 1, 1, 1))


def test_imagenet_weights_load_strictly(tmp_path):
    source, made = filled(ResNet(2, (1, 1, 1, 1))).float(), AppearanceEncoder(3, width=2, blocks=(1, 1, 1, 1))
    heads = {k: v.clone() for k, v in made.heads.state_dict().items()}
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "resnet.pth"
    torch.save(state | {"fc.weight": torch.ones(1000, 64), "fc.bias": torch.ones(1000)}, path)
    load_imagenet(made, path)
    for name, value in source.state_dict().items():
        torch.testing.assert_close(made.backbone.state_dict()[name], value, rtol=0, atol=0)
    for name, value in heads.items():
        torch.testing.assert_close(made.heads.state_dict()[name], value, rtol=0, atol=0)
    del state["layer1.0.conv1.weight"]
    torch.save(state | {"layer9.weight": torch.ones(1), "conv1.weight": torch.ones(3, 3, 7, 7)}, path)
    with pytest.raises(ValueError, match=r"missing \['layer1.0.conv1.*extra \['layer9.*other shape \['conv1"):
        load_imagenet(made, path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="resnet.pth is not a readable weight file"):
        load_imagenet(made, path)
    with pytest.raises(ValueError, match="no such weight file"):
        load_imagenet(made, tmp_path / "nowhere.pth")


# --- structure encoder


def structure_formula(net, x, tanh=False):
    def block(b, x, padding, stride=1, dilation=1, active=True):
        x = F.pad(x, (padding,) * 4, mode="reflect") if padding else x
        x = F.conv2d(x, b.conv.weight, b.conv.bias, stride=stride, dilation=dilation)
        x = F.instance_norm(x, eps=1e-5)
        return F.leaky_relu(x, 0.2) if active else x

    for k, b in enumerate(net.stem):  # 3×3/2, 3×3, then [3×3, 3×3/2] a further downsampling
        x = block(b, x, 1, 2 if k == 0 or (k > 1 and k % 2) else 1)
    for r in net.residual:
        x = x + block(r.conv2, block(r.conv1, x, 1), 1, active=False)
    aspp = net.aspp
    branches = [block(aspp.point, x, 0, active=False)]
    for reduce, dilated, d in zip(aspp.reduce, aspp.dilated, (3, 6, 9), strict=True):
        branches.append(block(dilated, block(reduce, x, 0), d, dilation=d, active=False))
    x = block(aspp.fuse, torch.cat(branches, dim=1), 0, active=False)
    return torch.tanh(x) if tanh else x


@pytest.mark.parametrize("downsample", [1, 2, 3])
@pytest.mark.parametrize("tanh", [False, True])
def test_structure_encoder(downsample, tanh):
    net = filled(StructureEncoder(GeneratorConfig(dim=2, n_downsample=downsample, n_res=2, tanh=tanh)))
    size = 10 * 2**downsample
    x = noise(2, 1, size + 2**downsample, size)
    got = net(x)
    assert net.channels == 2 * 2 * 2**downsample and got.shape == (2, net.channels, 11, 10)
    torch.testing.assert_close(got, structure_formula(net, x, tanh), **EXACT)
    for n in range(2):  # a picture's code does not depend on its batch
        torch.testing.assert_close(net(x[n : n + 1]), got[n : n + 1], **EXACT)


def test_grey_input_is_the_mean_of_the_channels():
    x = noise(2, 3, 4, 5).requires_grad_()
    torch.testing.assert_close(structure_input(x), (x[:, :1] + x[:, 1:2] + x[:, 2:]) / 3, **EXACT)
    structure_input(x).sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 1 / 3))
    with pytest.raises(ValueError, match="single is 'colour'; allowed: gray, edge"):
        structure_input(x, "colour")


def test_edge_input_marks_the_edges():
    x = torch.full((1, 3, 32, 32), -2.0)
    x[:, :, :, 16:] = 2.0
    torch.manual_seed(0)
    edges = structure_input(x, "edge")
    assert edges.shape == (1, 1, 32, 32)
    at = edges[0, 0, 8:24].mean(dim=0) > 0  # columns; noise of 0.1 around -0.5 and 0.5
    assert at[15:17].any() and not at[:14].any() and not at[18:].any()
    assert abs(edges[0, 0, :, :10].std().item() - 0.1) < 0.02


# --- all networks at the paper's size


def test_parameter_counts_of_the_paper():
    with torch.device("meta"):
        model = DGNet(Config(ID_class=751, ID_stride=1))
    millions = {name: count(getattr(model, name)) / 1e6 for name in ("structure_encoder", "mlp", "decoder")}
    assert round(sum(millions.values()), 1) == 13.4
    assert count(nn.ModuleList([model.structure_encoder, model.mlp, model.decoder])) == sum(
        p.numel() for p in model.generator_parameters()
    )
    assert round(count(model.discriminator) / 1e6, 1) == 1.0
    with_unused = count(model.appearance_encoder) + 2048 * 1000 + 1000  # the file's ImageNet classifier
    assert round(with_unused / 1e6, 1) == 28.4
    unused = encoder_layout(model.appearance_encoder).unused
    assert sum(v.numel() for v in unused.values()) == 2048 * 1000 + 1000
    assert model.structure_encoder.channels == model.decoder.channels == 128


def test_the_networks_need_the_number_of_identities():
    with pytest.raises(ValueError, match="ID_class is 0"):
        DGNet(Config())


def test_the_seed_alone_decides_the_weights():
    config = Config(ID_class=3, ID_width=1, ID_blocks=[1] * 4)
    config.gen.dim, config.gen.id_dim, config.gen.mlp_dim, config.dis.dim = 2, 32, 4, 2
    torch.manual_seed(1)
    one = DGNet(config).state_dict()
    torch.manual_seed(2)
    other = DGNet(config).state_dict()
    differing = [k for k in one if not torch.equal(one[k], other[k])]
    assert differing == []


def test_jittered_grey_leaves_grey_as_it_is_and_moves_colours():
    torch.manual_seed(0)
    grey = torch.randn(64, 1, 2, 2).expand(-1, 3, -1, -1)
    torch.testing.assert_close(structure_input(grey, jitter=0.5), grey[:, :1], rtol=1e-4, atol=1e-5)
    red = torch.zeros(4096, 3, 1, 1)
    red[:, 0] = 1
    weight = structure_input(red, jitter=0.5).flatten()  # of the first channel
    assert abs(weight.mean() - 1 / 3) < 0.03
    assert weight.std() == pytest.approx(0.5 * (2 / 3) ** 0.5, rel=0.05)  # three numbers less their mean
    assert torch.equal(structure_input(red, jitter=0.0), red.mean(dim=1, keepdim=True))
