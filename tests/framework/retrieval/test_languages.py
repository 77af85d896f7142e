from __future__ import annotations

import pytest

from framework.retrieval.languages import unread_script


@pytest.mark.parametrize(
    ("text", "languages", "script"),
    [
        ("What is a lectern?", ("en",), None),
        ("Qu'est-ce que c'est ?", ("en",), None),
        ("Что такое кафедра?", ("en",), "Cyrillic"),
        ("Что такое кафедра?", ("en", "uk"), None),
        ("什么是讲台", ("en",), "Han"),
        ("講台とは何ですか", ("ja",), None),
        ("강의대란", ("en", "zh"), "Hangul"),
        ("ما هو المنبر", ("en",), "Arabic"),
        ("Τι είναι", ("en",), "Greek"),
        ("What is a lectern?", ("zh",), "Latin"),
        ("error 0x80070005 in модуль", ("en",), None),
        ("модуль windows печати принтера", ("en",), "Cyrillic"),
        ("12345 ?!", ("en",), None),
        ("", ("en",), None),
        ("Что угодно", (), None),
        ("Шта је", ("sr",), None),
        ("Šta je", ("sr",), None),
    ],
)
def test_the_script_of_most_letters_decides(text: str, languages: tuple[str, ...], script: str | None) -> None:
    assert unread_script(text, languages) == script
