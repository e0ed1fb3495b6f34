"""Checks the API reference: its docstrings, its references and whether it is complete.

* What griffe finds wrong with a docstring (an argument that the function does not have, say)
  becomes a warning of Sphinx, which itself checks the markup only.
* A name in a docstring may be short: one that Sphinx does not find from where it stands is looked
  for at the end of all documented names. A full name that exists in the package, but is on no
  page, remains text; a name that does not exist is an error.
* A text that begins like "K." reads as a lettered list.
* Each name in ``__all__`` of the package and of the packages in it must be on some page.
"""

import logging
from contextlib import suppress
from typing import Any

import griffe
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.logging import getLogger

_PACKAGE = griffe.load("vqvae_fast")
_logger = getLogger(__name__)


class _Warnings(logging.Handler):
    """Hands the warnings of griffe on to Sphinx."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one on."""
        _logger.warning("%s", record.getMessage())


def _check_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Let griffe parse a docstring that is on the site."""
    if what == "module":
        return
    with suppress(griffe.AliasResolutionError):  # a name that a module imports from elsewhere
        docstring = _PACKAGE[name.removeprefix(f"{_PACKAGE.name}.")].docstring
        if docstring is not None:
            griffe.parse(docstring, griffe.Parser.google)


def _find_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement
) -> nodes.Element | None:
    """Look for a name that ends as the reference says."""
    if node.get("refdomain") != "py":
        return None
    node["refspecific"] = True
    target = node["reftarget"]
    known = _where_defined(target)
    resolve = env.domains.python_domain.resolve_xref
    found = resolve(env, node["refdoc"], app.builder, node["reftype"], known or target, node, text)
    return text if found is None and known else found


def _where_defined(name: str) -> str | None:
    """Return the full name by the module that defines it; None if the package has no such name."""
    with suppress(KeyError, griffe.AliasResolutionError):
        return _PACKAGE[name.removeprefix(f"{_PACKAGE.name}.")].canonical_path
    return None


def _check_lists(app: Sphinx, doctree: nodes.document) -> None:
    """Warn of a sentence that was read as a list: "K." is the head of an eleventh entry."""
    for found in doctree.findall(nodes.enumerated_list):
        if found["enumtype"] != "arabic":
            head = f"{found['enumtype']} {found.get('start', 1)}"
            _logger.warning("a text reads as a list (%s): %s", head, found.astext(), location=found)


def _check_completeness(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names that no page describes."""
    described = {_where_defined(name) for name in env.domains.python_domain.objects}
    for module in (_PACKAGE, *(m for m in _PACKAGE.modules.values() if m.is_init_module)):
        for name in module.exports or ():
            if not name.startswith("_") and module[name].canonical_path not in described:
                path = f"{module.path}.{name}"
                _logger.warning("%s is public, but no page of docs/api describes it", path)


def setup(app: Sphinx) -> dict[str, Any]:
    """Listen to Sphinx and to griffe."""
    of_griffe = logging.getLogger("griffe")
    of_griffe.addHandler(_Warnings(logging.WARNING))
    of_griffe.propagate = False
    app.connect("autodoc-process-docstring", _check_docstring)
    app.connect("missing-reference", _find_short_name)
    app.connect("doctree-read", _check_lists)
    app.connect("env-check-consistency", _check_completeness)
    return {"parallel_read_safe": True}
