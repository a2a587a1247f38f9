"""Decoded pictures of a split in one memory-mapped file, so that the second start decodes nothing.

A file is the pictures, uint8 (N, 3, H, W) as they are, then the CRC-32 of each (uint32, little-endian), then one
block of JSON with the hash of what the pictures were made from. A file appears under its name only when it is
whole; it is read only, and the kernel's page cache is the only copy in memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import mmap
import os
import re
import secrets
import shutil
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import PIL
import torch
from torch import Tensor

from dgnet_fast.data.base import Split
from dgnet_fast.data.combine import JoinedSplit
from dgnet_fast.data.decode import Progress, decode_each, decode_split
from dgnet_fast.data.drawn import cities, figure, pedestrian, scene
from dgnet_fast.data.drawn import dataset as synthetic
from dgnet_fast.data.drawn.dataset import SyntheticSplit
from dgnet_fast.data.files import FileSplit

VARIABLE = "DGNET_FAST_CACHE"
FORMAT = 1
BLOCK = 4096
"""Bytes of the block of JSON at the end of a file."""
ROOM = 2**30
"""Bytes that a new file leaves free on its disk: a run has checkpoints to write."""
RESIZED = f"bicubic, Pillow {PIL.__version__}"
"""How pictures get their size; part of what a file is valid for."""

logger = logging.getLogger(__name__)


def cache_folder(option: str = "auto") -> Path | None:
    """The folder that `option` names: itself, None for 'off', and for 'auto' what the environment says.

    That is `$DGNET_FAST_CACHE` (a folder, or 'off'), else `$XDG_CACHE_HOME/dgnet_fast`, else
    `~/.cache/dgnet_fast`. The folder need not exist.
    """
    if option in ("", "auto"):
        option = os.environ.get(VARIABLE, "")
    if option == "off":
        return None
    if option in ("", "auto"):
        base = os.environ.get("XDG_CACHE_HOME", "")
        try:
            return (Path(base) if base else Path("~/.cache").expanduser()) / "dgnet_fast"
        except (
            RuntimeError
        ):  # a user without an entry in the list of users and without $HOME, as in containers
            logger.warning(
                f"no cache of decoded pictures: this user has no home folder; ${VARIABLE} names one"
            )
            return None
    return Path(os.path.expanduser(option))


# What pictures are made from ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """What the pictures of a split are made from: `label` for people to read, `place` says which pictures they
    are, `state` in which state those are now. Equal place and state mean equal pictures.
    """

    label: str
    place: tuple[str, ...]
    state: tuple[str, ...]


@cache
def _drawing() -> str:
    """The code that draws synthetic pedestrians, as a hash."""
    digest = hashlib.sha256(f"OpenCV {cv2.__version__}, NumPy {np.__version__}".encode())
    for module in (cities, figure, pedestrian, scene, synthetic):
        assert module.__file__ is not None
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()


def inputs_of(split: Split) -> Inputs | None:
    """What `split`'s pictures are made from; None for a split of no known kind. OSError where a file is gone.

    Files: resolved folder and relative paths, and of each its size and time of change. Drawn pictures: all
    arguments of the drawing, and the code that draws.
    """
    if isinstance(split, FileSplit):
        root = str(split.root.resolve())
        state = []
        for name in split.names:
            found = os.stat(os.path.join(root, name))
            state.append(f"{found.st_size} {found.st_mtime_ns}")
        return Inputs(Path(root).name, (root, *split.names), (RESIZED, *state))
    if isinstance(split, SyntheticSplit):
        drawn = np.stack([split.ids, split.cameras, split.identities, split.views])
        what = hashlib.sha256(np.ascontiguousarray(drawn).tobytes()).hexdigest()
        return Inputs(
            "synthetic",
            (
                f"seed {split.pedestrians.seed}" + " hard" * split.pedestrians.hard,
                *filter(None, [split.pedestrians.city]),
                what,
            ),
            (_drawing(),),
        )
    if isinstance(split, JoinedSplit):
        parts = [found for found in map(inputs_of, split.parts) if found is not None]
        if len(parts) < len(split.parts):
            return None
        return Inputs(
            "+".join(part.label for part in parts),
            tuple(text for part in parts for text in ("set", *part.place)),
            tuple(text for part in parts for text in ("set", *part.state)),
        )
    return None


def _hash(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


@dataclass(frozen=True)
class _Wanted:
    """The file for pictures of this shape: where it lies and what its last block must say."""

    path: Path
    shape: tuple[int, int, int, int]
    inputs: str

    @classmethod
    def of(cls, inputs: Inputs, folder: Path, shape: tuple[int, int, int, int]) -> _Wanted:
        size = f"{shape[2]}x{shape[3]}"
        label = re.sub(r"[^A-Za-z0-9.+]+", "-", inputs.label).strip("-")[:60] or "pictures"
        path = folder / f"{label}-{size}-{_hash(size, *inputs.place)[:16]}.pictures"
        return cls(path, shape, _hash(f"format {FORMAT}", size, *inputs.place, "state", *inputs.state))

    @property
    def picture_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * self.shape[3]

    @property
    def data_bytes(self) -> int:
        return self.shape[0] * self.picture_bytes

    @property
    def file_bytes(self) -> int:
        return self.data_bytes + 4 * self.shape[0] + BLOCK

    def block(self, checksums: np.ndarray) -> bytes:
        """The block of JSON that ends the file."""
        said = {
            "format": FORMAT,
            "shape": self.shape,
            "inputs": self.inputs,
            "checksums": zlib.crc32(checksums.tobytes()),
        }
        return json.dumps(said).encode().ljust(BLOCK - 1) + b"\n"


# Reading --------------------------------------------------------------------------------------------------


class MappedPictures:
    """Pictures in a file that is mapped, read only: `tensor` uint8 (N, 3, H, W) on the CPU.

    Writing to the tensor ends the process. `release` takes pages that were read out of this process's resident
    set; they stay in the page cache, and come back when read again. If the system has taken the page cache for other
    things, reading a picture waits for the disk; `expect` says before which pictures will be read.
    """

    def __init__(self, file: int, path: Path, shape: tuple[int, int, int, int]) -> None:
        self.path = path
        self._map = mmap.mmap(file, int(np.prod(shape)), flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        with warnings.catch_warnings():  # that the buffer cannot be written is what we want
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self.tensor = torch.frombuffer(self._map, dtype=torch.uint8).view(shape)

    def __len__(self) -> int:
        return len(self.tensor)

    def release(self) -> None:
        """Forget the mapped pages; 20 us after a batch of 32 pictures."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def expect(self, indices: np.ndarray) -> None:
        """Let the system read the pictures ``indices``, int64 of any shape, into the page cache while other work goes on."""
        each = self.tensor[0].nbytes
        for index in indices.ravel().tolist():
            first = index * each // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, first, (index + 1) * each - first)


