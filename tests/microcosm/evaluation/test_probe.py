"""The probe: pixel colors, labels, and a few steps of training on drawn squares."""

import colorsys

import numpy as np
import torch

from cosmorama.text.language import COLORS, Scene, SceneObject
from cosmorama.world.microcosm.autoencoder import VideoAutoencoder
from microcosm.evaluation.probe import (
    HUES,
    VIVID,
    Labelled,
    Probe,
    accuracy,
    as_decoded,
    color_classes,
    color_shares,
    load_probe,
    to_input,
    train,
)
from microcosm.scenes.simulate import FLOOR_RGB, OBJECT_RGB, Frames

SCENES = [
    Scene((SceneObject("red", "ball"),), "still", None, "grey", "day"),
    Scene((SceneObject("blue", "cube"),), "still", None, "wooden", "day"),
]


def _pictures() -> Frames:
    frames = np.full((2, 88, 160, 3), 200, np.uint8)
    rows, columns = np.mgrid[:88, :160]
    disc = (rows - 50) ** 2 + (columns - 60) ** 2 < 14**2
    square = (abs(rows - 50) < 14) & (abs(columns - 90) < 14)
    for frame, mask, scene in zip(frames, (disc, square), SCENES, strict=True):
        frame[40:] = [255 * part for part in FLOOR_RGB[scene.floor]]
        frame[mask] = [255 * part for part in OBJECT_RGB[scene.objects[0].color]]
    return frames


def _autoencoder() -> VideoAutoencoder:
    torch.manual_seed(0)
    model: VideoAutoencoder = VideoAutoencoder(64)
    with torch.no_grad():
        model.basis.copy_(torch.linalg.qr(torch.randn(1536, 64))[0].T)
        model.mean.copy_(0.1 * torch.randn(1536))
        model.scaling_factor.fill_(0.5)
    return model


def test_pixel_colors_are_those_of_colorsys() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 300, 3), dtype=np.uint8)
    for pixel, found in zip(pixels[0] / 255, color_classes(pixels)[0], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        distance = np.abs(hue - HUES)
        nearest = int(np.minimum(distance, 1 - distance).argmin())
        assert found == (nearest if value > 0.2 and saturation > VIVID else -1)


def test_shares_of_colors() -> None:
    shares = color_shares(_pictures())
    assert shares.shape == (2, len(COLORS))
    assert shares[1, COLORS.index("blue")] == 27**2 / (88 * 160)
    assert shares[0].argmax() == COLORS.index("red")


def test_objects_out_of_sight_are_not_labelled() -> None:
    frames = _pictures()
    frames[1] = 200
    labels = Labelled.label(frames, SCENES)
    assert labels.objects[0].tolist() == [1, 0, 0, 0, 0, 0]
    assert labels.objects[1].tolist() == [0] * 6


def test_stills_decode_as_the_autoencoder_decodes_them() -> None:
    vae, frames = _autoencoder(), to_input(_pictures())
    whole = vae.decode_linear(vae.encode_small(frames[:, :, None]), 88, 160)[:, :, -1].clamp(-1, 1)
    torch.testing.assert_close(as_decoded(vae, frames), whole, rtol=1e-4, atol=1e-4)


def test_a_few_steps_teach_it_two_pictures() -> None:
    torch.manual_seed(0)
    pictures, probe = Labelled.label(_pictures(), SCENES), Probe()
    train(probe, pictures, _autoencoder(), 40, batch=4)
    found = accuracy(probe, to_input(pictures.frames), pictures)
    assert (found["color"], found["shape"], found["floor"]) == (1, 1, 1)
    first, second = probe.look(pictures.frames)
    assert (first.main, second.main) == (("red", "ball"), ("blue", "cube"))
    assert (first.floor, second.floor) == ("grey", "wooden")


def test_a_saved_probe_is_the_same(tmp_path: object) -> None:
    path, probe = f"{tmp_path}/probe.pt", Probe().eval()
    torch.save({"probe": probe.state_dict(), "accuracy": {"rendered": {"color": 0.5}}}, path)
    loaded, figures = load_probe(Probe(), path)  # type: ignore[arg-type]
    assert loaded.look(_pictures()) == probe.look(_pictures())
    assert figures["rendered"]["color"] == 0.5
