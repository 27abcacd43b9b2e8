"""What all training has in common: runs of some minutes, resumed from their last checkpoint."""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

import torch
import typer
from torch import Tensor, nn

import cosmorama
from cosmorama.world.microcosm import unet
from cosmorama.world.microcosm.loader import load_component
from cosmorama.world.microcosm.stored import Stored
from cosmorama.world.microcosm.text_encoder import TextEncoder
from microcosm.scenes.dataset import DATA
from microcosm.training.autoencoder import RUNS
from microcosm.training.optimizer import Optimizer
from microcosm.training.parallel import agreed, average_weights, in_processes

WEIGHTS = Path(cosmorama.__file__).parent / "world/microcosm/weights"
"""Those that ship with the package."""
LOCAL_STEPS = 8  # of every worker by itself, between which their weights are averaged
_WARM_UP = 100  # steps
_HEAD_RATE = 3e-3
B = TypeVar("B")
Run = TypeVar("Run", bound="RunOptions")
Part = TypeVar("Part", bound="PartOptions")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """One run, and what the command line says of it. `later_minutes` of its stage are for another call: the rate falls
    as if this one went on.
    """

    minutes: Annotated[float, typer.Option(help="Length of this run.")] = 30.0
    decay_minutes: Annotated[float, typer.Option(help="Of these, at the end, with a falling learning rate.")] = 3.0
    later_minutes: Annotated[float, typer.Option(help="Of the stage that are for later runs.")] = 0.0
    data: Annotated[Path, typer.Option()] = DATA
    runs: Annotated[Path, typer.Option()] = RUNS
    name: Annotated[str, typer.Option(help="Name of the checkpoint in RUNS.")]
    start: Annotated[str, typer.Option(help="Begin from another run (its name), or from exported weights.")] = ""
    peak: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3
    ema: float = 0.995
    seed: int = 0
    processes: Annotated[int, typer.Option(help="Data-parallel workers, each with one thread and its own batches.")] = 2


@dataclass(frozen=True, kw_only=True)
class PartOptions(RunOptions):
    """One run of a network that stands beside the denoiser."""

    weights: Annotated[Path, typer.Option(help="Where the text encoder and the autoencoder are.")] = WEIGHTS
    peak: Annotated[float, typer.Option(help="Learning rate.")] = 2e-3
    batch: int
    compiled: Annotated[bool, typer.Option(help="Compile what is between the products; needs a C++ compiler.")] = True


def command(options: type[Run], training: Callable[[Run, int], Trainer[Any, Run]]) -> None:
    """Run a trainer in as many processes as the command line asks for; its options are those of `options`."""

    def main(**given: Any) -> None:
        chosen = options(**given)
        in_processes(_run, chosen.processes, training, chosen)

    hints = get_type_hints(options, include_extras=True)
    fields = [field.replace(annotation=hints[name]) for name, field in inspect.signature(options).parameters.items()]
    main.__signature__ = inspect.Signature(fields)  # type: ignore[attr-defined]
    main.__annotations__ = hints
    typer.run(main)


def _run(rank: int, training: Callable[[Run, int], Trainer[Any, Run]], options: Run) -> None:
    training(options, rank).run()


def compile_between() -> None:
    """Have compiled what the convolutional networks do between their products."""
    unet.normed = torch.compile(unet.normed, dynamic=True)
    unet.modulated = torch.compile(unet.modulated, dynamic=True)


def learning_rate(peak: float, step: int, left_s: float, decay_s: float) -> float:
    """Warm-up, constant, and a linear fall over the last `decay_s` seconds."""
    return peak * min(1.0, (step + 1) / _WARM_UP, max(0.02, left_s / decay_s))


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint in one move."""
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


class Report:
    """Mean values of each kind since the last line."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, values: dict[str, float]) -> None:
        """Take one step's."""
        for kind, value in values.items():
            self._values[kind].append(value)

    def print_sometimes(self, progress: dict[str, float]) -> None:
        """A line if the last one is half a minute old."""
        if time.monotonic() < self._last + 30:
            return
        done = ", ".join(f"{number:.0f} {name}" for name, number in progress.items())
        means = (f"{kind}: {sum(some) / len(some):.4f} ({len(some)})" for kind, some in sorted(self._values.items()))
        print(f"{done}; {', '.join(means)}", flush=True)
        self._last = time.monotonic()
        self._values.clear()


