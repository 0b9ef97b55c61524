"The shape of the house: data flows up the floors, floor 0 is light, nothing is pickled, everything public is explained."
import ast, io, re, subprocess, sys, tokenize
from pathlib import Path
import nbformat, pytest
from tree import ROOT, files

LIB = ROOT/'specnb'


def rooms() -> dict[str, tuple[str, str]]:
    "{module: (notebook, number)}, by what the notebooks say they export"
    res = {}
    for path in sorted((ROOT/'nbs').glob('[0-9]*.ipynb')):
        code = '\n'.join(o.source for o in nbformat.read(path, as_version=4).cells if o.cell_type == 'code')
        m = re.search(r'^#\|\s*default_exp\s+(\S+)', code, re.M)
        if m: res['specnb.' + m[1]] = path.name, path.name.split('_')[0]
    return res


ROOMS = rooms()
each_room = pytest.mark.parametrize('module', sorted(ROOMS))


def source(module: str) -> Path: return ROOT.joinpath(*module.split('.')).with_suffix('.py')


def parse(path: Path) -> ast.Module: return ast.parse(path.read_text(encoding='utf-8'), str(path))


def imported(module: str) -> set[str]:
    "Every module of this library that a module imports, at its top or inside a function"
    res = set()
    for o in ast.walk(parse(source(module))):
        if isinstance(o, ast.Import): names = [a.name for a in o.names]
        elif isinstance(o, ast.ImportFrom):
            base = module.split('.')[:-o.level] if o.level else []
            full = '.'.join([*base, *([o.module] if o.module else [])])
            names = [full, *(f'{full}.{a.name}' for a in o.names)]
        else: continue
        res |= {n for n in names if n.split('.')[0] == 'specnb'}
    return res


def test_every_module_comes_from_a_notebook():
    have = {'.'.join(o.relative_to(ROOT).with_suffix('').parts) for o in LIB.rglob('*.py') if not o.name.startswith('_')}
    assert have == set(ROOMS)


def test_no_two_rooms_share_a_number():
    numbers = [n for _, n in ROOMS.values()]
    assert sorted(numbers) == sorted(set(numbers))


@each_room
def test_imports_point_down(module):
    "A room imports only from rooms with a lower number"
    up = {o: ROOMS[o][0] for o in imported(module) & set(ROOMS) if ROOMS[o][1] >= ROOMS[module][1]}
    assert not up, f'{ROOMS[module][0]} imports {up}'


@each_room
def test_floors(module):
    "The tens of a notebook's number say its floor, and a floor is a package"
    floors = {'spectra': '0', 'physics': '1', 'models': '2', 'learn': '3', 'science': '4', 'apps': '5'}
    assert ROOMS[module][1][0] == floors[module.split('.')[1]]


@pytest.mark.parametrize('module', ['specnb', 'specnb.spectra', *sorted(o for o in ROOMS if o.startswith('specnb.spectra.'))])
def test_floor_0_is_light(module):
    "In a fresh interpreter; the time is printed, for who looks"
    code = f"import sys, time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t); print(*sys.modules)"
    took, found = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()
    print(f'import {module}: {float(took):.2f} s')
    assert not {'torch', 'fastai', 'specutils', 'matplotlib', 'pandas', 'IPython'} & set(found.split())


def test_init_holds_the_version_and_nothing_heavy():
    body = parse(LIB/'__init__.py').body
    assert [type(o) for o in body] == [ast.Assign] and body[0].targets[0].id == '__version__'


def called(node: ast.Call) -> str:
    "The dotted name of what is called"
    parts, f = [], node.func
    while isinstance(f, ast.Attribute): parts, f = [f.attr, *parts], f.value
    return '.'.join([f.id if isinstance(f, ast.Name) else '', *parts])


