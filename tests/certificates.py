"""Certificates for tests, made on the spot: self-signed ones, and ones that those issue."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Issued:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        """The certificate in PEM."""
        return self.certificate.public_bytes(PEM)

    def write_key(self, path: Path) -> Path:
        """Write the key in PEM, without a password."""
        plain = serialization.NoEncryption()
        path.write_bytes(self.key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain))
        return path


def issue(name: str, issuer: Issued | None = None) -> Issued:
    """A certificate of a day on either side: self-signed, for the host `name`; or issued, for signing documents and mail."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
    signing = issuer.key if issuer is not None else key
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    own = issuer is None
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=own, crl_sign=own, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    use = (
        x509.SubjectAlternativeName([x509.DNSName(name)])
        if own
        else x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
        .add_extension(usage, critical=True)
        .add_extension(use, critical=False)
        .sign(signing, hashes.SHA256())
    )
    return Issued(made, key)
