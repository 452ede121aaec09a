"""How timm_names.json is made: `python -m tests.zoo.make_names` prints the list for the timm that is installed.

Of all models of timm, the one with the fewest parameters for each module x class x set of
downsampling operators (the types of the modules that have a stride). A newer timm gives a longer
list; names are kept as they are in timm_names.json so that sweeps can be compared, and those that
another timm lacks are skipped and reported.
"""

import json
import sys

import timm
import torch
from timm.models import model_entrypoint
from torch import nn
from tqdm import tqdm

from tests.zoo.models import quiet

Kind = tuple[str, str, tuple[str, ...]]  # module, class, types of operators


def downsamplers(model: nn.Module) -> tuple[str, ...]:
    """The types of the modules with a stride, and of those that say by name that they merge cells."""
    found = set()
    for module in model.modules():
        stride = getattr(module, "stride", 1)
        strides = stride if isinstance(stride, (tuple, list)) else (stride,)
        leaf = not any(True for _ in module.children())
        if leaf and any(isinstance(s, int) and s > 1 for s in strides):
            found.add(type(module).__name__)
        if type(module).__name__ in ("PatchMerging", "SpaceToDepth"):
            found.add(type(module).__name__)
    return tuple(sorted(found))


def smallest() -> list[str]:
    """The smallest model of each kind, by name."""
    best: dict[Kind, tuple[int, str]] = {}
    for name in tqdm(timm.list_models(), unit="model"):
        try:
            with quiet(), torch.device("meta"):
                model = timm.create_model(name, pretrained=False)
        except Exception:  # some constructors compute with numbers
            with quiet():
                model = timm.create_model(name, pretrained=False)
        kind = model_entrypoint(name).__module__, type(model).__name__, downsamplers(model)
        size = sum(p.numel() for p in model.parameters())
        best[kind] = min(best.get(kind, (size, name)), (size, name))
    return sorted(name for _, name in best.values())


if __name__ == "__main__":
    json.dump(smallest(), sys.stdout, indent=0)
