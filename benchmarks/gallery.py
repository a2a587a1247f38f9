"""A gallery of millions on this machine: time to build, memory, speed and what the search loses against the exact one.

    python -m benchmarks.gallery --count 2000000 --folder DIR
    python -m benchmarks.gallery --count 200000 --lists 512 --sampled 64 --folder DIR      other numbers than the index takes

The features are drawn: 1024 numbers of unit length around one centre for each 20 pictures, as re-identification features
lie around people. They go to the disk in float16 first and are read from there, mapped. Seconds of the processor stand beside
those of the clock, since other programs add nothing to them.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from dgnet_fast.retrieval import large_index
from dgnet_fast.retrieval.large_index import LargeVectors, faiss_library

NUMBERS, EACH, NOISE, PIECE = 1024, 20, 0.9, 50_000
QUERIES = 200


def drawn(number: int, count: int, noise: float = NOISE) -> np.ndarray:
    """Piece ``number`` of the gallery: unit vectors float32 (count, 1024), `EACH` of them around each centre."""
    rng = np.random.default_rng((0, number))
    centres = rng.standard_normal((-(-count // EACH), NUMBERS), dtype=np.float32)
    x = np.repeat(centres, EACH, axis=0)[:count] + noise * rng.standard_normal(
        (count, NUMBERS), dtype=np.float32
    )
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def memory() -> float:
    """Peak resident set in GB, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class Watch:
    """Seconds of the clock and of the processor since it was made."""

    def __init__(self) -> None:
        self.clock, self.busy = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        clock, busy = time.perf_counter() - self.clock, time.process_time() - self.busy
        return f"{clock:.0f} s, {busy:.0f} s of the processor"


def main() -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--count", type=int, default=2_000_000)
    made.add_argument("--folder", type=Path, required=True, help="a new folder; it is removed at the end")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument(
        "--lists", type=int, help="centroids (default: as many as the index takes for the count)"
    )
    made.add_argument(
        "--sampled",
        type=int,
        default=large_index.SAMPLED,
        help="vectors a centroid that train it (default %(default)s)",
    )
    args = made.parse_args()
    large_index.SAMPLED = args.sampled
    if args.lists:
        large_index.lists_for = lambda count: args.lists
    faiss_library().omp_set_num_threads(args.threads)
    args.folder.mkdir(parents=True)
    try:
        sources, watch = [], Watch()
        for number, first in enumerate(range(0, args.count, PIECE)):
            file = args.folder / f"part-{number:05d}.npy"
            np.save(file, drawn(number, min(PIECE, args.count - first)).astype(np.float16))
            sources.append(np.load(file, mmap_mode="r"))
        print(
            f"{args.count} features drawn in {watch}; peak memory {memory():.2f} GB",
            flush=True,
        )

        index, watch = LargeVectors(args.folder, NUMBERS), Watch()
        index.train(sources)
        print(
            f"centroids: {index.trained}, {watch}; peak memory {memory():.2f} GB",
            flush=True,
        )
        watch = Watch()
        index.add(sources)
        print(
            f"added and measured in {watch}; peak memory {memory():.2f} GB; "
            f"{len(index.shards)} shards, {sum(f.stat().st_size for f in args.folder.glob('shard-*')) / 1e9:.2f} GB; "
            f"{index.probed} lists probed, recall@10 {index.recall:.4f}",
            flush=True,
        )

        probed = index.probed
        shares = [one for one in large_index.PROBES if one <= large_index.lists_for(args.count)]
        print(
            "recall@10 by lists probed: " + ", ".join(f"{one} {index.recall_at(one):.3f}" for one in shares)
        )
        index.recall_at(probed)

        # new pictures of people in the gallery: near the first piece's centres, none of its vectors
        rng = np.random.default_rng(1)
        near = np.asarray(sources[0][rng.choice(len(sources[0]), QUERIES, replace=False)], dtype=np.float32)
        asked = near + 0.5 * rng.standard_normal(near.shape, dtype=np.float32) / np.sqrt(NUMBERS)
        asked /= np.linalg.norm(asked, axis=1, keepdims=True)
        index.search(asked[:5], 10)
        begin, busy = time.perf_counter(), time.process_time()
        _, found = index.search(asked, 10)
        ours, our_share = time.perf_counter() - begin, time.process_time() - busy
        best, places, exact = np.empty((QUERIES, 0), np.float32), np.empty((QUERIES, 0), np.int64), 0.0
        for number, source in enumerate(sources):
            vectors = np.asarray(source, dtype=np.float32)
            busy = time.process_time()
            scores = asked @ vectors.T
            exact += time.process_time() - busy
            top = np.argpartition(-scores, 10, axis=1)[:, :10]
            best = np.concatenate([best, np.take_along_axis(scores, top, 1)], axis=1)
            places = np.concatenate([places, top + number * PIECE], axis=1)
        order = np.argsort(-best, axis=1)[:, :10]
        right = np.take_along_axis(places, order, 1)
        recall = np.mean([np.isin(a, b).mean() for a, b in zip(right, found, strict=True)])
        print(
            f"{QUERIES / ours:.0f} queries a second, {QUERIES} at once, {QUERIES / our_share:.0f} a second of the processor; "
            f"exact products alone {QUERIES / exact:.1f}"
        )
        print(f"recall@10 of {QUERIES} other queries: {recall:.4f}")
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
