"""RMSProp, weight decay, the average of the weights, and the best average so far."""

import dataclasses

import pytest
import torch
from tiny import TINY

import model
import train
from support import optimization


def test_ema_equals_its_closed_form_for_weights_and_batch_norm_statistics():
    network = model.efficientnet("0.25x0.34", 10)
    average = train.ModelEMA(network, decay=0.6)
    weight, mean = network.classifier.weight, network.stem_norm.running_mean
    expected = [weight.detach().double().clone(), mean.double().clone()]
    for step in range(8):
        weight.data.normal_()
        mean.normal_()
        network.stem_norm.num_batches_tracked += 1
        decay = min(0.6, (2 + step) / (11 + step))  # TensorFlow counts the steps from 1
        expected = [decay * old + (1 - decay) * new.detach().double()
                    for old, new in zip(expected, (weight, mean), strict=True)]
        average.update(network, step)
    torch.testing.assert_close(
        average.network.classifier.weight.double(), expected[0], rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        average.network.stem_norm.running_mean.double(), expected[1], rtol=1e-4, atol=1e-6
    )
    assert average.network.stem_norm.num_batches_tracked == 8


@pytest.mark.parametrize("kind", ["rmsprop", "sgd", "adamw"])
def test_weight_decay_is_on_everything_but_batch_norm(kind):
    network = model.efficientnet("0.25x0.34", 10)
    config = dataclasses.replace(TINY, optimizer=kind)
    decayed, plain = optimization.make_optimizer(network, config).param_groups
    norms = {id(parameter) for module in network.modules()
             if isinstance(module, torch.nn.BatchNorm2d) for parameter in module.parameters()}
    assert {id(parameter) for parameter in plain["params"]} == norms
    assert len(plain["params"]) + len(decayed["params"]) == len(list(network.parameters()))
    assert plain["weight_decay"] == 0 and decayed["weight_decay"] == TINY.weight_decay


@pytest.mark.parametrize(("kind", "cls", "momentum"), [
    ("rmsprop", train.RMSpropTF, "momentum"), ("sgd", torch.optim.SGD, "momentum"),
    ("adamw", torch.optim.AdamW, "betas"),
])
def test_each_optimizer_gets_its_momentum(kind, cls, momentum):
    config = dataclasses.replace(TINY, optimizer=kind, momentum=0.7)
    optimizer = optimization.make_optimizer(torch.nn.Linear(2, 2), config)
    assert type(optimizer) is cls
    assert optimizer.param_groups[0][momentum] == ((0.7, 0.999) if kind == "adamw" else 0.7)


def offer(best, network, value, top1, step):
    network.weight.data.fill_(value)
    best.offer(top1, network, step)


def test_the_best_average_stays_and_of_equals_the_latest():
    best, network = optimization.Best(), torch.nn.Linear(2, 2)
    for value, top1, step in ((1, 50.0, 9), (2, 70.0, 19), (3, 60.0, 29)):
        offer(best, network, value, top1, step)
    assert (best.kept["val_top1"], best.kept["step"]) == (70.0, 19)
    assert best.kept["model"]["weight"].eq(2).all()  # a copy: the network has moved on
    offer(best, network, 4, 70.0, 39)
    assert best.kept["step"] == 39 and best.kept["model"]["weight"].eq(4).all()


def test_without_a_validation_set_the_last_average_stays():
    best, network = optimization.Best(), torch.nn.Linear(2, 2)
    for step in (9, 19):
        offer(best, network, step, None, step)
    assert best.kept["val_top1"] is None and best.kept["step"] == 19
    assert best.kept["model"]["weight"].eq(19).all()


def test_the_best_average_goes_through_a_state():
    best, network, resumed = optimization.Best(), torch.nn.Linear(2, 2), optimization.Best()
    offer(best, network, 1, 50.0, 9)
    resumed.load_state_dict(best.state_dict())
    offer(resumed, network, 2, 40.0, 19)  # worse than before the interruption
    assert resumed.kept["step"] == 9 and resumed.kept["model"]["weight"].eq(1).all()
