"""EfficientNet: published sizes, and noise that means what the paper says."""

import dataclasses
import json
import math

import pytest
import timm
import torch

import model
from support import InputError

PUBLISHED = {  # parameters at 1000 classes, EfficientNet's repository and timm
    "b0": 5_288_548, "b1": 7_794_184, "b2": 9_109_994, "b3": 12_233_232, "b4": 19_341_616,
    "b5": 30_389_784, "b6": 43_040_704, "b7": 66_347_960, "l2": 480_309_308,
}
TINY = {"width": 0.25, "depth": 0.5, "num_classes": 10, "small_images": True}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_parameter_count_is_the_published_one(name, parameters):
    with torch.device("meta"):
        assert model.count_parameters(model.efficientnet(name)) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("l0", 140e6), ("l1", 273e6)])
def test_l0_and_l1_have_about_the_published_size(name, parameters):
    with torch.device("meta"):
        count = model.count_parameters(model.efficientnet(name))
    assert abs(count / parameters - 1) < 0.01


def randomise(network):
    """Random parameters and statistics of BatchNorm, so that a wrong epsilon, padding or layer
    shows. The statistics are near those of images, which else fade on their way to the logits.
    """
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momentum = norms[0].momentum
    for norm in norms:
        norm.weight.data.uniform_(0.5, 1.0)
        norm.bias.data.normal_(0, 0.1)
        norm.momentum = 1.0  # takes the statistics of the next batch
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 64, 64))
    for norm in norms:
        noise = torch.randn_like(norm.running_mean)
        norm.running_mean.addcmul_(noise, norm.running_var.sqrt(), value=0.1)
        norm.running_var.mul_(torch.empty_like(noise).uniform_(0.9, 1.4))
        norm.momentum = momentum
    return network


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 4), (4, 2), (3, 5), (4, 4), (8, 8), (9, 8)])
def test_a_convolution_pads_as_tensorflow_on_small_and_large_maps(size, stride, kernel):
    torch.manual_seed(0)
    ours = model.Conv2d(6, 6, kernel, stride, groups=6).double()
    images = torch.randn(3, 6, *size, dtype=torch.double, requires_grad=True)
    inputs = (images, ours.weight)
    for symmetric in (False, True):
        ours.symmetric = symmetric
        if symmetric:
            expected = torch.nn.functional.conv2d(images, ours.weight, None, stride, kernel // 2,
                                                  groups=6)
        else:
            expected = timm.layers.conv2d_same(images, ours.weight, stride=(stride, stride),
                                               groups=6)
        result = ours(images)
        cotangent = torch.randn_like(expected)
        torch.testing.assert_close(result, expected)
        for mine, general in zip(torch.autograd.grad(result, inputs, cotangent),
                                 torch.autograd.grad(expected, inputs, cotangent), strict=True):
            torch.testing.assert_close(mine, general)
        with torch.no_grad():  # without a backward pass the kernel is padded, not the map
            torch.testing.assert_close(ours(images), expected)


def test_gradients_and_running_statistics_equal_timm_in_training_mode_without_noise():
    torch.manual_seed(0)
    source = randomise(timm.create_model("tf_efficientnet_b0", drop_rate=0, drop_path_rate=0))
    for module in source.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.01  # timm keeps PyTorch's 0.1 unless told
    ours = model.efficientnet("b0", dropout=0.0, survival_prob=1.0)
    model.load_pretrained(ours, source.state_dict())
    # In double precision: BatchNorm over few pixels magnifies float32's rounding.
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    outputs = []
    for network in (source, ours):
        logits = network.double().train()(images)
        logits.square().mean().backward()
        outputs.append(logits.detach())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    after = model.efficientnet("b0").double()
    model.load_pretrained(after, source.state_dict())
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, after.state_dict()[key], rtol=1e-9, atol=1e-9)
    theirs = model.efficientnet("b0").double()  # carries timm's gradients under our names
    gradients = {key: value.grad for key, value in source.named_parameters()}
    gradients |= {key: value for key, value in source.state_dict().items() if key not in gradients}
    model.load_pretrained(theirs, gradients)
    for (key, value), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        scale = expected.norm().clamp_min(1e-9)
        assert (value.grad - expected).norm() / scale < 1e-6, key


def test_training_in_bfloat16_on_a_cpu_is_training_in_float32_but_for_rounding():
    torch.manual_seed(0)
    network = model.EfficientNet(**TINY, dropout=0.0, survival_prob=1.0).train()
    images, gradients = torch.randn(16, 3, 32, 32), []
    for half in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = network(images)
        logits.float().square().sum().backward()
        gradients.append(network.stages[1][0].expand.weight.grad.flatten())
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98


def test_survival_falls_linearly_from_one_to_the_last_block():
    network = model.efficientnet("b0", survival_prob=0.8)
    survival = [block.survival_prob for stage in network.stages for block in stage]
    assert survival == pytest.approx([1 - 0.2 * i / 16 for i in range(16)])


