"""The scripts, styles and forms of the page."""

import html
from importlib.resources import files


def asset(name: str) -> str:
    """Return the text of a file of this folder."""
    return (files(__name__) / name).read_text(encoding="utf-8")


def login_page(problem: str = "") -> str:
    """Return the form that asks for a token."""
    return asset("login.html").replace("<!-- problem -->", html.escape(problem))
