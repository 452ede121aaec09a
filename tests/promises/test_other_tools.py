"""Operated models in the hands of other people's code: tracers, scripts, decoders, hooks; and forms that it writes."""

import copy
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import stridesurgery as ss
from tests.models import awake, create, image

SIZE = 64


@pytest.mark.parametrize(
    "name", ["convnext_atto", "torchvision/squeezenet1_1", "edgenext_xx_small"]
)
def test_torch_fx_traces_operators_at_a_fraction_of_their_stride(name: str) -> None:
    net = create(name)
    try:
        get_graph_node_names(net)
    except TypeError:
        pytest.skip(f"too new: torch.fx does not trace {name} of this timm either")
    fine = ss.eliminate(net, S=1, L=0 if "squeeze" not in name else None, input_size=SIZE)
    last = get_graph_node_names(fine)[1][-1]
    taken = create_feature_extractor(fine, [last])(image(SIZE))[last]
    assert torch.equal(taken, fine(image(SIZE)))


def test_torch_script_takes_a_graph_as_it_takes_another() -> None:
    maps = ss.features(create("resnet18"), input_size=SIZE)
    found = torch.jit.script(maps)(image(SIZE))
    assert all(torch.equal(found[name], value) for name, value in maps(image(SIZE)).items())


class Encoder(nn.Module):
    """Says what a decoder must know by properties and by attributes of its class."""

    levels = 2

    def __init__(self, output_stride: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self._channels, self._output_stride = [3, 8, 16], output_stride

    @property
    def out_channels(self) -> list[int]:
        return self._channels[: self.levels + 1]

    @property
    def output_stride(self) -> int:
        return min(self._output_stride, 2**self.levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = F.relu(self.a(x))
        return [x, y, self.b(y)]


@pytest.mark.parametrize("options", [{}, {"form": "graph"}, {"dilate": True}])
@pytest.mark.parametrize("said", [4, 32])  # 32: of a deeper encoder, which the property cuts off
def test_properties_of_the_class_can_be_read(said: int, options: dict[str, Any]) -> None:
    fine = ss.eliminate(awake(Encoder(said)).eval(), L="b", input_size=SIZE, **options)
    assert fine.out_channels == [3, 8, 16] and fine.levels == 2
    assert fine.output_stride == 2
    again = pickle.loads(pickle.dumps(fine))
    assert again.out_channels == [3, 8, 16]
    with pytest.raises(AttributeError):
        fine.nothing  # noqa: B018


def test_a_stale_stride_behind_a_property_is_found() -> None:
    net = awake(Encoder()).eval()
    fine = ss.eliminate(net, L="b", input_size=SIZE)
    fine._output_stride = 4
    with pytest.raises(ss.GridError, match="_output_stride is 4"):
        ss.verify(net, fine)


def test_subclasses_of_leaves_stay_modules_of_a_graph() -> None:
    graph, seen = (
        ss.eliminate(create("mobilenetv3_small_100"), "S1L0", form="graph", input_size=SIZE),
        [],
    )
    graph.classifier.register_forward_hook(lambda module, args, result: seen.append(result.shape))
    graph(image(SIZE))
    assert seen == [(1, 1000)]
    graph.classifier = nn.Identity()
    assert graph(image(SIZE)).shape == (1, 1024)


class Renamed(nn.Linear):
    """Computes what its parent computes."""


class Squared(nn.Linear):
    """Computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


def test_a_subclass_is_a_leaf_if_it_computes_what_its_parent_does() -> None:
    net = awake(
        nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Flatten(2), Renamed(256, 4), Squared(4, 4))
    ).eval()
    graph = ss.eliminate(
        nn.Sequential(net[0], nn.AdaptiveAvgPool2d(16), *net[1:]), 1, form="graph", input_size=SIZE
    )
    targets = {str(n.target) for n in graph.graphs[False].nodes}
    assert "3" in targets and "4" not in targets


class Written(nn.Module):
    """Paddings by name, and global pooling by the size of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 3, 2, 1),
            nn.Linear(8, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.b(F.relu(self.a(x))), self.b.weight, padding="same")
        y = F.conv2d(y, self.b.weight, padding="valid") * torch.sigmoid(
            F.avg_pool2d(y, y.size()[2:])
        )
        return self.head(F.avg_pool2d(y, (y.size(-2), y.shape[-1])).flatten(1))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("options", [{}, {"form": "graph"}, {"dilate": True}])
def test_paddings_by_name_and_pools_by_size(layer: int, options: dict[str, Any]) -> None:
    net = awake(Written()).eval()
    assert [found.name for found in ss.inspect(net, SIZE)] == ["a", "b", "conv2d", "conv2d_1"]
    ss.verify(net, ss.eliminate(net, L=layer, input_size=SIZE, **options))


def test_a_path_names_the_one_strided_layer_inside() -> None:
    net = create("resnet18")
    assert ss.eliminate(net, L="layer4.0.downsample", input_size=SIZE).surgery.name == "S1L18"
    with pytest.raises(
        ss.RequestError, match=r"'layer4' has several strided layers: 16 \(layer4.0.conv1\), 18"
    ):
        ss.eliminate(net, L="layer4", input_size=SIZE)


@pytest.mark.parametrize("options", [{}, {"form": "graph"}])
def test_positions_that_are_interpolated_only_on_the_larger_grid(options: dict[str, Any]) -> None:
    """At its own size the model reads its table as it is (DINO v2)."""
    settings = {"patch_size": 14, "img_size": 56, "dynamic_img_size": True, "depth": 2}
    net, by_hand = (create("vit_tiny_patch16_224", **settings) for _ in range(2))
    by_hand.load_state_dict(net.state_dict())
    by_hand.patch_embed.proj.stride = by_hand.patch_embed.patch_size = (7, 7)
    by_hand.patch_embed.proj = nn.Sequential(nn.ZeroPad2d((0, 7, 0, 7)), by_hand.patch_embed.proj)
    fine = ss.eliminate(net, "S1L0", stride=7, input_size=56, **options)
    assert torch.allclose(fine(image(56)), by_hand(image(56)), atol=1e-5)
    ss.verify(net, fine)


class Padded(nn.Module):
    """Computes TensorFlow's padding from the stride of the layer, as transformers' MobileNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.a, self.b):
            pads = [
                max(k - (n % s or s), 0)
                for n, k, s in zip(x.shape[2:], conv.kernel_size, conv.stride, strict=True)
            ]
            x = F.relu(conv(F.pad(x, [p for n in reversed(pads) for p in (n // 2, n - n // 2)])))
        return x


@pytest.mark.parametrize("layer", [0, 1])
def test_strides_that_the_forward_code_reads_give_a_graph(layer: int) -> None:
    net = awake(Padded()).eval()
    fine = ss.eliminate(net, L=layer, input_size=SIZE)
    assert isinstance(fine, torch.fx.GraphModule)
    assert ss.verify(net, fine).exact
    if layer == 1:  # the last one, so that the whole answer is the original's on its grid
        assert torch.equal(fine(image(SIZE))[..., ::2, ::2], net(image(SIZE)))
    with pytest.raises(ss.SurgeryError):
        ss.eliminate(net, L=layer, input_size=SIZE, inplace=True)


class Frozen(nn.Module):
    """Learns nothing in its first layer, as its forward code says."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.a, self.b, self.what = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), what

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.a(x) if self.what == "weights" else x / 2
        return self.b(self.a(x) if self.what != "weights" else x)


@pytest.mark.parametrize("options", [{"form": "graph"}, {"form": "graph", "dilate": True}])
def test_weights_that_do_not_learn_go_into_no_graph(options: dict[str, Any]) -> None:
    net = awake(Frozen("weights")).eval()
    with pytest.raises(
        ss.OperatorError, match=r"a computes under torch\.no_grad|the forward code computes under"
    ):
        ss.eliminate(net, L="b", input_size=SIZE, **options)
    fine = ss.eliminate(net, L="b", input_size=SIZE)
    fine(image(SIZE)).sum().backward()
    assert fine.a.weight.grad is None and fine.b.weight.grad is not None
    assert (
        ss.eliminate(awake(Frozen("image")).eval(), L="b", input_size=SIZE, **options) is not None
    )


class Answer(OrderedDict[str, Tensor]):
    """What a model returns, as transformers has it: a dict whose items are attributes as well."""

    def __init__(self, items: Any) -> None:
        super().__init__(items)
        vars(self).update(items)


class Answering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, pixel_values: Tensor, scale: float = 1.0) -> Answer:
        first = self.a(pixel_values) * scale
        return Answer({"first": first, "last": self.b(first)})


