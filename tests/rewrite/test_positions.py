"""positions="resample": what fixes the size of a grid follows a finer one, and keeps its keys and values."""

import copy
import io
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import RotaryEmbeddingCat, resample_abs_pos_embed
from torch import Tensor, nn

import stridesurgery as ss
from tests.models import awake, create, timm_model

VIT, DINO = "vit_tiny_patch16_224", "vit_small_patch14_dinov2"
SWIN = "swin_tiny_patch4_window7_224"
# the layer, the stride that remains (None: 1), and how the model is made small
TINY = {"depth": 1, "img_size": 64}
NARROW = TINY | {"embed_dim": 96, "num_heads": 3}
SMALL: dict[str, tuple[int | str, int | None, dict[str, Any]]] = {
    # absolute positions
    VIT: (0, 8, {"depth": 2}),
    DINO: (0, 7, {"depth": 1, "img_size": 70}),
    "vit_wee_patch16_reg1_gap_256": (0, 8, {"depth": 2, "img_size": 64}),
    "deit_tiny_distilled_patch16_224": (0, 8, TINY),
    "deit3_small_patch16_224": (0, 8, TINY),
    "flexivit_small": (0, 8, TINY),
    "aimv2_large_patch14_224": (0, 7, NARROW | {"img_size": 56}),
    "beit3_base_patch16_224": (0, 8, NARROW),
    "eva02_base_patch16_clip_224": (0, 8, NARROW),
    "torchvision/vit_b_16": (0, 8, {"image_size": 64}),
    "vit_tiny_r_s16_p8_224": (0, None, TINY),
    "vit_small_r26_s32_224": (10, None, {"depth": 1, "img_size": 128}),
    "vit_base_mci_224": (0, 2, {"depth": 1}),
    "vitamin_small_224": (10, None, {}),
    "cait_xxs24_224": (0, 8, TINY),
    "convit_tiny": (0, 8, TINY),
    "pit_ti_224": (0, 4, {"img_size": 64, "depth": (1, 1, 1)}),
    "visformer_tiny": (0, None, {"depth": (1, 1, 1), "img_size": 64}),
    "nest_tiny": (0, 2, {}),
    "resnet50_clip": (22, None, {}),
    # rotary embeddings
    "eva02_tiny_patch14_224": (0, 7, {"depth": 2, "img_size": 56}),
    "vit_pe_lang_large_patch14_448": (0, 7, NARROW | {"img_size": 56}),
    "vit_small_patch16_rope_224": (0, 8, TINY),
    "vit_small_patch16_rope_mixed_ape_224": (0, 8, TINY),
    "vit_tiny_patch16_dinov3_qkvb": (0, 8, TINY),
    # biases by offset or distance
    "beit_base_patch16_224": (0, 8, NARROW),
    "test_vit_relpos": (0, 8, {}),
    "vit_srelpos_small_patch16_224": (0, 8, TINY),
    "vit_relpos_base_patch32_plus_rpn_256": (0, 16, NARROW | {"img_size": 128}),
    "test_coatnet": (0, None, {}),
    "coatnext_nano_rw_224": (0, None, {}),
    "botnet26t_256": (9, None, {}),
    "lamhalobotnet50ts_256": (0, None, {}),
    "mvitv2_tiny": (0, 2, {}),
    "gcvit_xxtiny": (0, None, {}),
    "samvit_base_patch16_224": (0, 8, TINY | {"global_attn_indexes": (0,)}),
    "levit_128s": (3, None, {"depth": (1, 1, 1)}),
    "levit_conv_128s": (3, None, {"depth": (1, 1, 1)}),
    "efficientformer_l1": (5, None, {"depths": (1, 1, 1, 2), "num_vit": 1}),
    "efficientformerv2_s0": (0, None, {}),
    # windows
    SWIN: (0, 2, {"depths": (2, 2), "img_size": 56}),
    "swinv2_tiny_window8_256": (0, 2, {"depths": (2, 2), "img_size": 64}),
    "swinv2_cr_tiny_224": (0, 2, {"depths": (2, 2), "img_size": 56, "window_size": 7}),
    "torchvision/maxvit_t": (0, None, {}),
    "hiera_tiny_224": (0, 2, {}),
    "hieradet_small": (0, 2, {}),
    # attention that fixes no size
    "eca_halonext26ts": (9, None, {}),
    "mobilevit_xxs": (0, None, {}),
    "edgenext_xx_small": (0, 2, {}),
    "pvt_v2_b0": (0, 2, {}),
    "tiny_vit_5m_224": (0, None, {}),
    "twins_svt_small": (0, 2, {}),
    "xcit_nano_12_p8_224": (0, None, {"depth": 1}),
}
OLDER_TIMM = not hasattr(RotaryEmbeddingCat, "update_feat_shape")