class _Unusable(Exception):
    """Why a file that is there cannot be used."""


def _open(wanted: _Wanted, *, verify: bool = True, workers: int = 1) -> MappedPictures | None:
    """The file's pictures; None if there is no file. _Unusable if it is stale, torn or altered."""
    try:
        file = os.open(wanted.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(file).st_size
        try:
            said = json.loads(os.pread(file, BLOCK, max(0, size - BLOCK)))
        except ValueError:
            raise _Unusable("is damaged") from None
        if not isinstance(said, dict) or said.get("format") != FORMAT:
            raise _Unusable("is damaged, or of another version")
        if said.get("inputs") != wanted.inputs:
            raise _Unusable("was made from other pictures, or by another version")
        if size != wanted.file_bytes or said.get("shape") != list(wanted.shape):
            raise _Unusable(f"is damaged: {size} bytes, expected {wanted.file_bytes}")
        if verify:
            _verify(file, wanted, said.get("checksums"), workers)
        return MappedPictures(file, wanted.path, wanted.shape)
    finally:
        os.close(file)


def _verify(file: int, wanted: _Wanted, checksum: object, workers: int) -> None:
    """Compare every picture with its checksum: about 1 GB/s and thread. Reads, so that no page is mapped."""
    table = os.pread(file, 4 * wanted.shape[0], wanted.data_bytes)
    if zlib.crc32(table) != checksum:
        raise _Unusable("is damaged: its checksums")
    expected, each = np.frombuffer(table, "<u4"), wanted.picture_bytes

    def check(part: range) -> int | None:
        buffer = bytearray(each)
        for index in part:
            if os.preadv(file, [buffer], index * each) != each or zlib.crc32(buffer) != expected[index]:
                return index
        return None

    count = wanted.shape[0]
    parts = [range(first, min(first + 256, count)) for first in range(0, count, 256)]
    with ThreadPoolExecutor(workers) as pool:
        for index in pool.map(check, parts):
            if index is not None:
                raise _Unusable(f"is damaged: picture {index} is not what was written")


# Building -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the file's lock, which ends with the process whatever happens; False where locks do not work, and
    then two processes that build at once both do the work, each in a file of its own.
    """
    with open(path.with_suffix(".lock"), "ab") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info(f"waiting for another process that makes {path}")
                fcntl.flock(file, fcntl.LOCK_EX)
            held = True
        except OSError:
            held = False
        yield held


def _reserve(file: int, size: int, folder: Path) -> None:
    """Take the space of a file now, rather than run out of it on the way."""
    if shutil.disk_usage(folder).free < size + ROOM:
        raise OSError(errno.ENOSPC, f"{size / 1e9:.2f} GB are needed and {ROOM / 1e9:.1f} GB to be left free")
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot say
            raise


def _write(file: int, content: memoryview | bytes, place: int) -> None:
    left = memoryview(content).cast("B")
    while left:
        written = os.pwrite(file, left, place)
        left, place = left[written:], place + written


def _build(wanted: _Wanted, split: Split, workers: int | None, progress: Progress | None) -> None:
    """Decode into a file of a temporary name, then give it its name. Leaves nothing behind if it cannot.

    Nothing is forced to the disk: a file torn by a power cut fails its checksums and is made again.
    """
    path = wanted.path
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    checksums = np.empty(wanted.shape[0], dtype="<u4")
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            _reserve(file, wanted.file_bytes, path.parent)
            logger.info(f"decoding {wanted.shape[0]} pictures into {path} ({wanted.file_bytes / 1e9:.3g} GB)")

            def keep(index: int, picture: np.ndarray) -> None:
                checksums[index] = zlib.crc32(picture.data)
                _write(file, picture.data, index * wanted.picture_bytes)

            decode_each(split, *wanted.shape[2:], keep, workers=workers, progress=progress)
            _write(file, checksums.tobytes(), wanted.data_bytes)
            _write(file, wanted.block(checksums), wanted.data_bytes + checksums.nbytes)
        finally:
            os.close(file)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def cached_pictures(
    split: Split,
    height: int,
    width: int,
    folder: Path | None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> MappedPictures | None:
    """All pictures of `split` at this size from their file in `folder`, which is made first if it is missing,
    older than the pictures, torn or altered.

    Equal to what `decode_split` gives. None where there is no cache: `folder` is None, the split is of a kind
    that is not cached (`inputs_of`), or the file cannot be made, which the log is told in one line. `progress` is
    called while pictures are decoded. An unreadable picture raises ValueError with its path.
    """
    if folder is None or not len(split):
        return None
    threads = workers or min(16, os.cpu_count() or 1)
    try:
        inputs = inputs_of(split)
    except (OSError, ValueError):  # a picture is gone: decoding it says which, as without a cache
        return None
    if inputs is None:
        return None
    wanted = _Wanted.of(inputs, folder, (len(split), 3, height, width))
    try:
        with contextlib.suppress(_Unusable):
            if (found := _open(wanted, workers=threads)) is not None:
                return found
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(wanted.path) as held:
            try:
                if (found := _open(wanted, workers=threads)) is not None:
                    return found  # another process made it meanwhile
            except _Unusable as reason:
                logger.info(f"{wanted.path} {reason}; making it again")
            if held:
                for left in folder.glob(f".{wanted.path.name}.*.part"):  # by processes that were killed
                    left.unlink(missing_ok=True)
            _build(wanted, split, workers, progress)
            return _open(wanted, verify=False)
    except (OSError, _Unusable) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        logger.warning(f"no cache of decoded pictures in {folder} ({reason}); going on without it")
        return None


def load_pictures(
    split: Split,
    height: int,
    width: int,
    folder: Path | None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> MappedPictures | Tensor:
    """`cached_pictures`, or where there is no cache `decode_split`'s tensor: a copy in memory."""
    found = cached_pictures(split, height, width, folder, workers=workers, progress=progress)
    if found is not None:
        return found
    return decode_split(split, height, width, workers=workers, progress=progress)
