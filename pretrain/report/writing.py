"""A page written to disk: as Markdown with its pictures, and as HTML.

Holds the names of the files; what is in them is for `markdown`, `html` and `figures`. Free of torch.
"""

from __future__ import annotations

from pathlib import Path

from pretrain.files import replace_file
from pretrain.report.figures import picture
from pretrain.report.html import html
from pretrain.report.markdown import markdown
from pretrain.report.page import Charts, Matrix, Page

MARKDOWN_FILE = "report.md"
HTML_FILE = "report.html"


def write_page(page: Page, folder: Path) -> tuple[Path, Path]:
    """Write a page into a directory that is there; return the paths of its HTML and its Markdown.

    A link in the place of a file is replaced, not followed.
    """
    blocks = [block for section in page.sections for block in section.blocks]
    pictures = {block.name: picture(block) for block in blocks if isinstance(block, Charts | Matrix)}
    for name, image in pictures.items():
        replace_file(folder / f"{name}.png", [image])
    replace_file(folder / HTML_FILE, [html(page, pictures)])
    replace_file(folder / MARKDOWN_FILE, [markdown(page).encode()])
    return folder / HTML_FILE, folder / MARKDOWN_FILE
