"""Certificates of the test's own, made with openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Certificate:
    """A server's certificate for localhost and 127.0.0.1, its key, and what has signed it."""

    ca_file: Path
    file: Path
    key_file: Path

    @property
    def flags(self) -> list[str]:
        """The flags of a VictoriaLogs that has it."""
        return ["-tls", f"-tlsCertFile={self.file}", f"-tlsKeyFile={self.key_file}"]


def signed(directory: Path, names: str = NAMES) -> Certificate:
    """A certificate that a CA of its own has signed, as most operators' CA: without a key usage."""
    directory.mkdir(parents=True)
    made = Certificate(*(directory / name for name in ("ca.pem", "server.pem", "server.key")))
    request, ca_key, extensions = (directory / name for name in ("request", "ca.key", "extensions"))
    extensions.write_text(f"{names}\n")
    ca = _openssl("req", "-x509", *_NEW_KEY, "-subj", "/CN=the operator's CA", "-days", "2")
    _run(ca, "-keyout", ca_key, "-out", made.ca_file)
    asked = _openssl("req", *_NEW_KEY, "-subj", "/CN=logs")
    _run(asked, "-keyout", made.key_file, "-out", request)
    sign = _openssl("x509", "-req", "-days", "2", "-CAcreateserial", "-extfile", str(extensions))
    _run(sign, "-in", request, "-CA", made.ca_file, "-CAkey", ca_key, "-out", made.file)
    return made


def self_signed(directory: Path) -> Certificate:
    """A certificate that nobody but itself has signed."""
    directory.mkdir(parents=True)
    made = Certificate(*(directory / name for name in ("server.pem", "server.pem", "server.key")))
    asked = _openssl("req", "-x509", *_NEW_KEY, "-subj", "/CN=logs", "-days", "2", "-addext", NAMES)
    _run(asked, "-keyout", made.key_file, "-out", made.file)
    return made


def _openssl(*arguments: str) -> list[str]:
    return ["openssl", *arguments]


def _run(argv: list[str], *more: str | Path) -> None:
    subprocess.run([*argv, *map(str, more)], check=True, capture_output=True)
