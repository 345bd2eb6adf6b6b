"""``livetalk generate``: portrait and speech in, talking video out."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import NumericsError, UserError

from . import common

if TYPE_CHECKING:
    from ..audio_io import AudioReader
    from ..chunk import Frames
    from ..stream import Session
    from ..video_io import FrameWriter

EXAMPLE = """\
livetalk generate --portrait me.png --audio speech.wav --output talk.mp4
livetalk generate --avatar me.avatar --audio speech.mp3 --output talk.mp4 \\
    --checkpoint SoulX-FlashTalk-14B --audio-encoder chinese-wav2vec2-base"""


def add_parser(subparsers: common.Subparsers) -> None:
    """Declare the subcommand."""
    parser = common.add_command(
        subparsers,
        "generate",
        "Make a talking video from a portrait or avatar and speech. Frames are written as they "
        "are decoded; the file gets its name when it is complete, or on Ctrl-C with what is "
        "finished.",
        EXAMPLE,
    )
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--avatar", type=Path, metavar="FILE", help="made by 'livetalk prepare'")
    who.add_argument("--portrait", type=Path, metavar="FILE", help="a picture")
    parser.add_argument(
        "--audio", type=Path, required=True, metavar="FILE", help="speech: any sound or video file"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help=".mp4 with sound, or .npy of uint8 frames [T,H,W,3]",
    )
    common.add_json_option(parser)
    common.add_avatar_options(parser)
    common.add_model_options(parser)
    common.add_stream_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check what is cheap to check, load, generate, report."""
    from ..audio_io import AudioReader
    from ..video_io import SUFFIXES, open_writer
    from .latency import latency_report
    from .memory import memory_report

    common.check_output(args, SUFFIXES)
    options = common.stream_options(args)
    with AudioReader(args.audio) as reader:
        make_avatar = common.avatar_source(args)
        source = common.model_source(args)
        source.require_audio_encoder()
        preparer = source.load_preparer()
        begin = time.perf_counter()
        avatar = make_avatar(preparer)
        avatar_seconds = time.perf_counter() - begin
        pipeline = source.load_pipeline(preparer)
        with pipeline.session(avatar, options=options) as session:

            def open_output() -> "FrameWriter":
                return open_writer(args.output, *avatar.size, options.fps, sound=args.audio)

            outcome, writer = _stream(reader, session, open_output)
            memory = memory_report(source, pipeline, session, avatar) if args.json else None
    for warning in reader.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not writer.frames:
        return _nothing_written(args, outcome)
    report = latency_report(pipeline, session, avatar_seconds=avatar_seconds)
    report["output"] = {
        "path": str(args.output),
        "frames": writer.frames,
        "size": list(avatar.size),
        "complete": outcome == 0,
    }
    report["warnings"] = list(reader.warnings)
    if args.json:
        report["memory"] = memory
        common.print_json(report)
    else:
        _print_report(report, session)
    return outcome


def _stream(
    reader: "AudioReader", session: "Session", open_output: "Callable[[], FrameWriter]"
) -> "tuple[int, FrameWriter]":
    """Push the sound through the session into a file; the exit code and the finished file."""
    from .interrupts import Interrupts
    from .progress import progress

    outcome = 0
    with Interrupts() as interrupts:
        # Whatever comes between these two calls would leave the file open.
        interrupts.hold()
        writer = open_output()
        try:
            with writer:  # on Ctrl-C it keeps what is finished, on an error nothing
                interrupts.release()
                try:
                    with progress(reader.declared_seconds, session) as advance:
                        for frames in _frames(reader, session):
                            interrupts.hold()
                            writer.write(frames)
                            interrupts.release()
                            advance(len(frames))
                except NumericsError as error:
                    print(f"error: {error}", file=sys.stderr)
                    outcome = 1
                interrupts.hold()  # the end of the file is written undisturbed
        except KeyboardInterrupt:
            outcome = common.INTERRUPTED
    return outcome, writer


def _frames(reader: "AudioReader", session: "Session") -> "Iterator[Frames]":
    for block in reader:
        yield from session.push(block)
    yield from session.finish()


def _nothing_written(args: argparse.Namespace, outcome: int) -> int:
    """Say why there is no frame, where it is not said yet; the exit code.

    Raises:
        UserError: The sound is too short.
    """
    if outcome == 0:
        raise UserError(f"{args.audio}: shorter than one frame; record at least 0.04 s")
    if outcome == common.INTERRUPTED:
        print("stopped before the first frame; nothing was written", file=sys.stderr)
    return outcome


def _print_report(report: dict[str, Any], session: "Session") -> None:
    from rich.markup import escape

    from .latency import print_latency

    console = common.console()
    output = report["output"]
    height, width = output["size"]
    frames = common.plural(output["frames"], "frame")
    seconds = output["frames"] / session.options.fps
    state = "" if output["complete"] else " (stopped early)"
    console.print(
        f"wrote {escape(output['path'])}: {frames} of {height}x{width}, {seconds:.2f} s{state}",
        soft_wrap=True,
    )
    if report["settings"]["random_weights"]:
        console.print(
            "The weights are random: the picture means nothing, the times are those of the "
            "preset's size."
        )
    print_latency(report, session.stats, console)
