"""The `tunekit` program."""

from .app import main

__all__ = ["main"]
