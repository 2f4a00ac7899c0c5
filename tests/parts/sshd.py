"""A real sshd on a loopback port, with keys and a configuration of the test's own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import final

from tests.parts.ports import free_port
from tests.parts.processes import spawn
from tests.parts.waiting import wait_until

_BINARY = Path("/usr/sbin/sshd")


@final
class Sshd:
    """Runs during the context; only the current user with this test's key can log in.

    `environment` is set for each session, PATH too. `directory`, new or empty, has its files and
    the sessions' HOME.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        self._directory = directory
        # The user's own ~/.bashrc, which bash reads under sshd, could change PATH.
        self._environment = {"HOME": str(directory / "home"), **(environment or {})}
        self.port = free_port()
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.key = directory / "client_key"
        self.log = directory / "sshd.log"
        self._child: subprocess.Popen[bytes] | None = None

    @staticmethod
    def why_not() -> str:
        """Why it can't be had on this machine, or an empty string if nothing speaks against it."""
        needed = (str(_BINARY), "ssh", "ssh-keygen")
        missing = [tool for tool in needed if shutil.which(tool) is None]
        return f"not installed: {', '.join(missing)}" if missing else ""

    @property
    def ssh_command(self) -> list[str]:
        """ssh with all options that it needs, without the destination: `user@127.0.0.1`."""
        options = {
            "UserKnownHostsFile": self._directory / "known_hosts",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
        }
        command = ["ssh", "-F", "/dev/null", "-p", str(self.port), "-i", str(self.key)]
        return command + [word for name in options for word in ("-o", f"{name}={options[name]}")]

    @property
    def destination(self) -> str:
        return f"{self.user}@127.0.0.1"

    def __enter__(self) -> Sshd:
        (self._directory / "home").mkdir(parents=True)
        host_key = self._directory / "host_key"
        for key in (host_key, self.key):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        known = f"[127.0.0.1]:{self.port} {host_key.with_suffix('.pub').read_text()}"
        (self._directory / "known_hosts").write_text(known)
        config = self._directory / "sshd_config"
        config.write_text(self._config(host_key))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # the one that Debian compiled in
        self._child = spawn([str(_BINARY), "-D", "-e", "-f", str(config)], self.log)
        try:
            wait_until(self._listening, 30, f"sshd listens on port {self.port}")
        except BaseException:
            self.close()
            raise
        return self

    def _config(self, host_key: Path) -> str:
        lines = [
            "ListenAddress 127.0.0.1",
            f"Port {self.port}",
            f"HostKey {host_key}",
            f"AuthorizedKeysFile {self.key.with_suffix('.pub')}",
            f"PidFile {self._directory / 'sshd.pid'}",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            f"AllowUsers {self.user}",
            "MaxStartups 100",
            "Subsystem sftp internal-sftp",
        ]
        # On one line: sshd heeds only the first.
        pairs = [f'"{name}={value}"' for name, value in self._environment.items()]
        lines.append(f"SetEnv {' '.join(pairs)}")
        return "\n".join(lines) + "\n"

    def _listening(self) -> bool:
        assert self._child is not None
        if self._child.poll() is not None:
            raise RuntimeError(f"sshd exited: {self.log.read_text()}")
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a remote command line (ssh joins the arguments with spaces) to its end."""
        command = [*self.ssh_command, self.destination, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def close(self) -> None:
        """Stop listening; safe to call again."""
        if self._child is not None:
            self._child.terminate()
            self._child.wait(10)
            self._child = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
