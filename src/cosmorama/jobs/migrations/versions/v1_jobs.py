"""The jobs."""

from alembic import op
from sqlalchemy import BigInteger, Column, Float, Integer, String, Text, UniqueConstraint

revision, down_revision = "1", None


def upgrade() -> None:
    """Make the table, and the one that tells releases without alembic how new it is."""
    texts = {"id": 64, "state": 16, "owner": 64, "dialect": 64, "model": 256, "fingerprint": 64, "stage": 16}
    optional = {"idempotency_key": 256, "holder": 64, "waiter": 64, "media_type": 64, "result_key": 256}
    counts = ["priority", "attempts", "blamed", "step", "total", "webhook_attempts"]
    times = ["started_at", "finished_at", "deadline_at", "lease_until", "waiter_until", "remaining_s", "webhook_due"]
    op.create_table(
        "cosmorama_jobs",
        Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        *(Column(name, String(length), nullable=False, unique=name == "id") for name, length in texts.items()),
        *(Column(name, String(length)) for name, length in optional.items()),
        *(Column(name, Text, nullable=False) for name in ("request", "labels")),
        *(Column(name, Text) for name in ("cancel_error", "error", "outcome", "webhook_url")),
        *(Column(name, Float(53), nullable=name != "created_at") for name in ("created_at", *times)),
        *(Column(name, Integer, nullable=False) for name in counts),
        *(Column(name, BigInteger, nullable=False) for name in ("result_bytes", "input_bytes")),
        UniqueConstraint("owner", "idempotency_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("cosmorama_jobs_by_state", "cosmorama_jobs", ["state", "seq"])
    op.create_index("cosmorama_jobs_by_webhook", "cosmorama_jobs", ["webhook_due"])
    op.create_table("cosmorama_schema", Column("version", Integer, primary_key=True))
    op.execute("INSERT INTO cosmorama_schema VALUES (1)")
