"""Every figure that the project claims, as scripts that anyone can run: ``python -m bench``, or one part alone.

Nothing here is part of the server, and nothing in the server knows of it.
"""
