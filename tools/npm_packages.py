"""Packages of the npm registry: downloaded with `npm pack`, verified, kept, read without being installed."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """One version of a package; `integrity` is the digest of its tarball as npm's lock files state it (sha512)."""

    name: str
    version: str
    integrity: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def program(name: str) -> str:
    """Path of `npm` or `node`.

    Raises:
        FileNotFoundError: it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(
            f"`{name}` is not on the PATH: install Node.js 18 or later, which brings node and npm (Debian and Ubuntu: "
            "apt install nodejs npm; macOS: brew install node; others: https://nodejs.org), and run this again."
        )
    return path


def download(package: Package, folder: Path) -> Path:
    """The package's tarball in `folder`, downloaded unless it is there whole.

    Raises:
        FileNotFoundError: it has to be downloaded, and there is no npm.
        OSError: npm fails, or what it brings is not the package that `integrity` tells.
    """
    path = folder / f"{package.name.removeprefix('@').replace('/', '-')}-{package.version}.tgz"
    if path.exists() and _integrity(path) == package.integrity:
        return path
    npm = program("npm")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        command = [npm, "pack", str(package), "--pack-destination", partial]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise OSError(
                f"`npm pack {package}` failed: {run.stderr.strip() or f'exit status {run.returncode}'}\n"
                "Packages downloaded before are kept: run this again once npm reaches its registry."
            )
        (tarball,) = Path(partial).iterdir()
        if (found := _integrity(tarball)) != package.integrity:
            raise OSError(
                f"`npm pack {package}` brought another file than the one published (integrity {found} instead of "
                f"{package.integrity}): run this again; if it stays so, ask who runs the registry that npm uses."
            )
        os.replace(tarball, path)  # whole or not at all
    return path


def read_files(tarball: Path, prefix: str = "") -> dict[str, bytes]:
    """Contents of the package's files whose path begins with `prefix`, by the rest of the path."""
    prefix = f"package/{prefix}"
    with tarfile.open(tarball) as archive:
        return {
            member.name.removeprefix(prefix): archive.extractfile(member).read()
            for member in archive
            if member.isfile() and member.name.startswith(prefix)
        }


def _integrity(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    return f"sha512-{base64.b64encode(digest).decode()}"
