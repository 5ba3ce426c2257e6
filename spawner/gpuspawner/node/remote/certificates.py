"""The certificates of broker and agents, by certipy: an authority of the broker's own signs both.

An agent makes its key itself and sends a request; the broker signs it when the machine joins. An agent knows
the broker by the fingerprint of the broker's certificate, since other agents have one of the same authority.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certipy import Certipy
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ...core.errors import Fault

_AUTHORITY, _BROKER = "authority", "broker"
_YEARS = 10
_BITS = 3072


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a certificate in DER, in hexadecimal digits."""
    return hashlib.sha256(certificate).hexdigest()


class Authority:
    """The broker's side; `folder` (mode 0700) has its keys. Its methods block."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._certipy = Certipy(store_dir=str(folder / "certipy"))  # certipy makes its own folder readable
        if _AUTHORITY not in self._certipy.store.store:
            self._certipy.create_ca(_AUTHORITY, years=_YEARS, bits=_BITS)
            self._certipy.create_signed_pair(_BROKER, _AUTHORITY, years=_YEARS, bits=_BITS)
            self._certipy.store.save()
        self.certificate = Path(self._files(_AUTHORITY)["cert"]).read_text()
        """Of the authority, in PEM."""

    def _files(self, name: str) -> dict[str, str]:
        found: dict[str, str] = self._certipy.store.get_record(name)["files"]
        return found

    @property
    def broker_fingerprint(self) -> str:
        """Of the broker's certificate: what an agent knows it by."""
        pem = Path(self._files(_BROKER)["cert"]).read_text()
        return fingerprint(ssl.PEM_cert_to_DER_cert(pem))

    def context(self) -> ssl.SSLContext:
        """The TLS of the broker's door. A machine that joins has no certificate yet."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        files = self._files(_BROKER)
        context.load_cert_chain(files["cert"], files["key"])
        context.load_verify_locations(cadata=self.certificate)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def sign(self, request: str) -> str:
        """The certificate for an agent's request, both in PEM. Raises ValueError for one that isn't sound."""
        asked = x509.load_pem_x509_csr(request.encode())
        if not asked.is_signature_valid:
            raise ValueError("the request isn't signed with its own key")
        bundle = self._certipy.store.get_files(_AUTHORITY)
        signer = (bundle.cert.load(), bundle.key.load())
        limits: list[Any] = [(x509.BasicConstraints(ca=False, path_length=None), True)]
        seconds = _YEARS * 365 * 86400
        signed: x509.Certificate = self._certipy.sign(asked, signer, (0, seconds), extensions=limits)
        return signed.public_bytes(serialization.Encoding.PEM).decode()


@dataclass(frozen=True, slots=True)
class Identity:
    """The agent's side: files in its folder (mode 0700). Its methods block."""

    folder: Path

    def make_request(self, name: str) -> str:
        """A new key, which stays here, and a request for its certificate, in PEM."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        certipy = Certipy(store_dir=str(self.folder / "certipy"))
        key = certipy.create_key_pair("rsa", _BITS)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.folder / "key.pem").touch(mode=0o600)
        (self.folder / "key.pem").write_bytes(pem)
        request: x509.CertificateSigningRequest = certipy.create_request(key, CN=name)
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def keep(self, certificate: str, authority: str, broker_fingerprint: str) -> None:
        """What the broker answered."""
        (self.folder / "cert.pem").write_text(certificate)
        (self.folder / "authority.pem").write_text(authority)
        (self.folder / "broker.sha256").write_text(broker_fingerprint)

    def context(self) -> ssl.SSLContext:
        """The TLS of the agent's connection. Raises Fault if this machine hasn't joined."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the broker is known by its fingerprint
        try:
            context.load_verify_locations(self.folder / "authority.pem")
            context.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        except OSError as error:
            raise Fault(f"This machine hasn't joined a broker: {error}.") from error
        return context

    def check_broker(self, certificate: bytes) -> None:
        """Raises OSError unless this is the certificate of the broker that the machine has joined."""
        known = (self.folder / "broker.sha256").read_text().strip()
        if not hmac.compare_digest(known, fingerprint(certificate)):
            raise ConnectionError("another program answers at the broker's address")
