"""EfficientNet, the network of teacher and student, with noise that can be switched per image.

Noisy Student Training (section 3.1, "Architecture") takes EfficientNet (Tan & Le, 2019) as it is,
and adds the two kinds of model noise of section 2: stochastic depth and dropout.

The network is b0 below, widened and deepened ("compound scaling"): b7 is 2.0 times wider and 3.1
times deeper, L2 (the paper's table 8) 4.3 and 5.3 times. For b0 and 224x224 images:

    images   (N, 3, 224, 224)
    stem     3x3 convolution, stride 2              (N,   32, 112, 112)
    stage 1  1 block,  3x3 depthwise                (N,   16, 112, 112)
    stage 2  2 blocks, 3x3, first at stride 2       (N,   24,  56,  56)
    stage 3  2 blocks, 5x5, first at stride 2       (N,   40,  28,  28)
    stage 4  3 blocks, 3x3, first at stride 2       (N,   80,  14,  14)
    stage 5  3 blocks, 5x5                          (N,  112,  14,  14)
    stage 6  4 blocks, 5x5, first at stride 2       (N,  192,   7,   7)
    stage 7  1 block,  3x3                          (N,  320,   7,   7)
    head     1x1 convolution                        (N, 1280,   7,   7)
    average over the map, dropout, linear           (N, num_classes)

A block ("mobile inverted bottleneck with squeeze-and-excitation") on C channels:

    x (C) -> 1x1 expand (6C) -> k x k depthwise -> squeeze-and-excite -> 1x1 project (C') -> + x
                                                                                            ^
         the sum only at stride 1 with C' = C, and there stochastic depth may drop the branch

Stage 1 has no expansion. BatchNorm follows every convolution but the two of squeeze-and-excitation,
which have a bias; swish follows every BatchNorm but the projection's.

    import model; network = model.efficientnet("b0")
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Scaling(NamedTuple):
    """Compound scaling of b0: factors, the resolution trained at (pixels), the head's dropout."""

    width: float
    depth: float
    resolution: int
    dropout: float


# b0 to b7 as EfficientNet's authors released them; l0 to l2 from the paper's table 8.
SCALING = {
    "b0": Scaling(1.0, 1.0, 224, 0.2),
    "b1": Scaling(1.0, 1.1, 240, 0.2),
    "b2": Scaling(1.1, 1.2, 260, 0.3),
    "b3": Scaling(1.2, 1.4, 300, 0.3),
    "b4": Scaling(1.4, 1.8, 380, 0.4),
    "b5": Scaling(1.6, 2.2, 456, 0.4),
    "b6": Scaling(1.8, 2.6, 528, 0.5),
    "b7": Scaling(2.0, 3.1, 600, 0.5),
    "l0": Scaling(2.8, 3.7, 380, 0.5),
    "l1": Scaling(3.9, 3.7, 380, 0.5),
    "l2": Scaling(4.3, 5.3, 475, 0.5),
}


class Stage(NamedTuple):
    """One row of EfficientNet's table 1, before scaling."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
SQUEEZE_RATIO = 0.25  # of the block's input, not of its expanded width
NORM_EPSILON = 1e-3
NORM_MOMENTUM = 0.01  # TensorFlow calls this 0.99: the share of the old average that is kept


def scaling(arch: str) -> Scaling:
    """The scaling of a published name, or of "WIDTHxDEPTH" such as "0.35x0.5" for any other.

    The scaling of an own width and depth has 32 pixels and the smallest published dropout, 0.2.
    Raises ValueError for anything else.
    """
    if arch in SCALING:
        return SCALING[arch]
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)", arch):
        width, depth = float(match[1]), float(match[2])
        if width > 0 and depth > 0:
            return Scaling(width, depth, 32, 0.2)
    raise ValueError(
        f"unknown architecture {arch!r}: use one of {', '.join(SCALING)}, or WIDTHxDEPTH, "
        "for example 0.35x0.5"
    )


def scale_channels(channels: int, width: float) -> int:
    """Multiple of 8 nearest to channels * width, at least 8, never more than 10 % below it."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def stochastic_depth(
    branch: Tensor, shortcut: Tensor, survival_prob: float, noised: Tensor | None
) -> Tensor:
    """shortcut + branch, the branch of each image kept with survival_prob (Huang et al., 2016).

    A branch that survives is divided by survival_prob, so the sum's expectation does not change.

    Args:
        branch, shortcut: (N, C, H, W).
        survival_prob: probability that an image keeps its branch (not the drop rate).
        noised: (N,) bool; images where it is False keep their branch as it is. None: all noised.
    """
    survives = torch.rand(len(branch), 1, 1, 1, device=branch.device) < survival_prob
    scale = survives.to(branch.dtype) / survival_prob
    if noised is not None:
        scale = torch.where(noised.view(-1, 1, 1, 1), scale, torch.ones_like(scale))
    return torch.addcmul(shortcut, branch, scale)


