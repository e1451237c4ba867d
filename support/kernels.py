"""Faster equivalents of textbook operations: pure functions of tensors, called by name.

The essays show the textbook line. Every kernel's docstring begins with the definition that it
equals, and `tests/test_kernels.py` compares the two.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# ---- Convolutions, BatchNorm and the backward pass (model.py) ----


def padded_conv(images: Tensor, weight: Tensor, bias: Tensor | None, stride: int,
                padding: Sequence[int], groups: int) -> Tensor:
    """F.conv2d(F.pad(images, padding), weight, bias, stride, groups=groups), mostly without a copy
    of the images, and faster on maps of a few pixels.

    padding: left, right, top, bottom; right and bottom may be one more than left and top.
    """
    left, right, top, bottom = padding
    (outputs, _, kernel, _), (height, width) = weight.shape, images.shape[2:]
    # CPUs' general kernels are slow on maps of a few pixels, which decides the speed at 32x32.
    if images.device.type in ("cpu", "xla") and height * width * stride <= 8:
        if kernel == stride == groups == 1:  # faster as a product of matrices
            pixels = F.linear(images.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias)  # (N, H, W, C)
            return pixels.permute(0, 3, 1, 2)
        if groups > 1 and groups == outputs == images.shape[1]:  # as a sum: 3 to 40 times as fast
            rows = _taps(height, kernel, stride, top, bottom, images)
            columns = _taps(width, kernel, stride, left, right, images)
            seen = torch.einsum("ckl,kio,ljp->ijopc", weight[:, 0], rows, columns).flatten(0, 1)
            pixels = images.permute(0, 2, 3, 1).flatten(1, 2)  # (N, H W, C)
            summed = sum(pixels[:, i, None, None] * seen[i] for i in range(height * width))
            return (summed if bias is None else summed + bias).permute(0, 3, 1, 2)

    if (left, top) != (right, bottom):
        # GPUs, and CPUs in the backward pass, have fast kernels for odd sizes only.
        if images.is_cuda or torch.is_grad_enabled():
            return F.conv2d(F.pad(images, tuple(padding)), weight, bias, stride, groups=groups)
        weight = F.pad(weight, (right - left, 0, bottom - top, 0))  # zeros at its top and left
    return F.conv2d(images, weight, bias, stride, (bottom, right), groups=groups)


def _taps(size: int, kernel: int, stride: int, before: int, after: int, like: Tensor) -> Tensor:
    """(kernel, size, windows), 1 where that tap of the kernel joins that input to that output."""
    tap = torch.arange(kernel, device=like.device).view(-1, 1, 1)
    source = torch.arange(size, device=like.device).view(1, -1, 1)
    window = torch.arange((before + size + after - kernel) // stride + 1, device=like.device)
    return (source - stride * window + before == tap).to(like.dtype)


def conv_norm(images: Tensor, convolution: nn.Module, norm: nn.Module) -> Tensor:
    """norm(convolution(images)), where the convolution is a model.Conv2d.

    In evaluation mode BatchNorm is a factor and an offset of each channel: folded into the
    convolution they cost nothing, and labelling a pool takes about a fifth less time.
    """
    if norm.training:
        return norm(convolution(images))
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight = convolution.weight * scale.view(-1, 1, 1, 1)
    return convolution(images, weight, norm.bias - norm.running_mean * scale)


def swish(values: Tensor) -> Tensor:
    """values * sigmoid(values), in place unless gradients are enabled."""
    return F.silu(values, inplace=not torch.is_grad_enabled())


class _NormSwish(torch.autograd.Function):
    """swish(norm(maps)) in training mode, (N, C, H, W).

    autograd would keep BatchNorm's input and its output. The output is a product and a sum away
    from the input, so here the backward pass computes it again.
    """

    @staticmethod
    def forward(ctx, maps: Tensor, norm: nn.BatchNorm2d, weight: Tensor, bias: Tensor) -> Tensor:
        normed, mean, inverse_std = torch.native_batch_norm(
            maps, weight, bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps)
        ctx.save_for_backward(maps, weight, bias, mean, inverse_std)
        ctx.epsilon = norm.eps
        return swish(normed)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple:
        maps, weight, bias, mean, inverse_std = ctx.saved_tensors
        scale = (weight * inverse_std).view(-1, 1, 1)
        shift = (bias - weight * inverse_std * mean).view(-1, 1, 1)
        normed = torch.addcmul(shift, maps, scale).to(maps.dtype)
        gradient = torch.ops.aten.silu_backward(gradient, normed)
        of_maps, *of_parameters = torch.ops.aten.native_batch_norm_backward(
            gradient, maps, weight, None, None, mean, inverse_std, True, ctx.epsilon, [True] * 3)
        return of_maps, None, *of_parameters


def conv_norm_swish(images: Tensor, convolution: nn.Module, norm: nn.Module,
                    lean: bool = False) -> Tensor:
    """swish(norm(convolution(images))); `lean` saves memory in training, on a CPU and uncompiled.

    In the expansions of the blocks that saves a seventh of a step's memory for 2 % of its time.
    """
    trains = norm.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if not (lean and trains and images.device.type == "cpu" and type(norm) is nn.BatchNorm2d):
        return swish(conv_norm(images, convolution, norm))
    norm.num_batches_tracked += 1
    return _NormSwish.apply(convolution(images), norm, norm.weight, norm.bias)


def average(maps: Tensor) -> Tensor:
    """maps.mean((2, 3)): (N, C, H, W) -> (N, C).

    As a sum, whose gradient is one number per map; that of `mean` is a whole map.
    """
    return maps.sum((2, 3)) / maps.shape[2:].numel()


def recompute(block: nn.Module, images: Tensor, noised: Tensor | None) -> Tensor:
    """block(images, noised), whose activations are not kept but computed again when needed."""
    # In one process a compiled network leaves the statistics alone by itself.
    options = {} if torch.compiler.is_compiling() else {"context_fn": partial(_twice, block)}
    return checkpoint(block, images, noised, use_reentrant=False, **options)


def _twice(block: nn.Module) -> tuple:
    """Contexts for a block's two forward passes: the second leaves BatchNorm's statistics alone."""

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        norms = [module for module in block.modules() if hasattr(module, "num_batches_tracked")]
        kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, (momentum, count) in zip(norms, kept, strict=True):
                norm.momentum = momentum
                norm.num_batches_tracked.copy_(count)

    return contextlib.nullcontext(), again()


# ---- RandAugment on a CPU (augment.py) ----


def where(mask: Tensor, chosen: Tensor | int, images: Tensor) -> Tensor:
    """torch.where(mask, chosen, images) for uint8 images, ten times as fast on a CPU.

    `mask` is 0 or 1, of any type. The sums are modulo 256, so nothing is lost.
    """
    return (chosen - images).mul_(mask.to(torch.uint8)).add_(images)


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """tables.gather(2, images.flatten(2)): each level's entry, uint8 (N, 3, H, W).

    On a CPU nothing is faster than bytes.translate. `tables` (1 or N, 1 or 3, 256) hold levels.
    """
    tables = tables.to(torch.uint8).expand(len(images), -1, -1)
    if images.device.type != "cpu":
        levels = images.flatten(2).long()
        return tables.expand(-1, images.shape[1], -1).gather(2, levels).view(images.shape)
    tables = tables.flatten(0, 1).numpy()
    pixels = images.reshape(len(tables), -1).numpy()
    changed = (part.tobytes().translate(table.tobytes())
               for part, table in zip(pixels, tables, strict=True))
    return torch.frombuffer(bytearray().join(changed), dtype=torch.uint8).view(images.shape)


def histogram(images: Tensor) -> Tensor:
    """zeros(N, 3, 256).scatter_add_(2, images.flatten(2), 1): the number of pixels at each level,
    uint8 (N, 3, H, W) -> int32 (N, 3, 256). On a CPU twice as fast for large images.
    """
    pixels = images.flatten(2)
    if images.device.type == "cpu" and pixels.shape[2] > 64 * 64:
        counts = [channel.bincount(minlength=256) for channel in pixels.flatten(0, 1)]
        return torch.stack(counts).int().view(*pixels.shape[:2], 256)
    ones = torch.ones((), dtype=torch.int32, device=images.device).expand(pixels.shape)
    return ones.new_zeros(*pixels.shape[:2], 256).scatter_add_(2, pixels.long(), ones)


def shear_rows(images: Tensor, matrices: list[list[int]], fill: int) -> Tensor:
    """augment.warp(images, matrices) for ShearX, whose rows stay whole: copies rows, up to three
    times as fast on a CPU. Pixels without content become `fill`.
    """
    count, channels, height, width = images.shape
    y, fixed = torch.arange(height, dtype=torch.int32), torch.tensor(matrices, dtype=torch.int32)
    across = ((fixed[:, 1:2] * y + fixed[:, 2:3]) >> 16).clamp_(-width, width)  # (N, H)
    # With empty pixels before each row and after the last one, every row of the result is a window
    # of the memory; `first` are the places of the channels' first pixels in it.
    framed = F.pad(images, (width, 0, 0, 1), value=fill)
    size = 2 * width * (height + 1)
    first = torch.arange(width, count * channels * size, size)
    start = first.view(count, channels, 1) + (2 * width * y + across).unsqueeze(1)
    windows = framed.flatten().unfold(0, width, 1)
    return windows.index_select(0, start.flatten()).view(images.shape)


def translate(images: Tensor, matrices: list[list[int]], fill: int) -> Tensor:
    """augment.warp(images, matrices) for TranslateX/Y: copies rectangles, up to ten times as fast
    on a CPU.
    """
    (height, width), moved = images.shape[2:], torch.full_like(images, fill)
    for source, target, (_, _, c, _, _, f) in zip(images, moved, matrices, strict=True):
        x, y = max(-width, min(c >> 16, width)), max(-height, min(f >> 16, height))
        part = source[:, max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
        target[:, max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)] = part
    return moved


# On a GPU a launch for each image would cost more than `warp`.
WARPS = {"ShearX": shear_rows, "TranslateX": translate, "TranslateY": translate}


def grouped(images: Tensor, draws: Tensor, names: Sequence[str],
            apply_operation: Callable) -> Tensor:
    """For each `drawn` of draws.unbind(1) in turn, augment.apply_drawn(images, drawn): images that
    drew the same of `names` go through apply_operation(images, name, values, centers) together,
    and through no other operation. N > 0.
    """
    results = list(images)
    for drawn in draws.unbind(1):
        operations = drawn[:, 0].long()
        order, counts = operations.argsort(), operations.bincount(minlength=len(names)).tolist()
        groups = zip(names, order.split(counts), drawn[order].split(counts), strict=True)
        for name, members, numbers in groups:
            if members := members.tolist():
                group = torch.stack([results[member] for member in members])
                group = apply_operation(group, name, numbers[:, 1], numbers[:, 2:])
                for member, image in zip(members, group.unbind(), strict=True):
                    results[member] = image
    return torch.stack(results)
