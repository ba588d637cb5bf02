"""Agents that are being drained, and kernels that wait for an agent; knows SQL only.

That an agent is to get no new kernels outlives every manager and the agent itself, so it stands beside its key. A kernel that
waits is a row like every other, with its quota, its place in the order and what its row does not say of the wish.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    ALTER TABLE agents
        ADD COLUMN drained_since timestamptz,
        ADD COLUMN drain_deadline timestamptz,
        ADD CONSTRAINT agents_drain_check CHECK (drain_deadline IS NULL OR drained_since IS NOT NULL)
    """,
    """
    ALTER TABLE kernels
        DROP CONSTRAINT kernels_status_check,
        ADD CONSTRAINT kernels_status_check CHECK (
            status IN ('PENDING', 'PREPARING', 'RUNNING', 'RESTARTING', 'TERMINATING', 'TERMINATED', 'ERROR')
        ),
        ADD COLUMN queue_turn bigint,
        ADD COLUMN queue_deadline timestamptz,
        ADD COLUMN queue_wish jsonb,
        ADD CONSTRAINT kernels_queue_check CHECK (
            (queue_turn IS NULL) = (queue_deadline IS NULL) AND (queue_turn IS NULL) = (queue_wish IS NULL)
            AND (status <> 'PENDING' OR queue_turn IS NOT NULL)
        )
    """,
    "CREATE INDEX kernels_waiting ON kernels (queue_turn, created_at, id) WHERE status = 'PENDING'",
)


def upgrade() -> None:
    """Make the columns."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: an agent that is drained would get kernels again."""
    raise NotImplementedError("drained agents would be forgotten")
