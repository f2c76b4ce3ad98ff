"""Video denoisers of diffusers that have no entry in SPECS: what is known of each, for the message that refuses it."""

from collections.abc import Mapping
from types import MappingProxyType

OTHERS: Mapping[str, str] = MappingProxyType({})
