"""`x-{0000..0003}.tar`, `{a,b}/*.tar`, `**/*.tar`: which files a pattern names."""

import itertools
import re

from fsspec.utils import glob_translate

from maskmill.errors import UserError
from maskmill.storage.files import FileStat, join, list_folder, local_path, stat

_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MOST = 1_000_000


def is_pattern(url: str) -> bool:
    """Whether `url` holds a wildcard or a brace."""
    return re.search(r"[*?\[{]", url) is not None


def fixed_folder(pattern: str) -> str:
    """The longest folder of `pattern` that holds no wildcard and no brace."""
    fixed = re.split(r"[*?\[{]", pattern, maxsplit=1)[0]
    folder = fixed.rpartition("/")[0]
    return folder + "//" if folder.endswith(":/") else folder or "/"


def expand_braces(pattern: str) -> list[str]:
    """Every string that the braces stand for, ranges and commas; a range keeps the width of its numbers."""
    brace = _BRACE.search(pattern)
    if brace is None:
        return [pattern]
    parts = _alternatives(brace[1], pattern)
    tails = expand_braces(pattern[brace.end() :])
    if len(parts) * len(tails) > _MOST:
        raise UserError(f"{pattern}: the braces name more than {_MOST} files: narrow them")
    return [pattern[: brace.start()] + part + tail for part, tail in itertools.product(parts, tails)]


def _alternatives(inside: str, pattern: str) -> list[str]:
    if found := _RANGE.fullmatch(inside):
        first, last = int(found[1]), int(found[2])
        if abs(last - first) >= _MOST:
            raise UserError(f"{pattern}: the braces name more than {_MOST} files: narrow them")
        padded = any(n.lstrip("-").startswith("0") and len(n.lstrip("-")) > 1 for n in found.groups())
        width = max(len(n) for n in found.groups()) if padded else 0
        step = 1 if last >= first else -1
        return [f"{n:0{width}d}" for n in range(first, last + step, step)]
    if "," not in inside:
        raise UserError(f"{pattern}: {{{inside}}} is neither a range like {{0000..0099}} nor a list like {{a,b}}")
    return inside.split(",")


def matching(pattern: str) -> dict[str, FileStat]:
    """URL -> file, for each file that `pattern` (absolute) names. Each part of a brace must be there."""
    members = list(dict.fromkeys(expand_braces(pattern)))
    found: dict[str, FileStat] = {}
    folders: dict[tuple[str, int | None], list[FileStat]] = {}
    for member in members:
        if not re.search(r"[*?\[]", member) and (local_path(member) is not None or member.startswith("http")):
            here = _one(member)
        else:
            here = _listed(member, folders)
        if not here and member != pattern:
            raise UserError(f"{member}: no such file, but {pattern} names it: add it, or narrow the braces")
        found |= here
    return found


def _one(url: str) -> dict[str, FileStat]:
    found = stat(url)
    return {url: found} if isinstance(found, FileStat) else {}


def _listed(pattern: str, folders: dict[tuple[str, int | None], list[FileStat]]) -> dict[str, FileStat]:
    """Through one listing for each folder, not one request for each file."""
    folder = fixed_folder(pattern)
    rest = pattern.removeprefix(folder).lstrip("/")
    depth = None if "**" in rest else rest.count("/") + 1
    if (folder, depth) not in folders:
        folders[folder, depth] = list_folder(folder, depth)
    wanted = re.compile(glob_translate(rest))
    return {join(folder, f.key): f for f in folders[folder, depth] if wanted.match(f.key)}