def built(name: str, **options: Any) -> nn.Module:
    """The model with tables of positions that are not zero."""
    torch.manual_seed(0)
    library, _, short = name.rpartition("/")
    build = torchvision.models.get_model if library else timm_model
    model = build(short, **(SMALL[name][2] | options)).eval()
    for parameter in model.parameters():
        if parameter.abs().max() < 0.2:
            nn.init.normal_(parameter, std=0.2)
    return awake(model).eval()


def side(model: nn.Module) -> int:
    return ss.inspect(model).input_size[0]


def operated(name: str, model: nn.Module, **options: Any) -> nn.Module:
    layer, stride, _ = SMALL[name]
    try:
        return ss.eliminate(model, L=layer, stride=stride or 1, positions="resample", **options)
    except ss.OperatorError as problem:
        if OLDER_TIMM and "not as its entry expects" in str(problem):
            pytest.skip(f"too new: {problem}")
        raise


def tables_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that read a table resampled, by the table's name."""
    return {
        f"{path}.{name}".removeprefix("."): module
        for path, module in model.named_modules()
        for name, table in vars(module).get("position_tables", {}).items()
        if not isinstance(table, str) and max(table.by) > 1
    }


# the others with `-m zoo`
USUAL = (
    VIT,
    DINO,
    "eva02_tiny_patch14_224",
    "beit_base_patch16_224",
    "convit_tiny",
    "test_vit_relpos",
    "test_coatnet",
    SWIN,
    "pit_ti_224",
)


def some(names: Iterable[str]) -> list[Any]:
    return [n if n in USUAL else pytest.param(n, marks=pytest.mark.zoo) for n in names]


@pytest.fixture(scope="module", params=some(SMALL))
def pair(request: pytest.FixtureRequest) -> tuple[str, nn.Module, nn.Module, Tensor]:
    model = built(request.param)
    image = torch.randn(2, 3, side(model), side(model))
    return request.param, model, operated(request.param, model), image


def test_it_is_verified_and_keeps_keys_and_values(pair: Any) -> None:
    _, model, fine, _ = pair
    assert str(ss.verify(model, fine)).count("equal") >= 2
    before, after = model.state_dict(), fine.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    model.load_state_dict(after)
    fine.load_state_dict(before)
    assert isinstance(fine, type(model)) and fine.surgery.positions == "resample"


