"""The errors of the library, by the decision a caller would take."""


class SurgeryError(ValueError):
    """Base of every refusal: the message names the place, the fact and the way out."""


class ModelError(SurgeryError):
    """The object cannot be operated on as it is (wrapped, compiled, not a module)."""


class TraceError(SurgeryError):
    """The model's forward pass cannot be recorded at this input size."""

    def __init__(self, message: str, fixed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.fixed = fixed  # parameters and buffers that took part in the call that failed


class RequestError(SurgeryError):
    """The request does not fit the model: no such layer, no stride to take, S and L disagree."""


class OperatorError(SurgeryError):
    """An operator that would have to change is not understood, or cannot be made finer."""


class GridError(SurgeryError):
    """A map of the operated network would leave the grid, or a parameter fixes the map's size."""
