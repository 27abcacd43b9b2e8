"""Draws a still of objects again, sharp: a network reads its layout off the sampled one, a second one draws that.

What is sampled is soft where the denoiser is not sure where an outline runs. Here it is decided, in numbers: then all
of the picture follows. What the sampled still shows of colors and floors is read beside the layout. A picture of
something else stays as it is, and so does one of which the reading network is not sure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cosmorama.text.reader import NamedObject
from cosmorama.world.microcosm import unet
from cosmorama.world.microcosm.layout import (
    MEETING,
    NUMBERS,
    OBJECT,
    PLAN_CHANNELS,
    SLOTS,
    VIEW,
    Layout,
    agreed,
    hidden,
    is_sure,
    meetings,
    nearest_first,
    pixel_step,
    plan,
)
from cosmorama.world.microcosm.stored import Stored

CELL = 2
_ALIKE, _NEARLY = 0.008, 0.001  # mean squared errors of a range of 2: 27 dB, 36 dB
_ROUNDS = 2  # of descent; the second begins with long steps again, for those that came to lie in the wrong place
_FITS, _FIT_RATE = 24, 0.08  # steps of each, and the first one's length in `OBJECT`'s and `VIEW`'s units
_DECAYS = 0.7, 0.95  # of the means over steps
_ALL = torch.ones(len(OBJECT) + len(VIEW))
_GO, _KINDS = [1, 3, 5], 1 + len(OBJECT)  # of an object's numbers: x, z and its turn; where its kinds begin
_PLACES = torch.tensor([1, 0, 1, 0, 1] + [0] * len(VIEW))
_AWAY, _SEEN = 7.25, 5  # about how far away objects are, m; numbers of where one is seen
_LAYERS = (3, 1, 2, 0)  # of what `meetings` says from the back: shadows of the farther and the nearer object, both
_PASSES = -20.0  # a logit
_HINTS, _OUTLINE = 3 * (1 + len(_LAYERS)), 16  # numbers of a pixel beside its color, and of how a ray passes
_LOOK, _GRID = 4, (6, 10)  # pixels a side that are read as one; coarse cells
_SQUEEZED, _TELLS = 16, 224  # features of each of these, and of all


@dataclass(frozen=True, slots=True)
class Recognised:
    """A still of objects of which all is known.

    Attributes:
        still: As it is shown, [1, 3, h, w] in [-1, 1].
        layout: Of that one still.
    """

    still: Tensor
    layout: Layout


class StillRefiner(Stored):
    """Reads and draws pictures at one eighth of the output size.

    Args:
        reader_widths: Features on each level of what reads.
        painter_widths: Features on each level of the U-Net that draws.
        context: Width of what both are told of the prompt.
        text_width: Width D of the text states.
    """

    def __init__(
        self,
        reader_widths: Sequence[int] = (48, 96, 128),
        painter_widths: Sequence[int] = (32, 64, 96),
        context: int = 128,
        text_width: int = 192,
    ) -> None:
        super().__init__()
        self.hear = nn.Sequential(nn.Linear(text_width, context), nn.SiLU())
        self.first = nn.Conv2d(3 * _LOOK**2 + 2, reader_widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(unet.Block(width, context) for width in reader_widths)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(reader_widths))
        self.squeeze = nn.Conv2d(reader_widths[-1], _SQUEEZED, 1)
        self.lift = nn.ModuleList(nn.Conv2d(width, reader_widths[0], 1) for width in reader_widths[1:])
        self.where = nn.Sequential(
            nn.Conv2d(reader_widths[0], reader_widths[0], 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(reader_widths[0], SLOTS, 3, padding=1),
        )
        told = _SQUEEZED * math.prod(_GRID) + context + 1 + SLOTS * _SEEN
        self.say = nn.Sequential(unet.mlp(told, _TELLS), nn.SiLU(), nn.Linear(_TELLS, NUMBERS + 1))
        self.mix = nn.Sequential(nn.Linear(text_width, context), nn.SiLU(), nn.Linear(context, context), nn.SiLU())
        once = [1] * len(painter_widths)
        self.paint = unet.Levels(3 * CELL**2 + PLAN_CHANNELS, (3 + _HINTS) * CELL**2, painter_widths, once, context)
        self.outline = nn.Sequential(unet.mlp(MEETING, 48), nn.SiLU(), nn.Linear(48, _OUTLINE))
        self.finish = nn.Sequential(nn.Linear(3 + _HINTS + 2 * SLOTS * _OUTLINE, 48), nn.SiLU(), nn.Linear(48, 3))
        nn.init.zeros_(cast(nn.Linear, self.finish[-1]).weight)
        nn.init.zeros_(cast(Tensor, cast(nn.Linear, self.finish[-1]).bias))

    def read(self, frames: Tensor, text: Tensor) -> Tensor:
        """What stills [B, 3, h, w] in [-1, 1] show: their layouts as `Layout.told` says them, and a logit of whether
        they show objects at all, [B, `NUMBERS` + 1].

        Args:
            frames: The stills.
            text: The prompts' first states, [B, D].
        """
        context, (height, width) = self.hear(text), frames.shape[2:]
        whole = _LOOK * 2 ** len(self.shrink)
        x = F.pixel_unshuffle(F.pad(frames, (0, -width % whole, 0, -height % whole), mode="replicate"), _LOOK)
        x = self.first(torch.cat([x, unet.places(x)], dim=1).contiguous(memory_format=torch.channels_last))
        x = finest = self.blocks[0](x, context)
        for shrink, lift, block in zip(self.shrink, self.lift, list(self.blocks)[1:], strict=True):
            x = block(shrink(x), context)
            finest = finest + F.interpolate(lift(x), finest.shape[2:], mode="nearest")
        seen = self._seen(finest, height, width)
        features = F.adaptive_avg_pool2d(F.silu(self.squeeze(unet.normed(x))), _GRID).flatten(1)
        form = torch.full((len(frames), 1), math.log(width / height))
        said = cast(Tensor, self.say(torch.cat([features, context, form, seen.flatten(1)], dim=1))).float()
        across, down = _AWAY * seen[..., 0], _AWAY * seen[..., 1]
        met = torch.zeros(len(frames), SLOTS, (NUMBERS - len(VIEW)) // SLOTS)
        met[..., 1], met[..., 3] = across / OBJECT[0, 1], -down / OBJECT[2, 1]
        return said + F.pad(met.flatten(1), (0, len(VIEW) + 1))

    def _seen(self, features: Tensor, height: int, width: int) -> Tensor:
        """Where each object's middle is in pictures, across and down, by how much the ray to it leans; how scattered
        that is, and how sure, [B, `SLOTS`, 5].
        """
        likely = self.where(F.silu(unet.normed(features))).float().flatten(2).softmax(-1)
        rows, columns = features.shape[2:]
        step = pixel_step(height, width)
        down, across = (
            ((torch.arange(count) + 0.5) * _LOOK - side / 2) * step
            for count, side in ((rows, height), (columns, width))
        )
        places = torch.stack([across.expand(rows, -1), down[:, None].expand(-1, columns)]).flatten(1)
        middle = likely @ places.T
        spread = (likely @ places.square().T - middle.square()).clamp(min=0)
        return torch.cat([middle, (spread + 1e-6).sqrt(), likely.amax(-1, keepdim=True)], dim=-1)

    def draw(self, frames: Tensor, layout: Layout, text: Tensor) -> Tensor:
        """Pictures [B, 3, h, w] of layouts, in the colors of `frames` and of the prompts; see `read`.

        The U-Net draws cells; which side of an outline a pixel is on, small networks say of its own rays. All know the
        nearer object as the first, since it hides the other.
        """
        (height, width), layout = frames.shape[2:], nearest_first(layout)
        frames = F.pad(frames, (0, -width % CELL, 0, -height % CELL), mode="replicate")
        cells = F.pixel_unshuffle(frames, CELL)
        inside, seen = self.outlines(layout, *frames.shape[2:])
        shown = hidden(plan(layout, *cells.shape[2:]), F.avg_pool2d(seen[:, ::2, ..., 0].sigmoid(), CELL))
        drawn = self.paint(torch.cat([cells, shown], dim=1), self.mix(text))
        drawn = F.pixel_shuffle(drawn.float(), CELL)
        some = inside.any(1)
        pixels, features = drawn.movedim(1, -1)[some], seen.movedim(1, -2)[some]
        color = self.finished(pixels, features)
        drawn = drawn[:, :3].movedim(1, -1).masked_scatter(some[..., None], color).movedim(-1, 1)
        return drawn[..., :height, :width]

    def finished(self, pixels: Tensor, seen: Tensor) -> Tensor:
        """Colors [..., 3] of pixels of which the U-Net says [..., 3 + hints], and `outlines` [..., 2 * `SLOTS`, D]."""
        color, *others = (pixels[..., :3] + hint for hint in pixels[..., 3:].split(3, dim=-1))
        for other, layer in zip(others, _LAYERS, strict=True):
            color = torch.lerp(color, other, seen[..., layer, :1].sigmoid())
        finished: Tensor = color + self.finish(torch.cat([pixels, seen.flatten(-2)], dim=-1)).float()
        return finished

    def features(self, inside: Tensor, met: Tensor) -> Tensor:
        """Of rays that pass near objects as `meetings` says, and of those that do not, [..., D]."""
        with torch.autocast("cpu", enabled=False):  # a place within a pixel has more digits than bfloat16
            seen: Tensor = met.new_zeros(*inside.shape, _OUTLINE)
            seen[..., 0] = _PASSES
            seen[inside] = self.outline(met)
        return seen

    def outlines(self, layout: Layout, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Whether rays pass near objects, see `meetings`, and features of how, [B, 2 * `SLOTS`, h, w, D]; the first of
        these says whether they meet, as a logit.
        """
        inside, met = meetings(layout, height, width)
        seen = self.features(inside.transpose(0, 1), met).transpose(0, 1)
        return inside, seen

    def recognised(
        self, still: Tensor, text: Tensor, wanted: Sequence[NamedObject] = (), *, given: bool = False
    ) -> Recognised | None:
        """What a still [1, 3, h, w] shows, and the still drawn again, or as it is where it was given and not sampled.
        Of which kinds its objects are the prompt says, if it names any: those that are `wanted`.

        None: of something else, or where it is not sure of what; of a given one, where what it would draw is not that.
        """
        read = self.read(still, text)
        said = agreed(read[:, :-1], wanted)
        if read[0, -1] <= 0 or not is_sure(said).all():
            return None
        layout = Layout.heard(said)
        if not given:
            return Recognised(self.draw(still, layout, text).clamp(-1, 1), layout)
        for _ in range(_ROUNDS):
            layout = self._fitted(still, layout, text, _ALL)
            off = float((self.draw(still, layout, text).clamp(-1, 1) - still).square().mean())
            if off < _NEARLY:
                break
        return Recognised(still, layout) if off < _ALIKE else None

    def before(self, scene: Recognised, frames: Tensor, text: Tensor) -> Layout:
        """The layouts of frames [N, 3, h, w] from a little earlier in the same scene."""
        seen = Layout.heard(self.read(frames, text.expand(len(frames), -1))[:, :-1]).objects
        objects = scene.layout.objects.expand(len(frames), -1, -1).clone()
        alike = seen[:, None, :, 0] * (seen[:, None, :, _KINDS:] * objects[:, :, None, _KINDS:]).sum(-1)
        found, known = seen.gather(1, alike.argmax(2)[..., None].expand_as(objects)), alike.amax(2, keepdim=True) > 1
        objects[..., _GO] = torch.where(known, found[..., _GO], objects[..., _GO])
        return self._fitted(frames, Layout(objects, scene.layout.view.expand(len(frames), -1)), text, _PLACES)

    def _fitted(self, stills: Tensor, layout: Layout, text: Tensor, free: Tensor) -> Layout:
        """The layouts near those that were read by which stills are drawn most nearly as they are: found by descent."""
        with torch.inference_mode(mode=False), torch.enable_grad():  # where there are no gradients
            text = text.expand(len(stills), -1).clone()
            return self._descended(stills.clone(), Layout(layout.objects.clone(), layout.view.clone()), text, free)

    def _descended(self, stills: Tensor, layout: Layout, text: Tensor, free: Tensor) -> Layout:
        """Each by itself; `free`: 1 for each of `OBJECT`'s and `VIEW`'s numbers that may change.

        Adam (arXiv 1412.6980) in its own words: importing PyTorch's optimizers takes a second, for its compiler.
        """
        there, numbers, kinds = layout.objects.tensor_split([1, 1 + len(OBJECT)], dim=-1)
        units = torch.cat([(OBJECT[:, 1] * free[: len(OBJECT)]).repeat(SLOTS), VIEW[:, 1] * free[len(OBJECT) :]])
        best, least = layout, torch.full((len(stills),), math.inf)
        offsets = torch.zeros(len(stills), len(units), requires_grad=True)
        mean, square = torch.zeros_like(offsets), torch.zeros_like(offsets)
        for step in range(1, _FITS + 1):
            moved, turned = (offsets * units).tensor_split([SLOTS * len(OBJECT)], dim=1)
            objects = torch.cat([there, numbers + moved.view_as(numbers), kinds], dim=-1)
            tried = Layout(objects, layout.view + turned)
            off = (self.draw(stills, tried, text) - stills).abs().mean((1, 2, 3))
            better = off.detach() < least
            objects, view = (
                torch.where(better.view(-1, *[1] * (new.ndim - 1)), new.detach(), old)
                for new, old in ((tried.objects, best.objects), (tried.view, best.view))
            )
            best, least = Layout(objects, view), torch.where(better, off.detach(), least)
            (slope,) = torch.autograd.grad(off.sum(), offsets)
            mean, square = mean.lerp(slope, 1 - _DECAYS[0]), square.lerp(slope.square(), 1 - _DECAYS[1])
            scaled = mean / (1 - _DECAYS[0] ** step) / ((square / (1 - _DECAYS[1] ** step)).sqrt() + 1e-8)
            rate = _FIT_RATE * (1 - (step - 1) / _FITS)
            offsets = (offsets - rate * scaled).detach().requires_grad_()
        return best

    def moments(self, scene: Recognised, layouts: Layout, text: Tensor) -> Tensor:
        """A scene's later moments, of N layouts: [N, 3, h, w]."""
        count = len(layouts.view)
        drawn = self.draw(scene.still.expand(count, -1, -1, -1), layouts, text.expand(count, -1))
        return drawn.clamp(-1, 1)
