"""`dual_path`: the small path is the operated network, the large path the original, on one set of weights."""

import copy
import io
from typing import Any

import pytest
import torch
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import stridesurgery as ss
from tests.conftest import Case, one_of
from tests.models import awake, create, image
from tests.watch import error, outputs_of, snapshot, unchanged

POOLS = ("Pool", "pool")


def rotating(case: Case) -> ss.Transition:
    """Another transition from model to model, so that the sample covers all of them."""
    candidates = [t for t in case.report.transitions if one_of(case.report, t) is not None]
    return candidates[sum(map(ord, case.name)) % len(candidates)]


def has_pool(case: Case, transition: ss.Transition) -> bool:
    return any("ool" in case.report[i].operator for i in transition.layers)


@torch.no_grad()
def maps_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return model(x)


@pytest.mark.half
def test_small_path_is_the_operated_and_large_path_the_original_network(case: Case) -> None:
    """Also through removed pools, as the large path samples with the original operator."""
    transition = rotating(case)
    both = ss.dual_path(
        case.original, L=one_of(case.report, transition), sampler="original", input_size=case.size
    )
    fine = ss.eliminate(case.original, L=one_of(case.report, transition), input_size=case.size)
    found = maps_of(both, case.image)
    names = {
        path: [n.partition(".")[2] for n in found if n.startswith(path)]
        for path in ("small", "large")
    }
    assert names["small"] and names["large"]
    for path, model in (("small", fine), ("large", case.original)):
        for name, wanted in maps_of(
            ss.features(model, names[path], input_size=case.size), case.image
        ).items():
            assert error(found[f"{path}.{name}"], wanted) < 1e-5, f"{case.name}, {path}.{name}"
    assert list(both.state_dict()) == list(case.original.state_dict())
    assert all(torch.equal(v, case.original.state_dict()[k]) for k, v in both.state_dict().items())
    assert len({id(p) for p in both.parameters()}) == len(
        {id(p) for p in case.original.parameters()}
    )


@pytest.mark.half
def test_slices_of_convolutions_are_the_original_too(case: Case) -> None:
    transitions = [
        t
        for t in case.report.transitions
        if one_of(case.report, t) is not None and not has_pool(case, t)
    ]
    if not transitions:
        pytest.skip(f"{case.name} downsamples by pools only")
    both = ss.dual_path(case.original, L=one_of(case.report, transitions[0]), input_size=case.size)
    found = {
        n.removeprefix("large."): m
        for n, m in maps_of(both, case.image).items()
        if n.startswith("large.")
    }
    for name, wanted in maps_of(
        ss.features(case.original, list(found), input_size=case.size), case.image
    ).items():
        assert error(found[name], wanted) < 1e-5, f"{case.name}, large.{name}"


def test_several_layers_are_sampled_after_each() -> None:
    for name, L, options in (
        ("mobilenetv1_100", (0, 4), {}),
        ("torchvision/resnet18", (1, 6), {"sampler": "original"}),
        ("tf_efficientnet_b0", (0, 2), {}),
        ("resnetv2_50x1_bit", (0, 6), {}),
    ):
        net, x = create(name), image(96)
        both = maps_of(ss.dual_path(net, L=L, input_size=96, **options), x)
        original = maps_of(ss.features(net, input_size=96), x)
        fine = maps_of(ss.features(ss.eliminate(net, L=L, input_size=96), input_size=96), x)
        for key, found in both.items():
            path, _, module = key.partition(".")
            wanted = (original if path == "large" else fine).get(module)
            assert wanted is None or error(found, wanted) < 1e-5, f"{name}, {key}"


def test_a_removed_pool_is_sliced_as_in_the_paper() -> None:
    """Then the large path is not the pretrained network: three of four values of the pool's windows are skipped."""
    net, x = create("torchvision/squeezenet1_1"), image(64)
    sliced = maps_of(ss.dual_path(net, "S1L1", taps=("features.1", "features.3"), input_size=64), x)
    with torch.no_grad():
        stem = net.features[:2](x)
        assert torch.equal(
            sliced["large.features.3"], net.features[3](stem[..., 1::2, 1::2][..., :15, :15])
        )


def test_gradients_are_the_sum_of_both_paths() -> None:
    net, x = create("mobilenetv2_050"), image(64)
    both = ss.dual_path(net, "S1L0", taps=("blocks.3",), input_size=64)
    alone = [
        ss.features(m, "blocks.3", input_size=64)
        for m in (ss.eliminate(net, "S1L0", input_size=64), net)
    ]
    for model in (both, *alone):
        sum(m.square().sum() for m in model(x).values()).backward()
    for name, parameter in both.named_parameters():
        if parameter.grad is not None:
            parts = [model.get_parameter(name).grad for model in alone]
            assert error(parameter.grad, parts[0] + parts[1]) < 1e-4, name


