"""`reins://STORE?namespace=NAME`: where a store of directions lies, and under which name its registry is known."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from reins_serve.errors import ReinsError

SCHEME = "reins://"
NAMESPACE = "reins"


def absolute(url: str) -> str:
    """A store's URL as every process understands it: a relative folder becomes an absolute one."""
    return url if "://" in url else str(Path(url).absolute())


@dataclass(frozen=True)
class StoreAddress:
    """`reins://STORE?namespace=NAME`: a store's folder or URL; empty for the one that the cluster's registry keeps."""

    store: str
    namespace: str = NAMESPACE

    @classmethod
    def parse(cls, text: str) -> "StoreAddress":
        """Read an address. Raises ReinsError."""
        store, _, query = text.removeprefix(SCHEME).partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        namespace = options.pop("namespace", NAMESPACE)
        if not text.startswith(SCHEME) or options or not namespace:
            raise ReinsError(
                f"{text!r} is no address of a store. Write reins://STORE or reins://STORE?namespace=NAME, where STORE is a "
                "folder, a URL such as s3://bucket/prefix, or nothing for the store of the cluster's registry."
            )
        return cls(store, namespace)
