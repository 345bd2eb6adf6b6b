"""SHA-256 manifests: show whether a folder of weights has changed since it was known to be good.

The format is that of ``sha256sum``: one line per file, 64 hexadecimal digits, two spaces, path.
Paths start with the label of a root folder (``checkpoint/...``), so that one manifest can cover
folders in different places.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import is_file, read_text
from livetalk_kernels.outputs import new_file

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_BLOCK = 1 << 22
_LONGEST_LINE = 5000  # bytes: the digits and a path

Progress = Callable[[str, int], None]
"""Called with a file's name and the number of bytes just read."""


def write_manifest(path: Path, roots: Mapping[str, Path], progress: Progress) -> int:
    """Hash all files under the roots and write the manifest, completely or not at all.

    Hidden files and ``.part`` files are skipped, and so is an earlier manifest of that name.

    Args:
        path: The manifest to write.
        roots: Label -> folder.
        progress: Called with the bytes as they are read.

    Returns:
        Number of files.

    Raises:
        UserError: There are no files, one cannot be read, or the manifest cannot be written or
            would replace one of the files.
    """
    if path.is_file() and not _is_manifest(path):
        for file in manifest_files(roots).values():
            if file.samefile(path):
                raise UserError(f"{path}: is a file to be listed; give the manifest another name")
    files = manifest_files(roots, without=path)
    if not files:
        folders = ", ".join(str(root) for root in roots.values())
        raise UserError(f"{folders}: no files to hash; check the folder")
    with new_file(path) as manifest:
        for name, file in files.items():
            manifest.write(f"{sha256_of(file, partial(progress, name))}  {name}\n".encode())
    return len(files)


def verify_manifest(path: Path, roots: Mapping[str, Path], progress: Progress) -> dict[str, str]:
    """Hash the files that a manifest lists and compare.

    Args:
        path: The manifest.
        roots: Label -> folder; every label in the manifest must be included.
        progress: Called with the bytes as they are read.

    Returns:
        Name -> ``"ok"``, ``"missing"`` or ``"changed"``, in the manifest's order.

    Raises:
        UserError: The manifest cannot be read or parsed, or uses a folder that is not given.
    """
    results = {}
    for name, digest in read_manifest(path).items():
        label, _, inner = name.partition("/")
        if label not in roots:
            raise UserError(f"{path}: lists {name}; give the folder with --{label} DIR")
        file = roots[label] / inner
        if not is_file(file):
            results[name] = "missing"
        else:
            found = sha256_of(file, partial(progress, name))
            results[name] = "ok" if found == digest else "changed"
    return results


def read_manifest(path: Path) -> dict[str, str]:
    """Read name -> SHA-256 in hexadecimal digits.

    Raises:
        UserError: The manifest cannot be read, is empty, has a malformed line or a path that
            leaves its folder.
    """
    digests: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "manifest").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or ".." in PurePosixPath(match[2]).parts or "/" not in match[2]:
            raise UserError(
                f"{path}: line {number} is not 'SHA-256  label/path'; write the manifest again"
            )
        if match[2] in digests:
            raise UserError(
                f"{path}: line {number} names {match[2]} again; write the manifest again"
            )
        digests[match[2]] = match[1]
    if not digests:
        raise UserError(f"{path}: empty manifest; write it again")
    return digests


def manifest_files(roots: Mapping[str, Path], *, without: Path | None = None) -> dict[str, Path]:
    """Collect name -> file, for all files that a manifest of these roots covers."""
    files = {}
    for label, root in sorted(roots.items()):
        for file in sorted(root.rglob("*")):
            inner = file.relative_to(root)
            hidden = any(part.startswith(".") for part in inner.parts)
            if hidden or file.suffix == ".part" or not is_file(file):
                continue
            if without is not None and is_file(without) and file.samefile(without):
                continue
            files[f"{label}/{inner.as_posix()}"] = file
    return files


def _is_manifest(file: Path) -> bool:
    """Return whether a file starts like a manifest."""
    with file.open("rb") as stream:
        line = stream.readline(_LONGEST_LINE).decode(errors="replace")
    return _LINE.fullmatch(line.rstrip("\n")) is not None


def sha256_of(file: Path, progress: Callable[[int], None] = lambda count: None) -> str:
    """Compute the SHA-256 of a file, in hexadecimal.

    Args:
        file: The file.
        progress: Called with the bytes read since the previous call.

    Raises:
        UserError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                progress(len(block))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the disk") from None
    return digest.hexdigest()
