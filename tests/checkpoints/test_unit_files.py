"""UNIT's models in the files of the public code and in ours."""

from __future__ import annotations

import pytest
import torch

from dgnet_fast.checkpoints.unit import (
    LAYOUTS,
    export_public_unit,
    import_public_unit,
    load_unit,
    load_vgg,
    public_files,
)
from dgnet_fast.config import ConfigError
from dgnet_fast.config.unit import load_unit_config, unit_from_dict
from dgnet_fast.models.unit import Unit, Vgg16
from tests.tiny_unit import tiny_config, tiny_model

PUBLIC_YAML = """
image_save_iter: 10000
image_display_iter: 500
display_size: 16
snapshot_save_iter: 10000
log_iter: 10
max_iter: 1000000
batch_size: 1
weight_decay: 0.0001
beta1: 0
beta2: 0.999
init: kaiming
lr: 1e-4
lr_policy: step
step_size: 100000
gamma: 0.5
gan_w: 1
recon_x_w: 10
recon_h_w: 0
recon_kl_w: 0.01
recon_x_cyc_w: 10
recon_kl_cyc_w: 0.01
vgg_w: 0
gen: {dim: 4, activ: relu, n_downsample: 1, n_res: 1, pad_type: reflect}
dis: {dim: 4, norm: none, activ: lrelu, n_layer: 2, gan_type: lsgan, num_scales: 2, pad_type: reflect}
input_dim_a: 3
input_dim_b: 3
num_workers: 8
new_size: 256
crop_image_height: 24
crop_image_width: 16
data_root: ./datasets/summer2winter/
"""
"""Every option of a file of the public code, with small sizes."""


def test_public_files_go_out_and_come_back(tmp_path):
    model = tiny_model(tiny_config(**{"gen.activ": "prelu", "dis.norm": "bn", "dis.n_layer": 3}))
    export_public_unit(model, tmp_path, 7)
    assert {p.name for p in tmp_path.iterdir()} == {"gen_00000007.pt", "dis_00000007.pt", "config.yaml"}
    again, known = load_unit(tmp_path)
    assert known["step"] == 7
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_entries_have_the_public_names():
    model = Unit(tiny_config(**{"gen.n_downsample": 2, "dis.n_layer": 3, "dis.norm": "ln"}))
    gen, dis = (LAYOUTS[kind](model, 0).slots for kind in ("gen", "dis"))
    for name in (
        "enc.model.0.conv.weight", "enc.model.2.conv.bias", "enc.model.3.model.0.model.1.conv.weight",
        "dec.model.0.model.0.model.0.conv.bias", "dec.model.2.conv.weight", "dec.model.2.norm.gamma",
        "dec.model.4.norm.beta", "dec.model.5.conv.weight",
    ):  # fmt: skip
        assert name in gen
    for name in ("cnns.0.0.conv.weight", "cnns.1.2.norm.gamma", "cnns.1.3.weight", "cnns.0.3.bias"):
        assert name in dis
    slots = {slot.name for d in (0, 1) for kind in LAYOUTS for slot in LAYOUTS[kind](model, d).slots.values()}
    assert slots == set(model.state_dict())


def test_a_public_yaml_file_loads(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(PUBLIC_YAML)
    config = load_unit_config(path)
    assert (config.beta1, config.lr, config.gen.dim, config.data_root) == (
        0.0,
        1e-4,
        4,
        "./datasets/summer2winter/",
    )
    path.write_text(config.to_yaml())
    assert load_unit_config(path) == config


def test_old_statistics_are_passed_over_and_the_rest_is_strict(tmp_path):
    model = tiny_model(tiny_config())
    export_public_unit(model, tmp_path, 1)
    path = tmp_path / "gen_00000001.pt"
    content = torch.load(path, weights_only=True)
    for name in "ab":
        content[name]["enc.model.0.norm.running_mean"] = torch.zeros(4)
        content[name]["enc.model.0.norm.running_var"] = torch.ones(4)
    torch.save(content, path)
    import_public_unit(model, public_files(tmp_path))
    del content["b"]["enc.model.0.conv.bias"]
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"missing enc\.model\.0\.conv\.bias"):
        import_public_unit(model, public_files(path))
    for entry, what in (("enc_style.model.0.conv.weight", "MUNIT"), ("enc.model.0.conv.weight_bar", "sn")):
        content["a"] = {entry: torch.zeros(1)}
        torch.save(content, path)
        with pytest.raises(ValueError, match=what):
            import_public_unit(model, public_files(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_dim_a": 1}, "input_dim_a is 1; allowed: 3"),
        ({"lr_policy": "cosine"}, "lr_policy is 'cosine'; allowed: constant, step"),
        ({"dis": {"norm": "sn"}}, "dis.norm is 'sn'; allowed: none, in, ln, bn"),
        ({"gen": {"style_dim": 8}}, "gen.style_dim belongs to MUNIT"),
        ({"recon_s_w": 1}, "recon_s_w belongs to MUNIT"),
        ({"recon_x_cycw": 1}, "unknown option 'recon_x_cycw'; did you mean 'recon_x_cyc_w'"),
        ({"crop_image_height": 30}, "crop_image_height is 30; .* multiple of 4"),
        ({"crop_image_height": 32, "crop_image_width": 16}, "before the last layer of scale 2 of D"),
        ({"sources": ["one"]}, "at least two"),
        (
            {"sources": list("abcd"), "compile": True},
            "compile is True for 4 domains; allowed: False, or at most 3",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        unit_from_dict(options)


def test_three_domains_are_no_public_file(tmp_path):
    with pytest.raises(ValueError, match="3 domains"):
        export_public_unit(Unit(tiny_config(sources=["a", "b", "c"])), tmp_path, 1)


def test_weights_of_vgg_by_either_name(tmp_path):
    network, path = Vgg16(), tmp_path / "vgg16.pt"
    state = {name.removeprefix("convs."): value for name, value in network.state_dict().items()}
    torch.save(state, path)
    load_vgg(network, path)
    other = Vgg16()
    load_vgg(other, path, "rgb")
    first = "convs.conv1_1.weight"
    assert torch.equal(other.state_dict()[first], network.state_dict()[first].flip(1))
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    renamed = {f"features.{p}.weight": v for p, v in zip(places, list(state.values())[::2], strict=True)}
    renamed |= {f"features.{p}.bias": v for p, v in zip(places, list(state.values())[1::2], strict=True)}
    torch.save(renamed | {"classifier.0.weight": torch.zeros(1)}, path)
    again = Vgg16()
    load_vgg(again, path)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in network.state_dict().items())
    torch.save({"conv1_1.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="missing conv1_1.bias"):
        load_vgg(again, path)
    with pytest.raises(ConfigError, match="Torch7"):
        load_vgg(again, "vgg16.t7")
    with pytest.raises(ConfigError, match="--vgg-weights FILE"):
        load_vgg(again, "")
