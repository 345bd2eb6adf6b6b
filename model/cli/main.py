"""The ``livetalk`` command: find the subcommand, run it, turn errors into exit codes.

Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

import argparse
import difflib
import gc
import importlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, NoReturn

from livetalk_kernels.errors import CommError, NumericsError, UserError
from livetalk_kernels.lines import one_line

from .common import INTERRUPTED, usable_threads
from .streams import ReaderGoneError, Streams

# Subcommand -> its line in the help. Each is the module of that name in this folder, with
# add_parser(subparsers), which sets run(args) -> exit code as a default; only the chosen one is
# imported.
COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "prepare": "portrait and prompt -> avatar file",
        "generate": "avatar or portrait, and speech -> talking video",
        "dataset": "drawn or real talking faces -> clips to train on",
        "train": "clips -> a small model of your own, part by part",
        "evaluate": "how well a model talks, and whether its stream drifts",
        "profile": "where a stream's time goes, with traces, telemetry and plots",
        "plan": "forecast time and memory on GPUs, and pick the split",
        "diff": "compare two configurations of a model, layer by layer",
        "doctor": "check this machine and whether a checkpoint is complete",
        "backends": "list kernel backends that can run here, and why others cannot",
        "bench": "check and time an op's backends side by side",
        "tune": "find the fastest backends on this machine, for --config",
        "inspect": "what the GPU kernels compile to; needs no GPU",
    }
)
EXAMPLE = """\
example:
  livetalk generate --portrait me.png --audio speech.wav --output talking.mp4

'livetalk COMMAND --help' shows an example of each command.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and suggest what was probably meant."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse like argparse, but reject unknown words here, where the options are known."""
        self._given = args
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        hint = f"; did you mean {nearest}?" if (nearest := self._meant()) else ""
        self.exit(2, one_line(f"error: {message}{hint}; see '{self.prog} --help'") + "\n")

    def _meant(self) -> str | None:
        """Find the option or command closest to the first unknown word."""
        options = list(self._option_string_actions)
        words = [word.partition("=")[0] for word in self._given]
        for word in words:
            if word.startswith("--") and not any(option.startswith(word) for option in options):
                return next(iter(difflib.get_close_matches(word, options, n=1)), None)
        if self._subparsers is None:
            return None
        word = next((word for word in words if not word.startswith("-")), "")
        near = [] if word in COMMANDS else difflib.get_close_matches(word, COMMANDS, n=1)
        return next(iter(near), None)


class Version(argparse.Action):
    """Prints the version, which is looked up only on demand."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print and exit."""
        from importlib.metadata import version

        print(f"livetalk {version('livetalk')}")
        parser.exit()


class _OneLine(logging.Formatter):
    """Formats a record as one line."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(record.getMessage())


@contextmanager
def _log_lines() -> Iterator[None]:
    """Print warnings of the loggers on stderr."""
    handler, root = logging.StreamHandler(sys.stderr), logging.getLogger()
    handler.setFormatter(_OneLine())
    handler.setLevel(logging.WARNING)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        Exit code. (Help and unreadable arguments raise SystemExit, as argparse does.)
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with Streams() as streams, _log_lines():
        try:
            code = _run(arguments)
        except ReaderGoneError:
            code = 1
        except SystemExit as stop:  # help, or arguments that cannot be read
            raise SystemExit(streams.exit_code(int(stop.code or 0))) from None
        return streams.exit_code(code)


def _run(arguments: Sequence[str]) -> int:
    """Run a command line, report errors, and return the exit code."""
    args = make_parser(arguments).parse_args(arguments, argparse.Namespace(argv=arguments))
    from livetalk_kernels.environment import Ranks  # slow: imports torch
    from livetalk_kernels.runtime.ranks.signals import ended_like_ctrl_c

    try:
        # With several ranks the watchdog handles the signals.
        signals = ended_like_ctrl_c() if Ranks.from_environ() is None else nullcontext()
        with signals, usable_threads():
            code: int = args.run(args)
        return code
    except UserError as error:
        return _fail(2, f"error: {error}")
    except NumericsError as error:
        return _fail(1, f"error: {error}")
    except CommError as error:  # the watchdog has printed details, if it knows any
        return _fail(1, f"error: another rank was lost: {error}")
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted")
    except Exception as error:
        if _out_of_memory(error):
            less = "use a smaller --size or --preset, or --dtype bf16"
            return _fail(1, f"error: out of memory; {less}")
        if isinstance(error, FileNotFoundError) and "usable temporary" in str(error):
            place = "set TMPDIR to a writable folder"
            return _fail(1, f"error: no writable folder for temporary files; {place}")
        raise


def _out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out: torch has no error for that on a CPU and in parts of CUDA."""
    from torch import OutOfMemoryError

    signs = ("can't allocate memory", "Cannot allocate memory", "CUDA error: out of memory")
    return isinstance(error, (MemoryError, OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def make_parser(arguments: Sequence[str]) -> Parser:
    """Build the parser of a command line; only the command that it names has its options.

    Args:
        arguments: The command line, without the program's name.
    """
    parser = Parser(
        prog="livetalk",
        description="Kernels, runtime and measuring tools for a streaming talking-avatar model.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
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
    print(one_line(message), file=sys.stderr)
    return code


def entry() -> NoReturn:
    """Run the process's command line, and exit."""
    code = main()
    if "triton" not in sys.modules:  # its bindings print what is not freed
        gc.freeze()  # else Python's exit searches all of torch's objects for cycles, in 0.4 s
    sys.exit(code)


if __name__ == "__main__":
    entry()
