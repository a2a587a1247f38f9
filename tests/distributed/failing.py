"""`dgnet_fast.train` with an accident: ``python -m tests.distributed.failing WHAT STEP words...``; at the end of step STEP the
last process gets the signal WHAT (KILL or TERM), the first time that torchrun or the test starts it.
"""

from __future__ import annotations

import os
import signal
import sys

import torch

from dgnet_fast import train
from dgnet_fast.distributed import processes
from dgnet_fast.training import loop


def main(what: str, step: int, words: list[str]) -> int:
    torch.set_num_threads(1)
    plain = loop.scalars_of

    def scalars_of(result, config, number):
        last = processes.rank() == processes.size() - 1
        if number + 1 == step and last and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
            os.kill(os.getpid(), getattr(signal, f"SIG{what}"))
        return plain(result, config, number)

    loop.scalars_of = scalars_of
    return train.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
