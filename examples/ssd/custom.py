"""A detector on any backbone: taps, extras, steps and boxes follow the geometry."""

from collections.abc import Sequence

from torch import nn

import stridesurgery as ss
from examples.ssd.backbones import create, info
from examples.ssd.configurations import SSSS, Configuration, Tap
from examples.ssd.errors import RequestError
from examples.ssd.geometry import sizes_for
from examples.ssd.tokens import share_on_tokens

EXTRA_STEPS = (2, 4, 8, 16)  # what the four extras do to the step of the map they start from
ROUND = 32  # pixels: the step of most backbones' last maps


def configuration_for(
    backbone: str,
    surgery: str | None,
    size: int,
    taps: Sequence[Tap] | None = None,
    *,
    dual: bool = False,
) -> Configuration:
    """The configuration of a backbone by name under a surgery.

    taps: the maps for the first predictors; by default the last two reductions of the untouched backbone.
    dual: the split network: predictors of the surgery's maps for small objects, extras from the untouched path.

    Raises:
        RequestError: there is no such backbone, or most of it works on tokens and gives no maps.
        SurgeryError: the backbone does not run at this size, or the surgery is refused.
    """
    if dual and surgery is None:
        raise RequestError(
            "two paths need a stride to remove: give --surgery as well, such as S1L0."
        )
    net = create(backbone)
    small = default_taps(backbone, net, size) if taps is None else tuple(taps)
    original = ss.features(net, small, input_size=size)
    before, modules = steps(original), info(original).module_name()
    operated = ss.eliminate(net, surgery, input_size=size) if surgery else net
    after = steps(ss.features(operated, modules, input_size=size))
    root = before[-1] if dual else after[-1]
    name = "-".join(
        ["SSD", backbone, *([surgery] if surgery else []), *(["DualPath-S"] if dual else [])]
    )
    return Configuration(
        name,
        backbone=backbone,
        size=size,
        surgery=surgery,
        small=tuple(small),
        large=(small[-1],) if dual else (),
        extras=SSSS,
        boxes=(6,) * (len(small) + 3) + (4,),
        sizes=sizes_for([*after, *(root * k for k in EXTRA_STEPS)], size),
        steps=None,
    )


def default_taps(name: str, net: nn.Module, size: int) -> tuple[Tap, ...]:
    """The modules that make the maps of the last two reductions."""
    try:
        features = ss.features(net, input_size=size)
    except ss.TraceError as problem:
        if size % ROUND == 0:
            raise
        way_out = f"Many networks need a side that {ROUND} divides, such as --size {-(-size // ROUND) * ROUND}."
        raise RequestError(
            f"{name} does not run on {size} x {size} pixels. {way_out} ({problem})"
        ) from problem
    taps = tuple(info(features).module_name()[-2:])
    share = share_on_tokens(net, features, size)
    if share > 0.5:
        raise RequestError(
            f"{share:.0%} of {name} works on tokens, behind the last map that an SSD could read ({taps[-1]}). Take "
            "another backbone, or name the maps with --taps."
        )
    return taps


def steps(features: nn.Module) -> list[float]:
    """Input pixels between neighbouring cells of each map, the larger of rows and columns."""
    return [max(look.step) for look in info(features).geometry()]
