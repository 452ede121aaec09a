"""Tells which operators mix the images of a batch, from what torch runs below its functions.

Every function, module and hook ends in torch's own operators (`aten`), which are few and say what
they work along. One that is not known here counts as one that mixes.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LONG_BATCH = 1009  # a prime that other axes are no multiples of: the images lie along one that is

# besides those that torch itself calls pointwise (torch 2.6: those of the last line not yet)
_EACH_NUMBER = set(
    """
    copy copy_ _to_copy fill fill_ zero_ where masked_fill masked_fill_ native_dropout _prelu_kernel
    rrelu_with_noise bernoulli bernoulli_ uniform_ normal_ rand_like randn_like hardswish hardswish_
    log_sigmoid_forward
    celu_ elu_ hardsigmoid_ hardtanh_ leaky_relu leaky_relu_ selu_
    """.split()
)
_FILLS = set(
    """
    empty zeros ones full rand randn empty_strided new_zeros new_ones new_full new_empty zeros_like
    ones_like full_like empty_like
    """.split()
)
_PER_IMAGE = {"constant_pad_nd", "embedding", "stack"}
_ALONG_AN_AXIS = set(
    """
    sum mean amax amin aminmax max min var std var_mean std_mean prod any all argmax argmin
    logsumexp _softmax _safe_softmax _log_softmax cumsum cumprod _cummax_helper _cummin_helper
    logcumsumexp sort topk kthvalue median nanmedian mode norm linalg_vector_norm cat flip roll glu
    index_select index_add index_add_ index_copy index_copy_ index_fill index_fill_ gather scatter
    scatter_ scatter_add scatter_add_ scatter_reduce _fft_r2c _fft_c2r _fft_c2c unsafe_split
    unsafe_split_with_sizes select split split_with_sizes unbind unfold diagonal
    """.split()
)
_CONTRACTIONS = {
    "mm": 0,
    "bmm": 0,
    "mv": 0,
    "addmm": 1,
    "baddbmm": 1,
    "addmv": 1,
}  # their first factor
_IMAGES_FIRST = tuple(
    """
    convolution _convolution native_group_norm max_pool avg_pool adaptive_ _adaptive_ upsample
    _upsample grid_sampler im2col col2im reflection_pad replication_pad pixel_ channel_shuffle
    native_channel_shuffle deform_conv2d native_batch_norm _native_batch_norm_legit cudnn_batch_norm
    """.split()
)


class Watch(TorchDispatchMode):
    """Notes torch's own operators of a kind, while a model runs.

    Args:
        is_noted: tells from an operator, its arguments by name, their shapes and its result whether
            it is of the kind.
    """

    def __init__(
        self, is_noted: Callable[[Any, dict[str, Any], list[tuple[int, ...]], Any], bool]
    ) -> None:
        super().__init__()
        self.is_noted = is_noted
        self.found: list[str] = []

    def take(self) -> tuple[str, ...]:
        """Return the operators found since the last call."""
        found, self.found = tuple(dict.fromkeys(self.found)), []
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
        call.update(zip((a.name for a in func._schema.arguments), args, strict=False))
        call.update(kwargs)
        shapes = [tuple(t.shape) for t in tree_leaves(list(call.values())) if isinstance(t, Tensor)]
        result = func(*args, **kwargs)
        if self.is_noted(func, call, shapes, result):
            self.found.append(func.overloadpacket.__name__)
        return result


def beyond_numbers(images: int) -> Watch:
    """Watch for operators that do more on the maps of so many images than change each number."""

    def is_noted(
        func: Any, call: dict[str, Any], shapes: list[tuple[int, ...]], result: Any
    ) -> bool:
        made = [tuple(t.shape) for t in tree_leaves(result) if isinstance(t, Tensor)]
        if not any(length and length % images == 0 for shape in shapes for length in shape[:1]):
            return False
        same = func.overloadpacket.__name__ in ("detach", "alias") and made == shapes
        return not (same or _is_for_each_number(func))

    return Watch(is_noted)


def across_batch() -> Watch:
    """Watch for operators that mix images, while a model runs on LONG_BATCH weightless ones."""
    return Watch(_mixes)


def _axes(shape: tuple[int, ...]) -> list[int]:
    return [i for i, length in enumerate(shape) if length and length % LONG_BATCH == 0]


def _is_for_each_number(func: Any) -> bool:
    return torch.Tag.pointwise in func.tags or func.overloadpacket.__name__ in _EACH_NUMBER | _FILLS


def _mixes(func: Any, call: dict[str, Any], shapes: list[tuple[int, ...]], result: Any) -> bool:
    """Tell whether an operator's result for one image depends on the others, or on its number."""
    made = [tuple(t.shape) for t in tree_leaves(result) if isinstance(t, Tensor)]
    name = func.overloadpacket.__name__
    if name in _FILLS:
        return False
    first = next((shape for shape in shapes if _axes(shape)), None)
    if first is None:
        return not shapes and any(map(_axes, made))
    values = made if isinstance(result, list) else made[:1]  # what else there is are statistics
    if any(len(_axes(shape)) != 1 for shape in values):  # images are lost, or each meets each
        return True
    if _is_for_each_number(func) or name in _PER_IMAGE:
        return False
    axis = _axes(first)[0]
    if name in _ALONG_AN_AXIS:
        chosen = [call[key] for key in ("dim", "dims", "dimension", "dim1", "dim2") if key in call]
        along = [
            i for some in chosen for i in (some if isinstance(some, (list, tuple)) else [some])
        ]
        return None in along or [] in chosen or any(i % len(first) in _axes(first) for i in along)
    if name in ("view", "_unsafe_view", "_reshape_alias"):
        return _moves_images(first, values[0])
    if name.startswith("as_strided"):  # where torch orders memory anew, the form stays
        return values[0] != first
    if name == "slice":
        return values[0][axis] != first[axis]
    if func.is_view:
        return False
    if name in _CONTRACTIONS:
        a, b = shapes[_CONTRACTIONS[name] :][:2]
        return len(a) - 1 in _axes(a) or max(len(b) - 2, 0) in _axes(b)
    if name in ("index", "index_put", "index_put_"):
        own = _axes(tuple(call["self"].shape))
        return any(
            index is not None
            and index.dtype != torch.bool
            and (i in own or (own and _axes(tuple(index.shape))))
            for i, index in enumerate(call["indices"])
        )
    if name == "repeat":
        return bool(call["repeats"][len(call["repeats"]) - len(first) + axis] != 1)
    if name == "native_layer_norm":
        return axis >= len(first) - len(call["normalized_shape"])
    if "scaled_dot_product" in name:
        return any(i >= len(shape) - 2 for shape in shapes for i in _axes(shape))
    if "batch_norm" in name and (call.get("training") or call.get("running_mean") is None):
        # with the images among the channels it is an instance norm
        return first[:1] != (1,) or axis != 1
    return not name.startswith(_IMAGES_FIRST) or any(
        _axes(shape) not in ([], [0]) for shape in shapes
    )


def _moves_images(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Tell whether a new form of the same numbers mixes the axis of the images with others."""
    (i,), (j,) = _axes(before), _axes(after)
    outer, new = math.prod(before[:i]), math.prod(after[:j])
    if before[i] == LONG_BATCH:  # a part of a longer axis may stand before the images in theirs
        return outer % new != 0 or (after[j] // LONG_BATCH) % (outer // new) != 0
    return after[j] == LONG_BATCH and (
        new % outer != 0 or (before[i] // LONG_BATCH) % (new // outer) != 0
    )
