"""The documentation, as far as it can be checked without Quarto.

- _quarto.yml and nbs/sidebar.yml parse, and nbs/_quarto.yml is a link to the former;
- every notebook is in the sidebar, and every page of the sidebar exists;
- nbdev's preprocessing runs over every notebook and stores no error;
- every link and picture inside the project resolves, headings included, in notebooks and in *.md files."""
import os, re, subprocess, sys
from pathlib import Path
from urllib.parse import unquote
import nbformat, yaml
from nbdev.config import get_config
from tree import ROOT, copy, files

NBS = ROOT/'nbs'
CODE = re.compile(r'^(```+|~~~+).*?^\1|``.+?``|`[^`\n]+`', re.M | re.S)
COMMENT = re.compile(r'<!--.*?-->', re.S)
LINK = re.compile(r'!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*<?([^)<>\s]+)>?(?:\s+"[^"]*")?\s*\)')
TAG = re.compile(r'<(?:a|img)\b[^>]*?\b(?:href|src)\s*=\s*["\']([^"\']+)["\']')
REFERENCE = re.compile(r'^\[[^\]]+\]:\s+(\S+)', re.M)


def pages() -> list[str]:  # relative to nbs/
    "Every notebook"
    return [o.relative_to('nbs').as_posix() for o in files() if o.parts[0] == 'nbs' and o.suffix == '.ipynb']


def sidebar(
    node,  # a piece of sidebar.yml
) -> list[str]:  # relative to nbs/
    "Every page that a piece of the sidebar names, in its order"
    if isinstance(node, str): return [node]
    if isinstance(node, list): return [p for o in node for p in sidebar(o)]
    return [node[k] for k in ('href', 'file') if k in node] + sidebar(node.get('contents', []))


def check_sidebar() -> list[str]:  # what is wrong
    "Configuration parses; sidebar and folder hold the same pages"
    cfg, bar = (yaml.safe_load(o.read_text()) for o in (ROOT/'_quarto.yml', NBS/'sidebar.yml'))
    listed, have, res = sidebar(bar['website']['sidebar']['contents']), pages(), []
    link = NBS/'_quarto.yml'
    if not (link.is_symlink() and link.resolve() == ROOT/'_quarto.yml'): res.append('nbs/_quarto.yml: not a link to ../_quarto.yml')
    if 'sidebar.yml' not in cfg['metadata-files']: res.append('_quarto.yml: does not read sidebar.yml')
    settings = get_config(path=ROOT)
    ours = {'title': settings.title, 'description': settings.description, 'repo-url': settings.git_url,
            'repo-branch': settings.branch, 'site-url': settings.doc_host + settings.doc_baseurl}
    res += [f'_quarto.yml: {k} is {cfg["website"].get(k)!r}, settings.ini has {v!r}' for k, v in ours.items() if cfg['website'].get(k) != v]
    res += [f'nbs/sidebar.yml: {o} does not exist' for o in listed if not (NBS/o).exists()]
    res += [f'nbs/sidebar.yml: {o} is not listed' for o in have if o not in listed]
    return res + [f'nbs/sidebar.yml: {o} is listed twice' for o in sorted(set(listed)) if listed.count(o) > 1]


def check_processing() -> list[str]:  # what is wrong
    "nbdev's preprocessing of every notebook, in a copy (`nbdev_proc_nbs` itself would first install Quarto)"
    with copy() as tree:
        code = 'from nbdev.serve import proc_nbs; proc_nbs(n_workers=0, force=True)'
        run = subprocess.run([sys.executable, '-c', code], cwd=tree, capture_output=True, text=True, env={**os.environ, 'MPLBACKEND': 'Agg'})
        if run.returncode: return ['preprocessing failed:\n' + (run.stdout + run.stderr)[-3000:]]
        made = {o: tree/'_proc'/o for o in pages()}
        res = [f'nbs/{o}: not preprocessed' for o, p in made.items() if not p.exists()]
        for o, p in made.items():
            cells = nbformat.read(p, as_version=4).cells if p.exists() else []
            bad = [out for c in cells for out in c.get('outputs', []) if out.output_type == 'error']
            res += [f'nbs/{o}: {out.ename}: {out.evalue}' for out in bad]
        return res


