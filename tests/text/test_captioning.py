import base64
import io
import json
import logging
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from cosmorama.text.captioning import ChatCaptioner, PixelCaptioner
from cosmorama.text.colors import NEUTRAL, color_name, oklab
from cosmorama.text.endpoint import ChatEndpoint

caption = PixelCaptioner()
GREY, RED, BLUE, YELLOW = (128, 128, 128), (217, 20, 20), (20, 60, 220), (245, 215, 20)


def plain(color, width=160, height=88):
    return np.full((height, width, 3), color, np.uint8)


def landscape(width=320, height=176):
    picture = plain((60, 140, 50), width, height)
    picture[: height // 3] = (180, 215, 250)
    return picture


def disc(picture, color, x, y, radius):
    ys, xs = np.mgrid[: picture.shape[0], : picture.shape[1]]
    picture = picture.copy()
    picture[np.hypot(xs - x, ys - y) < radius] = color
    return picture


def box(picture, color, x, y, radius):
    picture = picture.copy()
    picture[max(0, y - radius) : y + radius, max(0, x - radius) : x + radius] = color
    return picture


def texture(width, height, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def still(picture):
    return caption(picture[None], 24)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"), ((255, 255, 255), "white"), ((128, 128, 128), "grey"), ((220, 20, 60), "red"),
        ((255, 140, 0), "orange"), ((255, 235, 59), "yellow"), ((34, 139, 34), "green"), ((0, 128, 128), "teal"),
        ((0, 240, 255), "cyan"), ((65, 105, 225), "blue"), ((135, 206, 235), "blue"), ((128, 0, 160), "purple"),
        ((255, 105, 180), "pink"), ((139, 69, 19), "brown"), ((160, 82, 45), "brown"), ((85, 107, 47), "green"),
    ],
)  # fmt: skip
def test_colors_have_the_names_people_give_them(rgb, name):
    assert color_name(oklab(np.uint8(rgb))) == name
    assert name in still(plain(rgb))


def test_every_grey_is_black_grey_or_white():
    assert {color_name(oklab(np.uint8([level] * 3))) for level in range(256)} == NEUTRAL


def test_a_gradient_is_described_by_its_ends():
    ramp = np.linspace(0, 255, 320).astype(np.uint8)
    picture = plain((0, 0, 0), 320, 180)
    picture[..., 0], picture[..., 2] = ramp, 255 - ramp
    assert "from blue on the left to red on the right" in still(picture)
    assert "from red on the left to blue on the right" in still(picture[:, ::-1])
    assert "from red at the top to blue at the bottom" in still(np.rot90(picture))


def test_parts_of_different_color_are_named_in_place():
    text = still(landscape())
    assert "upper part is pale blue" in text
    assert "lower part is green" in text
    assert "left part is" in still(np.rot90(landscape()))


def test_noise_is_called_what_it_is():
    text = still(np.random.default_rng(0).integers(0, 256, (120, 200, 3), np.uint8))
    assert "specks" in text
    assert "13 colors" in text
    assert "specks" not in still(plain(GREY))


@pytest.mark.parametrize(("x", "y", "words"), [(70, 40, "upper left"), (160, 88, "middle"), (260, 140, "lower right")])
def test_what_stands_out_is_named_with_its_color_and_place(x, y, words):
    text = still(disc(plain((245, 245, 245), 320, 176), RED, x, y, 20))
    assert "red ball" in text
    assert words in text


def test_microcosms_world_is_described_in_its_language():
    floor = landscape()
    assert still(disc(floor, RED, 100, 110, 25)) == "A red ball on a green floor under a pale blue sky."
    text = still(disc(box(floor, BLUE, 220, 120, 22), YELLOW, 100, 110, 25))
    assert "yellow ball" in text
    assert "blue object" in text
    assert "next to" in text
    rolling = np.stack([disc(floor, RED, 60 + 15 * i, 110, 25) for i in range(9)])
    assert caption(rolling, 24) == (
        "A red ball rolls to the right on a green floor under a pale blue sky. The camera is static."
    )


@pytest.mark.parametrize("radius", [20, 35, 60])
def test_only_a_round_outline_is_a_ball(radius):
    assert "ball" in still(disc(plain(GREY, 640, 352), RED, 300, 170, radius))
    assert "ball" not in still(box(plain(GREY, 640, 352), RED, 300, 170, radius))
    oval = np.asarray(Image.fromarray(disc(plain(GREY, 640, 352), RED, 300, 170, radius)).resize((800, 352)))
    assert "ball" not in still(oval)


DIRECTIONS = {
    "to the right": (8, 0),
    "to the left": (-8, 0),
    "falls|moves down|quickly down": (0, 6),
    "up": (0, -6),
    "down and to the right": (6, 6),
    "up and to the left": (-6, -6),
}


@pytest.mark.parametrize("words", DIRECTIONS)
@pytest.mark.parametrize("background", [GREY, (250, 250, 250)])
@pytest.mark.parametrize("frames", [2, 12])
def test_a_moving_thing_is_followed(words, background, frames):
    (dx, dy), steps = DIRECTIONS[words], np.linspace(0, 8, frames)
    empty = plain(background, 320, 176)
    clip = np.stack([box(empty, BLUE, round(160 + dx * t), round(88 + dy * t), 16) for t in steps])
    text = caption(clip, 24)
    assert re.search(words, text), text
    assert "blue" in text
    assert "camera pans" not in text


