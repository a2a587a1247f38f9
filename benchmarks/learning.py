"""What decides how fast the small preset learns: the experiments behind docs/learning_experiments.md, on the built-in people.

    python -m benchmarks.learning floors
    python -m benchmarks.learning colours --teacher RUN
    python -m benchmarks.learning generator --teacher RUN --steps 800 --error absolute
    python -m benchmarks.learning encoder --teacher RUN --lr2 0.005
    python -m benchmarks.learning public --teacher RUN --steps 200       # with DGNET_REFERENCE=DIR

RUN is the folder of a teacher (`python -m dgnet_fast.teacher --data synthetic --preset small --out RUN`). One thread, a
line of scores now and then, and with ``--json FILE`` the curves. None of it is needed to train.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.color import deltaE_ciede2000, lab2rgb, rgb2lab
from torch import Tensor

from dgnet_fast.checkpoints.teachers import load_teachers
from dgnet_fast.config import Config, from_dict
from dgnet_fast.config.presets import preset
from dgnet_fast.data import ReidDataset, TrainBatches, decode_split, load_dataset, normalize
from dgnet_fast.data.drawn.dataset import SyntheticPedestrians
from dgnet_fast.data.sampling import WithMore
from dgnet_fast.generation.scores import Truth, likeness, score_pictures
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.structure_input import structure_input
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.scoring import score_retrieval
from dgnet_fast.training.generator_loop import TRAINED, appearance_codes
from dgnet_fast.training.losses import deviation_of
from dgnet_fast.training.optim import Optimisers, Precision, Rates, generator_optimiser, sgd_for_encoder
from dgnet_fast.training.parts import (
    Settings,
    encode_appearance,
    identity_part,
    more_apart,
    more_real_part,
    split_streams,
)
from dgnet_fast.training.run import start_from_teacher
from dgnet_fast.training.schedule import Weights
from dgnet_fast.training.seeds import derive_seed
from dgnet_fast.training.step import TrainingStep

PAIRS = 64
FIRST_RECIPE = {
    "generator_steps": 0, "generator_code_w": 0.0, "gray_jitter": 0.0, "ema_decay": 0.0, "lr_policy": "step",
    "step_size": 380, "gamma": 0.3, "gamma2": 0.3, "lr_g": 0.001, "lr2": 0.005, "recon_id_w": 0.1,
    "warm_iter": 420, "warm_teacher_iter": 420, "muon": 0.0,
}  # fmt: skip
"""Options of the preset small as it was when these experiments were made; they led to those that it has now."""
CPU = torch.device("cpu")


@dataclasses.dataclass
class Scene:
    """The small preset from a trained teacher: data, options, networks, batches."""

    config: Config
    data: ReidDataset
    model: DGNet
    batches: TrainBatches | WithMore
    test: Tensor

    @classmethod
    def of(cls, args: argparse.Namespace, **options: Any) -> Scene:
        people = {"train_identities": args.ids, "hard": getattr(args, "kind", "easy") == "hard"}
        for name, option in (("views_per_identity", "views"), ("test_identities", "test_ids")):
            if getattr(args, option, None):
                people[name] = getattr(args, option)
        data = load_dataset("synthetic", seed=0, height=64, width=32, **people)
        tree = preset("small") | FIRST_RECIPE | {"ID_class": args.ids, "seed": args.seed, "real_batch": 0}
        if getattr(args, "dim", None):
            tree["gen"]["dim"] = args.dim
        config = from_dict(tree).replace(data="synthetic", amp="off", **options)
        teachers = load_teachers(config.replace(teacher=str(args.teacher)), data.class_names)
        model = DGNet(config, teachers)
        if not getattr(args, "scratch", False):
            start_from_teacher(model, teachers)
        pictures = decode_split(data.train, 64, 32, workers=1)
        batches = TrainBatches(
            pictures, data.train_labels, batch_size=config.batch_size, seed=args.seed + 5, pad=config.crop_pad
        )
        if config.real_batch:
            more = TrainBatches(
                pictures, data.train_labels, batch_size=config.real_batch // 2, seed=args.seed + 6, pad=config.crop_pad
            )  # fmt: skip
            batches = WithMore(batches, more)
        return cls(config, data, model, batches, decode_split(data.gallery, 64, 32, workers=1))

    def picture_scores(self) -> dict[str, dict[str, float]]:
        gallery = self.data.gallery

        def truth(i: int, j: int) -> Truth:
            return Truth(gallery.truth(i, j, keep_body=True), gallery.clothes_mask(i, j, keep_body=True))

        return score_pictures(self.model, self.test, swap_pairs(self.data), truth)


def swap_pairs(data: ReidDataset) -> np.ndarray:
    """(M, 2) of gallery pictures of two people each: appearance, structure."""
    ids = data.gallery.ids
    pairs = np.random.default_rng(0).choice(np.flatnonzero(ids > 0), size=(PAIRS, 2))
    return pairs[ids[pairs[:, 0]] != ids[pairs[:, 1]]]


def floors(args: argparse.Namespace) -> dict[str, Any]:
    """How well pictures could be made: without the camera's noise, and with part of what a swap should be."""
    height, width = args.height, args.height // 2
    data = load_dataset("synthetic", seed=args.seed, train_identities=args.ids, height=height, width=width)
    gallery, pairs, drawer = data.gallery, swap_pairs(data), SyntheticPedestrians(args.seed)
    recoloured = np.stack([_recoloured(gallery, int(i), int(j)) for i, j in pairs])
    plain = drawer.camera
    drawer.camera = lambda c: (dataclasses.replace(plain(c)[0], noise=0.0), *plain(c)[1:])
    people = pairs[:, 1]
    where = [gallery.identities, gallery.views, gallery.cameras]
    clean = np.stack([drawer.draw(*(int(one[k]) for one in where), height, width) for k in people])
    given = np.stack([gallery.load(int(k)) for k in people])
    truth = np.stack([gallery.truth(int(i), int(j), keep_body=True) for i, j in pairs])
    own = np.stack([gallery.clothes_mask(int(j), int(j)) for j in people])
    worn = np.stack([gallery.clothes_mask(int(i), int(j), keep_body=True) for i, j in pairs])
    wanted, had = rgb2lab(truth), rgb2lab(given)
    light, chroma, grey, halves = had.copy(), wanted.copy(), wanted.copy(), wanted.copy()
    light[..., 1:] = wanted[..., 1:]
    chroma[..., 1:] = had[..., 1:]
    grey[..., 1:] = 0
    rows = np.arange(height)[:, None]
    for k, mask in enumerate(worn):
        for part in (mask & (rows < width), mask & (rows >= width)):
            if part.any():
                halves[k][part] = wanted[k][part].mean(axis=0)
    mean = given.mean(axis=3, keepdims=True).repeat(3, axis=3).round().astype(np.uint8)
    cases = {
        "reconstruction: without the noise": (clean, given, own),
        "reconstruction: grey left as it is, no colour": (mean, given, own),
        "swap: structure picture left as it is": (given, truth, worn),
        "swap: lightness of the structure picture, colours right": (_rgb(light), truth, worn),
        "swap: lightness right, colours of the structure picture": (_rgb(chroma), truth, worn),
        "swap: lightness right, no colour": (_rgb(grey), truth, worn),
        "swap: one right colour for each half of the clothes": (_rgb(halves), truth, worn),
        "swap: the structure's cut and pattern in the right colours": (recoloured, truth, worn),
    }
    found = {}
    for name, (ours, target, mask) in cases.items():
        scores = likeness(
            *(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous() for x in (ours, target)), mask
        )
        found[name] = {k: float(np.nanmean(v[np.isfinite(v)])) for k, v in scores.items()}
        print(f"{name:58}  " + "  ".join(f"{k} {v:.2f}" for k, v in found[name].items()), flush=True)
    return found


