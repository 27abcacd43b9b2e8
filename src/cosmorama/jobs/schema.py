"""The table that jobs are kept in, and how a row becomes a `Job`."""

from __future__ import annotations

import json
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from cosmorama.engine.scheduler import PRIORITIES
from cosmorama.jobs.codec import unpack_error, unpack_outcome, unpack_request
from cosmorama.jobs.record import Job, JobResult, State
from cosmorama.progress import Progress, Stage

SCHEMA_VERSION = 1

metadata = MetaData()
version = Table("cosmorama_schema", metadata, Column("version", Integer, primary_key=True))
jobs = Table(
    "cosmorama_jobs",
    metadata,
    # The order of acceptance.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("dialect", String(64), nullable=False),
    Column("model", String(256), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("request", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("idempotency_key", String(256)),
    Column("fingerprint", String(64), nullable=False),
    Column("created_at", Float(53), nullable=False),
    Column("started_at", Float(53)),
    Column("finished_at", Float(53)),
    Column("deadline_at", Float(53)),
    # Which server runs it, until when that may be believed, and how often one began to.
    Column("holder", String(64)),
    Column("lease_until", Float(53)),
    Column("attempts", Integer, nullable=False, default=0),
    # How much it is suspected of the deaths of processes that held it.
    Column("blamed", Integer, nullable=False, default=0),
    # Which server a client waits at, for jobs that are for nobody else, and until when that may be believed.
    Column("waiter", String(64)),
    Column("waiter_until", Float(53)),
    # The error to end with, once its holder has seen that a running job is to be cancelled.
    Column("cancel_error", Text),
    Column("stage", String(16), nullable=False, default="queued"),
    Column("step", Integer, nullable=False, default=0),
    Column("total", Integer, nullable=False, default=0),
    Column("remaining_s", Float(53)),
    Column("error", Text),
    Column("outcome", Text),
    Column("media_type", String(64)),
    # Key in the artifact store; null once the file was removed.
    Column("result_key", String(256)),
    Column("result_bytes", BigInteger, nullable=False, default=0),
    Column("input_bytes", BigInteger, nullable=False, default=0),
    Column("webhook_url", Text),
    # When to try the webhook next; null when there is nothing (more) to send.
    Column("webhook_due", Float(53)),
    Column("webhook_attempts", Integer, nullable=False, default=0),
    UniqueConstraint("owner", "idempotency_key"),
    Index("cosmorama_jobs_by_state", "state", "seq"),
    Index("cosmorama_jobs_by_webhook", "webhook_due"),
    sqlite_autoincrement=True,
)


def job_of(row: RowMapping | dict[str, Any]) -> Job:
    """The job in a row, without what depends on other rows (queue position, ETA)."""
    return Job(
        id=row["id"],
        state=cast("State", row["state"]),
        dialect=row["dialect"],
        model=row["model"],
        owner=row["owner"],
        request=unpack_request(row["request"]),
        priority=PRIORITIES[row["priority"]],
        created_at=row["created_at"],
        metadata=json.loads(row["labels"]),
        progress=Progress(cast("Stage", row["stage"]), row["step"], row["total"], remaining_s=row["remaining_s"]),
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        deadline_at=row["deadline_at"],
        attempts=row["attempts"],
        error=None if row["error"] is None else unpack_error(row["error"]),
        result=None
        if row["outcome"] is None
        else JobResult(unpack_outcome(row["outcome"]), row["media_type"], row["result_bytes"], row["result_key"]),
        idempotency_key=row["idempotency_key"],
        webhook_url=row["webhook_url"],
        attached=row["waiter"] is not None,
    )
