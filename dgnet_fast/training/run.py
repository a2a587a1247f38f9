"""A whole run in its folder: data, teacher, training, scores, report."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.cli import chunks_progress
from dgnet_fast.config import SEVERAL, Config, ConfigError, read_yaml
from dgnet_fast.data import (
    MappedPictures,
    ReidDataset,
    TrainBatches,
    cache_folder,
    decode_split,
    load_dataset,
    load_pictures,
    place,
)
from dgnet_fast.evaluation import LIKENESS, Truth, score_pictures, score_retrieval, swap_cells
from dgnet_fast.metrics import RetrievalScores, evaluate_retrieval
from dgnet_fast.models.appearance_encoder import AppearanceEncoder, appearance_input_size, load_imagenet
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.report import format_table, image_grid, write_environment, write_report
from dgnet_fast.training.average import WeightAverage
from dgnet_fast.training.checkpoint import (
    export_public_teacher,
    latest_checkpoint,
    load_teachers,
    read_run,
    restore_model,
    save_teachers,
)
from dgnet_fast.training.generated import load_generated
from dgnet_fast.training.generator_loop import train_generator
from dgnet_fast.training.graphs import graphs_refused, graphs_wanted
from dgnet_fast.training.log import RunLog, format_duration
from dgnet_fast.training.loop import StopSignal, train
from dgnet_fast.training.optim import Optimisers, Precision, resolve_amp
from dgnet_fast.training.seeds import derive_seed
from dgnet_fast.training.teacher_loop import train_teacher

SWAP_PAIRS = 64
"""Pairs of test pictures whose swaps are scored against the truth."""


def resolve_device(name: str) -> torch.device:
    """The device that ``--device`` names; auto is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is {name!r}; allowed: auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; allowed: auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r}, and this PyTorch sees no CUDA device; allowed here: cpu")
    return device


def dataset_of(config: Config) -> ReidDataset:
    """The data set that the options name."""
    names = config.data.split(SEVERAL)
    drawn = {}
    if "synthetic" in names:
        drawn = {
            "seed": config.seed,
            "train_identities": config.synthetic_ids,
            "test_identities": config.synthetic_test_ids,
            "views_per_identity": config.synthetic_views,
            "height": config.crop_image_height,
            "width": config.crop_image_width,
        }
    on_disk = names != ["synthetic"]
    if on_disk and not config.data_root:
        raise ConfigError(f"data is {config.data!r}: give its folder with --root DIR")
    return load_dataset(
        config.data,
        config.data_root if on_disk else None,
        camera_pattern=(config.camera_pattern or None) if on_disk else None,
        skip_unreadable=config.skip_unreadable,
        **drawn,
    )


def with_classes(config: Config, dataset: ReidDataset) -> Config:
    """The options with ID_class counted from the data (a differing number in an old file is named and
    replaced).
    """
    count = dataset.num_classes
    if config.ID_class not in (0, count):
        say(
            f"ID_class is {config.ID_class} in the options; the training set has {count} identities, using {count}"
        )
    return config.replace(ID_class=count)


