from __future__ import annotations

import contextlib
import itertools
import zlib

import pytest

from indexers.loaders import formats, html, markdown, pdf, text
from indexers.loaders.extracted import Extracted, Limits, TextBuilder, Unreadable

LIMITS = Limits(bytes=8 << 20, pages=20, seconds=10.0, memory_mb=512)


def md(source: str) -> Extracted:
    return markdown.load(source.encode(), LIMITS)


def page(source: str) -> Extracted:
    return html.load(source.encode(), LIMITS)


def make_pdf(pages: list[list[str]], title: str = "", content: bytes | None = None, extra: bytes = b"") -> bytes:
    """A PDF with one line of text below the other; `content` replaces every page's stream, `extra` its dictionary."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode())
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for number, lines in enumerate(pages):
        drawn = [f"1 0 0 1 50 {780 - 14 * i} Tm ({line}) Tj" for i, line in enumerate(lines) if line]
        stream = content if content is not None else f"BT /F1 10 Tf {' '.join(drawn)} ET".encode("latin-1")
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Resources << /Font << /F1 3 0 R >> >> "
            + f"/Contents {5 + 2 * number} 0 R >>".encode()
        )
        objects.append(b"<< /Length %d %s >>\nstream\n" % (len(stream), extra) + stream + b"\nendstream")
    objects.append(f"<< /Title ({title}) >>".encode())
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    rows = b"".join(b"%010d 00000 n \n" % place for place in places)
    count = len(objects) + 1
    trailer = b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\n" % (count, count - 1)
    return out + b"xref\n0 %d\n0000000000 65535 f \n" % count + rows + trailer + b"startxref\n%d\n%%%%EOF" % len(out)


class TestMarkdown:
    @pytest.mark.parametrize(
        "deep",
        [
            "> " * 5000 + "deep",
            "- " * 5000 + "deep",
            "> - " * 60 + "deep",
            "\n".join("  " * n + "- deep" for n in range(90)),
        ],
    )
    @pytest.mark.parametrize("source", ["{}\n", "# Title\n\nBefore.\n\n{}\n\nAfter.\n"])
    def test_text_below_the_depth_that_can_be_read_is_not_dropped_in_silence(self, source: str, deep: str) -> None:
        with pytest.raises(Unreadable, match="nest deeper than 100 levels"):
            md(source.format(deep))

    @pytest.mark.parametrize("mark", ["> " * 99, "- " * 49])
    def test_deep_text_is_read(self, mark: str) -> None:
        assert md(f"Before.\n\n{mark}deep\n\nAfter.").text.split()[-2:] == ["deep", "After."]

    def test_markup_goes_and_structure_stays(self) -> None:
        found = md(
            "# The *title* {#top}\n\nA [link](http://x), `code` and **bold**\nover two lines.  \nA new line.\n\n"
            "- one\n  - two\n\n3. three\n4. four\n\n> quoted\n\n```sh\nmake  all\n```\n\n"
            "| a | b |\n|--|--|\n| 1 | *2* |\n"
            "\n![a diagram](d.png)\n\n<!-- hidden -->\n\n<b>shown</b> H<br>I\n"
        )
        assert found.text == (
            "The title\n\nA link, code and bold over two lines.\nA new line.\n\n- one\n  - two\n\n3. three\n4. four\n\n"
            "quoted\n\n```sh\nmake  all\n```\n\na | b\n1 | 2\n\nImage: a diagram\n\nshown H\nI"
        )
        assert found.title == "The title"

    def test_sections_reach_to_the_next_heading_of_their_level(self) -> None:
        found = md("Before.\n\n# A\n\ntext a\n\n## B\n\ntext b\n\n# C\n\ntext c\n")
        assert [(s.path, found.text[s.start : s.end].strip()) for s in found.sections] == [
            (("A",), "A\n\ntext a\n\nB\n\ntext b"),
            (("A", "B"), "B\n\ntext b"),
            (("C",), "C\n\ntext c"),
        ]

    @pytest.mark.parametrize(
        "front",
        [
            "---\ntitle: Named\ntags: [a, b]\nweight: 3\ndraft: true\n"
            "date: 2024-05-01\nsite:\n  lang: en\nnone:\n---\n",
            '+++\ntitle = "Named"\ntags = ["a", "b"]\nweight = 3\n'
            'draft = true\ndate = 2024-05-01\n[site]\nlang = "en"\n+++\n',
        ],
        ids=["yaml", "toml"],
    )
    def test_front_matter_is_metadata_and_no_text(self, front: str) -> None:
        found = md(front + "\n# Heading\n\nBody.\n")
        assert found.title == "Named"
        assert dict(found.metadata) == {
            "tags": "a, b",
            "weight": 3,
            "draft": True,
            "date": "2024-05-01",
            "site.lang": "en",
        }
        assert found.text == "Heading\n\nBody."

    @pytest.mark.parametrize(
        "source", ["---\n: : :\n\t- x\n---\nBody.\n", "---\n- a list\n---\nBody.\n", "+++\nno toml\n+++\nBody.\n"]
    )
    def test_what_is_no_front_matter_stays_text(self, source: str) -> None:
        assert "Body." in md(source).text
        assert dict(md(source).metadata) == {}

    def test_a_yaml_bomb_stays_small(self) -> None:
        levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9) if i else 'x'}]\n" for i in range(30))
        assert len(str(dict(md(f"---\n{levels}---\nBody.\n").metadata))) < 10_000

    def test_shortcodes_go_and_say_what_a_reader_needs(self) -> None:
        found = md(
            "---\ntitle: T\ndescription: What it does\n---\n{{% param description %}}\n\n"
            "{{< tabpane >}}\n{{% tab Go %}}\n\n"
            "```go\n{{< kept >}}\n```\n\n{{% /tab %}}\n{{< /tabpane >}}\n\n"
            '{{< figure src="a.png"\n  title="A figure" >}}\n\n'
            "{{< comment >}}secret{{< /comment >}}\n"
        )
        assert found.text == "What it does\n\nGo:\n\n```go\n{{< kept >}}\n```\n\nA figure"

    def test_alerts_are_named(self) -> None:
        assert md("> [!WARNING]\n> Mind\n> the gap.\n").text == "Warning:\nMind the gap."
        assert md("> [!NOTE] Good to know\n> It works.\n").text == "Good to know:\nIt works."

    def test_lines_of_scripts_without_spaces_are_joined_without_one(self) -> None:
        assert md("今日は\n世界\n").text == "今日は世界"

    def test_html_inside_is_read_as_html(self) -> None:
        assert md("<table><tr><td>a</td><td>b</td></tr></table>\n\nEnd.\n").text == "a | b\n\nEnd."

    @pytest.mark.parametrize("bomb", ["[" * 9_000, "> " * 9_000, "*a_ " * 5_000, "# a\n" * 3_000, "- " * 9_000])
    def test_hostile_markdown_is_read_or_refused_but_does_not_break(self, bomb: str) -> None:
        with contextlib.suppress(RecursionError, Unreadable):
            md(bomb)


class TestHtml:
    def test_a_page_without_its_furniture(self) -> None:
        found = page(
            "<!doctype html><html lang=en><head><title> The\n page </title><meta name=description content='About.'>"
            "<style>p{}</style></head><body><header>Logo</header>"
            "<nav><a href=/>Home</a></nav><h1>Top<a href=#t>#</a></h1>"
            "<script>alert(1)</script><p>First <b>bold</b> and <a href=x>a link</a>.<br>Next</p>"
            "<div>Loose<div>Inner</div>"
            "</div><ul><li>one<ul><li>two</li></ul></li></ul><ol start=4><li>four</li></ol><pre>a  b\n c</pre>"
            "<p hidden>no</p><!-- no --><footer>Imprint</footer></body></html>"
        )
        assert found.text == (
            "Top\n\nFirst bold and a link.\nNext\n\nLoose\n\nInner\n\n- one\n  - two\n\n4. four\n\n```\na  b\n c\n```"
        )
        assert found.title == "The page"
        assert dict(found.metadata) == {"description": "About.", "language": "en"}

    def test_tables_keep_their_rows(self) -> None:
        head = "<caption>Prices</caption><tr><th>a</th><th></th><th>b</th></tr>"
        assert (
            page(f"<table>{head}<tr><td>1<br>2</td><td></td><td>3</td></tr></table>").text == "Prices\na | b\n1 2 | 3"
        )

    def test_a_table_that_lays_out_a_page_is_walked(self) -> None:
        assert page("<table><tr><td><h1>A</h1><p>Text.</p></td><td>Side</td></tr></table>").text == "A\n\nText.\n\nSide"

    def test_menus_are_dropped_and_lists_of_links_with_words_kept(self) -> None:
        menu = "<ul>" + "".join(f"<li><a href={i}>Page {i}</a></li>" for i in range(12)) + "</ul>"
        listed = "<ul>" + "".join(f"<li><a href={i}>Page</a>: what it says</li>" for i in range(12)) + "</ul>"
        assert page(f"<p>Text.</p>{menu}").text == "Text."
        assert "what it says" in page(listed).text

    def test_the_main_part_is_preferred_when_it_holds_the_text(self) -> None:
        long = "word " * 100
        assert page(f"<body><div>Ad</div><main><p>{long}</p></main></body>").text == long.strip()
        assert "Real text" in page(f"<body><main>x</main><p>Real text {long}</p></body>").text

    @pytest.mark.parametrize(
        ("data", "expected"),
        [
            ("<meta charset=iso-8859-1><p>Größe".encode("latin-1"), "Größe"),
            ("<p>Größe".encode(), "Größe"),
            ("<html><p>Größe".encode("utf-16"), "Größe"),
            ("<html><p>Size".encode("utf-16-le"), "Size"),
            ("<meta charset=utf-8><p>Größe und Länge der Straße".encode("cp1252"), "Größe und Länge der Straße"),
        ],
    )
    def test_encodings(self, data: bytes, expected: str) -> None:
        assert html.load(data, LIMITS).text == expected

    def test_entities_are_not_expanded_beyond_html(self) -> None:
        bomb = '<!DOCTYPE html [<!ENTITY a "aaaaaaaaaa">' + "".join(
            f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in itertools.pairwise("abcdefghij")
        )
        assert len(page(f"{bomb}]><p>&j;</p>").text) < 10_000

    def test_deep_nesting_ends(self) -> None:
        with pytest.raises(Unreadable, match="nest deeper than"):
            page("<div>" * 50_000 + "deep")


class TestText:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    def test_unicode_encodings(self, encoding: str) -> None:
        assert text.load("Grüße, plain text\r\nnext".encode(encoding), LIMITS).text == "Grüße, plain text\nnext"

    @pytest.mark.parametrize(
        ("encoding", "words"),
        [
            ("cp1252", "Die Größe der Straße überrascht: schöne Häuser, grüne Gärten, öffentliche Plätze."),
            ("cp1251", "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства."),
            ("shift_jis", "吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。"),
        ],
    )
    def test_older_encodings_are_detected(self, encoding: str, words: str) -> None:
        assert text.load(words.encode(encoding), LIMITS).text == words

    @pytest.mark.parametrize(
        "data", [bytes(range(256)) * 9, b"\x89PNG\r\n\x1a\n" + bytes(99), b"PK\x03\x04" + bytes(99)]
    )
    def test_binary_is_refused(self, data: bytes) -> None:
        with pytest.raises(Unreadable, match="binary"):
            text.load(data, LIMITS)

    def test_mixed_encodings_are_refused(self) -> None:
        with pytest.raises(Unreadable, match="encodings"):
            text.load("漢字".encode() * 20 + b"\x81\x8d\xff\xfe" * 20, LIMITS)

    def test_nothing_is_nothing(self) -> None:
        assert text.load(b"", LIMITS).text == text.load(b" \n \n", LIMITS).text == ""


class TestPdf:
    def test_a_short_line_is_a_heading_even_before_a_name_in_lower_case(self) -> None:
        long = "iPhone net sales fell in this quarter when compared with the one of the year before"
        found = pdf.load(make_pdf([["iPhone", long, "and rose in the next."]]), LIMITS)
        assert found.text == f"iPhone\n{long} and rose in the next."

    def test_lines_become_paragraphs_and_tables_keep_theirs(self) -> None:
        long = "A sentence that is long enough to fill the width of the page, or nearly so, goes on and on"
        lines = [
            "Heading",
            "",
            "",
            long,
            "in the next line.",
            "",
            "",
            "Sales 1,200 1,300",
            "Costs 900 (800)",
            "1. Item",
        ]
        found = pdf.load(make_pdf([lines], "A proper title"), LIMITS)
        assert found.text == f"Heading\n\n{long} in the next line.\n\nSales 1,200 1,300\nCosts 900 (800)\n1. Item"
        assert (found.title, found.page_starts) == ("A proper title", (0,))

    def test_page_starts_and_running_heads(self) -> None:
        pages = [["Report 2024", "", f"Text of page {word}.", "", f"Page {i}"] for i, word in enumerate("abcd", 1)]
        found = pdf.load(make_pdf(pages), LIMITS)
        assert found.text == "Report 2024\nText of page a.\n\nText of page b.\n\nText of page c.\n\nText of page d."
        assert [found.text[start:].split("\n\n")[0][-2:] for start in found.page_starts[1:]] == ["b.", "c.", "d."]

    @pytest.mark.parametrize("title", ["0000320193-22-000070", "Microsoft Word - x.doc", "untitled", "thesis.tex", ""])
    def test_a_title_that_a_program_made_is_none(self, title: str) -> None:
        assert pdf.load(make_pdf([["Text."]], title), LIMITS).title == ""

    def test_pages_without_text_are_told(self) -> None:
        with pytest.raises(Unreadable, match="no text on any of 2 pages: perhaps they are scanned"):
            pdf.load(make_pdf([[], []]), LIMITS)

    def test_too_many_pages_are_refused(self) -> None:
        with pytest.raises(Unreadable, match="30 pages; 20 are allowed"):
            pdf.load(make_pdf([["x"]] * 30), LIMITS)

    def test_a_count_of_a_million_pages_is_no_million_pages(self) -> None:
        with pytest.raises(Unreadable):
            pdf.load(make_pdf([["x"]]).replace(b"/Count 1 ", b"/Count 1000000 "), LIMITS)

    @pytest.mark.parametrize("keep", [0.2, 0.5])
    def test_a_truncated_file_is_refused(self, keep: float) -> None:
        whole = make_pdf([["Some text."]])
        with pytest.raises(Unreadable):
            pdf.load(whole[: int(len(whole) * keep)], LIMITS)

    def test_compressed_text_is_read(self) -> None:
        stream = zlib.compress(b"BT /F1 10 Tf 1 0 0 1 50 700 Tm (Packed.) Tj ET")
        assert pdf.load(make_pdf([[]], content=stream, extra=b"/Filter /FlateDecode"), LIMITS).text == "Packed."


class TestFormats:
    @pytest.mark.parametrize(
        ("head", "name", "format"),
        [
            (b"%PDF-1.7", "report.txt", "pdf"),
            (b"junk\n%PDF-1.7", "report", "pdf"),
            (b"<!DOCTYPE html><p>", "page.md", "html"),
            (b"\xef\xbb\xbf\n<html>", "page.txt", "html"),
            ("<html>".encode("utf-16"), "page.txt", "html"),
            (b"<?xml version='1.0'?><html xmlns=x>", "a.xhtml", "html"),
            (b"# Title", "a.MD", "markdown"),
            (b"<p>part", "a.htm", "html"),
            (b"plain", "a.rst", "text"),
            (b"plain", "README", "text"),
        ],
    )
    def test_content_goes_before_the_name(self, head: bytes, name: str, format: str) -> None:
        assert formats.detect(head, name) == format

    def test_what_calls_itself_a_pdf_and_is_none_is_refused(self) -> None:
        with pytest.raises(Unreadable, match=r"ends in \.pdf, but it holds no PDF"):
            formats.detect(b"hello", "a.pdf")


def test_many_headings_take_linear_time() -> None:
    builder = TextBuilder()
    for number in range(50_000):
        builder.heading(number % 6 + 1, f"h{number}")
    assert len(builder.sections()) == 50_000
