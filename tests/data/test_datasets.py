import numpy as np
import pytest
from PIL import Image

from dgnet_fast.data import SyntheticPedestrians, decode_split, load_dataset
from dgnet_fast.data.validate import validate
from dgnet_fast.validate import main

PEDESTRIANS = SyntheticPedestrians(0)


def write(path, identity=1, size=(32, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(PEDESTRIANS.draw(identity, len(path.name), 1, *size))
    picture.save(path, format="PNG" if path.suffix.lower() == ".png" else "JPEG")


@pytest.fixture
def market(tmp_path):
    root = tmp_path / "data" / "Market-1501-v15.09.15"
    for name in (
        "bounding_box_train/0007_c3s3_077419_03.jpg",
        "bounding_box_train/0007_c1s6_028546_01.JPG",
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0002_c12s1_000451_04.png",
        "query/0001_c1s1_001051_00.jpg",
        "query/0003_c5s1_001051_00.jpeg",
        "bounding_box_test/-1_c2s1_000401_02.jpg",
        "bounding_box_test/0000_c6s1_000401_02.jpg",
        "bounding_box_test/0001_c2s1_000401_02.jpg",
        "bounding_box_test/0003_c5s1_000401_02.jpg",
        "gt_bbox/0001_c1s1_001001_00.jpg",
        "gt_bbox/0001_c2s1_001001_00.jpg",
        "gt_bbox/0003_c5s1_001001_00.jpg",
    ):
        write(root / name)
    (root / "query" / "Thumbs.db").write_bytes(b"no picture")
    (root / "readme.txt").write_text("no picture")
    return root


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "own"
    for name in (
        "train/zoe/a_cam02.jpg", "train/zoe/b_cam11.jpg", "train/adam/a_cam02.png", "query/kim/q_cam01.jpg",
        "gallery/kim/g_cam02.jpg", "gallery/-1/g_cam02.jpg", "gallery/0000/g_cam02.jpg",
    ):  # fmt: skip
        write(root / name)
    (root / "train" / "zoe" / "Thumbs.db").write_bytes(b"no picture")
    (root / "train" / "empty").mkdir()
    return root


def test_market_labels(market):
    for root in (market, market.parent):
        dataset = load_dataset("market1501", str(root))
        assert dataset.train.names[0] == "bounding_box_train/0002_c12s1_000451_04.png"
        assert dataset.train.ids.tolist() == [2, 2, 7, 7] and dataset.train.cameras.tolist() == [12, 1, 1, 3]
        assert dataset.train_labels.tolist() == [0, 0, 1, 1] and dataset.num_classes == 2
        assert dataset.class_names == ["0002", "0007"]
        assert dataset.query.ids.tolist() == [1, 3] and dataset.query.cameras.tolist() == [1, 5]
        assert dataset.gallery.ids.tolist() == [-1, 0, 1, 3] and dataset.gallery.cameras.tolist() == [
            2,
            6,
            2,
            5,
        ]
        assert dataset.multi_query.names == [
            "gt_bbox/0001_c1s1_001001_00.jpg",
            "gt_bbox/0003_c5s1_001001_00.jpg",
        ]


def test_market_without_gt_bbox(market):
    for path in (market / "gt_bbox").iterdir():
        path.unlink()
    (market / "gt_bbox").rmdir()
    assert load_dataset("market1501", str(market)).multi_query is None


def test_market_refuses_foreign_names(market):
    write(market / "query" / "holiday.jpg")
    with pytest.raises(ValueError, match=r"cannot parse .*holiday\.jpg: Market-1501 names look like"):
        load_dataset("market1501", str(market))


def test_market_refuses_junk_to_train_on(market):
    write(market / "bounding_box_train" / "-1_c1s1_000451_03.jpg")
    with pytest.raises(ValueError, match=r"-1_c1s1_000451_03\.jpg: junk and distractors"):
        load_dataset("market1501", str(market))


def test_folder_labels(folder):
    dataset = load_dataset("folder", str(folder), camera_pattern=r"cam(\d+)")
    assert dataset.class_names == ["adam", "zoe"] and dataset.num_classes == 2
    assert dataset.train.names == ["train/adam/a_cam02.png", "train/zoe/a_cam02.jpg", "train/zoe/b_cam11.jpg"]
    assert dataset.train.ids.tolist() == [1, 3, 3] and dataset.train.cameras.tolist() == [2, 2, 11]
    assert dataset.train_labels.tolist() == [0, 1, 1]
    assert dataset.query.ids.tolist() == [2] and dataset.gallery.ids.tolist() == [-1, 0, 2]
    assert dataset.multi_query is None
    assert dataset.identity_names == {1: "adam", 2: "kim", 3: "zoe"}


def test_folder_cameras(folder):
    assert load_dataset("folder", str(folder)).train.cameras.tolist() == [-1, -1, -1]
    named = load_dataset("folder", str(folder), camera_pattern=r"(\w)_cam(?P<camera>\d+)")
    assert named.train.cameras.tolist() == [2, 2, 11]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"camera(\d+)", r"camera pattern 'camera\(\\\\d\+\)' does not match 'a_cam02.png'"),
        (r"cam\d+", "needs a group"),
        (r"cam(\d+", "is not a regular expression"),
        (r"(cam)", "finds 'cam', which is no number, in 'a_cam02.png'"),
    ],
)
def test_folder_refuses_patterns(folder, pattern, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("folder", str(folder), camera_pattern=pattern)


def test_prepared_layout(tmp_path):
    for name in (
        "train_all/0002/0002_c1s1_000451_03.jpg", "train_all/0007/0007_c2s1_000451_03.jpg",
        "train/0002/0002_c1s1_000451_03.jpg", "val/0007/0007_c2s1_000451_03.jpg",
        "query/0001/0001_c1s1_001051_00.jpg", "gallery/0001/0001_c2s1_001051_00.jpg",
        "gallery/0000/0000_c2s1_001051_00.jpg", "multi-query/0001/0001_c1s1_001052_00.jpg",
    ):  # fmt: skip
        write(tmp_path / "pytorch" / name)
    dataset = load_dataset("folder", str(tmp_path), camera_pattern=r"_c(\d+)s")
    assert dataset.class_names == ["0002", "0007"] and dataset.train.names[0].startswith("train_all/")
    assert dataset.train.cameras.tolist() == [1, 2]
    assert dataset.gallery.ids.tolist() == [0, dataset.query.ids[0]]
    assert dataset.multi_query.ids.tolist() == dataset.query.ids.tolist()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("duke",),
            {},
            "unknown dataset 'duke'; choose one of synthetic, synthetic-a, synthetic-b, market1501, folder",
        ),
        (("market1501",), {}, "dataset 'market1501' needs a root folder"),
        (("folder", "/nowhere/at/all"), {}, "missing folder /nowhere/at/all"),
        (("market1501", "/nowhere/at/all"), {}, "missing folder /nowhere/at/all"),
        (("market1501", "x"), {"camera_pattern": "c(.)"}, "camera_pattern is for the dataset 'folder'"),
        (("market1501", "x"), {"height": 3}, "dataset 'market1501' has no option height"),
        (("synthetic", "x"), {}, "takes no root, got 'x'"),
    ],
)
def test_wrong_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(*arguments, **options)


