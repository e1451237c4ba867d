"""The released test sets, whole and broken, through the whole command line."""

import dataclasses
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

import augment
import eval_robust
from model import Checkpoint, efficientnet
from support import archives, cli, images, reading
from support.archives import ALEXNET_ERROR, ALEXNET_FLIP_RATE, CIFAR100, IMAGENET
from support.images import to_array
from train import TrainConfig

ARCH = "0.2x0.2"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
WNIDS = ["n01498041", "n12267677"]  # stingray and acorn: 6 and 988; both are in ImageNet-A


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A random network of 1000 classes and one of 10, the second as train.py writes them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    torch.save(efficientnet(ARCH).state_dict(), folder / "imagenet.pth")
    cifar = efficientnet(ARCH, 10, small_images=True)
    config = TrainConfig(arch=ARCH, small_images=True, image_size=32)
    meta = json.dumps({"config": asdict(config), "classes": CLASSES})
    torch.save({"model": cifar.state_dict(), "meta": meta}, folder / "cifar.pt")
    return folder


@pytest.fixture
def evaluate(checkpoints, tmp_path, capsys):
    """Runs the command line in this process: (exit status, results or None, stderr)."""

    def evaluate(suite, data_dir, *more):
        network = "imagenet.pth" if suite.startswith("imagenet") else "cifar.pt"
        out = tmp_path / f"{suite}.json"
        arguments = ["--checkpoint", checkpoints / network, "--arch", ARCH, "--suite", suite,
                     "--data-dir", data_dir, "--out", out, "--device", "cpu",
                     "--workers", 0, "--image-size", 32, *more]
        status = cli.run(eval_robust.main, [*map(str, arguments)])
        lines = capsys.readouterr().err.splitlines()
        message = [line for line in lines if "eval_robust.py:" in line]
        return status, json.loads(out.read_text()) if out.exists() else None, message

    return evaluate