def test_a_table_on_the_old_cells_is_the_table(pair: Any) -> None:
    _, model, fine, _ = pair
    for name, module in tables_of(fine).items():
        table = module.position_tables[name.rpartition(".")[2]]
        old, new = _cells(module, name, table)
        if table.offsets:
            middle = [n // 2 for n in new.shape[: len(table.grid)]]
            reach = [(n - 1) * k for n, k in zip(table.grid, table.by, strict=True)]
            window = [
                slice(m - r, m + r + 1, k) for m, r, k in zip(middle, reach, table.by, strict=True)
            ]
        else:
            window = [slice(None, None, k) for k in table.by]
        assert torch.allclose(new[tuple(window)], old, rtol=0, atol=1e-6), name


def _cells(module: nn.Module, name: str, table: Any) -> tuple[Tensor, Tensor]:
    """A table before and after, with its cells along the first axes."""
    attribute = name.rpartition(".")[2]
    raw, now = module._parameters[attribute], getattr(module, attribute)
    cells = []
    for value, grid in ((raw, table.grid), (now, table.finer)):
        lengths = [2 * n - 1 if table.offsets else n for n in grid]
        if table.flat:
            end = value.shape[table.axis] - table.suffix
            value = value.movedim(table.axis, 0)[table.prefix : end].unflatten(0, lengths)
        else:
            value = value.movedim(
                list(range(table.axis, table.axis + len(grid))), list(range(len(grid)))
            )
        cells.append(value.detach())
    return cells[0], cells[1]


def test_gradients_reach_the_table(pair: Any) -> None:
    _, _, fine, image = pair
    training = copy.deepcopy(fine).train()
    result = training(image)
    (result if isinstance(result, Tensor) else result[0]).square().sum().backward()
    for name, module in tables_of(training).items():
        gradient = module._parameters[name.rpartition(".")[2]].grad
        assert gradient is not None and gradient.abs().sum() > 0, name


def test_it_survives_copies_and_files(pair: Any) -> None:
    _, _, fine, image = pair
    file = io.BytesIO()
    torch.save(fine, file)
    file.seek(0)
    with torch.no_grad():
        wanted = fine(image)
        for other in (copy.deepcopy(fine), torch.load(file, weights_only=False)):
            torch.testing.assert_close(other(image), wanted)


# The twin: the model that its own constructor builds for the finer grid. Its sizes, masks and
# indices are the library's witness; its tables and strides are given to it.
MEASURED = ("rel_coords_log", "rel_indices", "t_x", "t_y")
TWINS: dict[str, dict[str, Any]] = {
    VIT: {"img_size": 448},
    DINO: {"img_size": 140},
    "vit_wee_patch16_reg1_gap_256": {"img_size": 128},
    "deit_tiny_distilled_patch16_224": {"img_size": 128},
    "deit3_small_patch16_224": {"img_size": 128},
    "flexivit_small": {"img_size": 128},
    "aimv2_large_patch14_224": {"img_size": 112},
    "beit3_base_patch16_224": {"img_size": 128},
    "eva02_base_patch16_clip_224": {"img_size": 128},
    "torchvision/vit_b_16": {"image_size": 128},
    "vit_tiny_r_s16_p8_224": {"img_size": 128},
    "vit_small_r26_s32_224": {"img_size": 256},
    "vit_base_mci_224": {"img_size": 448},
    "vitamin_small_224": {"img_size": 448},
    "cait_xxs24_224": {"img_size": 128},
    "convit_tiny": {"img_size": 128},
    "visformer_tiny": {"img_size": 128},
    "nest_tiny": {"img_size": 448},
    "resnet50_clip": {"img_size": 448},
    "eva02_tiny_patch14_224": {"img_size": 112},
    "vit_pe_lang_large_patch14_448": {"img_size": 112},
    "vit_small_patch16_rope_224": {"img_size": 128, "ref_feat_shape": (4, 4)},
    "vit_small_patch16_rope_mixed_ape_224": {"img_size": 128},
    "beit_base_patch16_224": {"img_size": 128},
    "test_vit_relpos": {"img_size": 320},
    "vit_srelpos_small_patch16_224": {"img_size": 128},
    "vit_relpos_base_patch32_plus_rpn_256": {"img_size": 256},
    "test_coatnet": {"img_size": 320},
    "coatnext_nano_rw_224": {"img_size": 448},
    "botnet26t_256": {"img_size": 512},
    "lamhalobotnet50ts_256": {"img_size": 512},
    "mvitv2_tiny": {"img_size": 448},
    "gcvit_xxtiny": {"img_size": 448},
    "samvit_base_patch16_224": {"img_size": 128},
    "levit_128s": {"img_size": 448},
    "levit_conv_128s": {"img_size": 448},
    "efficientformerv2_s0": {"img_size": 448},
    SWIN: {"img_size": 112, "window_size": 7},
    "swinv2_tiny_window8_256": {"img_size": 128},
    "swinv2_cr_tiny_224": {"img_size": 112, "window_size": 7},
    "torchvision/maxvit_t": {"input_size": (448, 448)},
    "hiera_tiny_224": {"img_size": 448},
}


@pytest.mark.parametrize("name", some(TWINS))
def test_it_equals_the_model_that_is_built_for_the_finer_grid(name: str) -> None:
    model = built(name)
    fine = operated(name, model)
    twin = built(name, **TWINS[name])
    tables = tables_of(fine)
    with torch.no_grad():
        for key, value in twin.state_dict().items():
            wanted = getattr(tables[key], key.rpartition(".")[2]) if key in tables else None
            value.copy_(fine.state_dict()[key] if wanted is None else wanted)
    for path, module in list(fine.named_modules()):
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) and path:
            parent, _, attribute = path.rpartition(".")
            setattr(twin.get_submodule(parent), attribute, copy.deepcopy(module))
        own = twin.get_submodule(path)
        for size in ("img_size", "image_size", "patch_size"):
            if hasattr(module, size):
                setattr(own, size, getattr(module, size))
        for coordinates in MEASURED:  # in old cells, which the twin has never seen
            if (value := getattr(module, coordinates, None)) is not None:
                setattr(own, coordinates, value)
    image = torch.randn(2, 3, side(model), side(model))
    with torch.no_grad():
        torch.testing.assert_close(fine(image), twin(image), rtol=1e-4, atol=1e-4)


