"""Write files that are either complete or absent, and hold the lock of a folder. This package writes all files that it
may read again in this way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import itertools
import json
import logging
import os
import platform
import re
import shlex
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Name of the lock file in a folder that one process may write."""
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.([0-9a-f]{8})-(\d+)-\d+\.tmp")
_count = itertools.count()
_cleaned: set[tuple[int, str]] = set()


class InUse(ValueError):
    """Another process works in the folder."""


def _machine() -> str:
    """8 hexadecimal digits that are equal for processes whose numbers can be compared."""
    try:
        space = os.readlink("/proc/self/ns/pid")  # containers number their processes from 1 each
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # it belongs to somebody else
    return True


def _temporary(path: Path) -> Path:
    short = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # any name fits, however long it is
    return path.with_name(f".{short}.{_machine()}-{os.getpid()}-{next(_count)}.tmp{path.suffix[:16]}")


def clean_temporaries(folder: Path) -> None:
    """Remove what killed processes of this machine left of files that they had not finished."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError:
        return
    for name in names:
        found = _TEMPORARY.match(name)
        if found and found[1] == _machine() and not _is_running(int(found[2])):
            with contextlib.suppress(OSError):
                _remove(folder / name)


def cause_of(error: BaseException) -> OSError | None:
    """The OSError behind an error of a library that writes or reads files, or None.

    torch.save reports a full disk as a RuntimeError whose text is a position in its zip file; safetensors and faiss
    give the text of the system alone.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen
        seen = seen.__cause__ or seen.__context__
    text = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES):
        if os.strerror(number) in text or f"os error {number})" in text:
            return OSError(number, os.strerror(number))
    return None


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """A context in which a failure to write raises OSError with ``path`` and the system's reason, whatever library
    wrote.
    """
    try:
        yield
    except Exception as error:
        cause = cause_of(error)
        if cause is None or isinstance(error, InUse):
            raise
        if isinstance(error, OSError) and error.filename == os.fspath(path):
            raise  # in words of ours
        if isinstance(cause.filename, str) and not _TEMPORARY.search(cause.filename):
            raise  # of another file, which is named
        raise OSError(cause.errno, os.strerror(cause.errno or 0), os.fspath(path)) from error


