"""Resource policies, what each keypair's live kernels take, and what administrators list; knows SQL only.

What is taken stands beside ``concurrency_used`` in the keypair's row, so that one UPDATE takes a place of everything, and
each kernel's row says what it took, so that exactly that is given back. Thousandths of a processor are whole numbers: sums
of fractions would not come back to zero. A keypair that is removed stays as a row without a use: its kernels' rows, which
are the record of what was used, refer to it.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_LIVE = "status NOT IN ('TERMINATED', 'ERROR')"
_STATEMENTS = (
    """
    CREATE TABLE resource_policies (
        name text PRIMARY KEY CHECK (name <> ''),
        max_kernels integer CHECK (max_kernels >= 0),
        cpu_cores double precision CHECK (cpu_cores >= 0),
        memory bigint CHECK (memory >= 0),
        gpus integer CHECK (gpus >= 0),
        max_folders integer CHECK (max_folders >= 0),
        max_folder_size bigint CHECK (max_folder_size >= 0),
        runtimes text[],
        lifetime double precision CHECK (lifetime > 0),
        idle_timeout double precision CHECK (idle_timeout > 0)
    )
    """,
    """
    ALTER TABLE kernels
        ADD COLUMN memory bigint NOT NULL DEFAULT 0 CHECK (memory >= 0),
        ADD COLUMN cpu_millis bigint NOT NULL DEFAULT 0 CHECK (cpu_millis >= 0),
        ADD COLUMN gpus integer NOT NULL DEFAULT 0 CHECK (gpus >= 0)
    """,
    f"""
    UPDATE kernels SET memory = (limits->>'memory')::bigint,
           cpu_millis = round((limits->>'cpu_cores')::numeric * 1000), gpus = (runtime LIKE '%-gpu')::integer
     WHERE {_LIVE}
    """,  # noqa: S608 - constants only
    """
    ALTER TABLE kernels
        ALTER COLUMN memory DROP DEFAULT, ALTER COLUMN cpu_millis DROP DEFAULT, ALTER COLUMN gpus DROP DEFAULT
    """,
    """
    ALTER TABLE keypairs
        ALTER COLUMN user_id TYPE text,
        ADD COLUMN resource_policy text REFERENCES resource_policies,
        ADD COLUMN memory_used bigint NOT NULL DEFAULT 0 CHECK (memory_used >= 0),
        ADD COLUMN cpu_millis_used bigint NOT NULL DEFAULT 0 CHECK (cpu_millis_used >= 0),
        ADD COLUMN gpus_used integer NOT NULL DEFAULT 0 CHECK (gpus_used >= 0),
        ADD COLUMN removed_at timestamptz
    """,
    f"""
    UPDATE keypairs SET memory_used = live.memory, cpu_millis_used = live.cpu_millis, gpus_used = live.gpus
      FROM (SELECT access_key, sum(memory) AS memory, sum(cpu_millis) AS cpu_millis, sum(gpus) AS gpus
              FROM kernels WHERE {_LIVE} GROUP BY access_key) AS live
     WHERE keypairs.access_key = live.access_key
    """,  # noqa: S608 - constants only
    "CREATE INDEX keypairs_by_creation ON keypairs (created_at DESC, access_key) WHERE removed_at IS NULL",
    # Administrators look for a token of whatever owner; the first index began with the owner.
    "DROP INDEX kernels_by_owner",
    "CREATE INDEX kernels_by_token ON kernels (session_token, access_key, created_at DESC, id DESC)",
    "CREATE INDEX kernels_by_creation ON kernels (created_at DESC, id DESC)",
    "CREATE INDEX kernels_by_owner_and_creation ON kernels (access_key, created_at DESC, id DESC)",
    "CREATE INDEX kernels_by_agent_and_creation ON kernels (agent_id, created_at DESC, id DESC)",
    "CREATE INDEX kernels_by_end ON kernels (terminated_at)",
)


def upgrade() -> None:
    """Make the table and the columns, and count what live kernels take."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: policies cannot be made again."""
    raise NotImplementedError("resource policies would be lost")
