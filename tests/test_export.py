"""Exported graphs: equal to the model at batch sizes that the export never saw, and saying what they take."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from dgnet_fast import export
from dgnet_fast.checkpoints import graphs as exporting
from dgnet_fast.checkpoints.fingerprint import fingerprint
from dgnet_fast.checkpoints.graphs import Encoder, Generator, check, decompositions, example, save_archive
from dgnet_fast.data import denormalize, normalize
from dgnet_fast.ops.registry import TABLE
from dgnet_fast.retrieval.features import extract_features
from tests.tiny_run import fails, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("export") / "run", gen__n_res=1)


def pictures(count, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 40, 24), generator=generator, dtype=torch.uint8)


def features_and_codes(model, x):
    return extract_features(model.appearance_encoder, normalize(x)), model.encode(normalize(x))[1]


def test_networks_agree_with_the_model_whatever_numbers_they_take(run):
    model, x = run[0], pictures(3)
    features, codes = features_and_codes(model, x)
    inputs = {"uint8": x, "unit": x.float() / 255, "normalised": normalize(x)}
    for kind, value in inputs.items():
        ours = Encoder(model, kind)(value)
        torch.testing.assert_close(ours[0], features, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours[1], codes, atol=1e-5, rtol=1e-4)
    wanted = model.swap(normalize(x), normalize(x.flip(0)))
    made = {k: Generator(model, k)(v, v.flip(0)) for k, v in inputs.items()}
    torch.testing.assert_close(made["normalised"], wanted, atol=1e-4, rtol=1e-4)
    assert (made["uint8"].int() - denormalize(wanted).int()).abs().max() <= 1
    torch.testing.assert_close(made["unit"] * 255, made["uint8"].float(), atol=0.51, rtol=0)


@pytest.mark.slow
def test_onnx_encoder(run, tmp_path, capsys):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, path = run
    file = tmp_path / "new" / "encoder.onnx"
    assert export.main([str(path), "--network", "encoder", "--input", "uint8", "--out", str(file)]) == 0
    assert "normalisation inside" in capsys.readouterr().out
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        x = pictures(count, seed=count)
        found = session.run(None, {"pictures": x.numpy()})
        for ours, theirs in zip(features_and_codes(model, x), found, strict=True):
            np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-5, rtol=1e-4)
    said = {p.key: p.value for p in onnx.load(file).metadata_props}
    assert (said["network"], said["input"], said["normalisation"]) == ("encoder", "uint8", "inside")
    assert (said["height"], said["width"], said["weights"]) == ("40", "24", fingerprint(model))
    assert list(tmp_path.rglob("*.tmp*")) == []


@pytest.mark.slow
def test_onnx_generator(run, tmp_path, capsys):
    pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, path = run
    file = tmp_path / "generator.onnx"
    words = [str(path), "--network", "generator", "--input", "normalised", "--out", str(file)]
    assert export.main(words) == 0
    assert "normalisation outside" in capsys.readouterr().out
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in (1, 4):
        a, s = normalize(pictures(count, 1)), normalize(pictures(count, 2))
        found = session.run(None, {"appearances": a.numpy(), "structures": s.numpy()})[0]
        np.testing.assert_allclose(found, model.swap(a, s).numpy(), atol=2e-4, rtol=1e-3)
    assert "exists already" in fails(capsys, export.main, words)


def test_archive(run, tmp_path):
    model = run[0]
    assert save_archive(model, "encoder", "unit", tmp_path / "e.pt2", {"input": "unit"}) < 1e-4
    extra = {"dgnet_fast.json": ""}
    program = torch.export.load(tmp_path / "e.pt2", extra_files=extra)
    assert json.loads(extra["dgnet_fast.json"]) == {"input": "unit"}
    assert not [n for n in program.graph.nodes if "dgnet_fast" in str(n.target)]
    x = pictures(5, 1)
    for found, wanted in zip(program.module()(x.float() / 255), features_and_codes(model, x), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(4, 1), (1, 1), (2, 3)])
def test_pooling_by_slices_is_adaptive_pooling(size):
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    found = exporting._adaptive_max_pool2d(x, list(size))
    wanted = torch.nn.functional.adaptive_max_pool2d(x, size, return_indices=True)
    assert found[0].equal(wanted[0]) and found[1].equal(wanted[1])


def test_every_fused_op_has_its_reference():
    ops = {str(op) for op in decompositions()}
    assert {f"dgnet_fast.{name}.default" for name in TABLE} <= ops


def test_a_graph_that_errs_is_refused(run, tmp_path):
    network = Encoder(run[0], "unit")
    assert check(run[0], network, lambda x: network(*x), tmp_path) == 0
    with pytest.raises(ValueError, match="the graph errs by .* allowed: 0.001"):
        check(run[0], network, lambda x: tuple(1.01 * y for y in network(*x)), tmp_path)
    assert example(run[0], network, 2)[0].shape == (2, 3, 40, 24)


def test_a_missing_package_is_named(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    words = [run[1], "--network", "encoder", "--out", tmp_path / "e.onnx"]
    assert "needs onnx, which is not installed: pip install" in fails(capsys, export.main, words)


def test_mistakes_are_one_line(run, tmp_path, capsys):
    words = [run[1], "--network", "encoder", "--out"]
    assert "allowed: a name ending in .onnx, .pt2" in fails(capsys, export.main, [*words, tmp_path / "e.trt"])
    words[0] = "nowhere"
    assert "no such checkpoint: nowhere" in fails(capsys, export.main, [*words, tmp_path / "e.onnx"])
    edge = tiny_run(tmp_path / "edge", single="edge")[1]
    words = [edge, "--network", "generator", "--out", tmp_path / "g.pt2"]
    assert "single is 'edge'" in fails(capsys, export.main, words)
    assert not (tmp_path / "g.pt2").exists()
