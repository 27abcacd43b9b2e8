"""`cosmorama bench` against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from cosmorama.bench import Bench, BenchError, Plan, Run, Target, measure, plot, read_body, spread
from cosmorama.cli import app
from cosmorama.errors import InvalidRequestError
from tests.serving import Running, running_server
from tests.tiny import save_tiny

SMALL = {"width": 64, "height": 64, "frames_count": 9, "frames_per_sec": 24}
QUICK = {"prompt": "a red ball", "steps": 2, "video_params": SMALL}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("bench")
    # Sizes that the API's contract does not name are the model's own business here.
    model = save_tiny(folder / "tiny", sizes=((64, 64), (960, 704), (1280, 704)))
    with running_server(model, folder, COSMORAMA_MAX_QUEUE="3", COSMORAMA_API_KEYS="me:secret") as running:
        yield running


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("infer", QUICK),
        ("jobs", {"dialect": "cosmorama", "prompt": "a red ball", "steps": 2, "frames": 9, "width": 64, "height": 64}),
        ("videos", {"prompt": "a red ball", "size": "64x64", "seconds": "1"}),
    ],
)
def test_every_dialect_is_measured(server: Running, target: Target, body: dict[str, object]) -> None:
    plan = Plan(target, body, requests=4, poll_s=0.02)
    report = asyncio.run(measure(server.url, plan, concurrency=(1, 2), api_key="secret"))
    json.dumps(report)
    assert [run["concurrency"] for run in report["runs"]] == [1, 2]
    for run in report["runs"]:
        assert (run["completed"], run["failed"]) == (4, 0)
        assert 0 < run["latency_s"]["min"] <= run["latency_s"]["p50"] <= run["latency_s"]["p99"] <= run["wall_s"]
        assert run["throughput_per_s"] == pytest.approx(4 / run["wall_s"], rel=0.01)
        assert (run["accepted_s"] is None) == (target == "infer")


def test_what_fails_is_counted_by_its_reason_and_not_as_latency(server: Running) -> None:
    slow = {**QUICK, "steps": 50, "video_params": {**SMALL, "frames_count": 121}}
    plan = Plan("infer", slow, requests=16)
    report = asyncio.run(measure(server.url, plan, rates=(1000,), concurrency=(), warm_up=0, api_key="secret"))
    (run,) = report["runs"]
    assert run["failed"] > 0
    assert run["completed"] + run["failed"] == 16
    assert all(reason.startswith("429") for reason in run["failures"])


def test_cancelling_is_timed(server: Running) -> None:
    body = {"dialect": "cosmorama", "prompt": "a red ball", "steps": 50, "frames": 121, "width": 1280, "height": 704}
    plan = Plan("jobs", body, requests=1, cancels=2, poll_s=0.02)
    report = asyncio.run(measure(server.url, plan, concurrency=(), warm_up=0, api_key="secret"))
    assert report["cancel"]["cancelled"] + report["cancel"]["ended_before"] == 2
    assert report["cancel"]["cancelled"] >= 1
    assert 0 < report["cancel"]["cancel_s"]["max"] < 60


@pytest.mark.parametrize(
    ("plan", "key", "said"),
    [
        (Plan("infer", QUICK), "wrong", "401"),
        (Plan("infer", QUICK, path="/nowhere"), "secret", "404"),
        (Plan("infer", QUICK | {"steps": 99}), "secret", "422 .*: .*steps: 99 is not accepted"),
        (Plan("jobs", {"prompt": "a", "seconds": "4"}), "secret", "seconds"),
        (Plan("infer", QUICK, cancels=1), "secret", "no job to cancel"),
    ],
)
def test_a_server_that_cannot_be_measured_is_told_at_once_in_its_own_words(
    server: Running, plan: Plan, key: str, said: str
) -> None:
    with pytest.raises(BenchError, match=said):
        asyncio.run(measure(server.url, plan, api_key=key))


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(BenchError, match="ConnectError"):
        asyncio.run(measure("http://127.0.0.1:1", Plan("infer", QUICK)))


def test_another_path_is_measured(server: Running) -> None:
    body = {"prompt": "a red ball", "size": "64x64", "seconds": "1"}
    report = asyncio.run(measure(server.url, Plan("infer", body, requests=2, path="/v1/videos/sync"), api_key="secret"))
    assert report["runs"][0]["completed"] == 2


def test_the_command_prints_json_and_draws(server: Running, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    (tmp_path / "body.json").write_text(json.dumps(QUICK))
    arguments = ["bench", server.url, "--body", str(tmp_path / "body.json"), "--requests", "2", "--concurrency", "1,2"]
    arguments += ["--plot", str(tmp_path / "plot.png"), "-o", str(tmp_path / "out.json"), "--api-key", "secret"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "out.json").read_text())
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "options",
    [
        "--concurrency 0",
        "--concurrency two",
        "--rate -1",
        "--rate nan",
        "--body /no",
        "-o /no/a.json",
        "--plot /no/a.png",
    ],
)
def test_mistakes_are_one_sentence(options: str) -> None:
    done = CliRunner().invoke(app, ["bench", "http://127.0.0.1:1", *options.split()])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1


def test_spread_of_known_numbers() -> None:
    assert spread([]) is None
    assert spread([2.0]) == dict.fromkeys(("mean", "min", "p50", "p90", "p95", "p99", "max"), 2.0)
    assert spread([float(n) for n in range(101)]) == {
        "mean": 50, "min": 0, "p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100,
    }  # fmt: skip


def test_a_body_must_be_an_object(tmp_path: Path) -> None:
    for text in ("[1]", "{", '{"seed":1,"seed":2}'):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(InvalidRequestError, match="JSON object"):
            read_body(tmp_path / "b.json")


def test_runs_without_a_success_are_left_out_of_the_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    run = {"concurrency": 1, "rate_per_s": None, "latency_s": None, "completed": 0, "failed": 2, "wall_s": 1.0}
    plot({"runs": [run], "plan": {"target": "infer", "requests": 2}, "url": "x"}, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 0


@pytest.mark.parametrize(("missed", "failures"), [(4, {}), (5, {"ReadError": 1})])
def test_a_look_that_fails_is_not_a_job_that_does(missed: int, failures: dict[str, int]) -> None:
    looks = iter(range(100))

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, json={"id": "a"})
        if next(looks) < missed:
            raise httpx.ReadError("closed")
        return httpx.Response(200, json={"id": "a", "state": "succeeded"})

    async def run() -> Run:
        async with Bench("http://server", Plan("jobs", {}, requests=1, poll_s=0)) as bench:
            bench._http = httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(answer))
            return await bench.closed(1)

    assert asyncio.run(run()).failures == failures
