"""The agent itself, one per host: holds kernels, isolates them, keeps the output of their runs."""
