"""Pack the weights of a finished ``livetalk train teacher`` or ``distill`` for the package.

    python benchmarks/pack_demo.py runs/student --evaluation drift.json --output model/demo

Converts to half precision, adds data card, training log and SHA-256, and refuses more than 12 MB.
"""

import argparse
import sys
from pathlib import Path

import torch

from livetalk_kernels.errors import UserError
from livetalk_model.train.product.packing import pack

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def main() -> int:
    """Pack and report; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the teacher or student")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--evaluation", type=Path, metavar="FILE.json")
    parser.add_argument("--note", default="", metavar="TEXT", help="for the data card")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    args = parser.parse_args()
    try:
        packed = pack(
            args.run,
            args.output,
            evaluation=args.evaluation,
            note=args.note,
            dtype=DTYPES[args.dtype],
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, size in packed.bytes.items():
        rounding = f", rounded by up to {packed.lost[name]:.1e}" if name in packed.lost else ""
        print(f"{size:10,d} {name}{rounding}")
    print(f"{sum(packed.bytes.values()):10,d} bytes in {packed.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
