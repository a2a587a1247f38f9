import contextlib
import logging
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dgnet_fast.data import TrainBatches, cache, cache_folder, decode_split, load_dataset
from dgnet_fast.data.cache import cached_pictures, load_pictures
from dgnet_fast.data.chunks import decoded_chunks
from dgnet_fast.data.files import unlabelled
from dgnet_fast.models.appearance_encoder import build_appearance_encoder
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.scoring import score_retrieval
from dgnet_fast.training.run import Run
from tests.tiny import tiny_config
from tests.tiny_run import DATA as DATA_OPTIONS

SIZE = 24, 16
ROOT = Path(__file__).parents[2]


@pytest.fixture
def pictures(tmp_path):
    """Twelve picture files of different sizes."""
    rng = np.random.default_rng(0)
    paths = []
    for k in range(12):
        paths.append(tmp_path / "pictures" / f"{k:02d}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + k, 12, 3), dtype=np.uint8)).save(paths[-1])
    return paths


class Told(list):
    """Lines of the log, and how many pictures were decoded."""

    decoded = 0

    def progress(self, done, total):
        self.decoded += 1

    @contextlib.contextmanager
    def listening(self):
        logger, handler = logging.getLogger("dgnet_fast"), logging.Handler()
        handler.emit = lambda record: self.append(record.getMessage())
        before = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield self
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)


def opened(split, folder, told=None, size=SIZE):
    told = Told() if told is None else told
    with told.listening():
        return cached_pictures(split, *size, folder, workers=2, progress=told.progress)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_first_start_builds_and_second_reads(pictures, tmp_path):
    split, folder = unlabelled(pictures), tmp_path / "deep" / "cache"
    told = Told()
    first = opened(split, folder, told)
    assert told.decoded == 12 and len(told) == 1 and told[0].startswith("decoding 12 pictures into ")
    second = opened(split, folder, told)
    assert told.decoded == 12 and len(told) == 1
    expected = decode_split(split, *SIZE)
    for found in (first, second):
        assert torch.equal(found.tensor, expected)
        found.release()
        assert torch.equal(found.tensor, expected)
    assert files(folder) == [second.path.name]
    assert torch.equal(load_pictures(split, *SIZE, folder).tensor, expected)
    assert torch.equal(load_pictures(split, *SIZE, None), expected)


def test_sizes_have_files_of_their_own(pictures, tmp_path):
    split = unlabelled(pictures)
    for size in (SIZE, (16, 24), (8, 8), SIZE):
        assert torch.equal(opened(split, tmp_path / "c", size=size).tensor, decode_split(split, *size))
    assert len(files(tmp_path / "c")) == 3


def test_changed_pictures_replace_the_file(pictures, tmp_path):
    split, told = unlabelled(pictures), Told()
    before = opened(split, tmp_path / "c", told)
    kept = before.tensor.clone()
    Image.new("RGB", (9, 9), (1, 2, 3)).save(pictures[4])
    after = opened(split, tmp_path / "c", told)
    assert told.decoded == 24 and "was made from other pictures" in told[1]
    assert (after.tensor[4] == torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1)).all()
    assert torch.equal(before.tensor, kept)  # who has the old file open keeps it
    assert len(files(tmp_path / "c")) == 1
    os.utime(pictures[7], ns=(0, 12345))
    opened(split, tmp_path / "c", told)
    assert told.decoded == 36
    opened(split, tmp_path / "c", told)
    assert told.decoded == 36


def test_another_version_makes_the_file_again(pictures, tmp_path, monkeypatch):
    split, told = unlabelled(pictures), Told()
    opened(split, tmp_path / "c", told)
    monkeypatch.setattr(cache, "RESIZED", "bicubic, another library")
    opened(split, tmp_path / "c", told)
    monkeypatch.setattr(cache, "FORMAT", 2)
    opened(split, tmp_path / "c", told)
    assert told.decoded == 36 and "of another version" in told[3]


def cut(path):
    os.truncate(path, path.stat().st_size - 100)


