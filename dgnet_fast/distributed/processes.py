"""The processes of a run as one: who is who, and what they tell each other.

Without a launcher there is one process, and every function here returns at once what it would return among one. All
processes call the same functions in the same order; a function whose name ends in an underscore works in place. Tensors
on the host go by Gloo and tensors on a CUDA device by NCCL, where they can be recorded in CUDA graphs.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dgnet_fast.distributed.launch import PATIENCE, Place, launched, rank_said

SETTLING = 0.2
"""Seconds that the end of a run of several processes waits for PyTorch's threads."""

Value = TypeVar("Value")


class PeerLost(OSError):
    """Another process has ended or does not answer, so this one cannot go on."""


class _World:
    """What `joined` found out."""

    store: Any = None
    timeout = PATIENCE
    local_rank = 0


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _together() else 0


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if _together() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and talks."""
    return rank() == 0


def part() -> tuple[int, int]:
    """(rank, size): the part of each batch that is this process's."""
    return rank(), size()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Within, the processes that the launcher started are one run; without a launcher nothing happens, nor where
    a program has made its own process group.

    Raises:
        ValueError: the launcher's variables are incomplete, or this process has no CUDA device of its own.
        OSError: the processes could not meet: the port is taken, or one of them did not come in time.
    """
    place = launched()
    if place is None or _together():
        yield
        return
    _World.timeout, _World.local_rank = place.timeout, place.local_rank
    backend = "gloo"
    if torch.cuda.is_available():
        if place.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"LOCAL_RANK is {place.local_rank}, and this machine has {torch.cuda.device_count()} CUDA devices; "
                "start at most one process for each"
            )
        torch.cuda.set_device(place.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    _meet(place, backend)
    try:
        yield
        barrier()  # who has written is done before any process ends: the launcher takes an end for a failure
    finally:
        with contextlib.suppress(Exception):
            dist.destroy_process_group()
    _World.store = None  # ends its thread while Python still runs; after an error `first_to_fail` asks it
    # Without the wait about one process in fifteen was aborted after its work ("terminate called without an active
    # exception"), with it none of 34. Probably a thread of PyTorch's asks for Python, to let go of a tensor, while Python
    # ends; that is not proven.
    gc.collect()
    time.sleep(SETTLING)


def _meet(place: Place, backend: str) -> None:
    limit = timedelta(seconds=place.timeout)
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=limit)))
        # torchrun's own store outlives a restart, with the addresses of the processes before it
        _World.store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(
            backend, store=_World.store, rank=place.rank, world_size=place.size, timeout=limit
        )
    except RuntimeError as error:  # torch.distributed's errors are RuntimeErrors
        text = str(error).splitlines()[0]
        if "EADDRINUSE" in text or "in use" in text:
            raise OSError(
                f"the port of the first process is taken; set another MASTER_PORT ({text[:120]})"
            ) from error
        raise OSError(
            f"the {place.size} processes did not meet within {place.timeout:.0f} s ({text[:160]})"
        ) from error


def first_to_fail() -> bool:
    """Whether this process is the first to report an error, so that one line tells of it and not one a process."""
    if _World.store is None:
        return rank_said() == 0
    try:
        return _World.store.add("dgnet_fast: failed", 1) == 1
    except RuntimeError:
        return True  # the process that held the store has gone


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Within, what PyTorch raises because another process is gone becomes `PeerLost`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).splitlines()[0].split("] ")[-1]
        raise PeerLost(
            f"another process of this run has ended or did not answer within {_World.timeout:.0f} s ({text[:120]}); "
            "what was saved is kept"
        ) from error


def sum_(tensor: Tensor, *, wait: bool = True) -> Any:
    """Put the sum over the processes into ``tensor``; without ``wait`` returns what `finish` waits for."""
    if size() == 1:
        return None
    with answered():
        work = dist.all_reduce(tensor, async_op=True)
    if not wait:
        return work
    finish(work)
    return None


def finish(work: Any) -> None:
    """Wait for what `sum_` began. On a CUDA device the stream waits and the host goes on."""
    if work is not None:
        with answered():
            work.wait()


def mean_(tensor: Tensor) -> Tensor:
    """Put the mean over the processes into ``tensor`` and return it; one that is not finite anywhere stays so."""
    if size() > 1:
        sum_(tensor)
        tensor.div_(size())
    return tensor


@torch.no_grad()
def mean_all_(tensors: Iterable[Tensor]) -> None:
    """`mean_` of many tensors, with one call for each dtype."""
    if size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for some in by_dtype.values():
        flat = mean_(torch.cat([tensor.flatten() for tensor in some]))
        pieces = flat.split([tensor.numel() for tensor in some])
        torch._foreach_copy_(some, [piece.view(t.shape) for piece, t in zip(pieces, some, strict=True)])


def stacked(tensor: Tensor) -> Tensor:
    """The tensors of all processes, which have one shape, (N, ...) in the order of the ranks."""
    if size() == 1:
        return tensor[None]
    made = tensor.new_empty(size(), *tensor.shape)
    with answered():
        dist.all_gather(list(made.unbind()), tensor.contiguous())
    return made


def any_of(flag: bool) -> Callable[[], bool]:
    """Asks all processes, without waiting; the answer, when it is called for, is whether any of them said True."""
    if size() == 1:
        return lambda: flag
    said = torch.tensor(int(flag))
    work = sum_(said, wait=False)

    def answer() -> bool:
        finish(work)
        return bool(said)

    return answer


def gathered(value: Value) -> list[Value]:
    """The values of all processes, anything that can be pickled, in the order of the ranks."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    with answered():
        dist.all_gather_object(found, value, group=None)
    return found


