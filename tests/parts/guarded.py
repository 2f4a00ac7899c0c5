"""A VictoriaLogs that asks for all that its flags can ask for, and what we need to reach it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

from tests.parts import certificates
from tests.parts.victoria_logs import LogServer

PREFIX = "/some/logs"
SECRETS = {
    "password": "pass word & 1",
    "metrics": "metrics-key+2",
    "force_flush": "flush-key/3",
    "partition_manage": "partition-key=4",
}


@dataclass(frozen=True)
class Guarded:
    """Flags for a server on `port`: TLS by an own CA, a path prefix, a password and three keys.

    The password and the keys are in files of `directory`.
    """

    directory: Path
    port: int
    certificate: certificates.Certificate

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}{PREFIX}"

    @property
    def flags(self) -> list[str]:
        names = {
            "password": "httpAuth.password",
            "metrics": "metricsAuthKey",
            "force_flush": "forceFlushAuthKey",
            "partition_manage": "partitionManageAuthKey",
        }
        keys = [f"-{flag}=file://{self._file(name)}" for name, flag in names.items()]
        return [
            *self.certificate.flags,
            *keys,
            f"-http.pathPrefix={PREFIX}",
            "-httpAuth.username=operator",
        ]

    @property
    def authorization(self) -> str:
        """The header of who knows the password."""
        pair = f"operator:{SECRETS['password']}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    @property
    def told(self) -> list[str]:
        """What must be in no log, no record and no answer of ours: the secrets, as they are sent too."""
        forms = [form for secret in SECRETS.values() for form in (secret, quote_plus(secret))]
        return [*forms, self.authorization.removeprefix("Basic ")]

    @property
    def server(self) -> LogServer:
        """The tests' own client of it."""
        return LogServer(
            self.url,
            ca_file=self.certificate.ca_file,
            headers={"Authorization": self.authorization},
            flush_key=SECRETS["force_flush"],
        )

    @property
    def options(self) -> dict[str, Any]:
        """What an instance in the config needs to reach it."""
        keys = ("metrics", "force_flush", "partition_manage")
        return {
            "url": self.url,
            "http_auth": {"username": "operator", "password_file": str(self._file("password"))},
            "auth_keys": {key: {"file": str(self._file(key))} for key in keys},
            "tls": {"ca_file": str(self.certificate.ca_file)},
        }

    def _file(self, name: str) -> Path:
        return self.directory / f"{name}-secret"


def guarded(directory: Path, port: int) -> Guarded:
    """Make the certificates and the files with the secrets in `directory`."""
    made = Guarded(directory, port, certificates.signed(directory))
    for name, secret in SECRETS.items():
        path = directory / f"{name}-secret"
        path.write_text(f"{secret}\n")
        path.chmod(0o600)
    return made
