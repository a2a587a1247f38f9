"""Compare our real training step with numbers recorded from the public code.

    python tests/parity.py CASE.json...          (also evaluation.json, the retrieval scores, and cases of UNIT)

A case holds options, sizes and a seed; weights are rebuilt from the names of the checkpoint entries and
inputs from the seed, so the file itself is small. The step that the trainer uses runs on them in float64, and
for each group of numbers (forward, discriminator, generator, state after the step) the worst relative error
is printed with its place. A number's error is taken relative to the L2 norm of its tensor, or, where that is
tiny within its group (biases before a normalisation have a gradient of zero up to rounding), to 1e-3 of the
group's largest. Exit status 1 above the bound, 1e-8.

Two kinds of number cannot be compared so. An entry whose gradient is zero but for rounding is moved by Adam in a
direction that is rounding too: after the step it is compared with the size of Adam's step. And an ill-conditioned step
(BatchNorm over two samples, kinks of the activations) makes rounding larger, which differs between CPUs; all the more
where a step starts from the weights of one before. Where a step misses the bound, the case runs again from weights
changed by one unit in the last place, and the bound becomes ten times what that alone changes in our own numbers.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.checkpoints.public_layout import (
    Layout,
    discriminator_layout,
    encoder_layout,
    export_state,
    generator_layout,
    import_state,
)
from dgnet_fast.config import Config, from_dict
from dgnet_fast.data import Batch
from dgnet_fast.models.appearance_encoder import build_teacher
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.training.optim import Optimisers, Precision
from dgnet_fast.training.parts import STREAMS, Encoded, Forward, encode_appearance, forward_pass
from dgnet_fast.training.step import TrainingStep

BOUND = 1e-8
NOISE_FACTOR = 10
"""Room over our own sensitivity to one unit in the last place: the public code's rounding is not ours."""
NO_GRADIENT = 1e-9
"""Share of the group's largest gradient below which a gradient is taken for rounding."""
FLOOR = 1e-3
GROUPS = ("forward", "dis", "gen", "after")


def rebuild_entry(name: str, shape: list[int]) -> Tensor:
    """The recorded weight called ``name``: a function of its name and shape alone."""
    last = name.rsplit(".", 1)[1] if "." in name else name
    if last == "num_batches_tracked":
        return torch.tensor(0)
    count = int(np.prod(shape)) if shape else 1
    seed = zlib.crc32(name.encode()) & 0xFFFFFFFF
    z = torch.from_numpy(np.random.RandomState(seed).standard_normal(count).reshape(shape))
    if last == "running_var":
        return torch.exp(0.1 * z)
    if last in ("running_mean", "bias", "beta"):
        return 0.1 * z
    if last == "gamma":
        return (1.0 if name.startswith("gen.") and count > 1 else 0.5) + 0.1 * z
    if len(shape) == 1:
        return 1 + 0.1 * z
    gain = 0.7 if "classifier" in name else 1.0 if name.startswith("dis.") else 1.3
    return gain * z / np.sqrt(np.prod(shape[1:]))


def rebuild_batches(case: dict, dtype: torch.dtype) -> list[Batch]:
    """One batch per recorded step."""
    random = np.random.RandomState(case["seed"])
    size = (case["batch"], 3, case["height"], case["width"])
    batches = []
    for _ in case["steps"]:
        x = [np.clip(random.standard_normal(size), -2, 2) for _ in range(2 * STREAMS)]
        labels = [random.randint(0, case["config"]["ID_class"], size=case["batch"]) for _ in range(STREAMS)]
        pictures = torch.from_numpy(np.stack(x)).to(dtype)
        batches.append(
            Batch(pictures[:STREAMS], pictures[STREAMS:], torch.from_numpy(np.stack(labels)), None)
        )
    return batches


def nets(model: DGNet) -> list[tuple[str, torch.nn.Module, Layout]]:
    """(prefix of the recorded names, module, layout) of the networks of a case."""
    found = [
        ("gen.", model, generator_layout(model)),
        ("id.", model.appearance_encoder, encoder_layout(model.appearance_encoder)),
        ("dis.", model, discriminator_layout(model)),
    ]
    return found + [("teacher.", t, encoder_layout(t, teacher=True)) for t in model.teachers]


