"""Training the baseline on a generated set too: soft labels, batches, the loss, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dgnet_fast import generate, teacher
from dgnet_fast.checkpoints.teachers import save_teachers
from dgnet_fast.data import normalize
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.training.generated import GeneratedBatches, load_generated, soft_labels
from tests.tiny import NETWORK, arguments, tiny_config, tiny_model
from tests.tiny_run import DATA, fails, tiny_run

OPTIONS = (
    NETWORK | DATA | {"teacher_batch": 6, "teacher_steps": 3, "log_iter": 1, "amp": "off", "device": "cpu"}
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A generated set of twelve pictures, and a teacher file that knows the five people."""
    folder = tmp_path_factory.mktemp("generated")
    _, run = tiny_run(folder / "run")
    words = ["set", str(run), "--source", "synthetic:train", "--count", "12", "--out", str(folder / "set")]
    assert generate.main(words) == 0
    config = tiny_config(**DATA)
    one = tiny_model(config, teachers=1).teachers[0]
    save_teachers(folder / "teacher.pt", [one], [2], [str(k) for k in range(1, 6)], config)
    return folder / "set", folder / "teacher.pt", one, config


def test_soft_labels_are_the_teachers(made):
    _, _, one, config = made
    pictures = torch.randint(0, 256, (5, 3, 40, 24), dtype=torch.uint8)
    found = soft_labels([one], pictures, config, batch=2)
    x = F.interpolate(normalize(pictures), scale_factor=2)
    with torch.no_grad():
        wanted = sum(one(y, BatchNormMode()).logits[0].softmax(dim=1) for y in (x, x.flip(-1))) / 2
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_a_batch_has_its_own_labels():
    pictures = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 20, 12).contiguous() * 30
    batches = GeneratedBatches(
        pictures, torch.eye(8), batch_size=4, seed=1, pad=2, device=torch.device("cpu")
    )
    seen = []
    for step in range(2):
        x, labels = batches.batch(step)
        assert x.shape == (4, 3, 20, 12)
        for picture, label in zip(x, labels, strict=True):
            assert picture.equal(
                normalize(pictures[label.argmax()])
            )  # flat pictures: augmentation changes nothing
            seen.append(int(label.argmax()))
    assert not np.array_equal(seen[:4], seen[4:])


def test_command(made, tmp_path, capsys):
    folder, labeller, _, _ = made
    words = [*arguments(OPTIONS), "--generated", str(folder), "--labeller", str(labeller)]
    assert teacher.main([*words, "--out", str(tmp_path / "with")]) == 0
    assert teacher.main([*arguments(OPTIONS), "--out", str(tmp_path / "without")]) == 0
    lines = (tmp_path / "with" / "teacher" / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    assert len(logged) == 3 and all(one["generated_kl"] > 0 and one["total"] > 1 for one in logged)
    files = [torch.load(tmp_path / k / "teacher.pt")["teachers"][0]["state"] for k in ("with", "without")]
    assert not files[0]["heads.0.classifier.weight"].equal(files[1]["heads.0.classifier.weight"])


def test_mistakes_are_one_line(made, tmp_path, capsys):
    folder, labeller, _, config = made
    words = [*arguments(OPTIONS), "--out", str(tmp_path / "out"), "--generated", str(folder)]
    assert "--labeller FILE" in fails(capsys, teacher.main, words)
    words += ["--labeller", str(labeller)]
    assert "--generated-weight is -1.0" in fails(capsys, teacher.main, [*words, "--generated-weight", "-1"])

    def load(**changes):
        names = [str(k) for k in range(1, 6)]
        return load_generated(folder, str(labeller), config.replace(**changes), names, torch.device("cpu"))

    with pytest.raises(ValueError, match="has pictures of 40x24, the options say 40x32"):
        load(crop_image_width=32)
    with pytest.raises(ValueError, match="12 pictures, fewer than teacher_batch"):
        load(teacher_batch=13)
    with pytest.raises(ValueError, match="none of nowhere"):
        load_generated(folder, "nowhere", config.replace(teacher_batch=6), [], torch.device("cpu"))
    with pytest.raises(ValueError, match="holds no generated set"):
        load_generated(tmp_path, str(labeller), config, [], torch.device("cpu"))
