"""Makes `[Jensen (1906)](#jensen1906)` a link to the bibliography, so that a citation reads the same in a
rendered page and in a bare notebook."""

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def label_entries(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Every entry of the bibliography becomes a target of its own name."""
    standard = env.get_domain("std")
    # The domain's own answer to a bare `#key` would put "[Jensen, 1906]" in place of the text.
    env.get_domain("cite").resolve_any_xref = lambda *args: []
    for citation in env.get_domain("cite").citations:
        docname = citation.bibliography_key.docname
        standard.anonlabels[citation.key] = docname, citation.citation_id
        standard.labels[citation.key] = docname, citation.citation_id, citation.key
    return []


def setup(app: Sphinx) -> dict:
    # After sphinxcontrib-bibtex, which collects its entries in the same event.
    app.connect("env-updated", label_entries, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