def save_image(path: Path, size, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize(size).save(path, quality=85)


def imagenet_c(root, size=(224, 224)):
    """Two of the corruptions lie below the folders of their tar files."""
    groups = {"shot_noise": "noise", "frost": "weather"}
    for name in ALEXNET_ERROR:
        for severity in range(1, 6):
            for wnid in WNIDS:
                folder = root / groups.get(name, "") / name / str(severity) / wnid
                save_image(folder / "ILSVRC2012_val_00000001.JPEG", size, severity)
    return root


@pytest.fixture
def stingray(tmp_path):
    """The flags of a network that takes every image for a stingray."""
    network = efficientnet(ARCH)
    torch.nn.init.zeros_(network.classifier.weight)
    network.classifier.bias.data = torch.nn.functional.one_hot(torch.tensor(6), 1000).float()
    torch.save(network.state_dict(), tmp_path / "stingray.pth")
    return "--checkpoint", tmp_path / "stingray.pth"


def test_imagenet_c(evaluate, stingray, tmp_path):
    """Of six images s are acorns in the fog of severity s, and one elsewhere."""
    root = imagenet_c(tmp_path / "c")
    for folder in sorted(root.glob("**/[1-5]")):
        acorns = int(folder.name) if folder.parent.name == "fog" else 1
        for number in range(2, 6):
            extra = folder / WNIDS[number <= acorns] / f"{number}.JPEG"
            extra.write_bytes((folder / WNIDS[0] / "ILSVRC2012_val_00000001.JPEG").read_bytes())
    status, results, _ = evaluate("imagenet-c", root, *stingray)
    assert status == 0
    assert len(results["parts"]) == 75 and results["parts"]["fog/3"]["images"] == 6
    assert results["summary"]["images"] == 6
    assert [results["parts"][f"fog/{severity}"]["top1"] for severity in range(1, 6)] == (
        pytest.approx([100 * (6 - severity) / 6 for severity in range(1, 6)]))
    errors = {name: 2.5 if name == "fog" else 5 / 6 for name in ALEXNET_ERROR}
    ratios = [error / sum(ALEXNET_ERROR[name]) for name, error in errors.items()]
    assert results["summary"]["mce"] == pytest.approx(100 * np.mean(ratios))
    assert results["summary"]["top1"] == pytest.approx(100 * (1 - sum(errors.values()) / 75))


def test_two_editions_of_a_test_set_are_not_mixed(evaluate, tmp_path):
    for side in (224, 299):
        part = tmp_path / "both" / f"in-c-{side}" / "gaussian_noise" / "1" / WNIDS[0]
        save_image(part / "1.JPEG", (side, side))
    status, results, message = evaluate("imagenet-c", tmp_path / "both")
    assert status == 2 and len(message) == 1 and not results
    assert "in-c-224" in message[0] and "in-c-299" in message[0]


def test_a_hidden_copy_of_a_test_set_is_not_read(tmp_path):
    for place in ("noise", ".old"):
        save_image(tmp_path / place / "shot_noise" / "1" / WNIDS[0] / "1.JPEG", (224, 224))
    source = archives.TestSet("imagenet-c", str(tmp_path), "", 8, image_size=32,
                              classes=tuple(IMAGENET["wnids"]))
    ((_, labels),) = source.read("shot_noise/1")
    assert labels.tolist() == [6]


def test_a_file_in_place_of_a_folder_is_named(evaluate, tmp_path):
    save_image(tmp_path / "one.jpg", (32, 32))
    status, _, message = evaluate("imagenet", tmp_path / "one.jpg")
    assert status == 2 and message[0].endswith("one.jpg: there is no such folder")


def test_a_missing_severity_is_named_and_the_run_continues_later(evaluate, tmp_path):
    root = imagenet_c(tmp_path / "c")
    (root / "fog" / "3").rename(root / "aside")
    status, results, message = evaluate("imagenet-c", root)
    assert status == 2 and len(message) == 1 and str(root / "fog" / "3") in message[0]
    assert len(results["parts"]) == 9 * 5 + 2 and "summary" not in results

    (root / "aside").rename(root / "fog" / "3")
    for measured in ("gaussian_noise", "snow"):  # kept results are not measured again
        (root / measured).rename(root / f"gone_{measured}")
    status, results, _ = evaluate("imagenet-c", root)
    assert status == 0 and len(results["parts"]) == 75 and "summary" in results


@pytest.mark.parametrize("damage, named", [
    ("unknown class", "n99999999"), ("broken image", "val_1.JPEG"), ("size", "val_1.JPEG"),
    ("fewer images", "gaussian_noise/2"),
])
def test_broken_imagenet_c(evaluate, tmp_path, damage, named):
    root = imagenet_c(tmp_path / "c")
    folder = root / "gaussian_noise" / "2"
    extra = folder / WNIDS[0] / "val_1.JPEG"
    if damage == "unknown class":
        (folder / WNIDS[0]).rename(folder / "n99999999")
    elif damage == "broken image":
        save_image(extra, (224, 224))
        extra.write_bytes(extra.read_bytes()[:300])
    elif damage == "size":
        save_image(extra, (256, 200))
    else:
        next((folder / WNIDS[0]).iterdir()).unlink()
    status, results, message = evaluate("imagenet-c", root)
    assert status == 2 and len(message) == 1 and named in message[0]
    assert list(results["parts"]) == ["gaussian_noise/1"]


@pytest.mark.parametrize("suite", ["imagenet-a", "imagenet"])
def test_folders_of_classes(evaluate, checkpoints, tmp_path, suite):
    """Images are filed by a slow reference's ranking, so that the accuracies are known."""
    network = Checkpoint.load(checkpoints / "imagenet.pth", ARCH).network()
    allowed = IMAGENET["imagenet_a"] if suite == "imagenet-a" else range(1000)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    sizes = [(100, 80), (64, 90), (70, 70), (224, 96)]
    for seed, (size, rank) in enumerate(zip(sizes, [0, 0, 4, 5], strict=True)):
        save_image(tmp_path / "1.JPEG", size, seed)
        image, short = Image.open(tmp_path / "1.JPEG"), min(size)
        side = short if suite == "imagenet-a" else short * 96 // (96 + 32)
        left, top = (size[0] - side + 1) // 2, (size[1] - side + 1) // 2
        crop = image.resize((96, 96), Image.Resampling.BICUBIC,
                            (left, top, left + side, top + side))
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None]
        logits = network((pixels / 255 - mean) / std)[0].tolist()
        ranking = sorted(allowed, key=lambda number: -logits[number])
        folder = tmp_path / "data" / IMAGENET["wnids"][ranking[rank]]
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "1.JPEG").rename(folder / f"{seed}.JPEG")
    arguments = (tmp_path / "data", "--image-size", 96, "--batch-size", 3)
    status, results, _ = evaluate(suite, *arguments)
    assert status == 0
    assert results["summary"] == {"images": 4, "top1": 50.0, "top5": 75.0}


