"""What a frame shows: `python -m microcosm.evaluation.probe` trains the two small networks that read it, one for each
world.

Colors of objects are measured from pixels; shapes need the network. They are trained on rendered frames, half of them
as the autoencoder shows them, with a little noise on the latents, so that they read decoded frames as well as rendered
ones. The last shard of pictures is kept back to measure them.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, cast

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.text.language import COLORS, FLOORS, LIGHTS, SHAPES, Color, Corridor, Floor, Scene, Shape
from cosmorama.world.microcosm.autoencoder import CELL, FRAMES_PER_LATENT, VideoAutoencoder
from microcosm.scenes.dataset import DATA, read_shard, shard_paths
from microcosm.scenes.simulate import OBJECT_RGB, SIZES, Frames
from microcosm.training.autoencoder import RUNS

VIVID = 0.62  # objects are more saturated than any floor or sky
_LEAST_VALUE = 0.2
LEAST_SHARE = 0.004  # less of a frame is no object
HUES = np.array([colorsys.rgb_to_hsv(*OBJECT_RGB[color])[0] for color in COLORS])
FILE, CORRIDOR_FILE = "probe.pt", "corridor_probe.pt"
ANSWERS: dict[str, int] = {
    "shelves": len(COLORS),
    "boxes": len(COLORS),
    "floor": len(FLOORS),
    "light": len(LIGHTS),
    "ahead": 1 + len(COLORS),
}
"""What is asked of a frame, and how many answers there are; ahead is nothing (0) or an object of a color."""
_NOISE = 0.06
_APART = 8  # frames of drives
_LEAST_AHEAD = 0.0005  # of a frame: 7 pixels
_BATCH = 32
_RATE = 3e-3
P = TypeVar("P", bound=nn.Module)


def classes_of(rgb: Tensor, least_value: float) -> Tensor:
    """Which object color each of [..., 3] in [0, 1] is: its number in `COLORS`, -1 for none, pale or dark ones."""
    largest, which = rgb.max(-1)
    chroma = largest - rgb.amin(-1)
    red, green, blue = rgb.unbind(-1)
    spans = torch.stack([green - blue, blue - red + 2 * chroma, red - green + 4 * chroma], -1)
    hue = spans.gather(-1, which[..., None]) / (6 * chroma.clamp_min(1e-6)[..., None]) % 1
    distance = (hue - torch.tensor(HUES, dtype=hue.dtype, device=hue.device)).abs()
    nearest = torch.minimum(distance, 1 - distance).argmin(-1)
    return torch.where((largest > least_value) & (chroma > VIVID * largest), nearest, -1)


def color_classes(frames: Frames) -> NDArray[np.int64]:
    """Which object color each pixel of frames uint8 [..., 3] has: its number in `COLORS`, -1 for none."""
    classes: NDArray[np.int64] = classes_of(torch.from_numpy(frames.astype(np.float32) / 255), _LEAST_VALUE).numpy()
    return classes


def color_shares(frames: Frames) -> NDArray[np.float64]:
    """The share of each frame [T, h, w, 3] that each object color covers: [T, 6]."""
    # One by one: hue distances take many times the memory of the pixels.
    counts = [np.bincount(color_classes(frame).ravel() + 1, minlength=1 + len(COLORS))[1:] for frame in frames]
    return np.stack(counts) / frames[0, ..., 0].size


@dataclass(frozen=True, slots=True)
class Sight:
    """What the probe finds in one frame.

    Attributes:
        shapes: The shape of each object color that is there.
        main: The color and shape of the surest object, whether sure enough to be one or not.
        floor: The floor.
    """

    shapes: dict[Color, Shape]
    main: tuple[Color, Shape]
    floor: Floor


def trunk() -> tuple[nn.Sequential, int]:
    """Convolutions over frames [B, 3, h, w], at an eighth of their size in the end, and their width."""
    widths, strides = (3, 16, 32, 64, 64, 64), (2, 2, 2, 1, 1)
    layers: list[nn.Module] = []
    for before, after, stride in zip(widths, widths[1:], strides, strict=False):
        layers += [nn.Conv2d(before, after, 5 if before == 3 else 3, stride, padding=2 if before == 3 else 1)]
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers), widths[-1]


class Probe(nn.Module):
    """A small convolutional network over frames of 160 x 88; one answer per object color, and the floor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, width = trunk()
        self.objects = nn.Conv2d(width, len(COLORS) * len(SHAPES), 1)
        self.floors = nn.Linear(width, len(FLOORS))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [B, 3, h, w] in [-1, 1] to logits: objects [B, 6, 4] (absent, then the shapes), floors [B, 4]."""
        features = self.layers(frames)
        found = self.objects(features).flatten(2).amax(2).unflatten(1, (len(COLORS), len(SHAPES)))
        return F.pad(found, (1, 0)), cast(Tensor, self.floors(features.mean((2, 3))))

    @torch.inference_mode()
    def look(self, frames: Frames) -> list[Sight]:
        """What frames uint8 [B, h, w, 3] show."""
        sights = []
        for part in np.array_split(frames, max(1, len(frames) // _BATCH)):
            objects, floors = self(to_input(part))
            sights += [_sight(one, floor) for one, floor in zip(objects, floors, strict=True)]
        return sights


def _sight(objects: Tensor, floors: Tensor) -> Sight:
    likely = [SHAPES[int(index)] for index in objects[:, 1:].argmax(1)]
    present = [int(index) != 0 for index in objects.argmax(1)]
    surest = int(objects[:, 1:].amax(1).argmax())
    return Sight(
        {color: shape for color, shape, there in zip(COLORS, likely, present, strict=True) if there},
        (COLORS[surest], likely[surest]),
        FLOORS[int(floors.argmax())],
    )


def classes(corridor: Corridor) -> list[int]:
    """The right answers to what is asked of a frame of a corridor, in the order of `ANSWERS`."""
    ahead = 0 if corridor.ahead is None else 1 + COLORS.index(corridor.ahead.color)
    floor, light = FLOORS.index(corridor.floor), LIGHTS.index(corridor.light)
    return [COLORS.index(corridor.shelves), COLORS.index(corridor.boxes), floor, light, ahead]


class CorridorProbe(nn.Module):
    """The same for drives; linear answers from the mean of the features over the left, middle and right third."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, width = trunk()
        self.answers = nn.Linear(3 * width, sum(ANSWERS.values()))

    def forward(self, frames: Tensor) -> Sequence[Tensor]:
        """Frames [B, 3, h, w] in [-1, 1] to logits [B, answers] of each question."""
        features = F.adaptive_avg_pool2d(self.layers(frames), (1, 3))
        parts: Sequence[Tensor] = self.answers(features.flatten(1)).split(list(ANSWERS.values()), dim=1)
        return parts

    @torch.inference_mode()
    def look(self, frames: Frames) -> Tensor:
        """The likeliest answers [B, questions] for frames uint8 [B, h, w, 3]."""
        parts = np.array_split(frames, max(1, len(frames) // _BATCH))
        return torch.cat([_likeliest(self(to_input(part))) for part in parts])


def _likeliest(logits: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.argmax(1) for part in logits], 1)


def to_input(frames: Frames) -> Tensor:
    """uint8 [B, h, w, 3] to float [B, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def as_decoded(vae: VideoAutoencoder, frames: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    """Frames [B, 3, h, w] encoded as stills, disturbed by `noise` and decoded linearly; whole cells only.

    The transform of eight equal frames, of which the last is shown, as two convolutions: an eighth of the arithmetic.
    """
    basis = vae.basis.detach().unflatten(1, (3, FRAMES_PER_LATENT, CELL, CELL))
    mean = vae.mean.detach().unflatten(0, (3, FRAMES_PER_LATENT, CELL, CELL))[:, -1]
    scale, offset = vae.scaling_factor.detach(), vae.basis.detach() @ vae.mean.detach()
    latents = scale * F.conv2d(frames, basis.sum(2), -offset, stride=CELL)
    shown = F.conv_transpose2d((latents + noise * torch.randn(latents.shape)) / scale, basis[:, :, -1], stride=CELL)
    rows, columns = latents.shape[2:]
    return cast(Tensor, (shown + mean.repeat(1, rows, columns)).clamp(-1, 1))


class Pictures(Protocol):
    """Rendered frames uint8 [N, 88, 160, 3] and what they show."""

    @property
    def frames(self) -> Frames:
        """The frames."""
        ...

    def loss(self, answers: Any, rows: Tensor) -> Tensor:
        """How wrong a probe's answers to some of the frames are."""
        ...

    def right(self, answers: Any) -> dict[str, Tensor]:
        """Which answers to all frames are right, question by question."""
        ...


@dataclass(frozen=True, slots=True)
class Labelled:
    """Frames with object classes [N, 6] (0 absent) and floors [N]; see `Pictures`."""

    frames: Frames
    objects: Tensor
    floors: Tensor

    @classmethod
    def label(cls, frames: Frames, scenes: Sequence[Scene]) -> Labelled:
        """Scenes say which shapes there are; an object counts where enough of its color is in the picture."""
        objects = torch.zeros(len(frames), len(COLORS), dtype=torch.long)
        for row, (shares, scene) in enumerate(zip(color_shares(frames), scenes, strict=True)):
            for thing in scene.objects:
                index = COLORS.index(thing.color)
                objects[row, index] = (1 + SHAPES.index(thing.shape)) * int(shares[index] >= LEAST_SHARE)
        return cls(frames, objects, torch.tensor([FLOORS.index(scene.floor) for scene in scenes]))

    def loss(self, answers: tuple[Tensor, Tensor], rows: Tensor) -> Tensor:
        """See `Pictures`."""
        objects, floors = answers
        loss = F.cross_entropy(objects.flatten(0, 1), self.objects[rows].flatten())
        return loss + 0.2 * F.cross_entropy(floors, self.floors[rows])

    def right(self, answers: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Color of the main object there, shapes of objects that are there, count, floor."""
        objects, floors = answers
        there = self.objects > 0
        shown = there.any(1)
        return {
            "color": there[shown].gather(1, objects[shown][..., 1:].amax(2).argmax(1)[:, None]),
            "shape": objects[..., 1:].argmax(2)[there] + 1 == self.objects[there],
            "count": (objects.argmax(2) > 0).sum(1) == there.sum(1),
            "floor": floors.argmax(1) == self.floors,
        }


@dataclass(frozen=True, slots=True)
class LabelledDrives:
    """Frames of drives and the right answers [N, questions]; see `Pictures`."""

    frames: Frames
    answers: Tensor

    @classmethod
    def label(cls, frames: Frames, scenes: Sequence[Corridor]) -> LabelledDrives:
        """Frames of drives; what has been passed, or is out of sight, is no longer ahead."""
        answers = torch.tensor([classes(scene) for scene in scenes])
        for row, shares in zip(answers, color_shares(frames), strict=True):
            if row[-1] and shares[row[-1] - 1] < _LEAST_AHEAD:
                row[-1] = 0
        return cls(frames, answers)

    def loss(self, answers: Sequence[Tensor], rows: Tensor) -> Tensor:
        """See `Pictures`."""
        right = self.answers[rows].unbind(1)
        return torch.stack([F.cross_entropy(*pair) for pair in zip(answers, right, strict=True)]).sum()

    def right(self, answers: Sequence[Tensor]) -> dict[str, Tensor]:
        """See `Pictures`."""
        return dict(zip(ANSWERS, (_likeliest(answers) == self.answers).unbind(1), strict=True))


def train(probe: nn.Module, pictures: Pictures, vae: VideoAutoencoder, steps: int, batch: int = _BATCH) -> None:
    """Adam with a falling rate; every second batch as the autoencoder shows it, every second picture mirrored."""
    optimizer = torch.optim.Adam(probe.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    probe.train()
    for step in track(range(steps), "probe"):
        rows = torch.randint(len(pictures.frames), (batch,))
        shown = to_input(pictures.frames[rows.numpy()])
        if step % 2:
            shown = as_decoded(vae, shown, _NOISE * torch.rand(batch, 1, 1, 1))
        shown = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, shown, shown.flip(3))
        optimizer.zero_grad()
        pictures.loss(probe(shown), rows).backward()
        optimizer.step()
        schedule.step()
    probe.eval()


@torch.inference_mode()
def accuracy(probe: nn.Module, frames: Tensor, pictures: Pictures) -> dict[str, float]:
    """Shares of right answers to `frames`, which show what `pictures` do."""
    answers = [torch.cat(part) for part in zip(*(probe(some) for some in frames.split(_BATCH)), strict=True)]
    return {name: round(float(hits.float().mean()), 4) for name, hits in pictures.right(answers).items()}


def load_probe(probe: P, path: Path) -> tuple[P, dict[str, Any]]:
    """The trained probe and how well it did on pictures it was not trained on."""
    state = torch.load(path, weights_only=True)
    probe.load_state_dict(state["probe"])
    return probe.eval(), state["accuracy"]


def read_wide(kinds: Sequence[str], folder: Path, shards: slice) -> tuple[Frames, list[Any]]:
    """The 16:9 pictures of some shards of splits [N, h, w, 3], of clips every eighth frame, and their scenes."""
    name = f"{SIZES[0][0]}x{SIZES[0][1]}"
    frames, scenes = [], []
    for path in (path for kind in kinds for path in shard_paths(kind, folder)[shards]):
        arrays, labels = read_shard(path)
        some = arrays[name][:, ::_APART]
        frames.append(some.reshape(-1, *some.shape[2:]))
        scenes += [label.scene for label in labels if label.array == name for _ in range(some.shape[1])]
    return np.concatenate(frames), scenes


def teach(
    probe: nn.Module,
    label: Callable[[Frames, list[Any]], Pictures],
    kinds: Sequence[str],
    data: Path,
    file: Path,
    steps: int,
) -> None:
    """Train a probe on twenty shards of each split, measure it on the last, rendered and decoded, and write it."""
    torch.set_num_threads(1)
    vae = VideoAutoencoder.from_pretrained(file.parent / "vae")
    train(probe, label(*read_wide(kinds, data, slice(-21, -1))), vae, steps)
    unseen = label(*read_wide(kinds, data, slice(-1, None)))
    frames = to_input(unseen.frames)
    figures = {
        "rendered": accuracy(probe, frames, unseen),
        "decoded": accuracy(probe, as_decoded(vae, frames), unseen),
    }
    torch.save({"probe": probe.state_dict(), "accuracy": figures}, file)
    print(json.dumps(figures))


def main(
    data: Annotated[Path, typer.Option()] = DATA,
    runs: Annotated[Path, typer.Option()] = RUNS,
    steps: int = 1200,
    seed: int = 0,
) -> None:
    """Train the probes and measure them on pictures they have not seen, rendered and decoded."""
    torch.manual_seed(seed)
    teach(Probe(), Labelled.label, ["images"], data, runs / FILE, steps)
    torch.manual_seed(seed)
    teach(CorridorProbe(), LabelledDrives.label, ["corridor-images", "drives"], data, runs / CORRIDOR_FILE, steps)


if __name__ == "__main__":
    typer.run(main)
