"""Driving: the same drive twice, one after another, from a picture or a prompt; what a driver may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import InvalidRequestError
from cosmorama.request import Action, GenerationRequest
from cosmorama.resolve import resolve
from cosmorama.text.language import SceneObject
from cosmorama.world.microcosm.corridor_map import KINDS, CorridorMap, kind_of
from cosmorama.world.microcosm.driving import DRIVE, CorridorSampling, along, imagined, scaled, seen
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.microcosm.odometry import MOUNTED, step_on
from cosmorama.world.microcosm.sampling import CosmosFlowWorld
from cosmorama.world.ranks.guidance import GuidanceParallel
from tests.tiny import save_tiny, tiny_driver

Rows = tuple[tuple[float, ...], ...]
WINDING: Rows = tuple((1.0, 0.5 if step % 2 else -0.5, 0.1) for step in range(26))
SLOWLY = "a robot drives slowly down a corridor of red shelves towards a blue ball"
STANDING: Rows = ((0.0, 0.0, 0.0),) * 2
EMPTY = CorridorMap(
    torch.zeros(2, 1, 2, 2, 2, 5), torch.zeros(2, dtype=torch.long), torch.zeros(2, 3), torch.zeros(2, KINDS)
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> CosmosFlowWorld:
    loaded = load_microcosm(save_tiny(tmp_path_factory.mktemp("driver"), drives=True))
    assert isinstance(loaded, CosmosFlowWorld)
    return loaded


def wanted(values: Rows | None, **changes: Any) -> GenerationRequest:
    action = None if values is None else Action(DRIVE.id, values, steps=len(values))
    given = {"prompt": "a red ball", "seed": 3, "steps": 2, "width": 640, "height": 352, "action": action}
    return GenerationRequest(**given | changes)


def driven(world: CosmosFlowWorld, values: Rows, picture: np.ndarray | None = None, **changes: Any) -> np.ndarray:
    image = None if picture is None else "picture"
    request = resolve(wanted(values, image=image, **changes), world.capabilities)
    rollout = Rollout(world, PreparedRequest(request, request.prompt or "", picture))
    while not rollout.done:
        rollout.advance()
    return np.concatenate(list(rollout.decode()))


def picture(seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (1, 11, 20, 3), np.uint8)
    return coarse.repeat(32, 1).repeat(32, 2)


class Quiet:
    """A second process that has nothing to do: a drive is asked for no estimates."""

    def send(self, command: object) -> None: ...
    def receive(self) -> None: ...
    def forget(self, number: int) -> None: ...


def test_a_drive_is_the_same_with_a_second_process_for_guidance(world: CosmosFlowWorld) -> None:
    shared: Any = GuidanceParallel(world, Quiet())  # type: ignore[arg-type]
    assert np.array_equal(driven(shared, WINDING), driven(world, WINDING))


def test_a_drive_is_the_same_again_and_its_beginning_that_of_a_shorter_one(world: CosmosFlowWorld) -> None:
    whole = driven(world, WINDING)
    assert whole.shape == (27, 352, 640, 3)
    assert np.array_equal(whole[-3:], driven(world, WINDING)[-3:])
    assert np.array_equal(whole[:3], driven(world, WINDING[:2]))
    assert not np.array_equal(whole[:1], driven(world, WINDING[:1], seed=4)[:1])


def test_what_a_prompt_says_is_ahead_is_on_the_map(world: CosmosFlowWorld) -> None:
    view, corridor = imagined("a robot drives down a corridor of red shelves towards a blue ball", 3)
    there, x, y = corridor.ahead[0].tolist()
    assert there == 1
    assert abs(x) < 0.5
    assert 3 < y - view[1].item() < 8
    assert not imagined("a corridor of red shelves", 3)[1].ahead.any()
    assert torch.equal(corridor.boxes, imagined("a corridor", 3)[1].boxes)
    assert not torch.equal(corridor.boxes, imagined("a corridor", 4)[1].boxes)


@pytest.mark.parametrize("steps", [1, 2, 40])
def test_how_many_frames_a_step_makes_does_not_matter(world: CosmosFlowWorld, steps: int) -> None:
    assert np.array_equal(driven(world, WINDING[:3], picture(), steps=steps), driven(world, WINDING[:3], picture()))


def test_a_drive_begins_with_the_given_picture(world: CosmosFlowWorld) -> None:
    one, other = (driven(world, WINDING[:1], picture(seed)) for seed in (0, 1))
    assert np.abs(one[0].astype(int) - picture()[0]).mean() < np.abs(one[0].astype(int) - other[0]).mean() / 3


def test_what_is_done_is_what_moves_the_picture(world: CosmosFlowWorld) -> None:
    net, _ = tiny_driver()
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(2, 1, 3, 88, 160, generator=generator).expand(-1, 2, -1, -1, -1)
    actions = torch.tensor([[[0.0, 0, 0], [0, 0, 0]], [[0, 0, 0], [1, 0.5, 0]]])
    plans = seen(torch.tensor([[0.0, 0, 0, *MOUNTED]] * 2), EMPTY)
    moved, inside = net.move(frames, actions, plans, net.context(actions, torch.zeros(2, 16)))
    assert torch.allclose(moved[0], frames[0, 1], atol=1e-5)
    assert not torch.allclose(moved[1], frames[1, 1], atol=1e-2)
    assert inside[0].all()


def test_what_stands_ahead_is_drawn_where_it_stands_and_as_what_it_is(world: CosmosFlowWorld) -> None:
    net, _ = tiny_driver()
    view = torch.tensor([[0.0, 0, 0, *MOUNTED]])
    kinds = [kind_of(thing)[None] for thing in (None, SceneObject("ball", "red"), SceneObject("ball", "blue"))]
    maps = [replace(imagined(SLOWLY, 3)[1], kind=kind) for kind in kinds]
    assert maps[0].ahead[0, 0] == 1
    plans = [seen(view, corridor) for corridor in maps]
    unknown, red, blue = (net.draw(plan, torch.zeros(1, 16)) for plan in plans)
    elsewhere = (plans[1][:, 18] == 0).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None].expand_as(red)
    assert torch.equal(unknown[elsewhere], red[elsewhere])
    assert not torch.equal(unknown, red)
    assert not torch.equal(red, blue)
    assert (~elsewhere).float().mean() > 0.01


def test_an_action_takes_the_camera_half_as_far_at_twice_the_rate() -> None:
    action = torch.tensor([[1.5, -1, 0.25]])
    assert scaled(action, 12).tolist() == [[1, -1, 0.5]]
    assert scaled(action, 24).tolist() == [[0.5, -0.5, 0.25]]


@pytest.fixture
def still_first(world: CosmosFlowWorld) -> Iterator[CosmosFlowWorld]:
    before, world.config = world.config, replace(world.config, still_first=True)
    yield world
    world.config = before


def from_text(world: CosmosFlowWorld, prompt: str = SLOWLY, **changes: Any) -> tuple[Rollout, np.ndarray]:
    given = {"prompt": prompt, "seed": 3, "steps": 2, "frames": 33, "fps": 24, "width": 1280, "height": 704}
    request = resolve(GenerationRequest(**given | changes), world.capabilities)
    rollout = Rollout(world, PreparedRequest(request, prompt, None))
    while not rollout.done:
        rollout.advance()
    return rollout, np.concatenate(list(rollout.decode()))


def test_a_clip_of_the_corridor_is_driven_from_where_a_sampled_still_was_taken(still_first: CosmosFlowWorld) -> None:
    rollout, clip = from_text(still_first)
    assert isinstance(rollout.sampling, CorridorSampling)
    assert clip.shape == (33, 704, 1280, 3)
    assert sum(rollout.sampling.shares) == pytest.approx(1)
    assert rollout.evaluations == 4  # of the still: two steps with guidance
    assert np.array_equal(clip, from_text(still_first)[1])
    still, (frame,) = from_text(still_first, frames=1)
    assert still.evaluations == 4
    assert np.array_equal(clip[0], frame)
    assert not np.array_equal(clip[:1], from_text(still_first, seed=4, frames=9)[1][:1])
    assert not np.array_equal(clip[:1], from_text(still_first, guidance_scale=1, frames=9)[1][:1])


def test_the_newest_frame_of_a_drive_is_shown_on_the_way(world: CosmosFlowWorld) -> None:
    request = resolve(wanted(WINDING, steps=4), world.capabilities)
    rollout = Rollout(world, PreparedRequest(request, request.prompt or "", None))
    seen_so_far = []
    while not rollout.done:
        rollout.advance()
        seen_so_far.append(rollout.preview())
    clip = np.concatenate(list(rollout.decode()))
    assert seen_so_far[0] is None
    for shown, frame in zip(seen_so_far[1:], (6, 12, 18, 24, 24, 25, 25, 26), strict=True):  # 24 in four steps, and 2
        assert shown is not None
        assert np.array_equal(shown, clip[frame])


def test_what_is_of_another_form_or_of_objects_is_sampled(still_first: CosmosFlowWorld) -> None:
    for rollout, _ in (
        from_text(still_first, "a red ball falls", frames=9),
        from_text(still_first, frames=9, width=960),
        from_text(still_first, frames=1, width=960),
    ):
        assert not isinstance(rollout.sampling, CorridorSampling)


@pytest.mark.parametrize(("fps", "speed"), [(12, 0.4), (24, 0.8), (40, 0.35)])
def test_straight_on_at_a_speed_until_there_is_no_room(fps: int, speed: float) -> None:
    ways = along(121, fps, speed, 2.0) * torch.tensor([1.5, 1, 0.5]) / 12  # m, rad, m of a frame
    assert ways[0, 0].item() == pytest.approx(speed / fps)
    assert ways[:, 0].sum().item() == pytest.approx(min(2.0, 120 * speed / fps), abs=1e-4)
    assert not ways[:, 1:].any()
    assert not along(9, fps, speed, -1.0).any()


def test_poses_follow_from_what_was_done_and_the_shelves_stop_the_camera() -> None:
    pose = (0.0, 0.0, 0.0)
    for _ in range(12):
        pose = step_on(pose, (0.1, 0, 0))
    assert pose == pytest.approx((0, 1.2, 0))
    turned = step_on(pose, (0, np.pi / 2, 0))
    for _ in range(40):
        turned = step_on(turned, (0.1, 0, 0))
    assert turned == pytest.approx((-1.15, 1.2, np.pi / 2), abs=1e-6)


def test_what_drives_is_said_by_the_model(world: CosmosFlowWorld, tiny_world: CosmosFlowWorld) -> None:
    resolved = resolve(wanted(STANDING), world.capabilities)
    assert (resolved.mode, resolved.frames, resolved.fps) == ("forward_dynamics", 3, 12)
    assert resolved.prompt_upsampling
    assert resolve(resolved, world.capabilities) == resolved
    assert resolve(wanted(STANDING * 600, width=None, height=None), world.capabilities).frames == 1201
    short = resolve(wanted(None, action=Action(DRIVE.id, STANDING, steps=5)), world.capabilities)
    assert short.frames == 6
    assert short.warnings[0] == "2 actions were given for 5 steps: the last one was repeated"
    pictured = resolve(wanted(STANDING, image="picture", steps=5), world.capabilities)
    assert "steps was not used: a drive is drawn frame by frame, from no noise" in pictured.warnings
    assert not pictured.prompt_upsampling
    with pytest.raises(InvalidRequestError, match="no actions") as refused:
        resolve(wanted(STANDING), tiny_world.capabilities)
    assert {problem.field for problem in refused.value.problems} >= {"action.domain", "mode"}


@pytest.mark.parametrize(
    ("values", "changes", "field", "said"),
    [
        (((2.0, 0, 0),), {}, "action.values", "forward, m/s: a number from -0.5 to 1.5"),
        (((1.0, 0, 0), (0, 3, 0)), {}, "action.values", "turn to the left, rad/s: a number from -1 to 1"),
        (((float("nan"), 0, 0),), {}, "action.values", "-0.5 to 1.5"),
        (((1.0, 0),), {}, "action.values", "rows of 3 numbers for drive"),
        (STANDING, {"frames": 9}, "frames", "action.steps + 1 = 3"),
        (STANDING, {"fps": 10, "fit": True}, "fps", "a rate that drive is made at"),
        (STANDING, {"fps": 60}, "fps", "12 to 40"),
        (STANDING, {"width": 960, "height": 704}, "size", "1280x704, 640x352"),
        (STANDING, {"prompt": None}, "image", "given for forward_dynamics"),
        (STANDING, {"task": "policy"}, "mode", "forward_dynamics"),
        (STANDING, {"task": "text2world"}, "action", "does not look at it"),
        (STANDING * 2000, {}, "frames", "1 to 2881"),
        (None, {"action": Action(DRIVE.id), "task": "forward_dynamics"}, "action.values", "rows of 3 numbers"),
        (None, {"action": Action(DRIVE.id, STANDING, steps=0)}, "action.steps", "a multiple of 1"),
    ],
)
def test_a_wrong_drive_is_refused_by_field_and_range(
    world: CosmosFlowWorld, values: Rows | None, changes: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        resolve(wanted(values, **changes), world.capabilities)
    assert said in {problem.field: str(problem.accepted) for problem in refused.value.problems}[field]


def test_without_the_network_nobody_drives(tmp_path: Path, world: CosmosFlowWorld) -> None:
    assert load_microcosm(save_tiny(tmp_path)).driver is None
    assert "forward_dynamics" in world.capabilities.modes