def test_imagenet_a_refuses_a_class_that_is_not_among_its_200(evaluate, tmp_path):
    save_image(tmp_path / "a" / "n01440764" / "1.JPEG", (50, 50))
    status, _, message = evaluate("imagenet-a", tmp_path / "a")
    assert status == 2 and "n01440764" in message[0]


def save_video(path: Path, frames: int, size: int = 224):
    av = pytest.importorskip("av")
    random = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        stream = video.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for _ in range(frames):
            pixels = random.integers(0, 256, (4, 4, 3), np.uint8).repeat(size // 4, 0)
            frame = av.VideoFrame.from_ndarray(pixels.repeat(size // 4, 1), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


def imagenet_p(root):
    for name in ALEXNET_FLIP_RATE:
        for wnid in WNIDS:
            path = root / name / wnid / "ILSVRC2012_val_00000001.mp4"
            save_video(path, 41 if name == "translate" else 31)
    return root


def test_imagenet_p_of_a_network_that_never_changes_its_mind(evaluate, stingray, tmp_path):
    status, results, _ = evaluate("imagenet-p", imagenet_p(tmp_path / "p"), *stingray)
    assert status == 0
    assert results["summary"] == {"images": 2, "mfr": 0, "unnormalized_mfr": 0, "top1": 50}


@pytest.mark.parametrize("damage", ["truncated", "empty", "no video", "too short", "size"])
def test_broken_imagenet_p(evaluate, tmp_path, damage):
    for name in ("gaussian_noise", "shot_noise"):
        save_video(tmp_path / "p" / name / WNIDS[0] / "1.mp4", 31)
    video = tmp_path / "p" / "shot_noise" / WNIDS[0] / "1.mp4"
    if damage == "size":
        save_video(video, 31, size=64)
    elif damage == "too short":
        save_video(video, 12)
    else:
        content = {"truncated": video.read_bytes()[:-3000], "empty": b"", "no video": b"no" * 999}
        video.write_bytes(content[damage])
    status, results, message = evaluate("imagenet-p", tmp_path / "p")
    assert status == 2 and len(message) == 1 and str(video) in message[0]
    assert list(results["parts"]) == ["gaussian_noise"]


def test_videos_need_their_package(evaluate, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "p" / "gaussian_noise" / WNIDS[0] / "1.mp4"
    path.parent.mkdir(parents=True)
    path.touch()
    status, _, message = evaluate("imagenet-p", tmp_path / "p")
    assert status == 2 and "pip install av" in message[0]


def test_worker_processes_read_the_same_and_name_broken_files(evaluate, tmp_path):
    root = tmp_path / "a"
    for number in range(5):
        save_image(root / WNIDS[number % 2] / f"{number}.JPEG", (50, 40 + number), number)
    alone = evaluate("imagenet-a", root, "--batch-size", 2)[1]
    (tmp_path / "imagenet-a.json").unlink()
    assert evaluate("imagenet-a", root, "--batch-size", 2, "--workers", 2)[1] == alone
    (tmp_path / "imagenet-a.json").unlink()
    (root / WNIDS[1] / "3.JPEG").write_bytes(b"no image")
    status, results, message = evaluate("imagenet-a", root, "--workers", 2)
    assert status == 2 and results is None and len(message) == 1 and "3.JPEG" in message[0]


def cifar10_c(root):
    root.mkdir()
    random = np.random.default_rng(0)
    for name in ALEXNET_ERROR:
        np.save(root / f"{name}.npy", random.integers(0, 256, (20, 32, 32, 3), np.uint8))
    np.save(root / "labels.npy", np.tile(np.array([0, 3, 5, 9], np.uint8), 5))
    return root


def test_cifar10_c(evaluate, checkpoints, tmp_path):
    root = cifar10_c(tmp_path / "c")
    network = Checkpoint.load(checkpoints / "cifar.pt").network()
    images = torch.from_numpy(np.load(root / "fog.npy")).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    predictions = network((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)).argmax(1)
    # Put the network's own answers in place of the labels of the second block, images 4 to 7.
    labels = np.full(20, 99, np.uint8)
    labels[4:8] = predictions[4:8].numpy()
    np.save(root / "labels.npy", labels)
    status, results, _ = evaluate("cifar10-c", root)
    assert status == 0
    assert [results["parts"][f"fog/{s}"]["top1"] for s in range(1, 6)] == [0, 100, 0, 0, 0]
    assert "mce" not in results["summary"]  # CIFAR-10-C has no baseline
    assert results["summary"]["unnormalized_mce"] == pytest.approx(
        100 - results["summary"]["top1"])


def test_cifar10_c_is_for_networks_of_its_own_classes(evaluate, checkpoints, tmp_path):
    other = torch.load(checkpoints / "cifar.pt", weights_only=True)
    other["meta"] = other["meta"].replace("airplane", "star")
    torch.save(other, tmp_path / "other.pt")
    status, results, message = evaluate("cifar10-c", cifar10_c(tmp_path / "c"),
                                        "--checkpoint", tmp_path / "other.pt")
    assert status == 2 and results is None and "this network of star" in message[0]


def of_classes(classes, checkpoints, path):
    """A random network of these classes, as train.py writes it."""
    network = efficientnet(ARCH, len(classes))
    config = TrainConfig(arch=ARCH, image_size=32)
    meta = json.dumps({"config": asdict(config), "classes": classes})
    torch.save({"model": network.state_dict(), "meta": meta}, path)
    return network.eval()


def test_cifar100_c(evaluate, checkpoints, tmp_path):
    root = cifar10_c(tmp_path / "c")
    of_classes(CIFAR100, checkpoints, tmp_path / "a.pt")
    network = Checkpoint.load(tmp_path / "a.pt").network()
    pixels = torch.from_numpy(np.load(root / "fog.npy")).permute(0, 3, 1, 2)
    answers = network(augment.normalize(pixels)).argmax(1).numpy()
    np.save(root / "labels.npy", np.r_[answers[:10], (answers[10:] + 1) % 100].astype(np.uint8))
    status, results, _ = evaluate("cifar100-c", root, "--checkpoint", tmp_path / "a.pt")
    assert status == 0 and len(results["parts"]) == 75
    assert [results["parts"][f"fog/{s}"]["top1"] for s in range(1, 6)] == [100, 100, 50, 0, 0]
    of_classes([*CIFAR100[:-1], "zebra"], checkpoints, tmp_path / "b.pt")
    status, _, message = evaluate("cifar100-c", root, "--checkpoint", tmp_path / "b.pt",
                                  "--out", tmp_path / "b.json")
    assert status == 2 and "is of apple, aquarium_fish, baby" in message[0]


def test_tiny_imagenet_c(evaluate, checkpoints, tmp_path):
    """Of its 200 classes; resized whole, and without AlexNet's baseline."""
    classes = sorted(IMAGENET["wnids"][:199] + [WNIDS[1]])
    network = of_classes(classes, checkpoints, tmp_path / "a.pt")
    torch.nn.init.zeros_(network.classifier.weight)
    right = classes.index(WNIDS[0])
    network.classifier.bias.data = torch.nn.functional.one_hot(torch.tensor(right), 200).float()
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    torch.save(found | {"model": network.state_dict()}, tmp_path / "a.pt")
    root = imagenet_c(tmp_path / "c", size=(64, 64))
    status, results, _ = evaluate("tiny-imagenet-c", root, "--checkpoint", tmp_path / "a.pt")
    assert status == 0 and {part["top1"] for part in results["parts"].values()} == {50.0}
    assert results["summary"] == {"images": 2, "unnormalized_mce": 50.0, "top1": 50.0}


def test_an_epsilon_given_twice_is_measured_once():
    source = archives.TestSet("fgsm", "", "", epsilon=[1, 0.5, 1])
    assert source.names() == ["1", "0.5"] and len(archives.TestSet("fgsm", "", "").names()) == 6


@pytest.mark.parametrize("wrong", [("--epsilon", "-4"), ("--epsilon", "nan"),
                                   ("--step-size", "0"), ("--step-size", "-1")])
def test_an_attack_of_no_size_is_refused(evaluate, tmp_path, wrong):
    status, results, message = evaluate("pgd", tmp_path, *wrong)
    assert status == 2 and results is None and wrong[0] in message[0]


@pytest.mark.parametrize("damage", ["truncated", "missing", "shape", "labels", "npz", "zip"])
def test_broken_cifar10_c(evaluate, tmp_path, damage):
    root = cifar10_c(tmp_path / "c")
    broken = root / "shot_noise.npy"
    if damage == "truncated":
        broken.write_bytes(broken.read_bytes()[:-1])
    elif damage == "missing":
        broken.unlink()
    elif damage == "shape":
        np.save(broken, np.zeros((20, 24, 24, 3), np.uint8))
    elif damage == "npz":
        np.savez(root / "other.npz", np.zeros((20, 32, 32, 3), np.uint8))
        (root / "other.npz").rename(broken)
    elif damage == "zip":
        broken.write_bytes(b"PK\3\4 and no more")
    else:
        np.save(broken, np.zeros((25, 32, 32, 3), np.uint8))
    status, results, message = evaluate("cifar10-c", root)
    assert status == 2 and len(message) == 1 and str(broken) in message[0]
    assert len(results["parts"]) == 5


def test_cifar10_p(evaluate, tmp_path):
    random, root = np.random.default_rng(0), tmp_path / "p"
    root.mkdir()
    names = [*ALEXNET_FLIP_RATE, "spatter"]
    names.remove("snow")
    for name in names:
        frames = {"motion_blur": 21, "translate": 16}.get(name, 31)
        sequences = random.integers(0, 256, (3, frames, 32, 32, 3), np.uint8)
        if name == "rotate":
            sequences[:] = sequences[:, :1]  # nothing moves
        np.save(root / f"{name}.npy", sequences)
    status, results, _ = evaluate("cifar10-p", root)
    assert status == 0 and set(results["parts"]) == set(names)
    assert results["parts"]["rotate"]["flip_rate"] == 0
    rates = [part["flip_rate"] for part in results["parts"].values()]
    assert results["summary"] == {"images": 3,
                                  "unnormalized_mfr": pytest.approx(100 * np.mean(rates))}


def test_a_batch_holds_as_many_whole_sequences_as_its_size_allows(tmp_path):
    for name, frames in (("tilt", 31), ("translate", 16)):
        pixels = np.arange(5, dtype=np.uint8).repeat(frames * 32 * 32 * 3)
        np.save(tmp_path / f"{name}.npy", pixels.reshape(5, frames, 32, 32, 3))
    network = Checkpoint("0.25x0.34", 32, tuple(CLASSES), {"classifier.bias": torch.zeros(10)}, 0)
    source = archives.TestSet("cifar10-p", str(tmp_path), "", batch_size=70)
    source = source.fit(network, eval_robust.Flags("cifar.pt"), workers=0)
    one = dataclasses.replace(source, batch_size=20)  # less than a sequence
    assert [len(batch) for batch, _ in one.read("tilt")] == [31] * 5
    for name, sizes in (("tilt", [62, 62, 31]), ("translate", [64, 16])):
        batches, labels = zip(*source.read(name), strict=True)
        assert [len(batch) for batch in batches] == sizes == [len(truth) for truth in labels]
        numbers = torch.cat(batches)[:, 0, 0, 0].tolist()
        assert numbers == [number for number in range(5) for _ in range(sum(sizes) // 5)]


@pytest.mark.parametrize(("suite", "part", "frames"), [
    ("cifar10-c", "fog/1", 1), ("cifar10-p", "tilt", 31)])
def test_cifars_images_have_the_size_the_network_was_trained_at(tmp_path, suite, part, frames):
    shape = (10, 32, 32, 3) if frames == 1 else (10, frames, 32, 32, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.save(tmp_path / f"{part.split('/')[0]}.npy", pixels)
    np.save(tmp_path / "labels.npy", np.arange(10, dtype=np.uint8))
    source = archives.TestSet(suite, str(tmp_path), "", image_size=48, batch_size=50)
    seen, _ = next(source.read(part))
    first = pixels.reshape(-1, 32, 32, 3)[0]
    expected = Image.fromarray(first).resize((48, 48), Image.Resampling.BICUBIC)
    assert seen.shape[1:] == (3, 48, 48) and len(seen) % frames == 0
    assert np.array_equal(seen[0].permute(1, 2, 0), np.asarray(expected))


def folder_of_ten(root, checkpoints, wrong=()):
    """One image a class for cifar.pt, filed as the network sees it, but for those in `wrong`."""
    checkpoint = Checkpoint.load(checkpoints / "cifar.pt")
    model = eval_robust.from_pixels(checkpoint.network(), torch.device("cpu"))
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        guess = model(torch.from_numpy(pixels).permute(2, 0, 1)[None]).argmax().item()
        label = (guess + (number in wrong)) % 10
        path = root / checkpoint.classes[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def test_epsilon_of_a_suite_without_attacks_is_refused(evaluate, checkpoints, tmp_path):
    status, _, message = evaluate("imagenet", tmp_path, "--epsilon", 4)
    assert status == 2 and "--epsilon is not for --suite imagenet" in message[0]


@pytest.mark.parametrize("flags", [("--steps", 3), ("--step-size", 2), ("--random-start",),
                                   ("--targeted",)])
def test_flags_of_pgd_are_refused_elsewhere(evaluate, tmp_path, flags):
    status, results, message = evaluate("fgsm", tmp_path, *flags)
    assert status == 2 and results is None and f"{flags[0]} is not for --suite fgsm" in message[0]


def test_an_architecture_is_refused_for_a_checkpoint_that_names_its_own(evaluate, tmp_path):
    status, results, message = evaluate("fgsm", tmp_path, "--arch", "b7")
    assert status == 2 and results is None and "--arch b7: " in message[0]
    assert f"is a {ARCH} and says so itself" in message[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("file", ["cifar.pt", "imagenet.pth"])
def test_weights_that_are_not_finite_are_not_measured(evaluate, checkpoints, tmp_path, file, value):
    contents = torch.load(checkpoints / file, weights_only=True)
    contents.get("model", contents)["head.weight"][3, 0, 0, 0] = value
    torch.save(contents, tmp_path / file)
    status, results, message = evaluate("imagenet", tmp_path, "--checkpoint", tmp_path / file)
    assert status == 2 and results is None and "head.weight is not finite" in message[0]


def test_released_weights_of_other_classes_than_imagenets_are_refused(evaluate, tmp_path):
    torch.save(efficientnet(ARCH, 10).state_dict(), tmp_path / "ten.pth")
    status, results, message = evaluate("fgsm", tmp_path, "--checkpoint", tmp_path / "ten.pth")
    assert status == 2 and results is None and "released weights of 10 classes" in message[0]


def test_a_test_set_that_lacks_classes_says_so(evaluate, tmp_path):
    root, said = tmp_path / "test", []
    for number, name in enumerate(CLASSES[2:]):
        save_image(root / name / "1.png", (32, 32), number)
    with mock.patch.object(images, "say_once", said.append):
        assert evaluate("fgsm", root, "--epsilon", 0)[0] == 0
    assert said == [f"Warning: {root} has no images of 2 of 10 classes: airplane, automobile"]


@pytest.mark.parametrize("suite", ["imagenet", "imagenet-a"])
def test_imagenet_is_not_turned_as_exif_says_but_own_images_are(
        evaluate, stingray, checkpoints, tmp_path, suite):
    """Torchvision's loader of folders, which the protocols use, does not turn images."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "i" / WNIDS[0] / "1.png"
    save_image(file, (40, 40))
    with Image.open(file) as image:
        image.save(file, exif=exif)
    expected = np.asarray(datasets.folder.default_loader(str(file)))
    found = []
    with mock.patch.object(images, "to_array", lambda view: found.append(view) or to_array(view)):
        evaluate(suite, tmp_path / "i", *stingray, "--image-size", 40)
    assert np.array_equal(found[0], expected)
    file.parent.rename(tmp_path / "i" / CLASSES[0])
    with mock.patch.object(images, "to_array", lambda view: found.append(view) or to_array(view)):
        evaluate("fgsm", tmp_path / "i", "--image-size", 40)
    assert np.array_equal(found[1], np.rot90(expected, -1))


def test_fgsm_over_a_range_of_epsilon(evaluate, checkpoints, tmp_path):
    root = folder_of_ten(tmp_path / "test", checkpoints, wrong=(4, 7))
    status, results, _ = evaluate("fgsm", root, "--batch-size", 4)
    top1 = results["summary"]["top1"]
    assert status == 0 and list(top1) == ["0", "1", "2", "4", "8", "16"]
    assert top1["0"] == 80 and top1["16"] < 80


def test_pgd_as_the_paper_sets_it_and_by_flags(evaluate, checkpoints, tmp_path):
    root = folder_of_ten(tmp_path / "test", checkpoints)
    assert list(evaluate("pgd", root)[1]["summary"]["top1"]) == ["16"]
    (tmp_path / "pgd.json").unlink()
    flags = ("--epsilon", 0.5, 2, "--steps", 3, "--step-size", 0.7, "--random-start", "--targeted")
    status, first, _ = evaluate("pgd", root, *flags)
    assert status == 0 and list(first["summary"]["top1"]) == ["0.5", "2"]
    (tmp_path / "pgd.json").unlink()
    assert evaluate("pgd", root, *flags)[1] == first  # the random draws are seeded


def test_results_of_other_settings_are_not_continued(evaluate, checkpoints, tmp_path):
    one, other = (folder_of_ten(tmp_path / name, checkpoints) for name in ("one", "other"))
    contents = torch.load(checkpoints / "cifar.pt", weights_only=True)
    contents["model"]["classifier.bias"] += 1
    torch.save(contents, tmp_path / "other.pt")
    assert evaluate("fgsm", one, "--epsilon", 0)[0] == 0
    for folder, more, said in ((one, ("--image-size", 40), "image_size: 32, not 40"),
                               (one, ("--checkpoint", tmp_path / "other.pt"), "checkpoint: "),
                               (other, (), "data_dir: ")):
        status, _, message = evaluate("fgsm", folder, "--epsilon", 0, *more)
        assert status == 2 and f"other settings ({said}" in message[0]
    save_image(one / CLASSES[0] / "new.png", (32, 32))
    status, _, message = evaluate("fgsm", one, "--epsilon", 0)
    assert status == 2 and "other settings (images: " in message[0]


def test_results_of_another_attack_are_not_continued(evaluate, checkpoints, tmp_path):
    root = folder_of_ten(tmp_path / "test", checkpoints)
    evaluate("pgd", root, "--steps", 2)
    status, _, message = evaluate("pgd", root, "--steps", 3)
    assert status == 2 and "other settings (steps: 2, not 3)" in message[0]


def test_quick_refuses_a_network_of_smaller_images(evaluate, tmp_path):
    status, results, message = evaluate("quick", tmp_path, "--image-size", 16)
    assert status == 2 and results is None and "32 pixels or more, not 16" in message[0]


def test_quick_from_the_command_line(evaluate, tmp_path):
    for number in range(10):
        save_image(tmp_path / "test" / CLASSES[number] / "1.png", (40, 32), number)
        if number == 3:
            status, _, message = evaluate("quick", tmp_path / "test")
            assert status == 2 and "the quick suite needs five" in message[0]
            assert "got (4, 3, 32, 32)" in message[0]
    status, results, _ = evaluate("quick", tmp_path / "test")
    assert status == 0 and results["summary"]["images"] == 10


def test_results_among_the_users_own_images_are_refused(evaluate, tmp_path):
    """They would be told from others by the files of their folder, the results among them."""
    root = tmp_path / "test"
    for number in range(10):
        save_image(root / CLASSES[number] / "1.png", (40, 32), number)
    status, _, message = evaluate("quick", root, "--out", root / "results.json")
    assert status == 2 and f"results.json lies in {root} and would become a part" in message[0]
    assert not (root / "results.json").exists()


@pytest.mark.parametrize(("suite", "size", "most"), [
    ("imagenet", 224, reading.size_for(224)), ("imagenet", 600, reading.size_for(600)),
    ("fgsm", 224, reading.size_to_attack(224)), ("pgd", 600, reading.size_to_attack(600)),
])
def test_a_batch_of_large_images_is_as_small_as_the_memory_needs_unless_it_is_given(
        suite, size, most, tmp_path):
    checkpoint = SimpleNamespace(arch="b0", classes=tuple(IMAGENET["wnids"]), image_size=size)
    flags = eval_robust.Flags("b0.pth")
    (tmp_path / "images").mkdir()
    source = archives.TestSet(suite, str(tmp_path / "images"), str(tmp_path / "out.json"))
    assert source.fit(checkpoint, flags, 0).batch_size == most
    given = dataclasses.replace(source, batch_size=256)
    assert given.fit(checkpoint, flags, 0).batch_size == 256


def test_a_part_may_be_read_up_to_a_limit_drawn_from_all_of_it(tmp_path):
    for number in range(20):
        save_image(tmp_path / "test" / CLASSES[number // 2] / f"{number}.png", (32, 32), number)
    source = archives.TestSet("quick", str(tmp_path / "test"), "", image_size=32, classes=CLASSES,
                              batch_size=8)

    def read(limit):
        images, labels = map(torch.cat, zip(*source.read("all", limit), strict=True))
        return images, labels.tolist()

    images, labels = read(20)
    assert labels == [number // 2 for number in range(20)]
    some, of_some = read(6)
    assert of_some == sorted(of_some) and len(set(of_some)) > 3 and torch.equal(read(6)[0], some)
    assert all(any(torch.equal(one, other) for other in images) for one in some)


def test_a_file_that_holds_no_results_is_not_overwritten(evaluate, tmp_path):
    out, root = tmp_path / "mine.json", tmp_path / "images"
    root.mkdir()
    for content in ("[]", "{}", "not JSON"):
        out.write_text(content)
        status, _, message = evaluate("quick", root, "--out", out)
        assert status == 2 and "not a result file" in message[0]
        assert out.read_text() == content


def test_a_place_that_cannot_hold_results_is_named(evaluate, tmp_path):
    root = tmp_path / "images"
    for folder in (root, tmp_path / "folder"):
        folder.mkdir()
    (tmp_path / "file").touch()
    for out in (tmp_path / "folder", tmp_path / "file" / "below.json"):
        status, _, message = evaluate("quick", root, "--out", out)
        assert status == 2 and str(out.parent) in message[0] and "another" in message[0]


@pytest.mark.parametrize(("flag", "wanted"), [("--steps", "1 to 1,000,000,000"),
                                              ("--batch-size", "1 to 100,000"),
                                              ("--image-size", "1 to 10,000")])
def test_numbers_below_one_are_refused(evaluate, tmp_path, flag, wanted):
    status, _, message = evaluate("pgd", tmp_path, flag, 0)
    assert status == 2 and f"{flag} 0: give {wanted}" in message[0]


def test_checkpoints_that_do_not_fit(evaluate, checkpoints, tmp_path):
    status, _, message = evaluate("cifar10-c", tmp_path, "--checkpoint", tmp_path / "none.pt")
    assert status == 2 and "none.pt" in message[0]
    status, _, message = evaluate("imagenet-a", tmp_path, "--arch", "b1")
    assert status == 2 and "imagenet.pth" in message[0] and "not fit" in message[0]
    status, _, message = evaluate("imagenet-a", tmp_path, "--checkpoint", checkpoints / "cifar.pt")
    assert status == 2 and "1000 classes" in message[0]


def test_classes_may_be_named_by_their_numbers(tmp_path):
    digits = tuple(f"{number:02}" for number in range(100))
    source = archives.TestSet("cifar100-c", str(tmp_path), "")
    found = SimpleNamespace(arch="b0", classes=digits, image_size=32)
    assert source.fit(found, eval_robust.Flags("a.pt"), 0).classes == digits