def test_a_size_in_forward_intermediates_gives_a_graph() -> None:
    """Its twin is told the new grid by hand: the constructor of the model has no size."""
    model = awake(timm.create_model("efficientformer_l1", depths=(1, 1, 1, 2), num_vit=1)).eval()
    layer, image = model.stages[3].downsample.conv, torch.randn(2, 3, 224, 224)
    nn.init.normal_(model.stages[3].blocks[2].token_mixer.attention_biases)
    fine = ss.eliminate(model, L="stages.3.downsample.conv", positions="resample")
    assert not hasattr(fine, "forward_intermediates") and ss.verify(model, fine)
    earlier = ss.eliminate(model, L="stages.2.downsample.conv", positions="resample")
    layer.stride = (1, 1)
    old = model.stages[3].blocks[2].token_mixer
    twin = type(old)(448, key_dim=old.key_dim, num_heads=8, resolution=14)
    table = earlier.stages[3].blocks[2].token_mixer.attention_biases
    made = {"attention_biases": table, "attention_bias_idxs": twin.attention_bias_idxs}
    twin.load_state_dict(old.state_dict() | made)
    model.stages[3].blocks[2].token_mixer = twin
    with torch.no_grad():
        torch.testing.assert_close(fine(image), model.eval()(image), rtol=1e-4, atol=1e-4)


def test_without_it_the_refusal_names_it() -> None:
    with pytest.raises(ss.GridError, match="positions='resample'"):
        ss.eliminate(built(VIT), "S1L0")


def test_a_graph_says_that_the_model_comes_first() -> None:
    model = built(DINO)
    graphs = ss.features(model, "blocks.0"), operated(DINO, model, form="graph")
    for graph, positions in itertools.product(graphs, ("refuse", "resample")):
        with pytest.raises(ss.GridError, match="operate the model first") as raised:
            ss.eliminate(graph, L=0, positions=positions, input_size=70)
        assert "head" not in str(raised.value)
    maps = ss.features(operated(DINO, model), "blocks.0")(torch.rand(1, 3, 70, 70))
    assert maps["blocks.0"].shape[-2:] == (10, 10)


