"""Faults that people met with their pictures and data sets; the id of each case is its row in docs/reliability.md."""

from __future__ import annotations

import io
import os
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from dgnet_fast.config import Config
from dgnet_fast.data.cache import cache_folder
from dgnet_fast.data.datasets import load_dataset
from dgnet_fast.data.files import load_csv, load_folder, picture_files
from dgnet_fast.data.layouts import load_layout
from dgnet_fast.data.pictures import open_pictures
from dgnet_fast.data.reading import LARGEST, read_picture
from dgnet_fast.generation.sets import LONGEST_STEM, stem_of
from dgnet_fast.report.grid import text_picture
from dgnet_fast.retrieval.extractor import Extractor
from tests.tiny_run import draw_people, tiny_run


def put(path, size=(4, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 90, 200)).save(path, path.suffix[1:].replace("jpg", "jpeg"))
    return path


def people(base, names=("a", "b"), splits=("train", "query", "gallery")):
    for split in splits:
        for name in names:
            for k in range(2):
                put(base / split / name / f"{k}.png")
    return base


# D, E, P: one reader, links, layouts


@pytest.mark.parametrize("mode, value, wanted", [("I;16", 65535, 255), ("I;16", 257 * 100, 100)])
def test_d_sixteen_bits_keep_their_grey(tmp_path, mode, value, wanted):
    picture = Image.fromarray(np.full((4, 4), value, dtype=np.uint16))
    assert picture.mode == mode
    picture.save(tmp_path / "a.png")
    assert np.asarray(read_picture(tmp_path / "a.png")).max() == wanted


def test_d_formats_that_are_not_promised_are_not_decoded(tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "TGA")
    with pytest.raises(ValueError, match="cannot read image x: it is no image"):
        read_picture(data.getvalue(), "x")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_5_a_small_file_of_a_huge_picture_is_refused_from_its_header(kind):
    data = io.BytesIO()
    if kind == "PNG":
        Image.new("1", (LARGEST // 1000 + 1, 1000)).save(data, kind)
    else:  # the extended header alone, of 16384x16384
        data.write(b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2)
    with pytest.raises(ValueError, match=r"has \d+x\d+ pixels; allowed: at most 50 million"):
        read_picture(data.getvalue(), "x")


def test_e_linked_folders_are_walked_once(tmp_path):
    real = put(tmp_path / "real" / "a.png").parent
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "link").symlink_to(real)
    (real / "loop").symlink_to(tmp_path / "shown")
    assert [p.name for p in picture_files([tmp_path / "shown"])] == ["a.png"]
    assert len(open_pictures(str(tmp_path / "shown"), Config())) == 1


def test_e_a_link_to_a_picture_that_is_gone_is_named(tmp_path):
    """A data set of links, whose disk is not there, must not become a smaller data set."""
    people(tmp_path)
    one = next(tmp_path.rglob("*.png"))
    (one.parent / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (one.parent / "notes").symlink_to(tmp_path / "nowhere")
    dataset = load_folder(tmp_path)
    (name,) = [n for split in dataset.splits.values() for n in split.names if "gone" in n]
    assert [p.name for p in picture_files([one.parent])] == sorted(
        ["gone.png", *(p.name for p in one.parent.glob("*.png") if p.exists())]
    )
    with pytest.raises(ValueError, match="gone.png"):
        read_picture(tmp_path / name)


@pytest.mark.parametrize("inside", ["", "Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15", "x/y"])
def test_p_a_data_set_is_found_where_it_was_unpacked(tmp_path, inside):
    base = tmp_path / inside
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        put(base / folder / "0002_c1s1_000451_03.jpg")
    assert len(load_layout("market1501", tmp_path).train) == 1
    people(tmp_path / "own" / "data")
    assert load_folder(tmp_path / "own").num_classes == 2


def test_p_several_data_sets_are_named(tmp_path):
    for name in ("one", "two"):
        people(tmp_path / name)
    with pytest.raises(ValueError, match="several data sets: .*one.*two.*; name one"):
        load_folder(tmp_path)


def test_p_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    people(tmp_path / "data")
    assert load_dataset("folder", "~/data").num_classes == 2
    assert len(picture_files(["~/data"])) == len(open_pictures("~/data", Config())) == 12


def test_p_other_formats_are_counted_and_folders_are_no_pictures(tmp_path, caplog):
    base = people(tmp_path)
    for name in ("x.gif", "y.jfif"):
        shutil.copy(base / "train" / "a" / "0.png", base / "train" / "a" / name)
    (base / "train" / "a" / "z.jpg").mkdir()
    assert len(load_folder(base).train) == 4
    assert "passed over 2 pictures of formats that are not read (1 .gif, 1 .jfif)" in caplog.text


def test_p_composed_and_decomposed_names_are_one_person(tmp_path):
    base = people(tmp_path, [unicodedata.normalize("NFC", "Zoë"), "b"], ["train", "query"])
    people(base, [unicodedata.normalize("NFD", "Zoë"), "b"], ["gallery"])
    dataset = load_folder(base)
    assert set(dataset.gallery.ids) == set(dataset.train.ids) and dataset.class_names == ["Zoë", "b"]
    assert set(open_pictures(str(base / "train"), Config()).people) == {1, 2}


def test_i_pictures_one_level_off_are_said(tmp_path):
    people(tmp_path, splits=["query", "gallery"])
    put(tmp_path / "train" / "a.png")
    with pytest.raises(
        ValueError, match=r"no images in .*train .*; 1 lie below it, such as a.png, expected IDENTITY/"
    ):
        load_folder(tmp_path)


def test_l_a_folder_that_moved_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="missing folder .*gone.*; if it has moved, .* --root"):
        load_dataset("folder", str(tmp_path / "gone"))


# F: names


@pytest.mark.parametrize("name", ["a" * 126, "é" * 100, "a\nb", "\udcff\udcfe", "x\x1b[31m"])
def test_f_any_text_can_be_a_part_of_a_files_name(name):
    stem = stem_of(name + ".png")
    assert len(stem.encode()) <= LONGEST_STEM and stem.isprintable() and "/" not in stem
    assert stem_of(name + "1.png") != stem
    assert text_picture(name, 10).width > 1


def test_f_names_that_are_no_text_are_read(tmp_path):
    path = put(tmp_path / "train" / "a" / "x.png")
    os.rename(path, os.fsencode(path.parent) + b"/\xff\n.png")
    (found,) = picture_files([tmp_path])
    assert np.asarray(read_picture(found)).shape == (6, 4, 3)


# 7: CSV


@pytest.mark.parametrize(
    "line, problem",
    [
        ("a.png,1,99999999999999999999,train", "line 2: camera is '9+'; allowed"),
        ("a\0.png,1,1,train", "line 2: .* path with NUL|not a CSV file"),
        ("a.png,1,1,train,more", "line 2: more values than columns"),
        ("a.png,1,1," + "x" * 5000, "line 2: split is 'x+...x+'; allowed"),
    ],
)
def test_7_csv_values_of_any_kind_are_named(tmp_path, line, problem):
    (tmp_path / "d.csv").write_text(f"path,id,camera,split\n{line}\n")
    with pytest.raises(ValueError, match=problem) as caught:
        load_csv(tmp_path / "d.csv")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


# G, J, M, N


def test_g_a_user_without_a_home_has_no_cache(monkeypatch, caplog):
    for name in ("HOME", "XDG_CACHE_HOME", "DGNET_FAST_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    assert cache_folder() is None and "this user has no home folder" in caplog.text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run") / "run")[1]


