"""What every page is: a head, a list of contents, sections, a foot. It needs nothing beside itself."""

from collections.abc import Iterable
from datetime import datetime
from html import escape
from importlib.resources import files
from string import Template

from maskmill import __version__

STATIC = files("maskmill") / "report" / "static"
Section = tuple[str, str, str]  # anchor, title, content as HTML


def fill_page(
    title: str, head: Iterable[str], sections: Iterable[Section], credit: str, styles: tuple[str, ...] = ()
) -> str:
    """The whole page as text. Sections without content are left out. styles: files of static/ besides the usual."""
    shown = [section for section in sections if section[2]]
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    names = ("tokens.css", "report.css", *styles)
    return Template((STATIC / "report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style="".join((STATIC / name).read_text(encoding="utf-8") for name in names),
        head="".join(head),
        contents="".join(f'<li><a href="#{anchor}">{name}</a></li>' for anchor, name, _ in shown),
        body="\n".join(f'<section id="{anchor}"><h2>{name}</h2>{content}</section>' for anchor, name, content in shown),
        foot=f"Made by maskmill {__version__} on {escape(now)}. {credit}",
    )
