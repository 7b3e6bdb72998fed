"""``python -m wan_core.training``: the command line of the trainer."""

import argparse
import logging
import signal
import sys

from ..errors import WanError
from . import commands


def make_parser() -> argparse.ArgumentParser:
    """Every kind of training with its options."""
    parser = argparse.ArgumentParser(
        prog="python -m wan_core.training",
        description="Train a Wan VAE, transformer or LoRA. The same command goes on where an interrupted run stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{" + ",".join(commands.COMMANDS) + "}")
    for name, command in commands.COMMANDS.items():
        summary = command.run.__doc__.splitlines()[0]
        sub = kinds.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.options(sub)
        commands.common_options(sub, command)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    args = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        commands.check_numbers(args)
        commands.choose_precision(args)
        paths = commands.COMMANDS[args.kind].run(args)
    except (WanError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. The same command goes on from the newest state.\n")
        return 130
    sys.stdout.write("".join(f"{path}\n" for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