@pytest.mark.parametrize(
    ("dx", "dy", "words"), [(5, 0, "pans to the right"), (-5, 0, "pans to the left"), (0, 4, "down")]
)
def test_a_pan_is_told_from_a_moving_thing(dx, dy, words):
    world = texture(640, 480)
    clip = np.stack([world[150 + dy * i : 326 + dy * i, 150 + dx * i : 470 + dx * i] for i in range(9)])
    text = caption(clip, 24)
    assert "camera pans" in text
    assert words in text


def zoom(frames, per_frame):
    """A clip into whose middle the camera moves, or out of it."""
    if per_frame < 0:
        return zoom(frames, -per_frame)[::-1]
    world = Image.fromarray(texture(640, 352))
    views = []
    for frame in range(frames):
        width, height = 400 * (1 - per_frame) ** frame, 220 * (1 - per_frame) ** frame
        view = (320 - width / 2, 176 - height / 2, 320 + width / 2, 176 + height / 2)
        views.append(np.asarray(world.resize((320, 176), Image.Resampling.BICUBIC, view)))
    return np.stack(views)


@pytest.mark.parametrize(
    ("per_frame", "words"),
    [(0.02, "moves quickly forward"), (0.006, "moves slowly forward"), (-0.02, "moves quickly backward")],
)
@pytest.mark.parametrize("frames", [9, 33])
def test_a_drive_is_told_from_a_pan(per_frame, words, frames):
    text = caption(zoom(frames, per_frame), 24)
    assert f"The camera {words}." in text, text
    assert "static" not in text


def test_when_nothing_moves_it_says_so_even_under_coding_noise():
    clip = np.stack([texture(320, 176)] * 9).astype(int)
    clip += np.random.default_rng(1).integers(-5, 6, clip.shape)
    assert "Nothing moves." in caption(clip.clip(0, 255).astype(np.uint8), 24)
    assert "stands still" in caption(np.stack([disc(plain(GREY), RED, 60, 44, 12)] * 9), 24)
    assert "moves" not in still(texture(320, 176))


def test_a_thing_before_a_busy_background_is_followed_without_calling_that_a_plain_floor():
    busy = texture(320, 176) // 3 + 60
    text = caption(np.stack([disc(busy, YELLOW, 60 + 15 * i, 88, 20) for i in range(9)]), 24)
    assert "moves quickly to the right" in text
    assert "yellow" in text
    assert "floor" not in text
    assert "plain" not in text


def test_speed_depends_on_the_frame_rate():
    clip = np.stack([box(plain((250, 250, 250), 320, 176), BLUE, 120 + 3 * i, 88, 16) for i in range(9)])
    assert "moves quickly" in caption(clip, 120)
    assert "moves slowly" in caption(clip, 5)


def test_a_fade_is_no_motion():
    text = caption(np.stack([plain((60 + 12 * i,) * 3) for i in range(9)]), 24)
    assert "brighter" in text
    assert "Nothing moves." in text


@pytest.mark.parametrize("size", [(16, 16), (1920, 1080), (1080, 1920), (1920, 16), (1, 1), (17, 300)])
@pytest.mark.parametrize("frames", [1, 3])
def test_every_size_and_length_is_described(size, frames):
    picture = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    assert caption(np.stack([picture] * frames), 24)


@settings(deadline=None, max_examples=25)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.just(3))))
def test_no_frames_break_it(frames):
    text = caption(frames, 24)
    assert 5 < len(text.split()) <= 150
    assert text[0].isupper()
    assert text.endswith(".")
    assert "nan" not in text


def test_captions_change_with_the_pixels():
    pictures = [plain(GREY), plain(RED), landscape(), texture(320, 176), disc(landscape(), RED, 80, 120, 20)]
    pictures += [disc(landscape(), YELLOW, 80, 120, 20), box(landscape(), RED, 80, 120, 20), landscape()[::-1]]
    assert len({still(picture) for picture in pictures}) == len(pictures)


def test_frames_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        caption(np.zeros((4, 4, 3), np.uint8), 24)


def test_it_is_quick():
    clip = np.stack([np.roll(texture(1280, 704), 30 * i, 1) for i in range(9)])
    start = time.thread_time()  # the processor's time, for a busy machine must not fail this
    caption(clip, 24)
    assert time.thread_time() - start < 0.6


def test_a_vision_endpoint_sees_the_last_frame(chat_server):
    chat_server.says("A long room. " * 80)
    clip = np.stack([plain(BLUE, 1280, 704), plain(RED, 1280, 704)])
    text = ChatCaptioner(ChatEndpoint(chat_server.url, "vision"))(clip, 24)
    assert text.startswith("A long room.")
    assert len(text.split()) == 150
    parts = json.loads(chat_server.bodies[0])["messages"][1]["content"]
    url = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))
    assert max(image.size) == 768
    assert color_name(oklab(np.asarray(image)[100, 100])) == "red"


def test_a_failing_vision_endpoint_leaves_the_pixels_description(chat_server, caplog):
    chat_server.fails("status")
    frames = landscape()[None]
    with caplog.at_level(logging.WARNING):
        assert ChatCaptioner(ChatEndpoint(chat_server.url, "vision", "sk-secret"))(frames, 24) == caption(frames, 24)
    assert "HTTP 500" in caplog.text
    assert "sk-secret" not in caplog.text
