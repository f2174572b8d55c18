"""The resume certificate: a run that is killed and resumed reaches the bits of one that nothing stopped."""

from .certificate import Certificate, Part
from .certifying import certify

__all__ = ["Certificate", "Part", "certify"]
