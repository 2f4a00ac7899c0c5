"""A real dockerd on a machine of its own that can lose its power, beside whatever runs this one.

It is PID 1 of a PID namespace: its end is that of dockerd, containerd and all containers at the
same moment. /run is empty after each boot, as a machine's is, and has no containerd of the machine's
that dockerd would use. No network is set up: containers have the machine's.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import final

from tests.parts.processes import spawn
from tests.parts.systemd import ENTER_CGROUP, remove_cgroup
from tests.parts.waiting import wait_until

# dockerd runs `ps` for `docker top`.
_TOOLS = ("dockerd", "docker", "containerd", "runc", "ps", "unshare", "setpriv", "mount")

# $1 working directory. cgroup2 serves on machines with the old hierarchies, or with none mounted,
# too, and goes away as one. The storage driver vfs asks nothing of the filesystem; what images and
# containers hold here is next to nothing. The socket is where programs outside can see it.
_BOOT = """
set -eu
[ -d /sys/fs/cgroup ] || { echo "no /sys/fs/cgroup" >&2; exit 1; }
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
exec dockerd --host="unix://$1/docker.sock" --data-root="$1/data" --exec-root=/run/docker \\
    --pidfile=/run/docker.pid --storage-driver=vfs --bridge=none --iptables=false --ip6tables=false
"""

_IMAGE = "nothing"


@final
class Docker:
    """Boots at the start of the context, ends with everything it runs at the end of it.

    Containers see programs and libraries of the machine, to read only, in the places they have
    there: its programs, this Python, and those of its environment.
    """

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="vl-borg-hooks-docker-"))
        self.log = self._directory / "log"
        self._child: subprocess.Popen[bytes] | None = None

    @staticmethod
    def why_not() -> str:
        """Why it can't be had on this machine, or an empty string if nothing speaks against it."""
        if os.geteuid() != 0:
            return "dockerd needs root"
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        return f"not installed: {', '.join(missing)}" if missing else ""

    @property
    def command(self) -> list[str]:
        """The client, with the address of this dockerd."""
        return ["docker", f"--host=unix://{self._directory}/docker.sock"]

    def __enter__(self) -> Docker:
        (self._directory / "cgroup").mkdir()
        (self._directory / "enter-cgroup").write_text(ENTER_CGROUP)
        (self._directory / "boot").write_text(_BOOT)
        empty = io.BytesIO()
        tarfile.open(fileobj=empty, mode="w").close()
        (self._directory / "empty.tar").write_bytes(empty.getvalue())
        try:
            self.boot()
            self.run("import", str(self._directory / "empty.tar"), _IMAGE)
        except BaseException:
            self.close()
            raise
        return self

    def boot(self) -> None:
        """Start dockerd on what it has on disk, and wait until it answers.

        By then it has started the containers that it starts by itself.
        """
        script = [str(self._directory / "enter-cgroup"), str(self._directory)]
        script.append(self._directory.name)  # of the cgroup
        argv = ["unshare", "--mount", "--propagation", "slave", "sh", *script]
        self._child = spawn(argv, self.log)
        wait_until(self._answers, 30, "dockerd answers")

    def _answers(self) -> bool:
        assert self._child is not None
        if self._child.poll() is not None:
            raise RuntimeError(f"no dockerd: {self.log.read_text(errors='replace')[-2000:]}")
        return self.run("version", check=False).returncode == 0

    def lose_power(self) -> None:
        """Kill dockerd with everything it started, all at once; safe to call again."""
        if self._child is None:
            return
        # --kill-child makes the kernel end PID 1, and so the whole namespace, with `unshare`.
        self._child.kill()
        self._child.wait()
        self._child = None
        remove_cgroup(self._directory)

    def close(self) -> None:
        """Lose the power and the disk; safe to call again."""
        self.lose_power()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the client; RuntimeError with what it said if it fails, unless `check` is off."""
        argv = [*self.command, *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        if check and done.returncode != 0:
            raise RuntimeError(f"{shlex.join(argv)}: {done.returncode}: {done.stderr}")
        return done

    def create(
        self,
        name: str,
        argv: Sequence[str],
        volumes: Mapping[Path, str] | None = None,
        restart: str = "unless-stopped",
    ) -> None:
        """Create the container `name` for `argv`, whose program may lie anywhere; not started.

        `volumes` are directories of the machine, and where the container has them.
        """
        # Without doubles, which Docker refuses.
        places = dict.fromkeys(
            ("/usr", "/lib", "/lib64", "/bin", sys.prefix, sys.base_prefix, shutil.which(argv[0]))
        )
        mounts = [f"{place}:{place}:ro" for place in places if place and os.path.exists(place)]
        mounts += [f"{path}:{place}" for path, place in (volumes or {}).items()]
        self.run(
            *("create", f"--name={name}", f"--restart={restart}", "--network=host"),
            f"--env=PATH={os.environ.get('PATH', os.defpath)}",
            *(f"--volume={mount}" for mount in mounts),
            _IMAGE,
            *argv,
        )

    def is_running(self, name: str) -> bool:
        return self.run("inspect", "--format={{.State.Running}}", name).stdout == "true\n"
