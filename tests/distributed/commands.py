"""Several commands one after the other in each process, since starting Python with torch takes most of the time:
``python -m tests.distributed.commands FILE``, with a JSON list of [command, words...]; ends with the statuses' maximum.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from pathlib import Path

import torch

from dgnet_fast.distributed import processes


def main(file: Path) -> int:
    torch.set_num_threads(1)
    statuses = []
    with processes.joined(), contextlib.ExitStack() as stack:
        if not processes.is_first():
            stack.enter_context(contextlib.redirect_stdout(open(os.devnull, "w")))  # noqa: SIM115
        for name, *words in json.loads(file.read_text()):
            words = [word.replace("{rank}", str(processes.rank())) for word in words]
            statuses.append(importlib.import_module(f"dgnet_fast.{name}").main(words))
            processes.barrier()
            if statuses[-1]:  # the next command's error is told again
                sys.stderr = sys.__stderr__
                if processes.is_first():
                    processes._World.store.delete_key("dgnet_fast: failed")
                processes.barrier()
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