def grow(path):
    with path.open("ab") as file:
        file.write(b"\0" * 7)


def empty(path):
    os.truncate(path, 0)


def flip_bit(place):
    def flip(path):
        content = bytearray(path.read_bytes())
        content[place] ^= 4
        path.write_bytes(content)

    return flip


def halved(path):
    """Half of the pictures are missing in the middle; the end is right."""
    content = path.read_bytes()
    half = 6 * 3 * SIZE[0] * SIZE[1]
    path.write_bytes(content[:half] + content[2 * half :])


def zeros(path):
    """As a power cut leaves a file: its length is right."""
    path.write_bytes(b"\0" * path.stat().st_size)


DATA = 12 * 3 * SIZE[0] * SIZE[1]


@pytest.mark.parametrize(
    "damage",
    [cut, grow, empty, halved, zeros, flip_bit(5), flip_bit(DATA - 1), flip_bit(DATA + 3), flip_bit(-100)],
)
def test_a_damaged_file_is_made_again(pictures, tmp_path, damage):
    split, told = unlabelled(pictures), Told()
    path = opened(split, tmp_path / "c", told).path
    damage(path)
    again = opened(split, tmp_path / "c", told)
    assert told.decoded == 24 and "is damaged" in told[1] and "making it again" in told[1]
    assert torch.equal(again.tensor, decode_split(split, *SIZE))
    opened(split, tmp_path / "c", told)
    assert told.decoded == 24


SCRIPT = """
import logging, os, signal, sys, time
logging.basicConfig(level=logging.INFO, format="%(message)s")
from dgnet_fast.data.cache import cached_pictures
from dgnet_fast.data.files import FileSplit, picture_files, unlabelled
delay, die_at, folder, place = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
plain, decoded = FileSplit.load_resized, []
def slow(self, index, height, width):
    decoded.append(index)
    if len(decoded) == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(delay)
    return plain(self, index, height, width)
FileSplit.load_resized = slow
from pathlib import Path
print("ready", flush=True)
sys.stdin.readline()
found = cached_pictures(unlabelled(picture_files([place])), 24, 16, Path(folder), workers=1)
print(len(decoded), int(found.tensor.long().sum()) if found is not None else None)
"""


def start(delay, die_at, folder, place, prefix=()):
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", SCRIPT, str(delay), str(die_at), str(folder), str(place)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def test_killed_while_building(pictures, tmp_path):
    folder = tmp_path / "c"
    process = start(0, 8, folder, pictures[0].parent)
    process.communicate("go\n")
    assert process.returncode == -signal.SIGKILL
    (left,) = files(folder)
    assert left.endswith(".part")
    split, told = unlabelled(pictures), Told()
    assert torch.equal(opened(split, folder, told).tensor, decode_split(split, *SIZE))
    assert told.decoded == 12 and len(files(folder)) == 1 and not files(folder)[0].endswith(".part")


def test_two_at_once_build_once(pictures, tmp_path):
    both = [start(0.02, -1, tmp_path / "c", pictures[0].parent) for _ in range(2)]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate() for process in both]
    total = int(decode_split(unlabelled(pictures), *SIZE).long().sum())
    assert sorted(out for out, _ in said) == [f"0 {total}\n", f"12 {total}\n"]
    assert sum("waiting for another process" in err for _, err in said) == 1
    assert len(files(tmp_path / "c")) == 1


def test_two_at_once_without_locks(pictures, tmp_path, monkeypatch):
    """As on a file system that has none: both build, neither sees half a file."""

    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(cache.fcntl, "flock", refused)
    split, inner = unlabelled(pictures), []
    expected = decode_split(split, *SIZE)

    def meanwhile(done, total):
        if done == 6:
            inner.append(cached_pictures(split, *SIZE, tmp_path / "c"))

    outer = cached_pictures(split, *SIZE, tmp_path / "c", progress=meanwhile)
    assert torch.equal(inner[0].tensor, expected) and torch.equal(outer.tensor, expected)
    assert len(files(tmp_path / "c")) == 1


