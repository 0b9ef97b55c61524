"The checks can fail: each is shown something wrong."
from pathlib import Path
import nbformat, pytest
import check_docs, check_wheel, in_step, readme, run_tutorials
from tree import ROOT, copy, files


def test_files_are_the_projects_own():
    have = files()
    assert Path('settings.ini') in have and Path('nbs/_quarto.yml') in have
    assert not [o for o in have if o.parts[0].startswith('.venv') or '__pycache__' in o.parts]


def test_copy_keeps_links():
    with copy() as tree:
        assert (tree/'nbs'/'_quarto.yml').is_symlink()
        assert (tree/'nbs'/'_quarto.yml').read_text() == (ROOT/'_quarto.yml').read_text()
    assert not tree.exists()


def test_differ():
    a, b, c = map(Path, 'abc')
    assert in_step.differ({a: '1', b: '2'}, {a: '1', b: '3', c: ''}) == ['b: differs', 'c: missing']
    assert in_step.differ({a: '1'}, {}) == ['a: no notebook exports it']


def test_in_step(tmp_path, monkeypatch):
    "A module edited by hand, a module left over and a notebook that is not clean are each found"
    with copy() as tree:
        (tree/'specnb'/'stray.py').write_text(f'# {in_step.MARK}\n')
        (tree/'specnb'/'__init__.py').write_text('__version__ = "0"\n')
        nb = nbformat.read(tree/'nbs'/'index.ipynb', as_version=4)
        nb.metadata['colab'] = {'name': 'somebody'}
        nbformat.write(nb, tree/'nbs'/'index.ipynb')
        monkeypatch.setattr(in_step, 'copy', lambda: copy(tree))
        assert {'specnb/stray.py: no notebook exports it', 'specnb/__init__.py: differs'} <= set(in_step.check_modules())
        assert 'nbs/index.ipynb: differs' in in_step.check_notebooks()


@pytest.mark.parametrize('heading, want', [('What is a grid?', 'what-is-a-grid'), ('`Grid.log`, in short', 'grid.log-in-short'),
                                           ('Named {#here}', 'here'), ('A [link](x.md) in it', 'a-link-in-it')])
def test_slug(heading, want): assert check_docs.slug(heading) == want


def test_links(tmp_path):
    page = tmp_path/'page.md'
    page.write_text('[a](b.md) ![c](d.png "e") `[no](no.md)`\n\n```\n[no](no.md)\n```\n<img src="f.png"> <!-- [no](no.md) -->\n\n[g]: h.md\n')
    assert check_docs.links(page) == ['b.md', 'd.png', 'f.png', 'h.md']


@pytest.mark.parametrize('url', ['LICENSE', 'nbs/index.ipynb', '#specnb', 'nbs/index.ipynb#quick-start', 'https://example.org/x',
                                 'https://specnb.github.io/specnb', 'https://specnb.github.io/specnb/index.html',
                                 'https://github.com/specnb/specnb/blob/main/LICENSE'])
def test_good_links(url): assert check_docs.check_link(url, ROOT/'README.md', check_docs.html_pages()) is None


@pytest.mark.parametrize('url', ['nothing.md', '#nothing', 'nbs/index.ipynb#nothing', '../outside', 'https://specnb.github.io/specnb/nothing.html',
                                 'https://github.com/specnb/specnb/blob/main/nothing'])
def test_bad_links(url): assert check_docs.check_link(url, ROOT/'README.md', check_docs.html_pages())


def test_sidebar():
    bar = ['index.ipynb', {'section': 'A', 'contents': ['a.ipynb', {'href': 'b.ipynb', 'text': 'B'}]}]
    assert check_docs.sidebar(bar) == ['index.ipynb', 'a.ipynb', 'b.ipynb']


def test_readme_of_a_notebook(tmp_path):
    "Hidden cells and directives go, output stays, links and pictures are found from the project's root"
    new = nbformat.v4
    png = 'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
    show = new.new_code_cell('#| echo: false\nplot()', outputs=[new.new_output('display_data', {'image/png': png, 'text/plain': '<Figure>'})])
    table = new.new_output('execute_result', {'text/html': '<table></table>', 'text/plain': 'a b'}, execution_count=1)
    cells = [new.new_markdown_cell('# T\n\n[x](tutorials/y.ipynb) [z](../LICENSE) [w](https://w.org) ![v](v.png)'), new.new_code_cell('#| hide\nsecret()'),
             new.new_code_cell('#| eval: false\nf()', outputs=[table]), show]
    nbformat.write(new.new_notebook(cells=cells), tmp_path/'index.ipynb')
    made = readme.convert(tmp_path/'index.ipynb')
    text = made.pop('README.md').decode()
    for o in ('[x](nbs/tutorials/y.ipynb)', '[z](LICENSE)', '[w](https://w.org)', '![v](nbs/v.png)', '```python\nf()\n```', '    a b'): assert o in text
    for o in ('secret', '#|', 'plot()', '<table>'): assert o not in text
    assert [o for o in made if f']({o})' in text] == list(made) and len(made) == 1


def test_readme_is_current(): assert readme.stored() == readme.convert()


def test_tutorials_fail_and_pass_over(tmp_path):
    new = nbformat.v4
    cells = [new.new_code_cell('a = 1'), new.new_code_cell('#| eval: false\na = 2'), new.new_code_cell('assert a == 1')]
    nbformat.write(new.new_notebook(cells=cells), tmp_path/'good.ipynb')
    nbformat.write(new.new_notebook(cells=[*cells, new.new_code_cell('1/0')]), tmp_path/'bad.ipynb')
    before = (tmp_path/'good.ipynb').read_bytes()
    assert run_tutorials.run(tmp_path/'good.ipynb') is None
    assert 'ZeroDivisionError' in run_tutorials.run(tmp_path/'bad.ipynb')
    assert (tmp_path/'good.ipynb').read_bytes() == before


def write_labels(path, n=check_wheel.N, **kw):
    rows = [{'path': 'sim.parquet', **dict.fromkeys(check_wheel.LABELS, 1), **kw} for _ in range(n)]
    path.write_text('\n'.join(['# a comment', ','.join(rows[0]), *(','.join(map(str, o.values())) for o in rows)]) + '\n')
    return path


def test_table_of_labels(tmp_path):
    check_wheel.check_table(write_labels(tmp_path/'good.csv', teff=5000.5))
    with pytest.raises(SystemExit, match='19 rows'): check_wheel.check_table(write_labels(tmp_path/'short.csv', n=19))
    for bad in ('', 'nan', 'inf'):
        with pytest.raises(SystemExit, match='teff are not finite'): check_wheel.check_table(write_labels(tmp_path/'bad.csv', teff=bad))