@contextlib.contextmanager
def atomically(path: str | os.PathLike[str], *, sync: bool = True, new: bool = False) -> Iterator[Path]:
    """A context with a temporary file in the folder of ``path`` and with its suffix; the file is renamed to ``path``
    when the context ends without an error.

    If the program is killed, the old file or the new one is left, never a part of one; the temporary file is removed
    by the next process that writes into the folder. Missing folders are created. With ``sync`` the content and then
    the name are on the disk when the context ends, so that a power failure leaves the old file or the new one.

    A link stays: the file to which it points is replaced. Raises OSError with the name of ``path`` if it cannot be
    written, as on a full disk; FileExistsError if it is to be ``new`` and is there.
    """
    path = Path(path)
    with naming(path):
        path = path if new else _target(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        place = (os.getpid(), str(path.parent.absolute()))
        if place not in _cleaned:
            _cleaned.add(place)
            clean_temporaries(path.parent)
        temporary = _temporary(path)
        try:
            yield temporary
            if sync:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
            if new:
                _rename_to_new(temporary, path)
            else:
                os.replace(temporary, path)
            if sync:
                _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """The file to which a link points. Raises OSError for a device or a pipe, which must not be replaced by a file."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.exists() and not target.is_file() and not target.is_dir():
        raise OSError(errno.EINVAL, "it is a device or a pipe; allowed: the name of a file", os.fspath(path))
    return target


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A context with a temporary folder beside ``path``, which becomes ``path`` when the context ends without an error.
    ``path`` must not exist, or be an empty folder; otherwise OSError, also if it appears meanwhile.

    If the program is killed, there is no folder ``path``, and what it left is removed by the next process that writes
    beside it.
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clean_temporaries(path.parent)
        temporary = _temporary(path)
        temporary.mkdir()
        try:
            yield temporary
            os.rename(temporary, path)
            _sync_folder(path.parent)
        finally:
            if temporary.exists():
                shutil.rmtree(temporary, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot
        place = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)


def write_bytes(path: str | os.PathLike[str], content: bytes, *, sync: bool = True) -> None:
    """Write a file, `atomically`."""
    with atomically(path, sync=sync) as temporary:
        temporary.write_bytes(content)


def write_new(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file that does not exist, `atomically`. Raises FileExistsError if it appeared meanwhile."""
    with atomically(path, new=True) as temporary:
        temporary.write_bytes(content)


def _rename_to_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path)) from None
        os.replace(temporary, path)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, `atomically`. Names of files that are no UTF-8 keep their bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write a JSON file, `atomically`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def checksum(content: Any) -> str:
    """8 hexadecimal digits of CRC-32 over values that JSON can hold, without the entry "checksum" of a mapping."""
    if isinstance(content, dict):
        content = {k: v for k, v in content.items() if k != "checksum"}
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def write_checked(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write a JSON file with its `checksum`, `atomically`."""
    write_json(path, content | {"checksum": checksum(content)})


def read_checked(path: str | os.PathLike[str], names: Sequence[str], remedy: str) -> dict[str, Any]:
    """The mapping that `write_checked` wrote, with the entries ``names`` and no others. A file without a checksum is of
    an earlier version, and is read too. Raises ValueError, ending in ``remedy``, for anything else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged; {remedy}") from error
    if not isinstance(content, dict) or content.keys() - {"checksum"} != set(names):
        raise ValueError(f"{path} is damaged; {remedy}")
    if content.pop("checksum", known := checksum(content)) != known:
        raise ValueError(f"{path} is damaged: its checksum is not that of its content; {remedy}")
    return content


def check_writable(path: str | os.PathLike[str], option: str = "") -> None:
    """Raise OSError if a file or folder ``path`` could not be written, before any work is done for it. Nothing is
    left behind.
    """
    path = Path(path)
    said = f"{option} {path}".strip()
    with _saying(said):
        path = folder = _target(path)
        if path.is_dir():
            pass
        elif path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            folder = path.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{folder} is no folder")
        probe = _temporary(folder / "probe")
        with open(probe, "xb"):
            pass
        probe.unlink(missing_ok=True)
        longest = os.pathconf(folder, "PC_NAME_MAX")
        if len(os.fsencode(path.name)) > longest:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


@contextlib.contextmanager
def _saying(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), what) from error


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def is_free(folder: str | os.PathLike[str], unfinished: Sequence[str] = ()) -> bool:
    """Whether something new can be written to ``folder``: it is missing, or nothing is in it but locks, temporary files,
    and what an interrupted program left of it, files whose names match one of the patterns ``unfinished``.

    Ask again when the lock of the folder is held (`locked`): another process may have written there since.
    """
    folder = Path(folder)
    if not folder.exists():
        return not folder.is_symlink()
    if not folder.is_dir():
        return False
    return all(
        name == LOCK or _TEMPORARY.match(name) or any(fnmatch.fnmatch(name, one) for one in unfinished)
        for name in os.listdir(folder)
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(
            errno.ENOTDIR, "it is a file; allowed: the name of a folder", os.fspath(folder)
        ) from None


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of a folder that one process may write at a time. Raises `InUse` that names the process which
    holds it.

    A missing folder is made, and removed at the end if nothing is in it. The lock is the system's (flock) and ends with
    the process, however it ends. Its file ``.lock`` is removed at the end, and one that a killed process left does not
    disturb. Where a file system has no locks, the log says so.
    """
    path = Path(folder) / LOCK
    made: list[Path] = []
    file = None
    while file is None:
        made += [place for place in (path.parent, *path.parent.parents) if not place.exists()]
        _make_folder(path.parent)
        try:
            file = open(path, "a+", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115 - held to the end
        except FileNotFoundError:  # the one who made the folder has just removed it
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(1000).strip() or "another process"
            file.close()
            raise InUse(f"{folder} is in use by {holder}; wait until it has ended, or end it") from None
        except OSError as error:
            logger.warning(f"{folder} cannot be locked ({error.strerror}); let no other process write there")
        if not _is_at(file.fileno(), path):  # the one who held it has just removed it
            file.close()
            file = None
    try:
        command = shlex.join(sys.orig_argv)[:300]
        holder = (
            f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}: {command}"
        )
        with naming(path):  # not by way of the buffer, which a full disk would leave full
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), holder.encode("utf-8", "surrogateescape"), 0)
        yield
    finally:
        if _is_at(file.fileno(), path):  # otherwise the folder was removed, and may be another's by now
            path.unlink(missing_ok=True)
        file.close()
        with contextlib.suppress(OSError):  # a folder that holds something stays
            for place in made:
                place.rmdir()
