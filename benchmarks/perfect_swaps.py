"""What generated pictures could be worth to E_a if they were perfect: E_a learns from the true pictures of the swaps, which
are drawn, in the place of G's.

    python -m benchmarks.perfect_swaps --teacher RUN --kind hard --seed 0                # the drawn swaps
    python -m benchmarks.perfect_swaps --teacher RUN --kind hard --seed 0 --lessons labels  # one of their two lessons
    python -m benchmarks.perfect_swaps --teacher RUN --kind hard --seed 0 --without      # real pictures alone

RUN is the folder of the teacher of the same people (`dgnet-fast teacher --preset small --synthetic-kind hard --seed 0 --out
RUN`). E_a, its rates, its batches, its two lessons and their ramps are those of the preset small's joint phase, of ``--steps``
steps; E_s, G and D do not exist here. A drawn swap has the clothes of one picture and everything else of the other, camera
and noise included. One thread; prints the scores of both features, and with ``--json FILE`` writes them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.checkpoints.teachers import load_teachers
from dgnet_fast.config import from_dict
from dgnet_fast.config.presets import preset
from dgnet_fast.data import Batch, TrainBatches, decode_split, load_dataset
from dgnet_fast.data.augment import assemble
from dgnet_fast.data.drawn.dataset import SyntheticSplit
from dgnet_fast.data.sampling import WithMore
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.reproduce import FEATURES
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.scoring import Ranking, retrieval_sets, score_features
from dgnet_fast.training.average import WeightAverage
from dgnet_fast.training.optim import Optimisers, Precision
from dgnet_fast.training.parts import Forward, Settings, encode_appearance, identity_part, teacher_part
from dgnet_fast.training.run import start_from_teacher
from dgnet_fast.training.schedule import weights_at
from dgnet_fast.training.seeds import derive_seed

LESSONS = {"labels": {"fine_on_generated": False}, "structure": {"T_w": 0.0}, "both": {}}
"""Options that leave of what swaps teach: the first head the teacher's labels, the second head who gives the structure."""


def drawn_swaps(split: SyntheticSplit, indices: np.ndarray, pad: int, rng: np.random.Generator) -> Tensor:
    """Swaps of pictures (2, B) of two streams as `Forward.swapped` has them, (2, B, 3, H, W): the clothes of each stream in
    the structure of the other, flipped and cropped at random as training pictures are.
    """
    pairs = np.stack([indices, indices[::-1]], axis=2).reshape(-1, 2)
    pictures = np.stack([split.truth(int(i), int(j), keep_body=True) for i, j in pairs])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    count = len(images)
    flip, top, left = (
        torch.from_numpy(rng.integers(0, most, count)) for most in (2, 2 * pad + 1, 2 * pad + 1)
    )
    swaps = assemble(images, torch.arange(count), flip, top, left, pad)
    return swaps.unflatten(0, indices.shape)


def train(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Train E_a and score its features, in percent."""
    people = {"train_identities": args.ids, "hard": args.kind == "hard"}
    if args.views:
        people |= {"views_per_identity": args.views, "test_identities": args.test_ids}
    data = load_dataset("synthetic", seed=args.seed, height=64, width=32, **people)
    config = from_dict(preset("small")).replace(
        data="synthetic", ID_class=args.ids, seed=args.seed, max_iter=args.steps,
        train_on_generated=not args.without, teacher_style=args.style, data_cache="off", **LESSONS[args.lessons],
    )  # fmt: skip
    teachers = load_teachers(config.replace(teacher=str(args.teacher)), data.class_names)
    model = DGNet(config, teachers)
    start_from_teacher(model, teachers)
    split, pad = data.train, config.crop_pad
    assert isinstance(split, SyntheticSplit)
    pictures = decode_split(split, 64, 32, workers=1)
    own, further = (
        TrainBatches(pictures, data.train_labels, batch_size=size, seed=derive_seed(args.seed, name), pad=pad)
        for name, size in (("batches", config.batch_size), ("more", config.real_batch // 2))
    )
    batches = WithMore(own, further)
    optimisers = Optimisers(model, config)
    average = WeightAverage(model, config.ema_decay, parts=("appearance_encoder.",))
    precision = Precision(torch.bfloat16 if args.bf16 else None, torch.device("cpu"))
    nothing = torch.empty(0)
    for step in range(args.steps):
        torch.manual_seed(derive_seed(args.seed, "perfect", step))
        optimisers.set_learning_rates(step)
        batch: Batch = batches.batch(step)
        settings = Settings(weights_at(config, step), train_encoder=False, dropout=True)
        with precision.autocast():
            terms = identity_part(model, encode_appearance(model, batch), batch, settings)
            total = terms["total"]
            if not args.without:
                rng = np.random.default_rng((args.seed, step))
                swaps = drawn_swaps(split, own.indices(step)[:2], pad, rng)
                forward = Forward(nothing, nothing, swaps, nothing, nothing)
                taught = teacher_part(model, forward, batch, settings)
                terms |= taught
                if taught:  # nothing while its ramped weight is 0
                    total = total + taught["total"]
        optimisers.id.zero_grad(set_to_none=True)
        total.backward()
        optimisers.id.step()
        average.update(step)
        if (step + 1) % args.every == 0:
            said = "  ".join(f"{k} {v.mean().item():.3f}" for k, v in terms.items() if k != "total")
            print(f"step {step + 1}: {said}", file=sys.stderr, flush=True)
    average.settle()
    found, sets = {}, retrieval_sets(Extractor.of(model.appearance_encoder, config), data)
    for name, weight in FEATURES.items():
        one = score_features(sets["single"], sets["gallery"], Ranking(weight=weight))[""]
        found[name] = {"Rank-1": 100 * one.rank[1], "mAP": 100 * one.mAP, "mINP": 100 * one.mINP}
        print(f"{name:27}" + "  ".join(f"{k} {v:.1f}" for k, v in found[name].items()), flush=True)
    return found


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.perfect_swaps", description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="folder or file of a trained teacher")
    parser.add_argument("--kind", choices=("plain", "hard"), default="plain", help="of the people")
    parser.add_argument("--ids", type=int, default=256, help="people to train on")
    parser.add_argument("--views", type=int, help="pictures of each person (16)")
    parser.add_argument("--test-ids", type=int, default=32, help="with --views: people to test on")
    parser.add_argument("--seed", type=int, default=0, help="of people, weights and batches")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--every", type=int, default=100, help="steps between printed losses")
    parser.add_argument("--lessons", choices=list(LESSONS), default="both", help="from drawn swaps")
    parser.add_argument(
        "--style", type=int, default=0, help="teacher_style: which label the first head learns"
    )
    parser.add_argument("--without", action="store_true", help="learn from real pictures alone")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--json", type=Path, help="write the scores there")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = train(args)
    if args.json:
        args.json.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
