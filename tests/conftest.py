"""One thread, here and in child processes: small networks are faster so, and sums are in order.

XLA compiles without optimizing: the graphs, their number and their operations are the same, and
compiling a graph takes longer here than running it. What is said once in a process may be said
again in each test."""

import os

import pytest
import torch

from support import images

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)


@pytest.fixture(autouse=True)
def nothing_was_said_yet():
    images.say_once.cache_clear()
