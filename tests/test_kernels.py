"""Every kernel against the textbook line that it equals."""

import copy
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F

import augment
import model
from support import kernels
from support.batches import Chance

# ---- Convolutions, BatchNorm and the backward pass (model.py) ----

SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 2), (3, 3), (3, 5), (4, 4), (5, 5), (8, 8),
         (9, 8), (9, 9)]


def same(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def gradients(result, inputs):
    """Gradients of a sum in which every number counts differently."""
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).view(result.shape)
    return torch.autograd.grad((result * weights).sum(), inputs)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padded_conv(stride, kernel, groups):
    torch.manual_seed(0)
    half, less = kernel // 2, max(0, kernel // 2 - 1)
    weight = torch.randn(6, 6 // groups, kernel, kernel, dtype=torch.double, requires_grad=True)
    for size in SIZES:
        images = torch.randn(3, 6, *size, dtype=torch.double, requires_grad=True)
        sides = {(half, half), (less, half), (0, 0)}  # before and after
        for columns, rows in itertools.product(sides, repeat=2):
            padding = (*columns, *rows)
            if min(size[0] + sum(rows), size[1] + sum(columns)) < kernel:  # not even one window
                continue
            for bias in (None, torch.randn(6, dtype=torch.double, requires_grad=True)):
                inputs = (images, weight) if bias is None else (images, weight, bias)
                rest = (weight, bias, stride)
                expected = F.conv2d(F.pad(images, padding), *rest, groups=groups)
                result = kernels.padded_conv(images, *rest, padding, groups)
                same(result, expected)
                for value, textbook in zip(gradients(result, inputs), gradients(expected, inputs),
                                           strict=True):
                    same(value, textbook)
                with torch.no_grad():  # there the kernel is padded, not the images
                    same(kernels.padded_conv(images, *rest, padding, groups), expected)


def test_padded_conv_of_many_pixels_and_even_padding_is_conv2d_to_the_last_bit():
    torch.manual_seed(0)
    images, weight = torch.randn(3, 6, 9, 8), torch.randn(6, 1, 3, 3)
    result = kernels.padded_conv(images, weight, None, 2, (1, 1, 1, 1), 6)
    assert torch.equal(result, F.conv2d(images, weight, None, 2, 1, groups=6))


@pytest.fixture(params=[(1, 1, 1), (3, 2, 1), (5, 1, 4)], ids=["1x1", "3x3 at stride 2", "5x5"])
def layers(request):
    """A convolution of four channels, a BatchNorm with statistics, and their parameters."""
    kernel, stride, groups = request.param
    torch.manual_seed(0)
    convolution = model.Conv2d(4, 8 if groups == 1 else 4, kernel, stride, groups).double()
    norm = torch.nn.BatchNorm2d(convolution.out_channels, eps=1e-3, momentum=0.01).double()
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        values.data.uniform_(0.5, 1.5)
    return convolution, norm, (convolution.weight, norm.weight, norm.bias)


def assert_equal_layers(kernel, textbook, layers, size):
    """Results, gradients and statistics of the kernel are the textbook's, in both modes."""
    *modules, parameters = layers
    for training in (True, False):
        images = torch.randn(3, 4, *size, dtype=torch.double, requires_grad=True)
        outcomes = []
        for function in (kernel, textbook):
            convolution, norm = copy.deepcopy(modules)
            inputs = (images, convolution.weight, norm.weight, norm.bias)
            result = function(images, convolution, norm.train(training))
            outcome = [result, *gradients(result, inputs), *norm.buffers()]
            with torch.no_grad():
                outcome.append(function(images, convolution, norm.train(training)))
            outcomes.append(outcome)
        for value, expected in zip(*outcomes, strict=True):
            same(value, expected)


@pytest.mark.parametrize("size", [(2, 2), (5, 4), (8, 8)])
def test_conv_norm(layers, size):
    assert_equal_layers(kernels.conv_norm, lambda images, convolution, norm:
                        norm(convolution(images)), layers, size)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("size", [(2, 2), (5, 4), (8, 8)])
def test_conv_norm_swish(layers, size, lean):
    assert_equal_layers(functools.partial(kernels.conv_norm_swish, lean=lean),
                        lambda images, convolution, norm: F.silu(norm(convolution(images))),
                        layers, size)


def test_conv_norm_swish_in_bfloat16():
    torch.manual_seed(0)
    convolution, norm = model.Conv2d(4, 24, 1), torch.nn.BatchNorm2d(24)
    images, outcomes = torch.randn(8, 4, 6, 6), []
    for lean in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            result = kernels.conv_norm_swish(images, convolution, norm, lean=lean)
        outcomes.append([result, *gradients(result, (convolution.weight, norm.weight, norm.bias))])
    for value, expected in zip(*outcomes, strict=True):
        assert value.dtype == expected.dtype
        assert (value - expected).norm() < 0.02 * expected.norm()


def test_the_largest_maps_are_kept_twice_for_the_backward_pass_not_three_times():
    block = model.Block(8, 8, 3, 1, 6, survival_prob=1.0).train()
    images, kept = torch.randn(2, 8, 10, 10), set()

    def keep(tensor):
        if tensor.shape == (2, 48, 10, 10):
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    for lean, count in ((True, 2), (False, 3)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = kernels.conv_norm_swish(images, block.expand, block.expand_norm, lean)
            block.depthwise(hidden)
        assert len(kept) == count  # what BatchNorm reads, (swish,) and the depthwise convolution


def test_swish():
    images = torch.linspace(-5, 5, 60, dtype=torch.double, requires_grad=True)
    expected = images * images.sigmoid()
    result = kernels.swish(images)
    same(result, expected)
    same(gradients(result, (images,)), gradients(expected, (images,)))
    with torch.no_grad():
        values = images.clone()
        assert kernels.swish(values) is values  # in place
    same(values, expected.detach())


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8)])
def test_average(size):
    images = torch.randn(3, 4, *size, dtype=torch.double, requires_grad=True)
    expected, result = images.mean((2, 3)), kernels.average(images)
    same(result, expected)
    same(gradients(result, (images,)), gradients(expected, (images,)))


