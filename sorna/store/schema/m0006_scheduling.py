"""Agents that are being drained; knows SQL only.

That an agent is to get no new kernels outlives every manager and the agent itself, so it stands beside its key.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    ALTER TABLE agents
        ADD COLUMN drained_since timestamptz,
        ADD COLUMN drain_deadline timestamptz,
        ADD CONSTRAINT agents_drain_check CHECK (drain_deadline IS NULL OR drained_since IS NOT NULL)
    """,
)


def upgrade() -> None:
    """Make the columns."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: an agent that is drained would get kernels again."""
    raise NotImplementedError("drained agents would be forgotten")
