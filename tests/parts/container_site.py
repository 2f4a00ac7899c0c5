"""A site whose VictoriaLogs is a container, with the commands of config-examples/docker.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from ruamel.yaml import YAML

from tests.parts.docker import Docker
from tests.parts.site import Site
from tests.parts.systemd import Systemd
from tests.parts.victoria_logs import server_argv

EXAMPLE = Path(__file__).resolve().parents[2] / "config-examples" / "docker.yaml"
# Another one than on the machine, as in the images that people run.
_DATA = Path("/victoria-logs-data")


@final
class ContainerSite(Site):
    """The container is called after `name`, and runs on `docker`."""

    def __init__(
        self, root: Path, executable: Path, systemd: Systemd, name: str, docker: Docker
    ) -> None:
        super().__init__(root, executable, systemd, name)
        self.docker = docker
        self.container = name

    def install(
        self, flags: Sequence[str] = (), restart: str = "unless-stopped", **instance: Any
    ) -> None:
        """Create the container, write our config, start the server."""
        argv = server_argv(self.executable, _DATA, self.port, flags)
        self.docker.create(self.container, argv, {self.data: str(_DATA)}, restart)
        self.write_config(**instance)
        self.start()

    def write_config(self, **instance: Any) -> None:
        super().write_config(**{"service": self._service(), **instance})

    def _service(self) -> dict[str, Any]:
        """The service of the example, on our dockerd and for our container."""
        (example,) = YAML(typ="safe").load(EXAMPLE)["instances"]
        here = {"docker": self.docker.command, "victorialogs": [self.container]}
        return {
            "command": {
                verb: [word for usual in argv for word in here.get(usual, [usual])]
                for verb, argv in example["service"]["command"].items()
            }
        }

    def start(self) -> None:
        self.docker.run("start", self.container)
        self.server.wait_healthy()

    def stop(self) -> None:
        self.docker.run("stop", "-t", "60", self.container)

    @property
    def is_running(self) -> bool:
        return self.docker.is_running(self.container)
