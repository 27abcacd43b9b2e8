"""What alembic runs to bring a job store to this release, within the transaction of `Database.create`."""

from alembic import context

context.configure(**context.config.attributes)
context.run_migrations()
