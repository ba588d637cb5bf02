"""Isolation tiers behind one interface; each module confines a kernel's processes in its own way."""
