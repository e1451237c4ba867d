"""The one place that chooses and drives devices: CPU, CUDA, Apple's MPS, and XLA (TPU or CPU).

Labelling, training and evaluation ask it which device (`choose`), bring host batches there
(`place`), compute in a precision (`autocast`) and end a step (`finish_step`); `Tensor.cpu()` brings
results back everywhere. (model.py and augment.py look at where their tensors are only to pick the
faster of two ways to compute the same.) There are two ways to use several devices:

    XLA          SPMD: one process, a mesh over all its devices, every batch split along its first
                 axis, and the gradients summed by the compiler
    CUDA, CPU    torchrun --nproc-per-node N train.py ...: one process a device, each with its own
                 rows of every batch (`rank` of `world_size`), the gradients averaged among them
"""

import contextlib
import ctypes
import datetime
import functools
import os
import platform

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor, nn

NAMES = ("auto", "cpu", "cuda", "mps", "xla")


def choose(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is CUDA if there is one, else MPS, else the CPU.

    XLA must be asked for, except on a TPU host (PJRT_DEVICE=TPU). It is started here, because
    autograd fails when the XLA client starts after the process's first backward pass.

    Under torchrun the process joins the others, and takes the GPU of its own number. On a CPU
    memory that is freed is kept for the next step.

    Raises ValueError when the device is not there.
    """
    if name == "auto":
        if os.environ.get("PJRT_DEVICE") == "TPU":
            name = "xla"
        elif torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda is not there: PyTorch finds no CUDA GPU; use --device auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps is not there: it needs a Mac; use --device auto")
    if name == "xla":
        try:
            import torch_xla
            import torch_xla.runtime
        except ImportError as error:
            raise ValueError(
                f"device xla is not there: torch_xla cannot be imported ({error}); "
                "install it or use --device auto"
            ) from None
        if "WORLD_SIZE" in os.environ:
            raise ValueError("device xla needs no torchrun: one process uses all its devices")
        torch_xla.runtime.use_spmd()
        return torch_xla.device()
    if name not in NAMES:
        raise ValueError(f"unknown device {name!r}: use one of {', '.join(NAMES)}")
    if name == "cpu":
        _keep_freed_memory()
    if "WORLD_SIZE" not in os.environ:  # not started by torchrun
        return torch.device(name)
    if not dist.is_initialized():
        # One process may wait for another that evaluates or reads images for a long time.
        dist.init_process_group("cpu:gloo,cuda:nccl" if name == "cuda" else "gloo",
                                timeout=datetime.timedelta(hours=24))
    if name == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        return device
    return torch.device(name)


def _keep_freed_memory() -> None:
    """Let glibc give no memory back to the system before the process ends.

    By default every large activation is returned when it is freed, and comes back page by page,
    zeroed, in the next step: a fifth of the time of a training step at 224x224.
    """
    if platform.libc_ver()[0] == "glibc":
        libc, trim_threshold, largest_number_of_maps = ctypes.CDLL(None), -1, -4
        libc.mallopt(largest_number_of_maps, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def rank() -> int:
    """Number of this process among those that torchrun started; 0 without it."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Return when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


@functools.cache
def _mesh():
    """All devices of this host in one row named "data"."""
    import torch_xla.distributed.spmd as spmd
    import torch_xla.runtime

    count = torch_xla.runtime.global_runtime_device_count()
    return spmd.Mesh(np.arange(count), (count,), ("data",))


def mesh_size(device: torch.device) -> int:
    """How many devices of XLA share the rows of a batch; 1 elsewhere."""
    return int(_mesh().size()) if device.type == "xla" else 1


def place(batch: Tensor, device: torch.device) -> Tensor:
    """A host batch (N, ...) on the device; on XLA with several devices its rows are shared out."""
    if device.type == "cuda":
        return batch.pin_memory().to(device, non_blocking=True)
    batch = batch.to(device)
    if mesh_size(device) > 1:
        import torch_xla.distributed.spmd as spmd

        spmd.mark_sharding(batch, _mesh(), ("data",) + (None,) * (batch.dim() - 1))
    return batch


def collect(values: Tensor) -> Tensor:
    """All rows of a batch's result on every device of XLA, so that fetching needs no graph more."""
    if mesh_size(values.device) > 1:
        import torch_xla.distributed.spmd as spmd

        spmd.mark_sharding(values, _mesh(), (None,) * values.dim())
    return values


def mean(values: Tensor) -> Tensor:
    """The mean over all processes, on the CPU."""
    values = values.detach().cpu()
    if dist.is_initialized():
        dist.all_reduce(values)
    return values / world_size()


def _mean_over_all(maps: Tensor) -> Tensor:
    """The mean of each channel over the images of all processes: (N, C, H, W) -> (C,)."""
    return torch.distributed.nn.functional.all_reduce(maps.mean((0, 2, 3))) / world_size()


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the images of all processes; torch's own class of that name needs GPUs."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        values = images.to(self.weight.dtype)  # under autocast the images are bfloat16
        average = _mean_over_all(values)
        variance = _mean_over_all((values - average.view(-1, 1, 1)).square())
        with torch.no_grad():
            count = images.numel() / images.shape[1] * world_size()
            self.running_mean.lerp_(average, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - average * scale
        return (values * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(images.dtype)


def distribute(network: nn.Module, device: torch.device) -> nn.Module:
    """What to call instead of the network, so that the processes of torchrun train one model.

    Gradients are averaged over the processes, and BatchNorm sees the images of all (the authors:
    of groups of cores). The network itself keeps its parameters and buffers.
    """
    if world_size() == 1:
        return network
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    else:
        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SyncBatchNorm
    return nn.parallel.DistributedDataParallel(
        network, [device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


def keep_gradients_local(network: nn.Module, local: bool) -> contextlib.AbstractContextManager:
    """Inside, backward() only adds up gradients: they are averaged once, after the last part."""
    return network.no_sync() if local and world_size() > 1 else contextlib.nullcontext()


def manual_seed(seed: int, device: torch.device) -> None:
    """Seed the random numbers of the host and of the device."""
    torch.manual_seed(seed)
    if device.type == "xla":
        import torch_xla

        torch_xla.manual_seed(seed)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Mixed precision for "bfloat16" (weights stay float32), nothing for "float32"."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def finish_step(device: torch.device) -> None:
    """End of a step: XLA compiles and runs what was recorded; other devices have run it already."""
    if device.type == "xla":
        import torch_xla

        torch_xla.sync()
