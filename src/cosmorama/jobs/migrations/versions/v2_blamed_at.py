"""How far a job was when a process died that held it."""

from alembic import op
from sqlalchemy import Column, Integer

revision, down_revision = "2", "1"


def upgrade() -> None:
    """Add the column."""
    op.add_column("cosmorama_jobs", Column("blamed_at", Integer, nullable=False, server_default="0"))
    op.execute("UPDATE cosmorama_schema SET version = 2")