def warned(told):
    (line,) = told
    assert line.startswith("no cache of decoded pictures in ") and "\n" not in line
    return line


def test_no_room_on_the_disk(pictures, tmp_path, monkeypatch):
    split, told = unlabelled(pictures), Told()
    monkeypatch.setattr(cache, "ROOM", 2**62)
    with told.listening():
        found = load_pictures(split, *SIZE, tmp_path / "c", workers=1)
    assert isinstance(found, torch.Tensor) and torch.equal(found, decode_split(split, *SIZE))
    assert "to be left free" in warned(told)
    assert files(tmp_path / "c") == []


def test_disk_full_while_writing(pictures, tmp_path):
    """A limit on the size of files stands for a disk that fills up, first when space is reserved, then on the way."""
    script = SCRIPT.replace("cached_pictures(", "load_pictures(").replace("import cached", "import load")
    script = script.replace("found.tensor", "found")
    hook = "import resource, os\nresource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
    total = int(decode_split(unlabelled(pictures), *SIZE).long().sum())
    for reserve in ("", "os.posix_fallocate = lambda *a: None\n"):
        done = subprocess.run(
            [sys.executable, "-c", hook + reserve + script, "0", "-1", tmp_path / "c", pictures[0].parent],
            input="go\n", capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f" {total}\n")
        lines = [line for line in done.stderr.splitlines() if "decoding 12" not in line]
        assert "File too large" in warned(lines)
        assert files(tmp_path / "c") == []


@pytest.mark.parametrize("kind", ["file in the way", "no permission"])
def test_unwritable_folder(pictures, tmp_path, kind, monkeypatch):
    split, told, folder = unlabelled(pictures), Told(), tmp_path / "c"
    if kind == "file in the way":
        folder.write_text("mine")
    else:

        def refused(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(cache.Path, "mkdir", refused)  # a folder's mode does not stop root, who may test
    with told.listening():
        found = load_pictures(split, *SIZE, folder, workers=1)
    assert torch.equal(found, decode_split(split, *SIZE))
    assert str(folder) in warned(told)
    if kind == "file in the way":
        assert folder.read_text() == "mine"


def test_an_unreadable_picture_is_named_and_leaves_nothing(pictures, tmp_path):
    pictures[9].write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read image .*09\.png"):
        opened(unlabelled(pictures), tmp_path / "c")
    assert files(tmp_path / "c") == []
    pictures[9].unlink()
    with pytest.raises(ValueError, match=r"cannot read image .*09\.png"):
        load_pictures(unlabelled(pictures), *SIZE, tmp_path / "c")


def test_drawn_and_joined_sets(tmp_path, monkeypatch):
    drawn = {"train_identities": 2, "test_identities": 2, "views_per_identity": 4, "height": 32, "width": 16}
    told, folder = Told(), tmp_path / "c"
    one, other = (load_dataset("synthetic", seed=seed, **drawn).train for seed in (0, 1))
    for split in (one, other, one):
        assert torch.equal(opened(split, folder, told, (32, 16)).tensor, decode_split(split, 32, 16))
    assert told.decoded == len(one) + len(other)
    monkeypatch.setattr(cache, "_drawing", lambda: "other code")
    opened(one, folder, told, (32, 16))
    assert told.decoded == 2 * len(one) + len(other)
    joined = load_dataset("synthetic+synthetic", **drawn).train
    found = opened(joined, folder, told, (32, 16))
    assert torch.equal(found.tensor, decode_split(joined, 32, 16))


def test_chunks_of_a_cached_split(pictures, tmp_path):
    split = unlabelled(pictures)
    expected = decode_split(split, *SIZE)
    for folder in (None, tmp_path / "c", tmp_path / "c"):
        chunks = [(first, part.clone()) for first, part in decoded_chunks(split, *SIZE, 5, cache=folder)]
        assert [first for first, _ in chunks] == [0, 5, 10]
        assert torch.equal(torch.cat([part for _, part in chunks]), expected)


def test_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/nowhere/someone")
    for name in ("DGNET_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path("/nowhere/someone/.cache/dgnet_fast")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/x")
    assert cache_folder("auto") == Path("/var/x/dgnet_fast")
    monkeypatch.setenv("DGNET_FAST_CACHE", "~/mine")
    assert cache_folder() == Path("/nowhere/someone/mine")
    assert cache_folder("/given") == Path("/given")
    assert cache_folder("off") is None
    monkeypatch.setenv("DGNET_FAST_CACHE", "off")
    assert cache_folder() is None
    assert cached_pictures(unlabelled([]), *SIZE, None) is None


def test_the_mapped_pictures_are_not_in_memory_twice(tmp_path):
    """60 MB of pictures: anonymous memory does not grow by them, and release takes them out of the resident set."""
    split = unlabelled([tmp_path / "one.png"] * 300)
    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "one.png")

    def resident():
        said = Path("/proc/self/status").read_text()
        return {key: int(said.split(key + ":")[1].split()[0]) * 1024 for key in ("RssAnon", "RssFile")}

    before = resident()
    found = cached_pictures(split, 256, 256, tmp_path / "c")
    assert int(found.tensor[:, :, ::16, ::16].long().sum()) == 300 * 256 * 24
    touched = resident()
    found.release()
    after = resident()
    assert touched["RssFile"] - before["RssFile"] > 50e6 > after["RssFile"] - before["RssFile"]
    assert max(touched["RssAnon"], after["RssAnon"]) - before["RssAnon"] < 30e6


