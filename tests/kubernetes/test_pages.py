"""docs/kubernetes.md is true: its commands are given, and what the page shows is what they print.

kubectl, the chart's Helm and the command line are the real ones, before the stand-in of the API server, with the real
operator and, for quotas, the real control plane. Ages and the width of columns are not compared. Commands that need
what no test has (a Helm that talks to a cluster) are marked on the page, `(not seen)`, and passed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.integration.control_rig import TOKEN, running
from tests.kubectl import require
from tests.kubernetes import rig as rigging
from tests.kubernetes.rig import Rig, operating, prepared
from tests.kubernetes.server import ApiServer
from tidegate.cli.main import run

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
HERE = "tidegate"
"""The namespace of the page."""
AGE = re.compile(r"(?<=\s)\d+(\.\d+)?[smhd]\S*$", re.MULTILINE)
MARK = re.compile(r"\s+\((not seen|lines seen[^)]*)\)$")


@dataclass
class Shown:
    """A command of the page and what it shows as its output."""

    command: str
    output: str


def shown(heading: str) -> Iterator[Shown]:
    """The commands of a section that are shown with their output."""
    section = (ROOT / "docs/kubernetes.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    assert section, f"the page has no section {heading!r}"
    for block in re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            if not MARK.search(command):
                yield Shown(command.strip(), output)


class Walk:
    """Somebody who follows the page, in a folder that looks like the repository."""

    def __init__(self, api: ApiServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rigging, "NAMESPACE", HERE)
        monkeypatch.setenv("TIDEGATE_HOME", str(folder / "home"))
        monkeypatch.setenv("LOGNAME", "root")
        monkeypatch.setenv("COLUMNS", "400")
        self.api = prepared(api)
        self.folder = folder
        config = folder / "config"
        config.write_text(yaml.safe_dump(api.kubeconfig(namespace="default")))
        monkeypatch.setenv("KUBECONFIG", str(config))
        (folder / "helm").symlink_to(ROOT / "helm")
        (folder / "examples/kubernetes").mkdir(parents=True)
        self.model = folder / "examples/kubernetes/chat.yaml"
        self.model.write_text((ROOT / "examples/kubernetes/chat.yaml").read_text())
        monkeypatch.chdir(folder)

    async def follow(self, one: Shown) -> None:
        """Give a command, and compare what it prints."""
        words = shlex.split(one.command)
        does = {"kubectl": self._kubectl, "tidegate": self._tidegate}[words[0]]
        printed = await asyncio.to_thread(does, words[1:])
        pattern = ".*".join(re.escape(part) for part in plain(one.output).split("..."))
        assert re.fullmatch(pattern, plain(printed), re.DOTALL), f"$ {one.command}\n{printed}\nthe page:\n{one.output}"

    def _kubectl(self, words: list[str]) -> str:
        command = [require(), "--cache-dir", str(self.folder / "cache"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout + done.stderr

    def _tidegate(self, words: list[str]) -> str:
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            run(words)
        return told.getvalue()


def plain(text: str) -> str:
    """Without what differs from run to run: ages, and the space that columns are filled up with."""
    lines = (" ".join(line.split()) for line in AGE.sub("AGE", text.strip()).splitlines())
    return "\n".join(lines)


@pytest.fixture
def walk(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    return Walk(api, tmp_path, monkeypatch)


async def test_what_is_seen_before_anything_is_applied(walk: Walk) -> None:
    for one in shown("Install"):
        await walk.follow(one)


async def test_the_first_model_and_the_way_back(walk: Walk) -> None:
    """From the first apply to the conditions after a rollback."""
    at_first = lambda rig: rig.serving("1.0.0")  # noqa: E731
    under_way = lambda rig: rig.told().get("weight") == 5  # noqa: E731
    taken_back = lambda rig: rig.condition("RolledBack") == "Condemned" and rig.condition("Ready") == "Serving"  # noqa: E731
    waits: list[Callable[[Rig], bool] | None] = [at_first, None, None, under_way, None, taken_back, None, None]
    commands = [*shown("The first model"), *shown("A new version, and back")]
    by_kubectl = [one for one in commands if one.command.startswith("kubectl")]
    assert len(by_kubectl) == len(waits), "say what is to be waited for after a new command of the page"
    (walk.folder / "misspelt.yaml").write_text(walk.model.read_text().replace("weight", "wieght", 1))
    async with operating(walk.api, walk.folder, token="admin") as rig:
        for number, (one, wait) in enumerate(zip(by_kubectl, waits, strict=True)):
            if number == 3:
                walk.model.write_text(walk.model.read_text().replace("version: 1.0.0", "version: 1.1.0"))
            await walk.follow(one)
            if wait is not None:
                await rig.until(lambda wait=wait: wait(rig))  # type: ignore[misc]


async def test_the_command_line_does_the_same(walk: Walk) -> None:
    commands = [one for one in shown("A new version, and back") if one.command.startswith("tidegate")]
    waits = {"deploy": lambda rig: rig.told().get("weight") == 5, "rollback": lambda rig: rig.told().get("weight") == 0}
    async with operating(walk.api, walk.folder, token="admin") as rig:
        await asyncio.to_thread(walk._tidegate, ["deploy", "chat@1.0.0", "-n", HERE, "-y", "--steps", "10"])
        await rig.until(lambda: rig.serving("1.0.0"))
        for one in commands:
            await walk.follow(one)
            if wait := waits.get(one.command.split()[1]):
                await rig.until(lambda wait=wait: wait(rig))  # type: ignore[misc]


async def test_teams_have_quotas(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"app.kubernetes.io/component": "controller", "tidegate.dev/leader": "true"}
    walk.api.cluster.create("pods", HERE, {"metadata": {"name": "r-controller-0", "labels": labels}})
    monkeypatch.setenv("TIDEGATE_KEY", TOKEN)
    async with running(namespaced=True) as plane:
        port = int(plane.url.rpartition(":")[2])
        walk.api.kubelet.ports[HERE, "r-controller-0", 8080] = ("127.0.0.1", port)
        for one in shown("Teams on one release"):
            await walk.follow(one)


def test_every_command_with_output_is_walked_or_marked() -> None:
    """A section with a shown command that no test above follows."""
    page = (ROOT / "docs/kubernetes.md").read_text()
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    walked = {"Install", "The first model", "Teams on one release", "A new version, and back"}
    assert {h for h in headings if list(shown(h))} == walked