def macs(model: nn.Module, x: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("name", "L", "stem"), [("mobilenetv1_100", 0, "conv_stem"), ("resnet18", 6, "layer2.0.conv1")]
)
def test_compute_is_both_paths_less_the_stem_that_they_share(name: str, L: int, stem: str) -> None:
    net, x = create(name), image(64)
    last = ss.features(net, input_size=64).feature_info.module_name(-1)
    fine = ss.eliminate(net, L=L, input_size=64)
    small, large = (macs(ss.features(m, last, input_size=64), x) for m in (fine, net))
    shared = macs(ss.features(net, stem, input_size=64), x)
    extra = (
        0
        if name == "mobilenetv1_100"
        else macs(ss.features(net, "layer2.0.downsample.0", input_size=64), x)
    )
    extra -= 0 if name == "mobilenetv1_100" else macs(ss.features(net, "layer1", input_size=64), x)
    both = ss.dual_path(net, L=L, taps=last, input_size=64)
    assert macs(both, x) == small + large - shared - extra


def test_combined_maps_are_the_split_ones_side_by_side() -> None:
    net, x = create("mobilenetv1_100"), image(96)
    split = maps_of(ss.dual_path(net, "S1L0", taps=(11, 13), input_size=96), x)
    model = ss.dual_path(net, "S1L0", taps=(11, 13), combine="concat", input_size=96)
    joined = maps_of(model, x)
    assert list(joined) == ["small.11", "small.13+large.11", "large.13"]
    assert torch.equal(
        joined["small.13+large.11"], torch.cat([split["small.13"], split["large.11"]], 1)
    )
    assert model.feature_info.channels() == [
        512,
        1536,
        1024,
    ] and model.feature_info.reduction() == [8, 16, 32]
    assert [g.step for g in model.feature_info.geometry()] == [(8, 8), (16, 16), (32, 32)]
    uneven = ss.dual_path(
        net, "S1L0", taps={"small": (11, 13), "large": 13}, combine="split", input_size=96
    )
    assert list(maps_of(uneven, x)) == ["small.11", "small.13", "large.13"]


def counts(model: nn.Module) -> dict[str, int]:
    return {n: int(b) for n, b in model.named_buffers() if n.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("name", "stem", "rest"),
    [("mobilenetv1_100", "bn1", "blocks"), ("torchvision/resnet18", "relu", "maxpool")],
)
def test_norms_in_train_mode(name: str, stem: str, rest: str) -> None:
    """Shared: both paths update the statistics behind the stem. Frozen: only the small path does, as if alone."""
    net, x = create(name), image(64, batch=2)
    last = ss.features(net, input_size=64).feature_info.module_name(-1)
    fine = ss.features(
        ss.eliminate(net, "S1L0", input_size=64), (stem, last), input_size=64
    ).train()
    shared, frozen = (
        ss.dual_path(net, "S1L0", taps=last, large_norm=norm, input_size=64).train()
        for norm in ("shared", "frozen")
    )
    small = fine(x)
    found = frozen(x)
    assert error(found[f"small.{last}"], small[last]) < 1e-5
    assert error(shared(x)[f"small.{last}"], small[last]) < 1e-5
    assert {n: c for n, c in counts(shared).items() if c != 2} == {"bn1.num_batches_tracked": 1}
    assert set(counts(frozen).values()) == {1}
    for key, value in fine.state_dict().items():
        assert torch.equal(frozen.state_dict()[key], value), key
    original = copy.deepcopy(
        net
    )  # frozen norms read what the small path has left: behind the stem all is as in eval mode
    original.load_state_dict(frozen.state_dict())
    sampled = small[stem][..., ::2, ::2]
    original.get_submodule(rest).register_forward_pre_hook(lambda module, args: (sampled,))
    assert error(found[f"large.{last}"], outputs_of(original, [last], x)[last]) < 1e-5


