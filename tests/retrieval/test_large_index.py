"""Galleries that are searched in lists on the disk."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from dgnet_fast import search
from dgnet_fast.retrieval import index as index_module
from dgnet_fast.retrieval import large_index
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.large_index import LargeVectors, lists_for
from tests.tiny_run import draw_people, fails, tiny_run

faiss = pytest.importorskip("faiss")
D = 16


def clustered(count, seed):
    """Unit vectors around 40 people."""
    rng = np.random.default_rng(seed)
    people = np.random.default_rng(7).standard_normal((40, D))
    x = people[rng.integers(40, size=count)] + 0.4 * rng.standard_normal((count, D))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(large_index, "SHARD", 1500)


def test_shards_find_what_the_exact_search_finds(tmp_path):
    vectors = clustered(4000, seed=0)
    made = LargeVectors(tmp_path, D)
    sources = [vectors[:900], vectors[900:1100], vectors[1100:]]
    made.train(sources)
    made.add(sources)
    assert [shard["count"] for shard in made.shards] == [1500, 1500, 1000] and made.ntotal == 4000
    exact = faiss.IndexFlatIP(D)
    exact.add(vectors)
    asked = clustered(50, seed=1)
    value, place = made.search(asked, 10)
    wanted, right = exact.search(asked, 10)
    assert (np.diff(value, axis=1) <= 0).all()
    assert np.abs(value[:, 0] - wanted[:, 0]).max() < 0.05
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(right, place, strict=True)])
    assert made.recall >= 0.9 and recall >= 0.85
    # the scores are those of the vectors at these positions, but for 8 bits
    assert np.abs((asked[:, None] * vectors[place]).sum(2) - value).max() < 0.05

    again = LargeVectors.of(tmp_path, D, made.state())
    assert (again.search(asked, 10)[1] == place).all()
    more = clustered(700, seed=2)
    again.add([more])
    assert [shard["count"] for shard in again.shards] == [1500, 1500, 1500, 200]
    found = again.search(more[:20], 1)[1][:, 0]
    assert np.mean(found == np.arange(4000, 4020)) > 0.9
    # what was there before the second addition is there as long as nobody names the new files
    assert (LargeVectors.of(tmp_path, D, made.state()).search(asked, 10)[1] == place).all()


def test_a_missing_shard_is_named(tmp_path):
    vectors = clustered(2000, seed=0)
    made = LargeVectors(tmp_path, D)
    made.train([vectors])
    made.add([vectors])
    state = made.state()
    (tmp_path / state["shards"][0]["file"]).unlink()
    with pytest.raises(ValueError, match="has a missing or damaged file of vectors .*; make a new index"):
        LargeVectors.of(tmp_path, D, state)


def test_2_damaged_files_of_vectors_are_refused(tmp_path):
    vectors = clustered(2000, seed=0)
    made = LargeVectors(tmp_path, D)
    made.train([vectors])
    made.add([vectors])
    state = made.state()
    for name in (state["shards"][1]["file"], state["measured"]):
        path = tmp_path / name
        whole = path.read_bytes()
        for place in (10, len(whole) // 2, len(whole) - 3):
            data = bytearray(whole)
            data[place] ^= 2
            path.write_bytes(data)
            with pytest.raises(ValueError, match="has a missing or damaged file of vectors"):
                LargeVectors.of(tmp_path, D, state)
        path.write_bytes(whole)
    opened = LargeVectors.of(tmp_path, D, state)
    trained = tmp_path / state["trained"]
    trained.write_bytes(trained.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=f"the checksum of {state['trained']} is not that"):
        opened.add([clustered(2000, seed=1)])


def test_3_no_room_for_a_shard_is_said(tmp_path):
    """faiss itself only prints it when its last bytes do not fit."""
    index = faiss.IndexFlatIP(D)
    index.add(clustered(100, seed=0))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*x\.faiss"):
            large_index._write(index, tmp_path / "x.faiss")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_number_of_lists():
    assert [lists_for(n) for n in (200_000, 2_000_000, 10**8)] == [1024, 2048, 16384]


def test_the_command_grows_from_exact_to_lists(tmp_path, monkeypatch, capsys):
    _, run = tiny_run(tmp_path / "run")
    pictures = draw_people(tmp_path / "people", people=50, shots=2)
    first, rest = pictures[:60], pictures[60:]
    for module in (large_index, index_module):
        monkeypatch.setattr(module, "EXACT_UP_TO", 80)
    common = [str(run), "--device", "cpu"]
    words = [*common, "--gallery", *map(str, first), "--save", str(tmp_path / "index")]
    assert search.main(words) == 0
    assert search.main([*common, "--gallery", str(tmp_path / "index"), "--add", *map(str, rest)]) == 0
    assert not (tmp_path / "index.parts").exists()
    opened = index_module.PictureIndex.open(tmp_path / "index", Extractor(run, device="cpu"))
    assert isinstance(opened.vectors, LargeVectors) and len(opened) == 100
    capsys.readouterr()
    asked = [str(pictures[3]), str(pictures[90])]
    assert search.main([*common, "--gallery", str(tmp_path / "index"), "--query", *asked, "--top", "3"]) == 0
    lists = capsys.readouterr().out.splitlines()
    monkeypatch.undo()
    assert search.main([*common, "--gallery", *map(str, pictures), "--query", *asked, "--top", "3"]) == 0
    exact = capsys.readouterr().out.splitlines()
    assert len(lists) == len(exact) == 7
    rows = [[line.split(",") for line in found[1:]] for found in (lists, exact)]
    for mine, theirs in zip(
        *rows, strict=True
    ):  # the scores are of 8 bits, and some pictures' differ by less
        assert mine[:2] == theirs[:2] and float(mine[3]) == pytest.approx(float(theirs[3]), abs=1e-3)
    found, right = ({row[2] for row in some} for some in rows)
    assert len(found & right) >= 5


def test_a_large_gallery_needs_a_place(tmp_path, monkeypatch, capsys):
    _, run = tiny_run(tmp_path / "run")
    draw_people(tmp_path / "people", people=3)
    monkeypatch.setattr(large_index, "EXACT_UP_TO", 5)
    people = tmp_path / "people"
    words = [run, "--gallery", people, "--query", people, "--device", "cpu"]
    line = fails(capsys, search.main, words)
    assert "a gallery of 9 pictures is searched on the disk; save it with --save INDEX" in line
