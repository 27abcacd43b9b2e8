"""The one description of work, and what a model says it can do.

Every wire format is turned into a `GenerationRequest`; every model publishes `Capabilities`; `cosmorama.resolve`
checks the one against the other before anything expensive starts. Defaults and ranges are those of the Sampling
Control page of NIM for Cosmos (Predict1 generation) unless a model's capabilities say otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

Mode = Literal["text2world", "image2world", "video2world", "transfer", "forward_dynamics", "inverse_dynamics", "policy"]
Container = Literal["mp4", "webm", "gif", "png", "jpeg", "safetensors"]
Codec = Literal["h264", "vp9", "av1"]
Solver = Literal["euler", "unipc", "dpmpp_2m", "edm_euler"]
ControlKind = Literal["edge", "depth", "seg", "vis", "wsm"]
"""Edges, depth, segmentation, a blurred picture ("blur" to Cosmos3), or a map of the world ("wsm")."""
Preset = Literal["none", "very_low", "low", "medium", "high", "very_high"]
"""How strong an edge threshold or a blur is; "none" is for blurs."""
MediaSource = str | bytes | Path
"""An http(s) URL, data URL or raw base64 (`str`), encoded file contents (`bytes`), or a local file (`Path`)."""

MODES: tuple[Mode, ...] = ("text2world", "image2world", "video2world")
"""What every prompt-driven world model does; the others are for models made for them."""
CONTROL_KINDS: tuple[ControlKind, ...] = get_args(ControlKind)
COMPUTED_CONTROLS: tuple[ControlKind, ...] = ("edge", "vis")
"""Kinds of control clips that are computed from the request's video where none is given."""
SOLVERS: tuple[Solver, ...] = get_args(Solver)
CODECS: dict[Container, tuple[Codec, ...]] = {
    "mp4": ("h264", "av1", "vp9"),
    "webm": ("vp9", "av1"),
    "gif": (),
    "png": (),
    "jpeg": (),
    "safetensors": (),
}
INWARD = frozenset({"usual", "target", "warnings", "names"})
"""Fields of requests that no client sends: what the formats, `resolve` and the engine tell each other."""
VAE_TILES = (128, 192, 256, 384, 512, 768)
"""Sides, in pixels, of the tiles that a video tokenizer can work in: its latents and their overlaps come out whole."""
MAX_SEED = 2**32 - 1
PROMPT_MAX_WORDS = 250
PROMPT_MAX_CHARACTERS = 20_000
"""Of every text of a request, in whatever language: words are not told apart by spaces everywhere."""
MAX_CONTROLS = 8
MAX_ADAPTERS = 16
MAX_ACTION_NUMBERS = 100_000
MAX_INDEXES = 256
DEFAULT_NEGATIVE_PROMPT = (
    "The video captures a series of frames showing ugly scenes, static with no motion, motion blur, over-saturation, "
    "shaky footage, low resolution, grainy texture, pixelated images, poorly lit areas, underexposed and overexposed "
    "scenes, poor color balance, washed out colors, choppy sequences, jerky movements, low frame rate, artifacting, "
    "color banding, unnatural transitions, outdated special effects, fake elements, unconvincing visuals, poorly "
    "edited content, jump cuts, visual noise, and flickering. Overall, the video is of poor quality."
)