def say(text: str) -> None:
    """A line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Run:
    """A run folder with what every part of the run needs."""

    config: Config
    folder: Path
    dataset: ReidDataset
    device: torch.device
    precision: Precision

    @classmethod
    def open(cls, config: Config, folder: Path) -> Run:
        """Load the data, fix the class count, and write config.yaml and environment.json."""
        device = resolve_device(config.device)
        dataset = dataset_of(config)
        config = with_classes(config, dataset)
        precision = Precision(resolve_amp(config, device), device)
        graphs = graphs_wanted(config, precision)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config.to_yaml())
        write_environment(folder)
        kind = str(precision.dtype).removeprefix("torch.") if precision.dtype else "float32"
        say(
            f"{dataset.name}: {config.ID_class} identities, {len(dataset.train)} training pictures; {device}, {kind}; run folder {folder}"
        )
        if device.type == "cuda" and not graphs:
            reason = "as asked" if config.cuda_graphs == "off" else graphs_refused(config, precision)
            say(f"steps are not recorded as CUDA graphs: {reason}")
        return cls(config, folder, dataset, device, precision)

    def batches(
        self, batch_size: int, *, pictures: Tensor | MappedPictures, purpose: str, erasing_p: float = 0.0
    ) -> TrainBatches:
        """The training batches of one purpose; see `dgnet_fast.data.TrainBatches`."""
        return TrainBatches(
            pictures,
            self.dataset.train_labels,
            batch_size=batch_size,
            seed=derive_seed(self.config.seed, purpose),
            erasing_p=erasing_p,
            appearance_size=appearance_input_size(self.config),
            pad=self.config.crop_pad,
            device=self.device,
        )

    def training_pictures(self) -> Tensor | MappedPictures:
        """The decoded training split, uint8 (N, 3, H, W), where the options want it."""
        config, start = self.config, time.perf_counter()
        pictures = load_pictures(
            self.dataset.train,
            config.crop_image_height,
            config.crop_image_width,
            cache_folder(config.data_cache),
            workers=config.num_workers or 1,
            progress=chunks_progress("decoding training pictures"),
        )
        pictures = place(pictures, self.device, config.pictures_on)
        say(f"{len(pictures)} training pictures ready in {time.perf_counter() - start:.1f} s")
        return pictures

    def teacher_only(
        self, pictures: Tensor | MappedPictures, stop: StopSignal, **extra: Any
    ) -> AppearanceEncoder:
        """Train the baseline (or finish training it) and keep it as ``teacher.pt``; ``extra`` as `train_teacher`."""
        config = self.config
        batches = self.batches(max(1, config.teacher_batch // 2), pictures=pictures, purpose="teacher data")
        with RunLog(self.folder / "teacher", config.teacher_steps, every=_every(config.teacher_steps)) as log:
            teacher = train_teacher(
                config,
                batches,
                log,
                self.precision,
                state_file=self.folder / "teacher" / "state.pt",
                stop=stop,
                **extra,
            )
        save_teachers(
            self.folder / "teacher.pt", [teacher], [config.teacher_stride], self.dataset.class_names, config
        )
        return teacher

    def teachers(self, pictures: Tensor | MappedPictures, stop: StopSignal) -> list[AppearanceEncoder]:
        """The teachers that the options name; ``auto`` trains one, once per run folder."""
        config = self.config
        own = self.folder / "teacher.pt"
        if config.teacher == "auto" and not own.is_file():
            say("training the teacher (the paper's baseline) first")
            return [self.teacher_only(pictures, stop)]
        name = str(own) if config.teacher == "auto" else config.teacher
        found = load_teachers(config.replace(teacher=name), self.dataset.class_names)
        return [t.to(self.device) for t in found]

    def scores_of(self, networks: dict[str, AppearanceEncoder]) -> dict[str, RetrievalScores]:
        """Single-query scores of several encoders on the test people."""
        config = self.config
        return {
            name: score_retrieval(
                network,
                self.dataset,
                config.crop_image_height,
                config.crop_image_width,
                upsample=config.ID_upsample,
                workers=config.num_workers or 1,
                cache=cache_folder(config.data_cache),
            )["single"]
            for name, network in networks.items()
        }

    def sampler(self, model: DGNet):  # noqa: ANN201 - a function of the step
        """A function that writes a grid of swaps of people never trained on (rows: structures, columns:
        appearances).
        """
        gallery, config = self.dataset.gallery, self.config
        people = [i for i in np.unique(gallery.ids) if i > 0]
        firsts = [int(np.flatnonzero(gallery.ids == i)[0]) for i in people[: 2 * config.display_size]]
        columns, rows = firsts[: config.display_size], firsts[config.display_size :] or firsts
        chosen = {
            k: gallery.load_resized(k, config.crop_image_height, config.crop_image_width)
            for k in {*columns, *rows}
        }
        appearances, structures = (
            torch.from_numpy(np.stack([chosen[k] for k in part])).permute(0, 3, 1, 2)
            for part in (columns, rows)
        )

        def sample(step: int) -> None:
            cells = swap_cells(model, structures, appearances)
            path = self.folder / "samples" / f"step_{step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            image_grid(structures, appearances, cells).save(path)

        return sample


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took on a CUDA device, or this process's largest resident set so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _every(steps: int) -> int:
    """Steps between progress lines: about fifty lines a run, at least every hundredth step."""
    return max(1, min(100, steps // 50))


def run_training(
    config: Config, folder: Path, *, resume: bool = False, max_steps: int | None = None
) -> dict[str, Any]:
    """Train DG-Net in ``folder`` as the options say; returns {'folder', 'step', 'tables'}.

    With ``resume`` the newest checkpoint of the folder is continued. ``max_steps`` ends early without
    touching the schedule; the final scores are made when the run reaches ``max_iter``.
    """
    run = Run.open(config, folder)
    config = run.config
    checkpoint = latest_checkpoint(folder) if resume else None
    content = read_run(checkpoint) if checkpoint else None
    first = content["step"] if content else 0
    last = min(config.max_iter, max_steps or config.max_iter)
    with StopSignal() as stop:
        pictures = run.training_pictures() if first < last else torch.empty(0)
        teachers = run.teachers(pictures, stop)
        model = DGNet(config, teachers)
        if config.pretrained == "teacher":
            start_from_teacher(model, teachers)
        elif config.pretrained:
            load_imagenet(model.appearance_encoder, config.pretrained)
        elif config.ID_width == 64 and first == 0:
            say(
                "E_a starts from random weights; the paper starts from ImageNet ones: --pretrained FILE (torchvision's ResNet-50)"
            )
        model.to(run.device, memory_format=torch.channels_last)
        if config.generator_steps and first == 0 and len(pictures):
            say("training E_s and G alone first")
            batches = run.batches(config.batch_size, pictures=pictures, purpose="generator data")
            every = _every(config.generator_steps)
            train_generator(model, batches, folder, run.precision, stop, every=every)
        optimisers = Optimisers(model, config)
        average = WeightAverage(model, config.ema_decay) if config.ema_decay else None
        if content:
            restore_model(model, content, checkpoint)
            optimisers.load_state_dict(content["optimisers"])
            run.precision.load_state_dict(content["precision"])
            if average is not None:
                average.load_state_dict(content.get("average", model.state_dict()))
            say(f"resuming {checkpoint} at step {first}")
        if first < last:
            batches = run.batches(
                config.batch_size, pictures=pictures, purpose="data", erasing_p=config.erasing_p
            )
            with RunLog(folder, config.max_iter, every=_every(config.max_iter)) as log:
                log.truncate_after(first)
                begin = time.perf_counter()
                train(
                    model, batches, optimisers, run.precision, log, folder, run.dataset.class_names,
                    first_step=first, last_step=last, sample=run.sampler(model), stop=stop, average=average,
                )  # fmt: skip
                seconds = time.perf_counter() - begin
                say(
                    f"{last - first} steps in {format_duration(seconds)}, {seconds / (last - first):.3g} s a step, "
                    f"peak memory {peak_memory(run.device) / 1e9:.2f} GB"
                )
    tables = []
    if last == config.max_iter:
        say("scoring on people never trained on")
        with (
            StopSignal() as stop
        ):  # training moved the teachers' running statistics: score them as they were saved
            teachers = run.teachers(torch.empty(0), stop)
        with average.in_place() if average else contextlib.nullcontext():
            tables = final_tables(run, model, teachers)
        (folder / "results.json").write_text(json.dumps(tables, indent=1))
    else:
        say(
            f"stopped at --max-steps {last} of {config.max_iter}; python -m dgnet_fast.evaluate {folder} scores it"
        )
    report = write_report(folder)
    return {"folder": folder, "step": last, "tables": tables, "report": report}


def run_teacher(
    config: Config, folder: Path, *, generated: Path | None = None, labeller: str = "", weight: float = 1.0
) -> list[dict[str, Any]]:
    """Train the baseline alone in ``folder`` and score it; returns the result tables.

    ``generated`` is a generated set to train on too, with the soft labels of the teacher file ``labeller``.
    Writes ``teacher.pt``, and ``net_last.pth`` with ``opts.yaml`` for the public implementation.
    """
    run = Run.open(config, folder)
    with StopSignal() as stop:
        extra = {}
        if generated is not None:
            names = run.dataset.class_names
            batches = load_generated(generated, labeller, run.config, names, run.device)
            extra = {"generated": batches, "generated_weight": weight}
        teacher = run.teacher_only(run.training_pictures(), stop, **extra)
    export_public_teacher(teacher, folder / "net_last.pth")
    (folder / "opts.yaml").write_text(f"stride: {run.config.teacher_stride}\n")
    return [
        retrieval_table(
            run, {"chance": chance_scores(run.dataset)} | run.scores_of({"teacher (baseline)": teacher})
        )
    ]


def start_from_teacher(model: DGNet, teachers: list[AppearanceEncoder]) -> None:
    """Start E_a's trunk from the (first) teacher's, as the paper starts it from ImageNet weights."""
    if not teachers:
        raise ConfigError("pretrained is 'teacher' and there is no teacher; allowed: a file, or teacher auto")
    model.appearance_encoder.backbone.load_state_dict(teachers[0].backbone.state_dict())


def retrieval_row(name: str, scores: RetrievalScores) -> list[Any]:
    """A row of the retrieval table, in percent."""
    values = [scores.rank[1], scores.rank[5], scores.rank[10], scores.mAP, scores.mINP]
    return [name, *(round(100 * v, 1) for v in values)]


def chance_scores(dataset: ReidDataset, seed: int = 0) -> RetrievalScores:
    """Scores of features that know nothing (Gaussian noise)."""
    rng = np.random.default_rng(seed)
    query, gallery = dataset.query, dataset.gallery
    q, g = (rng.standard_normal((len(part), 16)).astype(np.float32) for part in (query, gallery))
    return evaluate_retrieval(
        q, query.ids, query.cameras, g, gallery.ids, gallery.cameras, second_half_weight=1.0
    )


def retrieval_table(run: Run, scores: dict[str, RetrievalScores]) -> dict[str, Any]:
    """Retrieval scores of several models as a result table."""
    query, gallery = run.dataset.query, run.dataset.gallery
    return {
        "title": "Retrieval on people never trained on",
        "columns": ["", "Rank-1", "Rank-5", "Rank-10", "mAP", "mINP"],
        "rows": [retrieval_row(name, one) for name, one in scores.items()],
        "notes": [
            f"percent; {len(query)} queries, {len(gallery)} gallery pictures; mAP: step-wise AP over valid queries"
        ],
    }


def final_tables(run: Run, model: DGNet, teachers: list[AppearanceEncoder]) -> list[dict[str, Any]]:
    """Retrieval of chance, teacher and DG-Net, and, for drawn data, pictures against the truth."""
    names = (
        ["teacher (baseline)"] if len(teachers) == 1 else [f"teacher {k + 1}" for k in range(len(teachers))]
    )
    networks = dict(zip(names, teachers, strict=True)) | {"DG-Net": model.appearance_encoder}
    tables = [retrieval_table(run, {"chance": chance_scores(run.dataset)} | run.scores_of(networks))]
    if run.config.data == "synthetic":
        tables.append(picture_table(run, model))
    return tables


def picture_table(run: Run, model: DGNet) -> dict[str, Any]:
    """Reconstructions and swaps of test pictures against the drawn truth."""
    config, gallery = run.config, run.dataset.gallery
    people = np.flatnonzero(gallery.ids > 0)
    rng = np.random.default_rng(config.seed)
    pairs = rng.choice(people, size=(SWAP_PAIRS, 2))
    pairs = pairs[gallery.ids[pairs[:, 0]] != gallery.ids[pairs[:, 1]]]
    pictures = decode_split(gallery, config.crop_image_height, config.crop_image_width)

    def truth(i: int, j: int) -> Truth:
        return Truth(gallery.truth(i, j, keep_body=True), gallery.clothes_mask(i, j, keep_body=True))

    scores = score_pictures(model, pictures, pairs, truth)
    names = {"recon": "reconstruction", "swap": "swap", "copy": "structure picture left as it is"}
    return {
        "title": "Pictures of people never trained on, against the truth",
        "columns": ["", *(title for title, _ in LIKENESS.values())],
        "rows": [
            [label, *(round(scores[k][one], digits) for one, (_, digits) in LIKENESS.items())]
            for k, label in names.items()
        ],
        "notes": [
            f"{len(pairs)} swaps; the truth of a swap is drawn: the clothes of one in the pose, build, place and camera of the other",
            "the last row compares the unchanged structure picture with the swap's truth: on the clothes a swap must beat it, "
            "off the clothes it is already right",
            "colour error: mean CIEDE2000, less is better; clothes: top and trousers, shorts or skirt; rest: all other pixels",
        ],
    }


def saved_options(folder: Path) -> dict[str, Any]:
    """The options of a run folder, for resuming it."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"nothing to resume in {folder}: no config.yaml there")
    return read_yaml(path)


def print_tables(tables: list[dict[str, Any]]) -> None:
    """The result tables on standard output."""
    for table in tables:
        print(format_table(table), flush=True)