def test_every_block_of_a_network_keeps_as_many_branches_as_its_survival_probability_says():
    torch.manual_seed(0)
    count = 2000
    network = model.EfficientNet(0.5, 1.0, 10, survival_prob=0.5).train()
    blocks = [block for stage in network.stages for block in stage]
    assert sum(block.residual for block in blocks) == 9  # b0's: the others have no shortcut
    for index, block in enumerate(blocks):
        images = torch.randn(count, (block.expand or block.depthwise).in_channels, 2, 2)
        result = block(images)
        if not block.residual:
            continue
        survived = (result != images).flatten(1).any(1).double()
        expected = 1 - 0.5 * index / 16
        deviation = math.sqrt(expected * (1 - expected) / count)
        assert abs(survived.mean().item() - expected) < 4.5 * deviation, index
        # Neighbours in the batch are dropped independently of each other.
        both = (survived[1:] * survived[:-1]).mean().item()
        assert abs(both - expected**2) < 0.06, index


def test_stochastic_depth_drops_the_branch_of_each_image_on_its_own():
    torch.manual_seed(0)
    branch, shortcut = torch.ones(4000, 1, 1, 1), torch.full((4000, 1, 1, 1), 2.0)
    result = model.stochastic_depth(branch, shortcut, 0.8, None).flatten()
    kept = (result > 2).double().mean().item()
    assert set(result.unique().tolist()) == {2.0, 3.25}  # survivors are divided by 0.8
    assert abs(kept - 0.8) < 4 * math.sqrt(0.8 * 0.2 / 4000)


def test_no_gradient_reaches_a_dropped_branch():
    torch.manual_seed(0)
    branch = torch.ones(100, 1, 1, 1, requires_grad=True)
    result = model.stochastic_depth(branch, torch.zeros(100, 1, 1, 1), 0.5, None)
    result.sum().backward()
    assert torch.equal(branch.grad.flatten() > 0, result.flatten() > 0)
    assert 20 < (branch.grad == 0).sum() < 80


def test_images_that_are_not_noised_keep_branch_and_features():
    torch.manual_seed(0)
    network = model.EfficientNet(**TINY, dropout=0.5, survival_prob=0.5).train()
    image = torch.randn(1, 3, 32, 32).expand(64, -1, -1, -1).clone()
    noised = torch.arange(64) < 32
    logits = network(image, noised)
    # Without noise, equal images differ only through nothing at all.
    assert torch.equal(logits[32:], logits[32:33].expand(32, -1))
    assert logits[:32].std(0).max() > 0.01


def test_batch_norm_stays_in_training_mode_for_images_without_noise():
    torch.manual_seed(0)
    network = model.EfficientNet(**TINY).train()
    before = network.stem_norm.running_mean.clone()
    network(torch.randn(8, 3, 32, 32), torch.zeros(8, dtype=torch.bool))
    assert not torch.equal(network.stem_norm.running_mean, before)


def test_evaluation_mode_has_no_noise():
    network = model.EfficientNet(**TINY, dropout=0.9, survival_prob=0.1).eval()
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(network(images), network(images))


def test_frozen_shallow_layers_do_not_move_in_training():
    network = model.EfficientNet(**TINY)
    model.freeze_shallow(network, stages=2)
    network.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network(torch.randn(4, 3, 32, 32)).sum().backward()
    assert network.stem.weight.grad is None and network.stages[1][0].project.weight.grad is None
    assert network.head.weight.grad is not None
    after = network.state_dict()
    assert torch.equal(after["stem_norm.running_mean"], before["stem_norm.running_mean"])
    assert not torch.equal(after["head_norm.running_mean"], before["head_norm.running_mean"])


def test_frozen_blocks_are_not_dropped_and_free_ones_are():
    """The authors switch stochastic depth off where layers are fixed."""
    network = model.EfficientNet(0.25, 2.0, num_classes=5, survival_prob=0.01).train()
    model.freeze_shallow(network, stages=5)
    hidden = {}
    for number in (4, 6):  # blocks with a residual connection
        block = network.stages[number][-1]
        assert block.residual and block.survival_prob < 0.7
        images = torch.randn(6, block.project.out_channels, 4, 4)
        twice = [block(images) for _ in range(2)]
        hidden[number] = torch.equal(*twice) and torch.equal(twice[0], block.eval()(images))
    assert hidden == {4: True, 6: False}


def test_fixing_fewer_layers_later_frees_the_others():
    network = model.EfficientNet(**TINY).train()
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())
    model.freeze_shallow(network, stages=5)
    model.freeze_shallow(network, stages=1)
    assert network.stages[1][0].project.weight.requires_grad
    assert network.stages[1][0].project_norm.training
    assert not network.stages[0][0].project.weight.requires_grad
    assert not network.stages[0][0].project_norm.training and not network.stem_norm.training
    model.freeze_shallow(network, stages=0)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())
    with pytest.raises(InputError, match="there are 7"):
        model.freeze_shallow(network, stages=8)


