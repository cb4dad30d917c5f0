"""Control groups that this process is in: what limits it beside the machine itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class ControlGroup(NamedTuple):
    """version: 1 or 2, which name their files differently. directory: where those lie."""

    version: int
    directory: Path


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[ControlGroup]:
    """The groups with a controller ("cpu", "memory"), from the process's own up to the top, of both versions.

    root: where proc and sys lie. In a container the path may be the host's; then the groups that it names are not
    there, and the container's own is the top.
    """
    listed = root / "proc/self/cgroup"
    for line in listed.read_text().splitlines() if listed.is_file() else ():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            version, top = 2, root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            version, top = 1, root / "sys/fs/cgroup" / controllers
        else:
            continue
        if version == 1 and not top.is_dir():
            top = root / "sys/fs/cgroup" / controller
        own = top / path.strip("/")
        for directory in (own, *own.parents):
            if directory.is_dir():
                yield ControlGroup(version, directory)
            if directory == top:
                break