def slug(
    heading: str,  # markdown
) -> str:
    "The anchor that Quarto and GitHub give to a heading"
    explicit = re.search(r'\{[^}]*#([\w.:-]+)[^}]*\}\s*$', heading)
    if explicit: return explicit[1]
    heading = re.sub(r'\{[^}]*\}\s*$', '', heading)
    heading = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', heading)
    return re.sub(r'\s', '-', re.sub(r'[^\w\s.-]', '', heading.strip().lower()))


def text_of(
    path: Path,  # a notebook or a markdown file
) -> str:  # markdown
    "The prose of a page"
    if path.suffix != '.ipynb': return path.read_text(encoding='utf-8')
    return '\n\n'.join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'markdown')


def anchors(
    path: Path,  # a notebook or a markdown file
) -> set[str]:  # lower case
    "Every place of a page that a link may name: headings, and what a notebook exports"
    prose = COMMENT.sub('', text_of(path))
    prose = re.sub(r'^(```+|~~~+).*?^\1', '', prose, flags=re.M | re.S)
    res = {slug(o) for o in re.findall(r'^#{1,6}\s+(.+?)\s*#*$', prose, re.M)}
    res |= {o.replace('.', '') for o in res} | set(re.findall(r'\bid\s*=\s*["\']([^"\']+)', prose))
    if path.suffix == '.ipynb':
        code = '\n'.join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code')
        res |= set(re.findall(r'^\s*(?:def|class)\s+(\w+)', code, re.M))
        res |= {f'{c}.{f}' for f, c in re.findall(r'^def\s+(\w+)\(\s*self\s*:\s*(\w+)', code, re.M)}
    return {o.lower() for o in res}


def links(
    path: Path,  # a notebook or a markdown file
) -> list[str]:  # as written
    "Every link and picture of a page, code left out"
    prose = CODE.sub('', COMMENT.sub('', text_of(path)))
    return [o for r in (LINK, TAG, REFERENCE) for o in r.findall(prose)]


def html_pages() -> dict[str, Path]:  # path on the site: notebook
    "Where the site shows each notebook: nbdev drops the number of a file"
    return {re.sub(r'(^|/)\d+[a-zA-Z0-9]*_(?=[^/]*$)', r'\1', o).removesuffix('.ipynb') + '.html': NBS/o for o in pages()}


def check_link(
    url: str,  # as written
    path: Path,  # where it stands
    site: dict[str, Path],  # `html_pages()`
) -> str | None:  # what is wrong
    "Resolve one link; those to other sites are not followed"
    settings = get_config(path=ROOT)
    home = settings.doc_host + settings.doc_baseurl
    blob = settings.git_url + '/blob/' + settings.branch + '/'
    ours = url == home or url.startswith(home + '/')
    if re.match(r'[a-z][a-z0-9+.-]*:', url) and not ours and not url.startswith(blob): return
    if url.startswith('attachment:'): return
    name, _, anchor = url.partition('#')
    name = unquote(name)
    if ours: target = site.get(name.removeprefix(home).strip('/') or 'index.html')
    elif name.startswith(blob): target = ROOT/name.removeprefix(blob)
    elif not name: target = path
    elif name.endswith('.html') and NBS in path.parents: target = site.get(os.path.relpath(path.parent/name, NBS))
    else: target = Path(os.path.normpath(path.parent/name))
    if target is None or not target.exists(): return f'{url}: no such page or file'
    if ROOT not in (target, *target.parents): return f'{url}: outside the project'
    if anchor and target.suffix in ('.ipynb', '.md') and unquote(anchor).lower() not in anchors(target): return f'{url}: no such heading'


def check_links() -> list[str]:  # what is wrong
    "Every link of every notebook and *.md file"
    site = html_pages()
    paths = [ROOT/o for o in files() if o.suffix in ('.ipynb', '.md') and not (ROOT/o).is_symlink()]
    bad = {(o, check_link(u, o, site)) for o in paths for u in links(o)}
    return sorted(f'{o.relative_to(ROOT)}: {e}' for o, e in bad if e)


if __name__ == '__main__':
    wrong = check_sidebar() + check_links() + check_processing()
    if wrong: sys.exit('\n'.join(['The documentation needs mending:', *('  ' + o for o in wrong)]))
    print(f'documentation: {len(pages())} pages, every link resolves, preprocessing ran')
