"""The command line: it says what the library says, its files read back, and what goes wrong is one line and a code."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from safetensors import safe_open
from torch import nn

import stridesurgery as ss
from stridesurgery._cli import main
from stridesurgery._cli.arguments import surgery
from stridesurgery._cli.models import Source
from stridesurgery._cli.terminal import fitted
from stridesurgery._tables import plain

SMALL = "--input-size=64"
BUILDERS = """
from torch import nn

def net(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 5, 4, 2))

def tied():
    made = net(3)
    made[3] = nn.Conv2d(3, 3, 3, 1, 1)
    made[3].weight = nn.Parameter(made[0].weight.detach())
    made.append(nn.Conv2d(3, 3, 3, 1, 1))
    made[4].weight = made[3].weight
    return made

def pooled(stride=2):
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AvgPool2d(3, stride, 1), nn.Conv2d(4, 5, 1), nn.Flatten(2))

def interrupted():
    raise KeyboardInterrupt

def broken():
    raise RuntimeError("two\\nlines")

def a_number():
    return 7
"""

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command in a folder of its own, which has a module `builders`; gives code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "builders", raising=False)
    (tmp_path / "builders.py").write_text(BUILDERS)

    def run(*argv: object) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in argv])
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


def strict(text: str) -> Any:
    """JSON without what only Python reads (NaN, Infinity)."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def net(**arguments: Any) -> nn.Module:
    return Source("builders:net", arguments, None).build()


def test_it_prints_what_the_library_prints(cli: Cli) -> None:
    fine = ss.eliminate(net(), "S1L0", input_size=64)
    dilated = ss.Surgery(1, (1,), dilate=True)
    told = {
        ("inspect",): ss.inspect(net(), 64),
        ("inspect", "S1L0"): ss.inspect(fine, 64),
        ("inspect", "--cost", "S1L0"): ss.cost(fine, 64),
        ("compare", "S1L0", "S1L1:dilate", "--tap=1"): ss.compare(
            net(), ["S1L0", dilated], 64, taps=[1]
        ),
        (
            "search",
            "--budget=9",
            "--axis=hw",
            "--axis=w",
            "--reduction=2",
            "--tap=1",
            "--dilate",
        ): ss.search(
            net(), 9.0, taps=[1], reduction=2.0, input_size=64, axes=("hw", "w"), dilate=True
        ),
        ("search", "--gmacs=0.001", "--activations=0.25", "--peak=0.1"): ss.search(
            net(),
            ss.Budget(macs=1e6, activation_bytes=2**18, peak_bytes=0.1 * 2**20),
            input_size=64,
        ),
    }
    for (command, *options), expected in told.items():
        assert cli(command, "builders:net", SMALL, *options) == (0, f"{expected}\n", "")


def test_json_has_what_the_text_has(cli: Cli) -> None:
    def data(command: str, *options: str) -> Any:
        code, out, err = cli(command, "builders:net", SMALL, *options, "--json")
        assert (code, err) == (0, "")
        return strict(out)

    assert [layer["out_grid"] for layer in data("inspect")["layers"]] == [[32, 32], [15, 15]]
    rows, expected = data("compare", "S1L0")["rows"], ss.compare(net(), "S1L0", 64)
    assert [row["macs"] for row in rows] == [row.cost.macs for row in expected]
    assert rows[1]["surgery"]["L"] == [0] and rows[2]["surgery"] is None
    assert [m["grid"] for m in rows[1]["maps"]] == [list(grid) for grid in expected[1].grids]
    assert data("compare", "S1L0", "--measure", "--rounds=2")["rows"][1]["latency"]["rounds"] == 2
    front = data("search", "--budget=9")["front"]
    assert [(c["name"], c["macs"]) for c in front] == [
        (c.name, c.macs) for c in ss.search(net(), 9.0, input_size=64)
    ]
    spent, counted = data("inspect", "--cost"), ss.cost(net(), 64)
    assert spent["peak_bytes"] == counted.peak_bytes
    assert sum(part["macs"] for part in spent["per_layer"]) == spent["macs"] == counted.macs