class Conv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding and no bias, as EfficientNet was trained.

    At stride 2 SAME pads just what the last window needs, the odd row and column at the bottom and
    right. With `symmetric` it pads kernel // 2 on every side instead, as torchvision's weights do.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.symmetric = False

    def forward(self, images: Tensor) -> Tensor:
        return self.convolve(images, self.weight, None)

    def convolve(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution with a weight and a bias (outputs,) in the place of its own."""
        (kernel, _), (stride, _), (height, width) = self.kernel_size, self.stride, images.shape[2:]
        # SAME at stride 2: kernel // 2 on every side, but for an even size one less before it.
        less = [int(stride == 2 and size % 2 == 0 and not self.symmetric)
                for size in (height, width)]
        padding = kernel // 2
        # The general kernels of CPUs are slow on small maps, which decides the speed at 32x32.
        small = not images.is_cuda and height * width * stride**2 <= 16
        if small and kernel == 1:
            # There a 1x1 convolution is faster as a product of matrices ...
            pixels = F.linear(images.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias)  # (N, H, W, C)
            return pixels.permute(0, 3, 1, 2)
        if small and self.groups > 1:
            # ... and a depthwise one as a weighted sum of the pixels, three to forty times.
            rows, columns = (taps(size, kernel, stride, padding - fewer, images)
                             for size, fewer in zip((height, width), less, strict=True))
            seen = torch.einsum("ckl,kio,ljp->ijopc", weight[:, 0], rows, columns).flatten(0, 1)
            pixels = images.permute(0, 2, 3, 1).flatten(1, 2)  # (N, H W, C)
            summed = sum(pixels[:, i, None, None] * seen[i] for i in range(height * width))
            return (summed if bias is None else summed + bias).permute(0, 3, 1, 2)
        if any(less) and (images.is_cuda or torch.is_grad_enabled()):
            images = F.pad(images, (padding - less[1], padding, padding - less[0], padding))
            padding = 0
        elif any(less):
            # The same without a copy of the map: a kernel with zeros at its top and left. GPUs, and
            # CPUs in the backward pass, have their fast kernels for odd sizes.
            weight = F.pad(weight, (less[1], 0, less[0], 0))
        return F.conv2d(images, weight, bias, stride, padding, groups=self.groups)


def taps(size: int, kernel: int, stride: int, padding: int, like: Tensor) -> Tensor:
    """(kernel, size, windows), 1 where that tap of the kernel joins that input to that output."""
    tap = torch.arange(kernel, device=like.device).view(-1, 1, 1)
    source = torch.arange(size, device=like.device).view(1, -1, 1)
    window = torch.arange(-(-size // stride), device=like.device)
    return (source - stride * window + padding == tap).to(like.dtype)


def normalized(convolution: Conv2d, norm: nn.Module, images: Tensor) -> Tensor:
    """norm(convolution(images)).

    In evaluation mode BatchNorm is a factor and an offset of each channel: folded into the
    convolution they cost nothing, and labelling a pool takes about a fifth less time.
    """
    if norm.training:
        return norm(convolution(images))
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight = convolution.weight * scale.view(-1, 1, 1, 1)
    return convolution.convolve(images, weight, norm.bias - norm.running_mean * scale)


def swish(values: Tensor) -> Tensor:
    """x * sigmoid(x), in the place of x unless the backward pass needs it."""
    return F.silu(values, inplace=not torch.is_grad_enabled())


class NormSwish(torch.autograd.Function):
    """swish(BatchNorm(maps)) in training mode: (N, C, H, W) -> (N, C, H, W).

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


def expanded(convolution: Conv2d, norm: nn.Module, images: Tensor) -> Tensor:
    """swish(norm(convolution(images))), in less memory where a CPU trains step by step.

    The expansion's maps are the largest of the network: a seventh of a training step's memory.
    """
    trains = norm.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if not trains or images.device.type != "cpu" or type(norm) is not nn.BatchNorm2d:
        return swish(normalized(convolution, norm, images))
    norm.num_batches_tracked += 1
    return NormSwish.apply(convolution(images), norm, norm.weight, norm.bias)


def average(maps: Tensor) -> Tensor:
    """The mean over each map: (N, C, H, W) -> (N, C).

    As a sum, whose gradient is one number for a map; that of `mean` is a whole map.
    """
    return maps.sum((2, 3)) / maps.shape[2:].numel()


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)


