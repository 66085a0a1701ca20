"""report.html: what report.md says and what it has no room for, as one file that asks nobody for anything.

`writing` is called at the end of every run; `content` and `queries` gather, `figures` draws, `document` fills the
templates that lie beside, with style.css and table.js.
"""
