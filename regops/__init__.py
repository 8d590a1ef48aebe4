"""The command: CLI and composition, thin; the only package that knows both halves (`api` and `reconciler`)."""

__version__ = "0.1.0"
