"""The ``livetalk`` command: finds the subcommand, runs it, turns errors into exit codes.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

# Subcommand -> its line in the help. Each is the module of that name beside this one, with
# add_parser(subparsers), which sets run(args) -> exit code as a default; only the chosen one is
# imported.
COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "prepare": "portrait and prompt -> avatar file",
        "generate": "avatar or portrait, and speech -> talking video",
        "profile": "where a stream's time goes, with traces, telemetry and plots",
        "plan": "what a number of GPUs would give: time, memory, the best split",
        "diff": "how far two configurations of a model are apart, layer by layer",
        "doctor": "what this machine offers, and whether a checkpoint is complete",
        "backends": "which kernel backends can run here, and why not",
        "bench": "an op's backends side by side, checked and timed",
        "tune": "find the fastest backends on this machine, for --config",
        "inspect": "what the compilers made of the GPU kernels, without a GPU",
    }
)
EXAMPLE = """\
example:
  livetalk generate --preset tiny --portrait me.png --audio speech.wav \\
      --output talking.mp4

'livetalk COMMAND --help' shows an example of each command.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave with exit code 2."""
        self.exit(2, f"error: {message}; see '{self.prog} --help'\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        Exit code. (Help and unreadable arguments raise SystemExit, as argparse does.)
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser(arguments).parse_args(arguments, argparse.Namespace(argv=arguments))
    from livetalk_kernels.errors import CommError, NumericsError, UserError  # slow: imports torch

    from .common import INTERRUPTED, usable_threads

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        with usable_threads():
            code: int = args.run(args)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _fail(2, f"error: {error}")
    except NumericsError as error:
        return _fail(1, f"error: {error}")
    except CommError as error:  # the watchdog has said more, if it knows
        return _fail(1, f"error: another rank was lost: {error}")
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted")
    except BrokenPipeError:
        # The reader has closed our output. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not _out_of_memory(error):
            raise
        return _fail(1, "error: out of memory; use a smaller --size or --preset, or --dtype bf16")


def _out_of_memory(error: Exception) -> bool:
    """Whether that is what it says; torch has no class for it on a CPU and in parts of CUDA."""
    from torch import OutOfMemoryError

    signs = ("can't allocate memory", "Cannot allocate memory", "CUDA error: out of memory")
    return isinstance(error, (MemoryError, OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def _parser(arguments: Sequence[str]) -> Parser:
    parser = Parser(
        prog="livetalk",
        description="Portrait and speech in, talking video out.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name == chosen:
            module = importlib.import_module(f"{__package__}.{name}")
            module.add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def _fail(code: int, message: str) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
