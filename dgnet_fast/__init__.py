"""dgnet_fast: fast DG-Net, joint person re-identification and image generation.

Importing it imports torch and the extension `_C`, in this order: `_C` then shares torch's OpenMP runtime. On
Linux with glibc the import also raises malloc's thresholds, so that large tensors are reused instead of
mapped afresh (`malloc_kept`); set DGNET_FAST_MALLOC=0 before the import to leave malloc as it is.
"""

import os as _os

import torch as _torch  # noqa: F401  (before _C: see above)

from dgnet_fast import _C

__version__ = "0.1.0"

#: Whether glibc's malloc was told to keep large blocks. False with DGNET_FAST_MALLOC=0 and without glibc.
malloc_kept: bool = _os.environ.get("DGNET_FAST_MALLOC", "1") != "0" and _C.keep_large_blocks()


def __getattr__(name: str):  # noqa: ANN202
    if name == "Extractor":  # on first use: it brings the whole package along
        from dgnet_fast.extractor import Extractor

        return Extractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
