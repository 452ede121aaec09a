"""What the programs stop at, each with a sentence for the person who started them."""


class DetectionError(ValueError):
    """The base of all: the message names the place, the fact and the way out."""


class RequestError(DetectionError):
    """What was asked for does not exist, or does not fit the rest of the request."""


class DataError(DetectionError):
    """An annotation file or an image that cannot be used."""


class CheckpointError(DetectionError):
    """A checkpoint that cannot be read or does not fit the detector."""


class TrainingError(DetectionError):
    """Training that cannot go on; the last checkpoint is kept."""


class EvaluationError(DetectionError):
    """Two evaluators that should give the same figures and do not."""
