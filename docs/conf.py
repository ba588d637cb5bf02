"""Settings of the documentation."""

project = "Sorna"
author = "The Sorna developers"
extensions: list[str] = []
html_theme = "furo"
exclude_patterns = ["_build"]
