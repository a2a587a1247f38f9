"""Start a local web page: drop two pictures on it to see both swaps and the nearest people of a gallery.

    dgnet-fast demo RUN  with the gallery of the run's data set
    dgnet-fast demo RUN --gallery market1501:gallery --root DIR --port 8000

It needs Flask: pip install 'dgnet-fast[demo]'. Only this machine can open the page, unless --host says otherwise. The
pictures are not stored.
"""

from __future__ import annotations

import sys

from dgnet_fast.cli.output import complain
from dgnet_fast.cli.parser import Parser, program, run_command
from dgnet_fast.cli.shared_options import add_checkpoint, add_device, add_source_details, source_config
from dgnet_fast.config import ConfigError
from dgnet_fast.config.extras import need
from dgnet_fast.report.progress import progress


def parser() -> Parser:
    made = Parser(prog=program("demo"), description=__doc__)
    add_checkpoint(made)
    made.add_argument(
        "--gallery",
        metavar="SOURCE",
        help="gallery: a folder, DATASET:SPLIT, or 'none' (default: the gallery of the checkpoint's data set)",
    )
    made.add_argument(
        "--top",
        type=int,
        default=5,
        metavar="N",
        help="number of people shown for each picture (default 5)",
    )
    add_source_details(made)
    add_device(made, batch=None)
    made.add_argument(
        "--host",
        default="127.0.0.1",
        help="address on which the page can be opened (default 127.0.0.1: from this machine only)",
    )
    made.add_argument(
        "--port", type=int, default=7860, metavar="N", help="port; 0 takes any free port (default 7860)"
    )
    return made


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    from dgnet_fast.checkpoints.loading import load_generator
    from dgnet_fast.config.device import resolve_device
    from dgnet_fast.data.pictures import open_pictures
    from dgnet_fast.models.typed import in_channels_last
    from dgnet_fast.web.protection import check_free, make_server, names_of
    from dgnet_fast.web.server import Demo, create_app

    if args.top < 1:
        raise ConfigError(f"--top is {args.top}; allowed: at least 1")
    if not 0 <= args.port < 65536:
        raise ConfigError(f"--port is {args.port}; allowed: 0 to 65535")
    need("flask", "demo", "the demo")
    check_free(args.host, args.port)
    device = resolve_device(args.device)
    model, known = load_generator(args.checkpoint, config_file=args.config, allow_extra=args.allow_extra)
    source = args.gallery or f"{model.config.data}:gallery"
    gallery = None
    if source != "none":
        gallery = open_pictures(source, source_config(model.config, source, args))
    demo = Demo(
        in_channels_last(model, device),
        gallery,
        nearest=args.top,
        progress=progress("gallery"),
    )
    app = create_app(demo, f"{known['source']}, step {known['step']}", names_of(args.host))
    try:
        server = make_server(args.host, args.port, app)
    except SystemExit:  # werkzeug's answer to a port in use
        raise ConfigError(
            f"--port is {args.port}, which is in use or not allowed; choose another, or 0"
        ) from None
    print(f"http://{args.host}:{server.server_port}/  (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        complain("demo ended")
    finally:
        server.server_close()
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("demo"))


if __name__ == "__main__":
    sys.exit(main())