class Tokens(nn.Module):
    """A map through a norm of tokens, as LeViT has it, and one whose statistics are never updated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.down = (
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.BatchNorm1d(4),
            nn.Conv2d(4, 4, 3, 2, 1),
        )
        self.still, self.last = FrozenBatchNormAct2d(4), nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.last(self.still(self.down(self.norm(y.flatten(2)).view_as(y))))


def test_norms_of_tokens_are_frozen() -> None:
    net, x = awake(Tokens()), image(16, batch=2)
    both = ss.dual_path(net, "S1L0", taps="last", large_norm="frozen", input_size=16).train()
    fine = ss.features(ss.eliminate(net, "S1L0", input_size=16), "last", input_size=16).train()
    found, small = both(x), fine(x)
    assert error(found["small.last"], small["last"]) < 1e-5
    assert int(both.norm.num_batches_tracked) == 1 and torch.equal(
        both.norm.running_mean, fine.norm.running_mean
    )
    net.load_state_dict(both.state_dict())
    assert error(found["large.last"], net.eval()(x)) < 1e-5


def test_modes_switch_and_copies_keep_both_graphs() -> None:
    both = ss.dual_path(
        create("mobilenetv3_small_050").train(), "S1L0", large_norm="frozen", input_size=64
    )
    stored = io.BytesIO()
    torch.save(both, stored)
    stored.seek(0)
    for again in (copy.deepcopy(both), torch.load(stored, weights_only=False)):
        assert again.training and again.feature_info == both.feature_info
        assert list(again.state_dict()) == list(both.state_dict())
        again.eval()
        x = image(64)
        wanted = maps_of(copy.deepcopy(both).eval(), x)
        for name, found in maps_of(again, x).items():
            assert torch.equal(found, wanted[name])


def test_in_place_activations_of_one_path_do_not_reach_the_other() -> None:
    """The sampled map has memory of its own: Hardswish twice is not Hardswish once."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.Hardswish(inplace=True), nn.Conv2d(4, 4, 3, 2, 1)
    ).eval()
    x = image(16)
    both = maps_of(ss.dual_path(net, "S1L0", taps="2", input_size=16), x)
    assert torch.allclose(both["large.2"], net(x), atol=1e-6)


def test_dilated_paths_share_one_pass() -> None:
    """All phases together are the small path, the first is the original network."""
    for name in ("seresnet18", "mobilenetv3_small_050", "convnextv2_atto"):
        net, x = create(name), image(64)
        both = ss.dual_path(net, "S1L0", dilate=True, input_size=64)
        fine = ss.eliminate(net, "S1L0", dilate=True, input_size=64)
        original = maps_of(ss.features(net, input_size=64), x)
        found = maps_of(both, x)
        names = [n.removeprefix("small.") for n in found if n.startswith("small.")]
        dilated = maps_of(ss.features(fine, names, input_size=64), x)
        for key, value in found.items():
            path, _, module = key.partition(".")
            assert error(value, (dilated if path == "small" else original)[module]) < 1e-5, (
                f"{name}, {key}"
            )
        fine_only = ss.features(fine, names[-1], input_size=64)
        assert macs(
            ss.dual_path(net, "S1L0", taps=names[-1], dilate=True, input_size=64), x
        ) == macs(fine_only, x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"combine": "sum"}, "combine is 'split' or 'concat'"),
        ({"sampler": "mean"}, "sampler is 'slice' or 'original'"),
        ({"large_norm": "off"}, "large_norm is 'shared' or 'frozen'"),
        ({"taps": {"small": 11}}, "both paths"),
        ({"taps": {"small": 11, "big": 11}}, "both paths"),
        ({"taps": 40}, "layer 40 does not exist"),
        ({"taps": "classifier"}, "not return a map"),
        ({"S": "S1L1"}, "stride 1"),
        ({"S": "S1"}, "not a surgery name"),
    ],
)
def test_bad_requests(options: dict[str, Any], words: str) -> None:
    net = create("mobilenetv1_100")
    before = snapshot(net)
    with pytest.raises(ss.RequestError, match=words):
        ss.dual_path(net, **({"S": "S1L0", "input_size": 64} | options))
    assert not unchanged(before, net)


def test_two_paths_are_not_operated_again() -> None:
    net = create("mobilenetv3_small_050")
    both = ss.dual_path(net, "S1L0", input_size=64)
    for again in (ss.eliminate, ss.dual_path):
        with pytest.raises(ss.RequestError, match="two paths already; operate on the original"):
            again(both, S=1, input_size=64)
    with pytest.raises(ss.RequestError, match="two paths already; choose its maps"):
        ss.features(both, input_size=64)


def test_maps_of_different_size_are_not_concatenated() -> None:
    """At 100 pixels the small path has 25 cells where the large path has 25, but 13 and 12 behind an uneven pool."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.Conv2d(4, 4, 3, 2, 1),
        nn.Conv2d(4, 4, 2, 2),
        nn.Conv2d(4, 4, 3, 2, 1),
    ]
    net = awake(nn.Sequential(*layers)).eval()
    with pytest.raises(ss.GridError, match="differ in size"):
        ss.dual_path(net, "S1L0", taps=("2", "3"), combine="concat", input_size=100)