class Block(nn.Module):
    """Mobile inverted bottleneck with squeeze-and-excitation: (N, C, H, W) -> (N, C', H', W')."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int,
                 survival_prob: float):
        super().__init__()
        hidden, squeezed = inputs * expansion, max(1, int(inputs * SQUEEZE_RATIO))
        self.residual = stride == 1 and inputs == outputs
        self.survival_prob = survival_prob
        if expansion > 1:
            self.expand, self.expand_norm = Conv2d(inputs, hidden, 1), batch_norm(hidden)
        else:
            self.expand = None
        self.depthwise = Conv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.depthwise_norm = batch_norm(hidden)
        self.squeeze = nn.Conv2d(hidden, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, hidden, 1)
        self.project, self.project_norm = Conv2d(hidden, outputs, 1), batch_norm(outputs)

    def forward(self, images: Tensor, noised: Tensor | None = None) -> Tensor:
        hidden = images
        if self.expand is not None:
            hidden = expanded(self.expand, self.expand_norm, hidden)
        hidden = swish(normalized(self.depthwise, self.depthwise_norm, hidden))
        gate = average(hidden)[..., None, None]  # (N, 6C, 1, 1)
        gate = self.excite(swish(self.squeeze(gate))).sigmoid()
        hidden = normalized(self.project, self.project_norm, hidden * gate)
        if not self.residual:
            return hidden
        if self.training and self.survival_prob < 1:
            return stochastic_depth(hidden, images, self.survival_prob, noised)
        return hidden + images


class EfficientNet(nn.Module):
    """EfficientNet of any width and depth.

    Args:
        width, depth: compound scaling of b0's channels and repeats.
        num_classes: size of the output.
        dropout: probability of dropping a feature before the classifier (section 2: model noise).
        survival_prob: it falls linearly from 1 at the first block (section 3.1).
            paper: to 0.8 "for the final layer"; here: as in the authors' code, to this value at the
            block that would come after the last.
        small_images: strides of stages 2 and 3 become 1, for images of about 32x32.
        checkpoint_blocks: recompute each block in the backward pass instead of keeping its
            activations: about a third more work, and memory enough for L2.
    """

    def __init__(self, width: float, depth: float, num_classes: int = 1000, dropout: float = 0.2,
                 survival_prob: float = 0.8, small_images: bool = False,
                 checkpoint_blocks: bool = False):
        super().__init__()
        if not 0 < survival_prob <= 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"survival_prob must be in (0, 1] and dropout in [0, 1): got {survival_prob} and "
                f"{dropout} (survival_prob is the probability to keep, dropout the one to drop)"
            )
        self.depth, self.dropout = depth, dropout
        self.checkpoint_blocks = checkpoint_blocks
        self.frozen_stages = None  # how many of the first stages are fixed; None: nothing is

        channels = scale_channels(STEM_CHANNELS, width)
        self.stem, self.stem_norm = Conv2d(3, channels, 3, stride=2), batch_norm(channels)

        repeats = [math.ceil(stage.repeats * depth) for stage in STAGES]
        self.stages, index = nn.ModuleList(), 0
        for number, (stage, count) in enumerate(zip(STAGES, repeats, strict=True), start=1):
            outputs = scale_channels(stage.channels, width)
            blocks = nn.ModuleList()
            for repeat in range(count):
                stride = stage.stride if repeat == 0 else 1
                if small_images and number in (2, 3):
                    stride = 1
                # Linear decay. paper: 0.8 "for the final layer"; here as in the authors' code,
                # where block i of n, counted from 0, is dropped with probability 0.2 * i / n.
                survival = 1 - (1 - survival_prob) * index / sum(repeats)
                blocks.append(
                    Block(channels, outputs, stage.kernel, stride, stage.expansion, survival)
                )
                channels, index = outputs, index + 1
            self.stages.append(blocks)

        features = scale_channels(HEAD_CHANNELS, width)
        self.head, self.head_norm = Conv2d(channels, features, 1), batch_norm(features)
        self.classifier = nn.Linear(features, num_classes)
        self.apply(initialize)

    def forward(self, images: Tensor, noised: Tensor | None = None) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, 3, H, W).

        noised: (N,) bool; in training mode stochastic depth and dropout skip the images where it
        is False, while BatchNorm stays in training mode for all (the ablation of table 6).
        """
        hidden = swish(normalized(self.stem, self.stem_norm, images))
        for blocks in self.stages:
            for block in blocks:
                if self.checkpoint_blocks and self.training:
                    # A compiled network leaves the statistics alone by itself.
                    options = {} if torch.compiler.is_compiling() else {
                        "context_fn": partial(recomputation, block)}
                    hidden = checkpoint(block, hidden, noised, use_reentrant=False, **options)
                else:
                    hidden = block(hidden, noised)
        hidden = swish(normalized(self.head, self.head_norm, hidden))
        features = average(hidden)
        dropped = F.dropout(features, self.dropout, self.training)
        if noised is not None and self.training:
            dropped = torch.where(noised.view(-1, 1), dropped, features)
        return self.classifier(dropped)


    def frozen_layers(self) -> list[nn.Module]:
        """The layers that freeze_shallow has fixed."""
        if self.frozen_stages is None:
            return []
        return [self.stem, self.stem_norm, *self.stages[: self.frozen_stages]]

    def train(self, mode: bool = True) -> "EfficientNet":
        super().train(mode)
        for layer in self.frozen_layers():
            for module in layer.modules():
                if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
                    module.eval()
        return self


