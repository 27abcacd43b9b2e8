"""A U-Net's clips: windows that cover a clip, given frames that come back, and the folder they are loaded from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.request import Capabilities, FrameRule, Range, ResolvedRequest, Size
from cosmorama.world.base import Inputs
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from cosmorama.world.microcosm.sampling import FlowConfig
from cosmorama.world.microcosm.text_encoder import TextEncoder
from cosmorama.world.microcosm.unet import VideoUNet
from cosmorama.world.microcosm.windowed import WINDOW, WindowedSampling, WindowedWorld, plan

CHANNELS, WIDTH, HEIGHT = 6, 320, 192
PLAIN = ResolvedRequest(
    prompt="a red ball", seed=1, solver="euler", width=WIDTH, height=HEIGHT, frames=65, steps=2, negative_prompt=""
)


def tiny_net(*, silent: bool = False) -> VideoUNet:
    net = VideoUNet(CHANNELS, widths=(8, 8, 8, 16), depths=(1, 1, 1, 1), text_width=12, heads=2)
    if not silent:  # new blocks do nothing yet
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval().requires_grad_(False)


@pytest.fixture
def world() -> WindowedWorld:
    torch.manual_seed(0)
    return build(tiny_net())


def build(net: VideoUNet) -> WindowedWorld:
    vae = VideoAutoencoder(CHANNELS, cell=2)
    torch.nn.init.orthogonal_(vae.basis.data)
    capabilities = Capabilities(
        model="tiny",
        sizes=(Size(WIDTH, HEIGHT),),
        frames=FrameRule(8, 121),
        fps=Range(12, 40),
        conditioning_frames=(9, 1),
        longest=121,
    )
    config = FlowConfig("blend", flow_shift=4.0, guidance=((1.0, 1.0), (10.0, 4.0)))
    text_encoder = TextEncoder(["a", "ball", "blue", "red"], width=12, layers=1, heads=2)
    return WindowedWorld(net, vae.eval(), text_encoder.eval(), config, capabilities)


def picture(frames: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=generator)


def begin(world: WindowedWorld, given: torch.Tensor | None = None, **changes: object) -> WindowedSampling:
    request = replace(PLAIN, **changes)  # type: ignore[arg-type]
    return world.begin(Inputs(request=request, prompt="a red ball", frames=given), world.encode_text)


def drawn(world: WindowedWorld, given: torch.Tensor | None = None, **changes: object) -> np.ndarray:
    request = replace(PLAIN, **changes)  # type: ignore[arg-type]
    frames = None if given is None else given.numpy()
    rollout = Rollout(world, PreparedRequest(request, "a red ball", frames))
    while not rollout.done:
        rollout.advance()
    return np.concatenate(list(rollout.decode()))


@pytest.mark.parametrize("given", [0, 1, 2])
def test_windows_follow_each_other_and_see_what_training_showed_them(given: int) -> None:
    for frames in range(max(given, 1), 40):
        goes, made = plan(given, frames), given
        for index, go in enumerate(goes):
            assert go.made == made
            assert go.start <= go.made < go.stop <= frames
            if given == 0 and index == 0:
                assert (go.start, go.stop) == (0, 1)
            else:
                assert 1 <= go.made - go.start < go.cost == min(WINDOW, frames)
            made = go.stop
        assert made == frames


@pytest.mark.parametrize("frames", [1, 2, 9, 17, 33, 41, 121])
def test_a_clip_from_text_has_the_frames_asked_for_and_begins_as_its_still(world: WindowedWorld, frames: int) -> None:
    clip = drawn(world, frames=frames)
    assert clip.shape == (frames, HEIGHT, WIDTH, 3)
    assert np.array_equal(clip[:1], drawn(world, frames=1))


@pytest.mark.parametrize("count", [1, 9])
def test_given_frames_come_back_as_they_are_in_every_window(world: WindowedWorld, count: int) -> None:
    sampling = begin(world, picture(count))
    known = world.encode_frames(picture(count))
    latents = sampling.initial()
    for _ in sampling.shares[1:]:
        estimate = sampling.denoise(latents, 0)
        assert estimate.shape == latents.shape
        assert torch.equal(estimate[:, :, : known.shape[2]], known)
        latents = sampling.next_chunk(estimate)


def test_a_window_goes_on_from_what_was_made_before_it(world: WindowedWorld) -> None:
    one, other = begin(world, picture(seed=1)), begin(world, picture(seed=2))
    latents = [sampling.next_chunk(sampling.denoise(sampling.initial(), 0)) for sampling in (one, other)]
    assert torch.equal(*latents)
    assert not torch.equal(one.denoise(latents[0], 0)[:, :, 6:8], other.denoise(latents[1], 0)[:, :, 6:8])


def test_a_network_that_adds_nothing_leaves_everything_where_it_is() -> None:
    torch.manual_seed(0)
    world = build(tiny_net(silent=True))
    sampling = begin(world, picture())
    standing = world.autoencoder.hold(world.encode_frames(picture()))
    for later in sampling.denoise(sampling.initial(), 0)[:, :, 1:].split(1, dim=2):
        torch.testing.assert_close(later, standing)


def test_requests_in_turns_are_what_they_are_alone(world: WindowedWorld) -> None:
    alone = [drawn(world, frames=41, seed=seed) for seed in (1, 2)]
    assert not np.array_equal(*alone)
    rollouts = [
        Rollout(world, PreparedRequest(replace(PLAIN, frames=41, seed=seed), "a red ball", None)) for seed in (1, 2)
    ]
    while not all(rollout.done for rollout in rollouts):
        for rollout in rollouts:
            rollout.advance()
    for rollout, clip in zip(rollouts, alone, strict=True):
        assert np.array_equal(np.concatenate(list(rollout.decode())), clip)


def test_progress_counts_every_window(world: WindowedWorld) -> None:
    sampling = begin(world, frames=65)
    assert sum(sampling.shares) == pytest.approx(1)
    assert len(sampling.shares) == len(plan(0, 9))


def test_the_prompt_and_the_noise_level_are_read(world: WindowedWorld) -> None:
    sampling = begin(world, picture(), negative_prompt="a blue ball")
    latents = sampling.initial()
    estimate = sampling.denoise(latents, 0)
    assert not torch.equal(estimate, sampling.denoise(latents, 0, negative=True))
    assert not torch.equal(estimate, sampling.denoise(latents, 1))


@pytest.mark.parametrize(("rows", "columns"), [(12, 20), (11, 7), (6, 10)])
def test_the_network_takes_grids_of_any_size(rows: int, columns: int) -> None:
    net, clip = tiny_net(), torch.randn(2, CHANNELS, 3, rows, columns)
    text, mask = torch.randn(2, 4, 12), torch.ones(2, 4, dtype=torch.bool)
    levels, given = torch.rand(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    output = net(clip, levels, text, mask, beside=clip, given=given, seconds=torch.rand(2, 3))
    assert output.shape == (2, CHANNELS + 1, 3, rows, columns)
    assert bool(output.isfinite().all())


def test_padding_of_prompts_changes_nothing() -> None:
    net, clip = tiny_net(), torch.randn(1, CHANNELS, 2, 12, 20)
    text, mask = torch.randn(1, 4, 12), torch.ones(1, 4, dtype=torch.bool)
    rest = {"beside": clip, "given": torch.zeros(1, 2, dtype=torch.bool), "seconds": torch.zeros(1, 2)}
    padded, wider = torch.cat([text, torch.randn(1, 3, 12)], 1), torch.cat([mask, torch.zeros(1, 3).bool()], 1)
    levels = torch.rand(1, 2)
    short, long = net(clip, levels, text, mask, **rest), net(clip, levels, padded, wider, **rest)
    torch.testing.assert_close(short, long)


def test_actions_move_the_picture_where_they_count() -> None:
    net = VideoUNet(CHANNELS, widths=(8, 8, 8, 16), depths=(1, 1, 1, 1), text_width=12, heads=2, actions=3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    clip = torch.randn(1, CHANNELS, 2, 12, 20)
    text, mask, levels = torch.randn(1, 4, 12), torch.ones(1, 4, dtype=torch.bool), torch.rand(1, 2)
    rest = {"beside": clip, "given": torch.zeros(1, 2, dtype=torch.bool), "seconds": torch.zeros(1, 2)}
    none = net(clip, levels, text, mask, **rest)
    assert not torch.equal(none, net(clip, levels, text, mask, actions=torch.ones(1, 2, 4), **rest))


def test_a_checkpoint_folder_with_a_unet_is_such_a_world(world: WindowedWorld, tmp_path: Path) -> None:
    from cosmorama.world.microcosm.loader import load_component

    world.net.save_pretrained(tmp_path / "unet")
    again = load_component(VideoUNet, tmp_path / "unet")
    for name, tensor in world.net.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("size", [(160, 88), (100, 60), (16, 16)], ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("given", [0, 1, 9])
def test_small_sizes_are_made_in_every_mode(world: WindowedWorld, size: tuple[int, int], given: int) -> None:
    width, height = size
    frames = picture(given)[:, :height, :width] if given else None
    assert drawn(world, frames, width=width, height=height, frames=17, steps=1).shape == (17, height, width, 3)
