"""The doctor's report: complete, true to the registry, JSON and text."""

from __future__ import annotations

import json

import torch

import dgnet_fast
from dgnet_fast import _C, doctor
from dgnet_fast.ops import registry
from dgnet_fast.report.tables import read_tables


def test_the_report_is_true_to_what_is_built(capsys, tmp_path):
    facts = doctor.report()
    assert facts["versions"]["torch"] == str(torch.__version__)
    assert facts["extension"].items() >= dict(_C.build).items()
    assert facts["extension"]["level"] in facts["extension"]["levels_built"]
    assert facts["cpu"]["threads_torch"] == facts["cpu"]["threads_extension"] == torch.get_num_threads()
    assert facts["cpu"]["malloc_keeps_large_blocks"] is dgnet_fast.malloc_kept
    assert facts["cpu"]["allocator"] == ("dgnet_fast" if dgnet_fast.allocator_installed else "torch")
    assert len(facts["cuda"]["devices"]) == torch.cuda.device_count()
    cpu = {(row["op"], row["dtype"]): row["body"] for row in facts["ops"] if row["device"] == "cpu"}
    assert len(cpu) == len(registry.TABLE) * len(registry.DTYPES)
    assert cpu["adain_act", "float32"] == "cpp" and cpu["adain_act", "float64"] == "reference"
    assert doctor.main(["--json", str(tmp_path / "facts.json")]) == 0
    assert "versions:" in capsys.readouterr().out
    machine, ops = read_tables(tmp_path / "facts.json")
    assert ["versions torch", str(torch.__version__)] in machine["rows"]
    assert ["adain_act", "cpu", "float32", "cpp"] in ops["rows"] and len(ops["rows"]) == len(facts["ops"])
    assert doctor.main(["--json"]) == 0  # without a file: JSON in place of the text
    assert json.loads(capsys.readouterr().out) == {"tables": [machine, ops]}


def test_text_names_what_is_forced_and_what_it_cannot_serve(capsys, monkeypatch):
    monkeypatch.setenv("DGNET_FAST_IMPL", "cpp")
    doctor.main([])
    text = capsys.readouterr().out
    assert "DGNET_FAST_IMPL=cpp" in text
    line = next(line for line in text.splitlines() if "adain_act" in line and "float64" in line)
    assert "none (DGNET_FAST_IMPL=cpp" in line
