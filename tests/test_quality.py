"""Scores of generated sets: Fréchet distance against SciPy, pairs, networks from files, the command."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from dgnet_fast import generate, quality
from dgnet_fast.data import normalize
from dgnet_fast.data.pictures import open_pictures
from dgnet_fast.generation.score_networks import inception, lpips
from dgnet_fast.generation.scores import open_generated, truth_table
from dgnet_fast.metrics import psnr, ssim
from dgnet_fast.metrics.generation import (
    Gaussian,
    frechet_distance,
    mean_ssim,
    same_person_pairs,
)
from dgnet_fast.report.tables import read_tables
from dgnet_fast.retrieval.features import extract_features
from tests.tiny_run import fails, tiny_run

GALLERY = "synthetic:gallery"
SIZE = 40, 24


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("quality") / "run")


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "set"
    words = ["set", str(run[1]), "--source", GALLERY, "--count", "30", "--out", str(folder)]
    assert generate.main(words) == 0
    return folder


class MeanColour(torch.nn.Module):
    def forward(self, pictures: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        x = pictures.to(torch.float32).mean(dim=[2, 3])
        return x if return_features else x[:, :1]


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """A TorchScript file that takes what the public Inception file takes."""
    path = tmp_path_factory.mktemp("script") / "mean.pt"
    torch.jit.script(MeanColour()).save(str(path))
    return path


def gaussian(x, parts=3):
    result = Gaussian()
    for part in np.array_split(x, parts):
        result.add(torch.from_numpy(part))
    return result


def test_gaussian_is_numpys_mean_and_covariance():
    x = np.random.default_rng(0).normal(1e4, 1e-2, (50, 6))  # far from 0: naive sums would cancel
    found = gaussian(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), rtol=1e-6)
    with pytest.raises(ValueError, match="1 pictures have no covariance"):
        _ = gaussian(x[:1], 1).covariance


def test_frechet_distance_is_scipys():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(70, 5)) + 0.5
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    difference = a.mean(axis=0) - b.mean(axis=0)
    wanted = difference @ difference + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    assert frechet_distance(gaussian(a), gaussian(b)) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(gaussian(a), gaussian(a)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(gaussian(a), gaussian(a + 2)) == pytest.approx(5 * 4, rel=1e-9)


def test_fewer_pictures_than_features():
    # Both sets in the same two of ten dimensions: the distance is that of the two dimensions.
    rng = np.random.default_rng(2)
    a, b = np.zeros((4, 10)), np.zeros((5, 10))
    a[:, :2], b[:, :2] = rng.normal(size=(4, 2)), rng.normal(size=(5, 2))
    few = frechet_distance(gaussian(a), gaussian(b))
    assert few == pytest.approx(frechet_distance(gaussian(a[:, :2]), gaussian(b[:, :2])), rel=1e-6)
    with pytest.raises(ValueError, match="10 and 2 long"):
        frechet_distance(gaussian(a), gaussian(a[:, :2]))


def test_pairs_are_of_one_person():
    people = np.array([1, 1, 1, 2, 3, 3, -1, -1, 0, 0])
    pairs = same_person_pairs(people, 200, seed=1)
    assert (people[pairs[:, 0]] == people[pairs[:, 1]]).all() and (pairs[:, 0] != pairs[:, 1]).all()
    assert set(people[pairs].ravel()) == {1, 3}
    assert 60 < (people[pairs[:, 0]] == 3).sum() < 140  # people weigh alike, not pictures
    assert same_person_pairs(np.array([1, 2, -1, -1]), 5).shape == (0, 2)


def test_mean_ssim():
    x = torch.randint(0, 256, (3, 3, 16, 12), dtype=torch.uint8)
    pairs = np.array([[0, 0], [1, 2]])
    assert mean_ssim(x, pairs) == pytest.approx((1 + ssim(x[1:2], x[2:3])[0]) / 2)


def test_networks_from_files(script, tmp_path):
    x = torch.randint(0, 256, (4, 3, 16, 12), dtype=torch.uint8)
    torch.testing.assert_close(inception(script, trusted=True)(x), x.float().mean(dim=(2, 3)))
    first = (
        x.float().mean(dim=(2, 3))[:, :1].double()
    )  # without return_lpips it is called with pictures alone
    np.testing.assert_allclose(
        lpips(script, trusted=True).distance(x, x.flip(0)), (first - first.flip(0)).square().sum(1), rtol=1e-5
    )
    with pytest.raises(ValueError, match="script.* resizes by itself and has no part 'layers'"):
        inception(script, trusted=True, resize="clean")
    with pytest.raises(ValueError, match="no such file: .*nowhere.pt. FID needs the 2015 Inception"):
        inception(tmp_path / "nowhere.pt")
    (tmp_path / "bad.pt").write_bytes(b"no network")
    with pytest.raises(
        ValueError, match="bad.pt is not a readable file of weights.* LPIPS needs torchvision's weights"
    ):
        lpips(tmp_path / "bad.pt", trusted=True)


def table(tables, title):
    return {row[0]: row[1:] for one in tables if one["title"] == title for row in one["rows"]}


def test_command(run, made, script, tmp_path, capsys):
    model = run[0]
    words = [made, run[1], "--real", GALLERY, "--inception", script, "--lpips", script]
    words.append("--trust-scripts")
    words += ["--pairs", 40, "--json", tmp_path / "scores.json"]
    assert quality.main([str(w) for w in words]) == 0
    assert "Generated pictures beside real ones" in capsys.readouterr().out
    tables = read_tables(tmp_path / "scores.json")
    generated, size = open_generated(made)
    assert size == SIZE and len(generated) == 30
    real = open_pictures(GALLERY, model.config)
    ours, theirs = generated.decode(*SIZE), real.decode(*SIZE)

    def distance(features):
        return frechet_distance(gaussian(features(ours).numpy()), gaussian(features(theirs).numpy()))

    scores = table(tables, "Generated pictures beside real ones")
    assert scores["FID (legacy)"][0] == pytest.approx(
        distance(lambda x: x.float().mean(dim=(2, 3))), abs=6e-4, rel=1e-5
    )
    own = distance(lambda x: extract_features(model.appearance_encoder, normalize(x)))
    assert scores["Fréchet distance over the checkpoint's re-id features"][0] == pytest.approx(own, abs=2e-3)
    # the floor: as many real pictures as were generated, against the other real ones
    order, count = np.random.default_rng(0).permutation(len(real)), min(30, len(real) // 2)
    some, rest = (
        gaussian(theirs[k].float().mean(dim=(2, 3)).numpy()) for k in (order[:count], order[count:])
    )
    assert scores["FID (legacy)"][1] == pytest.approx(frechet_distance(some, rest), abs=6e-4, rel=1e-4)
    pairs = same_person_pairs(generated.people, 40)
    assert scores["intra-class SSIM"][0] == pytest.approx(mean_ssim(ours, pairs), abs=6e-5)
    measure = lpips(script, trusted=True).distance
    wanted = measure(ours[pairs[:, 0]], ours[pairs[:, 1]]).mean()
    assert scores["intra-class LPIPS (VGG)"][0] == pytest.approx(wanted, abs=6e-5, rel=1e-5)
    again = table(tables, "Reconstruction of real pictures")
    assert set(again) == {"its own codes", "same person's appearance", "around the cycle"}
    truth = table(tables, "Swaps against the drawn truth")
    copies = truth["structure picture left as it is"][0]
    assert truth["swaps"][0] < copies  # an untrained generator is worse than leaving the picture as it is


def test_a_plain_folder_against_itself(made, tmp_path, capsys):
    words = [made / "pictures", "--real", made / "pictures", "--pairs", 20, "--json", tmp_path / "s.json"]
    assert quality.main([str(w) for w in words]) == 0
    scores = table(read_tables(tmp_path / "s.json"), "Generated pictures beside real ones")
    assert (
        list(scores) == ["intra-class SSIM"]
        and scores["intra-class SSIM"][0] == scores["intra-class SSIM"][1]
    )
    assert "no FID: --inception FILE names its network" in capsys.readouterr().out


def test_truth_is_the_drawn_picture(run, made):
    model = run[0]
    from dgnet_fast.data.datasets import dataset_of
    from dgnet_fast.generation.sets import read_manifest

    split = dataset_of(model.config).gallery
    place = {name: k for k, name in enumerate(split.names)}
    generated, _ = open_generated(made)
    pairs = [(place[r.appearance], place[r.structure]) for r in read_manifest(made)]
    wanted = np.stack([split.truth(i, j, keep_body=True) for i, j in pairs]).transpose(0, 3, 1, 2)
    rows = truth_table(model, made, generated, SIZE)["rows"]
    assert rows[0][1] == round(float(psnr(generated.decode(*SIZE).numpy(), wanted).mean()), 2)


@pytest.mark.parametrize(
    "words, problem",
    [
        (["nowhere", "--real", GALLERY], "no such picture, folder or data set: 'nowhere'"),
        (["SET", "--real", "nowhere"], "no such picture, folder or data set: 'nowhere'"),
        (["SET", "--real", "market1501:train"], "give its folder with --root DIR"),
        (
            ["SET", "--real", GALLERY, "--inception", "no.pt"],
            "no such file: no.pt. FID needs the 2015 Inception",
        ),
        (["SET", "--real", GALLERY, "--pairs", "0"], "--pairs is 0; allowed: at least 1"),
        (["SET", "no", "--real", GALLERY], "no such checkpoint: no"),
    ],
)
def test_mistakes_are_one_line(made, tmp_path, monkeypatch, capsys, words, problem):
    monkeypatch.chdir(tmp_path)
    assert problem in fails(capsys, quality.main, [made if w == "SET" else w for w in words])


def test_a_picture_that_is_gone_is_named(run, tmp_path):
    words = ["set", str(run[1]), "--source", GALLERY, "--count", "2", "--out", str(tmp_path / "s")]
    assert generate.main(words) == 0
    next((tmp_path / "s").rglob("*.png")).unlink()
    with pytest.raises(ValueError, match="1 pictures of the manifest are not there"):
        open_generated(tmp_path / "s")
