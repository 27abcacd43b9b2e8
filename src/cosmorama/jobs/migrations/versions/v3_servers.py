"""The servers that share a store, and what they tell each other.

Releases before made these tables beside the versions, so that a store may have some of them.
"""

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, Float, Integer, LargeBinary, String, Text

revision, down_revision = "3", "2"


def upgrade() -> None:
    """Make what is missing of them, and the triggers that send news."""
    op.create_table(
        "cosmorama_servers",
        Column("id", String(64), primary_key=True),
        Column("role", String(16), nullable=False),
        Column("models", Text, nullable=False),
        Column("ready", Boolean, nullable=False),
        *(Column(name, Integer, nullable=False) for name in ("places", "active")),
        *(Column(name, Float(53), nullable=False) for name in ("started_at", "seen_at")),
        if_not_exists=True,
    )
    op.create_table(
        "cosmorama_models",
        Column("source", Text, primary_key=True),
        Column("capabilities", Text, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "cosmorama_watchers",
        Column("job_id", String(64), primary_key=True),
        Column("server", String(64), primary_key=True),
        Column("until", Float(53), nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "cosmorama_previews",
        Column("job_id", String(64), primary_key=True),
        Column("number", BigInteger, nullable=False),
        Column("jpeg", LargeBinary, nullable=False),
        if_not_exists=True,
    )
    if op.get_bind().dialect.name == "postgresql":
        op.get_bind().exec_driver_sql(TRIGGERS)


TRIGGERS = """
CREATE OR REPLACE FUNCTION cosmorama_news() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'cosmorama_watchers' THEN
        PERFORM pg_notify('cosmorama_' || md5(holder), 'watched ' || id)
            FROM cosmorama_jobs WHERE id = NEW.job_id AND holder IS NOT NULL;
    ELSIF TG_TABLE_NAME = 'cosmorama_previews' THEN
        PERFORM pg_notify('cosmorama_' || md5(server), 'preview ' || job_id)
            FROM cosmorama_watchers WHERE job_id = NEW.job_id;
    ELSIF TG_OP = 'INSERT' OR NEW.state <> OLD.state THEN
        PERFORM pg_notify('cosmorama', CASE NEW.state WHEN 'queued' THEN 'queued ' ELSE 'moved ' END || NEW.id);
    ELSE
        IF NEW.cancel_error IS NOT NULL AND OLD.cancel_error IS NULL AND NEW.holder IS NOT NULL THEN
            PERFORM pg_notify('cosmorama_' || md5(NEW.holder), 'cancel ' || NEW.id);
        END IF;
        IF (NEW.stage, NEW.step) IS DISTINCT FROM (OLD.stage, OLD.step) THEN
            PERFORM pg_notify('cosmorama_' || md5(server), 'moved ' || job_id)
                FROM cosmorama_watchers WHERE job_id = NEW.id;
        END IF;
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER cosmorama_tell AFTER INSERT OR UPDATE OF state, stage, step, cancel_error
    ON cosmorama_jobs FOR EACH ROW EXECUTE FUNCTION cosmorama_news();
CREATE OR REPLACE TRIGGER cosmorama_tell AFTER INSERT OR UPDATE
    ON cosmorama_watchers FOR EACH ROW EXECUTE FUNCTION cosmorama_news();
CREATE OR REPLACE TRIGGER cosmorama_tell AFTER INSERT OR UPDATE
    ON cosmorama_previews FOR EACH ROW EXECUTE FUNCTION cosmorama_news();
"""
