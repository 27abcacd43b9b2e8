"""A robot's actions, and a driver's, through every door: the command line, Python, and jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from cosmorama import Client, load
from cosmorama.cli import app
from cosmorama.cli.play import STANDING, by_hand, keys_in, steered, text_of
from cosmorama.errors import JobConflictError
from cosmorama.request import Action
from cosmorama.world.microcosm.driving import DRIVE
from tests.api.dialects.conftest import running
from tests.tiny import save_tiny
from tests.world.cosmos3_checkpoints import KARRAS, save_cosmos3

UMI, WIDTH = 6, 10


def cosmorama(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cosmos3(tmp_path_factory.mktemp("robots"), actions=True, scheduler=KARRAS)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (256, 256), "orange").save(tmp_path / "start.png")
    return tmp_path / "start.png"


def test_a_policy_answers_with_actions_that_the_model_can_be_driven_by(
    robots: Path, picture: Path, tmp_path: Path
) -> None:
    asked, clip = tmp_path / "asked.json", tmp_path / "clip.mp4"
    asked.write_text(json.dumps({"domain": UMI, "steps": 4}))
    shared = ["--image", picture, "--model", robots, "--steps", "1", "--size", "256x256", "--fps", "10", "--seed", "3"]
    made = cosmorama("generate", "The arm lifts", "--task", "policy", "--actions", asked, "-o", clip, *shared)
    assert made.exit_code == 0, made.output
    predicted = tmp_path / "clip.actions.json"
    assert f"actions: {predicted}" in made.output
    told = json.loads(predicted.read_text())
    assert told["domain"] == UMI
    assert [len(row) for row in told["values"]] == [WIDTH] * 4
    sizes = {"steps": 1, "width": 256, "height": 256, "fps": 10, "seed": 3, "image": picture}
    model = load(str(robots))
    generation = model.generate("The arm lifts", task="policy", action=Action(UMI, steps=4), **sizes)
    assert generation.actions is not None
    assert [list(row) for row in generation.actions] == told["values"]
    assert model.generate("The arm lifts", **sizes, frames=5).actions is None
    onward = ["--task", "forward_dynamics", "--actions", predicted, "-o", tmp_path / "on.mp4"]
    driven = cosmorama("generate", "The arm lifts", *onward, *shared)
    assert driven.exit_code == 0, driven.output
    assert not (tmp_path / "on.actions.json").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "a JSON file"),
        ("[[1, 2]]", "--actions"),
        ('{"steps": 4}', "domain"),
        ('{"domain": 6, "speed": 1}', "speed"),
        ('{"domain": 6, "values": [["fast"]]}', "values"),
    ],
)
def test_a_file_of_no_actions_is_refused_before_a_model_is_loaded(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "actions.json").write_text(text)
    refused = cosmorama("generate", "a", "--actions", tmp_path / "actions.json", "-o", tmp_path / "clip.mp4")
    assert refused.exit_code == 2
    assert "--actions" in refused.output
    assert said in refused.output


def test_options_that_say_nothing_alone_are_refused(tmp_path: Path) -> None:
    refused = cosmorama("generate", "a", "--preset", "low", "-o", tmp_path / "clip.mp4")
    assert "--preset" in refused.output
    assert "--control" in refused.output
    assert refused.exit_code == 2
    assert "text2world" in cosmorama("generate", "a", "--task", "dance", "-o", tmp_path / "clip.mp4").output


def test_a_job_tells_where_its_actions_are(tmp_path: Path, picture: Path) -> None:
    with running(tmp_path) as server, Client(str(server.base_url)) as client:
        from cosmorama import GenerationRequest

        request = GenerationRequest(
            prompt="a", image=picture, task="policy", action=Action(1, steps=4), width=64, height=64
        )
        job = client.submit(request)
        job.wait()
        assert job.status.result is not None
        assert job.status.result.actions_url == f"/v1/jobs/{job.id}/actions"
        assert job.actions() == ((0.5,) * 9,) * 4
        answer = server.get(job.status.result.actions_url).json()
        assert (answer["shape"], answer["domain_id"]) == ([4, 9], 1)
        plain = client.submit(GenerationRequest(prompt="a", width=64, height=64))
        plain.wait()
        assert plain.status.result is not None
        assert plain.status.result.actions_url is None
        with pytest.raises(JobConflictError, match="text2world predicts none"):
            plain.actions()


@pytest.fixture(scope="module")
def corridor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("corridor"), drives=True)


def test_a_drive_is_the_same_through_every_door_on_this_machine(corridor: Path, picture: Path, tmp_path: Path) -> None:
    values = ((1.0, 0.5, 0.0), (0.5, -0.5, 0.1))
    asked = tmp_path / "drive.json"
    asked.write_text(json.dumps({"domain": DRIVE.id, "values": values}))
    shared = ["--image", picture, "--model", corridor, "--seed", "3", "--actions", asked]
    for name in ("one", "other"):
        played = cosmorama("play", "a red ball", "-o", tmp_path / f"{name}.mp4", *shared)
        assert played.exit_code == 0, played.output
        left = json.loads((tmp_path / f"{name}.actions.json").read_text())
        assert left == {"domain": DRIVE.id, "values": [list(row) for row in values]}
    made = cosmorama("generate", "a red ball", "-o", tmp_path / "made.mp4", "--size", "640x352", *shared)
    assert made.exit_code == 0, made.output
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "other.mp4").read_bytes()
    size = {"width": 640, "height": 352, "seed": 3, "image": picture}
    generation = load(str(corridor)).generate("a red ball", action=Action(DRIVE.id, values, steps=2), **size)
    assert generation.save(tmp_path / "python.mp4").read_bytes() == (tmp_path / "made.mp4").read_bytes()


def test_who_drives_needs_a_terminal_or_a_file(corridor: Path, tmp_path: Path) -> None:
    alone = cosmorama("play", "a red ball", "--model", corridor, "-o", tmp_path / "clip.mp4")
    assert alone.exit_code == 2
    assert "--actions" in alone.output
    (tmp_path / "fast.json").write_text(json.dumps({"domain": DRIVE.id, "values": [[9, 0, 0]]}))
    fast = cosmorama(
        "play", "a ball", "--model", corridor, "--actions", tmp_path / "fast.json", "-o", tmp_path / "a.mp4"
    )
    assert fast.exit_code == 2
    assert "forward, m/s: a number from -0.5 to 1.5" in fast.output


def test_keys_are_pushes_that_stay_within_what_is_accepted() -> None:
    assert keys_in("\x1b[A\x1b[Daq") == ["up", "left", "a", "q"]
    move = steered(STANDING, ["up", "left", "d"], DRIVE)
    assert move == (0.25, 0.3, -0.2)
    assert steered(move, [], DRIVE) == (0.25, 0.24, -0.14)
    assert steered(move, [" "], DRIVE) == STANDING
    assert steered(move, ["up"] * 20 + ["right"] * 20, DRIVE)[:2] == (1.5, -1.0)
    pressed = iter([["up"], [], ["q"]])
    shown: list[object] = []
    done = by_hand(
        lambda move: Image.new("RGB", (4, 4)), DRIVE, lambda: next(pressed), lambda *what: shown.append(what), 1e6
    )
    assert list(done) == [(0.25, 0, 0), (0.25, 0, 0)]
    assert len(shown) == 2


def test_a_picture_is_drawn_in_half_blocks() -> None:
    text = text_of(Image.new("RGB", (160, 88), (1, 2, 3)), 40, 30)
    lines = text.split("\r\n")
    assert len(lines) == 11
    assert lines[0].count("\u2580") == 40
    assert "38;2;1;2;3;48;2;1;2;3m" in lines[0]
