"""dgnet_fast: fast DG-Net, joint person re-identification and image generation.

Importing this package imports nothing else, so that the --help of a command does not wait for torch. What `__all__`
names is public and is imported when it is first used:

- `train`, `evaluate`, `load_dataset`, `Config`: a training run, its scores, and the data;
- `Extractor`, `Generator`: a checkpoint as a function from pictures to features, and to generated pictures;
- `ops`: the fused ops, each with its reference in plain PyTorch.

The first module that computes (`dgnet_fast.ops`, and therefore models, training and `Extractor`) imports torch and then
`dgnet_fast.extension`, which chooses the compiled bodies for this CPU. On Linux with glibc this also raises the
thresholds of malloc, so that the memory of large tensors is reused and not mapped again (`malloc_kept`), and it takes
the memory of CPU tensors from malloc, so that the blocks fit when they are reused (`allocator_installed`). Set
DGNET_FAST_MALLOC=0 before the import to change neither.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgnet_fast import ops
    from dgnet_fast.config import Config
    from dgnet_fast.data import load_dataset
    from dgnet_fast.extension import allocator_installed as allocator_installed
    from dgnet_fast.extension import malloc_kept as malloc_kept
    from dgnet_fast.generation.generator import Generator
    from dgnet_fast.retrieval.evaluation import evaluate
    from dgnet_fast.retrieval.extractor import Extractor
    from dgnet_fast.training.train import train

__version__ = "0.1.0"
__all__ = ["Config", "Extractor", "Generator", "evaluate", "load_dataset", "ops", "train"]

_PLACES = {
    "Config": "dgnet_fast.config",
    "Extractor": "dgnet_fast.retrieval.extractor",
    "Generator": "dgnet_fast.generation.generator",
    "load_dataset": "dgnet_fast.data",
    "_C": "dgnet_fast.extension",
    "malloc_kept": "dgnet_fast.extension",
    "allocator_installed": "dgnet_fast.extension",
}
_MODULES = ("ops", "train", "evaluate")  # the last two can be called


def __getattr__(name: str) -> Any:
    import importlib

    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"dgnet_fast.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
