"""Compares the modes and the records of an operated model with what they should be."""

import re

from torch import nn

from stridesurgery._analysis import FeatureInfo
from stridesurgery._rewrite import described, records_of
from stridesurgery.errors import GridError, SurgeryError


def check_modes(original: nn.Module, operated: nn.Module) -> str:
    """Compare the mode of every module.

    All modules may be in the other mode, because a caller sets that with one call.

    Returns:
        The finding, in words.

    Raises:
        SurgeryError: a module is in another mode than the rest; the message names it.
    """
    modes = {path: module.training for path, module in operated.named_modules()}
    wanted = {path: module.training for path, module in original.named_modules() if path in modes}
    odd = [path for path, training in wanted.items() if modes[path] != training]
    if not odd:
        return f"{len(wanted)} modules in the original's modes"
    if len(set(modes.values())) == 1 and modes[""] != wanted[""]:
        return f"all modules in {_mode(modes[''])} mode, the original in {_mode(wanted[''])} mode"
    place = next((path for path in odd if path), "")
    raise SurgeryError(
        f"module {place or type(operated).__name__} is in {_mode(modes[place])} mode, the "
        f"original's in {_mode(wanted[place])} mode"
    )


def _mode(training: bool) -> str:
    return "train" if training else "eval"


def check_records(fine: nn.Module, operated: nn.Module) -> int:
    """Compare the reductions and patch sizes that an operated model keeps on record.

    They are compared with the values that they should have after the surgery.

    Returns:
        The number of values that were compared.

    Raises:
        GridError: a value is stale; the message names the first one.
    """
    wanted, names, found = records_of(fine), described(fine), records_of(operated)
    if isinstance(getattr(operated, "feature_info", None), FeatureInfo):  # of returned maps
        wanted = {
            place: value for place, value in wanted.items() if not place.startswith("feature_info")
        }
        names = {}
    for place, value in {**wanted, **names}.items():
        there = found if place in wanted else described(operated)
        if place not in there or there[place] != value:
            raise GridError(
                f"{place} is {there.get(place, 'not there')} where the surgery makes it {value}"
            )
    return len(wanted)


def check_followed(original: nn.Module, fine: nn.Module, operated: nn.Module, part: str) -> None:
    """Compare what follows the strides of a detector, outside of its operated part.

    Raises:
        SurgeryError: a module's settings are not those that `eliminate` gives it.
    """
    before, wanted, found = (
        {path: _settings(m) for path, m in model.named_modules() if not f"{path}.".startswith(part)}
        for model in (original, fine, operated)
    )
    for path, settings in wanted.items():
        for name, value in settings.items():
            if value != before.get(path, {}).get(name) and found.get(path, {}).get(name) != value:
                raise SurgeryError(
                    f"{path}.{name} is {found.get(path, {}).get(name)} where the surgery makes it "
                    f"{value}"
                )


def _settings(module: nn.Module) -> dict[str, str]:
    """Return what a module keeps besides parameters and submodules, in words without addresses."""
    plain = vars(nn.Module())
    own = {name: repr(value) for name, value in vars(module).items() if name not in plain}
    words = {name: re.sub(" at 0x[0-9a-f]+", "", text) for name, text in own.items()}
    return {**words, "class": type(module).__qualname__}
