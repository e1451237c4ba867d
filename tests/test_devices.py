"""One notion of device: what is there, what is not, and equal numbers on XLA."""

import datetime
import os
import platform
import socket
import subprocess
import sys

import pytest
import torch
from PIL import Image
from tiny import ROOT

import model
from support import InputError, data_parallel, devices, images


@pytest.mark.parametrize(("there", "chosen"), [
    ((), "cpu"), (("mps",), "cpu"), (("mps", "cuda"), "cuda"),
])
def test_auto_is_cuda_or_the_cpu_and_mps_must_be_asked_for(there, chosen, monkeypatch):
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
    assert devices.choose("auto").type == chosen
    if "mps" in there:
        assert devices.choose("mps").type == "mps"


def test_training_is_channels_last_but_on_mps_where_batch_norm_would_learn_wrongly():
    layouts = {name: devices.layout(torch.device(name)) for name in ("cpu", "cuda", "xla", "mps")}
    assert layouts.pop("mps") == torch.contiguous_format
    assert set(layouts.values()) == {torch.channels_last}


def test_auto_is_xla_on_a_tpu_host_alone(monkeypatch):
    monkeypatch.setattr(devices, "_start_xla", lambda: torch.device("meta"))
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    assert devices.choose("auto").type == "meta" and devices.choose("cpu").type == "cpu"
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    assert devices.choose("auto").type != "meta"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_missing_gpu_is_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match="cuda is not there.*--device auto"):
        devices.choose("cuda")


def test_a_process_without_a_gpu_of_its_own_is_an_error(monkeypatch):
    for name, value in (("is_available", True), ("device_count", 2)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: pytest.fail("there is none"))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="process 2 .from 0. has no GPU: torchrun --nproc-per-nod"
                                         "e 2"):
        devices.choose("cuda")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no switch")
def test_memory_that_was_freed_on_a_cpu_is_kept_for_the_next_step():
    code = """if True:
        import pathlib, torch
        from support import devices
        devices.choose("cpu")
        def resident():
            return int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        before = resident()
        activations = torch.ones(2**24)
        grown = resident() - before
        del activations
        print((resident() - before) / grown)
    """
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                            check=True)
    assert float(result.stdout) > 0.9


# Five steps of eight labelled and sixteen pseudo-labelled images, RandAugment on, with a network of
# three stages: without an expansion, with a stride, with neither. Dropout and stochastic depth are
# off: their random numbers are drawn where the images are.
TRAIN = """
import dataclasses, sys
sys.path[:0] = [{root!r}, {tests!r}]
from support import devices
chosen = devices.choose({name!r})
import torch, model, tiny
model.STAGES = model.STAGES[:5:2]  # XLA compiles each of six graphs for ten seconds with seven
if {fixed_statistics}:  # BatchNorm in evaluation mode, everything still trained
    def train(network, mode=True):
        torch.nn.Module.train(network, mode)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.training = False
        return network
    model.EfficientNet.train = train
config = dataclasses.replace(
    tiny.TINY, arch="0.1x0.1", dropout=0.0, survival_prob=1.0, epochs=2,
    optimizer="rmsprop", accumulation_steps={micro_batches},
)
splits, machine = tiny.make_splits(), devices.Machine(chosen)
path = tiny.run(config, splits, {out!r}, machine=machine)
rank = devices.rank()
if devices.dist.is_initialized():
    devices.dist.destroy_process_group()
if rank > 0:
    sys.exit()
checkpoint = model.Checkpoint.load(path)
fallbacks, compilations = [], 0
if chosen.type == "xla":
    longer = dataclasses.replace(config, epochs=20, evaluate_epochs=2)
    assert longer.epochs * 20 / longer.batch_size == 50
    if config.accumulation_steps == 1:
        tiny.run(longer, splits, {out!r} + ".longer", machine=machine, checkpoint_steps=15)
    import torch_xla.debug.metrics as metrics
    fallbacks = [name for name in metrics.counter_names() if name.startswith("aten::")]
    fallbacks = [name for name in fallbacks if name != "aten::_local_scalar_dense"]
    compilations = metrics.metric_data("CompileTime")[0]
losses = [line["loss"] for line in tiny.log_lines(path) if "loss" in line]
torch.save({{"losses": torch.tensor(losses), "weights": tiny.weights(path),
            "val_top1": checkpoint.val_top1, "fallbacks": fallbacks,
            "compilations": compilations}}, {out!r} + ".result")
"""