def test_recompute():
    torch.manual_seed(0)
    block = model.Block(8, 8, 3, 1, 6, survival_prob=0.5).train().double()
    images = torch.randn(6, 8, 5, 4, dtype=torch.double, requires_grad=True)
    noised, outcomes, passes = torch.arange(6) < 4, [], []
    for run in (kernels.recompute, torch.nn.Module.__call__):
        one = copy.deepcopy(block)
        one.register_forward_pre_hook(lambda *_: passes.append(1))
        torch.manual_seed(1)
        result = run(one, images, noised)
        slopes = gradients(result, (images, *one.parameters()))
        outcomes.append([result, *slopes, *one.buffers()])
        assert one.expand_norm.momentum == one.project_norm.momentum == 0.01
        assert len(passes) == (2 if run is kernels.recompute else 3)
    for value, expected in zip(*outcomes, strict=True):
        assert torch.equal(value, expected)


# ---- RandAugment on a CPU (augment.py) ----


def pixels(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


SHAPES = [(5, 3, 32, 32), (2, 3, 17, 61), (3, 3, 61, 17), (2, 3, 1, 2)]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_where(dtype):
    """For all pairs of levels, and for one level and a mask per image."""
    images = torch.arange(256, dtype=torch.uint8).expand(2, 3, 256, 256)
    chosen = images.transpose(2, 3)
    mask = torch.tensor([0, 1], dtype=dtype).view(2, 1, 1, 1)
    assert torch.equal(kernels.where(mask, chosen, images), torch.where(mask > 0, chosen, images))
    mask = (pixels(2, 1, 256, 256) % 2).to(dtype)
    for level in (0, 128, 255):
        expected = torch.where(mask > 0, level, images)
        assert torch.equal(kernels.where(mask, level, images), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_look_up(shape, dtype):
    for images in (pixels(*shape), pixels(shape[0], 3, shape[3], shape[2]).transpose(2, 3)):
        for count, channels in itertools.product((1, shape[0]), (1, 3)):
            tables = pixels(count, channels, 256, seed=1).to(dtype)
            each = tables.to(torch.uint8).expand(shape[0], 3, 256)
            expected = each.gather(2, images.flatten(2).long()).view(shape)
            assert torch.equal(kernels.look_up(images, tables), expected)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 65, 64)])
def test_histogram(shape):
    levels = pixels(*shape).flatten(2).long()
    expected = torch.zeros(*shape[:2], 256, dtype=torch.int32)
    expected.scatter_add_(2, levels, torch.ones_like(levels, dtype=torch.int32))
    counts = kernels.histogram(pixels(*shape))
    assert counts.dtype == torch.int32 and torch.equal(counts, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel", "name", "most"), [
    (kernels.shear_rows, "ShearX", 3), (kernels.translate, "TranslateX", 90),
    (kernels.translate, "TranslateY", 90),
])  # fmt: skip
def test_warps_that_copy(kernel, name, most, shape):
    images = pixels(*shape)
    for values in torch.linspace(-most, most, 40 * len(images)).view(40, -1).tolist():
        matrices = [augment.matrix(name, value, *shape[2:]) for value in values]
        expected = augment.warp(images, matrices)
        assert torch.equal(kernel(images, matrices, augment.EMPTY), expected), values


@pytest.mark.parametrize("magnitude", [0, 5, 13, 27])
@pytest.mark.parametrize("num_ops", [1, 2, 3])
def test_grouped(num_ops, magnitude):
    """The way of eager devices against that of XLA, which is the whole batch's; on the CPU."""
    images = pixels(96, 3, 28, 36)
    chance = Chance.of(images, torch.Generator().manual_seed(4))
    draws = augment.RandAugment(num_ops, magnitude).draw(chance, 28, 36)
    assert draws[..., 0].unique().numel() == len(augment.OPERATIONS)
    expected = images
    for drawn in draws.unbind(1):
        expected = augment.apply_drawn(expected, drawn)
    inputs = draws, augment.OPERATIONS, augment.apply_operation
    assert torch.equal(kernels.grouped(images, *inputs), expected)
    assert torch.equal(augment.apply(images, draws), expected)


def test_grouped_passes_every_group_once_and_no_other_image():
    images, seen = pixels(6, 3, 4, 4), []
    drawn = torch.tensor([[2, 7, 0, 1], [0, 3, 1, 1], [2, 9, 2, 1.0]]).repeat(2, 1).double()

    def note(group, name, values, centers):
        seen.append((name, values.tolist(), sorted(centers[:, 0].tolist())))
        return 255 - group

    result = kernels.grouped(images, drawn[:, None], "abc", note)
    assert torch.equal(result, 255 - images)
    assert [(name, sorted(values), rows) for name, values, rows in seen] == [
        ("a", [3, 3], [1, 1]), ("c", [7, 7, 9, 9], [0, 0, 2, 2])]
