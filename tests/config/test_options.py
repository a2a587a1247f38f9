"""The option tree: defaults, files, overrides, and errors that help."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from dgnet_fast.config import Config, ConfigError, from_dict, load_config, option_names, walk
from dgnet_fast.config.device import convolutions_tried
from dgnet_fast.config.presets import PRESETS, preset
from tests.tiny import tiny_config

PUBLIC = Path(__file__).parents[1] / "cases" / "public_latest.yaml"


def write(folder: Path, text: str) -> Path:
    path = folder / "options.yaml"
    path.write_text(text)
    return path


def flat(config: Config) -> dict:
    return {name: getattr(owner, spec.name) for name, spec, owner in walk(config)}


def test_defaults_are_valid_and_documented():
    config = Config().validate()
    assert (config.lr_g, config.lr_d, config.lr2, config.weight_decay) == (1e-4, 1e-4, 2e-3, 5e-4)
    assert (config.recon_x_w, config.recon_xp_w, config.recon_id_w, config.B_w) == (5, 5, 0.5, 0.2)
    assert (config.max_iter, config.warm_iter, config.step_size) == (100000, 30000, 60000)
    assert (config.gen.dim, config.dis.dim, config.gen.n_res, config.dis.num_scales) == (16, 32, 4, 3)
    for name, spec, _ in walk(config):
        assert len(spec.metadata["help"]) > 5, name
    assert len(set(option_names())) == len(option_names()) > 80


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_handed_out_afresh(name):
    tree = preset(name)
    from_dict(tree)
    tree.setdefault("gen", {})["dim"] = -1
    tree["seed"] = -1
    from_dict(preset(name))


def test_paper_preset_is_the_papers_run():
    paper = from_dict(preset("paper"))
    public = load_config(PUBLIC)
    own = {"data", "data_root", "teacher", "display_size", "ID_class", "log_iter"}
    differing = {k for k, v in flat(public).items() if flat(paper)[k] != v}
    assert differing <= own, differing


def test_public_file_loads_unchanged():
    config, told = load_config(PUBLIC), yaml.safe_load(PUBLIC.read_text())
    for branch in ("gen", "dis"):
        told |= {f"{branch}.{key}": value for key, value in told.pop(branch).items()}
    found = flat(config)
    assert {k: found[k] for k in told} == told
    assert isinstance(config.beta1, float) and config.beta1 == 0
    assert isinstance(config.recon_x_w, float) and isinstance(config.batch_size, int)
    assert config.teacher == "best"
    assert (config.data, config.data_root) == ("folder", "../Market/pytorch/")


def test_the_datas_kind_in_a_file_wins_over_the_public_rule(tmp_path):
    path = write(tmp_path, "data: market1501\ndata_root: Market-1501\n")
    assert load_config(path).data == "market1501"


@pytest.mark.parametrize(
    "key, closest",
    [("recon_x_weight", "recon_x_w"), ("Batch_size", "batch_size"), ("gen.n_downsmaple", "gen.n_downsample")],
)
def test_an_unknown_key_is_named_with_the_closest(key, closest):
    branch, _, inner = key.rpartition(".")
    tree = {branch: {inner: 1}} if branch else {key: 1}
    with pytest.raises(ConfigError, match=rf"unknown option '{key}'.*did you mean '{closest}'"):
        from_dict(tree)


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("batch_size", "many", "a whole number"),
        ("batch_size", 2.5, "a whole number"),
        ("batch_size", True, "a whole number"),
        ("batch_size", None, "a whole number"),
        ("batch_size", 0, "at least"),
        ("lr_g", "fast", "a number"),
        ("lr_g", [1], "a number"),
        ("lr_g", -1e-4, "at least 0"),
        ("lr_g", float("nan"), "a finite number"),
        ("lr_g", "inf", "a finite number"),
        ("max_iter", float("inf"), "a whole number"),
        ("erasing_p", 1.5, "at most 1"),
        ("train_bn", "perhaps", "true or false"),
        ("train_bn", 2, "true or false"),
        ("teacher", 3, "text"),
        ("pool", "median", "max, avg"),
        ("ID_style", "BA", "AB, normal, PCB"),
        ("teacher_style", 5, "0, 1, 2, 3, 4"),
        ("vgg_w", 1, "0"),
        ("ID_blocks", 3, "a list"),
        ("ID_blocks", [3, 4, "x", 3], "a whole number"),
        ("ID_blocks", [3, 4, 6], "four numbers from 1 to 128"),
        ("ID_blocks", [3, 4, 0, 3], "four numbers from 1 to 128"),
        ("gen", 3, "a mapping of options"),
        ("gen.dec", "slim", "basic, series, parallel"),
        ("gen.mlp_norm", "bn", "none, in"),
        ("dis.norm", "gn", "none, in, ln, bn"),
        ("dis.gan_type", "hinge", "lsgan, nsgan, wgan"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(key, value, allowed):
    branch, _, inner = key.rpartition(".")
    with pytest.raises(ConfigError) as caught:
        from_dict({branch: {inner: value}} if branch else {key: value})
    message = str(caught.value)
    bad = "x" if isinstance(value, list) and "x" in value else value
    assert message.startswith(f"{key} is ") and f"allowed: {allowed}" in message
    assert str(bad) in message


def test_values_are_brought_to_their_type():
    config = from_dict(
        {
            "lr_g": "1e-3",
            "max_iter": 5e3,
            "batch_size": "4",
            "train_bn": "off",
            "norm_id": 1,
            "teacher": None,
            "ID_blocks": "2, 2 2,2",
            "gen": {"non_local": True, "dropout": 0},
        }
    )
    assert (config.lr_g, config.max_iter, config.batch_size) == (1e-3, 5000, 4)
    assert (type(config.max_iter), type(config.gen.dropout), type(config.gen.non_local)) == (int, float, int)
    assert (config.train_bn, config.norm_id, config.teacher) == (False, True, "")
    assert (config.ID_blocks, config.gen.non_local) == ([2, 2, 2, 2], 1)


@pytest.mark.parametrize(
    "text, expected", [("off", "off"), ("'off'", "off"), ("on", "auto"), ("bf16", "bf16")]
)
def test_amp_as_yaml_reads_it(tmp_path, text, expected):
    assert load_config(write(tmp_path, f"amp: {text}\n")).amp == expected


def test_dotted_overrides_lie_over_the_file():
    config = load_config(PUBLIC, {"gen.dim": 8, "batch_size": 2, "teacher": ""})
    assert (config.gen.dim, config.gen.mlp_dim, config.batch_size, config.teacher) == (8, 512, 2, "")


def test_replace_makes_a_validated_copy():
    config = tiny_config()
    other = config.replace(gen__dim=8, **{"dis.dim": 16, "seed": 3})
    assert (other.gen.dim, other.dis.dim, other.seed) == (8, 16, 3)
    assert (config.gen.dim, config.dis.dim, config.seed) == (4, 4, 0)
    other.ID_blocks.append(1)
    assert config.ID_blocks == [1, 1, 1, 1]
    with pytest.raises(ConfigError, match="gen.dim is 0; allowed: at least 1"):
        config.replace(gen__dim=0)
    with pytest.raises(ConfigError, match="unknown option 'gen.dims'"):
        config.replace(gen__dims=3)


@pytest.mark.parametrize(
    "config", [Config(), tiny_config(camera_pattern=r"c(\d+)", lr_g=1e-7), load_config(PUBLIC)]
)
def test_yaml_round_trip(tmp_path, config):
    path = write(tmp_path, config.to_yaml())
    assert load_config(path) == config
    assert from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "text, problem",
    [("a: [1", "not valid YAML"), ("- 1\n- 2\n", "holds a list; allowed: a mapping"), ("7", "holds a int")],
)
def test_a_file_that_holds_no_options_is_named(tmp_path, text, problem):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file: .*nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is empty"):
        load_config(write(tmp_path, ""))


def test_the_code_length_must_fit_the_encoder():
    with pytest.raises(ConfigError, match=r"gen.id_dim is 1024, but .*32 \* ID_width = 2048"):
        Config().replace(gen__id_dim=1024)
    Config().replace(gen__id_dim=1024, ID_width=32)


def test_pictures_must_fit_the_downsampling_and_the_padding():
    with pytest.raises(ConfigError, match="crop_image_width is 90; with gen.n_downsample 2 .*multiple of 4"):
        Config().replace(crop_image_width=90)
    with pytest.raises(ConfigError, match="pictures of 64x32 .*code 8 wide.*at least 10"):
        Config().replace(crop_image_height=64, crop_image_width=32)
    for change in ({"gen__pad_type": "zero"}, {"gen__pad_type": "replicate"}, {"gen__n_downsample": 1}):
        Config().replace(crop_image_height=64, crop_image_width=32, **change)
    Config().replace(crop_image_height=80, crop_image_width=40)


def test_only_grey_can_be_jittered():
    assert Config(gray_jitter=0.3).validate().gray_jitter == 0.3
    with pytest.raises(ConfigError, match="gray_jitter is 0.3; with single edge allowed: 0"):
        Config(gray_jitter=0.3, single="edge").validate()


def test_cudnn_tries_its_algorithms_within_a_run_alone():
    before = torch.backends.cudnn.benchmark
    with convolutions_tried(torch.device("cpu")):
        assert torch.backends.cudnn.benchmark is before
    with pytest.raises(KeyError), convolutions_tried(torch.device("cuda", 1)):
        assert torch.backends.cudnn.benchmark is True
        raise KeyError
    assert torch.backends.cudnn.benchmark is before
