"""HTML as text to read: headings, paragraphs, lists, tables as rows; no scripts, no navigation."""

from __future__ import annotations

import re
import warnings

from bs4 import BeautifulSoup, Comment, Tag
from bs4.dammit import EncodingDetector, UnicodeDammit
from bs4.element import NavigableString, PreformattedString

from framework.documents import Scalar
from indexers.loaders.extracted import Extracted, Limits, TextBuilder, Unreadable
from indexers.loaders.text import MARKS, decode

DROPPED = frozenset(
    [
        "script",
        "style",
        "noscript",
        "template",
        "nav",
        "iframe",
        "object",
        "embed",
        "svg",
        "canvas",
        "button",
        "select",
        "dialog",
        "head",
    ]
)
DROPPED_ROLES = frozenset(("navigation", "search", "banner", "contentinfo", "menu", "dialog", "alertdialog"))
BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "center",
        "dd",
        "details",
        "dialog",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "html",
        "legend",
        "li",
        "main",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "ul",
    ]
)
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
MAX_DEPTH = 200
MENU_ITEMS = 10  # a list of at least so many links and nothing else is no text to read
LONGEST_CELL = 600  # characters; a longer cell is a page's layout
SPACE = re.compile(r"[ \t\r\n\f\v\u00a0\u200b]+")
PERMALINKS = frozenset("#¶§")


def load(data: bytes, limits: Limits) -> Extracted:
    """An HTML page. The title is the page's own; `main` or `article` is preferred where there is exactly one.

    Raises:
        Unreadable: it nests too deep to be a page.
    """
    soup = _parse(_decoded(data))
    builder = TextBuilder()
    metadata: dict[str, Scalar] = {}
    described = soup.find("meta", attrs={"name": "description"})
    if isinstance(described, Tag) and described.get("content"):
        metadata["description"] = SPACE.sub(" ", str(described["content"])).strip()
    language = soup.html.get("lang") if soup.html else None
    if isinstance(language, str) and language:
        metadata["language"] = language
    title = SPACE.sub(" ", soup.title.get_text()).strip() if soup.title else ""
    _Walk(builder, whole_page=True).run(_content(soup))
    return Extracted(builder.text, "text/html", title or builder.first_heading, metadata, builder.sections())


def emit_fragment(markup: str, builder: TextBuilder) -> None:
    """The text of a piece of HTML inside another format."""
    _Walk(builder, whole_page=False).run(_parse(markup))


def _decoded(data: bytes) -> str:
    if any(data.startswith(mark) for mark, _ in MARKS) or data[:2].count(0):
        return decode(data)
    declared = EncodingDetector.find_declared_encoding(data[:4096], is_html=True)
    if declared:
        found = UnicodeDammit(data, [declared], is_html=True)
        if found.unicode_markup is not None and not found.contains_replacement_characters:
            return found.unicode_markup
    return decode(data)


def _parse(markup: str) -> BeautifulSoup:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hints to people who call the parser by hand
        return BeautifulSoup(markup, "lxml")


def _content(soup: BeautifulSoup) -> Tag:
    """The page's main part, where it says which one that is and it holds most of what there is to read."""
    body = soup.body or soup
    for name in ("main", "article"):
        found = body.find_all(name)
        if len(found) == 1 and len(found[0].get_text()) > len(body.get_text()) / 3:
            return found[0]
    return body


