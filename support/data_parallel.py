"""torchrun's processes train one network together: gradients and BatchNorm see all images."""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.distributed.nn
from torch import Tensor, nn

from support.devices import compiled, finish_step, world_size


def _mean_over_all(maps: Tensor) -> Tensor:
    """The mean of each channel over the images of all processes: (N, C, H, W) -> (C,)."""
    return torch.distributed.nn.functional.all_reduce(maps.mean((0, 2, 3))) / world_size()


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the images of all processes, on any device; it compiles as one graph."""

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


def _synchronize(network: nn.Module) -> None:
    """Put a SyncBatchNorm with the same parameters and buffers in the place of each BatchNorm."""
    for name, module in [*network.named_modules()]:
        if type(module) is nn.BatchNorm2d:
            norm = SyncBatchNorm(module.num_features)
            vars(norm).update(vars(module))
            network.set_submodule(name, norm)


def distribute(network: nn.Module, device: torch.device, compiles: bool = False) -> Callable:
    """What to call instead of the network, so that the processes of torchrun train one model.

    Gradients are averaged over the processes, and BatchNorm sees the images of all (the authors':
    those of a group of cores). The network itself keeps its parameters and buffers.
    """
    forward = network
    if world_size() > 1:
        # torch's own is leaner on GPUs, but its shapes depend on values: a network that is compiled
        # would fall apart at each of them.
        if device.type == "cuda" and not compiles:
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
        else:
            _synchronize(network)
        forward = nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)
    return compiled(forward) if compiles else forward


@contextlib.contextmanager
def accumulate(network: nn.Module, device: torch.device, last: bool) -> Iterator[None]:
    """Inside, backward() adds up gradients; the last micro-batch averages them over processes."""
    with contextlib.nullcontext() if last or world_size() == 1 else network.no_sync():
        yield
    if not last:
        finish_step(device)  # else XLA would compile, and hold in memory, all of them as one
