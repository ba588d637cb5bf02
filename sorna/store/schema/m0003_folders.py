"""Virtual folders, whom they are shared with, and invitations to share; knows SQL only.

How many folders a keypair owns stands in its row, so that one UPDATE takes a place, however many ask at once.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "ALTER TABLE keypairs ADD COLUMN folders_used integer NOT NULL DEFAULT 0 CHECK (folders_used >= 0)",
    """
    CREATE TABLE folders (
        id uuid PRIMARY KEY,
        owner text NOT NULL REFERENCES keypairs (access_key),
        name text NOT NULL CHECK (name <> ''),
        created_at timestamptz NOT NULL,
        last_used timestamptz,
        max_files integer NOT NULL CHECK (max_files > 0),
        max_size bigint NOT NULL CHECK (max_size > 0),
        UNIQUE (owner, name)
    )
    """,
    "CREATE INDEX folders_by_creation ON folders (created_at DESC, id DESC)",
    """
    CREATE TABLE folder_permissions (
        folder_id uuid NOT NULL REFERENCES folders ON DELETE CASCADE,
        access_key text NOT NULL REFERENCES keypairs,
        permission text NOT NULL CHECK (permission IN ('ro', 'rw')),
        PRIMARY KEY (folder_id, access_key)
    )
    """,
    "CREATE INDEX folder_permissions_by_key ON folder_permissions (access_key)",
    """
    CREATE TABLE folder_invitations (
        id uuid PRIMARY KEY,
        folder_id uuid NOT NULL REFERENCES folders ON DELETE CASCADE,
        inviter text NOT NULL REFERENCES keypairs (access_key),
        invitee text NOT NULL,
        permission text NOT NULL CHECK (permission IN ('ro', 'rw')),
        created_at timestamptz NOT NULL,
        UNIQUE (folder_id, invitee)
    )
    """,
    "CREATE INDEX folder_invitations_by_invitee ON folder_invitations (invitee)",
)


def upgrade() -> None:
    """Make the tables and the column."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refuse: folders cannot be found again without their rows."""
    raise NotImplementedError("virtual folders would be lost")
