"What a user installs: version, commands, assets and their size."
import os, re, subprocess, sys, zipfile
from importlib.metadata import EntryPoint, distributions, entry_points, metadata, version
import pytest, yaml
import specnb
from nbdev.config import get_config
from tree import ROOT, copy, files

SETTINGS = get_config(path=ROOT)
MB = 1e6


def lines(key): return [o.strip() for o in SETTINGS.get(key).splitlines() if o.strip()]


COMMANDS = {k: v for k, v in (o.split('=') for o in lines('console_scripts'))}


def test_version_agrees():
    newest = re.search(r'^## (\d+\.\d+\.\d+)', (ROOT/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)[1]
    assert specnb.__version__ == SETTINGS.version == version('specnb') == newest


def test_metadata():
    m = metadata('specnb')
    assert m['Requires-Python'] == f'>={SETTINGS.min_python}'
    assert m['License-Expression'] == 'Apache-2.0' and 'Apache License' in (ROOT/'LICENSE').read_text()
    wanted = {re.match(r'[\w-]+', o)[0] for o in lines('requirements')}
    assert wanted == {re.match(r'[\w-]+', o)[0] for o in m.get_all('Requires-Dist') if 'extra ==' not in o}


def test_commands_are_installed():
    assert {o.name: o.value for o in entry_points(group='console_scripts') if o.name.startswith('specnb')} == COMMANDS


@pytest.mark.parametrize('name', sorted(COMMANDS))
def test_command_resolves(name):
    "A command's room may still be unwritten; where its notebook stands, so does the command"
    module = COMMANDS[name].partition(':')[0].removeprefix('specnb.')
    if not list((ROOT/'nbs').glob(f'[0-9]*_{module}.ipynb')): return
    assert callable(EntryPoint(name, COMMANDS[name], 'console_scripts').load())


def pinned() -> dict[str, str]:
    "{project: version} of constraints.txt"
    return dict(o.strip().lower().split('==') for o in (ROOT/'constraints.txt').read_text().splitlines() if o.strip() and not o.startswith('#'))


def test_everything_asked_for_is_pinned():
    wanted = {re.match(r'[\w-]+', o)[0].lower() for o in lines('requirements') + lines('dev_requirements')}
    assert wanted <= pinned().keys()


def test_pins_are_what_runs():
    "torch 2.x.y+cpu is torch 2.x.y"
    installed = {re.sub('[-_.]+', '-', o.name).lower(): o.version.partition('+')[0] for o in distributions()}
    want = {k.replace('_', '-'): v for k, v in pinned().items()}
    assert {k: installed[k] for k in want if k in installed} == {k: v for k, v in want.items() if k in installed}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> dict[str, int]:
    "{name: bytes} of the wheel's files"
    out = tmp_path_factory.mktemp('wheel')
    with copy() as tree: subprocess.run([sys.executable, '-m', 'build', '--wheel', '--outdir', out, tree], check=True, capture_output=True)
    with zipfile.ZipFile(next(out.glob('*.whl'))) as z: return {o.filename: o.file_size for o in z.infolist()}


def test_wheel_holds_the_library_and_its_assets(wheel):
    want = {o.as_posix() for o in files() if o.parts[0] == 'specnb'}
    have = {o for o in wheel if '.dist-info/' not in o}
    assert have == want


def test_wheel_names_its_licence(wheel): assert [o for o in wheel if o.endswith('/LICENSE')]


def test_assets_are_small(wheel):
    size = {o: n for o, n in wheel.items() if o.startswith('specnb/assets/')}
    kinds = ('.safetensors', '.json', '.parquet', '.npz', '.md')
    assert not [o for o in size if not o.endswith(kinds)], 'an asset of a kind that is not shipped'
    assert sum(n for o, n in size.items() if 'emulator' in o) <= 5 * MB
    assert sum(n for o, n in size.items() if 'emulator' not in o and '/xp/' not in o and '/lrs-xp/' not in o and o.endswith('.safetensors')) <= 10 * MB
    assert sum(n for o, n in size.items() if '/xp/' in o) <= 10 * MB
    assert sum(n for o, n in size.items() if '/lrs-xp/' in o) <= 15 * MB
    assert sum(wheel.values()) <= 35 * MB


def test_workflows():
    "Tests run on the oldest Python and on a new one, through the script that runs anywhere; the site is built and published"
    test, docs = (yaml.safe_load((ROOT/'.github'/'workflows'/o).read_text())['jobs'] for o in ('test.yml', 'docs.yml'))
    assert SETTINGS.min_python in test['test']['strategy']['matrix']['python']
    assert '.ci/run' in [o.get('run') for o in test['test']['steps']] and os.access(ROOT/'.ci'/'run', os.X_OK)
    assert 'make docs' in [o.get('run') for o in docs['build']['steps']]
    assert any('deploy-pages' in o.get('uses', '') for o in docs['publish']['steps'])
