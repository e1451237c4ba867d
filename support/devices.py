"""The one place that chooses and drives devices: CPU, CUDA, Apple's MPS, and XLA (TPU or CPU).

It finds a device (`choose`), brings host batches there (`place`) and ends a step (`finish_step`);
`Tensor.cpu()` brings results back everywhere. There are two ways to use several devices:

    XLA          SPMD: one process, a mesh over all its devices, every batch split along its first
                 axis, and the gradients summed by the compiler
    CUDA, CPU    torchrun --nproc-per-node N train.py ...: one process per device, each with its own
                 rows of every batch (`rank` of `world_size`), the gradients averaged among them
"""

import contextlib
import ctypes
import datetime
import functools
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from support import InputError, cli


@dataclass(frozen=True)
class Machine:
    """Where and how to compute; other devices draw other dropout and round differently"""

    device: Literal["auto", "cpu", "cuda", "mps", "xla"] = "auto"  # xla also drives TPUs
    workers: cli.Workers = 2  # processes that decode images, for each GPU; twice for a student
    compile: bool = False  # compile the network; faster on GPUs after a minute
    checkpoint_blocks: bool = False  # recompute activations instead of keeping them: less memory
    megapixels: cli.Positive = 180.0  # of an image; larger ones: an error, in the pool left out

    def __post_init__(self) -> None:
        Image.MAX_IMAGE_PIXELS = int(self.megapixels * 1e6 / 2)  # it warns here, refuses twice that

    def chosen(self) -> "Machine":
        """This machine with its device found."""
        return replace(self, device=choose(self.device))


CPU = Machine("cpu")
PATIENT = {}  # "group": torchrun's processes, for what may take long


def choose(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is CUDA if there is one, else the CPU.

    MPS (untested) must be asked for, and XLA except on a TPU host (PJRT_DEVICE=TPU). Under torchrun
    the process joins the others and takes the GPU of its number. InputError if it is not there.
    """
    if name == "xla" or name == "auto" and os.environ.get("PJRT_DEVICE") == "TPU":
        return _start_xla()
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
             "cpu": True}
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    if not there[name]:
        raise InputError(f"device {name} is not there: PyTorch finds none; use --device auto")
    if name == "cpu":
        _keep_freed_memory()

    if "LOCAL_RANK" not in os.environ:  # not started by torchrun
        return torch.device(name)
    backend, number = "gloo", None
    if name == "cuda":
        backend, number = "cpu:gloo,cuda:nccl", int(os.environ["LOCAL_RANK"])
        if number >= (count := torch.cuda.device_count()):
            raise InputError(f"process {number} (from 0) has no GPU: torchrun --nproc-per-node "
                             f"{count}")
        torch.cuda.set_device(number)
    if not dist.is_initialized():
        # One that hangs in a step is given up; outside of steps one may evaluate or read for long.
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=1))
        PATIENT["group"] = dist.new_group(backend="gloo", timeout=datetime.timedelta(hours=24))
    return torch.device(name, number)


def _start_xla() -> torch.device:
    """To be called before the process's first backward pass: autograd fails if XLA starts later."""
    if "LOCAL_RANK" in os.environ:
        raise InputError("device xla needs no torchrun: one process uses all its devices")
    try:
        import torch_xla.runtime
    except ImportError as error:
        raise InputError(f"device xla is not there: torch_xla cannot be imported ({error}); "
                         "pip install -r requirements-xla.txt, or use --device cpu") from None
    torch_xla.runtime.use_spmd()
    device, hosts = torch_xla.device(), torch_xla.runtime.process_count()
    if hosts > 1:
        raise InputError(f"device xla uses the chips of one host, and this is one of {hosts}: take "
                         "a TPU of a single host (up to 8 chips), or GPUs with torchrun")
    return device


def _keep_freed_memory() -> None:
    """Let glibc give nothing back to the system: it would come back page by page, zeroed, in the
    next step, which costs a fifth of a training step at 224x224."""
    if platform.libc_ver()[0] == "glibc":
        libc, trim_threshold, largest_number_of_maps = ctypes.CDLL(None), -1, -4
        libc.mallopt(largest_number_of_maps, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def layout(device: torch.device) -> torch.memory_format:
    """The faster layout of images in training; on MPS BatchNorm's gradients are wrong in it."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


# ---- Several processes, or several devices of XLA ----


def rank() -> int:
    """Number of this process among those that torchrun started; 0 without it."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Return when every process has come here."""
    if dist.is_initialized():
        dist.barrier(**PATIENT)


def local_rank() -> int:
    """Number of this process among those on this machine; 0 without torchrun."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_initialized() else 0


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """Inside, the first process is alone; the others follow once it has left."""
    if rank() > 0:
        wait_for_all()
    yield
    if rank() == 0:
        wait_for_all()


def gathered(value: object) -> list:
    """The values that the processes give, in the order of their numbers."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value, **PATIENT)
    return values


def of_this_machine(value: object) -> object:
    """The value that this machine's first process gives, in each of its processes."""
    return gathered(value)[rank() - local_rank()]


@functools.cache
def _mesh() -> object:
    """All devices of this host in one row named "data"."""
    import torch_xla.distributed.spmd as spmd
    return spmd.get_1d_mesh("data")


def mesh_size(device: torch.device) -> int:
    """How many devices of XLA share the rows of a batch; 1 elsewhere."""
    return int(_mesh().size()) if device.type == "xla" else 1


def send(values: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device, without waiting for what a GPU computes at present."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def place(batch: Tensor, device: torch.device) -> Tensor:
    """A host batch (N, ...) on the device; on XLA with several devices its rows are shared out."""
    return _share(send(batch, device), "data")


def collect(values: Tensor) -> Tensor:
    """All rows of a batch's result on every device of XLA: fetching then needs no extra graph."""
    return _share(values, None)


def _share(values: Tensor, rows: str | None) -> Tensor:
    """On several devices of XLA: values with rows shared out ("data") or copied to all (None)."""
    if mesh_size(values.device) > 1:
        import torch_xla.distributed.spmd as spmd
        spmd.mark_sharding(values, _mesh(), (rows,) + (None,) * (values.dim() - 1))
    return values


def total(values: Tensor) -> Tensor:
    """The sum over all processes, on the CPU."""
    values = values.detach().cpu()
    if dist.is_initialized():
        dist.all_reduce(values, **PATIENT)
    return values


# ---- Within a step ----


def manual_seed(seed: int, device: torch.device) -> None:
    """Seed the random numbers of the host and of the device."""
    torch.manual_seed(seed)
    if device.type == "xla":
        import torch_xla
        torch_xla.manual_seed(seed)


@contextlib.contextmanager
def own_chance(device: torch.device, numbers: tuple[int, ...] | None) -> Iterator[None]:
    """Inside, torch's random numbers follow from `numbers`; afterwards they go on as before."""
    if numbers is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]), device)
        yield


def compiled(network: torch.nn.Module) -> Callable:
    """The network compiled; what was compiled before is forgotten.

    Otherwise PyTorch would compile a loop's next run, whose batches have another size, for all
    sizes, which takes minutes and runs slower, and would compile none after the eighth.
    """
    torch.compiler.reset()
    return torch.compile(network)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Mixed precision for "bfloat16" (weights stay float32), nothing for "float32"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def finish_step(device: torch.device) -> None:
    """End of a step: XLA compiles and runs what was recorded; other devices have run it already."""
    if device.type == "xla":
        import torch_xla
        torch_xla.sync()
