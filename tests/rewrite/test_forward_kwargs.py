"""forward_kwargs: arguments of forward besides the image, bound in the result and part of its recipe."""

import copy
import functools
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stridesurgery as ss

GIVEN = {"interpolate": True}


class Tokens(nn.Module):
    """Resamples its table where it is told to, as transformers' ViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, 16)
        self.table = nn.Parameter(torch.randn(1, 8, 4, 4))
        self.mix = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor, scale: float = 1.0, *, interpolate: bool = False) -> Tensor:
        x, table = self.patches(x), self.table
        if interpolate:
            table = F.interpolate(table, size=x.shape[-2:], mode="bilinear")
        return self.mix(x + scale * table)


@pytest.fixture
def net() -> Tokens:
    torch.manual_seed(0)
    return Tokens().eval()


def operated(net: nn.Module, **options: Any) -> Any:
    return ss.eliminate(
        net, "S1L0", stride=8, input_size=64, **({"forward_kwargs": GIVEN} | options)
    )


def test_they_are_bound_in_the_result_alone(net: Tokens) -> None:
    image = torch.randn(3, 3, 64, 96)
    fine = operated(net)
    assert "forward" not in vars(net) and type(fine) is Tokens
    assert fine.surgery.forward_kwargs == GIVEN
    torch.testing.assert_close(fine(image), fine.forward.func(image, interpolate=True))
    assert fine(image).shape[-2:] == (8, 12) and ss.verify(net, fine).exact
    (2 * fine.train()(image)).sum().backward()
    assert fine.table.grad.abs().sum() > 0
    graph = operated(net, form="graph")
    torch.testing.assert_close(graph(image[:1]), fine.eval()(image[:1]))
    both = ss.dual_path(net, "S1L0", stride=8, forward_kwargs=GIVEN, taps="mix", input_size=64)
    maps = both(image[..., :64])
    torch.testing.assert_close(maps["large.mix"], net(image[..., :64]))
    torch.testing.assert_close(maps["small.mix"], fine(image[..., :64]))


def test_copies_files_and_further_surgeries_keep_them(net: Tokens, tmp_path: Path) -> None:
    image, fine = torch.randn(1, 3, 64, 64), operated(net)
    wanted, file = fine(image), io.BytesIO()
    torch.save(fine, file)
    file.seek(0)
    ss.save(fine, tmp_path / "fine.safetensors")
    again = ss.load(net, tmp_path / "fine.safetensors")
    others = (copy.deepcopy(fine), torch.load(file, weights_only=False), again)
    for other in others:
        assert torch.equal(other(image), wanted) and other.forward.func.__self__ is other
    assert ss.Surgery.from_json(fine.surgery.to_json()) == fine.surgery == again.surgery
    assert len({fine.surgery, again.surgery}) == 1
    twice = ss.eliminate(fine, "S1L0", stride=4, input_size=64)
    assert twice(image).shape[-2:] == (16, 16)
    assert torch.equal(ss.eliminate(net, twice.surgery)(image), twice(image))


def test_a_model_whose_arguments_are_bound_needs_none(net: Tokens) -> None:
    net.forward = functools.partial(net.forward, **GIVEN)  # type: ignore[method-assign]
    image, fine = torch.randn(1, 3, 64, 64), operated(net, forward_kwargs=None)
    assert torch.equal(fine(image), operated(net)(image))
    rows = ss.compare(net, fine.surgery, 64)
    assert [row.name for row in rows] == ["as is", "S1L0, to stride 8", "input 128x128"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"forward_kwargs": {"interpolated": True}}, "'interpolated'; it takes x, scale, inter"),
        ({"forward_kwargs": {"scale": torch.ones(1)}}, "'scale' in forward_kwargs is a Tensor"),
        ({"forward_kwargs": ["interpolate"]}, "is a dict"),
        ({"inplace": True}, "bound in a copy"),
    ],
)
def test_what_cannot_be_bound(net: Tokens, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ss.RequestError, match=said):
        operated(net, **options)
    assert "forward" not in vars(net)


def test_a_part_is_operated_without_them(net: Tokens) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net

        def forward(self, x: Tensor, interpolate: bool = False) -> Tensor:
            return self.body(x, interpolate=interpolate)

    with pytest.raises(ss.RequestError, match="leave inplace and at out"):
        operated(Whole(), at="body")
