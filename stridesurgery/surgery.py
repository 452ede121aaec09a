"""Surgery as a value: the strides to eliminate, and the options."""

import json
import re
from dataclasses import asdict, dataclass, field, fields
from types import NoneType
from typing import Any, Literal, get_args

from stridesurgery.errors import RequestError

Axis = Literal["hw", "h", "w"]
Pool = Literal["remove", "keep"]
Form = Literal["module", "graph"]
Positions = Literal["refuse", "resample", "resample-timm"]
AXES: dict[Axis, tuple[bool, bool]] = {"hw": (True, True), "h": (True, False), "w": (False, True)}
_NAME = re.compile(r"S(\d+)L(\d+(?:-\d+)*)")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a surgery.

    The defaults here are those of every function that takes these options.
    """

    stride: int = 1  #: the stride that remains of each
    axis: Axis = "hw"  #: rows ("h"), columns ("w") or both
    pool: Pool = "remove"  #: "remove" pools whose stride is eliminated, or "keep" them at stride 1
    dilate: bool = False  #: keep features: dilated convolutions, else phases of the finer map
    restore_at: int | str | None = None  #: the layer that takes over the eliminated strides
    form: Form = "module"  #: the edited model ("module"), or the rewritten graph ("graph")
    at: str | None = None  #: the submodule that is operated; None: all, or a detector's backbone
    sizes: str = "follow"  #: a detector's boxes are as large in cells ("follow") or pixels ("stay")
    centres: str = "looks"  #: and stand where cells "look", or are "carried" from where they stood
    positions: Positions = (
        "refuse"  #: tables of positions: "resample" (or "resample-timm") or "refuse" them
    )
    #: arguments of `forward` besides the image, bound in the result
    forward_kwargs: dict[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.axis, str) or self.axis not in AXES:
            raise RequestError(f"axis is 'h', 'w' or 'hw', got {self.axis!r}")
        if self.pool not in ("remove", "keep"):
            raise RequestError(f"pool is 'remove' or 'keep', got {self.pool!r}")
        if not isinstance(self.dilate, bool):
            raise RequestError(f"dilate is True or False, got {self.dilate!r}")
        if self.dilate and self.restore_at is not None:
            raise RequestError(
                "dilate keeps the finer grid to the end, restore_at gives it up: choose one"
            )
        if self.sizes not in ("follow", "stay"):
            raise RequestError(f"sizes is 'follow' or 'stay', got {self.sizes!r}")
        if self.centres not in ("looks", "carried"):
            raise RequestError(f"centres is 'looks' or 'carried', got {self.centres!r}")
        if self.at is not None and not isinstance(self.at, str):
            raise RequestError(f"at is the path of a submodule, got {self.at!r}")
        if self.form not in ("module", "graph"):
            raise RequestError(f"form is 'module' or 'graph', got {self.form!r}")
        if self.positions not in get_args(Positions):
            raise RequestError(f"positions is one of {get_args(Positions)}, got {self.positions!r}")
        given = self.forward_kwargs
        if given is not None and not isinstance(given, dict):
            raise RequestError(f"forward_kwargs is a dict of arguments by name, got {given!r}")
        for name, value in (given or {}).items():
            if not isinstance(value, (str, int, float, NoneType)):
                raise RequestError(
                    f"{name!r} in forward_kwargs is a {type(value).__name__}, which no recipe can "
                    "hold; bind it before: model.forward = functools.partial(model.forward, ...)"
                )
        if isinstance(self.stride, bool) or not isinstance(self.stride, int) or self.stride < 1:
            raise RequestError(
                f"stride, what remains of the original one, is a positive int, got {self.stride!r}"
            )

    @property
    def options(self) -> dict[str, Any]:
        """Options by name."""
        return {field.name: getattr(self, field.name) for field in fields(Options)}


DEFAULTS = Options()


@dataclass(frozen=True, repr=False)
class Surgery(Options):
    """Strides to eliminate and options, as a value that can be named, saved and replayed.

    Example:
        >>> import stridesurgery as ss
        >>> surgery = ss.Surgery(2, (4, 6), axis="w")
        >>> surgery.name
        'S2L4-6'
        >>> ss.Surgery.from_json(surgery.to_json()) == surgery
        True
    """

    S: int  #: number of transitions
    L: tuple[int, ...]  #: one layer of each transition
    input_size: tuple[int, int] | None = None  #: (h, w) pixels at which it was planned
    after: "Surgery | None" = None  #: the surgery that was applied to the model before

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "L", tuple(self.L) if isinstance(self.L, (tuple, list)) else (self.L,)
        )
        if self.input_size is not None:
            object.__setattr__(self, "input_size", tuple(self.input_size))
            if len(self.input_size) != 2 or not all(
                type(side) is int and side > 0 for side in self.input_size
            ):
                raise RequestError(f"input_size is (h, w) in pixels, got {self.input_size!r}")
        super().__post_init__()

    def __repr__(self) -> str:
        """Return the layers, and the fields that are not at their defaults."""
        given = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }
        values = {"S": self.S, "L": self.L} | given
        return f"Surgery({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @property
    def name(self) -> str:
        """Name as in the paper, such as "S2L4-6"."""
        return f"S{self.S}L{'-'.join(map(str, self.L))}"

    @property
    def removes_pools(self) -> bool:
        """Return True if an eliminated pool is removed. Dilation needs the pool's values."""
        return self.pool == "remove" and not self.dilate

    @classmethod
    def parse(cls, name: str) -> "Surgery":
        """Read a name such as "S1L0" or "S2L4-6" (a dash separates layers).

        Raises:
            RequestError: the name is malformed, names a layer twice, or S is not the number of
                layers.
        """
        match = _NAME.fullmatch(name.strip()) if isinstance(name, str) else None
        if match is None:
            raise RequestError(f"{name!r} is not a surgery name; names look like S1L0 or S2L4-6")
        layers = tuple(int(number) for number in match[2].split("-"))
        if len(set(layers)) != len(layers):
            raise RequestError(f"{name!r} names a layer twice")
        if int(match[1]) != len(layers):
            raise RequestError(f"{name!r} says {match[1]} strides but names {len(layers)} layers")
        return cls(int(match[1]), layers)

    def to_json(self) -> str:
        """Return the surgery as JSON text. It is the recipe that belongs to a state_dict."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Surgery":
        """Read what `to_json` wrote.

        Raises:
            RequestError: the text is not JSON, or its fields are not those of a surgery.
        """
        try:
            fields = json.loads(text)
            return cls._from_fields(fields)
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as problem:
            raise RequestError(f"not a surgery in JSON: {problem}") from problem

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> "Surgery":
        before = fields.get("after")
        if not all(
            isinstance(i, int) and not isinstance(i, bool) for i in (fields["S"], *fields["L"])
        ):
            raise RequestError("S and L must be whole numbers")
        if fields.get("restore_at") is not None and type(fields["restore_at"]) is not int:
            raise RequestError("restore_at is the number of a layer")
        if not fields["L"] or fields["S"] != len(fields["L"]):
            raise RequestError(f"S is {fields['S']} but L names {len(fields['L'])} layers")
        return cls(**{**fields, "after": cls._from_fields(before) if before else None})
