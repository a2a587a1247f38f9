"""A training run in one call."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from dgnet_fast.checkpoints.runs import saved_options
from dgnet_fast.config import Config, ConfigError, read_yaml
from dgnet_fast.config.presets import combined
from dgnet_fast.training.run import run_training


def train(
    config: Config | Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    *,
    preset: str | None = None,
    resume: bool = False,
    max_steps: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train DG-Net in a run folder, as `dgnet-fast train` does.

    Args:
        config: a `Config`, a (nested) mapping of options, or a YAML file, ours or one of the public code. None takes
            the default preset: small for synthetic data, otherwise paper.
        out: run folder (default: runs/DATE-TIME-DATA-PRESET).
        preset: named set of options that ``config`` and ``options`` change.
        resume: continue the run in ``out`` from its newest checkpoint, with its own options.
        max_steps: stop after this many steps in total; the schedule does not change.
        options: single options by name; two underscores (``gen__dim=8``) name an option of a branch.

    Returns:
        'folder', 'step', 'tables' (result tables; empty if the run stopped early) and 'report' (report.html).

    Raises:
        ValueError: a wrong option, or a folder that already holds a run.
        Stopped: SIGINT or SIGTERM arrived; a checkpoint was saved (`dgnet_fast.training.loop.Stopped`).

    Example:
        >>> import dgnet_fast
        >>> result = dgnet_fast.train(
        ...     "options.yaml", out="runs/b", max_steps=2, seed=1, device="cpu"
        ... )
        >>> result["step"], sorted(path.name for path in result["folder"].glob("*.html"))
        (2, ['report.html'])
    """
    overrides = {name.replace("__", "."): value for name, value in options.items()}
    if resume:
        if out is None:
            raise ConfigError("resume needs the run folder: out=DIR")
        if config is not None or preset is not None:
            raise ConfigError("resume takes the options from the run folder; leave out config and preset")
        made, _ = combined(saved_options(Path(out)), overrides, None, by_default=False)
        return run_training(made, Path(out), resume=True, max_steps=max_steps)
    if isinstance(config, Config):
        values: dict[str, Any] = config.to_dict()
    elif isinstance(config, (str, Path)):
        values = read_yaml(config)
    else:
        values = {name: dict(v) if isinstance(v, Mapping) else v for name, v in (config or {}).items()}
    made, name = combined(values, overrides, preset, by_default=config is None or isinstance(config, Mapping))
    folder = Path(out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{made.data}-{name}")
    if (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} already holds a run; continue it with resume=True or choose another out")
    return run_training(made, folder, max_steps=max_steps)