def test_weights_start_as_published():
    torch.manual_seed(0)
    network = model.efficientnet("b0")
    block = network.stages[5][1]
    for layer, fan_out in ((network.head, 1280), (block.expand, 1152), (block.depthwise, 25),
                           (block.squeeze, 48), (block.project, 192)):
        expected = math.sqrt(2 / fan_out)
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.03), layer
        assert abs(layer.weight.mean().item()) < 0.03 * expected
    bound = 1 / math.sqrt(1000)
    largest = network.classifier.weight.abs().max().item()
    assert 0.99 * bound < largest <= bound and network.classifier.bias.abs().max() == 0
    assert model.efficientnet("b0", 10).classifier.weight.abs().max() <= bound


@pytest.mark.parametrize("name", ["b9", "resnet50", "0x1", "1.0x", ""])
def test_an_unknown_architecture_is_an_error_that_lists_the_known(name):
    with pytest.raises(InputError, match="b0, b1"):
        model.efficientnet(name)


@pytest.mark.parametrize("wrong", [{"survival_prob": 0.0}, {"dropout": 1.0}])
def test_a_drop_rate_in_the_place_of_a_survival_probability_is_refused(wrong):
    with pytest.raises(InputError, match="survival_prob is the probability of keeping"):
        model.EfficientNet(**TINY, **wrong)


CONFIG = {"arch": "0.25x0.5", "image_size": 48, "dropout": 0.3, "survival_prob": 0.6,
          "small_images": True, "rand_augment_operations": 2, "rand_augment_magnitude": 9.0,
          "epochs": 3.0}


def test_a_checkpoint_of_train_py_is_the_network_that_was_saved(tmp_path):
    torch.manual_seed(0)
    network = randomise(model.EfficientNet(**TINY)).eval()
    meta = {"config": CONFIG, "classes": [*"abcdefghij"], "name": "teacher"}
    torch.save({"meta": json.dumps(meta), "model": network.state_dict(), "val_top1": 71.5,
                "step": 8}, tmp_path / "teacher.pt")
    chance = torch.random.get_rng_state()
    checkpoint = model.Checkpoint.load(tmp_path / "teacher.pt", "b7")  # which knows its own
    assert torch.equal(torch.random.get_rng_state(), chance)
    loaded, images = checkpoint.network(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), network(images), rtol=1e-4, atol=1e-5)
    assert not loaded.training
    assert loaded.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert loaded.stages[-1][-1].survival_prob == pytest.approx(1 - 0.4 * 9 / 10)
    assert loaded.dropout == 0.3
    rest = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    assert rest.pop("weights").keys() == network.state_dict().keys()
    assert rest == {
        "arch": "0.25x0.5", "image_size": 48, "classes": tuple("abcdefghij"), "dropout": 0.3,
        "survival_prob": 0.6, "small_images": True, "rand_augment": (2, 9.0), "val_top1": 71.5,
        "conventions": (False, 1e-3, False),
    }
    loaded.stem.weight.data.zero_()
    assert torch.equal(checkpoint.network().stem.weight, network.stem.weight)


def test_a_missing_or_unfinished_checkpoint_is_an_error_of_one_line(tmp_path):
    missing = "there is no checkpoint .*teacher.pt: train one .* released weights$"
    with pytest.raises(InputError, match=missing):
        model.Checkpoint.load(tmp_path / "teacher.pt")
    meta = json.dumps({"config": CONFIG, "classes": ["a"]})
    torch.save({"meta": meta, "step": 3, "network": {}}, tmp_path / "teacher.resume")
    (tmp_path / "broken.pt").write_bytes(b"nonsense")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    for name in ("teacher.resume", "broken.pt", "broken.safetensors"):
        with pytest.raises(InputError, match=f"{name} cannot be read as a checkpoint") as error:
            model.Checkpoint.load(tmp_path / name, "b0")
        assert "\n" not in str(error.value)
        assert ("the state of a training" in str(error.value)) == (name == "teacher.resume")


def test_small_images_keep_their_resolution_in_stages_2_and_3():
    """Seen in the maps: 32x32 images are halved by the stem, stage 4 and stage 6 alone."""
    sides = {}
    for small in (False, True):
        network = model.EfficientNet(0.25, 0.5, small_images=small).eval()
        for stage in network.stages:
            stage[-1].register_forward_hook(
                lambda _, __, maps, small=small: sides.setdefault(small, []).append(maps.shape[-1]))
        network(torch.zeros(1, 3, 32, 32))
    assert sides == {False: [16, 8, 4, 2, 2, 1, 1], True: [16, 16, 16, 8, 8, 4, 4]}


def test_dropout_drops_features_of_noised_images_before_the_classifier():
    network = model.EfficientNet(0.25, 0.5, num_classes=7, dropout=0.75, survival_prob=1.0).train()
    seen = []
    network.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    images, noised = torch.randn(6, 3, 32, 32), torch.arange(6) < 3
    network(images, noised)
    dropped = (seen[0] == 0).float().mean(1)
    assert ((dropped[:3] > 0.6) & (dropped[:3] < 0.9)).all() and (dropped[3:] < 0.01).all()
    network(images, torch.zeros(6, dtype=torch.bool))
    kept = seen[0][:3] != 0
    torch.testing.assert_close(seen[0][:3][kept], 4 * seen[1][:3][kept])  # over 1 - 0.75
