"""`x-{0000..0003}.tar`, `{a,b}/*.tar`, `**/*.tar`: which files a pattern names."""

import re

from fsspec.utils import glob_translate

from maskmill.errors import UserError
from maskmill.storage.listing import FileStat, join, list_folder, local_path, stat

_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MOST = 1_000_000

_Listings = dict[tuple[str, int | None], dict[str, FileStat]]  # (folder, depth) -> key -> file


def is_pattern(url: str) -> bool:
    """Whether `url` holds a wildcard or a brace."""
    return re.search(r"[*?\[{]", url) is not None


def fixed_folder(pattern: str) -> str:
    """The longest folder of `pattern` that holds no wildcard and no brace."""
    fixed = re.split(r"[*?\[{]", pattern, maxsplit=1)[0]
    folder = fixed.rpartition("/")[0]
    return folder + "/" if folder.endswith(":/") else folder or "/"


def expand_braces(pattern: str) -> list[str]:
    """Every string that the braces stand for, ranges and commas; a range keeps the width of its numbers."""
    texts = [pattern]
    while brace := _BRACE.search(texts[0]):  # the innermost brace first, so nested ones work; all texts are alike
        next_texts: list[str] = []
        for text in texts:
            if brace := _BRACE.search(text):
                parts = _alternatives(brace[1], pattern)
                next_texts += [text[: brace.start()] + part + text[brace.end() :] for part in parts]
        texts = list(dict.fromkeys(next_texts))
        if len(texts) > _MOST:
            raise UserError(f"{pattern}: the braces name more than {_MOST} files: narrow them")
    return texts


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
    found: dict[str, FileStat] = {}
    folders: _Listings = {}
    for member in expand_braces(pattern):
        wild = re.search(r"[*?\[]", member) is not None
        alone = not wild and (local_path(member) is not None or member.startswith("http"))  # http cannot list
        here = _one(member) if alone else _listed(member, wild, folders)
        if not here and member != pattern:
            raise UserError(f"{member}: no such file, but {pattern} names it: add it, or narrow the braces")
        found |= here
    return found


def _one(url: str) -> dict[str, FileStat]:
    found = stat(url)
    return {url: found} if isinstance(found, FileStat) else {}


def _listed(pattern: str, wild: bool, folders: _Listings) -> dict[str, FileStat]:
    """Through one listing for each folder, not one request for each file."""
    folder = fixed_folder(pattern)
    rest = pattern.removeprefix(folder).lstrip("/")
    depth = None if "**" in rest else rest.count("/") + 1
    if (folder, depth) not in folders:
        folders[folder, depth] = {f.key: f for f in list_folder(folder, depth)}
    files = folders[folder, depth]
    if not wild:
        return {pattern: files[rest]} if rest in files else {}
    wanted = re.compile(glob_translate(rest))
    return {join(folder, key): f for key, f in files.items() if wanted.match(key)}
