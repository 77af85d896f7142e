"""Markdown as text to read: the structure stays, the markup goes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.tree import SyntaxTreeNode

from framework.documents import Scalar
from indexers.loaders import front_matter
from indexers.loaders.extracted import Extracted, Limits, TextBuilder, Unreadable
from indexers.loaders.text import decode

FENCE = re.compile(r"^[ \t]*(?:[-*+>] |\d+[.)] )*[ \t]*(`{3,}|~{3,})")
SHORTCODE = re.compile(r"\{\{([<%])-?\s*(/?)([\w/.-]*)(.*?)/?\s*-?[>%]\}\}", re.DOTALL)
COMMENTED = re.compile(r"\{\{([<%])\s*comment\s*[>%]\}\}.*?\{\{\1\s*/comment\s*[>%]\}\}", re.DOTALL)
NAMED = re.compile(r"\b(?:title|header|caption|label|name)\s*=\s*(\"[^\"]*\"|'[^']*')")
HEADING_ID = re.compile(r"[ \t]*\{#[\w.:-]+[^{}]*\}[ \t]*$|[ \t]*\{\.[\w.:-]+[^{}]*\}[ \t]*$")
ALERT = re.compile(r"^\[!(\w+)\][+-]?[ \t]*(.*)$", re.MULTILINE)
MAX_DEPTH = 100  # a quotation is one level, a list two
WIDE = re.compile("[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")


def load(data: bytes, limits: Limits) -> Extracted:
    """A Markdown file. The title comes from the front matter, else from a first heading of level one.

    Raises:
        Unreadable: it nests too deep to be read whole.
    """
    metadata, body = front_matter.split(decode(data))
    tree = SyntaxTreeNode(_parser().parse(_without_shortcodes(body, metadata)))
    builder = TextBuilder()
    for node in tree.children:
        _emit(node, builder)
    first = next((node for node in tree.children if node.type == "heading" and node.tag == "h1"), None)
    title = str(metadata.pop("title", "")) or (_heading(first) if first else "")
    return Extracted(builder.text, "text/markdown", title, metadata, builder.sections())


def _parser() -> MarkdownIt:
    # A list adds two levels at once, so that the parser's own limit, which drops text in silence, is never reached.
    parser = MarkdownIt("commonmark", {"maxNesting": MAX_DEPTH + 2}).enable(["table", "strikethrough"])
    parser.block.ruler.before("table", "depth", _check_depth)
    return parser


def _check_depth(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A rule that takes no block: it is asked first about each."""
    if state.level >= MAX_DEPTH:
        raise Unreadable(f"Its lists and quotations nest deeper than {MAX_DEPTH} levels.")
    return False


def _emit(node: SyntaxTreeNode, builder: TextBuilder) -> None:
    if node.type == "heading":
        builder.heading(int(node.tag[1]), _heading(node))
    elif node.type == "html_block":
        from indexers.loaders.html import emit_fragment

        emit_fragment(node.content, builder)
    else:
        builder.block(_block(node))


def _heading(node: SyntaxTreeNode) -> str:
    return HEADING_ID.sub("", _inlines(node)).strip()


def _block(node: SyntaxTreeNode) -> str:
    match node.type:
        case "bullet_list" | "ordered_list":
            return _list(node)
        case "fence" | "code_block" if not node.content.strip():
            return ""
        case "fence" | "code_block":
            return f"```{node.info.strip().split(' ')[0]}\n{node.content.rstrip()}\n```"
        case "table":
            return "\n".join(" | ".join(map(_inlines, row.children)) for part in node.children for row in part.children)
        case "blockquote":
            return _alert("\n\n".join(filter(None, map(_block, node.children))))
        case "html_block":
            builder = TextBuilder()
            _emit(node, builder)
            return builder.text
        case "hr":
            return ""
        case _:
            return _inlines(node)


def _list(node: SyntaxTreeNode) -> str:
    first = int(node.attrs.get("start", 1))
    lines: list[str] = []
    for number, item in enumerate(node.children):
        mark = f"{first + number}. " if node.type == "ordered_list" else "- "
        body = "\n".join(filter(None, map(_block, item.children))).split("\n")
        lines.append(mark + body[0])
        lines += [(" " * len(mark) + line).rstrip() for line in body[1:]]
    return "\n".join(lines)


def _alert(quote: str) -> str:
    """GitHub's `[!NOTE]` blocks as "Note: ..."."""
    found = ALERT.match(quote)
    if not found:
        return quote
    name = found[2] or found[1].capitalize()
    return f"{name}:\n{quote[found.end() :].lstrip()}".rstrip(":\n")


def _inlines(node: SyntaxTreeNode) -> str:
    """The text of a block's inline content; line breaks inside a paragraph are joined."""
    if node.type == "inline" or not node.children:
        return _joined("".join(map(_inline, node.children)))
    return "\n".join(map(_inlines, node.children))


def _inline(node: SyntaxTreeNode) -> str:
    match node.type:
        case "text" | "code_inline":
            return node.content
        case "softbreak":
            return "\v"
        case "hardbreak":
            return "\n"
        case "html_inline":
            return "\n" if node.content.lower().startswith("<br") else ""
        case "image":
            alt = "".join(map(_inline, node.children)).strip()
            return f"Image: {alt}" if alt else ""
        case _:
            return "".join(map(_inline, node.children))


def _joined(text: str) -> str:
    """Soft line breaks become spaces, save between characters of scripts that write none."""
    pieces = text.split("\v")
    joined = pieces[0]
    for piece in pieces[1:]:
        tight = joined and piece and WIDE.match(joined[-1]) and WIDE.match(piece[0])
        alert = joined.startswith("[!") and "\n" not in joined
        joined += ("" if tight else "\n" if alert else " ") + piece
    return "\n".join(line.strip() for line in joined.split("\n")).strip()


def _without_shortcodes(text: str, metadata: Mapping[str, Scalar]) -> str:
    """Hugo's shortcodes outside code fences: their titles stay, `param` gives its value, the tags themselves go."""
    if "{{" not in text:
        return text
    parts: list[tuple[bool, list[str]]] = [(False, [])]
    fence = ""
    for line in text.split("\n"):
        mark = FENCE.match(line)
        if not fence and mark:
            fence = mark[1]
            parts.append((True, []))
        parts[-1][1].append(line)
        if fence and len(parts[-1][1]) > 1 and line.strip().startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""
            parts.append((False, []))
    return "\n".join("\n".join(lines) if code else _shortcodes("\n".join(lines), metadata) for code, lines in parts)


def _shortcodes(text: str, metadata: Mapping[str, Scalar]) -> str:
    def shown(found: re.Match[str]) -> str:
        closing, name, arguments = found[2], found[3], found[4].strip()
        if closing:
            return ""
        if name == "param":
            return str(metadata.get(arguments.strip("\"'"), ""))
        if named := NAMED.search(arguments):
            return named[1][1:-1]
        return f"\n{arguments.strip(chr(34))}:\n" if name == "tab" and arguments else ""

    return SHORTCODE.sub(shown, COMMENTED.sub("", text))