@pytest.mark.parametrize("options", [{"form": "graph"}, {"dilate": True}])
def test_a_graph_keeps_the_name_of_the_input_and_the_class_of_the_output(
    options: dict[str, Any],
) -> None:
    net = awake(Answering()).eval()
    fine = ss.eliminate(net, L="b", input_size=SIZE, **options)
    for model in (fine, pickle.loads(pickle.dumps(fine)), copy.deepcopy(fine)):
        found = model(pixel_values=image(SIZE))
        assert type(found) is Answer and torch.equal(found.first, net(image(SIZE)).first)
        assert torch.equal(found["last"], found.last) and found.last.shape[-1] == 32
    ss.verify(net, fine)
    maps = ss.features(net, input_size=SIZE)(pixel_values=image(SIZE))
    assert type(maps) is dict and torch.equal([*maps.values()][-1], net(image(SIZE)).last)


def test_two_paths_give_one_map_a_reduction_where_none_are_named() -> None:
    maps = ss.dual_path(create("dla46_c"), S=1, input_size=SIZE).feature_info
    for path in ("small", "large"):
        reductions = [f.reduction for f in maps.features if f.name.startswith(path)]
        assert len(reductions) > 3 and len(set(reductions)) == len(reductions)
    named = ss.dual_path(create("dla46_c"), S=1, taps=("level0", "level1"), input_size=SIZE)
    assert [f.name for f in named.feature_info.features][:2] == ["small.level0", "small.level1"]


