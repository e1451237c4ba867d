"""Starting from released weights: what their networks compute survives training and files."""

import dataclasses
import functools
import json
from unittest import mock

import pytest
import safetensors.torch
import timm
import tiny
import torch
import torchvision
from doubles import planned, write_folders
from test_model import randomise

import augment
import iterate
import model
import pseudo_label
import train
from support import InputError, cli, devices, files, plans, runs, weights
from support.images import ImageSet

WNIDS = tuple(weights.IMAGENET["wnids"])
STILL = dataclasses.replace(
    tiny.TINY, learning_rate=0.0, weight_decay=0.0, epochs=1, unlabeled_ratio=0, crops="cifar",
    rand_augment_operations=0)
AP = {"architecture": "tf_efficientnet_b0", "pretrained_cfg": {"mean": [0.5, 0.5, 0.5]}}
# The file's name, its source, the architecture; what lies beside it; the source's normalisation.
SOURCES = {
    "timm's from TensorFlow": ("tf_efficientnet_b0_ns-c0e6a31c.pth", "tf_efficientnet_b0", "b0"),
    "b3": ("tf_efficientnet_b3.pth", "tf_efficientnet_b3", "b3"),
    "AdvProp by its name": ("tf_efficientnet_b0_ap-f262efe1.pth", "tf_efficientnet_b0", "b0"),
    "AdvProp by its configuration": ("model.safetensors", "tf_efficientnet_b0", "b0"),
    "timm's own": ("efficientnet_b0_ra-3dd342df.pth", "efficientnet_b0", "b0"),
    "torchvision's b0": ("efficientnet_b0_rwightman-7f5810bc.pth", None, "b0"),
}


@pytest.fixture(scope="module")
def splits():
    return tiny.make_splits()


def release(case, folder):
    """A network of others, random, in evaluation mode, and the file that it would come in."""
    name, timms, arch = SOURCES[case]
    torch.manual_seed(0)
    source = randomise(timm.create_model(timms) if timms else getattr(
        torchvision.models, f"efficientnet_{arch}")()).eval()
    if name.endswith("safetensors"):
        safetensors.torch.save_file(source.state_dict(), folder / name)
        (folder / "config.json").write_text(json.dumps(AP))
    else:
        torch.save(source.state_dict(), folder / name)
    return source, folder / name, arch


def of_imagenet(count):
    """Random images of the first classes of ImageNet."""
    pixels = torch.randint(256, (count, 3, 40, 40), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(1))
    return ImageSet(torch.arange(count), WNIDS, pixels)


# (The others' conventions are among these; their names and networks are in test_weights.py.)
@pytest.mark.parametrize("case", ["timm's from TensorFlow", "AdvProp by its configuration",
                                  "timm's own", "torchvision's b0"])
@torch.no_grad()
def test_logits_are_the_sources_after_loading_training_at_a_rate_of_zero_and_loading_again(
        case, tmp_path, monkeypatch):
    # BatchNorm's statistics are no weights: training would move them.
    monkeypatch.setattr(model, "BatchNorm", functools.partial(model.BatchNorm, momentum=0.0))
    source, file, arch = release(case, tmp_path)
    images = of_imagenet(4).pixels
    half = 0.5 if "AdvProp" in case else None
    mean, std = ((torch.tensor(values).view(3, 1, 1) for values in (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))) if half is None else (half, half))
    expected = source((images / 255 - mean) / std)
    config = dataclasses.replace(STILL, arch=arch, image_size=40)
    validation = ImageSet(expected.argmax(1), WNIDS, images)  # right where it says what they say
    with torch.enable_grad():
        out = train.train(config, of_imagenet(8), validation, out=tmp_path / "once.pt", start=file)
        again = train.train(config, of_imagenet(8), validation, out=tmp_path / "2.pt", start=out)
    assert model.Checkpoint.load(out).val_top1 == model.Checkpoint.load(again).val_top1 == 100
    for found in (model.Checkpoint.load(file, arch), model.Checkpoint.load(out),
                  model.Checkpoint.load(again)):
        logits = found.network()(augment.normalize(images))
        assert found.classes == WNIDS
        assert (logits - expected).norm() / expected.norm() < 1e-5
        # What every label is made by: networks compute in their own way there, too.
        probabilities = pseudo_label.predict(found.network(), images)
        torch.testing.assert_close(probabilities, expected.softmax(1), rtol=1e-3, atol=1e-6)


