"""Published data sets, on small fakes of the layouts they are distributed in."""

import numpy as np
import pytest

from dgnet_fast.data import SyntheticPedestrians, decode_split, load_dataset
from dgnet_fast.data.datasets import dataset_of
from dgnet_fast.data.layouts import LAYOUTS, MSMT17_PUBLISHED, Published
from dgnet_fast.data.validate import against_published
from dgnet_fast.validate import main
from tests.tiny import tiny_config

PEDESTRIANS = SyntheticPedestrians(0)


def write(path, identity=1):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PEDESTRIANS.draw(identity, len(path.name), 1, 32, 16)).save(path)


def labels(split):
    return list(zip(split.names, split.ids.tolist(), split.cameras.tolist(), strict=True))


BOXES = {
    "dukemtmc-reid": (
        "DukeMTMC-reID",
        [
            "bounding_box_train/0001_c2_f0046182.jpg", "bounding_box_train/0007_c8_f0054061.jpg",
            "query/0005_c2_f0046985.jpg", "bounding_box_test/0005_c5_f0046900.jpg",
            "bounding_box_test/0008_c1_f0046901.jpg",
        ],
        [(1, 2), (7, 8), (5, 2), (5, 5), (8, 1)],
    ),
    "cuhk03-np-labelled": (
        "cuhk03-np/labeled",
        [
            "bounding_box_train/0001_c1_1.png", "bounding_box_train/1467_c2_10.png", "query/0003_c1_21.png",
            "bounding_box_test/0003_c2_26.png", "bounding_box_test/0003_c1_22.png",
        ],
        [(1, 1), (1467, 2), (3, 1), (3, 1), (3, 2)],
    ),
    "veri776": (
        "VeRi",
        [
            "image_train/0001_c001_00016450_0.jpg", "image_train/0776_c020_00030600_1.jpg",
            "image_query/0002_c002_00030600_0.jpg", "image_test/0002_c002_00030600_0.jpg",
            "image_test/0002_c014_00030605_0.jpg",
        ],
        [(1, 1), (776, 20), (2, 2), (2, 2), (2, 14)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOXES)
def test_identity_and_camera_by_the_sets_own_rule(tmp_path, name):
    folder, files, expected = BOXES[name]
    for file in files:
        write(tmp_path / folder / file)
    (tmp_path / folder / "ReadMe.txt").write_text("no picture")
    for root in (tmp_path, tmp_path / folder):
        dataset = load_dataset(name, str(root))
        found = [(i, c) for split in dataset.splits.values() for _, i, c in labels(split)]
        assert found == expected
        assert dataset.name == name and dataset.num_classes == 2 and dataset.multi_query is None
    assert decode_split(dataset.train, 8, 4).shape == (2, 3, 8, 4)
    write(tmp_path / folder / LAYOUTS[name].splits[1] / "0001_camera1.png")
    with pytest.raises(ValueError, match=rf"cannot parse .*0001_camera1.png: .*{LAYOUTS[name].example}"):
        load_dataset(name, str(tmp_path))


def test_both_kinds_of_cuhk03_are_told_apart(tmp_path):
    for kind, camera in (("labeled", 1), ("detected", 2)):
        for folder in ("bounding_box_train", "query", "bounding_box_test"):
            write(tmp_path / "cuhk03-np" / kind / folder / f"0004_c{camera}_1.png")
    for name, camera in (("cuhk03-np-labelled", 1), ("cuhk03-np-detected", 2)):
        for root in (tmp_path, tmp_path / "cuhk03-np"):
            assert load_dataset(name, str(root)).query.cameras.tolist() == [camera]


@pytest.fixture(params=[("MSMT17_V1", "train", "test"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2")])
def msmt17(request, tmp_path):
    top, train, test = request.param
    lists = {
        "train": ["0000/0000_000_01_0303morning_0008_0.jpg 0", "0001/0001_004_15_0303noon_0008_1_ex.jpg 1"],
        "val": ["0001/0001_003_12_0303noon_0009_0.jpg 1"],
        "query": ["0000/0000_000_01_0303morning_0015_0.jpg 0"],
        "gallery": ["0000/0000_002_14_0303morning_0020_0.jpg 0", "0003/0003_001_10_0302noon_0001_0.jpg 3"],
    }
    for name, lines in lists.items():
        half = train if name in ("train", "val") else test
        for line in lines:
            write(tmp_path / top / half / line.split()[0])
        (tmp_path / top / f"list_{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_msmt17_lists(msmt17):
    dataset = load_dataset("msmt17", str(msmt17))
    # Identity 0 is a person here, and 0 of the test is another person than 0 of the training.
    assert dataset.train.ids.tolist() == [1, 2, 2] and dataset.train.cameras.tolist() == [1, 15, 12]
    assert dataset.query.ids.tolist() == [3] and dataset.query.cameras.tolist() == [1]
    assert dataset.gallery.ids.tolist() == [3, 6] and dataset.gallery.cameras.tolist() == [14, 10]
    assert dataset.class_names == ["0000", "0001"] and dataset.identity_names[6] == "test-0003"
    assert decode_split(dataset.train, 8, 4).shape == (3, 3, 8, 4)
    assert dataset.train.names[2].endswith("/0001/0001_003_12_0303noon_0009_0.jpg")


def test_msmt17_refuses(msmt17):
    listing = next(msmt17.glob("*/list_val.txt"))
    listing.write_text("0001/0001_003_12_0303noon_0009_0.jpg 1\n0001/holiday.jpg 1\n")
    with pytest.raises(ValueError, match=r"cannot parse .*list_val.txt, line 2: MSMT17 lines look like"):
        load_dataset("msmt17", str(msmt17))
    listing.unlink()
    with pytest.raises(ValueError, match="missing file .*list_val.txt"):
        load_dataset("msmt17", str(msmt17))


@pytest.fixture
def table(tmp_path):
    rows = [
        ("pictures/a.jpg", "zoe", "3", "train"), ("pictures/b.jpg", "adam", "", "train"),
        ("pictures/c.jpg", "kim", "1", "query"), ("pictures/d.jpg", "kim", "2", "gallery"),
        ("pictures/e.jpg", "-1", "2", "gallery"), ("pictures/f.jpg", "0000", "2", "gallery"),
        ("pictures/g.jpg", "kim", "1", "multi_query"),
    ]  # fmt: skip
    for name, *_ in rows:
        write(tmp_path / name)
    file = tmp_path / "people.csv"
    file.write_text("\n".join(["path,id,camera,split", *(",".join(row) for row in rows)]) + "\n")
    return file


def test_csv(table):
    dataset = load_dataset("csv", str(table))
    assert dataset.class_names == ["adam", "zoe"]
    assert sorted(labels(dataset.train)) == [("pictures/a.jpg", 3, 3), ("pictures/b.jpg", 1, -1)]
    assert labels(dataset.query) == [("pictures/c.jpg", 2, 1)]
    assert sorted(dataset.gallery.ids.tolist()) == [-1, 0, 2]
    assert labels(dataset.multi_query) == [("pictures/g.jpg", 2, 1)]
    np.testing.assert_array_equal(
        dataset.query.load(0), np.asarray(__import__("PIL.Image").Image.open(table.parent / "pictures/c.jpg"))
    )
    absolute = table.with_name("absolute.csv")
    absolute.write_text(table.read_text().replace("pictures/", f"{table.parent}/pictures/"))
    elsewhere = table.parent / "elsewhere" / "people.csv"
    elsewhere.parent.mkdir()
    absolute.rename(elsewhere)
    assert decode_split(load_dataset("csv", str(elsewhere)).gallery, 8, 4).shape == (3, 3, 8, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("path,id,camera", "file,id,camera"),
            "has no column path; its first line must name path, id, camera",
        ),
        (("kim,2,gallery", "kim,c2,gallery"), r"people.csv, line 5: camera is 'c2'; allowed: a whole number"),
        (("kim,2,gallery", "kim,2,test"), r"line 5: split is 'test'; allowed: train, query, gallery"),
        (("kim,2,gallery", ",2,gallery"), "line 5: path and id must not be empty"),
        (("kim,1,query", "kim,1,gallery"), "people.csv has no line of split query"),
        (("zoe", "-1"), r"people.csv: junk \(-1\) cannot be trained on"),
    ],
)
def test_csv_refuses(table, change, message):
    table.write_text(table.read_text().replace(*change))
    with pytest.raises(ValueError, match=message):
        load_dataset("csv", str(table))


def test_csv_without_cameras_or_file(table, tmp_path):
    table.write_text("path,id,split\npictures/a.jpg,1,train\npictures/b.jpg,2,train\n"
                     "pictures/c.jpg,3,query\npictures/d.jpg,3,gallery\n")  # fmt: skip
    assert load_dataset("csv", str(table)).gallery.cameras.tolist() == [-1]
    with pytest.raises(ValueError, match="no such CSV file"):
        load_dataset("csv", str(tmp_path / "absent.csv"))


def test_several_to_train_on(tmp_path, table):
    folder, files, _ = BOXES["veri776"]
    for file in files:
        write(tmp_path / "disk" / folder / file, identity=7)
    whole = load_dataset("veri776+csv+veri776", f"{tmp_path / 'disk'},{table}, {tmp_path / 'disk' / folder}")
    assert whole.name == "veri776+csv+veri776-2" and whole.num_classes == 6
    assert whole.class_names == [
        "veri776/0001", "veri776/0776", "csv/adam", "csv/zoe", "veri776-2/0001", "veri776-2/0776",
    ]  # fmt: skip
    assert len(set(whole.train.cameras[[0, 1, 4, 5]].tolist())) == 4  # cameras are not shared either
    assert whole.train.cameras.tolist().count(-1) == 1
    parts = [load_dataset("veri776", str(tmp_path / "disk")), load_dataset("csv", str(table))]
    pictures = decode_split(whole.train, 16, 8)
    expected = [decode_split(part.train, 16, 8) for part in parts]
    np.testing.assert_array_equal(pictures[:2], expected[0])
    np.testing.assert_array_equal(pictures[2:4], expected[1])
    np.testing.assert_array_equal(pictures[4:], expected[0])
    assert labels(whole.query) == labels(parts[0].query) and labels(whole.gallery) == labels(parts[0].gallery)
    assert whole.identity_names[2] == "veri776/0002"


def test_several_share_a_root(tmp_path):
    for name in ("veri776", "dukemtmc-reid"):
        folder, files, _ = BOXES[name]
        for file in files:
            write(tmp_path / folder / file)
    assert load_dataset("dukemtmc-reid+veri776", str(tmp_path)).num_classes == 4
    with pytest.raises(ValueError, match=r"2 data sets on disk and root names 3 folders \(a,b,c\)"):
        load_dataset("dukemtmc-reid+veri776", "a,b,c")
    with pytest.raises(ValueError, match="unknown dataset 'veri'"):
        load_dataset("dukemtmc-reid+veri", str(tmp_path))


def test_several_by_the_options(tmp_path):
    folder, files, _ = BOXES["veri776"]
    for file in files:
        write(tmp_path / folder / file)
    drawn = {"synthetic_ids": 2, "synthetic_views": 4, "synthetic_test_ids": 2}
    config = tiny_config(data="veri776+synthetic", data_root=str(tmp_path), **drawn)
    dataset = dataset_of(config)
    assert dataset.class_names == ["veri776/0001", "veri776/0776", "synthetic/1", "synthetic/2"]
    assert decode_split(dataset.train, 40, 24).shape == (10, 3, 40, 24)
    with pytest.raises(
        ValueError, match="data is 'veri776\\+car'; allowed: synthetic, synthetic-a, synthetic-b, market1501"
    ):
        tiny_config(data="veri776+car")


def test_counts_against_the_published(tmp_path, capsys, monkeypatch):
    folder, files, _ = BOXES["veri776"]
    for file in files:
        write(tmp_path / folder / file)
    assert main(["--data", "veri776", "--root", str(tmp_path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "note: counts differ from the published ones (in brackets): train identities 2 (576)"
    )
    assert "gallery images 2 (11579)" in last and last.endswith("cameras 4 (20)")
    monkeypatch.setitem(
        against_published.__globals__["PUBLISHED"], "veri776", Published((2, 2), (1, 1), (1, 2), 4)
    )
    assert main(["--data", "veri776", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "counts are the published ones"


def test_published_counts():
    """The published numbers, written a second time."""
    table = {
        "market1501": (751, 12936, 3368, 19732, 6),
        "dukemtmc-reid": (702, 16522, 2228, 17661, 8),
        "cuhk03-np-labelled": (767, 7368, 1400, 5328, 2),
        "cuhk03-np-detected": (767, 7365, 1400, 5332, 2),
        "veri776": (576, 37778, 1678, 11579, 20),
    }
    sets = {name: layout.published for name, layout in LAYOUTS.items()} | {"msmt17": MSMT17_PUBLISHED}
    table["msmt17"] = (1041, 32621, 11659, 82161, 15)
    assert {n: (*p.train, p.query[1], p.gallery[1], p.cameras) for n, p in sets.items()} == table
