#!/usr/bin/env python3
"""Prints what to put on PYTHONPATH for the examples of docs/protocol.md, bringing it where it is not there yet.

pip brings the wheel of the version and with the hash that nats-py.txt beside this file pins, into .tools/ (which git
ignores). Python imports a wheel of pure Python as it is, so nothing is unpacked or installed. Only the path is printed to
stdout, so that `PYTHONPATH=$(tools/nats-py.py)` works; all else to stderr.

Safe to call any number of times, also at once: the wheel appears under its name whole or not at all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
PIN = ROOT / "tools" / "nats-py.txt"
PACKAGE = "nats-py"


def main() -> int:
    match = re.search(rf"^{PACKAGE}==(\S+)", PIN.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        fail(f"{PIN} does not pin {PACKAGE}")
    wheel = ROOT / ".tools" / f"nats_py-{match.group(1)}-py3-none-any.whl"
    if not wheel.exists():
        print(f"bringing {PACKAGE} {match.group(1)} into {wheel.parent.relative_to(ROOT)}/", file=sys.stderr)
        bring(wheel)
    print(wheel)
    return 0


def bring(wheel: Path) -> None:
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        # `download`, not `install`: it changes no environment, so it also works where the system manages its own.
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command = [*pip, "--only-binary=:all:", "--require-hashes", "--requirement", str(PIN), "--dest", folder]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
            fail(f"pip could not bring {PACKAGE} (above: why). With pip and a package index it works by itself.")
        # Whoever else brings the same one at the same time replaces it with its equal.
        os.replace(Path(folder) / wheel.name, wheel)


def fail(reason: str) -> NoReturn:
    print(f"nats-py: {reason}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
