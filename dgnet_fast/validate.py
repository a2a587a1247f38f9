"""Check a data set and report its contents: identities, pictures, cameras, and what is wrong with them.

    dgnet-fast validate --data market1501 --root DIR
    dgnet-fast validate --data folder --root DIR --camera-pattern 'c(\\d+)'

The exit status is 0 if the data set can be used. Counts of published data sets are compared with the published ones.
"""

from __future__ import annotations

import logging
import sys
import warnings

from dgnet_fast.cli.parser import Parser, program, run_command
from dgnet_fast.cli.shared_options import add_data_set

logger = logging.getLogger("dgnet_fast")  # __name__ is __main__ in a command


def parser() -> Parser:
    made = Parser(prog=program("validate"), description=__doc__)
    add_data_set(made, required=True)
    return made


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    from dgnet_fast.config import DRAWN
    from dgnet_fast.data.datasets import load_dataset, without_unreadable
    from dgnet_fast.data.validate import against_published, table, validate

    logger.debug(f"reading {args.data}")
    dataset = load_dataset(args.data, args.root, camera_pattern=args.camera_pattern)
    notes = []
    if args.skip_unreadable and args.data not in DRAWN:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dataset = without_unreadable(dataset)
        notes = [str(warning.message) for warning in caught]
    notes += validate(dataset)
    print(table(dataset))
    for note in notes:
        print(f"note: {note}")
    if compared := against_published(dataset):
        print(compared)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("validate"))


if __name__ == "__main__":
    sys.exit(main())
