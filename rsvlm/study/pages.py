"""The executed notebooks as pages: readable offline, on a phone, in the dark, with their code folded away.

``python -m rsvlm.study.pages`` makes ``reports/notebooks/index.html`` and a page for each notebook beside it.
"""

import re
import sys
from pathlib import Path

import nbformat
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from rsvlm.disks import told_in_a_line
from rsvlm.files import whole_folder, write_text
from rsvlm.study import paths
from rsvlm.study.config import PARAMETERS_TAG
from rsvlm.study.run import RESULT_TAG
from rsvlm.viewing.page import render_page

# Code is folded, but for the parameters; prompts and anchors are left out.
CELLS = f"""{{%- extends 'basic/index.html.j2' -%}}
{{%- block in_prompt -%}}{{%- endblock in_prompt -%}}
{{%- block output_area_prompt -%}}{{%- endblock output_area_prompt -%}}
{{%- block input_group -%}}
{{%- if '{RESULT_TAG}' in cell.metadata.get('tags', []) -%}}
{{%- else -%}}
<details class="code" {{{{ 'open' if '{PARAMETERS_TAG}' in cell.metadata.get('tags', []) }}}}>
<summary>{{{{ 'Parameters' if '{PARAMETERS_TAG}' in cell.metadata.get('tags', []) else 'Code' }}}}</summary>
{{{{ super() }}}}
</details>
{{%- endif -%}}
{{%- endblock input_group -%}}
"""


def publish(executed: Path) -> Path:
    """The index of pages of the executed notebooks in a folder; pages lie in ``html`` beside it.

    Raises:
        FileNotFoundError: no executed notebook is there.
    """
    found = sorted(executed.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(f"{executed}: no executed notebook; `make study` makes them")
    entries = []
    with whole_folder(executed / "html") as folder:
        for place, path in enumerate(found):
            notebook = nbformat.read(path, as_version=4)
            near = {
                "before": found[place - 1].stem if place else None,
                "after": found[place + 1].stem if place + 1 < len(found) else None,
            }
            title = _title(notebook, path.stem)
            write_text(
                folder / f"{path.stem}.html", _page("notebook.html", title=title, body=body_of(notebook), **near)
            )
            entries.append(
                {"name": path.stem, "title": title, "question": _question(notebook), "result": _result(notebook)}
            )
    write_text(executed / "index.html", _page("notebooks.html", entries=entries))
    return executed / "index.html"


def body_of(notebook: NotebookNode) -> Markup:
    """A notebook's cells as HTML, its code folded."""
    exporter = HTMLExporter(raw_template=CELLS, anchor_link_text="", exclude_anchor_links=True)
    body, _ = exporter.from_notebook_node(notebook)
    return Markup(body)  # the page's security policy runs no script of it and loads nothing


def _title(notebook: NotebookNode, name: str) -> str:
    heading = re.search(r"^# (.+)$", notebook.cells[0].source, re.MULTILINE) if notebook.cells else None
    return heading.group(1) if heading else name


def _question(notebook: NotebookNode) -> str:
    found = re.search(r"\*\*Question\.\*\* (.+)", notebook.cells[0].source)
    return found.group(1) if found else ""


def _result(notebook: NotebookNode) -> str:
    """The sentence of the result cell, as plain text."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and RESULT_TAG in cell.metadata.get("tags", []):
            for output in cell.outputs:
                text = output.get("text") or output.get("data", {}).get("text/plain", "")
                if text and not text.startswith("<"):
                    return text.strip().strip("'\"")
    return ""


def _page(template: str, **values: object) -> str:
    colours = [HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("friendly", "github-dark")]
    code = Markup(f"{colours[0]}\n@media (prefers-color-scheme: dark) {{ {colours[1]} }}")
    return render_page(template, (), ("notebooks.css",), terms={}, code_style=code, **values)


@told_in_a_line
def main() -> int:
    """Make the pages of the study in place."""
    publish(paths.EXECUTED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