@dataclass(frozen=True, slots=True)
class Size:
    """A frame size in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Range:
    """A closed interval of accepted numbers."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class FrameRule:
    """Frame counts a model can make: `multiple * k + 1` up to `maximum`."""

    multiple: int
    maximum: int

    def next(self, frames: int) -> int:
        """The smallest count the model can make that is not below `frames`."""
        return 1 + math.ceil((frames - 1) / self.multiple) * self.multiple


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a model uses where a client leaves the choice to it; the fields are those of `GenerationRequest`."""

    width: int = 1280
    height: int = 704
    frames: int = 121
    fps: float = 24
    steps: int = 35
    guidance_scale: float = 7.0
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT
    vae_tiling: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """What a wire format uses where its client says nothing. A model that does not take it uses its own default."""

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    seconds: float | None = None
    fps: float | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    negative_prompt: str | None = None
    reuse: float | None = None
    control_guidance: float | None = None
    chunk_frames: int | None = None


@dataclass(frozen=True, slots=True)
class ActionDomain:
    """A kind of robot, as a model knows it.

    Attributes:
        id: The number that models know it by.
        name: What it is called.
        width: How many numbers an action has.
        numbers: What each is, and its unit; none where that is the robot's own business.
        ranges: What is accepted of each; none: anything.
        fps: Actions per second where a request does not say; None: the model's own default.
        sizes: At which it is shown; none: at all of the model's.
        longest: Frames of the longest clip; None: of the longest that the model makes at once.
    """

    id: int
    name: str
    width: int
    numbers: tuple[str, ...] = ()
    ranges: tuple[Range, ...] = ()
    fps: float | None = None
    sizes: tuple[Size, ...] = ()
    longest: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPreset:
    """How a model samples with an adapter that was trained for it, as one for few steps; None: as without."""

    steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    solver: Solver | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a world model can do; published by the model, shown by the server, enforced by `resolve`."""

    model: str
    modes: tuple[Mode, ...] = MODES
    sizes: tuple[Size, ...] = (Size(960, 960), Size(960, 704), Size(704, 960), Size(1280, 704), Size(704, 1280))
    frames: FrameRule = FrameRule(8, 121)
    fps: Range = Range(12, 40)
    guidance_scale: Range = Range(1, 10)
    steps: Range = Range(1, 50)
    prompt_words: int | None = PROMPT_MAX_WORDS
    """Most words of a prompt; None: only its characters are counted."""
    prompt_tokens: int | None = None
    """Most tokens of a prompt that are read, in the text encoder's own count; what is longer is cut, with a warning."""
    negative_prompts: bool = True
    """False: the model owns its negative prompt, or has none."""
    ignores: tuple[str, ...] = ()
    """Fields that are accepted and not used, which the answer's warnings say."""
    conditioning_frames: tuple[int, ...] = (9, 1)
    """Numbers of frames the model can continue from, most first; an image is always one."""
    conditioning_indexes: bool = False
    """Whether any latent frames can be given, not only the first ones."""
    solvers: tuple[Solver, ...] = ("euler", "unipc", "dpmpp_2m")
    default_solver: Solver = "euler"
    family: str = "microcosm"
    """Which of the families in `cosmorama.world` runs it."""
    defaults: Defaults = Defaults()
    size_multiple: int | None = None
    """Other sizes are made too if both sides are multiples of this; None: only `sizes`."""
    max_pixels: int = 1280 * 720
    """Width times height of the largest of those other sizes."""
    max_sides: Size | None = None
    """No side of those other sizes is longer than this one's; None: any that `max_pixels` lets pass."""
    flow_shift: Range | None = None
    """Accepted shifts of the noise schedule; None: the model's own only."""
    controls: tuple[ControlKind, ...] = ()
    control_guidance: Range | None = None
    """Accepted strengths of guidance by controls, in chunks of a length that a request may say; None: neither."""
    action_domains: tuple[ActionDomain, ...] = ()
    action_only: bool = False
    """Whether it answers with actions alone, from a picture and the robot's state; only that picture is decoded."""
    adapters: tuple[str, ...] = ()
    """Names of the LoRA adapters that are loaded."""
    adapter_layers: dict[str, int] = field(default_factory=dict)
    """By those names: how many layers of the denoiser each acts on."""
    adapter_presets: dict[str, AdapterPreset] = field(default_factory=dict)
    """By those names, where an adapter has one: what requests with it use where they say nothing."""
    reuse: Range | None = Range(0, 1)
    """Accepted thresholds of step reuse; None: the model is always evaluated at every step."""
    vae_tiles: tuple[int, ...] = ()
    """Accepted sides of tiles, in pixels, for a video tokenizer that works tile by tile; none: always in one piece."""
    elsewhere: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Modes and kinds of controls that not every model has, and the families that have them."""
    longest: int | None = None
    """Frames of the longest clip, where one over `frames.maximum` is continued from its own last frames; None: none."""

    @property
    def most_frames(self) -> int:
        """Frames of the longest clip that is accepted."""
        return self.longest or self.frames.maximum


@dataclass(frozen=True, slots=True)
class Output:
    """How the result is written. `codec` None means the container's usual one; `quality` is 1 (small) to 9 (best)."""

    container: Container = "mp4"
    codec: Codec | None = None
    quality: int = 7