SHAPE = ("pattern", "pattern_count", "sleeve", "hem", "lower_kind", "lower_end")
"""Fields of the drawn clothes that say where each colour is."""


def _recoloured(gallery: Any, appearance: int, structure: int) -> np.ndarray:
    """The structure picture drawn again with all colours of the appearance's person: its own sleeves, stripes and skirts."""
    drawer = SyntheticPedestrians(gallery.pedestrians.seed)
    (_, clothes), (body, own) = (drawer.identity(int(gallery.identities[k])) for k in (appearance, structure))
    drawn = body, dataclasses.replace(clothes, **{name: getattr(own, name) for name in SHAPE})
    drawer.identity = lambda identity: drawn
    view, camera = int(gallery.views[structure]), int(gallery.cameras[structure])
    return drawer.draw(0, view, camera, gallery.height, gallery.width)


def _rgb(lab: np.ndarray) -> np.ndarray:
    return (lab2rgb(lab).clip(0, 1) * 255).round().astype(np.uint8)


def generator(args: argparse.Namespace) -> dict[str, Any]:
    """E_s and G alone, E_a standing still, with the choices that `generator_loop` does not leave."""
    scene = Scene.of(args, gray_jitter=args.jitter, batch_size=args.batch // 2)
    model, config = scene.model, scene.config
    model.appearance_encoder.requires_grad_(False)
    with torch.no_grad():
        codes = torch.cat([appearance_codes(model, scene.batches.batch(k).x) for k in range(16)])
        if args.fitted:
            model.mlp.fit_to(codes)
    deviation = deviation_of(codes)
    parameters = [p for name in TRAINED for p in getattr(model, name).parameters()]
    recipe = config.replace(muon=args.muon, beta1=args.beta1)
    optimiser = generator_optimiser(parameters, recipe, args.lr, fused=False)
    curve, rows = [], []
    for step in range(args.steps):
        torch.manual_seed(derive_seed(args.seed, "generator", step))
        for group in optimiser.param_groups:
            group["lr"] = args.lr * (0.5 * (1 + math.cos(math.pi * step / args.steps)) if args.cosine else 1)
        batch = scene.batches.batch(step)
        shown = torch.where(torch.rand(2, args.batch // 2, 1, 1, 1) < 0.5, batch.xp, batch.x)
        with torch.no_grad():
            code = appearance_codes(model, shown)
        structure = model.structure_encoder(structure_input(batch.x.flatten(0, 1), "gray", args.jitter))
        difference = split_streams(model.decode(structure, code)) - batch.x
        error = difference.square() if args.error == "squared" else difference.abs()
        total = 2 * config.recon_x_w * error.mean()
        if args.code:
            wanted = split_streams(code).flip(0).flatten(0, 1)
            again = appearance_codes(model, split_streams(model.decode(structure, wanted)))
            total = total + 2 * args.code * ((again - wanted) / deviation).square().mean()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        curve.append(difference.abs().mean().item())
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            scores = scene.picture_scores()
            rows.append({"step": step + 1, "recon_x": statistics.fmean(curve[-50:])} | scores)
            print(
                f"step {step + 1}: recon_x {rows[-1]['recon_x']:.3f}, reconstruction {scores['recon']['psnr']:.2f} dB, "
                f"clothes {scores['recon']['clothes_colour']:.2f}; swap {scores['swap']['psnr']:.2f} dB, clothes "
                f"{scores['swap']['clothes_colour']:.2f} (unchanged picture {scores['copy']['clothes_colour']:.2f})",
                flush=True,
            )
    return {"recon_x": curve, "scores": rows}


def encoder(args: argparse.Namespace) -> dict[str, Any]:
    """E_a alone on real pictures, as the whole step trains it before generated pictures count."""
    scene = Scene.of(args, real_batch=args.real, bn_together=args.together, max_iter=args.steps)
    model, data = scene.model, scene.data
    optimiser = sgd_for_encoder(model.appearance_encoder, args.lr2, scene.config.weight_decay)
    for group in optimiser.param_groups[1:]:
        group["lr"] = args.lr2 * args.heads
    rates = Rates(optimiser)
    precision = Precision(torch.bfloat16 if args.bf16 else None, CPU)
    settings = Settings(Weights(0.0, 0.0, 0.0, 0.0), train_encoder=False, dropout=True)
    curve, rows = [], []
    for step in range(args.steps):
        torch.manual_seed(derive_seed(args.seed, "encoder", step))
        batch = scene.batches.batch(step)
        rates.set(0.5 * (1 + math.cos(math.pi * step / args.steps)) if args.cosine else 1.0)
        with precision.autocast():
            terms = identity_part(model, encode_appearance(model, batch), batch, settings)
            total = terms["total"]
            if more_apart(model, batch):
                total = total + more_real_part(model, batch, settings)["total"]
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        curve.append(terms["pid"].mean().item())
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            scores = score_retrieval(Extractor.of(model.appearance_encoder, scene.config), data)["single"]
            last = curve[-100:]
            rows.append({"step": step + 1, "pid": statistics.median(last), "mAP": scores.mAP})
            print(
                f"step {step + 1}: pid median {statistics.median(last):.3f}, largest {max(last):.2f}; "
                f"Rank-1 {100 * scores.rank[1]:.1f}, mAP {100 * scores.mAP:.1f}",
                flush=True,
            )
    return {"pid": curve, "scores": rows}


def colours(args: argparse.Namespace) -> dict[str, Any]:
    """What the teacher's code knows of the clothes: the best of some ridge regressions from it to the mean colours (CIELAB) of
    upper and lower half, fitted on training pictures and read on test pictures. What no G can do better from the code, up
    to what is not linear.
    """
    scene = Scene.of(args, batch_size=8)
    drawn = [_codes_and_colours(scene, split) for split in (scene.data.train, scene.data.gallery)]
    (codes, wanted), (test, truth) = drawn
    middle, spread, mean = codes.mean(axis=0), codes.std(axis=0) + 1e-6, wanted.mean(axis=0)
    codes, test = (codes - middle) / spread, (test - middle) / spread
    rows = []
    for share in (0.001, 0.01, 0.05, 0.2, 1):
        weights = np.linalg.solve(
            codes.T @ codes + share * len(codes) * np.eye(codes.shape[1]), codes.T @ (wanted - mean)
        )
        rows.append(_colour_errors(test @ weights + mean, truth))
    best, guess = min(rows, key=sum), _colour_errors(np.broadcast_to(mean, truth.shape), truth)
    print(
        f"upper half {best[0]:.1f}, lower half {best[1]:.1f}; guessing the mean colour {guess[0]:.1f}, {guess[1]:.1f}"
    )
    return {"error": best, "guess": guess}


def _codes_and_colours(scene: Scene, split: Any, most: int = 8000) -> tuple[np.ndarray, np.ndarray]:
    """Codes (N, C) of at most so many pictures, and the mean colours (N, 6) of the clothes in their halves."""
    pictures = decode_split(split, 64, 32, workers=1)
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(split.ids > 0))[:most]
    upper = np.arange(64)[:, None] < 32
    masks = {int(k): split.clothes_mask(int(k), int(k)) for k in chosen}
    seen = [k for k in masks if min((masks[k] & upper).sum(), (masks[k] & ~upper).sum()) >= 5]
    with torch.no_grad():
        parts = np.array_split(seen, len(seen) // 16)
        codes = [appearance_codes(scene.model, normalize(pictures[part])[None]) for part in parts]
    colour = {k: rgb2lab(pictures[k].permute(1, 2, 0).numpy()) for k in seen}
    halves = [[colour[k][masks[k] & half].mean(axis=0) for half in (upper, ~upper)] for k in seen]
    return torch.cat(codes).double().numpy(), np.stack(halves).reshape(len(seen), 6)


def _colour_errors(found: np.ndarray, truth: np.ndarray) -> list[float]:
    return [float(deltaE_ciede2000(found[:, k : k + 3], truth[:, k : k + 3]).mean()) for k in (0, 3)]


def public(args: argparse.Namespace) -> dict[str, Any]:
    """The public code of the same small size beside ours: same weights, same batches, no dropout."""
    from benchmarks.public_code import SUMS, Public

    folder = os.environ.get("DGNET_REFERENCE", "")
    scene = Scene.of(args, warm_iter=args.warm, warm_teacher_iter=args.warm, step_size=10 * args.steps)
    scene.config = scene.model.config
    theirs = Public(scene.model, folder, "cpu", small=True)
    theirs.set_dropout(False)
    step = TrainingStep(
        scene.model, Optimisers(scene.model, scene.config), Precision(None, CPU), dropout=False
    )
    curve: list[dict[str, Any]] = []
    for index in range(args.steps):
        batch = scene.batches.batch(index)
        torch.manual_seed(derive_seed(scene.config.seed, "step", index))  # the draw that the step will make
        train_encoder = scene.config.use_encoder_again >= torch.rand(()).item()
        ours, other = step([batch], index).terms, theirs.step(batch, index, train_encoder=train_encoder)
        both = {}
        for name, value in ours.items():
            if name in other:
                one, two = (statistics.fmean(v) if isinstance(v, list) else v for v in (value, other[name]))
                both[name] = (one, two / 2 if name in SUMS else two)
        curve.append({"step": index + 1} | both)
        if (index + 1) % args.every == 0 or index < 3:
            text = "  ".join(f"{k} {a:.4f}/{b:.4f}" for k, (a, b) in both.items())
            print(f"step {index + 1}: {text}", file=sys.stderr, flush=True)
    return {"terms": curve}


EXPERIMENTS = {one.__name__: one for one in (floors, colours, generator, encoder, public)}


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    what = parser.add_subparsers(dest="what", required=True)
    parsers = {name: what.add_parser(name, help=function.__doc__) for name, function in EXPERIMENTS.items()}
    for name, one in parsers.items():
        one.add_argument("--ids", type=int, default=64, help="people to train on")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--json", type=Path, help="write the curves there")
        if name == "floors":
            one.add_argument("--height", type=int, default=64, help="of the pictures, twice their width")
        if name != "floors":
            one.add_argument(
                "--teacher", type=Path, required=True, help="folder or file of a trained teacher"
            )
            one.add_argument("--every", type=int, default=200, help="steps between scores")
            one.add_argument("--steps", type=int, default={"public": 200, "encoder": 1250}.get(name, 800))
    parsers["generator"].add_argument("--error", choices=("absolute", "squared"), default="squared")
    parsers["generator"].add_argument("--lr", type=float, default=0.002)
    parsers["generator"].add_argument(
        "--muon", type=float, default=0.0, help="Muon's rate, as a multiple of --lr"
    )
    parsers["generator"].add_argument("--beta1", type=float, default=0.5)
    parsers["generator"].add_argument("--batch", type=int, default=16, help="pictures a step")
    parsers["generator"].add_argument("--jitter", type=float, default=0.0, help="gray_jitter")
    parsers["generator"].add_argument("--code", type=float, default=0.0, help="generator_code_w")
    parsers["generator"].add_argument("--dim", type=int, help="gen.dim (8 in the preset)")
    for flag in ("cosine", "fitted"):
        parsers["generator"].add_argument(f"--{flag}", action=argparse.BooleanOptionalAction, default=True)
    parsers["encoder"].add_argument("--lr2", type=float, default=0.005)
    parsers["encoder"].add_argument(
        "--heads", type=float, default=10.0, help="rate of the heads over the trunk's"
    )
    parsers["encoder"].add_argument("--kind", choices=("easy", "hard"), default="easy", help="of the people")
    parsers["encoder"].add_argument("--views", type=int, help="pictures of each person (16)")
    parsers["encoder"].add_argument("--test-ids", type=int, help="people to test on (32)")
    parsers["encoder"].add_argument("--real", type=int, default=0, help="real_batch: further real pictures")
    for flag, text in (
        ("together", "bn_together"),
        ("cosine", "the rate falls to 0"),
        ("bf16", "bfloat16 autocast"),
        ("scratch", "from random weights, not from the teacher's trunk"),
    ):
        parsers["encoder"].add_argument(f"--{flag}", action="store_true", help=text)
    parsers["public"].add_argument("--warm", type=int, default=150, help="warm_iter and warm_teacher_iter")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = EXPERIMENTS[args.what](args)
    if args.json:
        args.json.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
