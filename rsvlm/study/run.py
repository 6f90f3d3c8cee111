"""Run one stage's notebook with its own section of params.yaml.

``python -m rsvlm.study.run finetune_lora`` checks names and types of the section against the notebook's parameters
cell, runs the stripped copy from ``build/notebooks`` in the project's root, streams what the cells print, removes what
changes from run to run, and writes ``reports/notebooks/40_finetune_lora.ipynb`` whole. A failed run leaves its copy in
``.rsvlm/failed/`` and no result.

papermill's command line is not used: it turns ``false`` into a word, ``1e-4`` too, and only warns of unknown names.
"""

import argparse
import html
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from rsvlm.disks import disk_trouble, shown_size
from rsvlm.files import InUse, write_text
from rsvlm.progress import LOG_LINE, SECONDS, seconds_between
from rsvlm.study import paths
from rsvlm.study.config import (
    PARAMETERS_TAG,
    check_section,
    check_values,
    parameters_cell,
    read_section,
    settings_of,
    use_cluster,
)
from rsvlm.study.memory import check_memory
from rsvlm.study.models import STAGE as OTHER
from rsvlm.study.models import leave_reason, model_entry
from rsvlm.study.processes import end_with_dvc, only_run
from rsvlm.study.settings import SECTIONS

AGAIN = ", then `dvc repro` again: finished stages are kept"
RESULT_TAG = "result"  # of the cells that say what came out: in the executed notebook they stand below the title
NEARLY_FULL = 10e6  # bytes
INJECTED = "injected-parameters"  # papermill's tag
WIDGET = "application/vnd.jupyter.widget-view+json"
# Set for the notebook's kernel. The first four are there for equal bytes on a rerun, whoever runs it and how.
KERNEL_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "MATPLOTLIBRC": str(Path(__file__).with_name("matplotlibrc")),
    "SOURCE_DATE_EPOCH": "0",  # matplotlib writes this date into SVG and PDF
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # torch's deterministic mode asks for it on GPUs
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # the kernel's debugger warns on stderr otherwise
}


class NotebookFailed(RuntimeError):
    """A cell raised, or the kernel died. The message names the cell, the error and the failed copy."""


