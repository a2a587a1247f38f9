"""G, its AdaIN blocks and the MLPs against straightforward formulations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dgnet_fast.config import GeneratorConfig
from dgnet_fast.models import decoder, layers
from dgnet_fast.models.decoder import AdainBlock, AdainParameters, AppearanceMlp, Decoder

EXACT = {"rtol": 1e-11, "atol": 1e-11}
ACTIVATIONS = {
    "relu": nn.ReLU,
    "lrelu": lambda: nn.LeakyReLU(0.2),
    "prelu": nn.PReLU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module):
    module = module.double()
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.copy_(0.3 * noise(*parameter.shape, seed=200 + k))
    return module


def options(**changes):
    return GeneratorConfig(**{"dim": 4, "id_dim": 6, "mlp_dim": 7, "n_downsample": 1, "n_res": 2} | changes)


def separate_mlp(mlp: AppearanceMlp, k: int, config: GeneratorConfig) -> nn.Sequential:
    """MLP number ``k`` as a plain nn.Sequential with its own weights."""
    layers = []
    for n, (weight, bias) in enumerate(zip(mlp.weights, mlp.biases, strict=True)):
        linear = nn.Linear(weight.shape[2], weight.shape[1]).double()
        linear.load_state_dict({"weight": weight[k], "bias": bias[k]})
        layers.append(linear)
        if n < 2:
            if config.mlp_norm == "in":
                layers.append(nn.LayerNorm(weight.shape[1], eps=1e-5, elementwise_affine=False))
            activation = ACTIVATIONS[config.activ]()
            if config.activ == "prelu":
                activation = activation.double()
                activation.load_state_dict({"weight": mlp.slopes[n][k]})
            layers.append(activation)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    "activ, norm",
    [
        ("lrelu", "none"),
        ("relu", "none"),
        ("prelu", "none"),
        ("prelu", "in"),
        ("selu", "in"),
        ("tanh", "none"),
    ],
)
def test_the_batched_mlps_are_eight_separate_ones(activ, norm):
    config = options(activ=activ, mlp_norm=norm)
    mlp = filled(AppearanceMlp(config, channels=5))
    code = noise(3, 24, seed=9)
    adain = mlp(code)
    assert adain.scale.shape == adain.shift.shape == (3, 8, 5)
    for k in range(8):
        strip = k % 4
        expected = separate_mlp(mlp, k, config)(code[:, 6 * strip : 6 * strip + 6])
        ours = adain.scale if k < 4 else adain.shift
        torch.testing.assert_close(ours[:, 2 * strip], expected[:, :5], **EXACT)  # first AdaIN of block k
        torch.testing.assert_close(ours[:, 2 * strip + 1], expected[:, 5:], **EXACT)  # second


def test_mlps_fitted_to_codes_start_centred():
    config = GeneratorConfig(id_dim=32, mlp_dim=24)
    mlp = AppearanceMlp(config, 8, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    codes = 5 + torch.rand(1, 128) * torch.randn(4000, 128)
    plain = mlp(codes).scale
    weights = [w.detach().clone() for w in mlp.weights]
    mlp.fit_to(codes, spread=0.2)
    torch.testing.assert_close(mlp.weights[1], weights[1])
    torch.testing.assert_close(mlp.weights[2], 0.2 * weights[2])
    quarters = codes.view(-1, 4, 32).transpose(0, 1).repeat(2, 1, 1)
    hidden = torch.baddbmm(mlp.biases[0].unsqueeze(1), quarters, mlp.weights[0].transpose(1, 2))
    assert hidden.mean(dim=1).abs().max() < 1e-4  # centred, whatever the code's mean
    centred = (quarters - quarters.mean(dim=1, keepdim=True)) / quarters.std(dim=1, keepdim=True)
    wide = quarters.std(dim=1, keepdim=True) > 0.1 * codes.std(dim=0).mean()
    wanted = (torch.where(wide, centred, 0) @ weights[0].transpose(1, 2)).std(dim=1)
    torch.testing.assert_close(hidden.std(dim=1), wanted, rtol=0.2, atol=0.1)
    fitted = mlp(codes)
    assert abs(fitted.scale.mean() - 1) < 0.1 and abs(fitted.shift.mean()) < 0.1
    share = fitted.scale.std(dim=0).mean() / (fitted.scale - 1).abs().mean()
    assert (
        share > 2 * plain.std(dim=0).mean() / plain.abs().mean()
    )  # what tells pictures apart, against what does not


def test_a_code_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 20\); expected \(batch, 24\)"):
        AppearanceMlp(options(), 5)(torch.zeros(3, 20))


def test_layers_take_their_columns_and_later_ones_share_the_last():
    adain = AdainParameters(noise(2, 8, 3), noise(2, 8, 3, seed=1))
    for index, (scale, shift) in enumerate(adain.layers(12)):
        column = min(index, 7)
        assert torch.equal(scale, adain.scale[:, column]) and torch.equal(shift, adain.shift[:, column])


def conv(block, x, amount):
    return F.conv2d(F.pad(x, (amount,) * 4, mode="reflect"), block.conv.weight, block.conv.bias)


def adain_of(x, scale, shift):
    return F.instance_norm(x, eps=1e-5) * scale[:, :, None, None] + shift[:, :, None, None]


def block_formula(kind, block, x, first, second):
    y = x
    for half, codes, last in ((block.conv1, first, False), (block.conv2, second, True)):
        if kind == "basic":
            y = adain_of(conv(half, y, 1), *codes)
        elif kind == "series":
            y = conv(half, y, 1)
            y = F.instance_norm(adain_of(y, *codes) + y, eps=1e-5)
        else:
            y = F.instance_norm(conv(half, y, 1) + adain_of(y, *codes), eps=1e-5)
        y = y if last else F.leaky_relu(y, 0.2)
    return x + y


@pytest.mark.parametrize("kind", ["basic", "series", "parallel"])
def test_adain_blocks(kind):
    block = filled(AdainBlock(5, options(dec=kind)))
    x = noise(3, 5, 6, 4)
    first, second = (noise(3, 5, seed=3), noise(3, 5, seed=4)), (noise(3, 5, seed=5), noise(3, 5, seed=6))
    torch.testing.assert_close(block(x, first, second), block_formula(kind, block, x, first, second), **EXACT)


def decoder_formula(decoder, structure, adain, kind="basic"):
    x = structure
    layers = adain.layers(2 * len(decoder.residual))
    for k, block in enumerate(decoder.residual):
        x = block_formula(kind, block, x, *layers[2 * k : 2 * k + 2])
    if decoder.attention is not None:
        x = decoder.attention(x)
    for block in decoder.upsample:
        x = conv(block, x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), 2)
        std, mean = torch.std_mean(x, dim=(1, 2, 3), correction=1, keepdim=True)
        x = (x - mean) / (std + 1e-5)
        x = x * block.norm.gamma[:, None, None] + block.norm.beta[:, None, None]
        x = F.leaky_relu(x, 0.2)
    for block in decoder.refine:
        x = F.leaky_relu(conv(block, x, 1), 0.2)
    return F.conv2d(x, decoder.to_rgb.conv.weight, decoder.to_rgb.conv.bias)


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_downsample": 2, "n_res": 4}, {"n_res": 5}, {"non_local": 1}, {"dec": "parallel"}],
    ids=str,
)
def test_the_whole_decoder(changes):
    config = options(**changes)
    decoder = filled(Decoder(config, channels=16))
    structure, adain = noise(2, 16, 6, 5), AdainParameters(noise(2, 8, 16, seed=1), noise(2, 8, 16, seed=2))
    got = decoder(structure, adain)
    factor = 2**config.n_downsample
    assert got.shape == (2, 3, 6 * factor, 5 * factor)
    assert (decoder.attention is not None) == bool(config.non_local)
    torch.testing.assert_close(got, decoder_formula(decoder, structure, adain, config.dec), **EXACT)


def test_a_pictures_decode_does_not_depend_on_its_batch():
    decoder = filled(Decoder(options(n_downsample=2), channels=16))
    structure, adain = noise(4, 16, 6, 5), AdainParameters(noise(4, 8, 16, seed=1), noise(4, 8, 16, seed=2))
    whole = decoder(structure, adain)
    for n in range(4):
        alone = decoder(structure[n : n + 1], AdainParameters(adain.scale[n : n + 1], adain.shift[n : n + 1]))
        torch.testing.assert_close(whole[n : n + 1], alone, **EXACT)


def test_channels_halve_at_every_upsampling():
    decoder = Decoder(options(n_downsample=3), channels=64)
    assert [b.conv.weight.shape[:2] for b in decoder.upsample] == [(32, 64), (16, 32), (8, 16)]
    assert [tuple(b.conv.weight.shape[2:]) for b in decoder.upsample] == [(5, 5)] * 3
    assert decoder.to_rgb.conv.weight.shape == (3, 8, 1, 1)


def test_dropout_acts_on_the_structure_code():
    decoder = filled(Decoder(options(dropout=0.5), channels=16))
    structure, adain = noise(2, 16, 6, 5), AdainParameters(noise(2, 8, 16, seed=1), noise(2, 8, 16, seed=2))
    torch.manual_seed(3)
    got = decoder.train()(structure, adain)
    torch.manual_seed(3)
    dropped = F.dropout(structure, 0.5)
    torch.testing.assert_close(got, decoder_formula(decoder, dropped, adain), **EXACT)
    torch.testing.assert_close(
        decoder.eval()(structure, adain), decoder_formula(decoder, structure, adain), **EXACT
    )


@pytest.mark.parametrize("dec", ["basic", "series", "parallel"])
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_codes_come_in_any_precision(amp, dec):
    """Stored codes need not have the precision in which G computes; there they do not change it."""
    config = options(n_downsample=2, dec=dec)
    decoder, mlp = filled(Decoder(config, channels=16)).float(), filled(AppearanceMlp(config, 16)).float()
    structure, code = noise(2, 16, 6, 5).bfloat16(), noise(2, 24, seed=1).bfloat16()
    found = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp is not None):
            found.append(decoder(structure.to(dtype), mlp(code.to(dtype))))
            mixed = decoder(structure.to(dtype), AdainParameters(*(p.to(dtype) for p in mlp(code))))
        assert found[-1].dtype == mixed.dtype == (amp or torch.float32)
        assert (mixed - found[-1]).abs().max() <= 0.05 * found[-1].abs().max()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=2e-2 if amp else 1e-3, atol=2e-2 if amp else 1e-3)


@pytest.mark.parametrize("pad_type", ["reflect", "zero"])
def test_norms_of_phases_and_later_biases_change_no_number(monkeypatch, pad_type):
    """As on CUDA, where a norm reads a picture in phases and what follows a convolution adds its bias."""
    torch.manual_seed(0)
    config = GeneratorConfig(pad_type=pad_type)
    made = Decoder(config, 32).double()
    for name, weight in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    structure = torch.randn(2, 32, 5, 4, dtype=torch.float64, requires_grad=True)
    adain = AdainParameters(*torch.rand(2, 2, 8, 32, dtype=torch.float64))
    leaves, how = [structure, *made.parameters()], {"allow_unused": True, "materialize_grads": True}
    results = []
    for later in (False, True):
        for place in (layers, decoder):
            monkeypatch.setattr(place, "follower_adds_bias", lambda _, later=later: later)
        y = made(structure, adain)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves, **how)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * (1 + one.abs().max().item()))
