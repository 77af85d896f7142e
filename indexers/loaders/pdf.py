"""PDF pages as text to read, through PDFium."""

from __future__ import annotations

from indexers.loaders.extracted import Extracted, Limits, Unreadable


def load(data: bytes, limits: Limits) -> Extracted:
    """A PDF file's text, page by page."""
    import pypdfium2 as pdfium

    try:
        pdf = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        raise Unreadable(f"It is no readable PDF: {error}.") from error
    text, starts = "", []
    for page in pdf:
        starts.append(len(text))
        text += page.get_textpage().get_text_range().replace("\r\n", "\n") + "\n\n"
    return Extracted(text.rstrip(), "application/pdf", page_starts=tuple(starts))