@pytest.mark.parametrize("name", [DINO, pytest.param(SWIN, marks=pytest.mark.zoo)])
def test_compare_finds_the_larger_input_of_a_model_of_one_size(name: str) -> None:
    model, twin = built(name), built(name, **TWINS[name])
    surgery = operated(name, model).surgery
    rows = ss.compare(model, surgery)
    _, fine, larger = rows
    assert larger.input_size == (2 * side(model),) * 2 and larger.grids == fine.grids
    assert larger.cost.macs == ss.cost(twin).macs
    refusing = ss.compare(model, ss.Surgery(1, (0,), dilate=True, stride=surgery.stride))
    assert len(refusing.rows) == 2 and "no larger input" in refusing.notes[0]


def test_timms_own_resampling_can_be_had() -> None:
    model = built(VIT)
    fine = ss.eliminate(model, "S1L0", stride=8, positions="resample-timm")
    wanted = resample_abs_pos_embed(model.pos_embed, (28, 28), num_prefix_tokens=1)
    torch.testing.assert_close(fine.pos_embed, wanted)


def test_a_model_that_resamples_by_itself_does_so_from_the_finer_table() -> None:
    fixed, dynamic = built(DINO), built(DINO, dynamic_img_size=True)
    dynamic.load_state_dict(fixed.state_dict())
    fine, own = operated(DINO, dynamic), ss.eliminate(dynamic, L=0, stride=7, input_size=70)
    with torch.no_grad():
        image = torch.randn(2, 3, 70, 70)
        torch.testing.assert_close(fine(image), operated(DINO, fixed)(image))
        assert ss.verify(dynamic, own) and own(image).shape == fine(image).shape
        assert fine(torch.randn(1, 3, 98, 70)).shape == (1, 384)


def test_an_axis_alone() -> None:
    fine = ss.eliminate(built(VIT), "S1L0", stride=8, axis="w", positions="resample")
    assert fine.pos_embed.shape[1] == 1 + 14 * 28


@pytest.mark.parametrize("name", some([VIT, "convit_tiny", "samvit_base_patch16_224"]))
def test_two_surgeries_are_as_one(name: str) -> None:
    model = built(name)
    image = torch.randn(1, 3, side(model), side(model))
    twice = ss.eliminate(operated(name, model), L=0, stride=4, positions="resample")
    once = ss.eliminate(model, L=0, stride=4, positions="resample")
    with torch.no_grad():
        torch.testing.assert_close(twice(image), once(image), rtol=1e-4, atol=1e-4)


# with `-m zoo`
WITH_GRAPHS = (
    SWIN,
    "eva02_tiny_patch14_224",
    "beit_base_patch16_224",
    "samvit_base_patch16_224",
)


@pytest.mark.parametrize(
    "name", [VIT, *(pytest.param(n, marks=pytest.mark.zoo) for n in WITH_GRAPHS)]
)
def test_graphs_compile_export_and_trace(name: str) -> None:
    model = built(name)
    fine, image = operated(name, model), torch.randn(2, 3, side(model), side(model))
    with torch.no_grad():
        wanted = fine(image)
        results = {
            "graph": operated(name, model, form="graph")(image),
            "compile": torch.compile(fine, backend="aot_eager")(image),
            "export": torch.export.export(fine, (image,), strict=False).module()(image),
            "trace": torch.jit.trace(fine, image, check_trace=False)(image),
        }
    for how, result in results.items():
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5, msg=how)
    compiled = torch.compile(fine, backend="aot_eager")
    for network in (fine, compiled):
        fine.zero_grad()
        network(image).square().sum().backward()
        for key, module in tables_of(fine).items():
            gradient = module._parameters[key.rpartition(".")[2]].grad
            assert gradient is not None and gradient.abs().sum() > 0, (network, key)


