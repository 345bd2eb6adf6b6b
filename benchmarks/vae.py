"""Time the VAE: a steady-state decode step, decoding a chunk, and the encoder; ours and published.

    python benchmarks/vae.py --preset 14b --json vae.json
    python benchmarks/vae.py --preset tiny --device cpu --rounds 3 --no-compile

Random weights. Every way is first compared with the published schedule in plain PyTorch (relative
L2), then all are interleaved. The published schedule is compiled as a whole, for the decode step
and the encoder; decoding a chunk, whose first three steps have other shapes, is compared
uncompiled: 9 latents, two of which warm up our decoder. FLOPs are those of our schedule for all
ways, so rates are comparable; the floor is their time at the rate of a large matrix product,
measured in the same rounds.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from race import (
    BOUNDS,
    HEADING,
    TIMED,
    Budget,
    Entrant,
    Output,
    Probes,
    Race,
    Run,
    exit_code,
    new_parser,
    resolve,
    row_line,
    run_main,
    say,
)
from random_models import TORCH, latent_size, make_vae, sized
from torch import Tensor

from livetalk_kernels import KernelConfig
from livetalk_kernels.precision import dtype_name
from livetalk_kernels.runtime.cuda_graph import CudaEngine
from livetalk_model.config import MOTION_FRAMES, MOTION_LATENTS, Preset
from livetalk_model.dry_run.work import vae_flops
from livetalk_model.stream.graphs import GraphedDecodeStep, GraphedEncoder
from livetalk_model.vae import VAE, DecoderCache

SCHEMA = "livetalk/vae/1"
COMPILE_SECONDS = 30.0
WARM_LATENTS = 3  # until the decoder's state repeats


@dataclass(frozen=True, kw_only=True)
class Models:
    """The same weights in both schedules, and their inputs.

    Attributes:
        preset: Sizes.
        own: Our schedule.
        published: The published one, in plain PyTorch.
        compiled: The same, compiled.
        latents: [1, 16, 9, h, w].
        video: [1, 3, 5, H, W].
    """

    preset: Preset
    own: VAE
    published: VAE
    compiled: VAE
    latents: Tensor
    video: Tensor

    @classmethod
    def make(
        cls, preset: Preset, backend: KernelConfig, device: torch.device, dtype: torch.dtype
    ) -> "Models":
        """Create them with random weights and inputs.

        Raises:
            UserError: A backend that was named cannot run.
        """
        plain = KernelConfig.parse(TORCH)
        # ours comes last: it may keep its weights only in another form
        published = make_vae(preset, plain, device, dtype, reuse=False)
        compiled = make_vae(preset, plain, device, dtype, reuse=False, weights=published)
        own = make_vae(preset, backend, device, dtype, weights=published)
        compiled.decoder.compile(dynamic=False)
        compiled.encoder.compile(dynamic=False)
        random = torch.Generator(device).manual_seed(1)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, device=device, dtype=dtype)

        return cls(
            preset=preset,
            own=own,
            published=published,
            compiled=compiled,
            latents=draw(1, preset.vae.z_dim, *latent_size(preset)),
            video=draw(1, 3, MOTION_FRAMES, *preset.size).clamp_(-1, 1),
        )

    def decode_step(self, vae: VAE, step: Callable[..., Tensor], *, forks: bool = True) -> Run:
        """Decode one latent in the middle of a stream, whose state ``vae`` has computed.

        ``forks``: each call starts from the same state; otherwise the stream continues.
        """
        cache = DecoderCache()
        for piece in self.latents[:, :, :WARM_LATENTS].split(1, dim=2):
            vae.decode_step(piece, cache, clamp=False)
        latent = self.latents[:, :, WARM_LATENTS : WARM_LATENTS + 1]
        return lambda: step(latent, cache.fork() if forks else cache, clamp=False)

    def decode_chunk(self) -> Tensor:
        """Decode the new frames of a chunk with our schedule."""
        cache = DecoderCache()
        self.own.warm(self.latents[:, :, :MOTION_LATENTS], cache)
        pieces = self.latents[:, :, MOTION_LATENTS:].split(1, dim=2)
        return torch.cat([self.own.decode_step(z, cache, clamp=False) for z in pieces], dim=2)

    def flops(self) -> dict[str, int]:
        """Count our schedule's FLOPs for everything timed."""
        found = vae_flops(self.preset.vae, self.preset.size, reuse=True)
        return {
            "decode step": found["latent"],
            "decode chunk": found["warm decoder"] + found["decode"],
            "encode": found["encode"],
        }


