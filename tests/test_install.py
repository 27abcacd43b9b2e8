"""`tools/install`, what every make target begins with: with Pythons that only pretend to be one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PYTHON = """#!/bin/sh
# A Python of version $VERSION: it knows what the script asks of one.
here=$(dirname "$0")
case "$*" in
*print*) echo VERSION ;;
*sys.exit*) exit OLD ;;
*"import pip"*) [ -x "$here/pip" ] ;;
"-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    printf '#!/bin/sh\\necho "$*" >> pip.log\\ncase "$*" in *--dry-run*) exit CPU;; esac\\n' > "$3/bin/pip"
    chmod +x "$3/bin/pip"
    ;;
esac
"""


class Checkout:
    """A folder in which the script runs as in a clone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "path"
        (folder / "tools").mkdir(parents=True)
        self.path.mkdir()
        shutil.copy(ROOT / "tools" / "install", folder / "tools")
        for name in ("pyproject.toml", "constraints.txt", "constraints-cpu.txt"):
            shutil.copy(ROOT / name, folder)

    def python(self, version: str, *, name: str = "python3", cpu: bool = True) -> None:
        text = PYTHON.replace("VERSION", version).replace("CPU", "0" if cpu else "1")
        text = text.replace("OLD", "1" if int(version.split(".")[1]) < 11 else "0")
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)

    def install(self, what: str = "serve", **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "TORCH")}
        path = f"{self.path}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["sh", "tools/install", what],
            cwd=self.folder,
            env={**clean, "PATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def installed(self) -> list[str]:
        log = self.folder / "pip.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if "--dry-run" not in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "clone")


def test_it_says_what_it_installs_and_how_to_call_it_and_does_so_once(checkout: Checkout) -> None:
    checkout.python("3.12")
    (checkout.path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (checkout.path / "nvidia-smi").chmod(0o755)
    run = checkout.install()
    assert run.returncode == 0, run.stderr
    assert "CPU build" in run.stdout
    assert "GB on disk" in run.stdout
    assert ".venv/bin/cosmorama" in run.stdout
    assert checkout.installed == ["install -q -c constraints.txt -c constraints-cpu.txt -e .[serve]"]
    assert checkout.install().stdout == ""
    assert len(checkout.installed) == 1
    checkout.install("test")
    assert len(checkout.installed) == 2
    assert checkout.install().stdout == ""  # the server's are among the tests'
    with (checkout.folder / "constraints.txt").open("a") as file:
        file.write("new==1\n")
    checkout.install()
    assert len(checkout.installed) == 3


@pytest.mark.parametrize("why", ["gpu", "no index", "asked for"])
def test_the_default_build_where_the_small_one_is_no_use_or_not_to_be_had(checkout: Checkout, why: str) -> None:
    checkout.python("3.12", cpu=why != "no index")
    (checkout.path / "nvidia-smi").write_text(f"#!/bin/sh\nexit {0 if why == 'gpu' else 9}\n")
    (checkout.path / "nvidia-smi").chmod(0o755)
    run = checkout.install(**({"TORCH": "default"} if why == "asked for" else {}))
    assert run.returncode == 0, run.stderr
    assert "CPU build" not in run.stdout
    assert checkout.installed == ["install -q -c constraints.txt -e .[serve]"]


@pytest.mark.parametrize("found", ["3.10", None])
def test_without_a_python_that_will_do_nothing_is_begun(checkout: Checkout, found: str | None) -> None:
    if found is not None:
        checkout.python(found, name="python3.10")
    run = checkout.install(PYTHON="python3.10" if found else "no-such-python")
    assert run.returncode == 1
    assert "needs Python 3.11 or newer" in run.stderr
    assert "PYTHON=python3.12" in run.stderr
    assert not (checkout.folder / ".venv").exists()


def test_an_environment_that_is_broken_or_of_another_python_is_made_anew(checkout: Checkout) -> None:
    checkout.python("3.12")
    checkout.python("3.13", name="python3.13")
    checkout.install()
    python = checkout.folder / ".venv" / "bin" / "python"
    python.unlink()
    run = checkout.install()
    assert "anew" in run.stdout
    assert python.exists()
    assert len(checkout.installed) == 2
    assert "not that of python3.13" in checkout.install(PYTHON="python3.13").stdout
    assert "3.13" in python.read_text()
    assert checkout.install().stdout == ""  # what works stays, unless another one is asked for


def test_the_pinned_versions_resolve_on_the_plain_index() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert not [pin for pin in pins if "+" in pin]
    (cpu,) = [pin for pin in (ROOT / "constraints-cpu.txt").read_text().splitlines() if not pin.startswith("#")]
    assert cpu.removesuffix("+cpu") in pins
