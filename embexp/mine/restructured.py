"""Renders reStructuredText as HTML with docutils, whatever Sphinx directives and roles it uses. Called by `formats`.

Directives and roles that docutils does not know keep their words; a described function or class becomes a section of
its own. Nothing else is read or run: files that a text includes and raw output are left out.
"""

from __future__ import annotations

import re
from typing import Any

DIRECTIVE = re.compile(r"^\s*\.\. (?:\|[^|\n]+\| )?([\w.:+-]*\w) ?::(?=\s|$)", re.MULTILINE)
ROLE = re.compile(r":(\w[\w.:+-]*):(?=`)|(?<=`):(\w[\w.:+-]*):")
TARGET = re.compile(r"^(.+?)\s*<[^<>]+>$", re.DOTALL)
# what says how pages are joined, numbered or built, and nothing about the subject
SILENT = {
    "codeauthor", "contents", "currentmodule", "default-domain", "highlight", "index", "literalinclude",
    "sectionauthor", "sectnum", "tabularcolumns", "toctree", "testsetup", "testcleanup",
}  # fmt: skip
LITERAL = {"code", "code-block", "console", "doctest", "graphviz", "ipython", "mermaid", "plot", "productionlist",
           "prompt", "sourcecode", "testcode", "testoutput"}  # fmt: skip
OBJECTS = {"attribute", "class", "confval", "data", "decorator", "describe", "envvar", "exception", "function", "macro",
           "method", "object", "option", "property", "type"}  # fmt: skip
LABELS = {"seealso": "See also:", "deprecated": "Deprecated since version", "versionadded": "Added in version",
          "versionchanged": "Changed in version", "versionremoved": "Removed in version"}  # fmt: skip
SETTINGS = {
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "_disable_config": True,  # no docutils.conf of this machine
    "report_level": 1,  # messages are taken out of the tree here, since some hold the words of a directive
    "halt_level": 5,
    "warning_stream": False,
    "doctitle_xform": False,
    "docinfo_xform": False,
    "initial_header_level": 1,
    "line_length_limit": 10**9,
    "syntax_highlight": "none",
    "math_output": "LaTeX",
    "embed_stylesheet": False,
    "input_encoding": "unicode",
    "output_encoding": "unicode",
}


def html_of(text: str) -> str:
    """Render a text as an HTML page; fields before the first title (`:orphan:`) are left out, as front matter is."""
    from docutils import nodes
    from docutils.core import publish_doctree, publish_from_doctree

    _accept_unknown(text)
    tree = publish_doctree(text, settings_overrides=SETTINGS)
    for message in list(tree.findall(nodes.system_message)):
        # of a directive that can't be obeyed its source is kept; warnings are about files and raw output
        kept = [node for node in message.children if isinstance(node, nodes.literal_block) and message["level"] >= 3]
        message.parent.replace(message, kept)
    visible = [node for node in tree.children if not isinstance(node, nodes.Invisible)]
    if visible and isinstance(visible[0], nodes.field_list):
        tree.remove(visible[0])
    page = publish_from_doctree(tree, writer="html5", settings_overrides={**SETTINGS, "report_level": 5})
    return re.sub(r"<title>.*?</title>", "", str(page), count=1)  # it has a title even when the text has none


def _accept_unknown(text: str) -> None:
    """Register every name that the text uses and docutils has not; they stay for the process, which does no harm."""
    from docutils.parsers.rst import directives, roles
    from docutils.parsers.rst.languages import en

    used = {found.lower() for found in DIRECTIVE.findall(text)}
    for name in used & {*SILENT, *LITERAL, "class"} | used - set(en.directives):
        directives.register_directive(name, _directive(name))
    for name in {(before or after).lower() for before, after in ROLE.findall(text)} - set(en.roles):
        roles.register_local_role(name, _role)


class _AnyOptions(dict[str, Any]):
    """Accepts every option of a directive as it stands."""

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, name: str) -> Any:
        return lambda value: value


def _directive(name: str) -> Any:
    """A directive that keeps its argument and content."""
    from docutils import nodes
    from docutils.parsers.rst import Directive
    from docutils.parsers.rst.directives.misc import Class

    class Known(Directive):
        optional_arguments = 1
        final_argument_whitespace = True
        has_content = True
        option_spec = _AnyOptions()

        def run(self) -> list[Any]:
            argument = self.arguments[0] if self.arguments and name != "only" else ""
            if name in SILENT:
                return []
            if name in LITERAL:
                content = "\n".join(self.content)
                caption = self.options.get("caption")
                shown = [nodes.paragraph(caption, caption)] if caption else []
                return [*shown, *([nodes.literal_block(content, content)] if content else [])]
            if name == "class" and not re.search(r"[A-Z(.]", argument) and argument:
                return list(Class.run(self))  # Sphinx describes a class with it, docutils gives its content a CSS class
            if argument and (name in OBJECTS or ":" in name):
                title = nodes.title("", " ".join(argument.split()))
                return [nodes.section("", title, *self._inner())]
            inline, _ = self.state.inline_text(f"{LABELS.get(name, '')} {argument}".strip(), self.lineno)
            return [*([nodes.paragraph("", "", *inline)] if inline else []), *self._inner()]

        def _inner(self) -> list[Any]:
            inner = nodes.Element()
            self.state.nested_parse(self.content, self.content_offset, inner)
            return inner.children

    return Known


def _role(name: str, rawtext: str, text: str, lineno: int, inliner: Any, **_: Any) -> tuple[list[Any], list[Any]]:
    """A role's words: the title of ``title <target>``, else the text without Sphinx's ~ and ! in front."""
    from docutils import nodes

    plain = nodes.unescape(text)
    title = TARGET.match(plain)
    return [nodes.inline(rawtext, title[1] if title else plain.lstrip("~!"))], []
