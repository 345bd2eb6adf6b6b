"""The bundled portraits and speech, where the command line names none of the user's own."""

import argparse
from pathlib import Path

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import find

from . import common

PORTRAIT = "dora"
"""A face that training has never seen."""


def add_portrait_option(parser: argparse._ActionsContainer, *, required: bool = False) -> None:
    """Add ``--portrait``; a command that does not require it calls `fill_in`."""
    default = "" if required else f" (default, for a preset: {PORTRAIT})"
    parser.add_argument(
        "--portrait",
        type=portrait,
        required=required,
        metavar="FILE",
        help=f"a picture, or a bundled drawing: ada, ben, carl or dora{default}",
    )


def portrait(text: str) -> Path:
    """Read ``--portrait``: a picture, or the name of a bundled one if there is no such file."""
    from ..bundled import bundled_portraits

    path = Path(text)
    return bundled_portraits().get(text, path) if find(path).kind == "missing" else path


def fill_in(args: argparse.Namespace) -> None:
    """Use a bundled portrait and speech with a preset if none is given.

    Raises:
        UserError: A checkpoint was named, and its portrait or speech was not.
    """
    from ..bundled import SPEECH

    for option, value in (
        ("portrait", None if args.avatar is not None else portrait(PORTRAIT)),
        ("audio", SPEECH),
    ):
        if getattr(args, option) is not None or value is None:
            continue
        if args.checkpoint is not None:
            what = "--portrait or --avatar" if option == "portrait" else "--audio"
            raise UserError(f"{what}: missing; name a file")
        common.note(f"note: no --{option} given, this is the bundled {value.name}")
        setattr(args, option, value)


def note_foreign(args: argparse.Namespace) -> None:
    """Print what the bundled model can do if the portrait is not one of its drawings."""
    from ..bundled import bundled_portraits
    from ..config import get_preset
    from ..loading import DEFAULT_PRESET

    if args.portrait is None or args.portrait in bundled_portraits().values():
        return
    if args.checkpoint is None and get_preset(args.preset or DEFAULT_PRESET).bundled:
        common.note(
            "note: the demo's model only knows drawings like its own (ada, ben, carl, dora); "
            "another picture may lose its face"
        )
