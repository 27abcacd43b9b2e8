"""Preparing in processes: the same result as in this one, and nothing keeps one for longer than that."""

from __future__ import annotations

import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from PIL import Image

from cosmorama.engine.children import ChildLimits, Children
from cosmorama.engine.engine import Engine
from cosmorama.engine.outcome import Outcome
from cosmorama.engine.prepare import PreparedRequest, Preparer
from cosmorama.engine.preparing import Preparing
from cosmorama.errors import CancelledError, CosmoramaError, InvalidRequestError, MediaError
from cosmorama.media.fetch import FetchPolicy
from cosmorama.request import MODES, Capabilities, GenerationRequest, ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.microcosm.sampling import CosmosFlowWorld
from tests.media.make import encode_picture as png

CAPABILITIES = Capabilities(model="m", modes=(*MODES, "transfer"), controls=("edge", "vis"))
LOCAL = Preparer(fetch=FetchPolicy(allow_private=True, timeout_s=60))
PATIENCE_S = 120.0
"""Only against waiting for ever: the machine may be busy."""


def small(**changes: Any) -> ResolvedRequest:
    given = {"prompt": "a red ball", "prompt_upsampling": False, "width": 960, "height": 704, "frames": 1, "steps": 1}
    return resolve(GenerationRequest(**given | changes), CAPABILITIES)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    made = Children(LOCAL, ChildLimits(cpu_s=2, picture_cpu_s=2))
    made.start()
    yield made
    made.close()


def refused(children: Children, request: ResolvedRequest) -> MediaError:
    with pytest.raises(MediaError) as caught:
        children.prepare("refused", request, CAPABILITIES)
    return caught.value


