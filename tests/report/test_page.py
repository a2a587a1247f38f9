import base64
import io
import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dgnet_fast.report.curves import _grouped, _moving_average, save_curves
from dgnet_fast.report.environment import collect_environment, write_environment
from dgnet_fast.report.log import RunLog, read_metrics
from dgnet_fast.report.page import write_report
from dgnet_fast.report.tables import format_table

TABLES = [
    {
        "title": "Synthetic <test>",
        "columns": ["Model", "Rank@1", "mAP", "images"],
        "rows": [
            ["baseline", 0.5, 0.25, 10],
            ["DG-Net & all", 94.77, 86.09, 12936],
            ["not run", None, None, None],
        ],
        "notes": ["one seed"],
        "verdict": "DG-Net wins.",
    },
    {"columns": ["s/step"], "rows": [["fast", 0.0123]]},
]
VOID = {"meta", "img", "input", "link", "br", "hr"}


class Page(HTMLParser):
    """Checks nesting; collects text, images and everything that would be loaded."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.text, self.sources, self.alts, self.ids, self.links = [], [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in {"script", "link", "iframe", "object", "base"}
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.sources.append(attributes["src"])
            self.alts.append(attributes["alt"])
        if tag == "a":
            self.links.append(attributes["href"])
        self.ids += [attributes["id"]] if "id" in attributes else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first run"
    with RunLog(folder, 300, tensorboard=False) as log:
        for step in range(0, 300, 2):
            log.write(
                step,
                {"total": 30 / (step + 1), "recon_x": 1 / (step + 1), "id": 6.0, "recon_f_w": step / 300},
            )
        log.write(300, {"total": math.nan, "seconds": 1.0})
        for step in (100, 200, 300):
            log.write(step, {"mAP": step / 400}, phase="eval")
    machine = {"step": 300, "phase": "machine", "seconds_per_step": 0.5, "memory_gb": 2.0}
    (folder / "machine.jsonl").write_text(json.dumps(machine) + "\n")
    write_environment(folder, device="cpu", precision="bfloat16")
    (folder / "config.yaml").write_text("seed: 1\nname: <b>bold</b>\nsource: https://example.org/data\n")
    (folder / "results.json").write_text(json.dumps(TABLES))
    (folder / "samples").mkdir()
    for step, shade in ((2000, 20), (100, 10), (30, 3)):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(folder / "samples" / f"step_{step:08d}.png")
    return folder


def pixels(source):
    prefix = "data:image/png;base64,"
    assert source.startswith(prefix)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source[len(prefix) :]))))


def test_a_complete_run(run_folder):
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    text = " ".join(" ".join(page.text).split())
    table = (
        "Synthetic <test>",
        "94.77",
        "86.09",
        "0.50",
        "12936",
        "DG-Net & all",
        "one seed",
        "DG-Net wins.",
        "0.0123",
    )
    facts = ("name: <b>bold</b>", "seed: 1", "last logged step 300", collect_environment()["torch"])
    for part in table + facts:
        assert part in text
    assert [pixels(s)[0, 0, 0] for s in page.sources[:3]] == [20, 10, 3]  # the newest sample first
    assert page.alts[0] == "Generated pictures at step 2000" and all(page.alts)
    stems = ["adversarial", "reconstruction", "identity", "evaluation", "machine", "weights", "other"]
    for part in ("0.5 s a step, 0:02:30 in all", "peak memory 2.00 GB", "bfloat16"):
        assert part in text
    assert len(page.sources) == 3 + len(stems)
    for source, stem in zip(page.sources[3:], stems, strict=True):
        np.testing.assert_array_equal(
            pixels(source), np.asarray(Image.open(run_folder / f"curves/{stem}.png"))
        )
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert "url(" not in html and "@import" not in html
    assert html.replace("https://example.org/data", "").count("http") == 0  # only the text of the config


def test_samples_are_thinned_with_first_and_last(run_folder):
    page = Page(write_report(run_folder, max_samples=2).read_text(encoding="utf-8"))
    assert [pixels(s)[0, 0, 0] for s in page.sources[:2]] == [20, 3]
    assert "2 of 3 pictures" in "".join(page.text)


def test_a_run_that_left_nothing_or_broken_files(tmp_path):
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    missing = "".join(page.text)
    for part in ("results", "samples", "ranking", "features", "curves", "environment", "configuration"):
        assert f"This run has left no {part} so far." in missing
    assert f"This command makes what belongs here: dgnet-fast visualize {tmp_path}" in missing
    (tmp_path / "results.json").write_text('{"title": ')
    (tmp_path / "environment.json").write_text("{")
    (tmp_path / "metrics.jsonl").write_text("?\n")
    text = "".join(Page(write_report(tmp_path).read_text(encoding="utf-8")).text)
    assert text.count("could not be read") == 3 and "results.json is not valid JSON" in text
    with pytest.raises(ValueError, match="nowhere"):
        write_report(tmp_path / "nowhere")


def test_format_table():
    assert format_table(TABLES[0]) == (
        "Synthetic <test>\n"
        "Model         Rank@1    mAP  images\n"
        "-----------------------------------\n"
        "baseline        0.50   0.25      10\n"
        "DG-Net & all   94.77  86.09   12936\n"
        "not run            –      –       –\n"
        "  DG-Net wins.\n"
        "  one seed"
    )
    assert format_table(TABLES[1]) == "      s/step\n------------\nfast  0.0123"
    tiny = format_table({"columns": ["", "x"], "rows": [["a", 2e-7], ["b", math.nan], ["c", 1.5], ["d", 2]]})
    assert [line.split()[-1] for line in tiny.splitlines()[2:]] == ["2e-07", "nan", "1.5", "2.0"]
    with pytest.raises(ValueError, match="2 columns .a, b. but a row .*'x'"):
        format_table({"columns": ["a", "b"], "rows": [["x"]]})
    with pytest.raises(ValueError, match="expected a mapping with lists"):
        format_table({"columns": "a"})


def test_scalars_go_to_their_groups():
    members = {
        "adversarial": "total adv dis_total dis_penalty",
        "reconstruction": "recon_x recon_x_cyc loss/recon_s",
        "identity": "id pid recon_id teacher teacher_kl",
        "weights": "recon_x_cyc_w teacher_w lr_g",
        "other": "memory",
    }
    names = {name: group for group, text in members.items() for name in text.split()}
    record = {"step": 1, "phase": "train"} | dict.fromkeys(names, 1.0)
    groups = _grouped([record, {"step": 1, "phase": "eval", "mAP": 0.5}])
    assert {label: group for group, series in groups.items() for label in series} == names | {
        "mAP": "evaluation"
    }


def test_a_step_logged_twice_keeps_the_later_value():
    records = [{"step": s, "phase": "train", "adv": v} for s, v in ((2, 5.0), (1, 4.0), (2, 6.0))]
    steps, values = _grouped(records)["adversarial"]["adv"]
    assert steps.tolist() == [1, 2] and values.tolist() == [4.0, 6.0]


def test_moving_average():
    np.testing.assert_allclose(_moving_average(np.array([1.0, 2, 6, 3, 8]), 1), [1.5, 3, 11 / 3, 17 / 3, 5.5])


def test_curves_of_a_run_without_scalars_or_finite_values(tmp_path):
    log = RunLog(tmp_path, 10, tensorboard=False)
    assert save_curves(log.path, tmp_path / "curves") == []
    log.write(1, {"total": math.nan})
    assert [p.name for p in save_curves(log.path, tmp_path / "curves")] == ["adversarial.png"]
    log.close()
    assert len(read_metrics(log.path)) == 1


def test_environment_file(tmp_path):
    values = json.loads(write_environment(tmp_path / "new").read_text())
    assert values == collect_environment() | {"date": values["date"]}
    assert values["numpy"] == np.__version__ and values["cpu"] and isinstance(values["gpus"], list)
