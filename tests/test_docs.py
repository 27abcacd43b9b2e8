"""Every command of README and of the docs runs as it is written.

A block is a fenced one of ```bash or ```python. `<!-- not run: REASON -->` before it says why a block is not run here;
`<!-- goes on -->` that it is typed after the one before it, in the same shell.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from cosmorama.world.load.sources import SOURCES
from tests import needs
from tests.jobs.conftest import postgres as postgres
from tests.serving import Running, running_server
from tests.tiny import save_tiny
from tests.world.checkpoints import save_predict
from tests.world.load.hub_cache import FakeHub, serving
from tests.world.load.test_hub import made, published  # noqa: F401

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
COMMAND = re.compile(r"^\s*(?:\S+=\S+ )*(?:cosmorama|curl|make|pip|python3?|docker|helm|import|from) ", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    excuse: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    lines, found = page.read_text().split("\n"), list[Block]()
    begun: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if begun is None:
            begun = number
            continue
        before = next((text for text in reversed(lines[:begun]) if text.strip()), "").strip()
        excuse = re.fullmatch(r"<!-- not run: (.+) -->", before)
        text = "\n".join(lines[begun + 1 : number])
        if before == "<!-- goes on -->":
            text = f"{found.pop().text}\n{text}"
        found.append(Block(page.name, begun + 1, lines[begun][3:].strip(), text, excuse[1] if excuse else None))
        begun = None
    return found


ALL = [block for page in PAGES for block in blocks(page)]
COMMANDS = [block for block in ALL if block.language in ("bash", "sh", "python") or COMMAND.search(block.text)]
RUN = [block for block in COMMANDS if block.excuse is None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose usual clips are small; the other size is that of the texts."""
    return save_tiny(tmp_path_factory.mktemp("docs-model"), sizes=((320, 192), (1280, 704)))


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_server(model, tmp_path_factory.mktemp("docs-server")) as running:
        yield running


@pytest.fixture(scope="module")
def hub(made: dict[str, dict[str, bytes]]) -> Iterator[str]:  # noqa: F811
    """The address of a hub that has what the texts name, with small weights."""
    wanted = [row for row in SOURCES if row.name in ("predict2.5-2b", "cosmos3-nano")]
    revisions = {(row.repository, name): files for row in wanted for name, files in published(row, made).items()}
    with serving(FakeHub(revisions)) as address:
        yield address


@pytest.fixture(scope="module")
def desk(
    tmp_path_factory: pytest.TempPathFactory, server: Running, model: Path, hub: str
) -> tuple[Path, dict[str, str]]:
    """A folder to work in, as after installing in a clone, and its environment: see tests/desk.py."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(ROOT / "docs" / "images", folder / "docs" / "images")
    shutil.copytree(ROOT / "tools", folder / "tools")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "constraints-cpu.txt"):
        shutil.copy(ROOT / name, folder)
    save_predict("predict2.5", folder / "my-finetuned-predict2.5")
    commands = folder / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name in ("cosmorama", "python", "python3"):
        (commands / name).write_text(f"#!{sys.executable}\n{(ROOT / 'tests' / 'desk.py').read_text()}")
        (commands / name).chmod(0o755)
    stamp = "{ cat pyproject.toml constraints.txt constraints-cpu.txt tools/install; echo; } | cksum"
    subprocess.run(["sh", "-c", f"{stamp} >.venv/.installed-serve"], cwd=folder, check=True)
    body = {"prompt": "a red ball", "steps": 2, "video_params": {"width": 320, "height": 192, "frames_count": 9}}
    (folder / "body.json").write_text(json.dumps(body))
    drives = save_tiny(tmp_path_factory.mktemp("drives"), sizes=((640, 352),), drives=True)
    return folder, {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
        "HOME": str(folder),
        "HF_HOME": str(folder / "hub"),
        "HF_ENDPOINT": hub,
        "SHELL": "/bin/sh",
        "COSMORAMA_STATE_DIR": str(folder / "state"),
        "COSMORAMA_LEASE_S": "3",
        "DESK_MODEL": str(model),
        "DESK_SERVER": server.url,
        "DESK_BODY": str(folder / "body.json"),
        "DESK_DRIVES": str(drives),
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_every_block_with_commands_is_marked_as_one() -> None:
    unmarked = [str(block) for block in COMMANDS if block.language not in ("bash", "sh", "python") and not block.excuse]
    assert not unmarked, "write ```bash or ```python, or say before it why it is not run"


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_block_runs_as_written(
    block: Block, desk: tuple[Path, dict[str, str]], server: Running, model: Path, request: pytest.FixtureRequest
) -> None:
    folder, environment = desk
    environment = {**os.environ, **environment, "COSMORAMA_SERVER": "", "COSMORAMA_PORT": str(free_port())}
    text = block.text
    if "--role api" in text:
        needs.postgres()
        database = request.getfixturevalue("postgres").new_database()
        text = text.replace("postgresql:///cosmorama", f"'{database}'")
        for port in ("8101", "8102", "8000"):
            text = text.replace(port, str(free_port()))
    text = re.sub(r"(?:http://)?localhost:8000", server.url, text)
    if block.language == "python":
        text = text.replace('"microcosm"', repr(str(model)))
        command = [sys.executable, "-c", text]
    else:
        command = ["bash", "-e", "-o", "pipefail", "-c", text]
    if "cosmorama jobs" in text:
        environment["COSMORAMA_SERVER"] = server.url
    output = folder / "output"
    with (
        output.open("w") as sink,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        ) as run,
    ):
        try:
            status = run.wait(540)
        finally:
            with suppress(ProcessLookupError):  # what a block begins in the background goes on after it
                os.killpg(run.pid, signal.SIGKILL)
    assert status == 0, f"{block}\n{text}\n{output.read_text()[-6000:]}"


def test_how_many_are_run_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    kept = [f"{block} ({block.excuse})" for block in COMMANDS if block.excuse]
    with capsys.disabled():
        print(f"\n{len(RUN)} blocks of commands in README and docs are run, {len(kept)} are not: {', '.join(kept)}")
    assert RUN


def test_no_text_installs_the_package_from_an_index() -> None:
    for page in (*PAGES, *sorted((ROOT / "src").rglob("*.py")), *sorted((ROOT / "deploy").rglob("*"))):
        if page.is_file():
            assert not re.search(r"pip install ['\"]?cosmorama\b", page.read_text(errors="replace")), page


def test_the_page_of_knobs_is_what_the_server_tells() -> None:
    """`tools/knobs` writes it; a knob or a description that changed is written there by running it again."""
    tool = runpy.run_path(str(ROOT / "tools" / "knobs"))
    page = (ROOT / "docs" / "knobs.md").read_text()
    assert page == tool["page"](), "run tools/knobs"
    assert {f"{name}.webp" for name in tool["STRIPS"]} == {path.name for path in tool["PICTURES"].iterdir()}
