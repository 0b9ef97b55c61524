"""Run nbs/index.ipynb and every tutorial from the top, each in a fresh kernel; nothing is written back.

`nbdev_test` runs several notebooks in one process, where a seed or a plotting default set by one reaches the next: this does not.
`python tools/run_tutorials.py [NOTEBOOK...]`; a cell marked `#| slow`, `#| notest` or `#| eval: false` is passed over."""
import re, sys, time
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tree import ROOT

PASSED_OVER = re.compile(r'^\s*#\s*\|\s*(slow|notest|eval:\s*false)\s*$', re.M)
LIMIT = 900  # seconds a cell


def run(
    path: Path,  # a notebook
) -> str | None:  # the error, if any
    "Run a notebook in its own folder and in its own kernel"
    nb = nbformat.read(path, as_version=4)
    nb.cells = [o for o in nb.cells if o.cell_type == 'code' and not PASSED_OVER.search(o.source) and 'nbdev_export()' not in o.source]
    try: NotebookClient(nb, timeout=LIMIT, kernel_name='python3', extra_arguments=['--log-level=ERROR'], resources={'metadata': {'path': str(path.parent)}}).execute()
    except CellExecutionError as e: return str(e)
    except Exception as e: return f'{type(e).__name__}: {e}'


if __name__ == '__main__':
    paths = [Path(o).resolve() for o in sys.argv[1:]] or [ROOT/'nbs'/'index.ipynb', *sorted((ROOT/'nbs'/'tutorials').glob('*.ipynb'))]
    failed = []
    for path in paths:
        start = time.perf_counter()
        error = run(path)
        print(f"{'failed' if error else 'ok':>6}  {time.perf_counter() - start:6.1f} s  {path.relative_to(ROOT)}", flush=True)
        if error: failed.append(path); print(error, file=sys.stderr)
    if failed: sys.exit(f'{len(failed)} of {len(paths)} failed')
