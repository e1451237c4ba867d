"""EfficientNet, the network of teacher and student; its noise can be switched off per image.

Noisy Student Training (section 3.1, "Architecture") takes EfficientNet (Tan & Le, 2019) as it is;
its stochastic depth and its dropout are the two kinds of model noise of section 2.

Every size is b0 at another width, depth and resolution ("compound scaling"). b0 at 224x224:

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

Stage 1 has no expansion. BatchNorm follows all convolutions but squeeze and excite, which have
a bias; swish follows BatchNorm, except the projection's, and squeeze; a sigmoid follows excite.

Here and in the other files `# paper: ...` and `# authors: ...` (their code) say what is published;
`here: ...` says what differs, mostly with the reason. support/kernels.py: faster equivalents.
"""

import math
import re
from collections import namedtuple
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support import InputError, weights
from support.kernels import average, conv_norm, conv_norm_swish, padded_conv, recompute, swish

# Compound scaling of b0: two factors, the training resolution (pixels), the head's dropout.
# b0 to b7 as EfficientNet's authors released them; l2: this paper; l0, l1: its first version.
Scaling = namedtuple("Scaling", "width depth resolution dropout")
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

# EfficientNet's table 1, before scaling: blocks, kernel, first stride, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# TensorFlow calls this momentum 0.99: the share of the old average that is kept.
# authors: the running variance is divided by the count; here: by count - 1, as in PyTorch.
BatchNorm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)


def scaling(arch: str) -> Scaling:
    """The scaling of a published name, or of any other size, as "WIDTHxDEPTH" ("0.35x0.5").

    The latter has 32 pixels and the smallest published dropout, 0.2. Other names: InputError.
    """
    if arch in SCALING:
        return SCALING[arch]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?)", arch)
    if match and float(match[1]) > 0 and float(match[2]) > 0:
        return Scaling(float(match[1]), float(match[2]), 32, 0.2)
    raise InputError(f"unknown architecture {arch!r}: use one of {', '.join(SCALING)}, or "
                     "WIDTHxDEPTH, for example 0.35x0.5")