def train_in_a_process(folder, name="cpu", micro_batches=1, processes=1, fixed_statistics=False):
    """Losses, averaged weights and validation accuracy of a short run in processes of its own."""
    script, out = folder / "run.py", folder / "run.pt"
    folder.mkdir()
    script.write_text(TRAIN.format(
        root=str(ROOT), tests=str(ROOT / "tests"), name=name, micro_batches=micro_batches,
        fixed_statistics=fixed_statistics, out=str(out),
    ))
    command = [sys.executable, str(script)]
    if processes > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes),
                        "--master-port", str(free_port())]
    environment = os.environ | {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "2",
                                "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(f"{out}.result", weights_only=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def assert_same_training(one, other):
    assert len(one["losses"]) == 5
    torch.testing.assert_close(one["losses"], other["losses"], rtol=1e-4, atol=0)
    assert one["weights"].keys() == other["weights"].keys()
    for key, value in one["weights"].items():
        error = (value - other["weights"][key]).double().norm()
        assert error <= 1e-4 * value.double().norm() + 1e-6, key
    assert one["val_top1"] == other["val_top1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train_in_a_process(tmp_path_factory.mktemp("whole") / "run")


def test_two_processes_train_as_one_with_batch_norm_over_the_images_of_both(whole, tmp_path):
    assert_same_training(whole, train_in_a_process(tmp_path / "run", processes=2))


@pytest.fixture(scope="module")
def without_statistics(tmp_path_factory):
    return train_in_a_process(tmp_path_factory.mktemp("fixed") / "run", fixed_statistics=True)


def test_two_micro_batches_of_two_processes_train_as_the_whole_but_for_batch_norms_statistics(
        without_statistics, tmp_path):
    in_two = train_in_a_process(tmp_path / "run", micro_batches=2, processes=2,
                                fixed_statistics=True)
    assert_same_training(without_statistics, in_two)


@pytest.fixture(scope="module")
def on_xla(tmp_path_factory):
    pytest.importorskip("torch_xla")
    return train_in_a_process(tmp_path_factory.mktemp("xla") / "run", name="xla")


def test_fifty_steps_on_xla_with_evaluation_and_checkpoints_compile_four_graphs(on_xla):
    # The first step, the others (which find the optimizer's state), predictions, the log's means.
    assert on_xla["compilations"] == 4
    assert on_xla["fallbacks"] == []


def test_two_virtual_xla_devices_train_as_the_cpu_does(whole, on_xla):
    # (XLA averages the biased variance into the running one: of 24 maps of 8x8, hardly less.)
    assert_same_training(whole, on_xla)


def test_micro_batches_on_xla_train_as_the_whole_but_for_batch_norms_statistics(
        without_statistics, tmp_path):
    pytest.importorskip("torch_xla")
    in_two = train_in_a_process(tmp_path / "run", name="xla", micro_batches=2,
                                fixed_statistics=True)
    assert_same_training(without_statistics, in_two)
    # Of two steps' kinds each micro-batch is a graph; as one, both would be in memory at once.
    assert in_two["compilations"] == 6 and in_two["fallbacks"] == []


@pytest.fixture
def one_process(tmp_path):
    """What torchrun starts, with one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0,
                                         world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_process_that_hangs_in_a_step_is_given_up_before_one_that_evaluates(monkeypatch):
    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1),
                        ("MASTER_ADDR", "localhost"), ("MASTER_PORT", 0)):
        monkeypatch.setenv(name, str(value))
    waiting = []
    monkeypatch.setattr(torch.distributed, "barrier", lambda group: waiting.append(group))
    monkeypatch.setattr(devices, "PATIENT", {})
    devices.choose("cpu")
    devices.wait_for_all()
    step, outside = (group._get_backend(torch.device("cpu")).options._timeout
                     for group in (torch.distributed.group.WORLD, *waiting))
    torch.distributed.destroy_process_group()
    assert step <= datetime.timedelta(hours=1) < datetime.timedelta(hours=12) < outside


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_batch_norm_over_all_processes_is_batch_norm(one_process, mean):
    torch.manual_seed(0)
    images = mean + 0.1 * torch.randn(16, 3, 8, 8)  # far from zero: E[x^2] - E[x]^2 would fail
    results = []
    for kind in (torch.nn.BatchNorm2d, data_parallel.SyncBatchNorm):
        norm, inputs = kind(3, eps=1e-3, momentum=0.01), images.clone().requires_grad_()
        result = norm(inputs)
        result.square().mul(torch.arange(16.0).view(-1, 1, 1, 1)).sum().backward()
        results.append((result.detach(), inputs.grad, norm.weight.grad, norm.running_mean,
                        norm.running_var))
    for expected, value in zip(*results, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(value / scale, expected / scale, rtol=1e-3, atol=1e-3)


def test_batch_norm_over_all_processes_takes_bfloat16(one_process):
    images = torch.randn(16, 3, 8, 8).bfloat16()
    norm = data_parallel.SyncBatchNorm(3)
    with torch.autocast("cpu", torch.bfloat16):
        result = norm(images)
    assert result.dtype == torch.bfloat16 and norm.running_var.dtype == torch.float32
    torch.testing.assert_close(result, torch.nn.BatchNorm2d(3)(images), rtol=0.02, atol=0.02)


def test_synchronizing_batch_norm_keeps_parameters_buffers_and_modes():
    network = model.efficientnet("0.25x0.34", 10).train()
    model.freeze_shallow(network, 2)
    before = network.state_dict(keep_vars=True)
    norms = {name: module for name, module in network.named_modules()
             if isinstance(module, torch.nn.BatchNorm2d)}
    data_parallel._synchronize(network)
    after = network.state_dict(keep_vars=True)
    assert list(after) == list(before)  # in the same order, as the average of weights needs it
    assert all(after[name] is value for name, value in before.items())
    assert len(norms) > 20
    for name, old in norms.items():
        new = network.get_submodule(name)
        assert type(new) is data_parallel.SyncBatchNorm
        assert (new.eps, new.momentum, new.training) == (old.eps, old.momentum, old.training)
    assert not network.stem_norm.training and network.head_norm.training
    network.eval().train()  # what is fixed stays so
    assert not network.stem_norm.training and network.head_norm.training


def test_a_network_alone_is_its_own_distribution():
    network = model.efficientnet("0.25x0.34", 10)
    assert data_parallel.distribute(network, torch.device("cpu")) is network
    assert type(network.stem_norm) is torch.nn.BatchNorm2d


@pytest.mark.parametrize(("compiles", "kind"), [
    (False, torch.nn.SyncBatchNorm), (True, data_parallel.SyncBatchNorm),
])
def test_on_gpus_a_network_that_is_compiled_has_a_batch_norm_that_compiles(
        compiles, kind, monkeypatch):
    """PyTorch's selects by a mask, which breaks the graph at each layer."""
    monkeypatch.setattr(data_parallel, "world_size", lambda: 2)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", lambda network, **_: network)
    network = model.efficientnet("0.25x0.34", 10)
    network = data_parallel.distribute(network, torch.device("cuda"), compiles)
    assert type(network.stem_norm) is kind


def test_a_compiled_batch_norm_over_all_processes_is_one_graph(one_process):
    network = torch.nn.Sequential(*(data_parallel.SyncBatchNorm(3) for _ in range(3)))
    graphs = torch._dynamo.explain(network)(torch.randn(4, 3, 5, 5))
    assert (graphs.graph_count, graphs.graph_break_count) == (1, 0)


def test_own_chance_is_a_function_of_its_numbers_and_leaves_torchs_alone():
    def draw(numbers):
        with devices.own_chance(torch.device("cpu"), numbers):
            return torch.rand(3)

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, again, other = (draw(numbers) for numbers in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(draw(None), expected)  # nothing has been drawn from torch's until here


def test_torchrun_and_xla_do_not_go_together(monkeypatch):
    pytest.importorskip("torch_xla")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(InputError, match="needs no torchrun"):
        devices.choose("xla")


def test_one_host_of_many_is_refused_before_anything_is_written(monkeypatch):
    runtime = pytest.importorskip("torch_xla").runtime
    monkeypatch.setattr(runtime, "use_spmd", lambda: None)
    monkeypatch.setattr("torch_xla.device", lambda: torch.device("cpu"))
    monkeypatch.setattr(runtime, "process_count", lambda: 4)
    with pytest.raises(InputError, match="chips of one host, and this is one of 4"):
        devices.choose("xla")
    monkeypatch.setattr(runtime, "process_count", lambda: 1)
    assert devices.choose("xla") == torch.device("cpu")


def test_the_largest_image_that_is_read_is_a_flag(monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png")
    devices.Machine("cpu", megapixels=0.002)
    with pytest.raises(InputError, match="a.png: more pixels than --megapixels allows; raise it"):
        images.read_image(str(tmp_path / "a.png"))
    machine = devices.Machine("cpu", megapixels=0.003).chosen()
    assert images.read_image(str(tmp_path / "a.png")).size == (50, 50)
    assert machine.device.type == "cpu"