def test_decode_resizes_bicubically(market):
    dataset = load_dataset("market1501", str(market))
    calls = []
    pictures = decode_split(dataset.train, 24, 8, workers=2, progress=lambda *call: calls.append(call))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for index, name in enumerate(dataset.train.names):
        image = Image.open(market / name).convert("RGB").resize((8, 24), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(pictures[index].permute(1, 2, 0).numpy(), np.asarray(image))
    np.testing.assert_array_equal(
        dataset.train.load(1), np.asarray(Image.open(market / dataset.train.names[1]))
    )


def test_decode_grey_and_transparent(folder):
    path = folder / "train" / "adam" / "a_cam02.png"
    Image.new("LA", (16, 32), (77, 128)).save(path)
    picture = decode_split(load_dataset("folder", str(folder)).train, 32, 16)[0]
    assert (picture == 77).all()


def test_decode_refuses(market):
    dataset = load_dataset("market1501", str(market))
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        decode_split(dataset.train, 8, 8, workers=0)
    with pytest.raises(ValueError, match="height and width must be positive, got 0 and 8"):
        decode_split(dataset.train, 0, 8)


def truncate(path):
    path.write_bytes(path.read_bytes()[:200])


def test_unreadable_picture(market):
    truncate(market / "bounding_box_train" / "0007_c3s3_077419_03.jpg")
    dataset = load_dataset("market1501", str(market))
    with pytest.raises(ValueError, match=r"cannot read image .*0007_c3s3_077419_03\.jpg"):
        decode_split(dataset.train, 8, 8)
    with pytest.warns(
        UserWarning, match=r"train: left out 1 of 4 images; first: cannot read image .*077419_03"
    ):
        dataset = load_dataset("market1501", str(market), skip_unreadable=True)
    assert dataset.train.ids.tolist() == [2, 2, 7]
    assert decode_split(dataset.train, 8, 8).shape == (3, 3, 8, 8)


def test_nothing_readable(folder):
    truncate(folder / "query" / "kim" / "q_cam01.jpg")
    with (
        pytest.warns(UserWarning, match="left out 1 of 1"),
        pytest.raises(ValueError, match="no readable images in the query split"),
    ):
        load_dataset("folder", str(folder), skip_unreadable=True)


def test_validate_table(market, capsys):
    assert main(["--data", "market1501", "--root", str(market)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[:5] == [
        ["split", "identities", "images", "cameras", "distractors", "junk"],
        ["train", "2", "4", "3", "0", "0"],
        ["query", "2", "2", "2", "0", "0"],
        ["gallery", "2", "4", "3", "1", "1"],
        ["multi_query", "2", "2", "2", "0", "0"],
    ]
    assert " ".join(rows[5]) == "note: 1 of 2 queries have no valid match in the gallery"


def test_validate_says_what_is_odd_but_allowed(folder, capsys):
    write(folder / "query" / "zoe" / "q_cam01.jpg")
    assert main(["--data", "folder", "--root", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "unknown" in out
    assert "note: 1 training identities have one image, which is then its own positive: adam" in out
    assert "note: 1 query identities are trained on, so scores will flatter: zoe" in out


def failure(capsys, *arguments):
    """The one line of a failed command."""
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("python -m dgnet_fast.validate: ") and not captured.out
    return lines[0]


def test_validate_failures(folder, market, tmp_path, capsys):
    own = ("--data", "folder", "--root", str(folder))
    assert "missing folder" in failure(capsys, "--data", "folder", "--root", str(tmp_path / "absent"))
    assert "does not match" in failure(capsys, *own, "--camera-pattern", r"c(\d)_")
    same_camera = failure(capsys, *own, "--camera-pattern", r"(\d)\d\.")  # both of kim's pictures: camera 0
    assert "no query has a valid match" in same_camera
    truncate(folder / "train" / "zoe" / "a_cam02.jpg")
    message = failure(capsys, *own)
    assert "cannot read image" in message and "zoe/a_cam02.jpg" in message and "--skip-unreadable" in message
    (folder / "gallery" / "kim" / "g_cam02.jpg").rename(folder / "gallery" / "-1" / "h_cam02.jpg")
    (folder / "train" / "zoe" / "a_cam02.jpg").unlink()
    assert "no query has a valid match" in failure(capsys, *own)
    for path in (market / "query").iterdir():
        path.unlink()
    message = failure(capsys, "--data", "market1501", "--root", str(market))
    assert f"no images in {market / 'query'}" in message


def test_validate_skips_unreadable(folder, capsys):
    truncate(folder / "train" / "zoe" / "a_cam02.jpg")
    assert main(["--data", "folder", "--root", str(folder), "--skip-unreadable"]) == 0
    out = capsys.readouterr().out
    assert "note: train: left out 1 of 3 images; first: cannot read image" in out
    assert "2 training identities have one image" in out


def test_validate_synthetic():
    assert (
        validate(load_dataset("synthetic", train_identities=3, test_identities=3, views_per_identity=4)) == []
    )
    with pytest.raises(ValueError, match="the training split has 1 identity; at least 2 are needed"):
        validate(load_dataset("synthetic", train_identities=1, test_identities=3, views_per_identity=4))
