"""Speed and memory, measured on real etcd, OPA and Git; never asserted. The fixtures of the tests start the servers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
