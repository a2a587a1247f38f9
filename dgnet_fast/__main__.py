"""dgnet-fast: train DG-Net, score it, search with it and generate pictures with it.

    dgnet-fast train                          built-in synthetic pedestrians, minutes on two cores
    dgnet-fast COMMAND --help                 the options of a command

`python -m dgnet_fast COMMAND` and `python -m dgnet_fast.COMMAND` do the same.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path

import dgnet_fast
from dgnet_fast.cli.output import complain
from dgnet_fast.cli.parser import run_command

COMMANDS = {
    "train": "train DG-Net",
    "teacher": "train only the teacher, which is the re-identification baseline",
    "reproduce": "reproduce a table of the paper over several seeds",
    "evaluate": "score a checkpoint: CMC, mAP, mINP, ROC",
    "cross-evaluate": "score several checkpoints on several data sets",
    "extract": "write the features of pictures to a file",
    "search": "search a gallery for the people on query pictures",
    "generate": "generate pictures: pairs, grids, whole sets, figures",
    "quality": "score generated pictures: FID, SSIM, LPIPS, the truth if it is known",
    "visualize": "draw features, activation maps and the scores for each camera",
    "unit": "train UNIT, which translates the pictures of one source to the look of another",
    "translate": "write a data set translated by UNIT",
    "transfer": "score a baseline trained on real and on translated pictures",
    "demo": "start a local web page that swaps two pictures",
    "export": "write ONNX or torch.export files",
    "convert": "convert between our runs, public checkpoints and safetensors",
    "validate": "check a data set and report its contents",
    "doctor": "show what is installed and which body serves which op",
}
"""Every command and what it does; it is the module of that name."""


def usage() -> str:
    """The text of `dgnet-fast --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    head = f"usage: {_called()} COMMAND [OPTION ...]\n       {_called()} --version\n\n{(__doc__ or '').strip()}\n\ncommands:\n"
    return head + "\n".join(lines)


def _called() -> str:
    return "dgnet-fast" if Path(sys.argv[0]).name == "dgnet-fast" else "python -m dgnet_fast"


def main(argv: list[str] | None = None) -> int:
    """Entry point of `dgnet-fast`; returns the exit status. Only the module of the command is imported."""
    words = sys.argv[1:] if argv is None else argv
    first = words[0] if words else "--help"
    if first in ("-h", "--help", "help"):
        return run_command(lambda: print(usage()), _called())
    if first in ("-V", "--version"):
        return run_command(lambda: print(f"dgnet-fast {dgnet_fast.__version__}"), _called())
    name = first.replace("_", "-")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        complain(f"{_called()}: unknown command {first!r}{hint} (--help lists all)")
        return 2
    return importlib.import_module(f"dgnet_fast.{name.replace('-', '_')}").main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
