"""Maps of features, activation maps that sum to the logits, results for each camera, and their place in the report."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dgnet_fast import visualize
from dgnet_fast.data.datasets import dataset_of
from dgnet_fast.metrics import evaluate_retrieval
from dgnet_fast.models.appearance_encoder import AppearanceEncoder
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.report.tables import read_tables
from dgnet_fast.retrieval import embedding
from dgnet_fast.retrieval.activation import activation_maps, activation_page, channel_weights, overlay
from dgnet_fast.retrieval.embedding import embedding_map, pca
from dgnet_fast.retrieval.extractor import Extractor
from tests.tiny_run import fails, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("visualize") / "run")


def encoder(style, pool="avg"):
    made = AppearanceEncoder(5, style=style, pool=pool, width=2, blocks=(1, 1, 1, 1), features=8,
                             stride=1, generator=torch.Generator().manual_seed(0))  # fmt: skip
    with torch.no_grad():  # BatchNorm that does something
        for name, value in made.state_dict().items():
            if "norm" in name and value.ndim == 1:
                value.copy_(torch.rand(value.shape, generator=torch.Generator().manual_seed(len(name))) + 0.5)
            elif name.endswith("classifier.weight"):
                value.mul_(1000)
    return made.eval()


@pytest.mark.parametrize("style", ["AB", "normal", "PCB"])
def test_a_maps_mean_is_its_logit_but_for_a_constant(style):
    network = encoder(style)
    x = torch.randn(3, 3, 128, 64, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([1, 4, 0])
    maps, found = activation_maps(network, x, classes, upsample=False)
    logits = network(x, BatchNormMode()).logits
    assert found.tolist() == [classes.tolist()] * len(logits)
    for k, (head, scores) in enumerate(zip(network.heads, logits, strict=True)):
        rest = channel_weights(head, classes)[1]
        average = maps[k].mean(dim=(1, 2)) * (4 if style == "PCB" else 1)  # of the head's own strip
        torch.testing.assert_close(average + rest, scores[torch.arange(3), classes], atol=1e-3, rtol=1e-4)


def test_without_classes_each_head_shows_its_likeliest():
    network = encoder("AB", "max")
    x = torch.randn(4, 3, 64, 32)
    maps, classes = activation_maps(network, x, upsample=False)
    logits = network(x, BatchNormMode()).logits
    assert [c.tolist() for c in classes] == [one.argmax(dim=1).tolist() for one in logits]
    assert maps.shape[:2] == (2, 4) and not maps[0].equal(maps[1])


def test_overlay_is_hot_where_the_map_is():
    pictures = torch.full((1, 3, 16, 8), 100, dtype=torch.uint8)
    maps = torch.zeros(1, 4, 2)
    maps[0, 3, 1] = 2.0
    shown = overlay(pictures, maps)[0].int()
    red, _, blue = shown[:, 15, 7]
    assert red > 100 > blue  # jet: red where largest, blue where nothing
    assert shown[2, 0, 0] > 100 > shown[0, 0, 0]
    page = activation_page(pictures, maps[None], ["head"])
    assert (np.asarray(page)[26 : 26 + 128, 4 : 4 + 64] == 100).all()


def test_pca_is_the_singular_value_decomposition():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)) * [5, 3, 1, 0.5, 0.2, 0.1]
    points, share = pca(torch.from_numpy(x))
    centred = x - x.mean(axis=0)
    variances = np.linalg.eigvalsh(np.cov(centred, rowvar=False))[::-1]
    np.testing.assert_allclose(points.var(axis=0, ddof=1), variances[:2], rtol=1e-9)
    np.testing.assert_allclose(share, variances[:2] / variances.sum(), rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.corrcoef(points[:, 0], centred[:, 0])[0, 1]), 1, atol=0.02)
    assert (pca(torch.from_numpy(x))[0] == points).all()
    with pytest.raises(ValueError, match=r"features have shape \(1, 6\)"):
        pca(torch.zeros(1, 6))


def test_embedding_map_draws_every_person(tmp_path):
    rng = np.random.default_rng(1)
    people = np.repeat([3, 7, 9], 5)
    x = torch.from_numpy(rng.normal(size=(15, 8)) + 9 * np.eye(8)[people % 8])
    points = embedding_map(x, people, np.tile([1, 2, 3], 5), tmp_path / "map.png")
    assert (points == pca(x)[0]).all()
    colours = {tuple(c) for c in np.asarray(Image.open(tmp_path / "map.png").convert("RGB")).reshape(-1, 3)}
    assert len(colours) > 30
    with pytest.raises(ValueError, match="method is 'umap'; allowed: pca, tsne"):
        embedding_map(x, people, people, tmp_path / "map.png", method="umap")


def test_tsne_keeps_groups_together():
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("scikit-learn is not installed")
    # In a process of its own: scikit-learn loads a second OpenMP runtime, which other tests look for.
    code = """if True:
        import numpy as np, torch
        from dgnet_fast.retrieval.embedding import tsne
        people = np.repeat([0, 1], 8)
        points = tsne(torch.from_numpy(np.random.default_rng(2).normal(size=(16, 5)) + 20 * people[:, None]))
        centres = [points[people == k].mean(axis=0) for k in (0, 1)]
        print([int(np.argmin([np.linalg.norm(p - c) for c in centres])) for p in points])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str([0] * 8 + [1] * 8), done.stderr


