"""What stands on an HTML page, read by the standard library's parser."""

from html.parser import HTMLParser


class Parsed(HTMLParser):
    """The elements and the tables of a page; `elements` are name, attributes and the text up to the next tag."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.rows, self._in_cell, self._after_start = [], [], False, False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        self._after_start = True
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._after_start = False
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._after_start:
            self.elements[-1][2] += data
        if self._in_cell:
            self.rows[-1][-1] += data

    def all(self, tag):
        """Return attributes and text of the elements of a name."""
        return [(attributes, text) for name, attributes, text in self.elements if name == tag]

    def cells(self):
        """Return the rows of all tables, with single spaces."""
        return [[" ".join(cell.split()) for cell in row] for row in self.rows]
