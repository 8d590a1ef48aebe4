"""Git: objects by pygit2 from a bare mirror, transport by the git command (docs/adr/0004)."""

from reconciler.adapters.git.access import Access
from reconciler.adapters.git.mirror import GitSource

__all__ = ["Access", "GitSource"]