def test_json_says_what_is_infinite_or_not_known() -> None:
    told = plain({"sides": (1.0, math.inf), "offset": math.nan})
    assert told == {"sides": [1.0, "inf"], "offset": None}


def test_a_goal_that_the_budget_does_not_buy_is_a_no_with_its_price(cli: Cli) -> None:
    for options, said in (
        (["--budget=1.01"], "nearest is S1L1: reduction 2 at 3, at compute"),
        (["--budget=1.01", "--reduction=1"], "nearest is S2L0-1: reduction 1 at 3, at compute"),
        (["--budget=99", "--reduction=0.5"], "nearest is S2L0-1: reduction 1 at 3, at compute"),
    ):
        code, out, err = cli("search", "builders:net", SMALL, *options)
        assert (code, err) == (1, "") and said in out, out
        code, out, _ = cli("search", "builders:net", SMALL, *options, "--json")
        assert code == 1 and strict(out)["closest"]["name"] in said
    assert (
        strict(cli("search", "builders:net", SMALL, "--budget=99", "--json")[1])["closest"] is None
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("S2L4-6", ss.Surgery(2, (4, 6))),
        ("S1L12:dilate", ss.Surgery(1, (12,), dilate=True)),
        ("S1L16:axis=w,pool=keep", ss.Surgery(1, (16,), axis="w", pool="keep")),
        ("S1L0:stride=2,form=graph", ss.Surgery(1, (0,), stride=2, form="graph")),
        ("S1L0:restore_at=11", ss.Surgery(1, (0,), restore_at=11)),
        ("S1L0:restore-at=11", ss.Surgery(1, (0,), restore_at=11)),
    ],
)
def test_surgeries_are_written_as_a_name_and_options(text: str, expected: ss.Surgery) -> None:
    assert surgery(text) == expected


def write_weights(model: nn.Module, path: Path) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize(
    "model, arguments, build",
    [
        (
            "timm:test_resnet",
            ["act_layer=gelu"],
            lambda: timm.create_model("test_resnet", act_layer="gelu"),
        ),
        (
            "torchvision:squeezenet1_1",
            ["num_classes=7"],
            lambda: torchvision.models.squeezenet1_1(num_classes=7),
        ),
        ("builders:net", ["width=5"], lambda: net(width=5)),
    ],
    ids=["timm", "torchvision", "callable"],
)
def test_what_eliminate_writes_verify_reads(
    cli: Cli, tmp_path: Path, model: str, arguments: list[str], build: Any, ending: str
) -> None:
    original = build()
    for parameter in original.parameters():
        nn.init.normal_(parameter)
    write_weights(original, tmp_path / f"weights.{ending}")
    which = [model, *(f"--model-arg={a}" for a in arguments), f"--weights=weights.{ending}", SMALL]
    code, out, err = cli("eliminate", *which, "S1L0", "--out", "fine.safetensors")
    assert (code, err) == (0, "") and "fine.safetensors" in out and "random" not in out

    written = safetensors.torch.load_file(tmp_path / "fine.safetensors")
    assert written.keys() == original.state_dict().keys()
    assert all(torch.equal(value, written[key]) for key, value in original.state_dict().items())
    with safe_open(tmp_path / "fine.safetensors", framework="pt") as file:
        recipe = ss.Surgery.from_json(file.metadata()["surgery"])
    again = ss.eliminate(build(), recipe)
    again.load_state_dict(written)
    told = ss.verify(original, again)
    assert cli("verify", *which, "--operated", "fine.safetensors") == (0, f"{told}\n", "")
    assert cli("verify", *which, "S1L0") == (0, f"{told}\n", "")


def test_random_weights_are_the_same_each_time_and_said_to_be_random(cli: Cli) -> None:
    state = torch.random.get_rng_state()
    code, out, _ = cli(
        "eliminate", "builders:net", "S1L0", SMALL, "--out", "fine.safetensors", "--json"
    )
    assert code == 0 and strict(out)["surgery"]["input_size"] == [64, 64]
    assert (
        "weights are random"
        in cli("eliminate", "builders:net", "S1L0", SMALL, "--out", "fine.safetensors")[1]
    )
    assert cli("verify", "builders:net", "--operated", "fine.safetensors")[0] == 0
    assert torch.equal(torch.random.get_rng_state(), state)


