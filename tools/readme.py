"""README.md from nbs/index.ipynb, without Quarto: `python tools/readme.py`, or `--check` to fail when it is stale.

`#| hide` cells and directives are left out, links are made relative to the project, pictures go to README_files/."""
import re, shutil, sys
from pathlib import Path, PurePosixPath
from posixpath import normpath
import nbformat
from nbconvert import MarkdownExporter
from tree import ROOT

NOTE = '<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook, not this file. -->\n\n'
PICTURES = 'README_files'


def directives(
    source: str,  # of a code cell
) -> set[str]:  # 'hide', 'echo: false', ...
    "The `#|` lines of a cell"
    return {' '.join(o.split()).rstrip() for o in re.findall(r'^\s*#\s*\|\s*(.+)$', source, re.M)}


def for_reader(
    cell,  # of the notebook
):
    "The cell as a reader sees it, or None"
    if cell.cell_type != 'code': return cell
    ds = directives(cell.source)
    if ds & {'hide', 'include: false'}: return None
    cell.source = re.sub(r'^\s*#\s*\|.*\n?', '', cell.source, flags=re.M).strip()
    if ds & {'hide_input', 'echo: false'}: cell.source = ''
    if ds & {'hide_output', 'output: false'}: cell.outputs = []
    cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']
    for o in cell.outputs:
        data = o.get('data', {})
        if 'text/html' in data and not data.get('text/plain', '<').startswith('<'): del data['text/html']
    return cell if cell.source or cell.outputs else None


def from_root(
    text: str,  # markdown whose links are relative to nbs/
) -> str:
    "Links and pictures relative to the project's root"
    def fix(m):
        url = m[2]
        if re.match(r'[a-z][a-z0-9+.-]*:|#|/', url) or url.startswith(PICTURES): return m[0]
        return m[1] + normpath(PurePosixPath('nbs')/url) + m[3]
    parts = re.split(r'(^```.*?^```$)', text, flags=re.M | re.S)
    return ''.join(o if i % 2 else re.sub(r'(\]\()([^)\s]+)(\))', fix, o) for i, o in enumerate(parts))


def convert(
    path: Path = ROOT/'nbs'/'index.ipynb',  # the notebook
) -> dict[str, bytes]:  # path from the project's root: contents
    "The README and its pictures"
    nb = nbformat.read(path, as_version=4)
    nb.cells = [o for o in map(for_reader, nb.cells) if o is not None]
    nb.metadata = {'language_info': {'name': 'python'}}
    text, res = MarkdownExporter().from_notebook_node(nb, {'output_files_dir': PICTURES, 'unique_key': 'index'})
    text = re.sub(r'[ \t]+$', '', from_root(text), flags=re.M)
    text = re.sub(r'```python\n+```\n', '', text)                     # a cell whose code is not for readers
    text = NOTE + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    return {'README.md': text.encode(), **{str(k): v for k, v in res['outputs'].items()}}


def stored() -> dict[str, bytes]:  # path from the project's root: contents
    "The README and the pictures that stand in the tree"
    return {str(o.relative_to(ROOT)): o.read_bytes() for o in [ROOT/'README.md', *sorted((ROOT/PICTURES).glob('*'))] if o.exists()}


if __name__ == '__main__':
    want = convert()
    if '--check' in sys.argv[1:]:
        if stored() != want: sys.exit('README.md is stale: run `make readme`')
        print('README.md is what nbs/index.ipynb says')
    else:
        shutil.rmtree(ROOT/PICTURES, ignore_errors=True)
        for name, data in want.items():
            (ROOT/name).parent.mkdir(exist_ok=True)
            (ROOT/name).write_bytes(data)
        print('wrote', ', '.join(want))
