"""A private PostgreSQL and Redis for a first run and for tests; knows processes and directories only."""
