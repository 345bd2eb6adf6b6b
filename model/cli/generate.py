"""``livetalk generate``: turn a portrait and speech into a talking video."""

import argparse
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import common, numbers, ranks, samples
from .streams import ReaderGoneError

if TYPE_CHECKING:
    from livetalk_kernels.runtime.ranks.watchdog import Watchdog

    from ..media.audio import AudioReader
    from ..stream.team import Team

EXAMPLE = """\
livetalk generate --output talk.mp4
livetalk generate --portrait me.png --audio speech.wav --output talk.mp4
livetalk generate --avatar me.avatar --audio speech.mp3 --output talk.mp4 \\
    --checkpoint SoulX-FlashTalk-14B --audio-encoder chinese-wav2vec2-base
livetalk generate --nproc 8 --avatar me.avatar --audio a.wav --output talk.mp4"""


def add_parser(subparsers: common.Subparsers) -> None:
    """Declare the subcommand."""
    parser = common.add_command(
        subparsers,
        "generate",
        "Make a talking video from a portrait or avatar and speech. Frames are written as they "
        "are decoded; the file gets its name at the end. Whatever ends the run, finished frames "
        "are kept.",
        EXAMPLE,
    )
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--avatar", type=Path, metavar="FILE", help="made by 'livetalk prepare'")
    samples.add_portrait_option(who)
    parser.add_argument(
        "--audio",
        type=Path,
        metavar="FILE",
        help="speech: any sound or video file (default, for a preset: a bundled one)",
    )
    parser.add_argument(
        "--track",
        type=numbers.TRACK,
        metavar="N",
        help="sound track of --audio, counted from 1 (default: the one marked as default, or the "
        "best that can be decoded)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help=".mp4 with sound, or .npy of uint8 frames [T,H,W,3]; " + common.REPLACED,
    )
    parser.add_argument(
        "--timeline",
        type=Path,
        metavar="FILE.json",
        help="write a trace of what ran when, concurrently with what, for ui.perfetto.dev; for "
        "ranks other than 0, as FILE.rankN.json",
    )
    common.add_json_option(parser)
    common.add_avatar_options(parser)
    common.add_model_options(parser)
    common.add_stream_options(parser)
    ranks.add_rank_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Start ranks where several are asked for; be one of them, or the only one."""
    from livetalk_kernels.outputs import part_pattern

    from .interrupts import left_behind

    samples.fill_in(args)
    code = ranks.run_ranks(args, left=left_behind(part_pattern(args.output)))
    if code is not None:
        return code
    with ranks.joined_team(args) as (team, watchdog):
        if team.leads:
            code = _lead(args, team, watchdog)
            if code == common.INTERRUPTED and team.size > 1:
                raise KeyboardInterrupt  # the others are in the middle of a chunk
        else:
            code = _follow(args, team)
        if watchdog is not None:
            watchdog.code = code
    return code


def _follow(args: argparse.Namespace, team: "Team") -> int:
    """Compute a follower rank's share; rank 0 reports."""
    from .recording import open_timeline, write_timeline

    with team.phase("load"):
        source = common.model_source(args)
        pipeline = source.load_pipeline(source.load_preparer(), team)
    timeline = open_timeline(args.timeline is not None, pipeline, team)
    pipeline.follow(timeline)
    if args.timeline:
        path = args.timeline.with_stem(f"{args.timeline.stem}.rank{team.world.rank}")
        write_timeline(path, timeline, args.argv)
    return 0


def _lead(args: argparse.Namespace, team: "Team", watchdog: "Watchdog | None") -> int:
    """Check what is cheap to check, load, generate, report; for rank 0."""
    from livetalk_kernels.neighbours import CpuWatch

    from ..media.audio import AudioReader
    from ..media.video import SUFFIXES, open_writer
    from .recording import nothing_written, open_timeline, record, write_timeline

    common.check_output(args, SUFFIXES)
    if args.timeline:
        common.check_file(args.timeline, (".json",), inputs=[args.config, args.audio])
    options = common.stream_options(args)
    with AudioReader(args.audio, track=args.track) as reader:
        printed = _print_notes(reader)
        make_avatar = common.avatar_source(args)
        samples.note_foreign(args)
        source = common.model_source(args)
        source.require_audio_encoder()
        with team.phase("load"):
            preparer = source.load_preparer()
        begin = time.perf_counter()
        with team.phase("prepare"):
            avatar = make_avatar(preparer)
            team.grid(avatar.size)
        avatar_seconds = time.perf_counter() - begin
        with team.phase("load"):
            pipeline = source.load_pipeline(preparer, team)
        timeline = open_timeline(args.timeline is not None, pipeline, team)
        watch = CpuWatch()
        with pipeline.session(avatar, options=options, timeline=timeline) as session:
            open_output = partial(
                open_writer, args.output, *avatar.size, options.fps, args.audio, track=args.track
            )
            outcome, failure, writer = record(
                reader, session, open_output, team, watchdog, timeline
            )
            cpu = watch.read() if team.size == 1 else None  # other ranks are not other programs
            memory = None
            if args.json:
                from ..dry_run.report import memory_report

                memory = memory_report(source, pipeline, session, avatar)
            session.close(finish_chunk=outcome != common.INTERRUPTED)
        if outcome != common.INTERRUPTED:  # else the others may be in the middle of a chunk
            pipeline.end()
    _print_notes(reader, printed)
    warnings = [*reader.warnings, *writer.warnings]
    common.warn(warnings)
    if not writer.frames:
        return nothing_written(args.audio, outcome, failure)
    from .latency import latency_report, print_run

    report = latency_report(
        pipeline, session, size=avatar.size, avatar_seconds=avatar_seconds, cpu=cpu
    )
    report["output"] = {
        "path": str(args.output),
        "frames": writer.frames,
        "size": list(avatar.size),
        "complete": outcome == 0,
    }
    report["sound"] = reader.report()
    report["warnings"] = [*avatar.warnings, *warnings]
    with suppress(ReaderGoneError):  # the video is complete: its exit code counts
        if args.json:
            report["memory"] = memory
            common.print_json(report)
        else:
            print_run(report, session)
    if args.timeline:
        write_timeline(args.timeline, timeline, args.argv)
    if failure is not None:
        raise failure
    return outcome


def _print_notes(reader: "AudioReader", printed: int = 0) -> int:
    """Print decisions about the sound, except the first ``printed`` notes; return their number."""
    for note in reader.notes[printed:]:
        common.note(f"note: {note}")
    return len(reader.notes)