def find_notebook(stage: str, folder: Path | None = None) -> Path:
    """The notebook ``NN_stage.ipynb`` in a folder.

    Raises:
        FileNotFoundError: there is none, or more than one; names the folder and what to do.
    """
    folder = folder or paths.STRIPPED
    found = sorted(folder.glob(f"[0-9][0-9]_{stage}.ipynb"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{folder}: {'several notebooks' if found else 'no notebook'} NN_{stage}.ipynb;"
            " `dvc repro strip` (or `python -m rsvlm.study.strip`) makes the copies that run"
        )
    return found[0]


def run_notebook(
    stage: str, params_file: Path | None = None, log: Callable[[str], None] | None = None, model: str = ""
) -> Path:
    """The path of the executed notebook, after running a stage.

    Args:
        model: of a stage that runs once for each of other models, which one.

    Raises:
        ValueError: the section does not fit the notebook (before anything runs).
        NotebookFailed: a cell raised or the kernel died.
    """
    log = log or (lambda text: print(text, file=sys.stderr, flush=True))
    params_file = params_file or paths.PARAMS
    source = find_notebook(stage)
    shown = f"notebooks/{source.name}"
    kind = settings_of(stage, nbformat.read(source, as_version=4), shown)
    values = check_section(read_section(params_file, stage), kind, file=str(params_file), section=stage, notebook=shown)
    values |= {"model": model} if model else {}
    check_values(values, paths.ROOT, file=str(params_file), section=stage)
    check_memory(stage, values, log, file=str(params_file))
    use_cluster()

    log(f"[{stage}] {shown}")
    started = time.monotonic()
    name = f"{source.stem}_{model}{source.suffix}" if model else source.name
    target = paths.EXECUTED / name
    running = paths.FAILED / name  # what a failed or killed run leaves; a whole one moves on
    running.parent.mkdir(parents=True, exist_ok=True)
    running.unlink(missing_ok=True)
    try:
        _execute(stage, source, running, values)
    except (PapermillExecutionError, DeadKernelError, KeyboardInterrupt) as error:
        raise NotebookFailed(_explain(stage, shown, error, running)) from error
    keep_executed(running, target, parameters_cell(kind, values))
    running.unlink()
    log(f"[{stage}] done in {time.monotonic() - started:.0f} s")
    return target


def keep_executed(ran: Path, target: Path, parameters: str) -> None:
    """Write an executed notebook without what differs between two runs; as ``without_traces``."""
    notebook = without_traces(nbformat.read(ran, as_version=4), parameters)
    write_text(target, nbformat.writes(notebook) + "\n")


def run_other_model(model: str, params_file: Path | None = None) -> None:
    """Run the notebook of another model; where it fails, the reason is its result, and the others go on.

    Raises:
        ValueError: the parameters cannot be, whatever the model does.
        NotebookFailed: it was stopped by hand.
    """
    file = params_file or paths.PARAMS
    section = read_section(file, OTHER)
    entry = model_entry(section["models"], model)
    try:
        run_notebook(OTHER, params_file, model=model)
    except NotebookFailed as failure:
        cause = failure.__cause__
        if isinstance(cause, KeyboardInterrupt):
            raise
        told = f"{cause.ename}: {cause.evalue}" if isinstance(cause, PapermillExecutionError) else str(failure)
        leave_reason(model, entry, told.strip())
        source = find_notebook(OTHER)
        name = f"{source.stem}_{model}.ipynb"
        ran = paths.FAILED / name
        keep_executed(
            ran if ran.is_file() else source,
            paths.EXECUTED / name,
            parameters_cell(SECTIONS[OTHER], section | {"model": model}),
        )
        print(f"{failure}\n[{OTHER}] {model} has a row with this reason; the next run tries again", file=sys.stderr)


def without_traces(notebook: NotebookNode, parameters: str) -> NotebookNode:
    """The executed notebook without what differs between two runs with the same seed, its result below the title.

    Dropped: papermill's and the kernel's times, papermill's cell of values (they stand in the parameters cell instead),
    stderr (progress bars), widget views. Printed text that reached the notebook in pieces is joined: where it is cut
    depends on the clock. What was logged stays, folded.

    Args:
        parameters: the parameters cell's source with the values used.
    """
    metadata = {key: notebook.metadata[key] for key in ("kernelspec", "language_info") if key in notebook.metadata}
    notebook.metadata = nbformat.from_dict(metadata)
    notebook.cells = [cell for cell in notebook.cells if INJECTED not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if PARAMETERS_TAG in tags:
            cell.source = parameters
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = number
        cell.outputs = _joined(output for output in [*_log(cell.outputs), *cell.outputs] if not _is_passing(output))
    results = [cell for cell in notebook.cells if RESULT_TAG in cell.metadata.get("tags", [])]
    rest = [cell for cell in notebook.cells if cell not in results]
    shown = [cell for cell in results if cell.cell_type == "code"]  # not the words that lead to it at the end
    for cell in shown:
        cell.metadata["jupyter"] = {"source_hidden": True}
    notebook.cells = rest[:1] + shown + rest[1:]
    return notebook


def _execute(stage: str, source: Path, target: Path, values: dict) -> None:
    os.environ.update(KERNEL_ENVIRONMENT)
    root, ipython = paths.ROOT, paths.CACHE / "ipython"
    ipython.mkdir(parents=True, exist_ok=True)
    os.environ["IPYTHONDIR"] = str(ipython)  # no start-up files or history of the user's own: equal bytes
    paths.use_own_cache()
    os.environ.setdefault(SECONDS, str(seconds_between()))  # this process knows whether its stderr is a terminal
    os.environ["RSVLM_ROOT"] = str(root)  # a relative one would mean another folder inside the kernel
    packages = [
        str(root),
        str(Path(__file__).parents[2]),
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
    ]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(packages))
    # Told to this kernel alone: a variable of the environment would reach whatever the kernel starts
    join = f"__import__('rsvlm.study.processes').study.processes.join_stage({stage!r}, {os.getpid()})"
    # papermill's own reading of the parameters cell knows no `int | None`; names and types were checked before
    logging.getLogger("papermill").setLevel(logging.ERROR)
    papermill.execute_notebook(
        str(source),
        str(target),
        parameters=values,
        kernel_name="python3",
        cwd=str(root),
        progress_bar=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
        # One file for each stage, which the next run writes anew: a killed one leaves no more than that
        config=Config(KernelManager={"connection_file": str(paths.LOCKS / f"{stage}.json")}),
        start_timeout=300,  # a cold, busy machine takes its time to start a kernel
        extra_arguments=[
            "--IPKernelApp.log_level=ERROR",  # it warns of its own transport at every start
            f"--IPKernelApp.exec_lines={join}",
        ],
    )


def _log(outputs: Sequence[NotebookNode]) -> list[NotebookNode]:
    """What a cell logged, in one folded box; nothing where it logged nothing."""
    lines = [line for output in outputs if (line := output.get("data", {}).get(LOG_LINE))]
    if not lines:
        return []
    text = "\n".join(lines)
    page = f"<details><summary>Log, {len(lines)} lines</summary><pre>{html.escape(text)}</pre></details>"
    return [nbformat.v4.new_output("display_data", {"text/html": page, "text/plain": text})]


def _is_passing(output: NotebookNode) -> bool:
    if output.output_type == "stream":
        return output.name == "stderr"
    return WIDGET in output.get("data", {}) or LOG_LINE in output.get("data", {})


def _joined(outputs) -> list[NotebookNode]:
    joined: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _explain(stage: str, shown: str, error: BaseException, kept: Path) -> str:
    place = f"; the copy with its outputs: {kept}" if kept.is_file() else ""
    if isinstance(error, PapermillExecutionError):
        if trouble := disk_trouble(error.evalue, paths.ROOT):
            return f"[{stage}] {shown}, cell {error.cell_index + 1}: {trouble}{AGAIN}{place}"
        return f"{error}\n[{stage}] {shown}, cell {error.cell_index + 1}: {error.ename}: {error.evalue}{place}"
    if isinstance(error, KeyboardInterrupt):
        return f"[{stage}] {shown}: stopped by hand{place}"
    free = shutil.disk_usage(paths.ROOT).free  # a write into a mapped file ends a process when there is no room for it
    why = "out of memory?" if free > NEARLY_FULL else f"the disk has {shown_size(free)} left"
    return f"[{stage}] {shown}: the kernel died ({why}): {error}{place}"


def main() -> int:
    """Run the stage named on the command line; 0 when its notebook ran to the end."""
    parser = argparse.ArgumentParser(description="Run a stage's notebook with its section of params.yaml.")
    parser.add_argument("stage", help="a section of params.yaml, such as finetune_lora")
    parser.add_argument("--params", type=Path, help="another parameter file")
    parser.add_argument("--model", help=f"of {OTHER}: which of its models")
    arguments = parser.parse_args()
    try:
        end_with_dvc()
        find_notebook(arguments.stage)
        with only_run(arguments.stage):
            if arguments.model:
                run_other_model(arguments.model, arguments.params)
            else:
                run_notebook(arguments.stage, arguments.params)
    except (ValueError, OSError, NotebookFailed, InUse) as error:
        trouble = disk_trouble(str(error), paths.ROOT) if isinstance(error, OSError) else None
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError) and trouble is None:
            raise
        print(f"[{arguments.stage}] {trouble}{AGAIN}" if trouble else error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
