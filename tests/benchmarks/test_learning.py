"""The experiments behind docs/learning_experiments.md run, and compare what they say they compare."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import learning, perfect_swaps
from dgnet_fast.checkpoints.teachers import save_teachers
from dgnet_fast.config import from_dict
from dgnet_fast.config.presets import preset
from dgnet_fast.data import load_dataset, normalize
from dgnet_fast.models.appearance_encoder import build_teacher

IDS = 4


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The file of a teacher that was never trained."""
    config = from_dict(preset("small") | {"ID_class": IDS})
    names = load_dataset("synthetic", seed=0, train_identities=IDS, height=64, width=32).class_names
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    made = build_teacher(config, config.teacher_stride, torch.Generator().manual_seed(0))
    save_teachers(path, [made], [config.teacher_stride], names, config)
    return path


def run(tmp_path, *words):
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
    assert learning.main([*words, "--ids", str(IDS), "--json", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.mark.thorough
def test_generator_and_encoder(teacher, tmp_path, capsys):
    options = ["--teacher", str(teacher), "--steps", "2", "--every", "2"]
    squared = run(tmp_path, "generator", *options)
    absolute = run(tmp_path, "generator", *options, "--error", "absolute")
    assert squared["recon_x"][0] == absolute["recon_x"][0]  # the same weights, pictures and codes
    assert squared["recon_x"][1] != absolute["recon_x"][1]
    assert squared["scores"][0]["copy"] == absolute["scores"][0]["copy"]
    asked = run(tmp_path, "generator", *options, "--code", "1")
    assert squared["recon_x"][0] == asked["recon_x"][0] and squared["recon_x"][1] != asked["recon_x"][1]
    plain = run(tmp_path, "generator", *options, "--no-fitted")
    assert plain["recon_x"][0] != squared["recon_x"][0]
    found = run(tmp_path, "encoder", *options, "--lr2", "0.001")
    assert found["pid"][0] == pytest.approx(torch.log(torch.tensor(IDS)).item(), abs=0.05)  # new heads guess
    assert "step 2: pid median" in capsys.readouterr().out
    apart, together = (
        run(tmp_path, "encoder", *options, "--kind", "hard", "--real", "8", "--cosine", "--bf16", *more)
        for more in ((), ("--together",))
    )
    assert apart["pid"] != together["pid"] != found["pid"]
    fresh = run(tmp_path, "encoder", *options, "--lr2", "0.001", "--scratch", "--test-ids", "8")
    assert fresh["pid"] != found["pid"]


def test_the_floors(tmp_path):
    found = run(tmp_path, "floors")
    noise, grey, copy, light, chroma, colourless, halves, recoloured = found.values()
    assert noise["psnr"] > 35 > 25 > grey["psnr"]
    assert (
        halves["clothes_colour"] < light["clothes_colour"] < chroma["clothes_colour"] < copy["clothes_colour"]
    )
    assert colourless["clothes_psnr"] > light["clothes_psnr"]  # PSNR weighs lightness more
    assert halves["psnr"] > 25  # nothing but the clothes differs
    assert 0 < recoloured["clothes_colour"] < light["clothes_colour"]
    assert recoloured["rest_psnr"] > 30  # skin where the cut differs


def test_what_a_code_knows_of_colours(teacher, tmp_path, capsys, monkeypatch):
    """An encoder that is told the answer needs nothing but a linear map; one that knows nothing guesses."""

    def drawn(scene, split, most=0):
        codes, colours = plain(scene, split, most=96)
        return (colours @ mixing if informed else np.zeros((len(colours), 24))), colours

    plain, mixing = learning._codes_and_colours, np.random.default_rng(0).standard_normal((6, 24))
    monkeypatch.setattr(learning, "_codes_and_colours", drawn)
    for informed in (True, False):
        found = run(tmp_path, "colours", "--teacher", str(teacher))
        if informed:
            assert max(found["error"]) < 3 < 10 < min(found["guess"])
        else:
            assert found["error"] == pytest.approx(found["guess"])
    assert "guessing the mean colour" in capsys.readouterr().out


def test_a_drawn_swap_has_the_clothes_of_a_stream_in_the_structure_of_the_other():
    split = load_dataset("synthetic", train_identities=IDS, views_per_identity=4, height=32, width=16).train
    indices = np.array([[0, 9, 5], [4, 2, 14]])
    swaps = perfect_swaps.drawn_swaps(split, indices, 0, np.random.default_rng(0))
    assert swaps.shape == (2, 3, 3, 32, 16) and swaps.dtype == torch.float32

    def as_input(picture):
        return normalize(torch.from_numpy(picture).permute(2, 0, 1)[None])[0]

    for stream, place in np.ndindex(2, 3):
        i, j = int(indices[stream, place]), int(indices[1 - stream, place])
        wanted = as_input(split.truth(i, j, keep_body=True))
        assert any(torch.equal(swaps[stream, place], one) for one in (wanted, wanted.flip(2)))
        assert not torch.equal(wanted, as_input(split.load(j)))


@pytest.mark.thorough
def test_perfect_swaps_teach_e_a(teacher, tmp_path):
    found = []
    for more in ((), ("--without",), ("--lessons", "labels"), ("--lessons", "structure")):
        path = tmp_path / "scores.json"
        options = ["--teacher", str(teacher), "--ids", str(IDS), "--steps", "8", "--json", str(path)]
        assert perfect_swaps.main([*options, *more]) == 0
        found.append(json.loads(path.read_text()))
    assert all(len(one) == 3 for one in found)
    assert all(found[k] != found[j] for k in range(4) for j in range(k))