def build(case: dict, dtype: torch.dtype) -> tuple[DGNet, dict[str, Tensor]]:
    """The model of a case with its rebuilt weights, and the entries that no computation reads."""
    config: Config = from_dict(case["config"])
    # the sizes and options of the case's own fields win over those of the configuration file it was made from
    config = config.replace(
        crop_image_height=case["height"],
        crop_image_width=case["width"],
        batch_size=case["batch"],
        amp="off",
        erasing_p=0.0,
    )
    teachers = (
        [build_teacher(config, stride=1)] if any(n.startswith("teacher.") for n in case["manifest"]) else []
    )
    model = DGNet(config, teachers).to(dtype)
    unused = {}
    for prefix, module, layout in nets(model):
        entries = {
            n[len(prefix) :]: rebuild_entry(n, shape).to(
                dtype if not n.endswith("num_batches_tracked") else torch.long
            )
            for n, shape in case["manifest"].items()
            if n.startswith(prefix)
        }
        kept = import_state(module, layout, entries, source=case["name"])
        unused |= {prefix + n: v for n, v in kept.items()}
    return model, unused


def probe(x: Tensor) -> dict:
    """Count, mean, L2 norm and 48 values of a tensor, as recorded."""
    flat = x.detach().double().contiguous().flatten().numpy()
    step = max(1, flat.size // 48)
    return {"mean": flat.mean(), "l2": float(np.linalg.norm(flat)), "values": flat[::step][:48]}


def add_gradients(comparison: Comparison, recorded: dict, ours: dict) -> None:
    """Compare gradients by name with the recorded ones; None is recorded for a parameter that has none."""
    for name, value in recorded.items():
        grad = ours.get(name)
        if value is None:
            if grad is not None:
                comparison.add(f"{name} has a gradient", signature(name, grad)["l2"], 0.0, 0.0)
        elif grad is None:
            comparison.add(f"{name} has none", 0.0, value["l2"], value["l2"])
        else:
            for key, got in signature(name, grad).items():
                comparison.add(f"{name} gradient {key}", got, value[key], value["l2"])


def signature(name: str, x: Tensor) -> dict:
    """L2 norm and dot product with the name's own random vector, as recorded for gradients and states."""
    flat = x.detach().double().contiguous().flatten().numpy()
    direction = np.random.RandomState(zlib.crc32(("probe." + name).encode()) & 0xFFFFFFFF).standard_normal(
        flat.size
    )
    return {"l2": float(np.linalg.norm(flat)), "dot": float(flat @ direction)}


class Comparison:
    """Differences of one group; `worst` weighs each against its own scale or the group's floor."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, float]] = []
        self.ours: dict[str, float] = {}
        self.largest = 0.0

    def add(self, place: str, ours: float, recorded: float, scale: float, *, floors: bool = True) -> None:
        """``floors``: the scale counts for the group's floor."""
        self.ours[place] = float(ours)
        self.rows.append((place, abs(float(ours) - float(recorded)), abs(float(scale))))
        if floors:
            self.largest = max(self.largest, abs(float(scale)))

    def add_missing(self, place: str) -> None:
        self.rows.append((place, float("inf"), 1.0))

    def against(self, other: Comparison) -> Comparison:
        """The same places with our own numbers of another run instead of the recorded ones."""
        made = Comparison()
        for place, _, scale in self.rows:
            if place in self.ours and place in other.ours:
                made.add(place, self.ours[place], other.ours[place], scale)
        return made

    def worst(self) -> tuple[float, str]:
        floor = FLOOR * self.largest or 1.0
        scored = [(d / max(s, floor) if d == d else float("inf"), place) for place, d, s in self.rows]
        return max(scored, default=(0.0, "nothing recorded"))


def forward_tensors(encoded: Encoded, forward: Forward, count: int) -> dict[str, Tensor]:
    """The recorded names of the forward pass's tensors."""
    named = {}
    for k, s in enumerate("ab"):
        named |= {f"s_{s}": forward.structure[k], f"f_{s}": forward.code[k]}
        named |= {f"x_{s}_recon": forward.self_recon[k], f"x_{s}_recon_p": forward.same_id_recon[k]}
        for prefix, first in (("p", 0), ("pp", 2)):
            for head, one in enumerate(encoded.logits):
                rows = one[(first + k) * count : (first + k + 1) * count]
                named[f"{prefix}_{s}[{head}]"] = rows
                if len(encoded.logits) == 1:
                    named[f"{prefix}_{s}"] = rows
    return named | {"x_ba": forward.swapped[0], "x_ab": forward.swapped[1]}


def generator_losses(terms: dict) -> dict[str, float]:
    """The recorded names of the generator phase's losses."""
    pair = {
        "adv": "loss_gen_adv", "recon_x": "loss_gen_recon_x", "recon_xp": "loss_gen_recon_xp", "recon_s": "loss_gen_recon_s",
        "recon_f": "loss_gen_recon_f", "recon_x_cyc": "loss_gen_cycrecon_x",
    }  # fmt: skip
    single = {"id": "loss_id", "pid": "loss_pid", "recon_id": "loss_gen_recon_id", "teacher": "loss_teacher"}
    losses = {
        f"{theirs}_{s}": terms.get(ours, [0.0, 0.0])[k]
        for ours, theirs in pair.items()
        for k, s in enumerate("ab")
    }
    losses |= {theirs: sum(terms.get(ours, [0.0])) for ours, theirs in single.items()}
    return losses | {"loss_gen_total": terms["total"], "loss_gen_vgg_a": 0.0, "loss_gen_vgg_b": 0.0}


def compare_step(step: TrainingStep, batch: Batch, recorded: dict, unused: dict) -> dict[str, Comparison]:
    """Run one step and compare it with its record."""
    model, groups = step.model, {g: Comparison() for g in GROUPS}
    gradients: dict[str, Tensor | None] = {}
    hooks = []
    for net, optimiser in step.optimisers.named():

        def collect(_optimiser, _args, _kwargs, net: str = net) -> None:  # noqa: ANN001
            for prefix, module, layout in nets(model):
                if prefix != net + ".":
                    continue
                grads = {n: p.grad for n, p in module.named_parameters()}
                for name, slot in layout.slots.items():
                    if slot.name in grads:
                        grad = grads[slot.name]
                        gradients[prefix + name] = None if grad is None else slot.read(grads).clone()

        hooks.append(optimiser.register_step_pre_hook(collect))
    seen = []
    with step.watching(encode_appearance, seen), step.watching(forward_pass, seen):
        result = step([batch], 0)  # rates undecayed and ramps held still, as recorded
    for hook in hooks:
        hook.remove()

    ours = forward_tensors(*seen, batch.x.shape[1])
    for name, record in recorded["forward"].items():
        if name not in ours:
            groups["forward"].add_missing(name)
            continue
        got, n = probe(ours[name]), record["n"]
        groups["forward"].add(f"{name} mean", got["mean"] * n**0.5, record["mean"] * n**0.5, record["l2"])
        groups["forward"].add(f"{name} l2", got["l2"], record["l2"], record["l2"])
        for k, (a, b) in enumerate(zip(got["values"], record["values"], strict=True)):
            groups["forward"].add(f"{name} value {k}", a, b, record["l2"] / n**0.5)

    terms = result.terms
    dis = {"loss_total": terms["dis_total"], "loss_a": terms["dis"][0], "loss_b": terms["dis"][1]}
    for group, losses in (("dis", dis), ("gen", generator_losses(terms))):
        record = recorded[group].get("losses", recorded[group])
        for name, value in record.items():
            if name != "grads":
                groups[group].add(name, losses.get(name, float("nan")), value, value)
        add_gradients(groups[group], recorded[group]["grads"], gradients)

    after = dict(unused)
    for prefix, module, layout in nets(model):
        state = export_state(module, layout)
        after |= {prefix + n: v for n, v in state.items() if prefix + n not in unused}
    adam_step = {
        name: rate * size**0.5
        for name, size, rate in vanishing(
            recorded, {"gen": model.config.lr_g, "dis": model.config.lr_d}, after
        )
    }
    for name, value in recorded["after"].items():
        if name not in after:
            groups["after"].add_missing(name)
            continue
        for key, got in signature(name, after[name]).items():
            scale = adam_step[name] / BOUND if name in adam_step else value["l2"]
            groups["after"].add(f"{name} {key}", got, value[key], scale, floors=name not in adam_step)
    return groups


def vanishing(
    recorded: dict, rates: dict[str, float], after: dict[str, Tensor]
) -> list[tuple[str, int, float]]:
    """(name, number of elements, Adam's rate) of the entries whose recorded gradient is zero but for rounding."""
    found = []
    for group, rate in rates.items():
        grads = {
            n: v["l2"]
            for n, v in recorded[group]["grads"].items()
            if v is not None and n.startswith(group + ".")
        }
        limit = NO_GRADIENT * max(grads.values(), default=0.0)
        found += [(n, after[n].numel(), rate) for n, size in grads.items() if size < limit and n in after]
    return found


def run_case(case: dict, dtype: torch.dtype, ulps: int = 0) -> list[dict[str, Comparison]]:
    """The groups of every step; ``ulps`` changes every weight by so many units in its last place first."""
    torch.set_default_dtype(torch.float32)
    model, unused = build(case, dtype)
    if ulps:
        signs = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                up = torch.rand(parameter.shape, generator=signs) < 0.5
                parameter.mul_(1 + ulps * torch.finfo(dtype).eps * (2 * up.to(dtype) - 1))
    optimisers = Optimisers(model, model.config)
    step = TrainingStep(model, optimisers, Precision(None, torch.device("cpu")), dropout=False)
    batches = zip(rebuild_batches(case, dtype), case["steps"], strict=True)
    return [compare_step(step, batch, recorded, unused) for batch, recorded in batches]


def check_case(
    case: dict,
    dtype: torch.dtype = torch.float64,
    bound: float = BOUND,
    noise: list[dict[str, float]] | None = None,
) -> list[tuple[int, str, float, str, float]]:
    """(step, group, worst relative error, where, bound) for every step and group of a case.

    ``noise``: for each step what one unit in the last place changes in the groups where that is known to be much. Where
    an error is above its bound all the same, it is measured by a second run.
    """
    steps = run_case(case, dtype)

    def rows(noise: list[dict[str, float]]) -> list[tuple[int, str, float, str, float]]:
        return [
            (k, g, *c.worst(), max(bound, NOISE_FACTOR * noise[k].get(g, 0.0)))
            for k, groups in enumerate(steps)
            for g, c in groups.items()
        ]

    found = rows(noise or [{} for _ in steps])
    if all(error <= limit for _, _, error, _, limit in found):
        return found
    again = run_case(case, dtype, ulps=1)
    pairs = zip(steps, again, strict=True)
    return rows([{g: c.against(other[g]).worst()[0] for g, c in groups.items()} for groups, other in pairs])


def check_scores(case: dict) -> list[tuple[str, str]]:
    """(recorded line, our line) of a case of retrieval scores."""
    path = Path(__file__).with_name("evaluation_case.py")
    spec = importlib.util.spec_from_file_location("evaluation_case", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.check(case)


def check_unit(case: dict, dtype: torch.dtype, bound: float) -> list[tuple[int, str, float, str, float]]:
    """`check_case` of a case of UNIT (tests/unit_parity.py)."""
    root = str(Path(__file__).parents[1])
    if root not in sys.path:
        sys.path.insert(0, root)
    return importlib.import_module("tests.unit_parity").check_case(case, dtype, bound)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", help="recorded cases (JSON)")
    parser.add_argument("--bound", type=float, default=BOUND, help="largest relative error")
    parser.add_argument(
        "--dtype", choices=("float64", "float32"), default="float64", help="precision of our step"
    )
    args = parser.parse_args(argv)
    failed = False
    for path in args.cases:
        content = json.loads(Path(path).read_text())
        if isinstance(content, list):
            for case in content:
                for recorded, ours in check_scores(case):
                    failed |= recorded != ours
                    print(f"{case['name']:24} {'equal' if recorded == ours else 'DIFFERS'}  {ours}")
            continue
        check = check_unit if "noise" in content else check_case
        for index, group, error, place, bound in check(content, getattr(torch, args.dtype), args.bound):
            good = error <= bound
            failed |= not good
            verdict = "ok" if good else "ABOVE BOUND"
            if bound > args.bound:
                verdict += f" (one unit in the last place changes {bound / NOISE_FACTOR:.1e})"
            print(f"{content['name']:24} step {index} {group:8} {error:9.2e} {verdict}  {place}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
