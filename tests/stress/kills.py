"""SIGKILL at random moments and before every change of files, a disk that is full, and two of everything at once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.stress.harness import Budget, Section, before_changes, run, start, wait
from tests.stress.jobs import JOBS, Ground, Job, Place, outcome_of


def recovered(ground: Ground, job: Job, place: Place) -> str | None:
    """The problem of a job that was disturbed and is run again without disturbance."""
    wanted, _ = ground.wanted(job)
    done = run(lambda: job.quick(place))
    if done.status:
        return f"{job.name}: not continued: status {done.status}: {done.text.strip()[-300:]}"
    try:
        found = outcome_of(job, place)
    except Exception as error:
        return f"{job.name}: what it left cannot be read: {error}"
    if found != wanted:
        at = next((k for k, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), 0)
        return f"{job.name}: another outcome: ...{found[max(0, at - 40) : at + 80]}..."
    return None


def _drawn(
    section: Section, ground: Ground, budget: Budget, rng: random.Random, jobs: tuple[Job, ...]
) -> Iterator[tuple[Job, Place, float]]:
    """Jobs at random, each with a new place and with the seconds that it takes undisturbed, as the budget allows. One that
    takes four times as long comes half as often.
    """
    took = [ground.wanted(job)[1] for job in jobs]
    while budget.allows(section.cases):
        (k,) = rng.choices(range(len(jobs)), [1 / seconds**0.5 for seconds in took])
        yield jobs[k], ground.place(), took[k]


OF_THE_MOMENT = re.compile(r"\.lock|environment\.json|machine\.jsonl|events\.out\.tfevents\..*")
"""Files that hold a time or the number of a process; nothing that goes on reads them."""


def state_of(folder: Path) -> str:
    """What a killed job left: names of files, without the number of its process, and their content; of files
    `OF_THE_MOMENT` only whether anything is in them.
    """
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"\d+-\d+\.tmp", "tmp", path.name)
        if OF_THE_MOMENT.fullmatch(name):
            content, name = path.read_bytes()[:1] and b"x", re.sub(r"\d+", "", name)
        else:
            content = path.read_bytes() if path.is_file() else b"folder"
        found.update(
            f"{path.parent.relative_to(folder)} {name} {hashlib.sha256(content).hexdigest()}\n".encode()
        )
    return found.hexdigest()


def every_change(ground: Ground, budget: Budget, rng: random.Random, jobs: tuple[Job, ...] = JOBS) -> Section:
    """What a kill of each job before its first, second, ... change of files leaves, and the job that goes on there.

    One undisturbed job copies its folder before each of its changes: what a process has written is in its files, whether
    it is killed or not. Every `KILLED`-th is killed for real as well. What was left is recovered once where several kills
    leave the same, as those between which only a name that was there already was made. Where the time is short, changes are
    left out. The notes say how many were tried, of how many, how many states they left, and how many were killed for real.
    """
    section = Section("killed before each change of files")
    for position, job in enumerate(
        reversed(jobs)
    ):  # training, the longest, has the time that the others leave
        left = len(jobs) - position
        share = time.monotonic() + max(0.0, budget.until - time.monotonic()) / left
        place, copies = ground.place(), ground.root / "copies"
        shutil.rmtree(copies, ignore_errors=True)
        changes = _copied(job, place, copies)
        section.count(recovered(ground, job, place))  # after all of them it has nothing to do, and says so
        order = rng.sample(range(changes), changes)
        tried, killed, problems = 0, 0, {}
        while order and (time.monotonic() < share or tried < budget.least / len(jobs)):
            change, place, problem = order.pop(), ground.place(), None
            if tried % KILLED:
                place.job.rmdir()
                (copies / str(change)).rename(place.job)
            else:
                problem = _killed(job, place, change)
                killed += 1
            state = state_of(place.job)
            if state not in problems:
                problems[state] = recovered(ground, job, place)
            section.count(problem or problems[state])
            tried += 1
        name = f"{job.name}: {len(problems)} states of {changes} changes, {killed} killed for real, tried"
        section.notes[name] = tried
    return section


KILLED = 8
"""Of so many changes one is a real kill: each takes half a job on average, and a copy milliseconds."""


def _copied(job: Job, place: Place, copies: Path) -> int:
    """Let the undisturbed job copy its folder to ``copies``/K before each change K; returns how many there were."""
    copies.mkdir()

    def copy_if_there(source: str, target: str) -> None:
        # another thread of the job may have renamed it since it was listed
        with contextlib.suppress(FileNotFoundError):
            shutil.copy2(source, target)

    def copy(change: int) -> None:
        shutil.copytree(place.job, copies / str(change), symlinks=True, copy_function=copy_if_there)

    done = run(before_changes(place.job, lambda: job.quick(place), copy))
    assert done.status == 0, f"{job.name}: {done.text[-2000:]}"
    return len(list(copies.iterdir()))


def _killed(job: Job, place: Place, change: int) -> str | None:
    """Kill the job before one change of files; the problem is that it did not come to it."""

    def kill(now: int) -> None:
        if now == change:
            os.kill(os.getpid(), signal.SIGKILL)

    ended = run(before_changes(place.job, lambda: job.quick(place), kill))
    return None if ended.status == -signal.SIGKILL else f"{job.name}: change {change} did not come"


def at_random(ground: Ground, budget: Budget, rng: random.Random, jobs: tuple[Job, ...] = JOBS) -> Section:
    """Kill jobs at random moments, once or twice before they are let go on."""
    section = Section("killed at random moments")
    for job, place, seconds in _drawn(section, ground, budget, rng, jobs):
        for _ in range(rng.choice((1, 1, 2))):
            run(lambda place=place, job=job: job.quick(place), kill_after=rng.uniform(0, seconds))
        section.count(recovered(ground, job, place))
        section.note(job.name)
    return section


def full_disk(ground: Ground, budget: Budget, rng: random.Random, jobs: tuple[Job, ...] = JOBS) -> Section:
    """Files cannot grow beyond a random size (RLIMIT_FSIZE, which fails as a full disk does): the job must end with one
    line that names a file, and go on when there is room.
    """
    section = Section("no room for a file")
    for job, place, _ in _drawn(section, ground, budget, rng, jobs):
        limit = int(2 ** rng.uniform(4, 18))
        ended = run(lambda place=place, job=job: job.run(place), file_limit=limit)
        problem = None
        if ended.traceback or ended.status not in (0, 1):
            problem = f"{job.name}, {limit} bytes: status {ended.status}: {ended.text.strip()[-200:]}"
        elif ended.status and str(place.job.parent) not in ended.text:
            problem = f"{job.name}, {limit} bytes: no file is named: {ended.text.strip()[-200:]}"
        section.note("refused" if ended.status else "had room")
        section.count(problem or recovered(ground, job, place))
    return section


def two_at_once(ground: Ground, budget: Budget, rng: random.Random, jobs: tuple[Job, ...] = JOBS) -> Section:
    """Two of the same job in one folder: each is refused or right, and the outcome is that of one."""
    section = Section("two at once")
    for job, place, seconds in _drawn(section, ground, budget, rng, jobs):
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder) / str(k) for k in range(2)]
            started = []
            for output in outputs:
                started.append(start(lambda place=place, job=job: job.quick(place), output=output))
                time.sleep(rng.uniform(0, seconds) if rng.random() < 0.5 else 0)
            ended = [wait(p, output, timeout=300) for p, output in zip(started, outputs, strict=True)]
        problem = next((e.text.strip()[-300:] for e in ended if e.traceback or e.status not in (0, 1)), None)
        section.note("refused" if any(e.status for e in ended) else "both right")
        section.count(problem or recovered(ground, job, place))
    return section
