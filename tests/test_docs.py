"""Every command of README and of the docs runs as it is written.

A block is a fenced one of ```bash or ```python. `<!-- not run: REASON -->` before it says why a block is not run here.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.serving import Running, running_server
from tests.tiny import save_tiny

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


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text().split("\n")
    begun: int | None = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if begun is None:
            begun = number
            continue
        before = next((text for text in reversed(lines[:begun]) if text.strip()), "")
        excuse = re.fullmatch(r"<!-- not run: (.+) -->", before.strip())
        text = "\n".join(lines[begun + 1 : number])
        yield Block(page.name, begun + 1, lines[begun][3:].strip(), text, excuse[1] if excuse else None)
        begun = None


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
def desk(tmp_path_factory: pytest.TempPathFactory, server: Running, model: Path) -> Path:
    """A folder to work in, with a `cosmorama` that makes short clips, on the server where it can."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(ROOT / "docs" / "images", folder / "docs" / "images")
    (folder / "bin").mkdir()
    command = folder / "bin" / "cosmorama"
    command.write_text(
        f"#!{sys.executable}\n"
        "import sys\n"
        "if not {'--model', '--server'} & set(sys.argv):\n"
        # Loading a model takes seconds; what these commands do in a process of their own is tested elsewhere.
        f"    sys.argv += ['--server', {server.url!r}] if sys.argv[1] in ('generate', 'again', 'grid') else []\n"
        f"    sys.argv += ['--model', {str(model)!r}] if sys.argv[1] == 'batch' else []\n"
        "if sys.argv[1] in ('generate', 'grid') or sys.argv[1:3] == ['jobs', 'submit']:\n"
        "    for option, value in (('--frames', '9'), ('--steps', '2')):\n"
        "        given = option in sys.argv or any(word.startswith(f'{option[2:]}=') for word in sys.argv)\n"
        "        sys.argv += [] if given else [option, value]\n"
        "from cosmorama.cli import main\n"
        "main()\n"
    )
    command.chmod(0o755)
    for name in ("python", "python3"):
        (folder / "bin" / name).symlink_to(sys.executable)
    return folder


def test_every_block_with_commands_is_marked_as_one() -> None:
    unmarked = [str(block) for block in COMMANDS if block.language not in ("bash", "sh", "python") and not block.excuse]
    assert not unmarked, "write ```bash or ```python, or say before it why it is not run"


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_block_runs_as_written(block: Block, desk: Path, server: Running, model: Path) -> None:
    text = re.sub(r"(?:http://)?localhost:8000", server.url, block.text)
    if block.language == "python":
        text = text.replace('"microcosm"', repr(str(model)))
        command = [sys.executable, "-c", text]
    else:
        command = ["bash", "-e", "-o", "pipefail", "-c", text]
    environment = {
        **os.environ,
        "PATH": f"{desk / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "COSMORAMA_SERVER": "",
    }
    if "cosmorama jobs" in text:
        environment["COSMORAMA_SERVER"] = server.url
    run = subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True, timeout=540, check=False)
    assert run.returncode == 0, f"{block}\n{text}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"


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