def recomputation(block: Block) -> tuple:
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


def initialize(module: nn.Module) -> None:
    """The published initialisation: what Kaiming calls fan-out, with a normal distribution."""
    if isinstance(module, nn.Conv2d):
        # A depthwise kernel has one output channel a group, as TensorFlow counts them.
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        # authors' code: 1 / sqrt(num_classes), 0.03 for ImageNet; here: never more than that. For
        # ten classes it would be 0.3, logits far from even, and thousands of steps to mend them.
        bound = 1 / math.sqrt(max(module.out_features, 1000))
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)


def efficientnet(name: str, num_classes: int = 1000, **overrides) -> EfficientNet:
    """EfficientNet by name ("b0" to "b7", "l0" to "l2", or "WIDTHxDEPTH").

    `overrides` are EfficientNet's other arguments; the head's dropout is the published one unless
    given. Raises ValueError for an unknown name.
    """
    width, depth, _, dropout = scaling(name)
    return EfficientNet(width, depth, num_classes, **{"dropout": dropout} | overrides)


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, frozen ones included, as the papers' "# Params" column counts them."""
    return sum(parameter.numel() for parameter in network.parameters())


def freeze_shallow(network: EfficientNet, stages: int) -> None:
    """Fix the stem and the first `stages` stages, for the resolution fix of section 3.1.

    Their parameters get no gradient, and their BatchNorm stays in evaluation mode even after
    `network.train()`: training it would move the statistics to the larger images after all.
    Raises ValueError for more stages than there are.
    """
    if not 0 <= stages <= len(STAGES):
        raise ValueError(f"{stages} stages cannot be fixed: there are {len(STAGES)}")
    network.requires_grad_(True)
    network.frozen_stages = stages
    for module in network.frozen_layers():
        module.requires_grad_(False)
    network.train(network.training)


