import io
import json
import math

import pytest

from dgnet_fast.report.log import RunLog, format_duration, read_metrics


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def quiet(folder, total=100, **options):
    return RunLog(folder, total, **({"tensorboard": False, "stream": io.StringIO()} | options))


def strict_lines(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_round_trip_with_values_that_json_lacks(tmp_path):
    with quiet(tmp_path / "run") as log:
        log.write(1, {"total": 2.5, "adv": math.nan})
        log.write(2, {"total": math.inf, "adv": -math.inf})
        assert len(strict_lines(log.path)) == 2  # flushed while the log is open
        log.write(2, {"mAP": 0.5}, phase="eval")
    assert strict_lines(log.path)[:2] == [
        {"step": 1, "phase": "train", "total": 2.5, "adv": "NaN"},
        {"step": 2, "phase": "train", "total": "Infinity", "adv": "-Infinity"},
    ]
    first, second, third = read_metrics(log.path)
    assert first["total"] == 2.5 and math.isnan(first["adv"])
    assert second == {"step": 2, "phase": "train", "total": math.inf, "adv": -math.inf}
    assert third == {"step": 2, "phase": "eval", "mAP": 0.5}


def test_truncation_drops_later_steps_of_every_phase(tmp_path):
    with quiet(tmp_path) as log:
        for step in (10, 20, 30):
            log.write(step, {"total": step / 2})
            log.write(step, {"mAP": step / 100}, phase="eval")
    with quiet(tmp_path) as log:
        log.truncate_after(20)
        log.write(25, {"total": 7.0})
    assert [(r["step"], r["phase"]) for r in read_metrics(log.path)] == [
        (10, "train"), (10, "eval"), (20, "train"), (20, "eval"), (25, "train")
    ]  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_line_cut_short_by_a_killed_run_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "phase": "train", "total": 1.0}\n{"step": 2, "pha')
    assert [r["step"] for r in read_metrics(path)] == [1]
    with quiet(tmp_path) as log:
        log.write(2, {"total": 3.0})
    assert [r["step"] for r in strict_lines(path)] == [1, 2]


def test_an_interrupted_truncation_leaves_the_old_file_whole(tmp_path, monkeypatch):
    with quiet(tmp_path) as log:
        log.write(1, {"a": 1})
        log.write(2, {"a": 2})
        before = log.path.read_text()

        def killed(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            log.truncate_after(1)
        assert log.path.read_text() == before


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "phase": "train"}\nhello\n')
    with pytest.raises(ValueError, match="line 2 is no record .*hello"):
        read_metrics(path)


def test_progress_median_and_time_left(tmp_path):
    clock, stream = Clock(), io.StringIO()
    log = quiet(tmp_path, 5000, clock=clock, stream=stream)
    terms = {"extra": 1.0, "total": 12.34567, "adv": 0.5}
    for step in range(10, 60, 10):
        clock.now += 600 if step == 30 else 20  # 2 s a step; one interval holds an evaluation
        log.progress(step, terms)
    lines = stream.getvalue().splitlines()
    assert lines[-1] == "step   50/5000    1.0%  2 s/step  ETA 2:45:00  total 12.35  adv 0.5"
    assert log.seconds_per_step == 2.0
    clock.now += 4950 * 2
    log.progress(5000, terms)
    assert "ETA 0:00:00" in stream.getvalue().splitlines()[-1]
    assert all(c.isprintable() or c == "\n" for c in stream.getvalue())


def test_resuming_does_not_count_the_steps_of_the_earlier_run(tmp_path):
    clock, stream = Clock(), io.StringIO()
    log = quiet(tmp_path, 1000, clock=clock, stream=stream)
    clock.now += 500  # building the networks
    log.truncate_after(900)
    clock.now += 30
    log.progress(910, {"x": 1.0})
    assert stream.getvalue() == "step  910/1000   91.0%  3 s/step  ETA 0:04:30  x 1\n"


def test_every(tmp_path):
    stream = io.StringIO()
    log = quiet(tmp_path, 25, stream=stream, every=10)
    for step in range(1, 26):
        log.progress(step, {"total": step})
    assert [line.split("total")[1] for line in stream.getvalue().splitlines()] == [" 1", " 10", " 20", " 25"]


def test_half_a_minute_of_silence_is_broken(tmp_path):
    clock, stream = Clock(), io.StringIO()
    log = quiet(tmp_path, 100_000, clock=clock, stream=stream, every=100)
    for step in range(1, 7):
        clock.now += 12
        log.progress(step, {"total": step})
    assert [line.split("total")[1] for line in stream.getvalue().splitlines()] == [" 1", " 4"]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0:00:00"),
        (59.4, "0:00:59"),
        (59.6, "0:01:00"),
        (3725, "1:02:05"),
        (187000, "51:56:40"),
        (math.nan, "?"),
    ],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="total_steps is 0"):
        RunLog(tmp_path, 0)
    with quiet(tmp_path) as log:
        with pytest.raises(ValueError, match="named 'phase'"):
            log.write(1, {"phase": 1.0})
        with pytest.raises(ValueError, match="'total' is \\[1\\]"):
            log.write(1, {"total": [1]})
    assert read_metrics(log.path) == []


def test_tensorboard_hides_the_steps_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with quiet(tmp_path, tensorboard=True) as log:
        for step in (1, 2, 3):
            log.write(step, {"total": float(step)})
    with quiet(tmp_path, tensorboard=True) as log:
        log.truncate_after(1)
        log.write(2, {"total": 20.0})
        with pytest.raises(RuntimeError, match="before the first write"):
            log.truncate_after(1)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/total")] == [(1, 1.0), (2, 20.0)]


def test_time_that_is_no_part_of_a_step_is_left_out(tmp_path):
    clock, stream = Clock(), io.StringIO()
    log = quiet(tmp_path, 100, clock=clock, stream=stream)
    clock.now += 284
    log.leave_out(200)
    log.leave_out(80)
    log.progress(1, {"x": 1.0})
    assert log.seconds_per_step == 4
    clock.now += 2
    log.progress(2, {"x": 1.0})
    assert log.seconds_per_step == 3  # the median of 4 and 2
