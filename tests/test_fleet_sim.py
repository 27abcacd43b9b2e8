"""The simulated fleet against what is known without simulating."""

from __future__ import annotations

from benchmarks.fleet_sim import Costs, Fleet, Simulation

FREE = Costs(accept_ms=0, claim_ms=0, finish_ms=0, heartbeat_ms=0, per_held_ms=0, read_ms=0, per_row_ms=0)


def test_a_database_that_costs_nothing_costs_no_clip() -> None:
    report = Simulation(Fleet(4, clip_s=30, load=0.7, held=1, put_s=0, tick_s=0.5, hours=0.5), FREE).run()
    assert report["accepted"] > 100
    assert report["finished"] >= report["accepted"] - 12  # those that are under way at the end
    assert report["database_busy"] == 0
    # Nobody tells of arrivals here: a free server finds a clip at its next look, half a second later at most.
    assert report["total_s"]["p50"] - report["total_ideal_s"]["p50"] < 1.5
    assert report["leases_missed"] == 0


def test_a_database_that_is_too_slow_is_busy_all_the_time_and_leases_are_missed() -> None:
    slow = Costs(heartbeat_ms=4000, read_ms=4000)
    report = Simulation(Fleet(20, clip_s=30, cores=1, lease_s=5, hours=0.2), slow).run()
    assert report["database_busy"] > 0.99
    assert report["leases_missed"] > 0


def test_a_claim_that_the_database_decides_is_hardly_ever_lost() -> None:
    fleet = {"gpus": 50, "clip_s": 20, "load": 0.9, "burst": 100, "hours": 0.1}
    herd = Simulation(Fleet(**fleet, claim_from=1), Costs(claim_ms=20)).run()
    decided = Simulation(Fleet(**fleet), Costs(claim_ms=20)).run()
    assert herd["claims_lost"] > 0.3 > decided["claims_lost"]
    assert decided["finished"] >= 0.98 * herd["finished"]  # whose clips come in another order


def test_the_same_seed_gives_the_same_fleet() -> None:
    assert Simulation(Fleet(3, hours=0.2), Costs()).run() == Simulation(Fleet(3, hours=0.2), Costs()).run()
