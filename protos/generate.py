"""Generate p2pqg/wire/*_pb2.py from the .proto files; with --check, exit 1 if the committed code is stale."""

from __future__ import annotations

import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
WIRE = PROTOS.parent / "p2pqg" / "wire"


def generate(target: Path) -> dict[str, str]:
    """Compile every .proto; returns the generated sources by file name."""
    sources = sorted(path.relative_to(PROTOS) for path in PROTOS.rglob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={resources.files('grpc_tools') / '_proto'}",
        f"--python_out={target}",
        f"--pyi_out={target}",
        *map(str, sources),
    ]
    if code := protoc.main(arguments):
        raise SystemExit(code)
    return {path.name: path.read_text() for path in sorted(target.rglob("*_pb2.py*"))}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        generated = generate(Path(folder))
    if "--check" not in sys.argv[1:]:
        for name, text in generated.items():
            (WIRE / name).write_text(text)
        return 0
    committed = {path.name: path.read_text() for path in WIRE.glob("*_pb2.py*")}
    stale = sorted(
        name for name in generated.keys() | committed.keys() if generated.get(name) != committed.get(name)
    )
    for name in stale:
        print(f"stale: {WIRE.relative_to(PROTOS.parent) / name} (run `make proto`)", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
