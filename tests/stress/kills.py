"""SIGKILL at random moments and before every change of files, a disk that is full, and two of everything at once."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

from tests.stress.harness import Section, killed_before, run, start, wait
from tests.stress.jobs import JOBS, Ground, Job, Place, outcome_of


def recovered(ground: Ground, job: Job, place: Place) -> str | None:
    """The problem of a job that was disturbed and is run again without disturbance."""
    wanted = _wanted[job]
    done = run(lambda: job.run(place))
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


_wanted: dict[Job, str] = {}
_took: dict[Job, float] = {}


def prepare(ground: Ground, jobs: tuple[Job, ...]) -> dict[Job, float]:
    """The seconds that each undisturbed job takes."""
    for job in jobs:
        if job not in _wanted:
            begin = time.monotonic()
            _wanted[job] = ground.wanted(job)
            _took[job] = time.monotonic() - begin
    return _took


def every_change(
    ground: Ground, seconds: float, rng: random.Random, jobs: tuple[Job, ...] = JOBS, least: int = 0
) -> Section:
    """Kill each job before its first, second, ... change of files. Where the time is short, changes are left out
    evenly.
    """
    section = Section("killed before each change of files")
    prepare(ground, jobs)
    until = time.monotonic() + seconds
    for position, job in enumerate(jobs):
        share = time.monotonic() + (until - time.monotonic()) / (len(jobs) - position)
        order = list(range(400))
        total = None
        done: set[int] = set()
        while order and (time.monotonic() < share or len(done) < least / len(jobs)):
            change = order.pop(0) if total is None or len(done) < 3 else order.pop(rng.randrange(len(order)))
            place = ground.place()
            ended = run(killed_before(change, place.job, lambda place=place, job=job: job.run(place)))
            if ended.status != -signal.SIGKILL:  # it has fewer changes
                total = change
                order = [k for k in order if k < change]
                continue
            done.add(change)
            if total is None and len(done) == 2:  # look for the last one by doubling, then at random
                order = sorted(order, key=lambda k: (k & (k - 1) != 0, k))
            section.count(recovered(ground, job, place))
        section.notes[job.name] = len(done)
    return section


def at_random(
    ground: Ground, seconds: float, rng: random.Random, jobs: tuple[Job, ...] = JOBS, least: int = 0
) -> Section:
    """Kill jobs at random moments."""
    section = Section("killed at random moments")
    took = prepare(ground, jobs)
    until = time.monotonic() + seconds
    while time.monotonic() < until or section.cases < least:
        job = rng.choice(jobs)
        place = ground.place()
        for _ in range(rng.choice((1, 1, 2))):
            run(lambda place=place, job=job: job.run(place), kill_after=rng.uniform(0, took[job]))
        section.count(recovered(ground, job, place))
        section.note(job.name)
    return section


def full_disk(
    ground: Ground, seconds: float, rng: random.Random, jobs: tuple[Job, ...] = JOBS, least: int = 0
) -> Section:
    """Files cannot grow beyond a random size (RLIMIT_FSIZE, which fails as a full disk does): the job must end with one
    line that names a file, and go on when there is room.
    """
    section = Section("no room for a file")
    prepare(ground, jobs)
    until = time.monotonic() + seconds
    while time.monotonic() < until or section.cases < least:
        job = rng.choice(jobs)
        place = ground.place()
        limit = int(2 ** rng.uniform(4, 18))
        ended = run(lambda place=place, job=job: job.run(place), file_limit=limit)
        problem = None
        if ended.traceback or ended.status not in (0, 1):
            problem = f"{job.name}, {limit} bytes: status {ended.status}: {ended.text.strip()[-200:]}"
        elif ended.status and str(place.job.parent) not in ended.text:
            problem = f"{job.name}, {limit} bytes: no file is named: {ended.text.strip()[-200:]}"
        section.note(f"{job.name}: {'refused' if ended.status else 'had room'}")
        section.count(problem or recovered(ground, job, place))
    return section


def two_at_once(
    ground: Ground, seconds: float, rng: random.Random, jobs: tuple[Job, ...] = JOBS, least: int = 0
) -> Section:
    """Two of the same job in one folder: each is refused or right, and the outcome is that of one."""
    section = Section("two at once")
    took = prepare(ground, jobs)
    until = time.monotonic() + seconds
    while time.monotonic() < until or section.cases < least:
        job = rng.choice(jobs)
        place = ground.place()
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder) / str(k) for k in range(2)]
            started = []
            for output in outputs:
                started.append(start(lambda place=place, job=job: job.run(place), output=output))
                time.sleep(rng.uniform(0, 0.5 * took[job]) if rng.random() < 0.5 else 0)
            ended = [wait(p, output, timeout=300) for p, output in zip(started, outputs, strict=True)]
        problem = next((e.text.strip()[-300:] for e in ended if e.traceback or e.status not in (0, 1)), None)
        section.note("refused" if any(e.status for e in ended) else "both right")
        section.count(problem or recovered(ground, job, place))
    return section


def clean(ground: Ground) -> None:
    shutil.rmtree(ground.root, ignore_errors=True)