def scale_channels(channels: int, width: float) -> int:
    """channels * width as a multiple of 8 (at least 8), never down by more than 10 %."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


# ---- The block ----


def stochastic_depth(branch: Tensor, shortcut: Tensor, survival_prob: float,
                     noised: Tensor | None) -> Tensor:
    """shortcut + branch (N, C, H, W), the branch of each image kept with survival_prob.

    A branch that survives is divided by survival_prob, so the sum's expectation does not change
    (Huang et al., 2016). Where noised (N,) is False the branch stays as it is; None: all noised.
    """
    survives = torch.rand(len(branch), 1, 1, 1, device=branch.device) < survival_prob
    scale = survives.to(branch.dtype) / survival_prob
    if noised is not None:
        scale = scale.masked_fill(~noised.view(-1, 1, 1, 1), 1)
    return torch.addcmul(shortcut, branch, scale)


class Conv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding and no bias, as in the original EfficientNet."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.symmetric = False  # True: kernel // 2 zeros on every side, as in torchvision

    def forward(self, images: Tensor, weight: Tensor | None = None,
                bias: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'); weight, bias (C',): with a BatchNorm folded in."""
        kernel, stride, padding = self.kernel_size[0], self.stride[0], []
        for size in (images.shape[3], images.shape[2]):  # left and right, top and bottom
            # SAME: ceil(size / stride) windows, and just the zeros that the last one needs. If
            # their number is odd, as at stride 2 for an even size, the extra one goes to the end.
            zeros = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            padding += [kernel // 2] * 2 if self.symmetric else [zeros // 2, zeros - zeros // 2]
        weight = self.weight if weight is None else weight
        # The same as F.conv2d(F.pad(images, padding), weight, bias, stride, groups=self.groups).
        return padded_conv(images, weight, bias, stride, padding, self.groups)


class Block(nn.Module):
    """Mobile inverted bottleneck with squeeze-and-excitation: (N, C, H, W) -> (N, C', H', W')."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int,
                 survival_prob: float):
        super().__init__()
        hidden, squeezed = inputs * expansion, max(1, inputs // 4)  # inputs / 4, not hidden / 4
        self.residual = stride == 1 and inputs == outputs
        self.survival_prob = survival_prob
        self.expand = Conv2d(inputs, hidden, 1) if expansion > 1 else None
        self.expand_norm = BatchNorm(hidden) if expansion > 1 else None
        self.depthwise = Conv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.depthwise_norm = BatchNorm(hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, squeezed, 1), nn.Conv2d(squeezed, hidden, 1)
        self.project, self.project_norm = Conv2d(hidden, outputs, 1), BatchNorm(outputs)

    def forward(self, images: Tensor, noised: Tensor | None = None) -> Tensor:
        hidden = images
        if self.expand is not None:  # lean: keeps fewer of its large maps for the backward pass
            hidden = conv_norm_swish(hidden, self.expand, self.expand_norm, lean=True)
        hidden = conv_norm_swish(hidden, self.depthwise, self.depthwise_norm)
        gate = average(hidden)[..., None, None]  # (N, hidden, 1, 1)
        gate = self.excite(swish(self.squeeze(gate))).sigmoid()
        hidden = conv_norm(hidden * gate, self.project, self.project_norm)
        if self.residual and self.training and self.survival_prob < 1:
            return stochastic_depth(hidden, images, self.survival_prob, noised)
        return hidden + images if self.residual else hidden


# ---- The network ----


class EfficientNet(nn.Module):
    """EfficientNet of any width and depth.

    Args:
        width, depth: factors by which b0's channels and its blocks are multiplied.
        dropout: probability of dropping a feature before the classifier (section 2).
        survival_prob: probability of keeping a branch (section 2, stochastic depth). It falls
            linearly: 1 at the first block, and this value where one after the last would be.
        small_images: strides of stages 2 and 3 become 1, for images of about 32x32.
        checkpoint_blocks: recompute each block in the backward pass instead of keeping its
            activations: costs about a third more compute, and saves most of the memory.
    """

    def __init__(self, width: float, depth: float, num_classes: int = 1000, dropout: float = 0.2,
                 survival_prob: float = 0.8, small_images: bool = False,
                 checkpoint_blocks: bool = False):
        super().__init__()
        if not 0 < survival_prob <= 1 or not 0 <= dropout < 1:
            raise InputError("survival_prob is the probability of keeping a branch, in (0, 1], and "
                             f"dropout of losing a feature, [0, 1): not {survival_prob}, {dropout}")
        self.dropout, self.checkpoint_blocks = dropout, checkpoint_blocks
        channels = scale_channels(32, width)
        self.stem, self.stem_norm = Conv2d(3, channels, 3, stride=2), BatchNorm(channels)

        self.stages, index = nn.ModuleList(), 0
        total = sum(math.ceil(count * depth) for count, *_ in STAGES)
        for number, (count, kernel, stride, expansion, outputs) in enumerate(STAGES, start=1):
            blocks, outputs = nn.ModuleList(), scale_channels(outputs, width)
            stride = 1 if small_images and number in (2, 3) else stride
            for _ in range(math.ceil(count * depth)):
                # paper: 0.8 "for the final layer", linear decay; here: as in the authors' code,
                # which drops block i of n, counted from 0, with probability 0.2 * i / n.
                survival = 1 - (1 - survival_prob) * index / total
                blocks.append(Block(channels, outputs, kernel, stride, expansion, survival))
                channels, stride, index = outputs, 1, index + 1
            self.stages.append(blocks)

        features = scale_channels(1280, width)
        self.head, self.head_norm = Conv2d(channels, features, 1), BatchNorm(features)
        self.classifier = nn.Linear(features, num_classes)
        self.apply(initialize)

    def forward(self, images: Tensor, noised: Tensor | None = None) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, 3, H, W).

        noised: (N,) bool; in training mode stochastic depth and dropout spare the images where it
        is False, while BatchNorm stays in training mode for all (the ablation of table 6).
        """
        recomputes = self.checkpoint_blocks and self.training
        hidden = conv_norm_swish(images, self.stem, self.stem_norm)
        for block in chain(*self.stages):
            hidden = recompute(block, hidden, noised) if recomputes else block(hidden, noised)
        hidden = conv_norm_swish(hidden, self.head, self.head_norm)
        features = average(hidden)
        dropped = F.dropout(features, self.dropout, self.training)
        if noised is not None and self.training:
            dropped = torch.where(noised.view(-1, 1), dropped, features)
        return self.classifier(dropped)

    def train(self, mode: bool = True) -> "EfficientNet":
        """Set the mode; what freeze_shallow has frozen stays in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, Block | nn.BatchNorm2d | nn.SyncBatchNorm):
                module.training = mode and next(module.parameters()).requires_grad
        return self


def initialize(module: nn.Module) -> None:
    """The published initialisation: normal, with variance 2 / fan-out (He et al.)."""
    if isinstance(module, nn.Conv2d):
        # As in TensorFlow, the outputs are those of one group: a depthwise kernel has one.
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    elif isinstance(module, nn.Linear):
        # authors: 1 / sqrt(num_classes), 0.03 for ImageNet; here: at most 0.03. For ten classes
        # theirs would be 0.3, with predictions far from uniform for thousands of steps.
        bound = 1 / math.sqrt(max(module.out_features, 1000))
        nn.init.uniform_(module.weight, -bound, bound)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def efficientnet(name: str, num_classes: int = 1000, **overrides) -> EfficientNet:
    """EfficientNet by name ("b0" to "b7", "l0" to "l2", or "WIDTHxDEPTH"), else InputError.

    `overrides` are EfficientNet's other arguments; dropout is the published one unless given.
    """
    width, depth, _, dropout = scaling(name)
    return EfficientNet(width, depth, num_classes, **{"dropout": dropout} | overrides)


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, frozen ones included, as the papers' "# Params" column counts them."""
    return sum(parameter.numel() for parameter in network.parameters())


def freeze_shallow(network: EfficientNet, stages: int) -> None:
    """Freeze the stem and the first `stages` stages, for the resolution fix of section 3.1.

    Their parameters get no gradient, and they stay in evaluation mode even after
    `network.train()`: no stochastic depth, and BatchNorm's statistics stay as they were trained.
    All other layers learn. With 0 stages nothing is frozen. InputError for more than 7.
    """
    if not 0 <= stages <= len(STAGES):
        raise InputError(f"{stages} stages cannot be frozen: there are {len(STAGES)}")
    network.requires_grad_(True)
    for layer in (network.stem, network.stem_norm, *network.stages[:stages]) if stages else ():
        layer.requires_grad_(False)
    network.train(network.training)


def load_pretrained(network: EfficientNet, state_dict: dict[str, Tensor],
                    fresh_classifier: bool = False,
                    conventions: weights.Conventions | None = None) -> EfficientNet:
    """Load weights of timm's tf_efficientnet_*, of torchvision's efficientnet_*, or our own.

    The state dict does not say how the network pads and normalises: `conventions` does, by
    default those of the source that the keys imply. `fresh_classifier` keeps the network's own,
    untrained classifier, for other classes. InputError where a name or a shape does not fit.
    """
    own, given = network.state_dict(), weights.our_names(state_dict)
    if fresh_classifier:
        given |= {key: own[key] for key in ("classifier.weight", "classifier.bias")}
    weights.copy_weights(given, own)  # from `given` into the network
    return weights.imitate(network, conventions or weights.known_conventions(state_dict))


@dataclass(frozen=True)
class Checkpoint:
    """A trained network, as stored in a file: a checkpoint of train.py, or released weights."""

    arch: str  # b0 to b7, l0 to l2, or WIDTHxDEPTH
    image_size: int  # pixels
    classes: tuple[str, ...] | None  # in the order of the logits; None: not known
    weights: dict[str, Tensor]  # named as in their source
    dropout: float
    survival_prob: float = 0.8
    small_images: bool = False
    rand_augment: tuple[int, float] = (0, 0.0)  # operations and magnitude; unknown: none
    val_top1: float | None = None  # percent
    conventions: weights.Conventions = weights.Conventions()  # how its network pads and normalises

    @classmethod
    def load(cls, path: str | Path, arch: str | None = None) -> "Checkpoint":
        """Read a file as data, without running code; released weights need their `arch`.

        InputError if the file is missing, broken or does not fit: one line says which.
        """
        with weights.read_checkpoint(path, arch) as fields:  # what fails in here is an InputError
            _, _, resolution, dropout = scaling(fields["arch"])
            checkpoint = cls(**{"image_size": resolution, "dropout": dropout} | fields)
            with torch.device("meta"):  # computes nothing, but compares names and shapes
                checkpoint.network()
        return checkpoint

    def network(self) -> EfficientNet:
        """The network with these weights, in evaluation mode."""
        num_classes = len(weights.our_names(self.weights)["classifier.bias"])
        network = efficientnet(self.arch, num_classes, dropout=self.dropout,
                               survival_prob=self.survival_prob, small_images=self.small_images)
        load_pretrained(network, self.weights, conventions=self.conventions)
        return network.to(memory_format=torch.channels_last).eval()
