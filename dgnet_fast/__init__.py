"""dgnet_fast: fast DG-Net, joint person re-identification and image generation.

Importing it imports torch and the extension `_C`, in this order: `_C` then shares torch's OpenMP runtime. On
Linux with glibc the import also raises malloc's thresholds, so that large tensors are reused instead of
mapped afresh (`malloc_kept`), and takes the memory of CPU tensors from malloc, so that the blocks fit when they are
reused (`allocator_installed`); set DGNET_FAST_MALLOC=0 before the import to leave both as they are.
"""

import os as _os

import torch as _torch  # before _C: see above

from dgnet_fast import _C

__version__ = "0.1.0"

#: Whether glibc's malloc was told to keep large blocks. False with DGNET_FAST_MALLOC=0 and without glibc.
malloc_kept: bool = _os.environ.get("DGNET_FAST_MALLOC", "1") != "0" and _C.keep_large_blocks()


def _install_allocator() -> bool:
    # torch's own allocator then asks for huge pages
    if _os.environ.get("THP_MEM_ALLOC_ENABLE", "0") != "0":
        return False
    try:
        from dgnet_fast import _allocator
    except ImportError:  # built without torch, or for another one
        return False
    return _allocator.torch_version == _torch.__version__ and _allocator.install()


#: Whether the memory of CPU tensors comes from `_allocator`. False where `malloc_kept` is, where the package was built
#: without torch or for another version of it, with another malloc than glibc's, and with torch's THP_MEM_ALLOC_ENABLE.
allocator_installed: bool = malloc_kept and _install_allocator()


def __getattr__(name: str):  # noqa: ANN202
    if name == "Extractor":  # on first use: it brings the whole package along
        from dgnet_fast.retrieval.extractor import Extractor

        return Extractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
