"""docs/media.md says what the code does: its numbers are the code's, and each thing it names has a test."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from cosmorama.engine.children import ChildLimits
from cosmorama.engine.scheduler import PREPARING, PREPARING_PER_OWNER
from cosmorama.media import color, read, write
from cosmorama.media.decode import _LOST_S, _REFUSED_MATRICES, MediaLimits
from cosmorama.media.fetch import FetchPolicy

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "media.md").read_text()


def test_numbers() -> None:
    limits, media = ChildLimits(), MediaLimits()
    for said in (
        f"{limits.picture_cpu_s} s for a picture, {limits.cpu_s} s for each clip",
        f"{limits.memory_bytes >> 30} GiB beside",
        f"{PREPARING} requests, {PREPARING_PER_OWNER} of one key",
        f"{media.min_side} pixels to {media.max_pixels // 1_000_000} megapixels",
        f"clips up to {media.max_duration_s} s and {media.max_frames:,} frames",
        f"up to {FetchPolicy().max_redirects} redirects",
        f"more than {write._MAX_COMMENT:,} bytes",
        f"({color._REFERENCE_WHITE:g} cd/m2)",
    ):
        assert said in PAGE, said
    assert round(1 - color._KNEE, 3) == 0.1
    assert read._MOSTLY_KEPT == 2 / 3
    assert _LOST_S == 1
    assert {field.name for field in fields(limits)} == {"cpu_s", "picture_cpu_s", "memory_bytes", "wall_s"}


def test_what_is_refused_by_name_is_named() -> None:
    for name in _REFUSED_MATRICES.values():
        assert name.partition(" ")[0] in PAGE


def test_each_claim_is_tested() -> None:
    tests = "".join(path.read_text() for path in sorted((ROOT / "tests").glob("*/test_*.py")) if path != Path(__file__))
    for test in (
        "test_clips_of_other_spaces",
        "test_stills_that_name_their_space_by_code_points",
        "test_profiles_of_gray_and_of_palettes_count",
        "test_gamma_of_a_png_counts_where_nothing_else_is_said",
        "test_primaries_of_a_png_count_where_nothing_else_is_said",
        "test_floating_point_stills",
        "test_heic_is_read",
        "test_transparent_clips_are_shown_on_white",
        "test_interlaced_frames_become_whole_ones",
        "test_every_frame_of_a_control_is_followed_at_its_own_rate",
        "test_a_stream_spliced_from_two_clocks_is_read_over_the_splice",
        "test_what_is_shorter_than_it_says_is_cut_off",
        "test_a_clip_whose_end_cannot_be_decoded_is_refused",
        "test_a_portrait_clip_on_a_landscape_frame_is_told_of",
        "test_what_takes_too_long_is_ended_inside_the_decoder",
        "test_what_takes_too_much_memory_is_refused",
        "test_text_does_not_wait_for_the_pictures_of_others",
        "test_parameters_are_in_the_file_and_cost_no_determinism",
        "test_not_public",
    ):
        assert f"def {test}(" in tests, test