def test_other_classes_get_a_fresh_classifier_which_is_said(splits, tmp_path, capsys):
    source, file, _ = release("timm's from TensorFlow", tmp_path)
    config = dataclasses.replace(STILL, arch="b0")
    out = tiny.run(config, splits, tmp_path / "out.pt", students=False, start=file)
    assert f"{file}: its classifier of 1,000 classes is replaced by a fresh one of 10" in (
        capsys.readouterr().out)
    found = model.Checkpoint.load(out)
    fresh = train.build_model(config, 10).classifier.weight
    assert found.classes == splits.labeled.classes
    assert torch.equal(found.weights["classifier.weight"], fresh)
    assert torch.equal(found.weights["head.weight"], source.conv_head.weight)


def test_a_run_continues_with_the_conventions_it_began_with(splits, tmp_path):
    """Neither the network's weights nor the optimizer's state hold them."""
    _, file, _ = release("AdvProp by its name", tmp_path)
    config = dataclasses.replace(tiny.TINY, arch="b0", epochs=2, unlabeled_ratio=0)
    whole = tiny.run(config, splits, tmp_path / "whole.pt", students=False, start=file)

    save = runs.Run.save

    def save_and_stop(run, step):
        save(run, step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), mock.patch.object(runs.Run, "save", save_and_stop):
        tiny.run(config, splits, tmp_path / "parts.pt", students=False, start=file,
                 checkpoint_steps=2)
    parts = tiny.run(config, splits, tmp_path / "parts.pt", students=False, start=file)
    assert tiny.same(tiny.weights(whole), tiny.weights(parts))
    assert model.Checkpoint.load(parts).conventions == (False, 1e-3, True)


def test_the_same_weights_under_a_name_with_other_conventions_are_another_start(tmp_path):
    _, file, _ = release("AdvProp by its name", tmp_path)
    plain = file.with_name("plain.pth")
    plain.write_bytes(file.read_bytes())
    one, other = (weights.fingerprint(model.Checkpoint.load(name, "b0")) for name in (file, plain))
    assert one != other


def test_weights_loaded_into_a_used_network_bring_their_own_conventions_alone(tmp_path):
    _, file, _ = release("AdvProp by its name", tmp_path)
    found = model.Checkpoint.load(file, "b0")
    network, images = found.network(), torch.randn(1, 3, 64, 64)
    model.load_pretrained(network, found.weights, conventions=found.conventions._replace(
        halves=False))
    expected = dataclasses.replace(found, conventions=found.conventions._replace(halves=False))
    assert torch.equal(network(images), expected.network().eval()(images))


def test_weights_of_another_kind_of_network_are_one_line(splits, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(InputError, match="resnet.pth .*not an EfficientNet.s: .* conv1.weight"):
        tiny.run(STILL, splits, tmp_path / "a.pt", students=False, start=tmp_path / "resnet.pth")


@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_of_a_distributed_or_compiled_network_have_plain_names(before, tmp_path):
    state = model.efficientnet("0.25x0.5", 10).state_dict()
    torch.save({"state_dict": {f"{before}{key}": value for key, value in state.items()}},
               tmp_path / "distributed.pth")
    found = model.Checkpoint.load(tmp_path / "distributed.pth", "0.25x0.5")
    assert found.weights.keys() == state.keys()


def test_old_weights_need_not_count_their_batches(tmp_path):
    network = randomise(model.efficientnet("0.25x0.5", 10))
    old = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    torch.save(old, tmp_path / "old.pth")
    loaded = model.Checkpoint.load(tmp_path / "old.pth", "0.25x0.5").network()
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in old.items())


# ---- The loop ----

