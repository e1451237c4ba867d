"""One thread, here and in child processes: small networks are faster so, and sums are in order."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
