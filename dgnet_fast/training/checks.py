"""All that can be wrong with a training, found before anything is written or trained."""

from __future__ import annotations

import os

from dgnet_fast.checkpoints.pretrained import check_imagenet
from dgnet_fast.config import Config, ConfigError
from dgnet_fast.data import ReidDataset
from dgnet_fast.data.rules import check_scorable, check_trainable
from dgnet_fast.distributed import processes
from dgnet_fast.models.size import check_fits_memory


def joint_pictures(config: Config) -> int:
    """How many real pictures E_a learns from in a joint step of one process: pictures and positives of both streams, and
    the further ones.
    """
    return 4 * config.batch_size + config.real_batch


def teacher_steps(config: Config) -> int:
    """Steps that E_a's teacher had, from whose weights or labels it learns; 0 where there is none."""
    return config.teacher_steps if config.teacher else 0


def baseline_steps(config: Config) -> int:
    """Steps of the baseline that is trained as long: those of E_a in the whole run, its teacher's included."""
    return config.max_iter + teacher_steps(config)


def encoder_pictures(config: Config) -> int:
    """How many real pictures E_a learns from in the whole run of one process, those of its teacher included."""
    return config.max_iter * joint_pictures(config) + teacher_steps(config) * config.teacher_batch


def baseline_batch(config: Config, count: int) -> int:
    """The batch size of the baseline that is trained as long: as the option says or, where it leaves it open, the even number
    with which it sees as many real pictures in all as E_a; at most what the ``count`` training pictures of the data set give.
    """
    mean, unit = encoder_pictures(config) / baseline_steps(config), 2 * config.bn_parts
    wanted = config.baseline_batch or max(unit, unit * round(mean / unit))
    return min(wanted, 2 * (count // processes.size()))


def check_training(config: Config, dataset: ReidDataset, *, teacher_only: bool = False) -> None:
    """Raise ValueError, naming the option as it is typed, if the data cannot be trained on or scored, if a batch is too
    small for batch normalisation or larger than the training set, if the weights of ``pretrained`` cannot be read, or
    if the pictures or networks do not fit into memory.
    """
    check_trainable(dataset)
    check_scorable(dataset.query, dataset.gallery)
    count = len(dataset.train)
    if not teacher_only and not 2 <= config.batch_size <= count:
        raise ConfigError(
            f"batch_size is {config.batch_size}; allowed: 2 (the least for batch normalisation) to {count}, the number of "
            "training pictures"
        )
    size = processes.size()
    if not teacher_only and config.batch_size * size > count:
        raise ConfigError(
            f"batch_size is {config.batch_size} in each of {size} processes; allowed: at most {count // size}, since there are "
            f"{count} training pictures; or start fewer processes"
        )
    for name, used in (
        ("teacher_batch", teacher_only or config.teacher == "auto"),
        ("baseline_batch", config.baseline and not teacher_only),
        ("real_batch", not teacher_only),
    ):
        batch = getattr(config, name)
        if used and batch // 2 > count:
            raise ConfigError(
                f"{name} is {batch}; allowed: at most {2 * count}, twice the number of training pictures"
            )
        if used and batch and max(1, batch // 2) * size > count:
            raise ConfigError(
                f"{name} is {batch} in each of {size} processes; allowed: at most {2 * (count // size)}, since "
                f"there are {count} training pictures; or start fewer processes"
            )
    if config.pretrained == "teacher":
        if not config.teacher and not teacher_only:
            raise ConfigError(
                "pretrained is 'teacher' and there is no teacher; allowed: a file, or teacher auto"
            )
    elif config.pretrained:
        check_imagenet(config.pretrained, config)
    check_fits_memory(config)
    needed = count * 3 * config.crop_image_height * config.crop_image_width
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise ConfigError(
            f"{count} training pictures of {config.crop_image_height}x{config.crop_image_width} take {needed / 1e9:.0f} GB, and "
            f"this machine has {memory / 1e9:.0f} GB of memory; allowed: smaller or fewer pictures"
        )
