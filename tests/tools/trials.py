"""One trial: a tool takes a model, and what it makes is compared with the model itself."""

import copy
import importlib.util
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import stridesurgery as ss
from tests.models import awake, image

NETWORKS = ("mobilenetv3_small_100", "convnext_atto", "resnet18", "efficientnet_b0")
SIZE = 64
FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "original": lambda net: net,
    "module": lambda net: ss.eliminate(net, "S1L0", input_size=SIZE),
    "graph": lambda net: ss.eliminate(net, "S1L0", form="graph", input_size=SIZE),
    "dilate": lambda net: ss.eliminate(net, "S1L0", dilate=True, input_size=SIZE),
    "features": lambda net: ss.features(net, input_size=SIZE),
    "dual path": lambda net: ss.dual_path(net, "S1L0", input_size=SIZE),
}
Tool = Callable[[nn.Module, Tensor], Any]


def fx_trace(net: nn.Module, x: Tensor) -> Any:
    return torch.fx.symbolic_trace(net)(x)


def jit_trace(net: nn.Module, x: Tensor) -> Any:
    return torch.jit.trace(net, x, strict=False)(x)


def jit_script(net: nn.Module, x: Tensor) -> Any:
    return torch.jit.script(net)(x)


def export(net: nn.Module, x: Tensor) -> Any:
    return torch.export.export(net, (x,)).module()(x)


def compiled(net: nn.Module, x: Tensor) -> Any:
    torch.compiler.reset()
    return torch.compile(net, fullgraph=True, backend="aot_eager")(x)


def onnx(net: nn.Module, x: Tensor) -> Any:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        torch.onnx.export(net, (x,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return [torch.from_numpy(value) for value in found]


def openvino(net: nn.Module, x: Tensor) -> Any:
    import openvino

    program = torch.export.export(net, (x,))
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.compile_model(openvino.convert_model(program), "CPU", precise)
    return [torch.from_numpy(value.copy()) for value in model(x.numpy()).values()]


def fx_quantized(net: nn.Module, x: Tensor) -> Any:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(copy.deepcopy(net), get_default_qconfig_mapping(), (x,))
    prepared(x)
    return Approximate(convert_fx(prepared)(x))


def pt2e_quantized(net: nn.Module, x: Tensor) -> Any:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(net, (x,)).module(), quantizer)
    prepared(x)
    return Approximate(convert_pt2e(prepared)(x))


def pruned(net: nn.Module, x: Tensor) -> Any:
    import torch_pruning

    net = copy.deepcopy(net)
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups == 1)
    group = (
        torch_pruning.DependencyGraph()
        .build_dependency(net, x)
        .get_pruning_group(first, torch_pruning.prune_conv_out_channels, idxs=[0])
    )
    group.prune()
    net(x)
    return None  # another network: it runs


def accelerated(net: nn.Module, x: Tensor) -> Any:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(copy.deepcopy(net))
    copy.deepcopy(prepared)
    return accelerator.unwrap_model(prepared)(x)


def lightning(net: nn.Module, x: Tensor) -> Any:
    import pytorch_lightning

    class Task(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy.deepcopy(net)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return sum(value.float().mean() for value in tensors(self.net(batch)))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-3)

    trainer = pytorch_lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Task(), torch.utils.data.DataLoader([image(SIZE)[0]] * 4, batch_size=2))
    return None  # it has trained


def averaged(net: nn.Module, x: Tensor) -> Any:
    ema = timm.utils.ModelEmaV3(net)
    ema.update(net)
    return ema.module(x)


def safetensors(net: nn.Module, x: Tensor) -> Any:
    from safetensors.torch import load_model, save_model

    other = copy.deepcopy(net)
    for parameter in other.parameters():
        parameter.data.zero_()
    with tempfile.TemporaryDirectory() as folder:
        save_model(net, f"{folder}/model.safetensors")
        load_model(other, f"{folder}/model.safetensors")
    return other(x)


def distributed(net: nn.Module, x: Tensor) -> Any:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    with tempfile.NamedTemporaryFile() as store:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store.name}.ddp", rank=0, world_size=1
        )
        try:
            with torch.enable_grad():
                wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(net))
                result = wrapped(x)
                sum(value.float().mean() for value in tensors(result)).backward()
        finally:
            torch.distributed.destroy_process_group()
    return result


TOOLS: dict[str, tuple[Tool, str]] = {  # and the package that it needs
    "torch.fx.symbolic_trace": (fx_trace, "torch"),
    "torch.jit.trace": (jit_trace, "torch"),
    "torch.jit.script": (jit_script, "torch"),
    "torch.export": (export, "torch"),
    "torch.compile (no graph break)": (compiled, "torch"),
    "ONNX, run by onnxruntime": (onnx, "onnxruntime"),
    "OpenVINO (from torch.export)": (openvino, "openvino"),
    "FX quantization": (fx_quantized, "torch"),
    "PT2E quantization (torchao)": (pt2e_quantized, "torchao"),
    "Torch-Pruning": (pruned, "torch_pruning"),
    "accelerate": (accelerated, "accelerate"),
    "Lightning": (lightning, "pytorch_lightning"),
    "EMA (timm.utils.ModelEmaV3)": (averaged, "torch"),
    "safetensors": (safetensors, "safetensors"),
    "DistributedDataParallel": (distributed, "torch"),
}


class Approximate:
    """What a tool gives that changes numbers: only its shapes are compared."""

    def __init__(self, result: Any) -> None:
        self.result = result


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    parts = result.values() if isinstance(result, dict) else result
    return [tensor for part in parts for tensor in tensors(part)]


def trial(tool: Tool, net: nn.Module) -> str:
    """Return "works", or the first line of the error, or what differs."""
    x = image(SIZE)
    with torch.no_grad():
        wanted = tensors(net(x))
        trains = tool in (lightning, pruned)
        try:
            with torch.enable_grad() if trains else torch.no_grad():
                found = tool(net, x)
        except Exception as problem:
            text = " ".join(str(problem).split()).partition(' File "')[0]  # no paths of a machine
            text = re.sub(
                r" \(of Python compilation unit at: 0x\w+\)|___torch_mangle_\d+\.", "", text
            )
            return f"{type(problem).__name__}: {text[:160].rstrip(':')}"
    if found is None:
        return "works"
    shapes_only = isinstance(found, Approximate)
    values = tensors(found.result if shapes_only else found)
    if [v.shape for v in values] != [v.shape for v in wanted]:
        return "gives other shapes"
    gaps = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(values, wanted, strict=True)]
    return "works" if shapes_only or max(gaps) < 1e-3 else f"differs by {max(gaps):.2g}"


def main(network: str, rows: Path) -> None:
    """Run all trials on one network that are not in the cache, and add them to it."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    done = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    known = {(row["network"], row["tool"], row["form"]) for row in done}
    torch.manual_seed(0)
    net = awake(timm.create_model(network, scriptable=True)).eval()
    for form, make in FORMS.items():
        operated = make(net)
        for name, (tool, package) in TOOLS.items():
            if (network, name, form) in known:
                continue
            missing = importlib.util.find_spec(package) is None
            result = "not run" if missing else trial(tool, operated)
            row = {"network": network, "tool": name, "form": form, "result": result}
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
