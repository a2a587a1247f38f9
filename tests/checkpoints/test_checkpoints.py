"""Checkpoints: atomic, kept in number, strict; the public code's files in and out."""

from __future__ import annotations

import copy
import os

import pytest
import torch

from dgnet_fast.checkpoints import runs
from dgnet_fast.checkpoints.files import load_file, save_atomically
from dgnet_fast.checkpoints.loading import load_for_use
from dgnet_fast.checkpoints.public import export_public, import_public, public_set
from dgnet_fast.checkpoints.runs import checkpoints_in, latest_checkpoint, read_run, restore_model, save_run
from dgnet_fast.checkpoints.teachers import export_public_teacher, load_teachers, save_teachers
from dgnet_fast.models.appearance_encoder import build_teacher
from dgnet_fast.models.batch_norm import BatchNormMode
from tests.tiny import IDS, tiny_batch, tiny_config, tiny_model, tiny_step

NAMES = [f"person{k}" for k in range(IDS)]


def states_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def saved(folder, step=1, model=None, keep=3):
    model = model or tiny_model(tiny_config())
    training = tiny_step(model)
    return save_run(folder, step, model, training.optimisers, training.precision, NAMES, keep=keep)


# --- files


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.pt"
    save_atomically({"x": 1}, path)
    with pytest.raises(Exception, match="(?i)pickle"):
        save_atomically({"x": lambda: 0}, path)  # fails in the middle of the write

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        save_atomically({"x": 2}, path)
    assert load_file(path) == {"x": 1}
    assert [p.name for p in path.parent.iterdir()] == ["file.pt"]  # nothing half-written left behind


def test_the_file_is_complete_before_it_gets_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "file.pt", []
    replace = os.replace

    def look(source, target):
        seen.append(torch.load(source))
        assert not path.exists()
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    save_atomically({"x": 3}, path)
    assert seen == [{"x": 3}] and load_file(path) == {"x": 3}


def test_only_the_newest_are_kept(tmp_path):
    model = tiny_model(tiny_config())
    (tmp_path / "step_note.pt").write_text("not ours")
    for step in (2, 10, 99_999_999, 100_000_000):
        path = saved(tmp_path, step, model, keep=2)
        assert latest_checkpoint(tmp_path) == path
    assert [p.name for p in checkpoints_in(tmp_path)] == ["step_99999999.pt", "step_100000000.pt"]
    assert (tmp_path / "step_note.pt").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", None], ids=["empty", "text", "cut"])
