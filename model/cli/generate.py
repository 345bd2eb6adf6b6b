"""``livetalk generate``: portrait and speech in, talking video out."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from livetalk_kernels.errors import NumericsError, UserError

from . import common

if TYPE_CHECKING:
    from ..audio_io import AudioReader
    from ..avatar import Avatar
    from ..chunk import Frames
    from ..pipeline import Pipeline
    from ..stream import Session
    from ..video_io import FrameWriter

EXAMPLE = """
livetalk generate --portrait me.png --audio speech.wav --output talk.mp4
livetalk generate --avatar me.avatar --audio speech.mp3 --output talk.mp4 \\
    --checkpoint SoulX-LiveTalk-14B --audio-encoder wav2vec2-base
"""


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
    from ..files import check_output
    from ..video_io import SUFFIXES, open_writer

    check_output(args.output, SUFFIXES)
    options = common.stream_options(args)
    with AudioReader(args.audio) as reader:
        make_avatar = common.avatar_source(args)
        source = common.model_source(args)
        source.require_audio_encoder()
        preparer = source.load_preparer()
        avatar = make_avatar(preparer)
        pipeline = source.load_pipeline(preparer)
        with pipeline.session(avatar, options=options) as session:
            writer = open_writer(args.output, *avatar.size, options.fps, sound=args.audio)
            outcome = _stream(reader, session, writer)
    for warning in reader.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    _report(args, pipeline, avatar, session, writer, outcome)
    return outcome


def _stream(reader: "AudioReader", session: "Session", writer: "FrameWriter") -> int:
    """Push the sound through the session into the file; the exit code."""
    from .interrupts import Interrupts

    outcome = 0
    with Interrupts() as interrupts:
        try:
            with common.progress(reader.declared_seconds, session) as advance:
                for frames in _frames(reader, session):
                    with interrupts.held():
                        writer.write(frames)
                    advance(len(frames))
        except KeyboardInterrupt:
            outcome = common.INTERRUPTED
        except NumericsError as error:
            print(f"error: {error}", file=sys.stderr)
            outcome = 1
        except BaseException:
            writer.abort()
            raise
        try:
            with interrupts.held():
                writer.close()
        except KeyboardInterrupt:
            outcome = common.INTERRUPTED
    return outcome


def _frames(reader: "AudioReader", session: "Session") -> "Iterator[Frames]":
    for block in reader:
        yield from session.push(block)
    yield from session.finish()


def _report(
    args: argparse.Namespace,
    pipeline: "Pipeline",
    avatar: "Avatar",
    session: "Session",
    writer: "FrameWriter",
    outcome: int,
) -> None:
    from .latency import latency_report, print_latency

    if not writer.frames:
        if outcome == common.INTERRUPTED:
            print("stopped before the first frame; nothing was written", file=sys.stderr)
            return
        if outcome == 0:
            raise UserError(f"{args.audio}: shorter than one frame; record at least 0.04 s")
        return
    report = latency_report(pipeline, session)
    report["output"] = {
        "path": str(args.output),
        "frames": writer.frames,
        "size": list(avatar.size),
        "complete": outcome == 0,
    }
    if args.json:
        common.print_json(report)
        return
    console = common.console()
    seconds = writer.frames / session.options.fps
    state = "" if outcome == 0 else " (stopped early)"
    height, width = avatar.size
    console.print(
        f"wrote {args.output}: {writer.frames} frames of {height}x{width}, {seconds:.2f} s{state}",
        soft_wrap=True,
    )
    if pipeline.random:
        console.print(
            "The weights are random: the picture means nothing, the times are those of the "
            "preset's size."
        )
    print_latency(report, session.stats, console)
