"""Import and export of the public code's entries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dgnet_fast.checkpoints.public_layout import (
    discriminator_layout,
    encoder_layout,
    export_state,
    generator_layout,
    import_state,
)
from dgnet_fast.config import from_dict
from dgnet_fast.models.appearance_encoder import build_teacher
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.models.dgnet import DGNet
from tests.tiny import tiny_config, tiny_model

DATA = Path(__file__).parents[1] / "cases"
CASES = sorted(p for p in DATA.glob("*.json") if p.stem not in ("evaluation", "reranking"))
VARIANTS = [
    {},
    {"ID_style": "normal"},
    {"ID_style": "PCB"},
    {"gen__non_local": 1, "dis__non_local": 2, "dis__dim": 8},
    {"dis__non_local": 1, "dis__dim": 8, "dis__num_scales": 1, "dis__n_layer": 3},
    {"dis__gan_type": "wgan", "dis__norm": "ln"},
    {"gen__activ": "prelu", "dis__activ": "prelu"},
    {"gen__n_downsample": 3, "crop_image_height": 160, "crop_image_width": 80},
    {"dis__norm": "ln", "gen__n_res": 5, "dis__n_res": 3},
    {"gen__dec": "series", "gen__mlp_norm": "in"},
]


def parts(model):
    """(name, module, layout) of the three files."""
    return [
        ("gen", model, generator_layout(model)),
        ("dis", model, discriminator_layout(model)),
        ("id", model.appearance_encoder, encoder_layout(model.appearance_encoder)),
    ]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_export_then_import_gives_the_same_networks(changes):
    config = tiny_config(**changes)
    source, target = tiny_model(config), DGNet(config.replace(seed=1))
    drawn = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for buffer in source.buffers():
            buffer.copy_(torch.rand(buffer.shape, generator=drawn) * 9 + 1)
    covered = []
    for (_, module, layout), (_, other, _) in zip(parts(source), parts(target), strict=True):
        entries = export_state(module, layout)
        assert set(entries) == set(layout.slots) | set(layout.unused)
        kept = import_state(other, layout, entries, source="file")
        assert set(kept) == set(layout.unused)
        prefix = "appearance_encoder." if module is source.appearance_encoder else ""
        rows = [(prefix + slot.name, slot.row) for slot in layout.slots.values()]
        assert len(set(rows)) == len(rows)  # no tensor twice
        covered += rows
    theirs = target.state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    assert {name for name, _ in covered} == set(theirs)  # every tensor of ours is in a file
    size = sum((theirs[n] if row is None else theirs[n][row]).numel() for n, row in covered)
    assert size == sum(v.numel() for v in theirs.values())


def test_entries_are_copies():
    model = tiny_model(tiny_config())
    layout = discriminator_layout(model)
    entries = export_state(model, layout)
    before = {k: v.clone() for k, v in entries.items()}
    with torch.no_grad():
        for parameter in model.discriminator.parameters():
            parameter.add_(1)
    assert all(torch.equal(entries[k], before[k]) for k in entries)


def test_unused_entries_keep_their_values():
    model = tiny_model(tiny_config())
    for _, module, layout in parts(model):
        entries = export_state(module, layout)
        for name in layout.unused:
            entries[name] = torch.full_like(layout.unused[name], 4.5)
        kept = import_state(module, layout, entries, source="file")
        again = export_state(module, layout, kept)
        assert all((again[name] == 4.5).all() for name in layout.unused)
        assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in entries.items()}


def test_what_does_not_fit_is_named_and_nothing_changes():
    model = tiny_model(tiny_config())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    layout = generator_layout(model)
    entries = {k: v + 1 for k, v in export_state(model, layout).items()}
    first = "enc_content.model.0.conv.weight"
    last = "mlp_b4.model.2.fc.bias"

    def refused(changed, *words):
        with pytest.raises(ValueError) as caught:
            import_state(model, layout, changed, source="some.pt")
        for word in ("some.pt does not fit", *words):
            assert word in str(caught.value)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())

    refused({k: v for k, v in entries.items() if k != last}, f"missing {last}")
    refused(entries | {"nonlocal.weight": torch.ones(1)}, "extra nonlocal.weight", "--allow-extra")
    refused(entries | {first: torch.ones(4, 1, 5, 5)}, f"{first} is (4, 1, 5, 5), expected (4, 1, 3, 3)")
    many = {k: v for k, v in entries.items() if not k.startswith("dec.")} | {"x": torch.ones(1)}
    refused(many, "missing dec.", "more", "extra x")
    refused({}, "missing", "more")


def test_extra_entries_pass_when_allowed():
    model = tiny_model(tiny_config())
    layout = generator_layout(model)
    entries = {k: v + 1 for k, v in export_state(model, layout).items()}
    extra = entries | {"dec.model.2.gamma": torch.ones(1)}
    import_state(model, layout, extra, source="file", allow_extra=True)
    assert all(torch.equal(v, entries[k]) for k, v in export_state(model, layout, entries).items())


def test_files_without_batch_counts_load():
    model = tiny_model(tiny_config())
    encoder = model.appearance_encoder
    layout = encoder_layout(encoder)
    entries = {k: v + 1 for k, v in export_state(encoder, layout).items() if "num_batches" not in k}
    import_state(encoder, layout, entries, source="file")
    assert torch.equal(encoder.backbone.conv1.weight, entries["model.conv1.weight"])


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_names_and_shapes_are_those_of_recorded_networks(path):
    case = json.loads(path.read_text())
    with torch.device("meta"):
        config = from_dict(case["config"]).replace(
            crop_image_height=case["height"], crop_image_width=case["width"]
        )
        model = DGNet(config, [build_teacher(config, 1)])
    found = {}
    for name, module, layout in parts(model):
        found |= {f"{name}.{k}": list(v.shape) for k, v in export_state(module, layout).items()}
    teacher = model.teachers[0]
    states = export_state(teacher, encoder_layout(teacher, teacher=True))
    found |= {f"teacher.{k}": list(v.shape) for k, v in states.items()}
    recorded = {k: list(v) for k, v in case["manifest"].items()}
    if not any(k.startswith("teacher.") for k in recorded):
        found = {k: v for k, v in found.items() if not k.startswith("teacher.")}
    assert {k: v for k, v in found.items() if k not in recorded} == {}
    assert {k: v for k, v in recorded.items() if k not in found} == {}
    assert found == recorded


def test_a_quarter_of_the_code_goes_to_the_mlp_of_its_name():
    model = tiny_model(tiny_config())
    entries = export_state(model, generator_layout(model))
    code = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0))
    adain = model.mlp(code.flatten(1))
    for letter, ours in (("w", adain.scale), ("b", adain.shift)):
        for k in range(4):
            x = code[:, k]
            for layer in range(3):
                name = f"mlp_{letter}{k + 1}.model.{layer}.fc"
                x = x @ entries[f"{name}.weight"].T + entries[f"{name}.bias"]
                x = torch.nn.functional.leaky_relu(x, 0.2) if layer < 2 else x
            torch.testing.assert_close(ours[:, 2 * k : 2 * k + 2].flatten(1), x)


def test_a_heads_entries_serve_the_head_of_their_name():
    model = tiny_model(tiny_config())
    encoder = model.appearance_encoder
    entries = export_state(encoder, encoder_layout(encoder))
    out = encoder(torch.randn(2, 3, 80, 48, generator=torch.Generator().manual_seed(0)), BatchNormMode())
    for k in (0, 1):
        weight, bias = (entries[f"classifier{k + 1}.classifier.0.{p}"] for p in ("weight", "bias"))
        torch.testing.assert_close(out.logits[k], out.features[k] @ weight.T + bias)