def test_the_pictures_of_the_next_step_are_read_before_it_begins(tmp_path):
    """The pages that hold them are asked for, and what is read afterwards is right."""
    split = unlabelled([tmp_path / "one.png"] * 40)
    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "one.png")
    found = cached_pictures(split, 40, 20, tmp_path / "c")  # 2 400 bytes each: they share pages
    asked = []

    class Watched:
        def madvise(self, *given):
            asked.append(given)

    batches = TrainBatches(found, np.arange(40) // 4, batch_size=3)
    mapped = found._map
    found._map = Watched()
    batches.batch(0)
    found._map = mapped
    assert asked[0] == (mmap.MADV_DONTNEED,)
    wanted = sorted(batches.indices(1).ravel().tolist())
    assert len(asked) == 1 + len(wanted)
    for (advice, first, length), index in zip(
        sorted(asked[1:], key=lambda a: a[1] + a[2]), wanted, strict=True
    ):
        assert advice == mmap.MADV_WILLNEED and first % mmap.PAGESIZE == 0
        assert first <= index * 2400 and first + length == (index + 1) * 2400
    found.expect(np.arange(40))
    found.release()
    assert (found.tensor == torch.tensor([9, 8, 7])[:, None, None]).all()


def test_a_run_keeps_its_pictures(tmp_path, caplog):
    config = tiny_config(**DATA_OPTIONS, data_cache=str(tmp_path / "c"))
    found = []
    for name in ("first", "second"):
        run = Run.open(config, tmp_path / name)
        caplog.clear()
        with caplog.at_level("INFO", logger="dgnet_fast"):
            found.append(run.training_pictures())
        said = "\n".join(caplog.messages)
        assert ("decoding training pictures: 20/20" in said) == (name == "first")
        assert "20 training pictures ready in " in said
    run = Run.open(config.replace(data_cache="off"), tmp_path / "third")
    plain = run.training_pictures()
    assert all(torch.equal(one.tensor, plain) for one in found)
    encoder = build_appearance_encoder(run.config).eval()
    scores = [
        score_retrieval(Extractor.of(encoder, run.config.replace(data_cache=str(folder))), run.dataset)[
            "single"
        ].mAP
        for folder in ("off", tmp_path / "c", tmp_path / "c")
    ]
    assert scores[0] == scores[1] == scores[2]
    assert len(files(tmp_path / "c")) == 3
