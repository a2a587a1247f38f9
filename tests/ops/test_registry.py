"""Who serves what: the rules of the table, and forcing."""

from __future__ import annotations

import importlib

import pytest
import torch

from dgnet_fast.ops import adain_act, adain_act_reference, registry
from dgnet_fast.ops.adain_act import cpp, reference
from dgnet_fast.ops.native import _C


@pytest.fixture(autouse=True)
def nothing_forced(monkeypatch):
    monkeypatch.delenv("DGNET_FAST_IMPL", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.parametrize("op, device", [(op, device) for op, row in registry.TABLE.items() for device in row])
def test_float64_is_the_references(op, device):
    assert registry.choose(op, device, torch.float64).name == "reference"
    serving = [body.name for body in registry.TABLE[op][device] if torch.float64 in body.serves]
    assert serving == ["reference"]


@pytest.mark.parametrize("op", registry.TABLE)
@pytest.mark.parametrize("dtype", registry.FAST_DTYPES)
def test_the_reference_is_never_taken_silently(op, dtype):
    for device, bodies in registry.TABLE[op].items():
        automatic = [body.name for body in bodies if dtype in body.automatic]
        assert automatic and "reference" not in automatic, device


def test_cpu_is_served_by_cpp():
    assert registry.implementation("adain_act", "cpu", torch.bfloat16) is cpp
    assert registry.implementation("adain_act", "cpu", torch.float64) is reference


def test_forcing_takes_effect_at_the_next_call(monkeypatch):
    called = []
    forward = reference.forward
    monkeypatch.setattr(reference, "forward", staticmethod(lambda *a: called.append(1) or forward(*a)))
    x = torch.randn(1, 2, 3, 3)
    expected = adain_act(x)
    assert not called
    monkeypatch.setenv("DGNET_FAST_IMPL", "reference")
    torch.testing.assert_close(adain_act(x), expected)
    assert called == [1]


@pytest.mark.parametrize(
    ("forced", "dtype", "message"),
    [
        ("cpp", torch.float64, "this body serves float32, bfloat16, float16"),
        ("cuda", torch.float32, "no such body on cpu, there are cpp, reference, triton"),
        ("triton", torch.float32, "TRITON_INTERPRET=1"),
        ("cudnn", torch.float32, "allowed are reference, cpp, triton, cuda"),
    ],
)
def test_forcing_what_cannot_serve_raises(monkeypatch, forced, dtype, message):
    monkeypatch.setenv("DGNET_FAST_IMPL", forced)
    with pytest.raises(ValueError, match=message):
        adain_act(torch.zeros(1, 1, 2, 2, dtype=dtype))


def test_without_a_body_the_error_says_why(monkeypatch):
    monkeypatch.setattr(registry, "_why_unavailable", lambda name, device: "missing here")
    registry._choose.cache_clear()
    with pytest.raises(ValueError, match="cpp: missing here.*DGNET_FAST_IMPL=reference"):
        registry.choose("adain_act", "cpu", torch.float32)
    registry._choose.cache_clear()


def test_other_devices_and_dtypes_are_refused():
    with pytest.raises(ValueError, match="device type 'xpu', served are cpu, cuda"):
        registry.choose("adain_act", "xpu", torch.float32)
    with pytest.raises(ValueError, match="int8, served are"):
        registry.choose("adain_act", "cpu", torch.int8)
    assert adain_act_reference(torch.zeros(1, 1, 2, 2, device="meta")).shape == (1, 1, 2, 2)


def test_cuda_prefers_triton_then_the_extension(monkeypatch):
    assert registry.choose("adain_act", "cuda", torch.float32).name == "triton"
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    registry._choose.cache_clear()
    if _C.build["cuda"]:
        assert registry.choose("adain_act", "cuda", torch.float32).name == "cuda"
    else:
        with pytest.raises(ValueError, match="built without nvcc"):
            registry.choose("adain_act", "cuda", torch.float32)
    registry._choose.cache_clear()


def test_every_body_can_be_imported():
    pytest.importorskip("triton")
    for op, devices in registry.TABLE.items():
        for bodies in devices.values():
            for body in bodies:
                if body.name == "triton":
                    module = importlib.import_module(f"dgnet_fast.kernels.{op}")
                    assert callable(module.forward) and callable(module.backward)
                namespace = registry.load(op, body.name)
                assert callable(namespace.forward) and callable(namespace.backward)