class Trainer(ABC, Generic[B, Run]):
    """What one worker does; the first one (rank 0) reports and saves."""

    unit: str
    """What is counted beside steps and seconds."""
    net: Any
    text_encoder: TextEncoder
    heads: nn.Module | None = None
    """What is trained along, by Adam, and not exported."""

    def __init__(self, options: Run, rank: int, device: str = "cpu") -> None:
        torch.manual_seed(options.seed)  # the weights begin alike everywhere
        torch.set_num_threads(1)
        self.options, self.rank, self.device = options, rank, device
        self.checkpoint, start = options.runs / f"{options.name}.pt", options.runs / f"{options.start}.pt"
        source = self.checkpoint if self.checkpoint.exists() else start
        state = torch.load(source, map_location=device, weights_only=False) if source.exists() else None
        exported = Path(options.start) if options.start and state is None else None
        if exported is not None and not (exported / "world.json").exists():
            raise typer.BadParameter(f"{options.start!r}: neither {start} is there nor {exported / 'world.json'}")
        self.progress = {"steps": 0.0, self.unit: 0.0, "seconds": 0.0}
        self.build(None if state is None else state["net_config"], exported)
        self.optimizer = Optimizer([self.net, self.text_encoder], options.ema)
        self.head_optimizer = None if self.heads is None else torch.optim.Adam(self.heads.parameters(), _HEAD_RATE)
        if state is not None:
            self.resume(state)
        done = options.seed + int(self.progress["steps"])
        torch.manual_seed(done + 1_000_003 * rank)
        self.batches = self.draws(done)
        if rank == 0:
            size = sum(parameter.numel() for parameter in self.net.parameters()) / 1e6
            print(f"{size:.1f} M weights, {self.progress}", flush=True)

    @abstractmethod
    def build(self, config: dict[str, Any] | None, exported: Path | None) -> None:
        """Make the network and the text encoder: of a checkpoint's configuration, of exported weights, or new."""

    @abstractmethod
    def draws(self, seed: int) -> Iterator[B]:
        """Batches without end."""

    @abstractmethod
    def loss_of(self, batch: B) -> tuple[Tensor, dict[str, float], float]:
        """What is to become less, what to report of it, and how much of `unit` the batch is."""

    def run(self) -> None:
        """Train for the time given, with a line every half minute and a checkpoint every two."""
        options, report = self.options, Report()
        begun = saved = time.monotonic()
        left_s = agreed(60 * options.minutes)
        while left_s > 0:
            now = time.monotonic()
            later_s, decay_s = 60 * options.later_minutes, 60 * options.decay_minutes
            rate = learning_rate(options.peak, self.optimizer.steps, left_s + later_s, decay_s)
            report.add(self.take_step(next(self.batches), rate))
            self.progress["seconds"] += time.monotonic() - now
            if self.progress["steps"] % LOCAL_STEPS == 0:
                left_s = agreed(begun + 60 * options.minutes - time.monotonic())
            if self.rank == 0:
                report.print_sometimes(self.progress)
                if now > saved + 120:
                    self.save()
                    saved = now
        if self.rank == 0:
            self.save()

    def take_step(self, batch: B, rate: float) -> dict[str, float]:
        """One batch; returns what to report."""
        loss, values, amount = self.loss_of(batch)
        loss.backward()
        self.optimizer.step(rate)
        if self.head_optimizer is not None:
            self.head_optimizer.step()
            self.head_optimizer.zero_grad()
        self.progress["steps"] += 1
        if self.progress["steps"] % LOCAL_STEPS == 0:
            heads = [] if self.heads is None else list(self.heads.parameters())
            average_weights([*self.optimizer.parameters, *heads])
        self.progress[self.unit] += amount * self.options.processes
        return values

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "net": self.net.state_dict(),
            "text_encoder": self.text_encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": self.progress,
            "net_config": dict(self.net.config),
            "text_config": dict(self.text_encoder.config),
        }
        save(self.checkpoint, {**state, **self.more()})

    def more(self) -> dict[str, Any]:
        """What else belongs to a checkpoint."""
        return {}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's contents."""
        self.net.load_state_dict(state["net"])
        self.text_encoder.load_state_dict(state["text_encoder"])
        self.progress = state["progress"]
        self.optimizer.load_state_dict(state["optimizer"])


class PartTrainer(Trainer[B, Part]):
    """Trains a network that stands beside the denoiser, which stays as it is."""

    kind: type[Stored]
    """What is trained; in exported weights it is in the folder of its checkpoint's usual name."""

    def __init__(self, options: Part, rank: int) -> None:
        if options.compiled:
            compile_between()
        super().__init__(options, rank)

    def build(self, config: dict[str, Any] | None, exported: Path | None) -> None:
        """See `Trainer`."""
        self.text_encoder = load_component(TextEncoder, self.options.weights / "text_encoder")
        if exported is None:
            self.net = self.kind(**(config or self.new()))
        else:
            self.net = load_component(self.kind, exported / type(self.options).name).train().requires_grad_(True)

    def new(self) -> dict[str, Any]:
        """How a new network is built."""
        return {}
