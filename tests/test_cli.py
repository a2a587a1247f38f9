"""The commands' options and their errors: one line, no traceback."""

from __future__ import annotations

import pytest

from dgnet_fast import evaluate, teacher, train
from dgnet_fast.cli.config_options import config_from, given_options
from dgnet_fast.config import Config, walk
from dgnet_fast.config.presets import PRESETS, preset
from tests.tiny import NETWORK, arguments
from tests.tiny_run import fails

PROG = "python -m dgnet_fast.train"


def options(*words: str) -> Config:
    return config_from(train.parser().parse_args(list(words)))[0]


@pytest.mark.parametrize("command", [train, teacher])
def test_help_all_lists_every_option_with_its_default(capsys, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # one line an option
    with pytest.raises(SystemExit) as stop:
        command.main(["--help-all"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for line in lines[1:]:  # an example a line
        assert line.strip().find("dgnet-fast") <= 0, line
    for name, spec, owner in walk(Config()):
        hyphens = "root" if name == "data_root" else name.replace("_", "-")
        starts = (f"  --{hyphens} ", f"  --{hyphens},")
        at = next((i for i, line in enumerate(lines) if line.startswith(starts)), None)
        assert at is not None, name
        text = " ".join([lines[at], lines[at + 1]])
        default = getattr(owner, spec.name)
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default) or "''"
        assert spec.metadata["help"] in text and f"default {shown}" in text, name
        for choice in spec.metadata["choices"] or ():
            assert str(choice) in text.split("one of ")[1], name
    for own in ("--config", "--preset", "--out", "--root"):
        assert any(own in line for line in lines)


@pytest.mark.parametrize("words", [["--recon-x-w", "3"], ["--recon_x_w", "3"], ["--recon_x_w=3"]])
def test_options_are_spelled_with_dashes_or_underscores(words):
    assert options(*words).recon_x_w == 3.0


def test_options_of_branches_and_aliases():
    config = options(
        "--gen.n-res", "2", "--dis.n_res", "1", "--root", "there", "--ID_blocks", "1", "2", "1", "1"
    )
    assert (config.gen.n_res, config.dis.n_res, config.data_root) == (2, 1, "there")
    assert config.ID_blocks == [1, 2, 1, 1]


@pytest.mark.parametrize(
    "words, expected",
    [([], True), (["true"], True), (["yes"], True), (["1"], True), (["false"], False), (["off"], False)],
)
def test_bool_options(words, expected):
    assert options("--compile", *words).compile is expected
    assert options("--compile", *words, "--seed", "3").seed == 3


def test_only_given_options_override():
    args = train.parser().parse_args(["--batch-size", "4", "--dis.dim", "8"])
    assert given_options(args) == {"batch_size": 4, "dis.dim": 8}


def test_preset_then_file_then_options(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("gen: {dim: 24}\nteacher_steps: 7\nseed: 5\n")
    config, name = config_from(
        train.parser().parse_args(["--preset", "small", "--config", str(file), "--seed", "6"])
    )
    assert name == "small"
    small = preset("small")
    assert config.crop_image_height == small["crop_image_height"] != Config().crop_image_height  # preset
    assert config.gen.mlp_dim == small["gen"]["mlp_dim"] != Config().gen.mlp_dim
    assert (config.gen.dim, config.teacher_steps) == (24, 7)  # file over preset, branch merged
    assert config.seed == 6  # option over file
    without, name = config_from(train.parser().parse_args(["--config", str(file)]))
    assert name == "config" and without.crop_image_height == Config().crop_image_height


@pytest.mark.parametrize(
    "words, steps",
    [(["--max-iter", "70"], 20), (["--max-iter", "70", "--generator-steps", "3"], 3), ([], 200)],
)
def test_the_first_phase_follows_the_length_of_the_run(monkeypatch, words, steps):
    monkeypatch.setitem(PRESETS["small"], "generator_steps", 200)
    monkeypatch.setitem(PRESETS["small"], "max_iter", 700)
    assert config_from(train.parser().parse_args(words))[0].generator_steps == steps


@pytest.mark.parametrize(
    "words, name",
    [([], "small"), (["--data", "folder"], "paper"), (["--data", "folder", "--preset", "small"], "small")],
)
def test_the_preset_follows_the_data(words, name):
    config, chosen = config_from(train.parser().parse_args(words))
    assert chosen == name
    assert config.max_iter == preset(name).get("max_iter", Config().max_iter)


@pytest.mark.parametrize(
    "word, closest",
    [
        ("--recon_w_x", "--recon-x-w"),
        ("--batchsize", "--batch"),
        ("--gen.dimm", "--gen.dim"),
        ("--rot", "--root"),
    ],
)
def test_an_unknown_option_is_one_line_with_a_suggestion(capsys, word, closest):
    line = fails(capsys, train.main, [word, "3"], status=2)
    assert f"unknown option '{word}'" in line and f"did you mean '{closest}" in line


def test_abbreviations_are_refused(capsys):
    assert "unknown option '--recon_x'" in fails(capsys, train.main, ["--recon_x", "3"], status=2)


def test_an_option_without_its_value(capsys):
    assert "--seed" in fails(capsys, train.main, ["--seed"], status=2)


@pytest.mark.parametrize(
    "words, problem",
    [
        (["--batch_size", "no"], "batch_size is 'no'; allowed: a whole number"),
        (["--gan_w", "-1"], "gan_w is -1.0; allowed: at least 0"),
        (["--preset", "huge"], "preset is 'huge'; allowed: paper, small, showcase"),
        (["--config", "nowhere.yaml"], "no such configuration file: nowhere.yaml"),
        (
            ["--data", "market"],
            "data is 'market'; allowed: synthetic, synthetic-a, synthetic-b, market1501, folder",
        ),
        (["--data", "market1501"], "give its folder with --root DIR"),
        (["--data", "market1501", "--root", "nowhere"], "nowhere"),
        (["--device", "gpu"], "device is 'gpu'; allowed: auto, cpu, cuda or cuda:N"),
        (["--max-steps", "0"], "--max-steps is 0; allowed: at least 1"),
        (["--resume"], "--resume needs the run folder: --out DIR"),
        (["--resume", "--out", "nowhere"], "nothing to resume in nowhere"),
        (["--resume", "--out", "nowhere", "--preset", "small"], "leave out --config and --preset"),
    ],
)
def test_a_users_mistake_is_one_line(capsys, tmp_path, monkeypatch, words, problem):
    monkeypatch.chdir(tmp_path)
    assert problem in fails(capsys, train.main, words)


def test_an_existing_run_is_not_overwritten(capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    line = fails(capsys, train.main, ["--out", tmp_path])
    assert "already holds a run; continue it with --resume" in line
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_a_finished_teacher_is_not_overwritten(capsys, tmp_path):
    for name in ("teacher.pt", "results.json"):
        (tmp_path / name).write_bytes(b"")
    assert "already holds a finished teacher" in fails(capsys, teacher.main, ["--out", tmp_path])


@pytest.mark.parametrize(
    "words, problem",
    [
        (["nowhere"], "no such checkpoint: nowhere"),
        (["."], "holds no checkpoint"),
        (["note.txt"], "note.txt is not a readable checkpoint"),
        (["step_00000001.pt"], "step_00000001.pt is not a readable checkpoint"),
        ([".", "--second-half-weight", "-1"], "--second-half-weight is '-1'; allowed"),
        ([".", "--second-half-weight", "nan"], "--second-half-weight is 'nan'; allowed"),
        ([".", "--max-queries", "0"], "--max-queries is 0; allowed: at least 1"),
        ([".", "--batch", "-3"], "--batch is -3; allowed: at least 1"),
    ],
)
def test_mistakes_of_evaluate(capsys, tmp_path, monkeypatch, words, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("no checkpoint\n")
    if "step" in words[0]:
        (tmp_path / words[0]).write_bytes(b"no checkpoint\n")
    assert problem in fails(capsys, evaluate.main, words)


def test_a_wrong_file_names_its_key(capsys, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("gen:\n  dimm: 3\n")
    assert "unknown option 'gen.dimm'; did you mean 'gen.dim'?" in fails(
        capsys, train.main, ["--config", file]
    )
    file.write_text("gen: 3\n")
    assert "gen is 3; allowed: a mapping" in fails(capsys, train.main, ["--config", file])
    assert "gen is 3; allowed: a mapping" in fails(capsys, train.main, ["--config", file, "--gen.dim", "8"])


def test_more_pictures_a_batch_than_there_are(capsys, tmp_path):
    few = NETWORK | {
        "synthetic_ids": 2,
        "synthetic_views": 4,
        "synthetic_test_ids": 2,
        "batch_size": 9,
        "teacher": "",
        "pretrained": "",
    }
    assert train.main([*arguments(few), "--out", str(tmp_path / "run")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(PROG) and "batch_size is 9; allowed: 2" in last and "to 8, the number" in last
