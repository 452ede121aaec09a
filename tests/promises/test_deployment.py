"""Operated and dual-path models go where models go: compiled, exported, other memory formats and number types."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import stridesurgery as ss
from tests.models import create, image
from tests.watch import error

Maps = dict[str, Tensor]


def operated(name: str) -> nn.Module:
    return ss.eliminate(create(name), "S1L0", input_size=64)


def dilated(name: str) -> nn.Module:
    return ss.features(
        ss.eliminate(create(name), "S1L0", dilate=True, input_size=64), input_size=64
    )


def dual(name: str) -> nn.Module:
    return ss.dual_path(create(name), "S1L0", sampler="original", input_size=64)


KINDS = (operated, dilated, dual)
NAMES = ("resnet18d", "tf_mobilenetv3_small_075")
every_kind = pytest.mark.parametrize("make", KINDS)


def as_maps(result: Any) -> Maps:
    return result if isinstance(result, dict) else {"answer": result}


def largest_error(found: Any, wanted: Any) -> float:
    found, wanted = as_maps(found), as_maps(wanted)
    assert found.keys() == wanted.keys()
    return max(error(found[key].float(), wanted[key].float()) for key in wanted)


@every_kind
@pytest.mark.parametrize("name", NAMES)
def test_compiled_without_a_break(make: Callable[[str], nn.Module], name: str) -> None:
    torch.compiler.reset()
    net = make(name)
    whole = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert largest_error(whole(image(64)), net(image(64))) < 1e-5


def test_compiled_to_machine_code() -> None:
    torch.compiler.reset()
    net = dual("torchvision/squeezenet1_1")
    whole = torch.compile(net, fullgraph=True)
    with torch.no_grad():
        assert largest_error(whole(image(64)), net(image(64))) < 1e-4


# not of "same"-padded networks: paddings computed from sizes that are symbols take torch minutes to
# simplify
@every_kind
@pytest.mark.parametrize("name", ("resnet18d", "mobilenetv3_small_050"))
def test_exported_for_any_batch_and_size(make: Callable[[str], nn.Module], name: str) -> None:
    net = make(name)
    rows, columns = (32 * torch.export.Dim(axis, min=2, max=16) for axis in ("rows", "columns"))
    shapes = ({0: torch.export.Dim("batch", min=1, max=8), 2: rows, 3: columns},)
    program = torch.export.export(net, (image(96, 128, batch=2),), dynamic_shapes=shapes)
    with torch.no_grad():
        for x in (image(64, batch=3), image(128, 96)):
            assert largest_error(program.module()(x), net(x)) < 1e-5


@every_kind
@pytest.mark.parametrize("name", NAMES[1:])
def test_onnx_gives_the_same_numbers(
    make: Callable[[str], nn.Module], name: str, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if torch.__version__.startswith("2.6."):
        pytest.skip("too new: the exporter of torch 2.6 does not go with this onnxscript")
    net, x = make(name), image(64)
    with torch.no_grad():
        wanted = as_maps(net(x))
    path = tmp_path / "model.onnx"
    torch.onnx.export(net, (x,), str(path), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert len(found) == len(wanted)
    for value, (key, reference) in zip(found, wanted.items(), strict=True):
        assert error(torch.from_numpy(value), reference) < 1e-4, key


@every_kind
@pytest.mark.parametrize("name", NAMES)
def test_channels_last(make: Callable[[str], nn.Module], name: str) -> None:
    """The same numbers, and no map falls back to the other layout."""
    net = make(name)
    with torch.no_grad():
        wanted = net(image(64))
        found = net.to(memory_format=torch.channels_last)(
            image(64).contiguous(memory_format=torch.channels_last)
        )
    assert largest_error(found, wanted) < 1e-5
    if make is dual:
        assert all(m.is_contiguous(memory_format=torch.channels_last) for m in found.values())


@every_kind
@pytest.mark.parametrize("name", NAMES[1:])
def test_bfloat16_autocast(make: Callable[[str], nn.Module], name: str) -> None:
    net = make(name)
    with torch.no_grad():
        wanted = net(image(64))
        with torch.autocast("cpu", torch.bfloat16):
            found = net(image(64))
    assert largest_error(found, wanted) < 0.1
    assert any(m.dtype == torch.bfloat16 for m in as_maps(found).values())


def test_gradient_checkpointing_of_the_model_goes_on_working() -> None:
    """Where the model has it, the operated module has it: the same gradients, recomputed."""
    x = image(64, batch=2)
    plain, saving = operated("resnet18").train(), operated("resnet18").train()
    saving.set_grad_checkpointing()
    for net in (plain, saving):
        net(x).square().sum().backward()
    for name, parameter in plain.named_parameters():
        assert error(saving.get_parameter(name).grad, parameter.grad) < 1e-5, name


@pytest.mark.parametrize("make", (dilated, dual))
def test_a_whole_network_under_checkpoint(make: Callable[[str], nn.Module]) -> None:
    x = image(64, batch=2)
    plain, saving = make("mobilenetv2_050"), make("mobilenetv2_050")
    sum(m.square().mean() for m in plain(x).values()).backward()
    sum(m.square().mean() for m in checkpoint(saving, x, use_reentrant=False).values()).backward()
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            assert error(saving.get_parameter(name).grad, parameter.grad) < 1e-5, name


def train_one(rank: int, file: str, folder: str) -> None:
    """One process of two: a step on half of the batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    net = nn.parallel.DistributedDataParallel(dual("mobilenetv2_050"))
    for _ in range(2):  # a second step fails where a parameter had no gradient in the first
        net.zero_grad()
        maps = net(image(64, batch=4)[2 * rank : 2 * rank + 2])
        sum(m.square().mean() for m in maps.values()).backward()
    torch.save(
        {n: p.grad for n, p in net.module.named_parameters()}, os.path.join(folder, f"{rank}.pt")
    )
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The dual path under DistributedDataParallel: averaged gradients, no unused parameters."""
    torch.multiprocessing.spawn(train_one, (str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    net = dual("mobilenetv2_050")
    sum(m.square().mean() for m in net(image(64, batch=4)).values()).backward()
    for name, parameter in net.named_parameters():
        if parameter.grad is None:
            assert both[0][name] is None, name
        else:
            assert torch.equal(both[0][name], both[1][name]), name
            assert error(both[0][name], parameter.grad) < 1e-4, name
