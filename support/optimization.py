"""RMSProp as in TensorFlow, the average of the weights, and the best average so far."""

import copy

import torch
from torch import nn


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp as in TensorFlow, which EfficientNet's recipe relies on.

    Unlike torch.optim.RMSprop, epsilon is inside the square root, the average of squares starts
    at one, and the learning rate is inside the momentum buffer:

        square  <- decay * square + (1 - decay) * gradient^2
        buffer  <- momentum * buffer + lr * gradient / sqrt(square + eps)
        weight  <- weight - buffer

    `weight_decay` is an L2 penalty in the loss: it adds weight_decay * weight to the gradient.
    """

    def __init__(self, params, lr: float = 0.016, decay: float = 0.9, momentum: float = 0.9,
                 eps: float = 1e-3, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, decay=decay, momentum=momentum, eps=eps,
                                      weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:
        """One update; each operation takes all weights together, which suits a GPU."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight] |= {"square": torch.ones_like(weight),
                                           "buffer": torch.zeros_like(weight)}

            gradients = [weight.grad for weight in weights]
            squares = [self.state[weight]["square"] for weight in weights]
            buffers = [self.state[weight]["buffer"] for weight in weights]
            if group["weight_decay"]:
                gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])

            torch._foreach_mul_(squares, group["decay"])
            torch._foreach_addcmul_(squares, gradients, gradients, 1 - group["decay"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_addcdiv_(buffers, gradients, roots, group["lr"])
            torch._foreach_sub_(weights, buffers)


def make_optimizer(network: nn.Module, config) -> torch.optim.Optimizer:
    """The optimizer of a train.TrainConfig; weight decay on everything but BatchNorm."""
    decayed, plain = [], []
    for module in network.modules():
        group = plain if isinstance(module, nn.BatchNorm2d) else decayed
        group.extend(module.parameters(recurse=False))
    groups = [{"params": decayed, "weight_decay": config.weight_decay},
              {"params": plain, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=config.momentum,
                               nesterov=config.momentum > 0, foreach=True)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=1.0, betas=(config.momentum, 0.999), foreach=True)
    return RMSpropTF(groups, lr=1.0, momentum=config.momentum)


class ModelEMA:
    """Exponential moving average of weights and BatchNorm statistics.

    `network` holds the average, in evaluation mode: it is evaluated and saved, and it labels.
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Average in the weights after step t (from 0), with decay min(d, (2 + t) / (11 + t))."""
        # authors: min(d, (1 + t) / (10 + t)), where TensorFlow counts the steps from 1.
        decay = min(self.decay, (2 + step) / (11 + step))
        averages, values = [], []
        for average, value in zip(self.network.state_dict().values(),
                                  network.state_dict().values(), strict=True):
            if value.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)  # BatchNorm's count of batches
        torch._foreach_lerp_(averages, values, 1 - decay)


class Best:
    """The averaged weights with the best validation accuracy (ties: the latest).

    Without a validation set every offer is the best, so the last one stays.
    """

    def __init__(self) -> None:
        self.kept = {"val_top1": None, "step": None, "model": None}

    def offer(self, top1: float | None, network: torch.nn.Module, step: int) -> None:
        """Keep a copy of this step's weights if `top1` (percent) is at least the best so far."""
        if top1 is None or self.kept["val_top1"] is None or top1 >= self.kept["val_top1"]:
            self.kept = {"val_top1": top1, "step": step, "model": {
                name: value.to("cpu", copy=True) for name, value in network.state_dict().items()}}

    def state_dict(self) -> dict:
        return self.kept

    def load_state_dict(self, state: dict) -> None:
        self.kept = state