class _Walk:
    """One pass over the tree: inline text gathers until a block ends."""

    def __init__(self, builder: TextBuilder, whole_page: bool) -> None:
        self.builder = builder
        self.whole_page = whole_page
        self._inline: list[str] = []
        self._depth = 0

    def run(self, root: Tag) -> None:
        self._children(root)
        self._end_block()

    def _end_block(self, prefix: str = "") -> None:
        lines = [SPACE.sub(" ", line).strip() for line in "".join(self._inline).split("\0")]
        self._inline.clear()
        text = "\n".join(line for line in lines if line)
        if text:
            self.builder.block(prefix + text)

    def _children(self, tag: Tag) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable(f"Its elements nest deeper than {MAX_DEPTH}.")
        for child in tag.children:
            if isinstance(child, Tag):
                self._tag(child)
            elif isinstance(child, NavigableString) and not isinstance(child, Comment | PreformattedString):
                self._inline.append(str(child))
        self._depth -= 1

    def _tag(self, tag: Tag) -> None:
        name = tag.name
        if name in DROPPED or self._is_boilerplate(tag):
            return
        if name == "br":
            self._inline.append("\0")
        elif name not in BLOCKS:
            if name != "a" or not _is_furniture(tag):
                self._children(tag)
        else:
            self._end_block()
            self._block(tag)

    def _is_boilerplate(self, tag: Tag) -> bool:
        hidden = tag.has_attr("hidden") or tag.get("aria-hidden") == "true"
        return (
            hidden
            or tag.get("role") in DROPPED_ROLES
            or (
                self.whole_page
                and tag.name in ("header", "footer")
                and tag.parent is not None
                and tag.parent.name == "body"
            )
        )

    def _block(self, tag: Tag) -> None:
        if tag.name in HEADINGS:
            self._children(tag)
            title = "".join(self._inline).replace("\0", " ")
            self._inline.clear()
            self.builder.heading(int(tag.name[1]), title.rstrip("#¶ "))
        elif tag.name == "pre":
            code = tag.get_text().strip("\n")
            self.builder.block(f"```\n{code.rstrip()}\n```" if code.strip() else "")
        elif tag.name in ("ul", "ol"):
            if not (self.whole_page and _is_menu(tag)):
                self.builder.block(_list(tag))
        elif tag.name == "table":
            self._table(tag)
        else:
            self._children(tag)
            self._end_block()

    def _table(self, table: Tag) -> None:
        """Rows as lines; a table that only lays out a page is walked instead."""
        rows = [[_plain(cell) for cell in row.find_all(("td", "th"))] for row in table.find_all("tr")]
        widest = max(map(len, rows), default=0)
        long = any(len(cell) > LONGEST_CELL for cells in rows for cell in cells)
        if widest < 2 or long or table.find(("table", *HEADINGS, "ul", "ol", "pre")):
            self._children(table)
            self._end_block()
            return
        used = [i for i in range(widest) if any(cells[i] for cells in rows if len(cells) > i)]
        lines = [" | ".join(cells[i] for i in used if i < len(cells)) for cells in rows if any(cells)]
        caption = table.find("caption")
        if isinstance(caption, Tag):
            lines.insert(0, _plain(caption))
        self.builder.block("\n".join(lines))


def _plain(tag: Tag) -> str:
    """All text in a cell or list item on one line."""
    parts: list[str] = []
    for part in tag.descendants:
        if isinstance(part, Tag) and (part.name == "br" or part.name in BLOCKS):
            parts.append(" ")
        elif isinstance(part, NavigableString) and not isinstance(part, PreformattedString):
            parts.append(str(part))
    return SPACE.sub(" ", "".join(parts)).strip()


def _list(tag: Tag, indent: str = "") -> str:
    lines: list[str] = []
    first = str(tag.get("start", "1"))
    for number, item in enumerate(tag.find_all("li", recursive=False), int(first) if first.isdecimal() else 1):
        mark = f"{number}. " if tag.name == "ol" else "- "
        inner = [part.extract() for part in item.find_all(("ul", "ol")) if part.find_parent(("ul", "ol")) is tag]
        if text := _plain(item):
            lines.append(indent + mark + text)
        lines += [text for part in inner if (text := _list(part, indent + "  "))]
    return "\n".join(lines)


def _is_furniture(link: Tag) -> bool:
    """Permalinks beside headings, and "Skip to content"."""
    text = link.get_text().strip()
    return text in PERMALINKS or (str(link.get("href", "")).startswith("#") and text.lower().startswith("skip to"))


def _is_menu(tag: Tag) -> bool:
    """Whether a list is nothing but many short links."""
    items = tag.find_all("li")
    text = len(_plain(tag))
    linked = sum(len(_plain(link)) for link in tag.find_all("a"))
    return len(items) >= MENU_ITEMS and linked > 0.9 * (text - len(items)) and text < 40 * len(items)
