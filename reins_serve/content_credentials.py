"""Content Credentials (C2PA): a clip's provenance, signed, in the file itself, and how that is checked. Needs the extra `c2pa`.

The manifest binds the bytes of the video, so that a changed frame or tag shows. It claims that a generative model made the clip
and, in an assertion of our own, how it was steered. Who believes it is up to the certificate: viewers trust those on the C2PA
trust list, and `reins-serve inspect --trust` whichever one is given.
"""

import io
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

import reins_serve
from reins_serve.errors import ReinsError
from reins_serve.models.video import mp4
from reins_serve.provenance import Provenance

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
ASSERTION = "org.reins-serve.generation"
MP4 = "video/mp4"
MISSING = "Content Credentials need a package: pip install 'reins-serve[c2pa]'."
# A file that is looked at must not make us ask the network for anything.
OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}

AbsolutePath = Annotated[str, Field(pattern=r"^/")]


class PackageMissing(ReinsError):
    """The extra `c2pa` is not installed."""


class CredentialsConfig(BaseModel):
    """Whose signature the clips of a model carry. The files are read where the model runs.

    Attributes:
        certificate: PEM file of the signer's certificate, followed by those that lead to its root.
        key: PEM file of its private key.
        algorithm: What the key is for.
        timestamp_url: Time-stamp authority (RFC 3161), so that the signature outlives the certificate; asked for each clip.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate: AbsolutePath
    key: AbsolutePath
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = "es256"
    timestamp_url: Annotated[str, Field(pattern=r"^https?://")] | None = None


class CredentialsSigner:
    """Signs clips. A trial clip is signed when it is made, so that a certificate that will not do shows at once.

    Raises:
        ReinsError: the package or a file is missing, or the certificate and key cannot sign.
    """

    def __init__(self, config: CredentialsConfig) -> None:
        self._c2pa = _library()
        try:
            chain, key = (Path(path).read_bytes() for path in (config.certificate, config.key))
            algorithm = getattr(self._c2pa.C2paSigningAlg, config.algorithm.upper())
            url = config.timestamp_url.encode() if config.timestamp_url is not None else None
            self._signer = self._c2pa.Signer.from_info(self._c2pa.C2paSignerInfo(algorithm, chain, key, url))
            trial = Provenance(reins_serve.__version__, "trial", False, False, "default", 0.0)
            self.sign(mp4(np.zeros((2, 16, 16, 3), np.uint8), 8), trial)
        except (OSError, self._c2pa.C2paError) as error:
            raise ReinsError(
                f"Clips cannot be signed with the certificate {config.certificate}: {error}. It must follow the C2PA profile: not "
                "self-signed, key usage digitalSignature, extended key usage emailProtection or one of the C2PA trust list's."
            ) from error

    def sign(self, video: bytes, made: Provenance) -> bytes:
        """The same MP4 with a signed manifest in it."""
        agent = {"name": "reins_serve", "version": made.version}
        facts = {name: value for name, value in asdict(made).items() if value is not None}
        created = {"action": "c2pa.created", "digitalSourceType": GENERATED, "softwareAgent": agent}
        manifest = {
            "claim_generator_info": [agent],
            "format": MP4,
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
                {"label": ASSERTION, "data": facts},
            ],
        }
        signed = io.BytesIO()
        with self._c2pa.Builder(manifest) as builder:
            builder.sign(self._signer, MP4, io.BytesIO(video), signed)
        return signed.getvalue()


def check(path: Path, trust: Path | None = None) -> dict[str, Any] | None:
    """What the manifest of a file says, and whether it holds; None if it has none.

    Args:
        trust: PEM file of the roots that are trusted.

    Returns:
        `state` (`trusted`; `valid`: whole, but nobody vouches for the signer; `invalid`), `issuer`, `signer`, `made` (our own
        assertion) and, unless all is well, `problems`.
    """
    c2pa = _library()
    settings: dict[str, Any] = dict(OFFLINE)
    try:
        if trust is not None:
            settings["trust"] = {"trust_anchors": trust.read_text()}
        with c2pa.Context.from_dict(settings) as context, path.open("rb") as file:
            try:
                reader = c2pa.Reader(MP4, file, context=context)
            except c2pa.C2paError.ManifestNotFound:
                return None
            with reader:
                state = str(reader.get_validation_state()).lower()
                manifest = reader.get_active_manifest() or {}
                results = reader.get_validation_results() or {}
    except (OSError, c2pa.C2paError) as error:
        raise ReinsError(f"The Content Credentials of {path} cannot be read: {error}") from error
    signature = manifest.get("signature_info", {})
    own = [assertion["data"] for assertion in manifest.get("assertions", ()) if assertion["label"] == ASSERTION]
    failures = results.get("activeManifest", {}).get("failure", ())
    return {
        "state": state,
        "issuer": signature.get("issuer"),
        "signer": signature.get("common_name"),
        "made": own[0] if own else None,
        "problems": [failure.get("explanation") or failure["code"] for failure in failures],
    }


def _library() -> Any:
    try:
        import c2pa
    except ImportError as error:
        raise PackageMissing(MISSING) from error
    return c2pa
