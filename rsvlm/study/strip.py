"""Notebooks without what a run leaves in them.

``python -m rsvlm.study.strip 10_aggregate_data`` writes the stripped copy that the study runs, ``build/notebooks/...``:
opening or running the notebook in JupyterLab changes the file, but not this copy, so that nothing has to run again.
``python -m rsvlm.study.strip --in-place`` strips all of ``notebooks/`` for a commit.
"""

import argparse
import sys

import nbformat
from nbformat import NotebookNode
from nbstripout import strip_output

from rsvlm.disks import told_in_a_line
from rsvlm.files import write_text
from rsvlm.study import paths

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def stripped(notebook: NotebookNode) -> NotebookNode:
    """A copy with sources, cell ids and tags only: no outputs, counts, and nothing that an editor notes down."""
    copy = strip_output(nbformat.from_dict(notebook), keep_output=False, keep_count=False, keep_id=True)
    copy.metadata = nbformat.from_dict(METADATA)
    for cell in copy.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
    return copy


def as_text(notebook: NotebookNode) -> str:
    """The notebook as the JSON text that belongs into git."""
    return nbformat.writes(notebook, version=4) + "\n"


@told_in_a_line
def main() -> None:
    """Strip one notebook into the build folder, or all of them where they are."""
    parser = argparse.ArgumentParser(description="Write stripped copies of notebooks.")
    parser.add_argument("names", nargs="*", help="names like 10_aggregate_data; all notebooks when left out")
    parser.add_argument("--in-place", action="store_true", help="strip the notebooks themselves, for a commit")
    arguments = parser.parse_args()
    names = arguments.names or sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb"))
    for name in names:
        source = paths.NOTEBOOKS / f"{name}.ipynb"
        target = source if arguments.in_place else paths.STRIPPED / source.name
        text = as_text(stripped(nbformat.read(source, as_version=4)))
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            write_text(target, text)


if __name__ == "__main__":
    sys.exit(main())
