"""Compiles toy kernels for Hopper and prints what is found of each; run by test_inspection.py."""

import json
import sys
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from livetalk_kernels.backends.triton_launch import Launch
from livetalk_kernels.inspection.compile import specialise
from livetalk_kernels.inspection.report import Report, as_json
from livetalk_kernels.inspection.triton_kernels import Task, inspect_task


@triton.jit
def dot(a, b, c, size, M: tl.constexpr, PRECISION: tl.constexpr):
    rows, columns, depth = tl.arange(0, M), tl.arange(0, 128), tl.arange(0, 64)
    total = tl.zeros((M, 128), tl.float32)
    for start in range(0, size, 64):
        left = tl.load(a + rows[:, None] * size + (start + depth)[None])
        right = tl.load(b + (start + depth)[:, None] * 128 + columns[None])
        total = tl.dot(left, right, total, input_precision=PRECISION)
    tl.store(c + rows[:, None] * 128 + columns[None], total.to(c.dtype.element_ty))


@triton.jit
def tma(a, b, c, size):
    total = tl.zeros((128, 128), tl.float32)
    for start in range(0, size, 64):
        total = tl.dot(a.load([0, start]), b.load([start, 0]), total)
    c.store([0, 0], total.to(c.dtype))


@triton.jit
def narrow(a, c, size):
    at = (tl.program_id(0) * 1024 + tl.arange(0, 1024)) * size
    tl.store(c + at, tl.load(a + at) * 2)


@triton.jit
def spilling(a, c, size):
    at = tl.arange(0, 4096)
    value = tl.load(a + at).to(tl.float32)
    tl.store(c + at, (value / tl.sum(value, 0)).to(c.dtype.element_ty))


@triton.jit
def broken(a, c, size):
    tl.static_assert(False, "no such luck")


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def product(rows: int = 128, dtype: torch.dtype = torch.bfloat16, **more) -> Launch:
    precision = more.pop("precision", "tf32")
    arguments = {
        "a": tensor(rows, 1024, dtype=dtype), "b": tensor(1024, 128, dtype=dtype),
        "c": tensor(rows, 128), "size": 1024, "M": rows, "PRECISION": precision,
    }  # fmt: skip
    return Launch(kernel=dot, grid=(1,), arguments=arguments, **{"stages": 3} | more)


def tiled() -> Launch:
    blocks = {"a": [128, 64], "b": [64, 128], "c": [128, 128]}
    shapes = {"a": (128, 1024), "b": (1024, 128), "c": (128, 128)}
    tiles = {
        name: TensorDescriptor.from_tensor(tensor(*shapes[name]), block)
        for name, block in blocks.items()
    }
    return Launch(kernel=tma, grid=(1,), arguments=tiles | {"size": 1024}, stages=3)


def plain(kernel, **more) -> Launch:
    arguments = {"a": tensor(4096), "c": tensor(4096), "size": 3}
    return Launch(kernel=kernel, grid=(1,), arguments=arguments, **more)


LAUNCHES = {
    "dot": product(),
    "dot_again": product(),  # from Triton's cache
    "starved": product(options={"maxnreg": 128}),
    "refused": product(options={"maxnreg": 64}),
    "tma": tiled(),
    "dot_fp8": product(dtype=torch.float8_e4m3fn),
    "dot_fp32": product(rows=32, dtype=torch.float32, precision="ieee"),
    "small_dot": product(rows=16),
    "narrow": plain(narrow),
    "spilling": plain(spilling, warps=1, options={"maxnreg": 32}),
    "large": product(stages=9),
    "broken": plain(broken),
}


def main(keep: Path) -> None:
    results = {}
    for name, launch in LAUNCHES.items():
        task = Task(op="toy", cases=[name], source=specialise(launch))
        report = Report(
            dtype="", date="", commit="", versions={}, kernels=(inspect_task(task, keep),)
        )
        results[name] = as_json(report)["kernels"][0]
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
