"""dgnet_fast: fast DG-Net, joint person re-identification and image generation.

Importing it imports nothing else, so that a command's --help does not wait for torch. The first thing that computes
(`dgnet_fast.ops`, and so models, training and `Extractor`) imports torch and then `dgnet_fast.extension`, which chooses
the compiled bodies for this CPU. On Linux with glibc that also raises malloc's thresholds, so that large tensors are
reused instead of mapped afresh (`malloc_kept`), and takes the memory of CPU tensors from malloc, so that the blocks fit
when they are reused (`allocator_installed`); set DGNET_FAST_MALLOC=0 before to leave both as they are.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgnet_fast.extension import allocator_installed as allocator_installed
    from dgnet_fast.extension import malloc_kept as malloc_kept
    from dgnet_fast.retrieval.extractor import Extractor as Extractor

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Extractor":  # on first use: it brings the whole package along
        from dgnet_fast.retrieval.extractor import Extractor

        return Extractor
    if name in ("_C", "malloc_kept", "allocator_installed"):
        import importlib

        return getattr(importlib.import_module("dgnet_fast.extension"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