@contextmanager
def slow_server() -> Iterator[str]:
    """A web server that accepts, answers with a header, and then sends a byte now and then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def serve() -> None:
            open_ = []
            while not ended.is_set():
                connection, _ = listener.accept()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                open_.append(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/picture.png"
        ended.set()


def scan_bomb(scans: int) -> bytes:
    """A progressive gray JPEG of 12,000 x 2,000 pixels with empty scans: each takes the decoder's time, none much room.

    After the scan of the mean values, every further one says with one symbol (EOB14, 0xE0) that the next 32,767 blocks
    have nothing to add (ITU-T T.81, G.1.2.2).
    """

    def segment(marker: int, payload: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload

    def stuffed(bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")

    width, height = 12_000, 2_000
    blocks = (width // 8) * (height // 8)
    one_code = bytes([1] + [0] * 15)
    head = (
        b"\xff\xd8"
        + segment(0xDB, b"\x00" + b"\x01" * 64)
        + segment(0xC2, struct.pack(">BHHB3B", 8, height, width, 1, 1, 0x11, 0))
        + segment(0xC4, b"\x00" + one_code + b"\x00")  # DC: no difference, as "0"
        + segment(0xC4, b"\x10" + one_code + b"\xe0")  # AC: a run of 2^14 and 14 bits more, as "0"
    )
    means = segment(0xDA, bytes([1, 1, 0x00, 0, 0, 0x00])) + stuffed("0" * blocks)
    run = "0" + format(32767 - (1 << 14), "014b")
    nothing = segment(0xDA, bytes([1, 1, 0x00, 1, 63, 0x00])) + stuffed(run * -(-blocks // 32767))
    return head + means + nothing * scans + b"\xff\xd9"


def large_gif(frames: int) -> bytes:
    """Dots of one pixel on 7,000 x 7,000: each makes the decoder compose the whole."""
    head = b"GIF89a" + struct.pack("<HHBBB", 7000, 7000, 0x80, 0, 0) + bytes(6)
    dot = b"\x21\xf9\x04\x00\x0a\x00\x00\x00" + b"\x2c" + struct.pack("<HHHHB", 9, 9, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + dot * frames + b"\x3b"


def discarded_clip(frames: int) -> bytes:
    """A MOV whose edit list shows the last frame only: the others are decoded and never come out."""
    still = io.BytesIO()
    Image.new("RGB", (4096, 4096), (9, 99, 200)).save(still, "png", compress_level=1)
    file = io.BytesIO()
    with av.open(file, "w", format="mov", options={"use_editlist": "1"}) as container:
        stream = container.add_stream("png", rate=25, width=4096, height=4096)
        stream.codec_context.pix_fmt = "rgb24"
        stream.codec_context.gop_size = 1
        stream.codec_context.thread_count = 1
        [first, *_] = [
            packet
            for _ in range(1)
            for packet in stream.encode(VideoFrame.from_ndarray(np.zeros((4096, 4096, 3), np.uint8), format="rgb24"))
        ] or list(stream.encode(None))
        data = bytes(first)
        for index in range(frames):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, stream.time_base or first.time_base
            packet.pts = packet.dts = round(index / 25 / packet.time_base)
            packet.is_keyframe = index == 0
            container.mux(packet)
    made = bytearray(file.getvalue())
    clock = int.from_bytes(made[made.index(b"mdhd") + 16 :][:4], "big")
    entry = made.index(b"elst") + 12
    struct.pack_into(">Ii", made, entry, 40, clock * (frames - 1) // 25)
    return bytes(made)


def test_a_child_prepares_what_this_process_would(children: Children) -> None:
    picture = png(np.random.default_rng(1).integers(0, 255, (90, 120, 3), np.uint8))
    for resolved in (small(image=picture), small(image=picture, prompt=None)):
        here, there = LOCAL(resolved, CAPABILITIES), children.prepare("x", resolved, CAPABILITIES)
        assert (there.request, there.prompt) == (here.request, here.prompt)
        assert here.frames is not None
        assert there.frames is not None
        assert np.array_equal(there.frames, here.frames)


def test_errors_come_back_as_they_are(children: Children) -> None:
    error = refused(children, small(image=b"nothing of the kind"))
    assert (error.field, error.status) == ("image", 422)
    assert "is not a picture" in error.message
    clip = io.BytesIO()
    Image.new("RGB", (96, 70)).save(clip, "GIF", save_all=True, append_images=[Image.new("RGB", (96, 70), "red")])
    request = small(video=clip.getvalue(), frames=17)
    with pytest.raises(InvalidRequestError) as caught:
        children.prepare("x", request, replace(CAPABILITIES, conditioning_frames=(9,)))
    assert caught.value.problems[0].field == "video"


@pytest.mark.parametrize("kind", ["scans of a picture", "frames that an edit list discards", "a large GIF"])
def test_what_takes_too_long_is_ended_inside_the_decoder(children: Children, kind: str) -> None:
    if kind == "scans of a picture":
        request = small(image=scan_bomb(4000))
    elif kind == "a large GIF":
        request = small(video=large_gif(300))
    else:
        request = small(video=discarded_clip(300))
    start = time.monotonic()
    error = refused(children, request)
    assert time.monotonic() - start < PATIENCE_S
    assert error.status == 413
    assert "takes more than 2 s of processor time" in error.message
    assert error.field == ("image" if request.image else "video")


def test_what_takes_too_much_memory_is_refused() -> None:
    children = Children(Preparer(), ChildLimits(memory_bytes=20_000_000))
    try:
        file = io.BytesIO()
        Image.new("RGB", (7000, 7000)).save(file, "png")
        error = refused(children, small(image=file.getvalue()))
        assert (error.field, error.status) == ("image", 413)
        assert "memory" in error.message
        assert children.prepare("next", small(image=png(np.zeros((64, 64, 3), np.uint8))), CAPABILITIES).prompt
    finally:
        children.close()


def test_a_preparation_is_stopped_while_it_waits_for_a_server(children: Children) -> None:
    with slow_server() as url:
        results: list[object] = []

        def prepare() -> None:
            try:
                results.append(children.prepare("slow", small(image=url), CAPABILITIES))
            except CosmoramaError as error:
                results.append(error)

        thread = threading.Thread(target=prepare)
        thread.start()
        time.sleep(0.5)
        children.stop("slow")
        thread.join(20)
        assert [type(result) for result in results] == [CancelledError]


def test_they_are_forked_anew_after_their_parent_was_killed(children: Children) -> None:
    picture = small(image=png(np.zeros((64, 64, 3), np.uint8)))
    children.prepare("before", picture, CAPABILITIES)
    assert children._parent is not None
    os.kill(children._parent._process.pid, signal.SIGKILL)
    children._parent._process.wait()
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            children.prepare("after", picture, CAPABILITIES)
            break
        except CosmoramaError:  # it may still be thought to live
            assert time.monotonic() < deadline


def test_text_does_not_wait_for_the_pictures_of_others(tiny_world: CosmosFlowWorld, tmp_path: Path) -> None:
    children = Children(LOCAL)
    engine = Engine(tiny_world, LOCAL, max_active=2, children=children)
    try:
        with slow_server() as url:
            for index in range(12):
                path = tmp_path / f"{index}.mp4"
                engine.submit(f"slow {index}", small(image=url), output=path, owner="alice")
            engine.submit("text", small(), output=tmp_path / "text.mp4", owner="bob")
            still = png(np.full((70, 96, 3), 90, np.uint8))
            engine.submit("picture", small(image=still), output=tmp_path / "picture.mp4", owner="bob")
            found: dict[str, Outcome | CosmoramaError] = {}
            deadline = time.monotonic() + 50  # before the first of the slow ones is given up
            while not {"text", "picture"} <= found.keys():
                assert time.monotonic() < deadline
                if not engine.step() and not {"text", "picture"} <= found.keys():
                    time.sleep(0.01)
                found.update(engine.finished())
            assert {name: type(result) for name, result in found.items()} == {"text": Outcome, "picture": Outcome}
            for index in range(12):
                engine.cancel(f"slow {index}")
            engine.step()
            assert {type(result) for _, result in engine.finished()} == {CancelledError}
            assert engine.pending == 0
    finally:
        engine.close()


def test_an_owner_has_so_many_and_what_is_dropped_is_not_begun() -> None:
    begun: list[str] = []
    release = threading.Event()
    stopped: list[str] = []
    preparing = Preparing(stopped.append, slots=3, per_owner=2)
    result = PreparedRequest(small(), "", None)

    def prepare(name: str) -> PreparedRequest:
        begun.append(name)
        assert release.wait(PATIENCE_S)
        return result

    names = ["a1", "a2", "a3", "a4", "b1", "c1"]
    futures = {name: preparing.begin(name, name[0], lambda name=name: prepare(name)) for name in names}  # type: ignore[misc]
    while len(begun) < 3:
        time.sleep(0.01)
    assert sorted(begun) == ["a1", "a2", "b1"]
    preparing.drop("a3")  # never begun
    preparing.drop("a1")  # ended; the next may begin
    while len(begun) < 4:
        time.sleep(0.01)
    assert (begun[3], stopped) == ("a4", ["a1"])
    release.set()
    assert futures["c1"].result(PATIENCE_S) is result
    assert "a3" not in begun


def test_what_they_import_is_light() -> None:
    program = "import cosmorama.engine.children, cosmorama.engine.prepare, sys; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_they_end_with_the_process_that_asked_for_them() -> None:
    program = """
from cosmorama.engine.children import Children
from cosmorama.engine.prepare import Preparer
children = Children(Preparer())
children.start()
print(children._parent._process.pid, flush=True)
import time
time.sleep(600)
"""
    worker = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    parent = int(worker.stdout.readline())
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{parent}").exists() and "Z" not in Path(f"/proc/{parent}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