@dataclass(frozen=True, slots=True)
class Control:
    """A clip that the result follows in structure.

    Attributes:
        kind: What the clip shows: edges, depth, segmentation or a blurred picture.
        weight: How closely it is followed, 0 to 1.
        source: The control clip itself; None computes it from the request's `video`.
        preset: For computed controls: how strong the edge threshold or the blur is.
    """

    kind: ControlKind
    weight: float = 1.0
    source: MediaSource | None = field(default=None, repr=False)
    preset: Preset = "medium"


View = Literal["ego_view", "third_person_view", "wrist_view", "concat_view"]


@dataclass(frozen=True, slots=True)
class Action:
    """What a robot does, or is to find out: the body it has, and one row of numbers per step.

    Attributes:
        domain: One of the model's `action_domains`, by number.
        values: `[steps][numbers]`, for forward dynamics; None where the model answers with them.
        steps: How many actions; a multiple of 4. The clip has one frame more.
        fps: Actions per second; None: as the clip's frames.
        space: What the numbers stand for, as the model was trained.
        view: Where the camera looks from: the robot's eyes, in front of it, its wrist, or several of these.
        state: For policies: what is known of the robot besides the picture, as JSON text.
    """

    domain: int
    values: tuple[tuple[float, ...], ...] | None = None
    steps: int = 16
    fps: float | None = None
    space: Literal["joint_pos", "midtrain"] = "joint_pos"
    view: View = "ego_view"
    state: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Target:
    """What a finished file holds: frame size in pixels, number of frames, frames per second."""

    width: int
    height: int
    frames: int
    fps: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter by name, and how strongly it acts."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A request to generate one clip (or a still: `frames` = 1). None is always the model's own choice.

    Attributes:
        prompt: Required unless an image or a video is given, which is then described in words.
        negative_prompt: What the picture should not be.
        prompt_upsampling: Rewrite the prompt into the model's own language; None means only for text2world.
        image: A picture to start from; excludes `video`.
        video: A clip to continue; its last frames are the condition.
        seed: 0 to 4294967295; None draws one.
        guidance_scale: Classifier-free guidance.
        steps: Denoising steps.
        width, height: Frame size in pixels, one of the model's sizes.
        frames: Frames in the result, exactly.
        seconds: Length of the result, where `frames` is None.
        fps: Frames per second of the result.
        solver: Integrator of the sampling equation.
        guidance_interval: Fractions (start, end) of the steps in which guidance acts, 0 to 1.
        guidance_rescale: 0 to 1, pulls the guided prediction's spread back to the unguided one's (arXiv 2305.08891).
        conditioning_frames: How many last frames of `video` to continue from; None means the most the model takes.
        output: Container, codec and quality of the file.
        task: A mode that the inputs alone do not tell; None means that `mode` follows from them.
        keep: Which frames of `video` are the condition: its first or its last.
        flow_shift: Shift of the noise schedule towards noise, where the model takes it.
        reuse: 0 to 1: the network's last answer is used again while it is expected to change by less than this, in
            parts of its size; 0 is exact; None means the server's choice, which is 0 unless set.
        vae_tiling: Encode and decode frames in tiles of so many pixels a side, which takes less memory and shows faint
            seams; 0 is exact; None means the server's choice, which is 0 unless set.
        controls: For transfer: what the result follows.
        control_guidance: For transfer: how strongly the controls guide, 0 to 10, where the model takes it.
        chunk_frames: For transfer: frames that are made at once.
        first_conditioning_frames: For transfer: frames of `video` that its first chunk begins with.
        conditioning_indexes: Which latent frames are given of `video`, where the model takes any.
        action: For the action modes.
        adapters: LoRA adapters to apply.
        model: Name of the model that is to make it; None means the server's first, or the only one.
        fit: A size or rate that the model lacks is made at its nearest one and resampled, instead of refused.
        usual: What is used where a field is None, before the model's own default.
        warnings: What was fitted, replaced or ignored, in words for whoever sent the request; `resolve` adds to them.
        names: What whoever sent it calls a field, where that is not its name here: pairs of the one and the other.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    prompt_upsampling: bool | None = None
    image: MediaSource | None = field(default=None, repr=False)
    video: MediaSource | None = field(default=None, repr=False)
    seed: int | None = None
    guidance_scale: float | None = None
    steps: int | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    seconds: float | None = None
    fps: float | None = None
    solver: Solver | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    conditioning_frames: int | None = None
    output: Output = Output()
    task: Mode | None = None
    keep: Literal["first", "last"] = "last"
    flow_shift: float | None = None
    reuse: float | None = None
    vae_tiling: int | None = None
    controls: tuple[Control, ...] = ()
    control_guidance: float | None = None
    chunk_frames: int | None = None
    first_conditioning_frames: int | None = None
    conditioning_indexes: tuple[int, ...] | None = None
    action: Action | None = None
    adapters: tuple[Adapter, ...] = ()
    model: str | None = None
    fit: bool = False
    usual: Usual | None = None
    warnings: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()

    def called(self, field: str) -> str:
        """What whoever sent the request calls a field."""
        return dict(self.names).get(field, field)

    @property
    def mode(self) -> Mode:
        """The task, or the mode that the given inputs imply."""
        if self.task is not None:
            return self.task
        if self.controls:
            return "transfer"
        if self.action is not None and self.action.values is not None:
            return "forward_dynamics"
        if self.video is not None:
            return "video2world"
        return "image2world" if self.image is not None else "text2world"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRequest(GenerationRequest):
    """A request as one model makes it: `resolve` gives these, and nothing that the model needs is open in them.

    Attributes:
        target: For `fit`: what was asked for; size, frames and rate are then what the model makes.
        source_rate: For transfer, where no rate was asked for: the result has every frame of its control clips, at
            their own rate; `fps` is used where that cannot be.
    """

    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT
    guidance_scale: float = 7.0
    steps: int = 35
    width: int = 1280
    height: int = 704
    frames: int = 121
    fps: float = 24
    target: Target | None = None
    source_rate: bool = False

    @property
    def result(self) -> Target:
        """What the file holds, which for a fitted request is not what the model makes."""
        return self.target or Target(self.width, self.height, self.frames, self.fps)