def pickles(tree: ast.AST) -> list[str]:
    "Every place of a module that may write or load a pickle"
    res = []
    for o in ast.walk(tree):
        names = [a.name for a in o.names] if isinstance(o, ast.Import) else [o.module or ''] if isinstance(o, ast.ImportFrom) else []
        res += [f'line {o.lineno}: imports {n}' for n in names if n.split('.')[0] in ('pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve')]
        if not isinstance(o, ast.Call): continue
        name, args = called(o), {k.arg: getattr(k.value, 'value', None) for k in o.keywords}
        last = name.split('.')[-1]
        if name == 'torch.load' and args.get('weights_only') is not True: res.append(f'line {o.lineno}: torch.load without weights_only=True')
        if args.get('allow_pickle'): res.append(f'line {o.lineno}: allow_pickle')
        if name == 'torch.save' or last in ('load_learner', 'read_pickle', 'to_pickle'): res.append(f'line {o.lineno}: {name}')
        if last == 'export' and name.split('.')[-2] in ('learn', 'learner', 'self'): res.append(f'line {o.lineno}: {name}')
    return res


@each_room
def test_no_pickles(module): assert pickles(parse(source(module))) == []


@pytest.mark.parametrize('code', ['import pickle', 'from dill import loads', 'torch.load(f)', 'torch.load(f, weights_only=False)',
                                  'np.load(f, allow_pickle=True)', 'learn.export()', 'x = load_learner(f)', 'torch.save(m, f)'])
def test_pickles_are_seen(code): assert pickles(ast.parse(code))


def test_no_pickle_ships():
    assert not [o for o in files() if o.suffix in ('.pkl', '.pickle', '.pt', '.pth', '.joblib')]


def unexplained(text: str) -> list[str]:
    "Public functions, methods and classes without a docstring, and their parameters without a docment"
    comments = {o.start[0] for o in tokenize.generate_tokens(io.StringIO(text).readline) if o.type == tokenize.COMMENT}
    res = []

    def function(f, owner):
        args = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
        patched = any('patch' in ast.unparse(o) for o in f.decorator_list)
        static = any(ast.unparse(o) == 'staticmethod' for o in f.decorator_list)
        if patched and args and isinstance(args[0].annotation, ast.Name) and args[0].annotation.id.startswith('_'): return
        if (patched or owner) and not static: args = args[1:]
        name = f'{owner}.{f.name}' if owner else f.name
        if f.name != '__init__' and not ast.get_docstring(f): res.append(f'{name}: no docstring')
        last = {o.lineno: o.arg for o in args}
        for o in args:
            above = o.lineno - 1 in comments and o.lineno - 1 > f.lineno and o.lineno - 1 not in last
            if last[o.lineno] != o.arg or not (o.lineno in comments or above): res.append(f'{name}({o.arg}): no docment')

    def body(nodes, owner=''):
        for o in nodes:
            if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef)):
                if not o.name.startswith('_') or (owner and o.name == '__init__'): function(o, owner)
            elif isinstance(o, ast.ClassDef) and not o.name.startswith('_'):
                if not ast.get_docstring(o): res.append(f'{o.name}: no docstring')
                body(o.body, o.name)

    body(ast.parse(text).body)
    return res


@each_room
def test_everything_public_is_explained(module):
    missing = unexplained(source(module).read_text(encoding='utf-8'))
    assert not missing, '\n'.join([ROOMS[module][0], *missing])


def test_unexplained_is_seen():
    assert unexplained('def f(\n    a: int,  # stars\n):\n    "Doc"') == []
    assert unexplained('def f(\n    a: int,\n):\n    "Doc"') == ['f(a): no docment']
    assert unexplained('def f(a: int, b: int):  # two\n    "Doc"') == ['f(a): no docment']
    assert unexplained('def f(\n    a: int,  # one\n    b: int,\n    # three\n    c: int,\n):\n    "Doc"') == ['f(b): no docment']
    assert unexplained('def f(): pass') == ['f: no docstring']
    assert unexplained('@patch\ndef f(self: A):\n    "Doc"') == []
    assert unexplained('class A:\n    def __init__(self, a): pass') == ['A: no docstring', 'A.__init__(a): no docment']
    assert unexplained('def _f(a): pass') == []


PRIVATE = re.compile(r'(?<![\w.~/-])/(?:work|home|Users|root)/\w|/tmp/\w')


def test_no_private_paths():
    "No file of the project, stored outputs included, says where somebody's copy of it stands"
    found = []
    for o in files():
        try: text = (ROOT/o).read_text(encoding='utf-8')
        except UnicodeDecodeError: continue
        found += [f'{o}: {text[max(0, m.start() - 20):m.end() + 30]!r}' for m in PRIVATE.finditer(text)]
    assert not found
