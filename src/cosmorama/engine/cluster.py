"""Workers as replicas of Ray Serve, for `cosmorama fleet`: Ray places and scales them and carries what goes across.

The job store stays the queue. The dispatcher claims a job under its lease and makes a streaming call to a replica, so
that Serve sees an ongoing request: it drains, cancels and scales by that. A replica is a `Supervisor` with its worker
process, as every server has one; progress, previews and the clip's bytes come back over the call, as far as somebody
wants them (`Wishes`). The death of a replica is the death of a worker: the job goes back into the queue. The death of
the server ends the calls that it made.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cosmorama.engine.outcome import Outcome
from cosmorama.engine.replica import Replica, Wishes, fingerprint, of_a_replica
from cosmorama.engine.supervisor import Held, Worker
from cosmorama.engine.worker import Advanced, Finished, Previewed, Submit
from cosmorama.errors import CosmoramaError, NotReadyError, WorkerDiedError, WorkerError
from cosmorama.settings import Settings

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


class Replicas(Worker):
    """The replicas of one model on a Ray cluster."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._lost: set[str] = set()
        self._name = "cosmorama-" + re.sub(r"[^A-Za-z0-9._-]+", "-", settings.name or settings.model).strip("-")
        self._handle: Any = None
        self._wishes: Any = None
        self._keeper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Future[Any]] = set()

    @property
    def restarts(self) -> int:
        return len(self._lost)

    async def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Stop calling; see `_Cluster.leave` for what becomes of the replicas."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        self.ready, self.reason = False, "the server is stopping"
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(_CLUSTER.leave)

    async def _make(self, wanted: Submit, generation: Held) -> Outcome:
        name = wanted.job
        stream = self._handle.generate.remote(
            wanted.request, name, wanted.priority, wanted.age_s, wanted.owner, self._wishes
        )
        ended = False
        try:
            with wanted.output.open("wb") as clip:
                async for event in stream:
                    match event:
                        case str():
                            generation.replica = event
                        case Advanced(_, progress):
                            generation.progress = progress
                            generation.on_progress(progress)
                        case Previewed(_, jpeg):
                            generation.on_preview(jpeg)
                        case bytes():
                            clip.write(event)
                        case Finished(_, result):
                            ended = True
                            if isinstance(result, CosmoramaError):
                                raise result
                            return replace(result, path=wanted.output)
            raise WorkerDiedError("the replica stopped while it made this clip")
        except RayTaskError as error:
            log.error("a replica failed: %s", error)
            raise WorkerError(f"the replica failed: {type(error.cause).__name__}") from None
        except (RayError, RayServeException) as error:
            log.warning("a replica is gone: %s", error)
            self._lost |= {generation.replica} - {""}
            raise WorkerDiedError(
                f"the replica died ({type(error).__name__}) while it made this clip", with_server=True
            ) from None
        finally:
            generation.released.set()
            self.watch(name, False)
            del self._generations[name]
            if not ended:
                self._later(asyncio.to_thread(stream.cancel))

    async def check(self, text: str, called: str) -> None:
        if not self.ready:
            raise NotReadyError(self.reason)
        try:
            refused: CosmoramaError | None = await self._handle.options(stream=False).check.remote(text, called)
        except (RayError, RayServeException) as error:
            raise NotReadyError(f"the replica failed ({type(error).__name__})") from None
        if refused is not None:
            raise refused

    def watch(self, name: str, watched: bool) -> None:
        if (generation := self._generations.get(name)) is not None and generation.watched != watched:
            generation.watched = watched
            self._wishes.watch.remote(name, watched)

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self) -> None:
        """Deploy, then look what became of it, for as long as this runs."""
        while True:
            try:
                if self._handle is None:
                    await asyncio.to_thread(_CLUSTER.enter)
                    _keep_handling(signal.SIGTERM)
                    self._wishes = _beside_this_process(Wishes)
                    self._handle = await asyncio.to_thread(self._deploy)
                await self._look()
            except Exception as error:  # the cluster is not there, or not any more  # noqa: BLE001
                log.error("Ray cannot be used: %s", error)
                self.ready, self.reason = False, f"Ray cannot be used ({type(error).__name__})"
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        app = (await asyncio.to_thread(serve.status)).applications.get(self._name)
        if app is None:
            self._handle = None
            raise RuntimeError(f"the application {self._name} was deleted; deploying it again")
        states = [deployment.replica_states for deployment in app.deployments.values()]
        running = sum(count for each in states for state, count in each.items() if state == "RUNNING")
        loaded = self.capabilities is not None
        if running and not loaded:
            self.capabilities = await self._handle.options(stream=False).capabilities.remote()
        resting = self._settings.min_replicas == 0 and app.status == "RUNNING"
        self.ready = self.capabilities is not None and (running > 0 or resting)
        if self.ready:
            self.reason = "ready"
        elif app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            self.reason = f"the model could not be loaded: {_last_line(app)}"
        else:
            waits = next((each.message for each in app.deployments.values() if each.message), "")
            self.reason = f"the model is loading: {waits}" if waits else "the model is loading"
        if self.ready and not loaded:
            self.on_ready()

    def _deploy(self) -> Any:
        """Have Serve run the application, if it does not yet as it should; a handle for calls to it. Blocking."""
        replicas = self._settings.replicas
        least = replicas if self._settings.min_replicas is None else self._settings.min_replicas
        options: dict[str, Any] = {"num_replicas": replicas}
        if least < replicas:
            options = {
                "autoscaling_config": {
                    "min_replicas": least,
                    "initial_replicas": max(least, 1),  # what the model takes is to be known
                    "max_replicas": replicas,
                    "target_ongoing_requests": self._settings.max_active,
                    "downscale_delay_s": self._settings.replica_idle_s,
                }
            }
        deployment = serve.deployment(
            Replica,
            name="Replica",
            ray_actor_options=_resources(self._settings),
            # The one more is for a short clip that goes before all of them.
            max_ongoing_requests=self._settings.max_active + 1,
            graceful_shutdown_timeout_s=self._settings.drain_s,
            health_check_timeout_s=60,
            **options,
        )
        settings = of_a_replica(self._settings)
        # Serve starts all replicas anew where the version is another one, and makes one up where none is given.
        deployment = deployment.options(version=fingerprint(settings), _internal=True)
        target = serve.RunTarget(deployment.bind(settings), name=self._name, route_prefix=None)
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        return handle.options(stream=True)


