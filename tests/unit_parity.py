"""Compare our training step of UNIT with numbers recorded from the public code: `python tests/parity.py` runs this for
cases that hold noise. What is compared and how is said there; the names of the recorded numbers are those of
mingyuliutw/UNIT, and ``x_ba`` is domain a's picture made from b.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.checkpoints.public_layout import export_state, import_state, renamed
from dgnet_fast.checkpoints.unit import LAYOUTS
from dgnet_fast.config.unit import unit_from_dict
from dgnet_fast.models.unit import Unit
from dgnet_fast.training.optim import Precision
from dgnet_fast.translation.step import UnitBatch, UnitOptimisers, UnitStep
from tests.parity import Comparison, add_gradients, probe, signature

GROUPS = ("lr", "forward", "dis", "gen", "after")
SAMPLE = "sample"
NETWORKS = [(kind, domain) for kind in ("gen", "dis") for domain in range(2)]


def rebuild_entry(name: str, shape: list[int]) -> Tensor:
    """The recorded weight called ``name``: a function of its name and shape alone."""
    last = name.rsplit(".", 1)[1]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    count = int(np.prod(shape)) if shape else 1
    seed = zlib.crc32(name.encode()) & 0xFFFFFFFF
    z = torch.from_numpy(np.random.RandomState(seed).standard_normal(count).reshape(shape))
    if last == "running_var":
        return torch.exp(0.1 * z)
    if last in ("running_mean", "bias", "beta"):
        return 0.1 * z
    if len(shape) == 1:
        return (0.25 if count == 1 else 1.0) + 0.1 * z
    gain = 1.0 if name.startswith(("dis_a.", "dis_b.")) else 1.3
    return gain * z / np.sqrt(np.prod(shape[1:]))


def prefix(kind: str, domain: int) -> str:
    return f"{kind}_{'ab'[domain]}."


def build(case: dict, dtype: torch.dtype) -> Unit:
    """The model of a case with its rebuilt weights."""
    config = unit_from_dict(case["config"]).replace(
        crop_image_height=case["height"],
        crop_image_width=case["width"],
        batch_size=case["batch"],
        amp="off",
    )
    model = Unit(config).to(dtype)

    def entries(begin: str) -> dict[str, Tensor]:
        return {
            name[len(begin) :]: rebuild_entry(name, shape)
            for name, shape in case["manifest"].items()
            if name.startswith(begin)
        }

    for kind, domain in NETWORKS:
        import_state(model, LAYOUTS[kind](model, domain), entries(prefix(kind, domain)), source=case["name"])
    if model.perceptual is not None:
        from dgnet_fast.checkpoints.public_layout import Layout

        layout = Layout(renamed(model.perceptual, {"convs.": ""}), {})
        import_state(model.perceptual, layout, entries("vgg."), source=case["name"])
    return model


class Seen:
    """What the networks return during a step, by network and call, taken by hooks."""

    def __init__(self, model: Unit) -> None:
        self.calls: dict[tuple[str, int], list[Any]] = {}
        self._hooks = []
        for name, networks in (
            ("enc", model.encoders), ("dec", model.decoders), ("dis", model.discriminators)
        ):  # fmt: skip
            for domain, network in enumerate(networks):
                found = self.calls[name, domain] = []
                self._hooks.append(network.register_forward_hook(lambda _m, _a, out, f=found: f.append(out)))
        self.features: list[Tensor] = []
        if model.perceptual is not None:
            plain = type(model.perceptual).features

            def features(x: Tensor, network: Any = model.perceptual) -> Tensor:
                self.features.append(plain(network, x))
                return self.features[-1]

            model.perceptual.features = features

    def close(self, model: Unit) -> None:
        for hook in self._hooks:
            hook.remove()
        if model.perceptual is not None:
            del model.perceptual.features

    def named(self) -> dict[str, Tensor]:
        """By the recorded names."""
        found: dict[str, Tensor] = {}
        for d, (own, other) in enumerate(("ab", "ba")):
            first, again = self.calls["enc", d]
            found |= {f"dis.h_{own}": first, f"h_{own}": first, f"h_{other}{own}": again}
            alone, *later = self.calls["dec", d]
            both, returned = sorted(later, key=len, reverse=True)  # two pictures of each and one
            recon, translated = both.chunk(2)
            found |= {f"dis.x_{other}{own}": alone, f"x_{own}_recon": recon}
            found |= {f"x_{other}{own}": translated, f"x_{own}{other}{own}": returned}
            *learned, judged = self.calls["dis", d]
            fakes, reals = (
                learned if len(learned) == 2 else zip(*(one.chunk(2) for one in learned[0]), strict=True)
            )
            for k, (fake, real, last) in enumerate(zip(fakes, reals, judged, strict=True)):
                found |= {f"dis.dis_{own}.fake[{k}]": fake, f"dis.dis_{own}.real[{k}]": real}
                found[f"gen.dis_{own}.fake[{k}]"] = last
        if self.features:
            for d, (own, other) in enumerate(("ab", "ba")):
                found[f"vgg_x_{other}{own}"], found[f"vgg_x_{other}"] = self.features[2 * d : 2 * d + 2]
        return found


def losses_of(terms: dict) -> dict[str, float]:
    """The recorded names of the losses of both phases."""
    pairs = {
        "adv": "loss_gen_adv_{}", "recon_x": "loss_gen_recon_x_{}", "recon_kl": "loss_gen_recon_kl_{}",
        "recon_x_cyc": "loss_gen_cyc_x_{}", "vgg": "loss_gen_vgg_{}", "dis": "loss_dis_{}",
    }  # fmt: skip
    found = {
        theirs.format(s): terms.get(ours, [0.0, 0.0])[k]
        for ours, theirs in pairs.items()
        for k, s in enumerate("ab")
    }
    found |= {f"loss_gen_recon_kl_cyc_{s}": terms["recon_kl_cyc"][k] for k, s in enumerate(("aba", "bab"))}
    return found | {"loss_gen_total": terms["total"], "loss_dis_total": terms["dis_total"]}


def add_probe(group: Comparison, name: str, value: Tensor, record: dict) -> None:
    got, n = probe(value), record["n"]
    group.add(f"{name} mean", got["mean"] * n**0.5, record["mean"] * n**0.5, record["l2"])
    group.add(f"{name} l2", got["l2"], record["l2"], record["l2"])
    for k, (a, b) in enumerate(zip(got["values"], record["values"], strict=True)):
        group.add(f"{name} value {k}", a, b, record["l2"] / n**0.5)


def compare_step(step: UnitStep, batch: UnitBatch, index: int, recorded: dict) -> dict[str, Comparison]:
    """Run one step and compare it with its record."""
    model, groups = step.model, {g: Comparison() for g in GROUPS}
    gradients: dict[str, Tensor | None] = {}
    rates: dict[str, float] = {}
    hooks = []
    for net, optimiser in step.optimisers.named():

        def collect(one: torch.optim.Optimizer, _args: Any, _kwargs: Any, net: str = net) -> None:
            rates[net] = float(one.param_groups[0]["lr"])
            found = {n: p.grad for n, p in model.named_parameters()}
            for domain in range(2):
                for name, slot in LAYOUTS[net](model, domain).slots.items():
                    if slot.name in found:
                        grad = found[slot.name]
                        gradients[prefix(net, domain) + name] = None if grad is None else grad.clone()

        hooks.append(optimiser.register_step_pre_hook(collect))
    seen = Seen(model)
    terms = step([batch], index).terms
    seen.close(model)
    for hook in hooks:
        hook.remove()

    for net, rate in zip(("dis", "gen"), recorded["lr"], strict=True):
        groups["lr"].add(net, rates[net], rate, rate)
    ours, losses = seen.named(), losses_of(terms)
    for name, record in recorded["forward"].items():
        if name in ours:
            add_probe(groups["forward"], name, ours[name], record)
        else:
            groups["forward"].add_missing(name)
    for group in ("dis", "gen"):
        for name, value in recorded[group]["losses"].items():
            groups[group].add(name, losses.get(name, float("nan")), value, value)
        add_gradients(groups[group], recorded[group]["grads"], gradients)
    after = {
        prefix(kind, d) + name: value
        for kind, d in NETWORKS
        for name, value in export_state(model, LAYOUTS[kind](model, d)).items()
    }
    for name, value in recorded["after"].items():
        if name not in after:
            groups["after"].add_missing(name)
            continue
        for key, got in signature(name, after[name]).items():
            groups["after"].add(f"{name} {key}", got, value[key], value["l2"])
    return groups


def run_case(case: dict, dtype: torch.dtype) -> list[dict[str, Comparison]]:
    """The groups of every step; the last step's hold `SAMPLE` too."""
    model = build(case, dtype)
    random = np.random.RandomState(case["seed"])
    drawn: dict[str, Tensor] = {}

    def noise(name: str, code: Tensor) -> Tensor:
        assert drawn[name].shape == code.shape
        return drawn[name]

    step = UnitStep(
        model, UnitOptimisers(model, model.config), Precision(None, torch.device("cpu")), noise=noise
    )
    size = (case["batch"], 3, case["height"], case["width"])
    found = []
    for index, recorded in enumerate(case["steps"]):
        pictures = [np.clip(0.5 * random.standard_normal(size), -1, 1) for _ in range(2)]
        for name in case["noise"]["order"]:
            drawn[name] = torch.from_numpy(random.standard_normal(case["noise"]["shape"])).to(dtype)
        batch = UnitBatch(torch.from_numpy(np.stack(pictures)).to(dtype))
        found.append(compare_step(step, batch, index, recorded))
    group = found[-1][SAMPLE] = Comparison()
    model.eval()
    for k, own in enumerate("ab"):
        other = "ba"[k]
        x = batch.x[k]
        ours = {
            f"x_{own}": x,
            f"x_{own}_recon": torch.cat([model.translate(one[None], k, k) for one in x]),
            f"x_{own}{other}": torch.cat([model.translate(one[None], k, 1 - k) for one in x]),
        }
        for name, value in ours.items():
            add_probe(group, name, value, case["sample"][name])
    return found


def check_case(
    case: dict, dtype: torch.dtype = torch.float64, bound: float = 1e-8
) -> list[tuple[int, str, float, str, float]]:
    """(step, group, worst relative error, where, bound) for every step and group of a case."""
    steps = run_case(case, dtype)
    return [(k, g, *c.worst(), bound) for k, groups in enumerate(steps) for g, c in groups.items()]
