"""The content of virtual folders on disk."""
