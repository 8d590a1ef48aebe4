"""OPA as the compiler: a private process that loads bundles exactly as the served ones are loaded."""

from reconciler.adapters.opa.compiler import OpaCompiler

__all__ = ["OpaCompiler"]
