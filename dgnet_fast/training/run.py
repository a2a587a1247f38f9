"""A complete run in its folder: data, teacher, training, scores and report."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.checkpoints.pretrained import load_imagenet
from dgnet_fast.checkpoints.runs import (
    restore_model,
    write_options,
)
from dgnet_fast.checkpoints.teachers import (
    load_teachers,
    save_teachers,
)
from dgnet_fast.config import Config, ConfigError
from dgnet_fast.config.device import convolutions_tried, resolve_device
from dgnet_fast.config.places import with_absolute_paths
from dgnet_fast.data import (
    IdentityBatches,
    MappedPictures,
    ReidDataset,
    Split,
    TrainBatches,
    WithMore,
    cache_folder,
    load_pictures,
    place,
)
from dgnet_fast.data.datasets import dataset_of
from dgnet_fast.data.drawn.dataset import SyntheticSplit
from dgnet_fast.distributed import processes
from dgnet_fast.generation.codes import swap_cells
from dgnet_fast.generation.scores import drawn_scores
from dgnet_fast.metrics import RetrievalScores
from dgnet_fast.models.appearance_encoder import AppearanceEncoder, appearance_input_size
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.typed import in_channels_last
from dgnet_fast.report.files import (
    atomically,
    check_writable,
    locked,
    write_json,
)
from dgnet_fast.report.grid import image_grid
from dgnet_fast.report.log import RunLog, format_duration
from dgnet_fast.report.page import write_report
from dgnet_fast.report.progress import progress
from dgnet_fast.report.tables import TABLES
from dgnet_fast.report.trackers import check_trackers, trackers_of
from dgnet_fast.training.average import WeightAverage
from dgnet_fast.training.checks import baseline_batch, baseline_steps, check_training
from dgnet_fast.training.folder import begin_folder, say_steps
from dgnet_fast.training.generator_loop import GENERATOR, train_generator
from dgnet_fast.training.graphs import graphs_refused, graphs_wanted
from dgnet_fast.training.loop import StopSignal, train
from dgnet_fast.training.one_run import check_one_run
from dgnet_fast.training.optim import Optimisers, Precision, resolve_amp
from dgnet_fast.training.results import BASELINE, final_tables, named_teachers, scores_of
from dgnet_fast.training.resume import check_content, content_of
from dgnet_fast.training.seeds import derive_seed, generators_kept
from dgnet_fast.training.teacher_loop import train_teacher

logger = logging.getLogger(__name__)

TEACHER = "teacher.pt"
"""File name of the teacher in the folder of a run."""


def with_classes(config: Config, dataset: ReidDataset) -> Config:
    """The options with ID_class counted from the data. If an old file gives another number, the log says so and the
    counted number is used.
    """
    count = dataset.num_classes
    if config.ID_class not in (0, count):
        logger.info(
            f"ID_class is {config.ID_class} in the options; the training set has {count} identities, using {count}"
        )
    return config.replace(ID_class=count)


@dataclass
class Run:
    """A run folder, with everything that the parts of the run need."""

    config: Config
    folder: Path
    dataset: ReidDataset
    device: torch.device
    precision: Precision

    @classmethod
    def open(cls, config: Config, folder: Path, *, teacher_only: bool = False) -> Run:
        """Load the data, set the number of classes, and check all that can be wrong. Nothing is written."""
        config = with_absolute_paths(config)
        device = resolve_device(config.device)
        dataset = dataset_of(config)
        config = with_classes(config, dataset)
        precision = Precision(resolve_amp(config, device), device)
        check_training(config, dataset, teacher_only=teacher_only)
        if not teacher_only and config.teacher not in ("", "auto"):
            load_teachers(config, dataset.class_names)
        if processes.is_first():
            check_writable(folder)
        check_one_run(config, dataset)
        return cls(config, folder, dataset, device, precision)

    def begin(self) -> None:
        """Write config.yaml and environment.json, and say in the log what the run is."""
        config, folder, precision = self.config, self.folder, self.precision
        graphs = graphs_wanted(config, precision)
        check_trackers(config.track)
        kind = begin_folder(
            folder, self.device, precision, config.amp, lambda remark: write_options(folder, config, remark=remark)
        )  # fmt: skip
        logger.info(
            f"{self.dataset.name}: {config.ID_class} identities, {len(self.dataset.train)} training pictures; {self.device}, {kind}; "
            f"run folder {folder}"
        )
        if processes.size() > 1:
            logger.info(
                f"{processes.size()} processes with a batch size of {config.batch_size} each: {processes.size() * config.batch_size} "
                "pictures a stream in each step; the learning rates are as given"
            )
        if self.device.type == "cuda" and not graphs:
            reason = "as asked" if config.cuda_graphs == "off" else graphs_refused(config, precision)
            logger.info(f"steps are not recorded as CUDA graphs: {reason}")

    def batches(
        self,
        batch_size: int,
        *,
        pictures: Tensor | MappedPictures,
        purpose: str,
        erasing_p: float = 0.0,
        views: int = 0,
    ) -> TrainBatches:
        """The training batches for one purpose; see `dgnet_fast.data.TrainBatches`. With ``views`` each batch has as
        many pictures of each of its identities.
        """
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "seed": derive_seed(self.config.seed, purpose),
            "erasing_p": erasing_p,
            "appearance_size": appearance_input_size(self.config),
            "pad": self.config.crop_pad,
            "device": self.device,
            "part": processes.part(),
        }
        if views:
            return IdentityBatches(pictures, self.dataset.train_labels, views=views, **options)
        return TrainBatches(pictures, self.dataset.train_labels, **options)

    def log(self, name: str, steps: int, trackers: Sequence[Any] = ()) -> RunLog:
        """The log of a training of ``steps`` steps in the folder ``name`` of the run; only the first process writes it."""
        every = max(
            1, min(100, steps // 50)
        )  # about fifty progress lines, and at least one in a hundred steps
        return RunLog(
            self.folder / name, steps, every=every, trackers=trackers, silent=not processes.is_first()
        )

    def training_pictures(self) -> Tensor | MappedPictures:
        """The decoded training split, uint8 (N, 3, H, W), on the device or the host as the options say."""
        config, start = self.config, time.perf_counter()
        with processes.first_on_node("training pictures"):  # it makes the cache, which the others then map
            pictures = load_pictures(
                self.dataset.train,
                *config.picture_size,
                cache_folder(config.data_cache),
                workers=config.num_workers or 1,
                progress=progress("decoding training pictures"),
            )
        pictures = place(pictures, self.device, config.pictures_on)
        logger.info(f"{len(pictures)} training pictures ready in {time.perf_counter() - start:.1f} s")
        return pictures

    def train_baseline(
        self,
        name: str,
        pictures: Tensor | MappedPictures,
        stop: StopSignal,
        *,
        steps: int,
        batch: int,
        **extra: Any,
    ) -> AppearanceEncoder:
        """Train the paper's baseline for ``steps`` steps of ``batch`` pictures, or finish an interrupted training, and save
        it as ``NAME.pt``. ``extra``: further arguments of `train_teacher`.
        """
        config = self.config.replace(teacher_steps=steps, teacher_batch=batch)
        state_file = self.folder / name / "state.pt"
        extra.setdefault("about", {"class names": self.dataset.class_names})
        names = self.dataset.class_names
        batches = self.batches(
            max(1, config.teacher_batch // 2),
            pictures=pictures,
            purpose="teacher data",
            views=config.reid.views,
        )
        with self.log(name, steps) as log:
            network = train_teacher(
                config,
                batches,
                log,
                self.precision,
                state_file=state_file,
                stop=stop,
                **extra,
            )
        if processes.is_first():
            save_teachers(self.folder / f"{name}.pt", [network], [config.teacher_stride], names, config)
            state_file.unlink(missing_ok=True)  # last: until then it is all that is left of the training
        return network

    def teachers(self, pictures: Tensor | MappedPictures, stop: StopSignal) -> list[AppearanceEncoder]:
        """The teachers that the options name; ``auto`` trains one, only once for each run folder."""
        config = self.config
        if config.teacher == "auto" and not processes.agreed((self.folder / TEACHER).is_file()):
            logger.info("training the teacher (the paper's baseline)")
            return [
                self.train_baseline(
                    "teacher", pictures, stop, steps=config.teacher_steps, batch=config.teacher_batch
                )
            ]
        name = str(self.folder / TEACHER) if config.teacher == "auto" else config.teacher
        found = load_teachers(config.replace(teacher=name), self.dataset.class_names)
        return [t.to(self.device) for t in found]

    def announce(self, first: int, last: int) -> None:
        """Say what is trained one after the other, since the remaining time that is shown is that of one of them."""
        config = self.config
        parts = [
            ("the teacher", config.teacher_steps, config.teacher == "auto" and not (self.folder / TEACHER).is_file()),
            ("E_s and G alone", config.generator_steps, first == 0 and not (self.folder / GENERATOR).is_file()),
            ("all networks together", last - first, True),
            ("the baseline", baseline_steps(config), config.baseline and last == config.max_iter),
        ]  # fmt: skip
        steps = [f"{name} for {count} steps" for name, count, due in parts if due and count]
        logger.info(f"to be trained: {', then '.join(steps)}")
        if self.device.type == "cuda":
            logger.info(
                "the first steps of each part compile this GPU's kernels, which takes a minute or two; "
                "later runs find them in Triton's cache"
            )

    def baseline(self, stop: StopSignal) -> tuple[AppearanceEncoder, int]:
        """The baseline that is trained for as many steps as the whole run, and the number of these steps: as many
        updates as E_a had, from the first step of its teacher to the last step of DG-Net. It has the schedule of a
        teacher of that length. It is trained only once for each run folder.
        """
        config, steps = self.config, baseline_steps(self.config)
        own = self.folder / "baseline.pt"
        if processes.agreed(own.is_file()):
            (found,) = load_teachers(config.replace(teacher=str(own)), self.dataset.class_names)
            return found.to(self.device), steps
        logger.info(
            f"training the baseline for as long, {steps} steps, to compare with (--baseline false leaves it out)"
        )
        begin = time.perf_counter()
        with stop.at_once():
            pictures = self.training_pictures()
        batch = baseline_batch(config, len(pictures))
        network = self.train_baseline("baseline", pictures, stop, steps=steps, batch=batch)
        logger.info(f"the baseline took {format_duration(time.perf_counter() - begin)}")
        return network, steps

    def evaluator(self, model: DGNet) -> Callable[[], dict[str, float]]:
        """A function that scores the present model on the test people: mAP and Rank-1 in percent, and on synthetic
        data the scores of `likeness`.
        """

        def evaluate() -> dict[str, float]:
            with generators_kept(self.device):
                one = self.scores_of({"": model.appearance_encoder})[""]
                scores = {"mAP": 100 * one.mAP, "Rank-1": 100 * one.rank[1]}
                if self.config.data == "synthetic" and processes.is_first():
                    pictures, _ = drawn_scores(model, _drawn(self.dataset.gallery))
                    scores["recon_psnr"] = pictures["recon"]["psnr"]
                    scores["swap_clothes_colour"] = pictures["swap"]["clothes_colour"]
            return scores

        return evaluate

    def scores_of(self, networks: dict[str, AppearanceEncoder]) -> dict[str, RetrievalScores]:
        """Single-query scores of several encoders on the test people."""
        return scores_of(networks, self.config, self.dataset)

    def sampler(self, model: DGNet) -> Callable[[int], None]:
        """A function that writes a grid of swaps of test people (rows: structures, columns: appearances)."""
        gallery, config = self.dataset.gallery, self.config
        people = [i for i in np.unique(gallery.ids) if i > 0]
        firsts = [int(np.flatnonzero(gallery.ids == i)[0]) for i in people[: 2 * config.display_size]]
        columns, rows = firsts[: config.display_size], firsts[config.display_size :] or firsts
        chosen = {k: gallery.load_resized(k, *config.picture_size) for k in {*columns, *rows}}
        appearances, structures = (
            torch.from_numpy(np.stack([chosen[k] for k in part])).permute(0, 3, 1, 2)
            for part in (columns, rows)
        )

        def sample(step: int) -> None:
            cells = swap_cells(model, structures, appearances)
            path = self.folder / "samples" / f"step_{step:08d}.png"
            with atomically(path, sync=False) as temporary:
                image_grid(structures, appearances, cells).save(temporary)

        return sample


def _drawn(split: Split) -> SyntheticSplit:
    assert isinstance(split, SyntheticSplit)  # as the data set "synthetic" has
    return split


def run_training(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    max_steps: int | None = None,
    given: set[str] | None = None,
) -> dict[str, Any]:
    """Train DG-Net in ``folder`` as the options say; returns {'folder', 'step', 'tables'}.

    With ``resume`` the run continues from the newest checkpoint in the folder. ``max_steps`` stops the run early
    without a change of the schedule; the final scores are computed when the run reaches ``max_iter``. ``given`` names
    the options (dotted) that may differ from those inside the checkpoint; None means all.

    Raises ValueError for all that can be wrong, before anything is written, and `dgnet_fast.report.files.InUse` if
    another process works in the folder.
    """
    run = Run.open(config, folder)
    with processes.held_by_first(locked(folder)):
        return _train(run, resume=resume, max_steps=max_steps, given=given)


def _train(run: Run, *, resume: bool, max_steps: int | None, given: set[str] | None) -> dict[str, Any]:
    config, folder = run.config, run.folder
    checkpoint, content = content_of(run.config, run.dataset, folder, resume, given)
    first = content["step"] if content else 0
    last = min(config.max_iter, max_steps or config.max_iter)
    model = DGNet(config)
    if content and checkpoint:
        check_content(model, run.precision, content, checkpoint)
    for own in (folder / TEACHER, folder / "baseline.pt"):
        if own.is_file():  # of other people, or damaged: said before anything is written
            load_teachers(config.replace(teacher=str(own)), run.dataset.class_names)
    pictures = run.training_pictures() if first < last else torch.empty(0)
    run.begin()
    if first < last:
        run.announce(first, last)
    with StopSignal() as stop, generators_kept(run.device), convolutions_tried(run.device):
        teachers = run.teachers(pictures, stop)
        model.teach(teachers)
        if config.pretrained == "teacher":
            start_from_teacher(model, teachers)
        elif config.pretrained:
            load_imagenet(model.appearance_encoder, config.pretrained)
        elif config.ID_width == 64 and first == 0:
            logger.info(
                "E_a starts from random weights; the paper starts from ImageNet ones: --pretrained FILE (torchvision's ResNet-50)"
            )
        in_channels_last(model, run.device)
        if config.generator_steps and first == 0 and len(pictures):
            batches = run.batches(config.batch_size, pictures=pictures, purpose="generator data")
            with run.log("generator", config.generator_steps) as log:
                train_generator(model, batches, folder, run.precision, stop, log)
        optimisers = Optimisers(model, config)
        average = WeightAverage(model, config.ema_decay) if config.ema_decay else None
        if content and checkpoint:
            restore_model(model, content, checkpoint)
            for part, name in ((optimisers, "optimisers"), (run.precision, "precision")):
                if name in content:  # a converted checkpoint has none: they start afresh
                    part.load_state_dict(content[name])
            if average is not None:
                average.load_state_dict(content.get("average", model.state_dict()))
            logger.info(f"resuming {checkpoint} at step {first}")
        processes.broadcast_(model.state_dict().values())
        if first < last:
            batches = run.batches(
                config.batch_size, pictures=pictures, purpose="data", erasing_p=config.erasing_p
            )
            if config.real_batch:
                more = run.batches(config.real_batch // 2, pictures=pictures, purpose="more data")
                batches = WithMore(batches, more)
            trackers = trackers_of(config.track, folder, config.to_dict()) if processes.is_first() else ()
            with run.log("", config.max_iter, trackers=trackers) as log:
                log.truncate_after(first)
                begin = time.perf_counter()
                train(
                    model, batches, optimisers, run.precision, log, folder, run.dataset.class_names,
                    first_step=first, last_step=last, sample=run.sampler(model), evaluate=run.evaluator(model), stop=stop,
                    average=average,
                )  # fmt: skip
                say_steps(last - first, time.perf_counter() - begin, run.device)
    tables = []
    if last == config.max_iter:
        with StopSignal() as stop, generators_kept(run.device), convolutions_tried(run.device):
            # training moved the teachers' running statistics: score them as they were saved
            networks = named_teachers(run.teachers(torch.empty(0), stop))
            if config.baseline:
                network, steps = run.baseline(stop)
                networks[f"{BASELINE} ({steps} steps)"] = network
            if processes.any_of(stop.requested)():
                raise stop.stopped(last)
        logger.info("scoring on people never trained on")
        with average.in_place() if average else contextlib.nullcontext():
            tables = final_tables(config, run.dataset, model, networks, folder)
        if processes.is_first():
            write_json(folder / "results.json", {TABLES: tables})
    else:
        logger.info(
            f"stopped at --max-steps {last} of {config.max_iter}; dgnet-fast evaluate {folder} scores it"
        )
    report = write_report(folder) if processes.is_first() else None
    return {"folder": folder, "step": last, "tables": tables, "report": report}


def start_from_teacher(model: DGNet, teachers: list[AppearanceEncoder]) -> None:
    """Start the backbone of E_a from that of the first teacher, as the paper starts it from ImageNet weights."""
    if not teachers:
        raise ConfigError("pretrained is 'teacher' and there is no teacher; allowed: a file, or teacher auto")
    model.appearance_encoder.backbone.load_state_dict(teachers[0].backbone.state_dict())