# ------------------------------------------------------------------ published weights


def load_checkpoint(path: str | Path, arch: str | None = None) -> tuple[EfficientNet, dict]:
    """The network in a file, in evaluation mode, and what the file says of it.

    The file is a checkpoint of train.py, or released weights in PyTorch's or the safetensors
    format. It is read as data: no file can run code here.

    Args:
        arch: of released weights; checkpoints of train.py know theirs.

    Returns:
        The network, and its description: "arch", "image_size" (pixels), "classes" (names in the
        order of the logits, None if the file has none) and what else train.py stored.

    Raises:
        ValueError: the file is missing, broken, or does not fit; one line that says which.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no checkpoint {path}: train one with train.py")
    try:
        if Path(path).suffix == ".safetensors":
            contents = safetensors.torch.load_file(path)
        else:
            contents = torch.load(path, map_location="cpu", weights_only=True)
        if "meta" in contents:
            meta = json.loads(contents.pop("meta"))
            weights, config = contents.pop("model"), meta["config"]
            options = {key: config[key] for key in ("dropout", "survival_prob", "small_images")}
            known = {"arch": config["arch"], "image_size": config["image_size"]} | meta | contents
        else:
            weights, options = contents, {}
            if arch is None:
                raise ValueError("released weights; only a checkpoint of train.py names its model")
            known = {"arch": arch, "image_size": scaling(arch).resolution, "classes": None}
        num_classes = next(len(weights[key]) for key in CLASSIFIER_BIASES if key in weights)
        network = efficientnet(known["arch"], num_classes, **options)
        load_pretrained(network, weights)
    except Exception as error:  # a broken file, or one of another kind, raises nearly anything
        reason = " ".join(str(error).split()) if isinstance(error, ValueError) else "not one"
        raise ValueError(f"{path} cannot be read as a checkpoint ({reason})") from None
    return network.to(memory_format=torch.channels_last).eval(), known


CLASSIFIER_BIASES = ("classifier.bias", "classifier.1.bias")  # ours and timm's, torchvision's

# Regular expressions from a source's key to ours. In timm the blocks of stage 1, which have no
# expansion, are a class of their own in which the same names stand for other layers.
TIMM_NAMES = (
    (r"^conv_stem\.", "stem."),
    (r"^bn1\.", "stem_norm."),
    (r"^conv_head\.", "head."),
    (r"^bn2\.", "head_norm."),
    (r"^blocks\.(0\.\d+)\.conv_dw\.", r"stages.\1.depthwise."),
    (r"^blocks\.(0\.\d+)\.bn1\.", r"stages.\1.depthwise_norm."),
    (r"^blocks\.(0\.\d+)\.conv_pw\.", r"stages.\1.project."),
    (r"^blocks\.(0\.\d+)\.bn2\.", r"stages.\1.project_norm."),
    (r"^blocks\.(\d+\.\d+)\.conv_pw\.", r"stages.\1.expand."),
    (r"^blocks\.(\d+\.\d+)\.bn1\.", r"stages.\1.expand_norm."),
    (r"^blocks\.(\d+\.\d+)\.conv_dw\.", r"stages.\1.depthwise."),
    (r"^blocks\.(\d+\.\d+)\.bn2\.", r"stages.\1.depthwise_norm."),
    (r"^blocks\.(\d+\.\d+)\.se\.conv_reduce\.", r"stages.\1.squeeze."),
    (r"^blocks\.(\d+\.\d+)\.se\.conv_expand\.", r"stages.\1.excite."),
    (r"^blocks\.(\d+\.\d+)\.conv_pwl\.", r"stages.\1.project."),
    (r"^blocks\.(\d+\.\d+)\.bn3\.", r"stages.\1.project_norm."),
)
TORCHVISION_LAYERS = ("expand", "depthwise", "squeeze-and-excitation", "project")


def _from_torchvision(key: str) -> str:
    """Our name of a torchvision key: features.0 is the stem, 1 to 7 the stages, 8 the head."""
    key = re.sub(r"^classifier\.1\.", "classifier.", key)
    for number, name in (("0", "stem"), ("8", "head")):
        key = re.sub(rf"^features\.{number}\.0\.", f"{name}.", key)
        key = re.sub(rf"^features\.{number}\.1\.", f"{name}_norm.", key)
    match = re.match(r"features\.(\d)\.(\d+)\.block\.(\d)\.(\w+)\.(.*)", key)
    if not match:
        return key
    stage, block, layer, part, leaf = match.groups()
    layer = TORCHVISION_LAYERS[int(layer) + (stage == "1")]  # stage 1 has nothing to expand
    if part in ("fc1", "fc2"):
        layer = {"fc1": "squeeze", "fc2": "excite"}[part]
    else:
        layer += {"0": "", "1": "_norm"}[part]
    return f"stages.{int(stage) - 1}.{block}.{layer}.{leaf}"


def load_pretrained(network: EfficientNet, state_dict: Mapping[str, Tensor],
                    fresh_classifier: bool = False) -> EfficientNet:
    """Load weights of timm's tf_efficientnet_*, of torchvision's efficientnet_*, or our own.

    The source is recognised by its keys. BatchNorm's epsilon and the padding are set so that the
    model computes what the source computes: timm's `tf_` models are TensorFlow's (all released
    Noisy Student weights are among them), torchvision's pad symmetrically. These two are the
    model's, not its state dict's: to load torchvision's weights again, take its own file.

    Args:
        fresh_classifier: keep the model's own, untrained classifier, for another set of classes.

    Raises:
        ValueError: a name or a shape does not fit; the message names the first few.
    """
    epsilon, symmetric = NORM_EPSILON, False
    if "conv_stem.weight" in state_dict:
        renamed = {}
        for key, value in state_dict.items():
            for pattern, name in TIMM_NAMES:
                key, count = re.subn(pattern, name, key)
                if count:
                    break
            renamed[key] = value
    elif "features.0.0.weight" in state_dict:
        renamed = {_from_torchvision(key): value for key, value in state_dict.items()}
        symmetric = True
        if network.depth < SCALING["b5"].depth:  # torchvision's b5 to b7 are ported from TensorFlow
            epsilon = 1e-5
    else:
        renamed = dict(state_dict)

    own = network.state_dict()
    if fresh_classifier:
        for key in ("classifier.weight", "classifier.bias"):
            renamed[key] = own[key]
    problems = [f"{key} is missing" for key in own.keys() - renamed.keys()]
    problems += [f"{key} is unknown" for key in renamed.keys() - own.keys()]
    problems += [
        f"{key} is {tuple(renamed[key].shape)}, not {tuple(own[key].shape)}"
        for key in own.keys() & renamed.keys() if own[key].shape != renamed[key].shape
    ]
    if problems:
        hint = ""
        if any("classifier.weight is (" in problem for problem in problems):
            hint = " (another number of classes needs fresh_classifier=True)"
        raise ValueError(
            f"the weights do not fit the model in {len(problems)} places{hint}: "
            + "; ".join(sorted(problems)[:4])
        )
    network.load_state_dict(renamed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = epsilon
        elif isinstance(module, Conv2d):
            module.symmetric = symmetric
    return network
