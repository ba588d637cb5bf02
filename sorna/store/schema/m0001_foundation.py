"""Keypairs, enrolled agents and kernels: what the first system needs; knows SQL only.

Times are ``timestamptz``. Limits and environment are values that SQL never looks into, so they are JSON.
A quota is a counter beside its limit, in one row: one UPDATE takes a place, and only when there is one.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    CREATE TABLE keypairs (
        access_key text PRIMARY KEY CHECK (access_key <> ''),
        secret_key text NOT NULL,
        user_id bigint NOT NULL,
        is_active boolean NOT NULL,
        is_admin boolean NOT NULL,
        concurrency_limit integer NOT NULL CHECK (concurrency_limit >= 0),
        concurrency_used integer NOT NULL CHECK (concurrency_used >= 0),
        rate_limit integer NOT NULL CHECK (rate_limit >= 0),
        num_queries bigint NOT NULL CHECK (num_queries >= 0),
        created_at timestamptz NOT NULL DEFAULT now(),
        last_used timestamptz
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE agents (
        agent_id text PRIMARY KEY CHECK (agent_id <> ''),
        public_key text NOT NULL CHECK (length(public_key) = 40),
        enrolled_at timestamptz NOT NULL
    )
    """,
    """
    CREATE TABLE kernels (
        id uuid PRIMARY KEY,
        access_key text NOT NULL REFERENCES keypairs,
        session_token text NOT NULL,
        runtime text NOT NULL,
        requested_runtime text NOT NULL,
        status text NOT NULL CHECK (
            status IN ('PREPARING', 'RUNNING', 'RESTARTING', 'TERMINATING', 'TERMINATED', 'ERROR')
        ),
        status_reason text NOT NULL,
        status_changed_at timestamptz NOT NULL,
        created_at timestamptz NOT NULL,
        terminated_at timestamptz,
        agent_id text,
        limits jsonb NOT NULL,
        environ jsonb NOT NULL,
        tag text,
        num_queries bigint NOT NULL CHECK (num_queries >= 0),
        cpu_used double precision NOT NULL,
        mem_max_bytes bigint NOT NULL,
        mem_cur_bytes bigint NOT NULL,
        net_rx_bytes bigint NOT NULL,
        net_tx_bytes bigint NOT NULL,
        io_read_bytes bigint NOT NULL,
        io_write_bytes bigint NOT NULL,
        io_max_scratch_size bigint NOT NULL,
        io_cur_scratch_size bigint NOT NULL,
        CONSTRAINT kernels_terminated_at_check
            CHECK ((terminated_at IS NOT NULL) = (status IN ('TERMINATED', 'ERROR')))
    )
    """,
    # A session token is unique among an owner's live kernels; this index is what makes it so across managers.
    """
    CREATE UNIQUE INDEX kernels_live_token ON kernels (access_key, session_token)
        WHERE status NOT IN ('TERMINATED', 'ERROR')
    """,
    "CREATE INDEX kernels_live ON kernels (id) WHERE status NOT IN ('TERMINATED', 'ERROR')",
    "CREATE INDEX kernels_live_by_agent ON kernels (agent_id, id) WHERE status NOT IN ('TERMINATED', 'ERROR')",
    "CREATE INDEX kernels_by_owner ON kernels (access_key, session_token, created_at DESC, id DESC)",
)


def upgrade() -> None:
    """Make the tables."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: what the tables hold cannot be made again."""
    raise NotImplementedError("there is nothing before the first migration")
