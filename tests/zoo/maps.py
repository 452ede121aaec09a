"""The maps that `features` finds, beside those that timm's `features_only` lists by hand."""

import timm
import torch
from torch import nn

import stridesurgery as ss
from tests.zoo.models import quiet

Listed = dict[
    float, tuple[str, int]
]  # by reduction: the module that returns the map, and its channels

# why timm lists another map, by how a model's name begins; the last reduction apart, where ours is
# the last of all
REASONS = {
    "works on tokens, which timm reshapes": "crossvit gemma4 hiera_ levit_128 levit_256 mvitv2 naflexvit tnt",
    "returns several values at once": "hrnet selecsls mobilenetv5",
    "reshapes tokens to maps in its forward code, by no module": "coat_ pit twins",
    "its stages begin with whole blocks at the old grid, whose map is the later one": "efficientvit_m shvit",
    "timm lists a map inside the next block": "legacy_xception nasnet pnasnet xception",
    "timm lists the map before the last block of its reduction": "ghostnet repghostnet inception_v4",
    "timm lists the map before the activation or the first half of the pool": "densenetblur dm_nfnet eca_nfnet nfnet "
    "resnetblur test_nfnet",
    "computes with the batch size as a constant": "convit",
}


def reason(name: str) -> str:
    """Why the maps of a model are not timm's, if that is known."""
    found = (
        why for why, names in REASONS.items() for start in names.split() if name.startswith(start)
    )
    return next(found, "")


def differences(name: str) -> list[str]:
    """The reductions at which timm lists another map, the last apart; ours may have more."""
    try:
        ours = listed(ss.features(weightless(name)).feature_info)
    except ss.SurgeryError as refusal:
        return [str(refusal)]
    theirs = listed(weightless(name, features_only=True).feature_info)
    wanted = sorted(theirs)
    odd = [r for r in wanted[:-1] if r not in ours or not is_same(ours[r], theirs[r])]
    odd += [r for r in wanted[-1:] if r not in ours]
    return [f"{r}: {ours.get(r)} instead of {theirs[r]}" for r in odd]


def weightless(name: str, **options: bool) -> nn.Module:
    with quiet():
        try:
            with torch.device("meta"):
                return timm.create_model(name, **options)
        except Exception:  # the constructor computes with numbers, which meta tensors do not have
            return timm.create_model(name, **options)


def listed(info: object) -> Listed:
    rows = zip(info.module_name(), info.channels(), info.reduction(), strict=True)  # type: ignore[attr-defined]
    return {reduction: (module, channels) for module, channels, reduction in rows}


def is_same(ours: tuple[str, int], theirs: tuple[str, int]) -> bool:
    """The same map: a module, or the last one inside it."""
    (module, channels), (other, count) = ours, theirs
    inside = module.startswith((f"{other}.", f"{other}[")) or other.startswith(f"{module}.")
    return channels == count and (module == other or inside)
