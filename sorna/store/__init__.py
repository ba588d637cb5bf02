"""The truth in PostgreSQL: keypairs, agents and every kernel that ever was; knows SQL, decides nothing."""