def agreed(value: Value) -> Value:
    """The first process's value, for what all must decide alike (whether a file is there, a name with a time)."""
    if size() == 1:
        return value
    box = [value]
    with answered():
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Give all processes the first one's tensors."""
    if size() == 1:
        return
    with answered():
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, 0)
            if whole.data_ptr() != tensor.data_ptr():
                tensor.copy_(whole)


def first_of_all(function: Callable[[], Value]) -> Value:
    """``function()``, which the first process calls before the others do: it makes what they find. Each has the value
    of its own call; the first one's ValueError or OSError is raised on all, so that none waits.
    """
    value, error = None, None
    if is_first():
        try:
            value = function()
        except (ValueError, OSError) as one:
            error = one
    if (said := agreed(error)) is not None:
        raise error or said
    return value if is_first() else function()  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def held_by_first(context: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """Within, the first process is in ``context``, a lock that one process can hold, for all. The others go on when it
    has it; where it cannot have it, its error is raised on all.
    """
    with contextlib.ExitStack() as stack:
        first_of_all(lambda: stack.enter_context(context) if is_first() else None)
        yield


def barrier() -> None:
    """Wait for all processes."""
    gathered(None)


@contextlib.contextmanager
def first_on_node(what: str) -> Iterator[None]:
    """Within, the first process of each machine works alone and the others follow, however long it takes: what it
    leaves on the disk (``what`` names it), they find.
    """
    if size() == 1 or _World.store is None:
        yield
        return
    mates = [r for r, node in enumerate(gathered(_node())) if node == _node()]
    key = f"dgnet_fast: {what} {mates[0]} {_counted(what)}"
    if rank() == mates[0]:
        yield
        with answered():
            _World.store.set(key, "done")
        return
    with answered():
        while not _World.store.check([key]):  # by asking: a wait of PyTorch's has a limit
            time.sleep(0.1)
    yield


_seen: dict[str, int] = {}


def _counted(what: str) -> int:
    _seen[what] = _seen.get(what, 0) + 1
    return _seen[what]


def _node() -> str:
    import socket

    return socket.gethostname()


def check_same(what: dict[str, Any]) -> None:
    """Compare the values of all processes with the first one's. Raises ValueError, on all of them, with the first
    difference.
    """
    first, *others = gathered(what)
    for number, other in enumerate(others, start=1):
        for name in first | other:
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"{name} is {other.get(name)!r} in process {number} and {first.get(name)!r} in process 0; "
                    "all processes of a run must have the same options and data"
                )