TINY_LOOP = ["--unlabeled-images", "60", "--labels-per-class", "2", "--val-per-class", "2",
             "--test-per-class", "2", "--epochs", "1", "--per-class", "4", "--threshold", "0",
             "--device", "cpu", "--no-robustness", "--allow-chance", "--batch-size", "10"]


def started(out, *flags):
    """What each training of a loop started from, by its checkpoint's name."""
    assert cli.run(iterate.main, [*TINY_LOOP, *flags, "--out", str(out)]) == 0
    metas = {path.stem: json.loads(torch.load(path, weights_only=True)["meta"])
             for path in out.glob("*.pt")}
    return {name: meta["start"] for name, meta in metas.items()}


def test_a_loop_starts_its_teacher_its_students_and_labels_only_from_the_file(
        splits, tmp_path, capsys):
    start = tiny.run(tiny.TINY, splits, tmp_path / "start.pt", students=False)
    weights_of = files.digest(*model.Checkpoint.load(start).weights.values())
    found = started(tmp_path / "run", "--plan", "demo", "--start-from", str(start), "--arch",
                    "0.25x0.34", "0.25x0.34", "0.35x0.34")
    assert found == {
        "teacher": weights_of, "student-1": weights_of, "student-1-labels-only": weights_of,
        "student-2": None, "student-2-labels-only": None}
    assert f"student 2 (0.35x0.34) starts from scratch: {start} holds a 0.25x0.34" in (
        capsys.readouterr().out)


def test_a_start_that_would_fail_in_the_first_training_is_refused_before_anything_is_written(
        tmp_path, capsys):
    _, file, arch = release("timm's from TensorFlow", tmp_path)
    write_folders(tmp_path)
    flags = ["--labeled", "labeled", "--unlabeled", "pool", "--test", "test"]
    flags = [flag if flag[0] == "-" else tmp_path / flag for flag in flags]
    assert cli.run(iterate.main, [*map(str, flags), "--start-from", str(file), "--arch", arch,
                                  "--frozen-stages", "3", "--allow-chance", "--device", "cpu",
                                  "--out", str(tmp_path / "run")]) == 2
    assert "knows other classes than the labelled images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_stages_are_frozen_only_in_weights_to_start_from(splits, tmp_path):
    start = tiny.run(tiny.TINY, splits, tmp_path / "start.pt", students=False)
    generations, *_ = planned("--start-from", str(start), "--labeled", "x", "--frozen-stages", "3")
    others = [splits.labeled, devices.CPU, train.build_model, model.Checkpoint.load,
              iterate.Flags()]
    plans.check(generations, *others)
    with pytest.raises(InputError, match="would freeze untrained layers"):
        plans.check([dataclasses.replace(one, start_from=None) for one in generations], *others)


def test_a_checkpoint_to_start_from_decides_plan_architecture_and_size(splits, tmp_path):
    config = dataclasses.replace(tiny.TINY, crops="imagenet", small_images=True)
    start = tiny.run(config, splits, tmp_path / "start.pt", students=False)
    generations, plan, size = planned("--start-from", str(start), "--labeled", "x")
    assert (plan, size) == ("finetune", 32)
    assert {(one.config.arch, one.config.small_images) for one in generations} == {
        ("0.25x0.34", True)}
    assert [one.start_from for one in generations] == [str(start)] * 3


def test_released_weights_start_a_loop_at_their_own_resolution(tmp_path):
    _, file, _ = release("b3", tmp_path)
    generations, plan, size = planned("--start-from", str(file), "--arch", "b3", "--labeled", "x")
    assert (plan, size, generations[0].config.dropout) == ("finetune", 300, 0.3)
    assert cli.run(iterate.main, ["--start-from", str(file), "--arch", "b1"]) == 2


def test_a_teacher_of_another_architecture_than_the_file_is_an_error(splits, tmp_path, capsys):
    start = tiny.run(tiny.TINY, splits, tmp_path / "start.pt", students=False)
    assert cli.run(iterate.main, ["--start-from", str(start), "--arch", "b0", "0.25x0.34"]) == 2
    assert f"{start} holds a 0.25x0.34, not the teacher's b0: give --arch 0.25x0.34 first" in (
        capsys.readouterr().err)
