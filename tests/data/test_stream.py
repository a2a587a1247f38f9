"""Pictures streamed to the device, and where they are placed; on the CPU, and with streams that a test runs."""

import threading
from collections import deque

import numpy as np
import pytest
import torch

from dgnet_fast.data import TrainBatches, place
from dgnet_fast.data.cache import cached_pictures
from dgnet_fast.data.files import unlabelled
from dgnet_fast.data.stream import Stream
from tests.data.test_sampling import LABELS, equal, make
from tests.tiny_run import draw_people

OPTIONS = {"erasing_p": 0.5, "appearance_size": (24, 16)}


@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_streamed_batches_are_the_direct_ones(options):
    direct, streamed = make(**options), make(streamed=True, **options)
    kept = [streamed.batch(step) for step in range(9)]  # three epochs; none may change afterwards
    for step, batch in enumerate(kept):
        assert equal(batch, direct.batch(step))


def test_streamed_batches_after_a_resume_and_out_of_order():
    direct = make(**OPTIONS)
    for first in range(7):
        resumed = make(streamed=True, **OPTIONS)
        for step in range(first, first + 3):
            assert equal(resumed.batch(step), direct.batch(step))
    jumping = make(streamed=True, **OPTIONS)
    for step in (5, 6, 2, 2, 3, 9, 0, 1, 2):
        assert equal(jumping.batch(step), direct.batch(step))


def test_the_next_step_is_made_meanwhile_by_a_thread():
    batches, made = make(streamed=True), []
    plain, done = batches._plan, threading.Event()

    def plan(step):
        made.append((step, threading.current_thread().name))
        if step == 5:
            done.set()
        return plain(step)

    batches._stream._plan = plan
    batches.batch(4)
    assert done.wait(10)
    assert [step for step, _ in made] == [4, 5] and all(name.startswith("pictures") for _, name in made)
    with pytest.raises(ValueError, match="step must be 0 or more, got -1"):
        batches.batch(-1)
    assert equal(batches.batch(3), make().batch(3))


def test_batches_of_mapped_pictures(tmp_path):
    split = unlabelled(draw_people(tmp_path / "pictures", size=(16, 8)))
    mapped = cached_pictures(split, 16, 8, tmp_path / "cache")
    labels = np.arange(len(split)) // 3
    direct = TrainBatches(mapped.tensor.clone(), labels, batch_size=3, seed=1)
    for streamed in (False, True):
        batches = TrainBatches(mapped, labels, batch_size=3, seed=1, streamed=streamed)
        for step in range(5):
            assert equal(batches.batch(step), direct.batch(step))


# Streams that a test runs ---------------------------------------------------------------------------------


class FakeStream:
    """Work in order; nothing runs before something waits for it."""

    def __init__(self):
        self.work = deque()
        self.lock = threading.RLock()

    def wait_event(self, event):
        self.work.append(event.run)

    def run_until(self, marker):
        with self.lock:
            while marker not in self.done and self.work:
                self.work.popleft()()

    @property
    def done(self):
        return FakeCuda.done


class FakeEvent:
    """Recorded in a stream: everything before it has run once it is waited for."""

    def __init__(self):
        self.stream = None

    def record(self, stream):
        self.stream = stream
        stream.work.append(lambda: FakeCuda.done.add(self))

    def run(self):
        self.stream.run_until(self)

    synchronize = run


class FakeCuda:
    """As much of torch.cuda as `Stream` uses. The main stream runs behind the host as far as it may."""

    done: set = set()
    Event = FakeEvent

    def __init__(self):
        self.main, self.active = FakeStream(), None

    def Stream(self, device):  # noqa: N802
        return FakeStream()

    def current_stream(self, device):
        return self.main

    def stream(self, side):
        self.active = side
        return torch.no_grad()  # any context


