"""The `diffbody` command: a file a subject. What is slow to import is imported by the command that needs it."""

from diffbody.cli.app import app, main

__all__ = ["app", "main"]
