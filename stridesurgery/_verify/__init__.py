"""Check that an operated model keeps its promises."""

from stridesurgery._verify.verify import Verification, verify

__all__ = [
    "Verification",
    "verify",
]
