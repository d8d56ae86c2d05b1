"""``comparison.html``: one page with all tables and figures that needs nothing but itself."""

from .page import render_page

__all__ = ["render_page"]
