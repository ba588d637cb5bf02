"""Tickets by which agents enrol themselves, agents that were taken back, and the key that all managers share; knows SQL only.

Of a ticket only a hash of its secret is kept. A revoked agent keeps its row, so that a key that lies in a file somewhere does not
bring it back.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    ALTER TABLE agents
        ADD COLUMN endpoint text NOT NULL DEFAULT '',
        ADD COLUMN revoked_at timestamptz
    """,
    """
    CREATE TABLE agent_tickets (
        id uuid PRIMARY KEY,
        secret_hash text NOT NULL CHECK (length(secret_hash) = 64),
        agent_id text CHECK (agent_id <> ''),
        made_by text NOT NULL,
        made_at timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        used_at timestamptz,
        used_by text,
        used_key text,
        CONSTRAINT agent_tickets_used_check
            CHECK ((used_at IS NULL) = (used_by IS NULL) AND (used_at IS NULL) = (used_key IS NULL))
    )
    """,
    "CREATE INDEX agent_tickets_by_end ON agent_tickets (expires_at)",
    """
    CREATE TABLE cluster_keys (
        name text PRIMARY KEY CHECK (name = 'manager'),
        public_key text NOT NULL CHECK (length(public_key) = 40),
        secret_key text NOT NULL CHECK (length(secret_key) = 40),
        made_at timestamptz NOT NULL
    )
    """,
)


def upgrade() -> None:
    """Make the tables and the columns."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: agents know the key that would be lost."""
    raise NotImplementedError("the managers' key would be lost")