class LateStream(Stream):
    """Copies are work of the side stream: they read and write when it runs, not when they are asked for."""

    skip: frozenset = frozenset()

    def _pinned(self, tensor):
        return tensor.clone()

    def _copy(self, target, source):
        self._side.work.append(lambda: target.copy_(source))


def lazily_taken(count):
    """What the kernels of `count` steps read, when everything runs as late as events allow."""
    cuda = FakeCuda()

    def plan(step):
        return torch.full((4,), step)

    def gather(packed, out):
        made = torch.full((2, 3), int(packed[0]), dtype=torch.uint8)
        return made if out is None else out.copy_(made)

    stream = LateStream(plan, gather, torch.device("cpu"), cuda)
    read = []
    for step in range(count):
        with stream.take(step) as (pictures, packed):
            cuda.main.work.append(lambda p=pictures, q=packed: read.append((p.tolist(), q.tolist())))
    while cuda.main.work:
        cuda.main.work.popleft()()
    return read


def expected(count):
    return [([[step] * 3] * 2, [step] * 4) for step in range(count)]


def test_slots_are_whole_whenever_the_device_gets_to_them():
    assert lazily_taken(9) == expected(9)


@pytest.mark.parametrize("forgotten", ["copy", "reader", "pinned buffer"])
def test_the_streams_of_the_test_notice_a_missing_wait(forgotten, monkeypatch):
    plain = FakeStream.wait_event

    def wait_event(self, event):
        for_reader = threading.current_thread().name.startswith("pictures")
        if for_reader != (forgotten == "reader"):
            plain(self, event)

    if forgotten == "pinned buffer":
        monkeypatch.setattr(FakeEvent, "synchronize", lambda self: None)
    else:
        monkeypatch.setattr(FakeStream, "wait_event", wait_event)
    assert lazily_taken(9) != expected(9)


# Where pictures lie ---------------------------------------------------------------------------------------


def test_place(caplog):
    caplog.set_level("INFO", logger="dgnet_fast")
    pictures = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    cpu, meta = torch.device("cpu"), torch.device("meta")  # meta stands for a device with memory of its own
    size = pictures.nbytes
    for where in ("auto", "device", "host"):
        assert place(pictures, cpu, where) is pictures
    assert place(pictures, meta, "host", free=lambda _: 10**9) is pictures
    assert place(pictures, meta, "auto", free=lambda _: 4 * size).device == meta
    assert caplog.messages == []
    assert place(pictures, meta, "auto", free=lambda _: 4 * size - 1) is pictures
    assert "they stay in host memory and are streamed" in caplog.messages[0]
    assert place(pictures, meta, "device", free=lambda _: size).device == meta
    with pytest.raises(ValueError, match="pictures_on is 'gpu'; allowed: auto, device, host"):
        place(pictures, meta, "gpu")


def test_place_without_room(monkeypatch, caplog):
    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    pictures = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr(torch, "empty", full)
    meta = torch.device("meta")
    with pytest.raises(ValueError, match="pictures_on is 'device': .*; allowed here: auto, host"):
        place(pictures, meta, "device", free=lambda _: 10**6)
    with caplog.at_level("INFO", logger="dgnet_fast"):
        assert place(pictures, meta, "auto", free=lambda _: 10**6) is pictures
    assert len(caplog.messages) == 1


@pytest.mark.gpu
def test_batches_on_a_gpu_are_the_cpu_ones():
    images = torch.randint(256, (len(LABELS), 3, 256, 128), dtype=torch.uint8)
    options = {"batch_size": 4, "erasing_p": 0.5, "seed": 3}
    cpu = TrainBatches(images, LABELS, **options)
    held = TrainBatches(images.cuda(), LABELS, device="cuda", **options)
    streamed = TrainBatches(images, LABELS, device="cuda", **options)
    assert streamed._stream is not None and held._stream is None
    kept = [(held.batch(step), streamed.batch(step)) for step in range(40)]
    for step, pair in enumerate(kept):
        for batch in pair:
            assert equal([None if part is None else part.cpu() for part in batch], cpu.batch(step))
