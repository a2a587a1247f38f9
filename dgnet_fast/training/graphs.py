"""The whole step as CUDA graphs: recorded once for each of its variants, then replayed with one call.

A variant is what the host decides: for DG-Net whether this step trains E_s again, which ramped terms there are, and the
shapes of the batch. Each runs a few steps as it is, on a stream of its own (a recording must find every kernel loaded and
every buffer made), is then recorded without being run, and replayed from there on. All recordings share one pool of
memory: they never run at the same time, and what outlives a step (weights, optimisers, losses, counters) lies outside
of it.

What a recording reads must stay where it is: the batch is copied into buffers; loss weights and learning rates are
tensors written in place; the random numbers of dropout come from the device's default generator, which PyTorch
registers with every graph, so that the seed set before a replay counts as it does before a step that is not recorded.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor

from dgnet_fast.config import Config, ConfigError
from dgnet_fast.config.unit import UnitConfig
from dgnet_fast.distributed import processes
from dgnet_fast.training.optim import Precision

logger = logging.getLogger("dgnet_fast")

WARM_UP = 3
"""Steps of each variant that run before it is recorded; they count like any other."""

Names = list[str]
Work = Callable[[], Names]


class NotRecorded(RuntimeError):
    """A step could not be recorded. It has not run; what the attempt left in Python is still there."""


def graphs_refused(config: Config | UnitConfig, precision: Precision) -> str:
    """Why these options cannot run as CUDA graphs, '' where they can."""
    if precision.device.type != "cuda":
        return f"the device is {precision.device.type}"
    if precision.scaling:
        return "amp fp16 scales its losses with the host's help"
    if config.accumulate > 1:
        return f"accumulate is {config.accumulate}"
    if getattr(config, "single", "") == "edge":
        return "single is edge, whose maps the host draws"
    return ""


def graphs_wanted(config: Config | UnitConfig, precision: Precision) -> bool:
    """Whether ``cuda_graphs`` asks for recorded steps; ConfigError if it insists where they cannot be."""
    reason = graphs_refused(config, precision)
    if config.cuda_graphs == "on" and reason:
        raise ConfigError(f"cuda_graphs is 'on', but {reason}; allowed here: auto, off")
    return config.cuda_graphs != "off" and not reason


class Recorder(Protocol):
    """What records work on a device. ``required``: a step that cannot be recorded ends the run."""

    required: bool

    def warm_up(self, work: Work) -> Names:
        """Run the work where it will be recorded."""
        ...

    def record(self, work: Work) -> tuple[Callable[[], None], Names]:
        """Take the work down without running it: (what runs it, its result). Raises NotRecorded."""
        ...

    def forget(self) -> None:
        """Undo what a failed recording left on the device's side."""
        ...


class CudaRecorder:
    """`torch.cuda.CUDAGraph` on a side stream of ``device``, all recordings in one memory pool."""

    def __init__(self, device: torch.device, *, required: bool = False) -> None:
        self.device, self.required = device, required
        with torch.cuda.device(device):
            self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def warm_up(self, work: Work) -> Names:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            names = work()
        current.wait_stream(self.stream)
        return names

    def record(self, work: Work) -> tuple[Callable[[], None], Names]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread, such as one that loads pictures, may use the device meanwhile
        options = {"pool": self.pool, "stream": self.stream, "capture_error_mode": "thread_local"}
        with torch.cuda.device(self.device):
            try:
                with torch.cuda.graph(graph, **options):
                    names = work()
            except RuntimeError as error:
                raise NotRecorded(
                    f"the step could not be recorded as a CUDA graph ({str(error).splitlines()[0]}); "
                    "--cuda-graphs off runs it without"
                ) from error
        return graph.replay, names

    def forget(self) -> None:
        """The default generator would go on believing that a recording is under way: a fresh state takes its place."""
        torch.cuda.synchronize(self.device)
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        fresh = torch.Generator(self.device)
        torch.cuda.default_generators[index].graphsafe_set_state(fresh)


class LoopSteps:
    """Steps of a loop that has one batch and one way to go: as they are or, where the options ask for it and the device can,
    recorded as a CUDA graph. Where several processes are one run they are not recorded.

    ``work(batch)`` does all of a step on the device, with gradients made anew, and returns the names of what it has
    measured; what it reads beside the batch must stay where it is. ``parameters`` are those that it gives gradients.
    """

    def __init__(
        self,
        work: Callable[[Any], Names],
        config: Config,
        precision: Precision,
        parameters: list[Tensor],
        recorder: Recorder | None = None,
    ) -> None:
        self._work, self._parameters = work, parameters
        if recorder is None and processes.size() == 1 and graphs_wanted(config, precision):
            recorder = CudaRecorder(precision.device, required=config.cuda_graphs == "on")
        self.graphs = StepGraphs(lambda batches, _: work(batches[0]), recorder) if recorder else None

    def __call__(self, batch: Any, seed: Callable[[], None]) -> Names:
        """One step, after ``seed()``, which sets the generators that it draws from."""
        seed()
        if self.graphs is None:
            return self._work(batch)
        try:
            return self.graphs(batch, None, None)
        except NotRecorded as error:
            if self.graphs.recorder.required:
                raise
            logger.warning(f"{error}; steps run without from here on")
            recorder, self.graphs = self.graphs.recorder, None
            for parameter in self._parameters:  # gradients of the recording, in memory of its own
                parameter.grad = None
            recorder.forget()
            seed()
            return self._work(batch)


class StepGraphs:
    """Steps of one batch (a named tuple of tensors and Nones), recorded lazily by variant.

    ``update(batches, plan)`` does the work and returns the names of its terms. It must take all it needs from its
    arguments and from tensors that are only ever written in place.
    """

    def __init__(self, update: Callable[[list[Any], Any], Names], recorder: Recorder) -> None:
        self._update, self.recorder = update, recorder
        self._buffers: dict[tuple, Any] = {}
        self._warmed: Counter[tuple] = Counter()
        self._recorded: dict[tuple, tuple[Callable[[], None], Names]] = {}

    def __call__(self, batch: Any, plan: Any, variant: Hashable) -> Names:
        """One step; the batch is free again when the device has come by (no waiting). ``variant`` is the plan's.
        Raises NotRecorded, before anything ran.
        """
        form = _form(batch)
        key = (form, variant)
        static = self._load(form, batch)

        def work() -> Names:
            return self._update([static], plan)

        if key not in self._recorded:
            if self._warmed[key] < WARM_UP:
                self._warmed[key] += 1
                return self.recorder.warm_up(work)
            self._recorded[key] = self.recorder.record(work)
        replay, names = self._recorded[key]
        replay()
        return names

    def begun(self, batch: Any, variant: Hashable) -> int:
        """How many steps like this one have begun here without a recording, the one under way included."""
        return self._warmed[_form(batch), variant]

    def _load(self, form: tuple, batch: Any) -> Any:
        """The buffers for batches of this form, filled with this one."""
        if form not in self._buffers:
            self._buffers[form] = type(batch)(*(None if t is None else torch.empty_like(t) for t in batch))
        for buffer, value in zip(self._buffers[form], batch, strict=True):
            if isinstance(value, Tensor):
                buffer.copy_(value, non_blocking=True)
        return self._buffers[form]


def _form(batch: Any) -> tuple:
    return tuple(None if t is None else (t.shape, t.dtype) for t in batch)
