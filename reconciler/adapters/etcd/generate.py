"""Make the stubs in ``_pb`` anew from the two .proto files: ``python -m reconciler.adapters.etcd.generate [TARGET]``.

Needs grpcio-tools (dependency group ``lint``). ``TARGET`` is the folder to write below, by default this source tree.
"""

from __future__ import annotations

import subprocess  # runs this interpreter with a fixed argument list
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[2]
_PACKAGE = Path("reconciler/adapters/etcd/_pb")
_DEFAULT_POOL = "_descriptor_pool.Default()"
_OWN_POOL = "POOL"
_OWN_IMPORT = "from reconciler.adapters.etcd._pb.pool import POOL\n# @@protoc_insertion_point(imports)"


def generate(target: Path) -> None:
    """Write the stubs below ``target``; raises `subprocess.CalledProcessError` when protoc refuses."""
    files = [str(_HERE / name) for name in ("mvcc.proto", "etcd.proto")]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{_PACKAGE}={_HERE}"]
    outputs = [f"--python_out={target}", f"--pyi_out={target}"]
    subprocess.run([*protoc, *outputs, *files], check=True)  # noqa: S603 no word of it comes from outside
    subprocess.run([*protoc, f"--grpc_python_out={target}", files[1]], check=True)  # noqa: S603 the same
    for module in ("mvcc_pb2.py", "etcd_pb2.py"):
        _use_own_pool(target / _PACKAGE / module)


def _use_own_pool(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    if text.count(_DEFAULT_POOL) != 1:
        raise ValueError(f"{module} does not look as expected: protoc has changed, so must this script")
    text = text.replace(_DEFAULT_POOL, _OWN_POOL)
    module.write_text(text.replace("# @@protoc_insertion_point(imports)", _OWN_IMPORT), encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else _ROOT)
