from __future__ import annotations

import pytest

from tools.docstrings import parse

GOOGLE = """Find a book.

    By title.

    Args:
        title (str, optional): the title,
            in full: with its subtitle.
        year: of printing.
        *rest: never shown.

    Raises:
        KeyError: no such book.
    """

NUMPY = """Find a book.

    By title.

    Parameters
    ----------
    title : str, optional
        the title,
        in full: with its subtitle.
    year
        of printing.

    Returns
    -------
    str
        the book.
    """

REST = """Find a book.

    By title.

    :param str title: the title,
        in full: with its subtitle.
    :param year: of printing.
    :type year: int
    :returns: the book.
    :raises KeyError: no such book.
    """


@pytest.mark.parametrize("docstring", [GOOGLE, NUMPY, REST], ids=["google", "numpy", "rest"])
def test_three_styles_say_the_same(docstring: str) -> None:
    prose, parameters = parse(docstring)
    assert prose == "Find a book.\n\nBy title."
    assert parameters["title"] == "the title, in full: with its subtitle."
    assert parameters["year"] == "of printing."
    assert "str" not in parameters
    assert "KeyError" not in parameters


@pytest.mark.parametrize("docstring", [None, "", "   \n  "])
def test_nothing_gives_nothing(docstring: str | None) -> None:
    assert parse(docstring) == ("", {})


def test_prose_with_colons_is_no_section() -> None:
    assert parse("Note this: it is prose.\n\nUnits: metres.") == ("Note this: it is prose.\n\nUnits: metres.", {})


def test_numpy_parameters_may_share_a_description() -> None:
    docstring = "Add.\n\nParameters\n----------\nx, y : int\n    the terms."
    assert parse(docstring)[1] == {"x": "the terms.", "y": "the terms."}