# torch's exporter takes neither BEiT nor SAM, with or without surgery
IN_ONNX = (VIT, SWIN, "eva02_tiny_patch14_224", "test_coatnet", "convit_tiny")


@pytest.mark.zoo
@pytest.mark.parametrize("name", IN_ONNX)
def test_onnx_gives_the_same(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = built(name)
    fine, image = operated(name, model), torch.randn(2, 3, side(model), side(model))
    program = torch.onnx.export(fine, (image,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (result,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), fine(image), rtol=1e-3, atol=1e-3)


def test_a_module_of_ones_own_is_taught() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 16, 16)
            self.table = nn.Parameter(torch.randn(1, 8, 4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.patches(x) + self.table

    def follow(module: Any, growth: Callable[[str], ss.ops.Growth]) -> None:
        ss.ops.resample(module, "table", growth("patches").after, axis=2)

    model, image = Tokens(), torch.randn(1, 3, 64, 64)
    with pytest.raises(ss.GridError, match="table"):
        ss.eliminate(model, "S1L0", stride=8, input_size=64, positions="resample")
    ss.ops.register_positions(Tokens, follow)
    fine = ss.eliminate(model, "S1L0", stride=8, input_size=64, positions="resample")
    torch.testing.assert_close(fine(image)[:, :, ::2, ::2], model(image))


def test_a_replica_resamples_the_tensor_that_it_is_given() -> None:
    fine = ss.eliminate(built(VIT), "S1L0", stride=8, positions="resample")
    replica = fine._replicate_for_data_parallel()
    replica._parameters = {}
    replica.pos_embed = 2 * fine._parameters["pos_embed"]
    torch.testing.assert_close(replica.pos_embed, 2 * fine.pos_embed)


def test_a_model_that_is_not_as_its_entry_expects_is_refused() -> None:
    model = built(VIT)
    model.pos_embed = nn.Parameter(torch.zeros(1, 100, 192))
    model.patch_embed.forward = nn.Sequential(model.patch_embed.proj, nn.Flatten(2)).forward
    model._pos_embed = lambda x: x.transpose(1, 2)
    with pytest.raises(ss.OperatorError, match="pos_embed of another size"):
        ss.eliminate(model, "S1L0", stride=8, positions="resample")


def test_bad_input() -> None:
    with pytest.raises(ss.RequestError, match="positions"):
        ss.eliminate(built(VIT), "S1L0", positions="interpolate")
    with pytest.raises(TypeError, match="module class"):
        ss.ops.register_positions(3, lambda module, growth: None)  # type: ignore[arg-type]


def test_a_mixer_stays_refused() -> None:
    model = timm.create_model("mixer_s32_224").eval()
    with pytest.raises(ss.GridError, match="mlp_tokens"):
        ss.eliminate(model, "S1L0", stride=16, positions="resample")


@pytest.mark.parametrize(
    ("name", "stride", "layers"),
    [("resnet18", 8, (11, 16)), ("pvt_v2_b0", 16, (11,)), (VIT, 8, (0,))],
)
def test_output_stride_takes_the_last_strides(name: str, stride: int, layers: tuple[int]) -> None:
    model = built(name) if name in SMALL else create(name)
    fine = ss.eliminate(model, output_stride=stride, dilate=True)
    assert fine.surgery.L == layers
    assert ss.features(fine).feature_info.reduction(-1) == stride


def test_output_stride_that_cannot_be_had() -> None:
    model = create("resnet18")
    with pytest.raises(ss.RequestError, match="it can have 1, 2, 4, 8, 16, 32"):
        ss.eliminate(model, output_stride=12)
    with pytest.raises(ss.RequestError, match="leave S, L"):
        ss.eliminate(model, "S1L0", output_stride=16)
    with pytest.raises(ss.RequestError, match="already"):
        ss.eliminate(model, output_stride=32)
