"""Run a long stream: is memory flat, is all sound there, are sound and picture equally long?

    python benchmarks/soak.py --seconds 600 --output profiles/data/soak.json

Generates speech-like noise of that length, streams it through ``tiny`` at 64x64 to an MP4, and
records allocated and resident memory after every chunk. Exit code 1 if a check fails.
"""

import argparse
import json
import sys
import tempfile
import time
import wave
from pathlib import Path
from statistics import median

import av
import numpy as np
import psutil
from PIL import Image

from livetalk_kernels.heap import give_back_freed_memory
from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_json
from livetalk_kernels.testing.memory import heap_bytes
from livetalk_model import load_pipeline
from livetalk_model.media.audio import AudioReader
from livetalk_model.media.video import open_writer

RATE, FPS, SIZE = 16000, 25, (64, 64)
# Resident memory includes gaps between blocks, which grow if other programs preempt threads.
GROWTH = {"held_bytes": 0.01, "resident_bytes": 0.05}
TAIL = 400  # samples between a click and the end: is the tail still there?


def make_speech(path: Path, seconds: float) -> None:
    """Write noise in syllables with a click close to the end, block by block."""
    total = round(seconds * RATE)
    random = np.random.default_rng(0)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        for start in range(0, total, RATE):
            t = np.arange(start, min(start + RATE, total))
            block = random.normal(0, 3000, t.shape) * np.sin(t / RATE * 12) ** 2
            block[(t >= total - 4 * TAIL) & (t < total)] = 0
            block[(t >= total - TAIL) & (t < total - TAIL + 40)] = 25000
            file.writeframes(block.clip(-32768, 32767).astype("<i2").tobytes())


def stream(speech: Path, video: Path) -> tuple[list[dict], dict]:
    """Generate; return memory per chunk, and the stream's own statistics."""
    process = psutil.Process()
    pipeline = load_pipeline(preset="tiny")
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8))
    avatar = pipeline.prepare(picture, size=SIZE)
    samples = []
    with (
        AudioReader(speech) as reader,
        open_writer(video, *SIZE, FPS, sound=speech) as writer,
        pipeline.session(avatar) as session,
    ):

        def write(frames: np.ndarray) -> None:
            writer.write(frames)
            if session.stats.count > (samples[-1]["chunk"] if samples else 0):
                give_back_freed_memory()  # what is kept for the next chunk may grow for a while
                samples.append(
                    {
                        "chunk": session.stats.count,
                        "video_seconds": session.stats.frames / FPS,
                        "resident_bytes": process.memory_info().rss,
                        "held_bytes": heap_bytes(),
                    }
                )

        for block in reader:
            for frames in session.push(block):
                write(frames)
        for frames in session.finish():
            write(frames)
        stats = session.stats
        summary = {
            "frames": stats.frames,
            "wall_seconds": stats.elapsed,
            "chunk_p50": stats.percentile(50),
            "chunk_p95": stats.percentile(95),
            "realtime_factor": stats.frames / FPS / stats.elapsed,
        }
    return samples, summary


def probe(video: Path) -> dict:
    """Measure the length of picture and sound, and find the last click, by decoding."""
    frames, samples, click = 0, 0, None
    with av.open(str(video)) as container:
        sound = container.streams.audio[0]
        for frame in container.decode(*container.streams):
            if isinstance(frame, av.VideoFrame):
                frames += 1
                continue
            loud = np.flatnonzero(np.abs(frame.to_ndarray()).max(axis=0) > 0.4)
            if len(loud):
                click = (samples + int(loud[-1])) / sound.rate
            samples += frame.samples
        return {
            "video_seconds": frames / FPS,
            "sound_seconds": samples / sound.rate,
            "click_seconds": click,
        }


def check(seconds: float, warm: float, samples: list[dict], found: dict) -> list[str]:
    """List what is wrong; empty if nothing is."""
    problems = []
    frame = 1 / FPS
    if not seconds - 1e-6 <= found["video_seconds"] < seconds + frame:
        problems.append(f"{found['video_seconds']} s of video for {seconds} s of sound")
    if abs(found["sound_seconds"] - found["video_seconds"]) > frame:
        problems.append(f"sound {found['sound_seconds']} s, video {found['video_seconds']} s")
    expected = seconds - TAIL / RATE
    if found["click_seconds"] is None or abs(found["click_seconds"] - expected) > 2 * frame:
        problems.append(f"the click at {expected} s is at {found['click_seconds']}")
    for what, most in GROWTH.items():
        growth = memory_growth(samples, warm, what)
        if growth >= most:
            name = what.partition("_")[0]
            problems.append(f"{name} memory grew by {growth:.1%} after the first {warm:g} s")
    return problems


def memory_growth(samples: list[dict], warm: float, what: str = "held_bytes") -> float:
    """Compute the growth from typical memory during warm-up to that afterwards."""
    early = [s[what] for s in samples if s["video_seconds"] <= warm]
    late = [s[what] for s in samples if s["video_seconds"] > warm]
    return median(late) / median(early) - 1


def main() -> int:
    """Run, check, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--warm", type=float, default=60.0, help="video seconds before the check")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    if args.seconds <= args.warm:
        parser.error("--seconds must be more than --warm")
    seconds = round(args.seconds * RATE) / RATE
    where = machine()
    with tempfile.TemporaryDirectory() as folder:
        speech, video = Path(folder, "speech.wav"), Path(folder, "talk.mp4")
        make_speech(speech, seconds)
        begin = time.perf_counter()
        samples, summary = stream(speech, video)
        summary["total_seconds"] = time.perf_counter() - begin
        found = probe(video)
    problems = check(seconds, args.warm, samples, found)
    result = {
        "seconds": seconds,
        "memory_growth": memory_growth(samples, args.warm),
        "resident_growth": memory_growth(samples, args.warm, "resident_bytes"),
        "summary": summary,
        "file": found,
        "problems": problems,
        "machine": where,
        "samples": samples,
    }
    shown = {key: value for key, value in result.items() if key != "samples"}
    print(json.dumps(shown, indent=2))
    if args.output:
        write_json(args.output, result, indent=None)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