@pytest.mark.parametrize("observed", [False, True])
def test_quantised_models_are_refused_saying_when_to_quantise(observed: bool) -> None:
    quantise = torch.ao.quantization
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Flatten(), nn.Linear(8 * 32 * 32, 4))
    if observed:
        net.qconfig = quantise.get_default_qconfig("fbgemm")
        net = quantise.prepare(net.eval())
    else:
        net = quantise.quantize_dynamic(net.eval(), {nn.Linear})
    with pytest.raises(ss.ModelError, match="quantise the result"):
        ss.eliminate(net, S=1, input_size=SIZE)


class FixedHead(nn.Module):
    def __init__(self, pools: bool) -> None:
        super().__init__()
        self.a, self.b, self.pools = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 4, 1), pools
        self.head = nn.Linear(8 * (1 if pools else 64), 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return self.head((F.avg_pool2d(y, 8) if self.pools else y).flatten(1))


@pytest.mark.parametrize("pools", [False, True])
def test_a_head_of_fixed_size_is_refused_with_the_way_out(pools: bool) -> None:
    net = awake(FixedHead(pools)).eval()
    with pytest.raises(ss.GridError, match=r"operate on `features\(model\)`"):
        ss.eliminate(net, S=1, input_size=SIZE)
    maps = ss.features(net, input_size=SIZE)
    fine = ss.eliminate(maps, S=2, input_size=SIZE)
    assert [tuple(m.shape[2:]) for m in fine(image(SIZE)).values()][-1] == (64, 64)
    ss.verify(maps, fine)


def test_models_of_volumes_are_refused_as_such() -> None:
    with pytest.raises(ss.TraceError, match=r"stem\.0'.*works on volumes"):
        ss.inspect(torchvision.models.video.r3d_18(), SIZE)


FORMS: list[dict[str, Any]] = [{}, {"form": "graph"}, {"dilate": True}]


@pytest.mark.parametrize("options", FORMS)
def test_images_of_five_channels(options: dict[str, Any]) -> None:
    net = awake(nn.Sequential(nn.Conv2d(5, 8, 3, 2, 1), nn.Conv2d(8, 4, 3, 2, 1))).eval()
    ss.verify(net, ss.eliminate(net, S=1, input_size=SIZE, **options))
    ss.verify(net, ss.dual_path(net, S=1, input_size=SIZE, dilate="dilate" in options))


def test_maps_that_timm_takes_inside_of_blocks() -> None:
    net = create("efficientnet_b0", features_only=True, feature_location="expansion")
    fine = ss.eliminate(net, S=1, input_size=SIZE)
    assert [SIZE // m.shape[-1] for m in fine(image(SIZE))] == fine.feature_info.reduction()
    assert fine.feature_info.reduction() == [r // 2 for r in net.feature_info.reduction()]
    ss.verify(net, fine)


def test_two_paths_of_a_model_that_writes_its_window_down_as_it_runs() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
    net = awake(transformers.SwinModel(transformers.SwinConfig(**small, window_size=4))).eval()
    # as many channels as rows and columns: the tokens tell which axis is which
    ss.verify(net, ss.dual_path(net, S=1, L=0, stride=2, input_size=32))


@pytest.mark.parametrize("name", ["FPN", "Unet", "MAnet", "PAN"])
def test_masks_of_segmentation_keep_their_size_if_the_whole_network_is_operated(name: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    size = 128 if name == "PAN" else SIZE
    net = awake(getattr(smp, name)("resnet18", encoder_weights=None)).eval()
    assert ss.eliminate(net, S=1, input_size=size)(image(size)).shape == (1, 1, size, size)
    net.encoder = ss.eliminate(net.encoder, S=1, input_size=size)
    assert net(image(size)).shape[-1] == size * (1 if name == "Unet" else 2)


class Upsampling(nn.Module):
    """Two learned upsamplings on the way up, or one."""

    def __init__(self, ways: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up = nn.ModuleList(nn.ConvTranspose2d(8, 8, 4, 2, 1) for _ in range(ways))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        for up in self.up:
            y = up(y)
        return y


@pytest.mark.parametrize(
    ("ways", "words"), [(1, "Layers that can be named: 0"), (2, "operate on a part of the model")]
)
def test_learned_upsampling_is_refused_saying_what_can_be_named(ways: int, words: str) -> None:
    net = awake(Upsampling(ways)).eval()
    with pytest.raises(ss.OperatorError, match=f"ConvTranspose2d.*{words}"):
        ss.eliminate(net, L="b", input_size=SIZE)
    if ways == 1:
        ss.verify(net, ss.eliminate(net, L="a", input_size=SIZE))
