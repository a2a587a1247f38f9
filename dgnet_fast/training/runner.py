"""Runs the steps of an objective: passes and parts with their backward passes, optimisers, and the guard against losses
that are not finite. It knows of no network: an objective is a subclass of `Runner` (DG-Net's is
`dgnet_fast.training.step.TrainingStep`) that says in which order its passes, parts and optimisers come.

A *pass* computes what several parts of the objective use; a *part* computes some of the objective's terms. Each part's
backward pass follows at once and ends in the results of the passes that it used, so that the activations of one part
live at a time (`Shared`); what the parts left there goes on through the passes at the end.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils import _pytree as pytree

from dgnet_fast.distributed import processes
from dgnet_fast.distributed.gradients import GradientSums
from dgnet_fast.training.accumulation import add_gradients
from dgnet_fast.training.compiling import COMPILING
from dgnet_fast.training.graphs import NotRecorded, Recorder, StepGraphs
from dgnet_fast.training.guard import Guard, StepResult
from dgnet_fast.training.lanes import Lanes
from dgnet_fast.training.optim import Optimisers, Precision, ZeroGradients
from dgnet_fast.training.seeds import seed_step
from dgnet_fast.training.weight_copies import WeightCopies

logger = logging.getLogger(__name__)

Terms = dict[str, Tensor]
"""Terms by name, (S,) each with S the number of streams, and ``total``, the weighted sum that is differentiated."""

Results = TypeVar("Results")


class Phase(NamedTuple):
    """A phase of a step: when its gradients are whole, its terms are checked and its optimisers move.

    ``total`` is the name of its weighted sum among the terms of the step. ``network`` is the model's child that the
    optimisers move, '' for several; it is read again before the step ends.
    """

    optimisers: tuple[str, ...]
    total: str
    network: str = ""


class Shared(Generic[Results]):
    """The results of a pass (tensors in any nest of tuples) that several parts use, as leaves of the graph, where the
    parts' backward passes end and their gradients add up. ``learning`` is where its own backward pass ends.
    """

    def __init__(self, name: str, results: Results, learning: Sequence[Tensor]) -> None:
        self._name, self._learning = name, learning
        self._tensors, self._form = pytree.tree_flatten(results)
        self._gathered: list[list[Tensor]] = []
        self.leaves: Results = self.more_leaves()

    def more_leaves(self) -> Results:
        """The results as leaves of their own, for parts in a lane of their own: gradients of two lanes cannot be added up
        before both are done.
        """
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in self._tensors]
        self._gathered.append(leaves)
        return pytree.tree_unflatten(leaves, self._form)

    def backward(self) -> None:
        """Take what the leaves have gathered back through the pass, whose activations are free after it. A second
        call does nothing.
        """
        reached = []
        for x, *leaves in zip(self._tensors, *self._gathered, strict=True):
            if gradients := [leaf.grad for leaf in leaves if leaf.grad is not None]:
                reached.append((x, functools.reduce(torch.add, gradients)))
        learning, self._tensors, self._gathered, self._learning = self._learning, [], [], []
        if reached:
            with labelled(self._name):
                tensors, gradients = zip(*reached, strict=True)
                add_gradients(tensors, gradients, learning)


class Runner(ABC):
    """Runs steps of one objective. A step with a non-finite loss leaves weights, optimisers and running statistics as
    they were; `Guard` sees to that.

    A subclass gives `PHASES`, `TERMS`, `STREAMS` and the four methods below. Options: ``compile`` runs passes and
    parts through torch.compile (`COMPILED_ON_CPU`), one graph each; ``deferred`` (None: on CUDA, unless fp16's loss scaling needs the host)
    keeps the host from reading anything during a step; with ``recorder`` steps are recorded and replayed, and with
    ``lanes`` parts of a recorded step run side by side. ``whole`` is a
    part of the model whose weights keep their dtype under autocast (see `WeightCopies`). ``idle``: weights that change no
    result, whose gradient is zero.

    Where several processes are one run (`dgnet_fast.distributed`), each gives a batch of its own, and the step is that of
    all of them: gradients are summed, in ``sent`` (None: their own dtype), terms are means over the processes, and a loss
    that is not finite in one process skips the step in all. Dropout differs from process to process.
    """

    PHASES: dict[str, Phase]
    """In their order."""
    TERMS: tuple[str, ...]
    """Every term that a step may have, the phases' totals included."""
    STREAMS: int
    """Numbers that each term has, but for the totals, which have one."""
    COMPILED_ON_CPU: tuple[Callable, ...] | None = None
    """What ``compile`` compiles on a CPU; None: everything. On a GPU everything is compiled."""

    def __init__(
        self,
        model: nn.Module,
        optimisers: Optimisers,
        precision: Precision,
        *,
        seed: int,
        compile: bool = False,
        deferred: bool | None = None,
        recorder: Recorder | None = None,
        lanes: Lanes | None = None,
        whole: nn.Module | None = None,
        idle: Sequence[nn.Parameter] = (),
        sent: torch.dtype | None = None,
    ) -> None:
        self.model, self.optimisers, self.precision = model, optimisers, precision
        self.seed, self.compile = seed, compile
        if compile:
            COMPILING.watch()
        if deferred is None:
            deferred = precision.device.type == "cuda" and not precision.scaling
        optimisers.create_state()
        phases = list(self.PHASES.values())
        self.guard = Guard(
            model,
            optimisers,
            terms=self.TERMS,
            totals=tuple(phase.total for phase in phases),
            streams=self.STREAMS,
            early=[name for phase in phases[:-1] for name in phase.optimisers],
            deferred=deferred,
        )
        self.graphs = StepGraphs(self.update, recorder) if recorder else None
        self.lanes = lanes if recorder and deferred and processes.size() == 1 else None
        self.copies = WeightCopies(model, precision.dtype, without=whole) if precision.dtype else None
        self.sums = GradientSums(
            {
                name: [p for group in one.param_groups for p in group["params"]]
                for name, one in optimisers.named()
            },
            sent,
        )
        self.learned = [
            p for _, one in optimisers.named() for group in one.param_groups for p in group["params"]
        ]
        self._zeros = ZeroGradients(idle, optimisers.named())
        self._functions: dict[Callable, Callable] = {}

    @abstractmethod
    def plan(self, step: int) -> Any:
        """What step ``step`` goes by, drawn from PyTorch's default generator, which is seeded for it."""

    @abstractmethod
    def variant(self, plan: Any) -> Hashable:
        """What the host decides in a plan; two steps of one variant do the same work on a device."""

    @abstractmethod
    def one_batch(self, step: Step, batch: Any, plan: Any) -> None:
        """The order of a step on one batch: passes, parts, optimisers."""

    @abstractmethod
    def several_batches(self, step: Step, batches: list[Any], plan: Any) -> None:
        """The order of a step whose gradients are added up over batches."""

    def __call__(self, batches: list[Any], step: int) -> StepResult:
        """One update from one or, with gradient accumulation, several batches."""
        plan = self._seeded_plan(step)
        self.optimisers.set_learning_rates(step)
        self.guard.steps += 1
        if self.graphs is not None and len(batches) == 1:
            try:
                names = self.graphs(batches[0], plan, self.variant(plan))
            except NotRecorded as error:
                if self.graphs.recorder.required:
                    raise
                self._give_up_graphs(error)
                names = self.update(batches, self._seeded_plan(step))
        else:
            names = self.update(batches, plan)
        return StepResult(self.guard, names)

    def _seeded_plan(self, step: int) -> Any:
        seed_step(self.seed, "step", step, drawn_alike=True)
        plan = self.plan(step)
        if not processes.is_first():
            seed_step(self.seed, "step", step)
        return plan

    def _give_up_graphs(self, error: NotRecorded) -> None:
        """Go on without recordings, and with nothing of the one that failed: it ran no work, but gradients of it, in
        memory of its own, and the guard's notes are there.
        """
        assert self.graphs is not None
        logger.warning(f"{error}; steps run without from here on")
        recorder, self.graphs, self.lanes = self.graphs.recorder, None, None
        for _, optimiser in self.optimisers.named():
            optimiser.zero_grad(set_to_none=True)
        self.guard.forget()
        self.sums.forget()
        recorder.forget()

    def update(self, batches: list[Any], plan: Any) -> list[str]:
        """The step's work on the device, all that a CUDA graph records; returns the names of its terms."""
        self.guard.begin()
        if self.copies:
            self.copies.refresh()
        step = Step(self, len(batches), self._lanes_of(batches, plan))
        if len(batches) == 1:
            self.one_batch(step, batches[0], plan)
        else:
            self.several_batches(step, batches, plan)
        self.sums.drain()
        if not step.failed:
            # running statistics, which each process has moved by its own pictures
            processes.mean_all_(b for b in self.model.buffers() if b.is_floating_point())
        self.guard.finish(failed=step.failed)
        for _, optimiser in self.optimisers.named():
            optimiser.zero_grad(set_to_none=True)
        return list(step.terms)

    def _lanes_of(self, batches: list[Any], plan: Any) -> Lanes | None:
        """None in the first step of its kind, in which cuDNN times its algorithms: nothing may run beside them."""
        if self.lanes is None or self.graphs is None or len(batches) > 1:
            return None
        return self.lanes if self.graphs.begun(batches[0], self.variant(plan)) > 1 else None

    def move(self, phase: str) -> None:
        """Let the phase's optimisers move their weights."""
        scaler, optimisers = self.precision.scalers[phase], dict(self.optimisers.named())
        with labelled("sums over processes"):
            self.sums.wait(*self.PHASES[phase].optimisers)
        with labelled("optimisers"):
            for name in self.PHASES[phase].optimisers:
                self._zeros.give(name)
                scaler.step(optimisers[name])
            scaler.update()
            for name in self.PHASES[phase].optimisers:
                optimisers[name].zero_grad(set_to_none=True)  # not to lie about through the next phases

    def served(self, function: Callable) -> Callable:
        """What runs a pass or a part: the function itself, or what torch.compile made of it when it was first asked for."""
        if function not in self._functions:
            self._functions[function] = compile_part(function) if self._compiles(function) else function
        return self._functions[function]

    def _compiles(self, function: Callable) -> bool:
        chosen = self.COMPILED_ON_CPU if self.precision.device.type == "cpu" else None
        return self.compile and (chosen is None or function in chosen)

    @contextlib.contextmanager
    def watching(self, function: Callable, seen: list[Any]) -> Iterator[None]:
        """Within, the results of a pass or a part are also appended to ``seen``."""
        plain = self.served(function)

        def watched(*arguments: Any, **options: Any) -> Any:
            seen.append(plain(*arguments, **options))
            return seen[-1]

        self._functions[function] = watched
        try:
            yield
        finally:
            self._functions[function] = plain


class Step:
    """A step under way: what an objective's order is written with. ``terms`` are those of the phases checked so far."""

    def __init__(self, runner: Runner, batches: int, lanes: Lanes | None = None) -> None:
        self._runner, self._share, self._lanes = runner, 1 / batches, lanes
        self._weight = self._share / processes.size()  # of a total of this process in what is differentiated
        self._found: dict[str, dict[str, list[Tensor]]] = {phase: {} for phase in runner.PHASES}
        self.terms: Terms = {}
        self.failed = False

    def run(self, function: Callable, *arguments: Any, **options: Any) -> Any:
        """``function(model, ...)`` under autocast, with weights that are cast already."""
        runner = self._runner
        with labelled(function.__name__), runner.precision.autocast():
            with runner.copies.in_place() if runner.copies else contextlib.nullcontext():
                return runner.served(function)(runner.model, *arguments, **options)

    def shared(self, function: Callable[..., Results], *arguments: Any, **options: Any) -> Shared[Results]:
        """A pass whose results parts share."""
        learning = self._learning(arguments)
        return Shared(function.__name__, self.run(function, *arguments, **options), learning)

    def _learning(self, arguments: tuple) -> list[Tensor]:
        """Where a backward pass ends: all weights that learn, and the leaves of passes among the arguments."""
        given = (x for x in pytree.tree_leaves(arguments) if isinstance(x, Tensor) and x.is_leaf)
        return [*self._runner.learned, *(x for x in given if x.requires_grad)]

    def learn(self, phase: str, part: Callable[..., Terms], *arguments: Any) -> None:
        """One part's terms, kept for the check of ``phase``, and its backward pass, outside of autocast as PyTorch wants
        it. A part that returns no terms is passed over.
        """
        runner, found = self._runner, self._found[phase]
        terms = self.run(part, *arguments)
        if not terms:
            return
        with labelled(part.__name__):
            total = runner.precision.scalers[phase].scale(_times(terms["total"], self._weight))
            add_gradients([total], None, self._learning(arguments))
        for name, value in terms.items():
            known = runner.PHASES[phase].total if name == "total" else name
            found.setdefault(known, []).append(_times(value.detach(), self._share))

    def lane(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Within, passes and parts may run beside those outside, from which they need nothing that comes later. Those of
        one name run one after the other. `join` before what needs them.
        """
        return self._lanes.lane(name) if self._lanes and name else contextlib.nullcontext()

    def join(self) -> None:
        """Wait, on the device, for all lanes."""
        if self._lanes:
            self._lanes.join()

    def whole(self, optimiser: str) -> None:
        """No more gradients for this optimiser's weights come: begin to sum them over the processes, while the step goes
        on. Who does not say so loses only time: `apply` begins what was not begun.
        """
        self._runner.sums.start(optimiser)

    def apply(self, phase: str) -> bool:
        """Check the terms and let the phase's optimisers move; False where a loss is not finite and the step must end."""
        runner = self._runner
        self.terms |= {name: functools.reduce(torch.add, some) for name, some in self._found[phase].items()}
        self.failed = runner.guard.failed(self.terms)
        if self.failed:
            return False
        runner.move(phase)
        if runner.copies and runner.PHASES[phase].network:
            runner.copies.refresh(runner.PHASES[phase].network)
        return True


def _times(value: Tensor, factor: float) -> Tensor:
    """Without a call where there is nothing to multiply: one batch in one process, 33 calls of a step."""
    return value if factor == 1 else value * factor


LABEL = "step: "


@contextlib.contextmanager
def labelled(name: str) -> Iterator[None]:
    """Time spent within goes by this name in a profile of PyTorch's profiler, and what is compiled within in the log."""
    with COMPILING.part(name), record_function(LABEL + name):
        yield


def compile_part(function: Callable) -> Callable:
    """torch.compile of a pass or a part: one graph or an error, static shapes."""
    return torch.compile(function, fullgraph=True, dynamic=False)
