"""The commands of the docs as they are run at the test's desk: the real ones, with small models and short clips.

Called as `cosmorama` or `python`; whoever reads the docs does the same and waits longer. From the environment:
DESK_MODEL and DESK_DRIVES, checkpoints; DESK_SERVER, a running server; DESK_BODY, the body of a small request.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

READY = "loaded, open http"


def adapted(words: list[str]) -> list[str]:
    """A command's arguments, and those that make it end soon, where it says nothing else."""
    command, more = words[0], list[str]()

    def usual(*options: tuple[str, str]) -> None:
        for option, value in options:
            if option not in words and not any(word.startswith(f"{option[2:]}=") for word in words):
                more.extend((option, value))

    if not {"--model", "--server"} & set(words):
        # Loading a model takes seconds; what these commands do in a process of their own is tested elsewhere.
        if command in ("generate", "again", "grid"):
            usual(("--server", os.environ["DESK_SERVER"]))
        if command in ("batch", "worker"):
            usual(("--model", os.environ["DESK_MODEL"]))
        if command == "play":
            usual(("--model", os.environ["DESK_DRIVES"]))
    if command in ("generate", "grid") or words[:2] == ["jobs", "submit"]:
        usual(("--frames", "9"), ("--steps", "2"))
    if command == "bench":
        more += ["--requests", "2", "--body", os.environ["DESK_BODY"]]
    return words + more


def serves(command: list[str]) -> int:
    """A server in front of somebody who ends it with Ctrl-C once it is ready, and has seen that one then."""
    seen = Path(os.environ["HOME"], "_".join(command[3:]).replace("/", "_"))
    if seen.exists():
        return 0
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        for line in server.stderr:
            print(line, end="", file=sys.stderr)
            if READY in line:
                server.send_signal(signal.SIGINT)
    if server.returncode == 0:
        seen.touch()
    return server.returncode


def drives(command: list[str]) -> int:
    """Somebody at a terminal, who goes forward when the first frame is there, and leaves a little later."""
    keys, help_line = [b"\x1b[A", b"\x1b[D", b"q"], b"q: leave"
    end = b""  # of what was shown before: a terminal is read in pieces, and one may end within the line with the keys

    def screen(terminal: int) -> bytes:
        nonlocal end
        shown = os.read(terminal, 1 << 16)
        if help_line in end + shown and keys:
            os.write(terminal, keys.pop(0))
            end = b""
        else:
            end = (end + shown)[-len(help_line) + 1 :]
        return shown

    # Of the usual size, whatever the test's own terminal is said to have.
    sized = ["sh", "-c", 'unset COLUMNS LINES; stty cols 80 rows 24; exec "$@"', "sh", *command]
    return os.waitstatus_to_exitcode(pty.spawn(sized, screen))


def main() -> int:
    """Run one command."""
    name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
    if name == "cosmorama":
        words = adapted(words)
        command = [sys.executable, "-c", "from cosmorama.cli import main; main()", *words]
        if words[0] == "serve" and "--role" not in words:
            return serves(command)
    else:
        command = [sys.executable, *words]
        if "microcosm.play" in words:
            command += ["--model", os.environ["DESK_DRIVES"]]
    if ("play" in words or "microcosm.play" in words) and "--actions" not in words:
        return drives(command)
    return os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
