"""Torch files: written atomically with a checksum, and read without running pickled code after the checksum was compared.

A torch file is a zip file. Ours end with a comment of the zip, the *seal*, which holds the CRC-32 of all bytes before
it; PyTorch does not look at it. Files of others have no seal, and then the CRC-32 of each entry of the zip is compared.
Files older than PyTorch 1.6 are no zip files and have no checksum.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from dgnet_fast.report.files import atomically

_SEAL = b"dgnet_fast crc32 "
_LENGTH = len(_SEAL) + 8
_END = b"PK\x05\x06"
_END_BYTES = 22
"""Length of the record that ends a zip file, up to its comment; its last two bytes are the length of the comment."""


def save_atomically(content: Any, path: Path) -> None:
    """torch.save, done `atomically` and sealed: if the program is killed, the old file or the new one is left, never a
    part of one. Raises OSError that names the file if it cannot be written.
    """
    with atomically(path) as temporary:
        with open(temporary, "wb") as file:
            torch.save(content, file)
        _seal(temporary)


def _seal(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", _LENGTH) + _SEAL)
        size = file.tell()
        file.write(f"{_crc(file, size):08x}".encode())


def _crc(file: BinaryIO, size: int) -> int:
    """CRC-32 of the first ``size`` bytes; about 1 GB/s."""
    file.flush()
    file.seek(0)
    found, left = 0, size
    while left and (part := file.read(min(left, 2**22))):
        found, left = zlib.crc32(part, found), left - len(part)
    file.seek(size)
    return found


def _verify(path: Path) -> None:
    """Raise ValueError if a torch file is not what was written, and UnpicklingError if it is a pickle of something else. Any
    other file that is no zip file passes.
    """
    with open(path, "rb") as file:
        head = file.read(4)
        if head != b"PK\x03\x04":
            if head[:1] == b"\x80" and head[1:2] != b"\x02":  # PyTorch would warn of it, and then fail
                raise pickle.UnpicklingError("a pickle of another protocol than that of old torch files")
            return
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > os.fstat(file.fileno()).st_size:
                raise ValueError("its entries claim more bytes than the file has")
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END_BYTES - _LENGTH))
        tail = file.read()
        end, seal = tail[:_END_BYTES], tail[_END_BYTES:]
        if end.startswith(_END) and end[-2:] == struct.pack("<H", _LENGTH) and seal.startswith(_SEAL):
            if seal[len(_SEAL) :] != f"{_crc(file, size - 8):08x}".encode():
                raise ValueError("it is damaged: its checksum is not that of its content")
            return
    if not (tail[-_END_BYTES:].startswith(_END) and tail.endswith(b"\0\0")):
        raise ValueError("it is damaged, or cut short")
    with zipfile.ZipFile(path) as archive:
        if (name := archive.testzip()) is not None:
            raise ValueError(f"it is damaged: the checksum of its entry {name} is not that of its content")


def load_file(path: str | Path, what: str = "checkpoint") -> Any:
    """torch.load on the CPU without running pickled code, after the checksum was compared. Raises ValueError that
    names a missing or damaged file; ``what`` says what the file should be.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such {what}: {path}")
    if not path.stat().st_size:
        raise ValueError(f"{path} is not a readable {what}: it is empty")
    try:
        _verify(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's own text advises to load it as a program, which nobody should do with a file that is none of theirs
        raise ValueError(
            f"{path} is not a readable {what}: it is no file of tensors, or holds more than tensors"
        ) from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        elif isinstance(error, (ValueError, RuntimeError)) and str(error):
            reason = str(error).splitlines()[0]
        else:  # what a reader of pickles or zip files stumbled over
            reason = "it is no file of tensors, or it is damaged"
        raise ValueError(f"{path} is not a readable {what}: {reason}") from error
