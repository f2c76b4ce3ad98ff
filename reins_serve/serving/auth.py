"""Who asks: keys are known by their digests only, and compared in constant time."""

import hmac
from dataclasses import dataclass

from reins_serve.serving.config import ADMIN, EVERYBODY, ApplicationConfig, hash_key
from reins_serve.serving.http_errors import RequestError


@dataclass(frozen=True)
class Caller:
    """Who sent a request: jobs belong to `owner` and get its `priority`; `admin` may turn steering off."""

    owner: str
    admin: bool
    priority: int = 0


def identify(authorization: str | None, config: ApplicationConfig) -> Caller:
    """The caller by the `Authorization: Bearer KEY` header.

    Where the configuration lists no API keys, everybody may ask and all jobs have one owner; the admin key counts all the
    same.

    Raises:
        RequestError: a key is needed, and this is none (`invalid_api_key`).
    """
    scheme, _, key = (authorization or "").partition(" ")
    digest = hash_key(key.strip()) if scheme.lower() == "bearer" else ""
    admin = config.admin_key_sha256 is not None and hmac.compare_digest(digest, config.admin_key_sha256)
    if not config.api_keys:
        return Caller(EVERYBODY, admin)
    known = [key for key in config.api_keys if hmac.compare_digest(digest, key.sha256)]  # no early exit
    if known:
        return Caller(known[0].name, admin, known[0].priority)
    if not admin:
        raise RequestError("Send a valid key as `Authorization: Bearer KEY`.", code="invalid_api_key")
    return Caller(ADMIN, admin)
