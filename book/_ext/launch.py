"""Takes the button that opens a page in Colab from pages that are no `.ipynb` file, which is all that Colab opens."""

from sphinx.application import Sphinx


def drop_launch_buttons(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    if doctree is not None and not str(app.env.doc2path(pagename)).endswith(".ipynb"):
        buttons = context.get("header_buttons", [])
        buttons[:] = [button for button in buttons if button.get("label") != "launch-buttons"]


def setup(app: Sphinx) -> dict:
    # After the theme, which puts it there in the same event.
    app.connect("html-page-context", drop_launch_buttons, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
