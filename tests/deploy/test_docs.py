"""Catches commands and programs in docs/deploy.md that do not run with the documented packages."""
