"""What a model's loading has freed goes back to the system."""

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
