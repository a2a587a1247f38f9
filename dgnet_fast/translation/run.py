"""A complete run of UNIT in its folder: data, training, scores and report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.checkpoints.runs import compare_options, latest_checkpoint, write_options
from dgnet_fast.checkpoints.unit import (
    import_public_unit,
    load_vgg,
    options_in,
    public_files,
    read_unit,
    restore_unit,
)
from dgnet_fast.config import ConfigError
from dgnet_fast.config.device import resolve_device
from dgnet_fast.config.places import with_absolute_unit_paths
from dgnet_fast.config.unit import UnitConfig
from dgnet_fast.data import MappedPictures
from dgnet_fast.data.pictures import Pictures
from dgnet_fast.models.size import check_fits_memory
from dgnet_fast.models.typed import in_channels_last
from dgnet_fast.models.unit import Unit
from dgnet_fast.report.files import atomically, check_writable, locked, write_json, write_text
from dgnet_fast.report.grid import picture_rows
from dgnet_fast.report.log import RunLog
from dgnet_fast.report.page import LEGEND, write_report
from dgnet_fast.report.tables import TABLES
from dgnet_fast.training.folder import begin_folder, say_steps
from dgnet_fast.training.graphs import graphs_wanted
from dgnet_fast.training.loop import StopSignal
from dgnet_fast.training.optim import Precision, resolve_amp
from dgnet_fast.training.seeds import derive_seed, generators_kept
from dgnet_fast.translation.batches import DomainBatches, check_batch, decoded, open_domains
from dgnet_fast.translation.loop import train_unit
from dgnet_fast.translation.scores import short, translated, truth_table
from dgnet_fast.translation.step import UnitOptimisers, UnitStep

logger = logging.getLogger(__name__)

TERMS = ("total", "dis_total", "adv", "recon_x", "recon_x_cyc", "vgg")


def run_unit(
    config: UnitConfig,
    folder: Path,
    *,
    resume: bool = False,
    max_steps: int | None = None,
    start: Path | None = None,
    given: set[str] | None = None,
) -> dict[str, Any]:
    """Train UNIT in ``folder`` as the options say; returns {'folder', 'step', 'tables', 'report'}.

    With ``resume`` the run continues from the newest checkpoint in the folder. ``max_steps`` stops it early without a change
    of the schedule. ``start`` names public files (``gen_*.pt`` and ``dis_*.pt``) whose weights it begins with. ``given``
    names the options (dotted) that may differ from those inside the checkpoint; None means all.

    Raises ValueError for all that can be wrong, before anything is written, and `dgnet_fast.report.files.InUse` if
    another process works in the folder.
    """
    device = resolve_device(config.device)
    precision = Precision(resolve_amp(config, device), device)
    graphs_wanted(config, precision)
    check_fits_memory(config)
    check_writable(folder)
    if start is not None:
        public_files(start)
    domains = open_domains(config)  # before paths are absolute: its errors name sources as they are typed
    config = with_absolute_unit_paths(config)
    check_batch([len(one) for one in domains], config.batch_size, [one.label for one in domains])
    with locked(folder):
        return _train(config, folder, domains, precision, resume, max_steps, start, given)


def _newest(
    config: UnitConfig, folder: Path, resume: bool, given: set[str] | None
) -> tuple[Path | None, dict[str, Any] | None]:
    """The newest checkpoint of the folder and its content, if it can be resumed with the options of the run."""
    if not resume and (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} already holds a run; continue it with --resume or choose another --out")
    checkpoint = latest_checkpoint(folder) if resume else None
    if checkpoint is None:
        return None, None
    try:
        content = read_unit(checkpoint)
    except ValueError as error:
        raise ValueError(f"{error}; to resume from the checkpoint before it, remove this file") from error
    if given is not None:
        theirs = with_absolute_unit_paths(options_in(content, checkpoint))
        compare_options(config, theirs, given, checkpoint)
    return checkpoint, content


def _train(
    config: UnitConfig,
    folder: Path,
    domains: list[Pictures],
    precision: Precision,
    resume: bool,
    max_steps: int | None,
    start: Path | None,
    given: set[str] | None,
) -> dict[str, Any]:
    device = precision.device
    checkpoint, content = _newest(config, folder, resume, given)
    first = content["step"] if content else 0
    last = min(config.max_iter, max_steps or config.max_iter)
    model = Unit(config)
    if content and checkpoint:
        restore_unit(model, content, checkpoint)
        UnitOptimisers(model, config).check(content["optimisers"], checkpoint)
        precision.check(content["precision"], checkpoint)
    if model.perceptual is not None:
        load_vgg(model.perceptual, config.vgg_weights, config.vgg_channels)
    if start is not None:
        import_public_unit(model, public_files(start))
    pictures = decoded(domains, config, device)
    kind = begin_folder(
        folder, device, precision, config.amp, lambda remark: write_options(folder, config, remark)
    )
    logger.info(f"UNIT of {len(domains)} domains; {device}, {kind}; run folder {folder}")
    with StopSignal() as stop, generators_kept(device):
        batches = DomainBatches(
            pictures,
            batch_size=config.batch_size,
            seed=derive_seed(config.seed, "unit data"),
            device=device,
            labels=[one.label for one in domains],
        )
        in_channels_last(model, device)
        step = UnitStep(model, UnitOptimisers(model, config), precision)
        if content and checkpoint:
            step.optimisers.load_state_dict(content["optimisers"])
            precision.load_state_dict(content["precision"])
            if step.copies:
                step.copies.refresh()
            logger.info(f"resuming {checkpoint} at step {first}")
        if first < last:
            every = max(1, min(100, config.max_iter // 50))
            with RunLog(folder, config.max_iter, every=every, main_terms=TERMS) as log:
                log.truncate_after(first)
                begin = time.perf_counter()
                train_unit(
                    step, batches, log, folder,
                    first_step=first, last_step=last, sample=sampler(model, domains, pictures, folder), stop=stop,
                )  # fmt: skip
                say_steps(last - first, time.perf_counter() - begin, device)
    tables = []
    if last == config.max_iter:
        model.eval()
        found = truth_table(model)
        tables = [found] if found else []
        write_json(folder / "results.json", {TABLES: tables})
    return {"folder": folder, "step": last, "tables": tables, "report": write_report(folder)}


def sampler(
    model: Unit, domains: list[Pictures], pictures: list[Tensor | MappedPictures], folder: Path
) -> Callable[[int], None]:
    """A function that writes a grid of training pictures: each as it is, in the other domains, and back again."""
    config, labels = model.config, [short(one.label) for one in domains]
    shown = []
    for one in pictures:
        tensor = one.tensor if isinstance(one, MappedPictures) else one
        count = min(config.display_size, len(tensor))
        chosen = torch.from_numpy(np.linspace(0, len(tensor) - 1, count).astype(int))
        shown.append(tensor[chosen.to(tensor.device)].cpu())
    write_text(
        folder / "samples" / LEGEND,
        "Each row: training pictures of one domain as they are, then in another domain, then back again in their own.",
    )

    def sample(step: int) -> None:
        model.eval()
        rows, captions = [], []
        for k, x in enumerate(shown):
            others = [other for other in range(len(shown)) if other != k]
            for place, other in enumerate(others):
                there = translated(model, x, k, other)
                back = translated(model, there, other, k)
                if len(others) == 1:  # two domains: one row each
                    rows.append([tile for three in zip(x, there, back, strict=True) for tile in three])
                elif place == 0:
                    rows.append([x[0], there[0], back[0]])
                else:
                    rows[-1] += [there[0], back[0]]
        model.train()
        if len(shown) == 2:
            captions = ["picture", "→ other", "→ back"] * max(len(x) for x in shown)
            breaks = range(3, len(captions), 3)
        else:
            captions = ["picture"] + ["→ other", "→ back"] * (len(shown) - 1)
            breaks = range(1, len(captions), 2)
        width = min(map(len, rows))
        page = picture_rows([row[:width] for row in rows], captions[:width], breaks=list(breaks))
        with atomically(folder / "samples" / f"step_{step:08d}.png", sync=False) as temporary:
            page.save(temporary)

    logger.info(f"domains: {', '.join(labels)}")
    return sample
