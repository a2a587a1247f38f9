"""Runs a script of this folder under Triton's interpreter, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton

ROOT = Path(__file__).parents[2]


def interpreted(script: str) -> Any:
    """What `script` prints, read as JSON; its ops are served by the Triton bodies."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "DGNET_FAST_IMPL": "triton",
        "PYTHONPATH": str(ROOT),
    }
    if triton.__version__ < "3.7" and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip(
            f"the interpreter of Triton {triton.__version__} does not run with NumPy {np.__version__}"
        )
    path = Path(__file__).with_name(script)
    done = subprocess.run(
        [sys.executable, path], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