class _Cluster:
    """This process's connection to Ray: to the cluster of RAY_ADDRESS or of this machine, else to one of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own = False

    def enter(self) -> None:
        """Connect, if nobody has yet.

        Raises:
            ConnectionError: the cluster of RAY_ADDRESS is not there.
        """
        with self._lock:
            if not ray.is_initialized():
                address = os.environ.get("RAY_ADDRESS") or "auto"
                options: dict[str, Any] = {"configure_logging": False, "log_to_driver": True}
                try:
                    self._own = address == "local"
                    if not self._own:
                        ray.init(address, **options)
                except ConnectionError:
                    if address != "auto":
                        raise
                    self._own = True
                if self._own:
                    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of this machine
                    ray.init("local", include_dashboard=False, **options)
                log.info("generating on a Ray cluster %s", "of this process" if self._own else "that is there")
            serve.start(proxy_location="Disabled")  # what answers clients is this process

    def leave(self) -> None:
        """End the cluster if it is this process's. One that others began keeps its replicas, for who comes next."""
        with self._lock:
            if self._own:
                self._own = False
                serve.shutdown()
                ray.shutdown()


_CLUSTER = _Cluster()


def _keep_handling(number: signal.Signals) -> None:
    """Take a signal back from Ray, which takes it to be a crash and aborts the process three seconds later."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, signal.getsignal(number))


def _beside_this_process(kind: type) -> Any:
    """An actor on this machine that ends with this process; of few calls, many of which wait."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": 10_000}
    return ray.remote(kind).options(**options, scheduling_strategy=here).remote()


def _resources(settings: Settings) -> dict[str, float]:
    """What Ray keeps for a replica."""
    wanted: dict[str, float] = {"num_cpus": settings.threads or 1}
    kind = settings.device.partition(":")[0]
    if kind == "cuda" or (kind == "auto" and ray.cluster_resources().get("GPU", 0) > 0):
        wanted["num_gpus"] = settings.parallel_processes if settings.parallel != "none" else 1
    return wanted


def _last_line(app: Any) -> str:
    messages = [deployment.message for deployment in app.deployments.values()] + [app.message]
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