def test_tsne_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match="t-SNE needs scikit-learn, which is not installed"):
        embedding.tsne(torch.zeros(4, 2))


def test_command_and_report(run, capsys):
    model, path = run
    assert visualize.main([str(path), "--people", "3", "--pictures", "2"]) == 0
    out = capsys.readouterr().out
    assert "Retrieval for each query camera" in out and str(path / "visual" / "embedding.png") in out
    dataset = dataset_of(model.config)
    extractor = Extractor.of(model.appearance_encoder, model.config)
    features = [extractor.split(s) for s in (dataset.query, dataset.gallery)]
    rows = {row[0]: row[1:] for row in read_tables(path / "visual" / "cameras.json")[0]["rows"]}
    cameras = np.unique(dataset.query.cameras)
    assert list(rows) == [*(f"camera {c}" for c in cameras), "all"]
    here = dataset.query.cameras == cameras[0]
    wanted = evaluate_retrieval(
        features[0][torch.from_numpy(here)], dataset.query.ids[here], dataset.query.cameras[here],
        features[1], dataset.gallery.ids, dataset.gallery.cameras,
    )  # fmt: skip
    assert rows[f"camera {cameras[0]}"] == [
        wanted.num_valid,
        *(round(100 * v, 1) for v in (wanted.rank[1], wanted.rank[5], wanted.mAP, wanted.mINP)),
    ]
    assert sum(row[0] for name, row in rows.items() if name != "all") == rows["all"][0]
    page = (path / "report.html").read_text()
    assert "class activation maps of the most likely" in page and "Retrieval for each query camera" in page
    assert page.count("data:image/png;base64,") >= 2


def test_mistakes_are_one_line(run, tmp_path, capsys):
    (tmp_path / "embedding.png").write_bytes(b"mine")
    assert "holds embedding.png already" in fails(capsys, visualize.main, [run[1], "--out", tmp_path])
    assert (tmp_path / "embedding.png").read_bytes() == b"mine"
    assert "no run folder: give --out DIR" in fails(capsys, visualize.main, ["nowhere"])
    line = fails(capsys, visualize.main, ["nowhere", "--out", tmp_path / "x"])
    assert "no such checkpoint: nowhere" in line and not (tmp_path / "x").exists()
    assert "--people is 0; allowed: at least 1" in fails(capsys, visualize.main, [run[1], "--people", 0])
