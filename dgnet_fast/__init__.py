"""dgnet_fast: fast DG-Net, joint person re-identification and image generation.

Importing this package imports nothing else, so that the --help of a command does not wait for torch. The first module
that computes (`dgnet_fast.ops`, and therefore models, training and `Extractor`) imports torch and then
`dgnet_fast.extension`, which chooses the compiled bodies for this CPU. On Linux with glibc this also raises the
thresholds of malloc, so that the memory of large tensors is reused and not mapped again (`malloc_kept`), and it takes
the memory of CPU tensors from malloc, so that the blocks fit when they are reused (`allocator_installed`). Set
DGNET_FAST_MALLOC=0 before the import to change neither.
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
