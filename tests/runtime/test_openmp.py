"""A thread that leaves the work to another keeps no helpers."""

import subprocess
import sys

SCRIPT = """
import os, threading, time
import torch
from livetalk_kernels.runtime.openmp import release_helpers
from livetalk_model.stream.producer import Producer, Source

def threads(): return len(os.listdir("/proc/self/task"))

def compute():
    torch.rand(1000, 1000).exp()
    return threads() - alone - (threading.current_thread() is not threading.main_thread())

class Toy(Source):
    chunks = 1
    def open(self): pass
    def ready(self): return self.chunks > 0
    def make(self): self.chunks, self.helpers = 0, compute()
    def close(self): pass
    def free(self): pass

torch.set_num_threads(3)  # which starts a thread that stays
alone = threads()
helpers = [compute()]
release_helpers()
helpers += [threads() - alone, compute(), compute()]
producer, toy = Producer(), Toy()
producer.open(toy)
while toy.chunks:
    pass
end = time.monotonic() + 30
while threads() > alone + 1 and time.monotonic() < end:
    time.sleep(0.01)
helpers += [toy.helpers, threads() - alone - 1]
producer.close(toy)
print(helpers)
"""


def test_helpers_are_released_before_another_thread_computes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout == "[2, 0, 2, 2, 2, 0]\n", done
