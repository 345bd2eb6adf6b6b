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
import resource
import threading
import torch
from livetalk_kernels.heap import KeptMemory

SIZES = [1 << 20, 3 << 20, 2 << 20]  # elements; together 24 MiB

def chunk():
    for _ in range(4):
        tensors = [torch.ones(size) for size in SIZES]

def turns(count):
    for _ in range(count):
        chunk()
        memory.review()

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=turns, args=(count,))
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

chunk()
memory = KeptMemory()
faults(20)
print(faults(20) < 4 * 6144)  # fewer than those of four times that memory, of 80
count = int(memory._limit) // (4 << 20) + 8
pins = [torch.ones(1 << 20) for _ in range(count)]
del pins  # more idle than the limit allows
print(memory.review(), memory.review())
"""


def test_freed_memory_is_used_again_up_to_a_limit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KEPT], capture_output=True, text=True, check=True, timeout=100
    )
    assert done.stdout == "True\nTrue False\n"