def test_pretrained_weights_come_the_way_of_the_library(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both libraries find the file where they would have put it."""
    squeezenet = torchvision.models.squeezenet1_1()
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(
        squeezenet.state_dict(),
        cache / Path(torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url).name,
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    argv = ("S1L0", "--weights=pretrained", SMALL, "--out=fine.safetensors")
    assert cli("eliminate", "torchvision:squeezenet1_1", *argv)[0] == 0
    written = safetensors.torch.load_file("fine.safetensors")
    assert torch.equal(written["features.0.weight"], squeezenet.features[0].weight)

    resnet = timm.create_model("test_resnet")
    write_weights(resnet, tmp_path / "weights.safetensors")
    overlay = f"pretrained_cfg_overlay={{'file': {str(tmp_path / 'weights.safetensors')!r}}}"
    assert cli("eliminate", "timm:test_resnet", "--model-arg", overlay, *argv)[0] == 0
    written = safetensors.torch.load_file("fine.safetensors")
    assert torch.equal(written["conv1.0.weight"], resnet.conv1[0].weight)


def test_shared_weights_are_written_for_each_name(cli: Cli) -> None:
    assert cli("eliminate", "builders:tied", "S1L0", SMALL, "--out", "fine.safetensors")[0] == 0
    written = safetensors.torch.load_file("fine.safetensors")
    assert torch.equal(written["3.weight"], written["4.weight"])
    assert cli("verify", "builders:tied", "--operated", "fine.safetensors")[0] == 0


@pytest.mark.parametrize(
    "model, wanted, options",
    [
        ("net", "S1L0", []),
        ("net", "S1L1:dilate", ["--any-size"]),
        ("pooled", "S1L1:pool=keep", ["--any-size"]),
    ],
)
def test_onnx_computes_what_the_operated_model_does(
    cli: Cli, model: str, wanted: str, options: list[str]
) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if torch.__version__.startswith("2.6."):
        pytest.skip("too new: the exporter of torch 2.6 does not go with this onnxscript")
    argv = ("eliminate", f"builders:{model}", wanted, "--input-size=40x24", "--out", "fine.onnx")
    code, out, err = cli(*argv, *options)
    assert (code, err) == (0, "") and "fine.onnx" in out
    metadata = {entry.key: entry.value for entry in onnx.load("fine.onnx").metadata_props}
    operated = ss.eliminate(
        Source(f"builders:{model}", {}, None).build(), ss.Surgery.from_json(metadata["surgery"])
    )
    session = onnxruntime.InferenceSession("fine.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 40, 24), (5, 3, 40, 24), *([(3, 3, 32, 64)] if options else [])):
        x = torch.randn(shape)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), operated(x))


def test_onnx_says_what_is_not_of_any_size(cli: Cli) -> None:
    pytest.importorskip("onnxscript")
    argv = ("eliminate", "timm:test_vit", "S1L0:dilate,stride=8", "--any-size", "--out=fine.onnx")
    code, _, err = cli(*argv)
    assert code == 2 and "computes with its rows and columns as constants" in err, err
    assert not Path("fine.onnx").exists()


def test_a_file_is_replaced_as_a_whole_or_not_at_all(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "fine.safetensors").write_text("precious")
    argv = ("eliminate", "builders:net", "S1L0", SMALL, "--out", "out/fine.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.write(-1, b""))  # as on a disk that fails
        code, _, err = cli(*argv)
    assert code == 2 and err.startswith("stridesurgery eliminate: ") and "cannot be written" in err
    assert (out / "fine.safetensors").read_text() == "precious"
    assert cli(*argv)[0] == 0
    assert [path.name for path in out.iterdir()] == ["fine.safetensors"]
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert (out / "fine.safetensors").stat().st_mode == ordinary.stat().st_mode
    link = tmp_path / "link.safetensors"
    link.symlink_to(out / "fine.safetensors")
    assert cli(*argv[:-1], "link.safetensors")[0] == 0 and link.is_symlink()


def test_verify_says_no(cli: Cli, tmp_path: Path) -> None:
    assert cli("eliminate", "builders:net", "S1L0", SMALL, "--out", "fine.safetensors")[0] == 0
    path = tmp_path / "fine.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = safetensors.torch.load_file(path)
    state["0.weight"][0, 0, 0, 0] += 1
    safetensors.torch.save_file(state, path, metadata)
    code, out, err = cli("verify", "builders:net", "--operated", path)
    assert (code, out, err) == (
        1,
        "",
        "stridesurgery verify: weight 0.weight is not the original's\n",
    )
    code, _, err = cli("verify", "builders:net", "--model-arg=width=6", "--operated", path)
    assert (
        code == 1 and "7 of another shape (0.weight (4, 3, 3, 3) instead of (6, 3, 3, 3), " in err
    )
    del state["3.bias"]
    safetensors.torch.save_file(state, path, metadata)
    code, _, err = cli("verify", "builders:net", "--operated", path)
    assert code == 1 and "1 missing (3.bias)" in err
    safetensors.torch.save_file(state, path, {**metadata, "surgery": "{}"})
    code, _, err = cli("verify", "builders:net", "--operated", path)
    assert code == 1 and "not a surgery in JSON" in err


OUT = "--out=fine.safetensors"


@pytest.mark.parametrize(
    "argv, code, said",
    [
        ([], 2, "required: COMMAND"),
        (["plot"], 2, "required: PICTURE"),
        (["inspect"], 2, "required: model"),
        (["inspect", "resnet18"], 2, "not timm:NAME, torchvision:NAME or module.path:callable"),
        (
            ["inspect", "timm:resnet_18"],
            2,
            "timm has no model 'resnet_18'; the closest are resnet18,",
        ),
        (
            ["inspect", "torchvision:resnet1"],
            2,
            "torchvision has no model 'resnet1'; the closest are resnet1",
        ),
        (["inspect", "resnet50"], 2, "callable; did you mean timm:resnet50?"),
        (["inspect", "maskrcnn_resnet50_fpn"], 2, "did you mean torchvision:"),
        (["inspect", "builders:net", "--weights=folder.onnx"], 2, "folder.onnx: Is a directory"),
        (["inspect", "no_such:thing"], 2, "No module named 'no_such'"),
        (["inspect", "builders:nothing"], 2, "no attribute 'nothing'"),
        (["inspect", "builders:nn.__name__"], 2, "is a str, not a callable"),
        (
            ["inspect", "builders:broken"],
            2,
            "builders:broken cannot be built: RuntimeError: two lines",
        ),
        (["inspect", "builders:a_number"], 2, "returned a int, not a torch.nn.Module"),
        (
            ["inspect", "builders:net", "--model-arg=depth=3"],
            2,
            "unexpected keyword argument 'depth'",
        ),
        (["inspect", "builders:net", "--model-arg", "depth"], 2, "'depth' is not NAME=VALUE"),
        (
            ["inspect", "builders:net", "--weights=pretrained"],
            2,
            "is for timm: and torchvision: models",
        ),
        (
            ["inspect", "builders:net", "--weights=nowhere.pth"],
            2,
            "nowhere.pth: No such file or directory",
        ),
        (
            ["inspect", "builders:net", "--weights=builders.py"],
            2,
            "builders.py cannot be read as weights",
        ),
        (
            ["inspect", "builders:net", "--weights=pickled.pth"],
            2,
            "pickled.pth cannot be read as weights",
        ),
        (
            ["inspect", "builders:net", "--weights=torn.safetensors"],
            2,
            "torn.safetensors cannot be read as weights",
        ),
        (
            ["inspect", "builders:net", "--weights=other.pth"],
            2,
            "1 missing (3.weight); 1 unknown (9.weight)",
        ),
        (["inspect", "builders:net", "--input-size=0"], 2, "'0' is not a number of pixels"),
        (["inspect", "builders:net", "--input-size=3x4x5"], 2, "'3x4x5' is not a number of pixels"),
        (["inspect", "builders:net", "S1L0", "S1L1"], 2, "unrecognized arguments: S1L1"),
        (["inspect", "builders:net", "S1"], 2, "'S1' is not a surgery name"),
        (
            ["inspect", "builders:net", "S1L0:axs=w"],
            2,
            "'axs=w' is not an option of a surgery; there are stride=N",
        ),
        (["inspect", "builders:net", "S1L0:axis=x"], 2, "axis is 'h', 'w' or 'hw'"),
        (
            ["inspect", "builders:net", "S1L7"],
            1,
            "layer 7 does not exist: the model has layers 0 to 1",
        ),
        (["inspect", "timm:vit_tiny_patch16_224", "S1L0"], 1, "a size is fixed by pos_embed"),
        (["compare", "builders:net"], 2, "required: SURGERY"),
        (["compare", "builders:net", "S1L0", "--tap=nowhere"], 1, "nowhere"),
        (["compare", "builders:net", "S1L0", "--measure", "--rounds=0"], 1, "rounds"),
        (["search", "builders:net"], 2, "give either --budget, or"),
        (["search", "builders:net", "--budget=2", "--gmacs=1"], 2, "give either --budget, or"),
        (["search", "builders:net", "--budget=-1"], 1, "budget"),
        (["eliminate", "builders:net", "S1L0"], 2, "required: --out"),
        (
            ["eliminate", "builders:net", "S1L0", "--out=fine.pt"],
            2,
            "must end in .safetensors or .onnx",
        ),
        (["eliminate", "builders:net", "S1L0", "--out=no/fine.onnx"], 2, "there is no folder"),
        (
            ["eliminate", "builders:net", "S1L0", "--out=folder.onnx"],
            2,
            "is there and is not a file",
        ),
        (
            ["eliminate", "builders:net", "S1L0", "--out=/proc/fine.safetensors"],
            2,
            "cannot be written",
        ),
        (["eliminate", "timm:test_resnet", "S1L2", OUT], 1, "has stride 1. Strided layers: "),
        (
            ["verify", "builders:net"],
            2,
            "give either a SURGERY to carry out and check, or --operated",
        ),
        (["verify", "builders:net", "S1L0", "--operated=other.pth"], 2, "give either a SURGERY"),
        (["verify", "builders:net", "--operated=nowhere"], 2, "nowhere: No such file or directory"),
        (
            ["verify", "builders:net", "--operated=torn.safetensors"],
            2,
            "cannot be read as weights",
        ),
        (
            ["verify", "builders:net", "--operated=bare.safetensors"],
            1,
            "records no surgery",
        ),
        (["plot", "profile", "builders:net", "--out=a.txt"], 2, "must end in .png or .svg or .pdf"),
        (
            ["plot", "field", "builders:net", "--tap=0", "--out=a.png", "--image=no.jpg"],
            2,
            "no.jpg cannot be read",
        ),
        (
            ["plot", "field", "builders:net", "--tap=0", "--out=a.png", "--image=builders.py"],
            2,
            "cannot be read",
        ),
        (
            ["plot", "front", "builders:net", "--budget=1.0", "--out=a.png"],
            1,
            "there is nothing to draw",
        ),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(
    cli: Cli, tmp_path: Path, argv: list[str], code: int, said: str
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "torn.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    torch.save(Path("a path is code to unpickle"), tmp_path / "pickled.pth")
    state = Source("builders:net", {}, None).build().state_dict()
    state["9.weight"] = state.pop("3.weight")
    torch.save(state, tmp_path / "other.pth")
    found = cli(*argv)
    assert found[0] == code and found[1] == "", found
    assert (
        found[2].startswith("stridesurgery") and found[2].count("\n") == 1 and said in found[2]
    ), found[2]


def test_debug_shows_where(cli: Cli) -> None:
    code, out, err = cli("inspect", "builders:net", "S1L7", "--debug")
    assert (code, out) == (1, "") and err.startswith("Traceback") and "request.py" in err
    assert err.splitlines()[-1].startswith("stridesurgery inspect: layer 7 does not exist")


def test_interrupted_it_ends_quietly(cli: Cli) -> None:
    assert cli("inspect", "builders:interrupted") == (130, "", "")


def test_help_names_every_command(cli: Cli) -> None:
    code, out, _ = cli("--help")
    assert code == 0 and all(
        name in out for name in ("inspect", "compare", "search", "eliminate", "verify", "plot")
    )
    assert "Exit codes: 0 done; 1" in out
    assert cli("--version")[1] == f"stridesurgery {ss.__version__}\n"
    for name in (
        "inspect",
        "compare",
        "search",
        "eliminate",
        "verify",
        "plot profile",
        "plot field",
        "plot front",
    ):
        assert cli(*name.split(), "--help")[1].startswith(f"usage: stridesurgery {name}")


def test_a_narrow_terminal_shows_all_of_it(cli: Cli) -> None:
    wide = [
        str(ss.inspect(net(), 64)),
        str(ss.compare(net(), ["S1L0", "S1L1", "S2L0-1"], 64)),
        str(ss.cost(net(), 64)),
    ]
    for text in wide:
        for width in (40, 60):
            narrow = fitted(text, width)
            assert max(map(len, narrow.splitlines())) <= width
            assert set(narrow.split()) == set(text.split())
        assert fitted(text, 400) == text


def test_only_a_terminal_is_fitted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("inspect", "builders:net")
    text = cli(*argv)[1]
    monkeypatch.setenv("COLUMNS", "50")
    assert cli(*argv)[1] == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert max(map(len, cli(*argv)[1].splitlines())) <= 50 < max(map(len, text.splitlines()))


def fresh(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(ss.__file__).parent.parent)}
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, env=environment, **options
    )


def test_help_and_errors_of_usage_need_no_torch() -> None:
    """A fresh process without torch, timm and numpy tells what there is."""
    heavy = "dict.fromkeys(['torch', 'torchvision', 'timm', 'numpy'])"
    code = f"import sys; sys.modules.update({heavy}); from stridesurgery._cli import main; main()"
    for argv in (["--version"], ["--help"], ["search", "--help"], ["plot", "field", "--help"]):
        found = fresh("-c", code, *argv)
        assert found.stdout.startswith(("stridesurgery ", "usage: ")) and not found.stderr
    assert "required: model" in fresh("-c", code, "inspect").stderr


def test_import_is_as_quiet_as_timm_and_shows_public_names_only() -> None:
    """Also when everything is imported; names that are there cannot be hidden by modules."""
    code = """
import stridesurgery._rewrite.recalibrate, stridesurgery.plot, sys, stridesurgery as ss
assert dir(ss) == sorted(ss.__all__)
assert [name for name in dir(ss) if not callable(getattr(ss, name))] == ["detection"]
assert "torch.utils.cpp_extension" not in sys.modules  # it looks for compilers, and says so
from stridesurgery import *
print(eliminate is ss.eliminate, hasattr(ss, "nothing"))
"""
    assert fresh("-c", code).stdout == "True False\n"
    assert fresh("-c", code).stderr == fresh("-c", "import timm").stderr


def test_a_closed_output_is_told() -> None:
    code = "import sys; sys.stdout = None; from stridesurgery._cli import main; sys.exit(main([]))"
    found = fresh("-c", code)
    assert found.returncode == 2 and "the output cannot be written: it is closed" in found.stderr


def test_a_closed_pipe_ends_it_quietly() -> None:
    command = [sys.executable, "-m", "stridesurgery", "inspect", "timm:test_resnet"]
    environment = {**os.environ, "PYTHONPATH": str(Path(ss.__file__).parent.parent)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # long before it has something to say
    said = process.stderr.read()
    assert "Traceback" not in said and "Broken" not in said
    assert process.wait() == 141


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="this system has no disk that is always full"
)
def test_output_that_cannot_be_written_is_told(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, _, err = cli("inspect", "builders:net")
    assert (code, err) == (
        2,
        "stridesurgery: the output cannot be written: No space left on device\n",
    )
