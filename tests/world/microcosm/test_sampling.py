"""The flow family: conditioning, prediction types, guidance map, and the checkpoint folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cosmorama.diffusion.schedule import flow_schedule
from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import ModelNotFoundError
from cosmorama.local import Model
from cosmorama.progress import Progress
from cosmorama.request import Knobs, ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.base import Inputs, Sampling
from cosmorama.world.microcosm.layout import Layout
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.microcosm.sampling import CosmosFlowSampling, CosmosFlowWorld, SmallAutoencoder
from cosmorama.world.registry import load_world
from tests.tiny import CHANNELS, save_transformer, tiny_mover, tiny_still_refiner

PLAIN = ResolvedRequest(
    prompt="a red ball", seed=1, solver="euler", width=960, height=704, frames=17, steps=4, negative_prompt=""
)


def begin(world: CosmosFlowWorld, given: torch.Tensor | None = None, **changes: object) -> CosmosFlowSampling:
    request = replace(PLAIN, **changes)  # type: ignore[arg-type]
    return world.begin(Inputs(request=request, prompt="a red ball", frames=given), world.encode_text)


def picture(seed: int = 0, frames: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 704, 960, 3), dtype=torch.uint8, generator=generator)


def test_conditioning_latents_come_back_exactly_and_steer_the_rest(tiny_world: CosmosFlowWorld) -> None:
    free, given = begin(tiny_world), begin(tiny_world, picture())
    latents = free.initial()
    assert torch.equal(latents, given.initial())
    conditioned = given.denoise(latents, 1)
    assert conditioned.shape == latents.shape
    assert torch.equal(conditioned[:, :, :1], tiny_world.encode_frames(picture()))
    assert not torch.allclose(conditioned[:, :, 1:], free.denoise(latents, 1)[:, :, 1:])


def test_noise_in_conditioning_frames_has_no_effect(tiny_world: CosmosFlowWorld) -> None:
    sampling = begin(tiny_world, picture())
    latents = sampling.initial()
    other = torch.cat([latents[:, :, :1] + 3, latents[:, :, 1:]], dim=2)
    assert torch.equal(sampling.denoise(latents, 1), sampling.denoise(other, 1))


def test_the_negative_prompt_is_read_when_asked_for(tiny_world: CosmosFlowWorld) -> None:
    sampling = begin(tiny_world, negative_prompt="blue cube")
    latents = sampling.initial()
    assert not torch.equal(sampling.denoise(latents, 1), sampling.denoise(latents, 1, negative=True))


def changed(checkpoint: Path, folder: Path, **values: object) -> CosmosFlowWorld:
    """The tiny model with other entries in `world.json`."""
    shutil.copytree(checkpoint, folder)
    known = json.loads((folder / "world.json").read_text())
    (folder / "world.json").write_text(json.dumps(known | values))
    return load_microcosm(folder)


def blending(checkpoint: Path, folder: Path, **values: object) -> CosmosFlowWorld:
    """The tiny model with a network that blends."""
    changed(checkpoint, folder)
    save_transformer(folder, blends=True)
    shutil.move(folder, folder.with_suffix(".wide"))
    return changed(folder.with_suffix(".wide"), folder, prediction="blend", **values)


def test_a_sample_and_a_velocity_network_mean_different_clean_latents(tiny_checkpoint: Path, tmp_path: Path) -> None:
    sample = begin(changed(tiny_checkpoint, tmp_path / "sample", prediction="sample"))
    velocity = begin(load_microcosm(tiny_checkpoint))
    latents, sigma = sample.initial(), sample.schedule.sigmas[2]
    x0 = sample.denoise(latents, 2)
    torch.testing.assert_close(velocity.denoise(latents, 2), latents - sigma * x0)


def test_a_blend_keeps_as_much_of_the_last_conditioning_frame_as_its_last_channel_says(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    world = blending(tiny_checkpoint, tmp_path / "blend")
    last = world.transformer.proj_out.weight.view(4, CHANNELS + 1, -1)
    for given in (None, picture(), picture(frames=9)):
        known = 0 if given is None else 1 + len(given) // 8
        latents = begin(world, given).initial()
        with torch.no_grad():
            before = last.clone()
            added = begin(world, given).denoise(latents, 1)[:, :, known:]
            last[:, -1] = 0  # all of it stays
            kept = begin(world, given).denoise(latents, 1)[:, :, known:]
            last.zero_()
            alone = begin(world, given).denoise(latents, 1)[:, :, known:]
            last.copy_(before)
        if given is None:
            assert torch.equal(added, kept)
            assert not alone.any()
            continue
        assert isinstance(world.autoencoder, SmallAutoencoder)
        held = world.autoencoder.hold(world.encode_frames(given))
        torch.testing.assert_close(alone, held.expand_as(alone))
        # What was taken away or added of the frame is the same share in all channels of a cell.
        share = ((added - kept) * held).sum(1, keepdim=True) / held.square().sum(1, keepdim=True)
        torch.testing.assert_close(added - kept, share * held, rtol=1e-3, atol=1e-3)
        assert share.abs().max() > 1e-3


@pytest.mark.parametrize("frames", [1, 9])
def test_beside_the_noise_a_blend_reads_what_is_given_and_then_its_last_frame(
    tiny_checkpoint: Path, tmp_path: Path, frames: int
) -> None:
    world = blending(tiny_checkpoint, tmp_path / "blend")
    read: list[Tensor] = []
    sampling = begin(world, picture(frames=frames))
    latents = sampling.initial()
    world.transformer.patch_embed.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    sampling.denoise(latents, 1)
    noise, given = read[0][:, :CHANNELS], read[0][:, CHANNELS:-1]
    known = world.encode_frames(picture(frames=frames))
    count = known.shape[2]
    assert torch.equal(given[:, :, :count], known)
    assert torch.equal(given[:, :, count:], known[:, :, -1:].expand_as(given[:, :, count:]))
    assert torch.equal(noise[:, :, count:], latents[:, :, count:])


def test_a_clip_from_text_may_begin_with_its_still(tiny_checkpoint: Path, tmp_path: Path) -> None:
    world = blending(tiny_checkpoint, tmp_path / "still", still_first=True)
    still, clip, from_image = begin(world, frames=1), begin(world), begin(world, picture())
    assert len(still.shares) == 1
    assert len(from_image.shares) == 1
    assert clip.shares == (1 / 4, 3 / 4)
    whole = from_image.initial()
    assert torch.equal(clip.initial(), still.initial())
    assert torch.equal(clip.denoise(clip.initial(), 1), still.denoise(still.initial(), 1))
    first = world.encode_frames(picture())
    assert torch.equal(clip.next_chunk(first), whole)
    assert torch.equal(clip.denoise(whole, 1), from_image.denoise(whole, 1))


def test_the_first_frame_of_a_clip_from_text_is_the_still_of_that_seed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = Model(blending(tiny_checkpoint, tmp_path / "still", still_first=True))
    progress: list[Progress] = []
    knobs: Knobs = {"seed": 1, "width": 960, "height": 704, "steps": 4}
    clip = list(model.generate("a red ball", frames=17, on_progress=progress.append, **knobs).frames)
    (still,) = model.generate("a red ball", frames=1, **knobs).frames
    assert len(clip) == 17
    steps = [one for one in progress if one.stage == "denoise"]
    assert [one.step for one in steps] == list(range(9))
    # Three latent frames take three times as long as the still.
    assert [one.share for one in steps] == [step / 16 for step in (0, 1, 2, 3, 4, 7, 10, 13, 16)]
    assert (clip[0] == still).all()


def test_a_still_from_text_is_drawn_again_and_the_clip_goes_on_from_that(tiny_checkpoint: Path, tmp_path: Path) -> None:
    world, refiner = blending(tiny_checkpoint, tmp_path / "still", still_first=True), tiny_still_refiner()
    sampled, latents = begin(world, frames=1), begin(world, frames=1).initial()
    plain = list(sampled.decode(latents))
    world.still_refiner = refiner
    still, clip, from_image = begin(world, frames=1), begin(world), begin(world, picture(), frames=1)
    refined = still.refined(latents)
    assert not torch.equal(refined, latents)
    assert torch.equal(refined, still.refined(latents))
    assert not torch.equal(next(still.decode(latents)), plain[0])
    assert torch.equal(next(still.preview(latents)), plain[0])  # on the way, what is sampled is shown as it is
    following = clip.next_chunk(latents)
    assert torch.equal(clip.denoise(following, 1)[:, :, :1], refined)
    assert torch.equal(from_image.refined(latents), latents)
    assert all(map(torch.equal, clip.decode(following, 1), clip.preview(following)))  # nothing moves its objects
    bias = refiner.say[-1].bias
    assert isinstance(bias, torch.Tensor)
    bias.data[-1] = -50  # a picture of something else
    assert begin(world, frames=1).refined(latents) is latents


@pytest.mark.parametrize("frames", [1, 17])
def test_a_still_that_does_not_show_what_its_prompt_names_is_sampled_again(
    tiny_checkpoint: Path, tmp_path: Path, frames: int
) -> None:
    world = blending(tiny_checkpoint, tmp_path / "still", still_first=True)
    world.still_refiner, world.mover = tiny_still_refiner(), tiny_mover()  # whatever it is, it is seen as these two
    named, other = "a red ball next to a green cube", "a red ball next to a blue cube"

    def made(prompt: str, steps: int = 12) -> Rollout:
        request = replace(PLAIN, prompt=prompt, frames=frames, steps=steps)
        rollout = Rollout(world, PreparedRequest(request, prompt, None))
        while not rollout.done:
            before = rollout.progress.share or 0.0
            rollout.advance()
            assert frames == 1 or (rollout.progress.share or 0.0) >= before
        return rollout

    after = 0 if frames == 1 else 1
    for prompt, steps, stills in ((named, 12, 1), (other, 12, 3), (other, 11, 1), ("a red dragon", 12, 1)):
        rollout = made(prompt, steps)
        assert len(rollout.chunks) == stills + after
        assert rollout.index == rollout.progress.total == steps * (stills + after)
        assert len(list(rollout.sampling.notes)) == (stills > 1)
        assert sum(map(len, rollout.decode())) == frames
    three, again = made(other), made(other)
    assert all(map(torch.equal, three.chunks, again.chunks))
    assert not torch.equal(three.chunks[0], three.chunks[1])
    assert not torch.equal(three.chunks[1], three.chunks[2])
    assert "twice" in three.sampling.notes[0]


def drawn(sampling: Sampling, latents: Tensor) -> Tensor:
    """A chunk that is drawn step by step."""
    for index in range(sampling.schedule.steps):
        after = sampling.step(latents, index)
        assert after is not None
        latents = after
    return latents


def test_a_clip_from_text_is_moved_on_from_a_still_of_which_all_is_known(tiny_checkpoint: Path, tmp_path: Path) -> None:
    world = blending(tiny_checkpoint, tmp_path / "still", still_first=True)
    world.still_refiner, world.mover = tiny_still_refiner(), tiny_mover()
    still = begin(world, frames=1)
    noise = still.initial()
    (shown,) = still.decode(noise)
    clips = []
    for seed in (1, 1, 2):
        clip = begin(world, seed=seed)
        first = clip.next_chunk(noise)
        assert clip.draws
        assert first.shape == (1, 3, 16, 88, 120)
        latents = drawn(clip, first)
        pieces = list(clip.decode(latents, 1))
        assert [len(piece) for piece in pieces] == [1, 8, 8]
        assert torch.equal(pieces[0], shown)
        assert torch.equal(next(clip.preview(latents)), pieces[-1][-1:])
        clips.append(latents)
    assert torch.equal(clips[0], clips[1])
    assert not torch.equal(clips[0], clips[2])  # how fast objects go is the seed's


@pytest.mark.parametrize("given", [1, 9])
def test_given_frames_are_shown_as_they_are_where_the_rest_is_drawn(
    tiny_checkpoint: Path, tmp_path: Path, given: int
) -> None:
    world, refiner = blending(tiny_checkpoint, tmp_path / "still"), tiny_still_refiner()
    frames = torch.randint(0, 256, (given, 704, 960, 3), dtype=torch.uint8)
    world.still_refiner, world.mover = refiner, tiny_mover()
    assert isinstance(begin(world, frames), CosmosFlowSampling)  # it would have drawn something else
    small = torch.nn.functional.avg_pool2d(frames.permute(0, 3, 1, 2).float() / 127.5 - 1, 8)

    def draw(pictures: Tensor, layout: Layout, text: Tensor) -> Tensor:
        """Every moment as the last given one, lighter the farther its objects have come."""
        gone = (layout.objects[:, :, 1] - layout.objects[:1, :, 1]).abs().sum(1).view(-1, 1, 1, 1)
        return pictures + gone + 0 * layout.view.sum()

    refiner.draw = draw  # type: ignore[method-assign]
    clip = begin(world, frames)
    latents = drawn(clip, clip.initial())
    pieces = torch.cat(list(clip.decode(latents)))
    assert len(pieces) == 17
    assert latents.shape[2] == 17 - given
    expected = world.autoencoder.enlarge(small)  # type: ignore[attr-defined]
    assert torch.equal(pieces[:given], expected)
    assert (latents[0].transpose(0, 1) >= small[-1:].clamp(-1, 1) - 1e-3).all()
    assert isinstance(begin(world, frames, frames=given), CosmosFlowSampling)  # nothing is to follow


def test_guidance_weight_follows_the_checkpoints_points(tiny_world: CosmosFlowWorld) -> None:
    weights = [tiny_world.guidance_weight(scale) for scale in (0.5, 1, 4, 7, 8.5, 10, 20)]
    assert weights == pytest.approx([1, 1, 2, 3, 4.5, 6, 6])


def test_what_goes_on_from_given_frames_is_guided_by_a_map_of_its_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    onward = [[1.0, 1.0], [7.0, 2.0], [10.0, 2.75]]
    world = blending(tiny_checkpoint, tmp_path / "onward", still_first=True, guidance_map_onward=onward)
    still, clip, from_image = (
        begin(world, given, guidance_scale=7.0, **frames)
        for given, frames in ((None, {"frames": 1}), (None, {}), (picture(), {}))
    )
    assert (still.guidance_weight, clip.guidance_weight, from_image.guidance_weight) == (3, 3, 2)
    clip.next_chunk(world.encode_frames(picture()))
    assert clip.guidance_weight == 2
    # At a weight of 1 nothing is asked of the negative prompt: the still costs two evaluations a step, the rest one.
    half = blending(tiny_checkpoint, tmp_path / "half", still_first=True, guidance_map_onward=[[1.0, 1.0]])
    request = resolve(replace(PLAIN, prompt="a red ball", frames=9, steps=4, guidance_scale=7.0), half.capabilities)
    rollout = Rollout(half, PreparedRequest(request, "a red ball", None))
    while not rollout.done:
        rollout.advance()
    assert rollout.evaluations == 3 * 4


def test_what_goes_on_from_given_frames_may_begin_with_less_noise(tiny_checkpoint: Path, tmp_path: Path) -> None:
    usual = blending(tiny_checkpoint, tmp_path / "usual", still_first=True)
    calmer = blending(tiny_checkpoint, tmp_path / "calmer", still_first=True, noise_onward=0.5)
    assert torch.equal(begin(calmer).initial(), begin(usual).initial())  # the still is left to chance as before
    for given in (1, 9):
        ours, theirs = (begin(world, picture(frames=given), frames=121).initial() for world in (calmer, usual))
        first = (given + 7) // 8
        ratios = [float((ours[:, :, i] / theirs[:, :, i]).mean()) for i in range(first, 16)]
        # The first second is determined by what is given; from there on the noise grows to its full strength.
        assert ratios == pytest.approx([0.5] * 4 + [0.625, 0.75, 0.875] + [1.0] * (9 - first))
    clip = begin(calmer, frames=121)
    known = usual.encode_frames(picture())
    assert torch.equal(clip.next_chunk(known), begin(calmer, picture(), frames=121).initial())


def test_what_goes_on_from_given_frames_may_have_levels_of_its_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    world = blending(tiny_checkpoint, tmp_path / "shifted", still_first=True, flow_shift_onward=12)
    clip, from_image = begin(world), begin(world, picture())
    usual, onward = flow_schedule(4, shift=3), flow_schedule(4, shift=12)
    assert (clip.schedule, from_image.schedule) == (usual, onward)
    clip.next_chunk(world.encode_frames(picture()))
    assert clip.schedule == onward
    assert begin(world, picture(), flow_shift=2.0).schedule == flow_schedule(4, shift=2)  # the request's wins


def test_a_conditioning_image_is_encoded_like_the_first_frame_of_a_clip(tiny_world: CosmosFlowWorld) -> None:
    clip = picture(frames=9)
    whole, first = tiny_world.encode_frames(clip), tiny_world.encode_frames(clip[:1])
    assert whole.shape == begin(tiny_world, frames=9).initial().shape
    torch.testing.assert_close(whole[:, :, :1], first)


def test_decoding_yields_every_frame_once(tiny_world: CosmosFlowWorld) -> None:
    sampling = begin(tiny_world)
    chunks = list(sampling.decode(sampling.initial()))
    assert sum(len(chunk) for chunk in chunks) == 17
    assert all(chunk.dtype == torch.uint8 and chunk.shape[1:] == (704, 960, 3) for chunk in chunks)


def test_capabilities_are_read_from_the_checkpoint(tiny_world: CosmosFlowWorld) -> None:
    capabilities = tiny_world.capabilities
    assert capabilities.model == "tiny"
    assert [str(size) for size in capabilities.sizes] == ["960x704", "704x960", "1280x704"]
    assert capabilities.conditioning_frames == (9, 1)
    assert replace(capabilities.frames, maximum=121) == capabilities.frames


def test_a_folder_that_is_no_checkpoint_is_refused_by_what_is_missing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="microcosm"):
        load_world("no-such-model")
    with pytest.raises(ModelNotFoundError, match=r"missing world\.json"):
        load_world(str(tmp_path))
    incomplete = tmp_path / "incomplete"
    shutil.copytree(tiny_checkpoint, incomplete)
    shutil.rmtree(incomplete / "vae")
    with pytest.raises(ModelNotFoundError, match=r"missing vae/config\.json"):
        load_world(str(incomplete))
    assert load_world(str(tiny_checkpoint)).capabilities.model == "tiny"


@pytest.mark.parametrize("size", [(320, 192), (192, 128), (64, 64), (100, 60), (16, 16)], ids=str)
@pytest.mark.parametrize("given", [0, 1, 9])
def test_sizes_smaller_than_a_cell_are_made_in_every_mode(
    tiny_world: CosmosFlowWorld, size: tuple[int, int], given: int
) -> None:
    """Whether frames are at the output size is what the caller says, and not guessed from how small they are."""
    width, height = size
    frames = picture(frames=given)[:, :height, :width] if given else None
    sampling = begin(tiny_world, frames, width=width, height=height)
    latents = sampling.denoise(sampling.initial(), 0)
    shown = [tuple(chunk.shape) for chunk in sampling.decode(latents)]
    assert shown == [(1, height, width, 3), (8, height, width, 3), (8, height, width, 3)]
