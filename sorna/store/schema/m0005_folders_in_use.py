"""Which live kernels see which folders, what folders held when they were last counted, and when agents were lost; SQL only.

What a kernel sees stands in its own row, so that it is written with it and needs no row that could be left behind.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "ALTER TABLE kernels ADD COLUMN folders uuid[] NOT NULL DEFAULT '{}'",
    "ALTER TABLE kernels ADD COLUMN writable_folders uuid[] NOT NULL DEFAULT '{}'",
    # Most kernels see no folder and are not in it, so that making them costs no more than before.
    "CREATE INDEX kernels_by_folder ON kernels USING gin (folders) WHERE folders <> '{}'",
    "CREATE INDEX kernels_with_folders ON kernels (terminated_at) WHERE folders <> '{}'",
    "ALTER TABLE folders ADD COLUMN cloneable boolean NOT NULL DEFAULT false",
    "ALTER TABLE folders ADD COLUMN num_files integer",
    "ALTER TABLE folders ADD COLUMN cur_size bigint",
    "ALTER TABLE folders ADD COLUMN counted_at timestamptz",
    "CREATE INDEX folders_to_count ON folders (id) WHERE counted_at IS NULL OR counted_at < last_used",
    "ALTER TABLE agents ADD COLUMN lost_at timestamptz",
)


def upgrade() -> None:
    """Add the columns."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Drop the columns: nothing in them cannot be found out again."""
    op.execute("ALTER TABLE kernels DROP COLUMN folders, DROP COLUMN writable_folders")
    op.execute(
        "ALTER TABLE folders DROP COLUMN cloneable, DROP COLUMN num_files, DROP COLUMN cur_size, DROP COLUMN counted_at"
    )
    op.execute("ALTER TABLE agents DROP COLUMN lost_at")