def test_n_an_empty_crop_is_named_by_its_place(run):
    whole = np.zeros((8, 4, 3), np.uint8)
    for empty in (whole[:0], Image.new("RGB", (0, 5)), torch.zeros(3, 0, 4)):
        with pytest.raises(ValueError, match="picture 1 is empty: 0x|picture 1 is empty: 5x0"):
            Extractor(run, device="cpu")([whole, empty, whole])


@pytest.mark.parametrize("kind", ["none", "deep", "truncated", "missing", "bytes"])
def test_n_a_picture_that_cannot_be_read_is_named_by_its_place(run, tmp_path, kind):
    data = io.BytesIO()
    Image.new("RGB", (40, 40), (9, 90, 200)).save(data, "PNG")
    other = {
        "none": None,
        "deep": Image.new("F", (4, 4)),
        "truncated": Image.open(io.BytesIO(data.getvalue()[:70])),
        "missing": tmp_path / "nowhere.png",
        "bytes": data.getvalue(),
    }[kind]
    with pytest.raises(ValueError, match="^picture 1: "):
        Extractor(run, device="cpu")([np.zeros((8, 4, 3), np.uint8), other])


def test_m_an_extractor_leaves_the_callers_random_stream(run):
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    Extractor(run, device="cpu")
    assert torch.equal(torch.rand(3), wanted)


def test_j_weights_that_are_not_finite_are_refused_by_file(tmp_path):
    tiny_run(tmp_path / "run", scale=float("nan"))
    with pytest.raises(
        ValueError, match=r"step_00000007.pt holds weights that are not finite, such as appear"
    ):
        Extractor(tmp_path / "run", device="cpu")


def test_j_features_that_are_not_finite_are_refused(tmp_path):
    draw_people(tmp_path / "p", 1, 1)
    tiny_run(tmp_path / "run", scale=1e30)
    with pytest.raises(ValueError, match="step_00000007.pt gives features that are not finite"):
        Extractor(tmp_path / "run", device="cpu")(tmp_path / "p")
