"""Freed memory goes back to the system, or is used again, as is asked for."""

import subprocess
import sys

CODE = """
import psutil
import torch
from livetalk_kernels.heap import give_back_freed_memory

resident = psutil.Process().memory_info
blocks = [torch.ones(1 << 14) for _ in range(4000)]  # 250 MiB in blocks that the heap keeps
pins = [torch.ones(16) for _ in range(100)]
full = resident().rss
del blocks
kept = resident().rss
assert give_back_freed_memory()
print(full - kept < 50 << 20, kept - resident().rss > 150 << 20)
"""


def test_freed_memory_goes_back_where_it_is_asked_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout == "True True\n"


KEPT = """
import torch
from livetalk_kernels.heap import KeptMemory

def free(count):
    blocks = [torch.ones(1 << 20) for _ in range(count)]  # 4 MiB each

memory = KeptMemory()
memory.review()  # after the first chunk
allowed = int(memory._limit - memory._resident()) >> 22
free(allowed // 2)
kept = memory.review()
free(2 * allowed)
full = memory._resident()
print(kept, memory.review(), full - memory._resident() > allowed << 22, memory.review())
"""


def test_freed_memory_is_kept_up_to_a_limit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KEPT], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout == "False True True False\n"
