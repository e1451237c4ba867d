"""One thread, here and in child processes: small networks are faster so, and sums are in order.

XLA compiles without optimizing: the graphs, their number and their operations are the same, and
compiling a graph takes longer here than running it."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