def races(models: Models, *, compile_it: bool, graphs: bool) -> dict[str, list[list[Entrant]]]:
    """Map what is timed to groups of entrants, the first of which is the truth."""
    device, dtype = models.latents.device, models.latents.dtype
    own, published, compiled = models.own, models.published, models.compiled
    bound = BOUNDS[dtype]

    def entrant(name: str, build: Callable[[], Run], **options: Any) -> Entrant:
        return Entrant(name=name, build=build, bound=bound, base=1, **options)

    def step(name: str, vae: VAE, decode: VAE, **options: Any) -> Entrant:
        return entrant(name, lambda: models.decode_step(vae, decode.decode_step), **options)

    def encode(name: str, vae: VAE, **options: Any) -> Entrant:
        return entrant(name, lambda: partial(vae.encode, models.video), **options)

    def plain_chunk() -> Run:
        return lambda: published.decode(models.latents, clamp=False)[:, :, MOTION_FRAMES:]

    late = {"reason": None if compile_it else "--no-compile", "seconds": COMPILE_SECONDS}
    # Whatever breaks the GPU's context breaks all that come later: PyTorch's own goes first.
    found = {
        "decode step": [[step("published", published, published)], [step("ours", own, own)]],
        "decode chunk": [
            [entrant("published", plain_chunk)],
            [entrant("ours", lambda: models.decode_chunk)],
        ],
        "encode": [[encode("published", published)], [encode("ours", own)]],
    }
    if graphs:
        engine = CudaEngine(device)
        decoder, encoder = GraphedDecodeStep(own, engine), GraphedEncoder(own, engine)
        name = "ours, CUDA graph"
        found["decode step"].append(
            [entrant(name, lambda: models.decode_step(own, decoder, forks=False))]
        )
        found["encode"].append([entrant(name, lambda: partial(encoder, models.video))])
    name = "published, compiled"
    found["decode step"].append([step(name, published, compiled, **late)])
    found["encode"].append([encode(name, compiled, **late)])
    return found


def measure(args: argparse.Namespace, budget: Budget) -> Output:
    """Check and time everything.

    Raises:
        UserError: An option is invalid.
    """
    device, dtype = resolve(args)
    preset = sized(args.preset, size=args.size)
    settings = {
        "preset": args.preset,
        "size": list(preset.size),
        "device": str(device),
        "dtype": dtype_name(dtype),
        "random_weights": True,
    }
    output = Output(args.json, schema=SCHEMA, settings=settings)
    with torch.inference_mode():
        say("making weights")
        models = Models.make(preset, KernelConfig.from_sources(args.backend), device, dtype)
        output.value |= {"flops": models.flops(), "work": {}}
        output.write()
        probes = Probes(device, [dtype])
        by_work = races(models, compile_it=not args.no_compile, graphs=device.type == "cuda")
        found: dict[str, Race] = {}
        # Entrants without a compiler come first, for all three.
        order = sorted(
            ((index, work) for work, groups in by_work.items() for index in range(len(groups))),
            key=lambda pair: pair[0],
        )
        for position, (index, work) in enumerate(order):
            say(f"{work}:")
            group = by_work[work][index]
            if work not in found:
                truth = group[0].build()()
                found[work] = Race(truth, device, budget, output, probes)
                output.value["work"][work] = found[work].rows
            found[work].group(group, rounds=args.rounds, share=1 / (len(order) - position))
            _finish(found[work].rows, output.value["flops"][work], probes, dtype)
            output.write()
    output.value["complete"] = not any(race.out_of_time for race in found.values())
    if device.type == "cuda":
        output.value["max_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    output.write()
    return output


def _finish(rows: Sequence[dict[str, Any]], flops: int, probes: Probes, dtype: torch.dtype) -> None:
    """Add rates and floors to timed rows, if the rate was measured."""
    rates = probes.rates()
    for row in rows:
        if row["state"] == TIMED:
            rate, median = rates[dtype], row["seconds"]["p50"]
            row |= {"tflop_per_s": flops / median / 1e12, "floor": flops / rate}
            row |= {"of_floor": flops / rate / median, "rate": rate}


def table(output: Mapping[str, Any]) -> str:
    """The result for people."""
    settings = output["settings"]
    height, width = settings["size"]
    lines = [
        f"{settings['preset']} {height}x{width}, {settings['dtype']}",
        HEADING,
    ]
    for work, rows in output["work"].items():
        lines += [row_line(f"{work}, {row['name']}", row) for row in rows]
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Options."""
    parser = new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="at most (default: 10)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    return parser


def main() -> int:
    """Measure, print, write."""
    args = make_parser().parse_args()
    output = measure(args, Budget.of(args))
    print(table(output.value))
    return exit_code([row for rows in output.value["work"].values() for row in rows])


if __name__ == "__main__":
    run_main(main)