def repeatable(request: ResolvedRequest, prompt: str) -> dict[str, Any]:
    """The body that asks for the same clip again, in JSON's types and in the server's own format.

    Args:
        request: What was made. Pictures and clips are not part of the body.
        prompt: The text that was used, which is not rewritten again.
    """
    left_out = {"image", "video", "model", "seconds", *INWARD} | ({"fps"} if request.source_rate else set())
    body: dict[str, Any] = {"dialect": "cosmorama"}
    for each in fields(GenerationRequest):
        value = getattr(request, each.name)
        if each.name not in left_out and value is not None and value != each.default:
            body[each.name] = _plain(value)
    size = {"width": request.result.width, "height": request.result.height}
    length = {"frames": request.result.frames} | ({} if request.source_rate else {"fps": request.result.fps})
    made = {
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "negative_prompt": request.negative_prompt,
    }
    whole: dict[str, Any] = _plain(body | size | length | made | {"prompt": prompt, "prompt_upsampling": False})
    return whole


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value) if each.name != "source"}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, float) and value.is_integer():  # 24 and 24.0 are the same rate, and are the same text
        return int(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class Knobs(TypedDict, total=False):
    """The knobs of `GenerationRequest` beside its prompt, image and video, all optional; see there for each."""

    negative_prompt: str | None
    prompt_upsampling: bool | None
    seed: int | None
    guidance_scale: float | None
    steps: int | None
    width: int | None
    height: int | None
    frames: int | None
    seconds: float | None
    fps: float | None
    solver: Solver | None
    guidance_interval: tuple[float, float]
    guidance_rescale: float
    conditioning_frames: int | None
    task: Mode | None
    keep: Literal["first", "last"]
    flow_shift: float | None
    reuse: float | None
    vae_tiling: int | None
    controls: tuple[Control, ...]
    control_guidance: float | None
    chunk_frames: int | None
    first_conditioning_frames: int | None
    conditioning_indexes: tuple[int, ...] | None
    action: Action | None
    adapters: tuple[Adapter, ...]
    fit: bool