def test_a_broken_file_is_named(tmp_path, content):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    with pytest.raises(ValueError, match="step_00000001.pt is not a readable checkpoint") as caught:
        read_run(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "step_00000001.pt"
    for content in ({"format": "other"}, [1], {"a": {}}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="is not a checkpoint of a dgnet_fast run"):
            read_run(path)
    with pytest.raises(ValueError, match="no such checkpoint"):
        read_run(tmp_path / "step_00000002.pt")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_no_code_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": runs.FORMAT, "x": Evil()}, tmp_path / "step_00000001.pt")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read_run(tmp_path / "step_00000001.pt")
    assert not (tmp_path / "unpickled").exists()


# --- runs


def test_a_restored_run_goes_on_exactly(tmp_path):
    config = tiny_config(teacher="given", teacher_w=0.5, erasing_p=0.5)
    batches = [tiny_batch(config, seed) for seed in range(4)]
    straight = tiny_step(tiny_model(config, 1), dropout=True)
    for k in range(2):
        straight([batches[k]], k)
    path = save_run(tmp_path, 2, straight.model, straight.optimisers, straight.precision, NAMES, keep=1)
    teachers = copy.deepcopy(straight.model.teachers)
    expected = [straight([batches[k]], k).terms for k in (2, 3)]

    content = read_run(path)
    assert (content["step"], content["class_names"]) == (2, NAMES)
    assert content["config"] == config.to_dict()
    assert not any(name.startswith("teachers.") for name in content["model"])
    resumed = tiny_step(tiny_model(config.replace(seed=9), 1), dropout=True)
    resumed.seed = config.seed
    resumed.model.teachers.load_state_dict(teachers.state_dict())
    restore_model(resumed.model, content, path)
    resumed.optimisers.load_state_dict(content["optimisers"])
    resumed.precision.load_state_dict(content["precision"])
    assert [resumed([batches[k]], k).terms for k in (2, 3)] == expected
    assert states_equal(resumed.model.state_dict(), straight.model.state_dict())


def test_restoring_is_strict(tmp_path):
    content = read_run(saved(tmp_path))
    model = tiny_model(tiny_config(seed=1), 1)
    teachers = copy.deepcopy(model.teachers.state_dict())
    restore_model(model, content, tmp_path)
    assert states_equal(model.teachers.state_dict(), teachers)

    def refused(state, *words):
        with pytest.raises(ValueError) as caught:
            restore_model(model, content | {"model": state}, "some/step.pt")
        for word in ("some/step.pt does not fit the options", *words):
            assert word in str(caught.value)

    state = dict(content["model"])
    name = "decoder.to_rgb.conv.weight"
    refused({k: v for k, v in state.items() if k != name}, f"missing ['{name}']")
    refused(state | {"decoder.extra": torch.ones(1)}, "extra ['decoder.extra']")
    refused(state | {name: torch.ones(3, 9, 1, 1)}, name)


def test_the_newest_checkpoint_is_found_from_the_run_or_the_folder(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    path = saved(tmp_path / "checkpoints", 7)
    assert latest_checkpoint(tmp_path) == latest_checkpoint(tmp_path / "checkpoints") == path
    assert latest_checkpoint(path) == path
    for place in (tmp_path, tmp_path / "checkpoints", path):
        model, known = load_for_use(place)
        assert known == {"step": 7, "class_names": NAMES, "source": str(path)}
        assert states_equal(model.state_dict(), tiny_model(tiny_config()).state_dict())


# --- the public code's files


def public(folder, step=30, model=None, config=True):
    model = model or tiny_model(tiny_config())
    folder.mkdir(exist_ok=True)
    if config:
        (folder / "config.yaml").write_text(model.config.to_yaml())
    return model, export_public(model, folder, step)


def test_public_files_hold_a_bare_state_dict_each(tmp_path):
    model, paths = public(tmp_path)
    assert {k: p.name for k, p in paths.items()} == {k: f"{k}_00000030.pt" for k in ("gen", "id", "dis")}
    for path in paths.values():
        content = torch.load(path, weights_only=True)
        assert list(content) == ["a"] and all(isinstance(v, torch.Tensor) for v in content["a"].values())
    other = tiny_model(tiny_config(seed=1))
    unused = import_public(other, paths)
    assert states_equal(other.state_dict(), model.state_dict())
    assert "model.fc.weight" in unused["id"] and unused["dis"] == {}


def test_load_for_use_of_public_files(tmp_path):
    model, paths = public(tmp_path / "run")
    with torch.no_grad():
        model.decoder.to_rgb.conv.bias.add_(1)
    export_public(model, tmp_path / "run", 40)
    for place, step in ((tmp_path / "run", 40), (paths["id"], 30), (paths["gen"], 30)):
        loaded, known = load_for_use(place)
        assert known["step"] == step and known["class_names"] is None
        assert known["files"] == ["dis", "gen", "id"]
        expected = model.decoder.to_rgb.conv.bias - int(step == 30)
        torch.testing.assert_close(loaded.decoder.to_rgb.conv.bias, expected)
        assert torch.equal(loaded.mlp.weights[0], model.mlp.weights[0])


def test_a_run_of_the_public_code_keeps_its_files_a_folder_deeper(tmp_path):
    model, _ = public(tmp_path / "checkpoints", config=False)
    (tmp_path / "config.yaml").write_text(model.config.to_yaml())
    for place in (tmp_path, tmp_path / "checkpoints"):
        assert load_for_use(place)[1]["step"] == 30


def test_the_number_of_identities_is_read_from_the_file(tmp_path):
    model, _ = public(tmp_path)
    (tmp_path / "config.yaml").write_text(model.config.replace(ID_class=751).to_yaml())
    assert load_for_use(tmp_path)[0].config.ID_class == IDS


def test_e_a_alone_is_enough_to_evaluate(tmp_path):
    model, paths = public(tmp_path)
    paths["gen"].unlink(), paths["dis"].unlink()
    loaded, known = load_for_use(tmp_path)
    assert known["files"] == ["id"]
    assert states_equal(loaded.appearance_encoder.state_dict(), model.appearance_encoder.state_dict())


def test_what_is_missing_or_does_not_fit_is_said(tmp_path):
    model, paths = public(tmp_path / "run", config=False)
    with pytest.raises(ValueError, match="needs the options it was trained with: give --config FILE"):
        load_for_use(tmp_path / "run")
    options = tmp_path / "options.yaml"
    options.write_text(model.config.to_yaml())
    assert load_for_use(paths["id"], config_file=options)[1]["step"] == 30
    options.write_text(model.config.replace(ID_features=8).to_yaml())
    with pytest.raises(ValueError, match="id_00000030.pt does not fit .*classifier1.add_block.0"):
        load_for_use(tmp_path / "run", config_file=options)
    options.write_text(model.config.to_yaml())
    content = torch.load(paths["gen"])
    content["a"]["dec.model.9.gamma"] = torch.ones(1)
    torch.save(content, paths["gen"])
    with pytest.raises(ValueError, match="gen_00000030.pt .*extra dec.model.9.gamma; --allow-extra"):
        load_for_use(tmp_path / "run", config_file=options)
    load_for_use(tmp_path / "run", config_file=options, allow_extra=True)
    torch.save({"b": {}}, paths["id"])
    with pytest.raises(ValueError, match="id_00000030.pt is not a public DG-Net checkpoint"):
        load_for_use(tmp_path / "run", config_file=options)
    paths["id"].unlink()
    with pytest.raises(ValueError, match="holds no checkpoint"):
        load_for_use(tmp_path / "run", config_file=options)


def test_a_named_options_file_must_exist(tmp_path):
    public(tmp_path)  # with a config.yaml beside it, which must not stand in silently
    with pytest.raises(ValueError, match="typo.yaml"):
        load_for_use(tmp_path, config_file=tmp_path / "typo.yaml")


def test_public_set_takes_the_newest_or_the_named(tmp_path):
    _, first = public(tmp_path, 9)
    _, second = public(tmp_path, 100_000_000)
    assert public_set(tmp_path) == second
    assert public_set(first["dis"]) == first


# --- teachers


def teachers_of(config, count=1):
    return [build_teacher(config, k + 1, torch.Generator().manual_seed(k)) for k in range(count)]


def test_our_teachers_come_back(tmp_path):
    config = tiny_config()
    made = teachers_of(config, 2)
    path = tmp_path / "run" / "teacher.pt"
    save_teachers(path, made, [1, 2], NAMES, config)
    x = torch.randn(2, 3, 80, 48, generator=torch.Generator().manual_seed(0))
    for name in (path, path.parent):  # the file, or its folder
        found = load_teachers(config.replace(teacher=str(name)), NAMES)
        assert len(found) == 2
        for one, two in zip(found, made, strict=True):
            assert torch.equal(one(x, BatchNormMode()).logits[0], two(x, BatchNormMode()).logits[0])
    both = load_teachers(config.replace(teacher=f"{path}, {path.parent}"), NAMES)
    assert len(both) == 4
    assert load_teachers(config, NAMES) == []


def test_a_teacher_of_other_people_is_refused(tmp_path):
    config = tiny_config(teacher=str(tmp_path / "teacher.pt"))
    save_teachers(tmp_path / "teacher.pt", teachers_of(config), [1], NAMES, config)
    swapped = [NAMES[0], NAMES[2], NAMES[1], *NAMES[3:]]
    with pytest.raises(ValueError, match="class 1 is 'person1' there and 'person2' in the training set"):
        load_teachers(config, swapped)
    with pytest.raises(ValueError, match="knows 5 identities, the training set has 4"):
        load_teachers(config, NAMES[:4])
    with pytest.raises(ValueError, match="a teacher with ID_features 16, the options say 8"):
        load_teachers(config.replace(ID_features=8), NAMES)


@pytest.mark.parametrize("stride", [None, 1, 2])
def test_public_teachers(tmp_path, stride, monkeypatch):
    config = tiny_config()
    teacher = build_teacher(config, stride or 2, torch.Generator().manual_seed(5))
    folder = tmp_path / "models" / "best"
    export_public_teacher(teacher, folder / "net_last.pth")
    entries = torch.load(folder / "net_last.pth")
    assert {"model.conv1.weight", "classifier.add_block.0.weight", "classifier.classifier.0.bias"} <= set(
        entries
    )
    assert not any(name.startswith("model.fc.") for name in entries)
    torch.save(entries | {"model.fc.weight": torch.ones(1)}, folder / "net_last.pth")  # some files have it
    if stride is not None:
        (folder / "opts.yaml").write_text(f"stride: {stride}\nname: best\n")
    x = torch.randn(2, 3, 80, 48, generator=torch.Generator().manual_seed(0))
    monkeypatch.chdir(tmp_path)
    for name in ("best", str(folder), str(folder / "net_last.pth")):
        (found,) = load_teachers(config.replace(teacher=name), NAMES)
        assert torch.equal(found(x, BatchNormMode()).logits[0], teacher(x, BatchNormMode()).logits[0])


def test_wrong_teachers_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match="teacher is 'nobody': none of nobody, nobody/teacher.pt, .*models/nobody"
    ):
        load_teachers(tiny_config(teacher="nobody"))
    torch.save({"x": 1}, "other.pt")
    with pytest.raises(ValueError, match="other.pt is not a teacher file of dgnet_fast"):
        load_teachers(tiny_config(teacher="other.pt"))
    torch.save([1], "net.pth")
    with pytest.raises(ValueError, match="net.pth is not a teacher's state dict"):
        load_teachers(tiny_config(teacher="net.pth"))
    teacher = build_teacher(tiny_config(ID_class=3), 2)
    export_public_teacher(teacher, tmp_path / "few.pth")
    with pytest.raises(
        ValueError,
        match=r"few.pth does not fit .*classifier.classifier.0.weight is \(3, 16\), expected \(5, 16\)",
    ):
        load_teachers(tiny_config(teacher="few.pth"))
