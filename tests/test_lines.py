"The line table: internally consistent, and in step with synthetic and observed spectra."
import subprocess, sys
from pathlib import Path
import numpy as np, pytest
from astropy import units as u
from hypothesis import given, settings, strategies as st
from specnb.spectra.grid import LRS_GRID, air_to_vacuum, vacuum_to_air
from specnb.spectra.lines import BALMER, lines, windows

ROOT = Path(__file__).resolve().parent.parent
T = lines()
ATOMS = lines(kind='atom')

def test_size():
    assert len(ATOMS) >= 110 and len(lines(kind='band')) >= 6 and len(lines(kind='telluric')) >= 1
    assert {'H', 'He', 'Mg', 'Ca', 'Na', 'Ti', 'Fe', 'Ba', 'Eu'} <= set(T['element'])

def test_every_row_is_complete():
    for c in ('name', 'species', 'element', 'source'): assert all(str(v).strip() for v in T[c]), c
    assert set(T['kind']) == {'atom', 'band', 'telluric'}
    assert set(T['strength']) == {'weak', 'medium', 'strong'}
    assert set(T['seen']) == {'sun', 'hot', 'cool', 'sky'}
    assert all((T['seen'] == 'sky') == (T['kind'] == 'telluric'))
    assert T['wavelength'].unit == u.AA

def test_sorted_and_unique():
    assert np.all(np.diff(T['wavelength']) > 0)
    assert len(set(zip(T['species'], T['wavelength']))) == len(T)
    assert len(set(T['name'])) == len(T)
    for s in set(ATOMS['species']): assert np.all(np.diff(lines(s, kind='atom')['wavelength']) > .3), s

def test_ranges():
    assert T['wavelength'].min() > 3800 and T['wavelength'].max() < 9000
    assert np.all((T['lo'] < T['wavelength']) & (T['wavelength'] < T['hi']))
    np.testing.assert_allclose(ATOMS['hi'] - ATOMS['wavelength'], ATOMS['wavelength'] - ATOMS['lo'])
    assert np.all((ATOMS['hi'] - ATOMS['lo'] >= 4) & (ATOMS['hi'] - ATOMS['lo'] <= 50))

def test_air_and_vacuum_agree():
    np.testing.assert_allclose(T['wavelength'], air_to_vacuum(T['wavelength_air'].data), atol=1e-6)
    np.testing.assert_allclose(T['wavelength_air'], vacuum_to_air(T['wavelength'].data), atol=1e-3)

@pytest.mark.parametrize('name,air', [('Hα', 6562.79), ('Hβ', 4861.35), ('Ca K', 3933.66), ('Ca H', 3968.47), ('Mg b1', 5183.60), ('Na D2', 5889.95),
                                      ('Na D1', 5895.92), ('Ca T2', 8542.09)])
def test_famous_lines(name, air):
    assert abs(lines(name)['wavelength_air'][0] - air) < .02

def test_balmer():
    n = np.array([8, 7, 6, 5, 4, 3])
    rydberg = 1/(1.0967758e-3*(1/4 - 1/n**2))   # vacuum, A, for hydrogen's reduced mass
    np.testing.assert_allclose(BALMER, rydberg, atol=.1)
    with pytest.raises(ValueError): BALMER[0] = 1

@settings(deadline=None, max_examples=50)
@given(st.floats(3700, 9100), st.floats(0, 3000), st.sampled_from(sorted(set(T['element']))), st.sampled_from(['vacuum', 'air']))
def test_selection(lo, span, element, medium):
    col = 'wavelength' if medium == 'vacuum' else 'wavelength_air'
    got = lines(element, lo, lo + span, medium=medium)
    want = [n for n, e, w in zip(T['name'], T['element'], T[col]) if e == element and lo <= w <= lo + span]
    assert list(got['name']) == want

@pytest.mark.parametrize('unit', [u.AA, u.nm, u.um, u.m])
def test_units(unit):
    assert list(lines('Fe', (5000*u.AA).to(unit), (5300*u.AA).to(unit))['name']) == list(lines('Fe', 5000, 5300)['name'])

def test_min_strength_nests():
    s, m, w = (set(lines(min_strength=k)['name']) for k in ('strong', 'medium', 'weak'))
    assert s < m < w == set(T['name'])

def test_copy():
    t = lines('Mg'); t['wavelength'][:] = 0; t.remove_column('name')
    assert lines('Mg')['wavelength'].min() > 3800 and 'name' in lines('Mg').colnames

@pytest.mark.parametrize('kw,text', [
    (dict(species='Xx'), 'known'), (dict(species='mg'), 'Mg'), (dict(species=['Mg', '']), 'unknown'), (dict(lo=5*u.s), 'lo'), (dict(hi=5100*u.km/u.s), 'hi'),
    (dict(lo='blue'), 'lo'), (dict(lo=[1, 2]), 'lo'), (dict(lo=np.nan), 'finite'), (dict(lo=6000, hi=5000), 'greater'), (dict(medium='glass'), 'vacuum'),
    (dict(kind='ion'), 'band'), (dict(min_strength='huge'), 'strong')])
def test_errors(kw, text):
    with pytest.raises(ValueError, match=text): lines(**kw)

@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(set(T['element']) | set(T['species']))), st.floats(3800, 8800), st.floats(.3, 3), st.integers(2, 400),
       st.none() | st.floats(1, 30))
def test_windows_agree_with_table(species, start, step, n, width):
    w, t = start + step*np.arange(n), lines(species)
    want = np.zeros(n, bool)
    for r in t:
        lo, hi = (r['wavelength'] - width/2, r['wavelength'] + width/2) if width and r['kind'] == 'atom' else (r['lo'], r['hi'])
        want |= (w >= lo) & (w <= hi)
    np.testing.assert_array_equal(windows(species, w, width), want)

def test_windows_inputs():
    w = LRS_GRID.wavelength
    m = windows('Ca', LRS_GRID)
    assert m.dtype == bool and m.shape == w.shape and 0 < m.sum() < len(w)
    np.testing.assert_array_equal(m, windows('Ca', w)); np.testing.assert_array_equal(m, windows('Ca', (w/10)*u.nm))
    assert np.all(windows('Fe', w, min_strength='strong') <= windows('Fe', w))

def test_import_is_light():
    code = 'import sys, specnb.spectra.lines; print([m for m in ("torch", "pandas", "matplotlib", "fastai", "specutils") if m in sys.modules])'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.strip() == '[]'

# ---- against spectra ----

@pytest.fixture(scope='module')
def node(request):
    "Function of (teff, logg, fe_h): wavelength (vacuum, A) and normalised flux at R = 10000 of the nearest synthetic spectrum."
    path = ROOT/'data/lte_grid.npz'
    if not path.exists(): path = request.getfixturevalue('shared_data')/'lte_grid.npz'
    if not path.exists(): pytest.skip('no grid of synthetic spectra here')
    z = dict(np.load(path))
    def nearest(teff, logg, fe_h):
        i = np.argmin(((z['teff'] - teff)/250)**2 + ((z['logg'] - logg)/.5)**2 + ((z['fe_h'] - fe_h)/.25)**2)
        return 10**z['logw'], z['norm'][i]/4e4
    return nearest

def _offsets(w, f, at):
    "Distance (A) from each wavelength to the nearest local minimum of `f`."
    mins = w[1:-1][(f[1:-1] < f[:-2]) & (f[1:-1] <= f[2:])]
    return np.abs(mins - np.asarray(at)[:, None]).min(axis=1)

def _dip(w, f, at, reach=2.):
    "Shift (A) at which the mean flux at the lines is lowest: 0 for a table on the right scale."
    shifts = np.linspace(-reach, reach, 161)
    return shifts[np.argmin([np.interp(at + s, w, f).mean() for s in shifts])]

def test_synthetic_spectrum_has_a_minimum_at_every_line(node):
    w, f = node(5750, 4.5, 0.)
    t = lines(lo=w[0] + 8, hi=w[-1] - 8, kind='atom', min_strength='medium')
    d = _offsets(w, f, t['wavelength'])
    assert len(t) >= 80
    assert d.max() < .6, list(t['name'][d >= .6])
    assert np.median(d) < .08
    depth = np.array([1 - f[np.abs(w - x) < .6].min() for x in t['wavelength']])
    assert depth.min() > .1, list(t['name'][depth <= .1])

@pytest.mark.parametrize('labels', [(4500, 2., 0.), (5750, 4.5, 0.), (6500, 4., -.5)])
def test_table_is_on_the_vacuum_scale_of_synthetic_spectra(node, labels):
    w, f = node(*labels)
    assert abs(_dip(w, f, lines(lo=w[0] + 8, hi=w[-1] - 8, kind='atom')['wavelength'].data)) < .1

@pytest.mark.parametrize('lo,hi', [(3815, 4250), (4250, 5200), (5200, 5900), (5900, 6700)])
def test_table_is_on_the_air_scale_of_observed_spectra(shared_data, lo, hi):
    path = shared_data/'miles.npz'
    if not path.exists(): pytest.skip('no miles.npz here')
    z = np.load(path)
    teff, logg, fe_h = z['labels'].T
    f = z['flux'][(abs(teff - 5750) < 300) & (logg > 3.8) & (abs(fe_h) < .3)]
    w, f = z['wave_air'], np.median(f/np.median(f, axis=1, keepdims=True), axis=0)
    smooth = np.convolve(f, np.ones(101)/101, 'same')
    at = lines(lo=lo, hi=hi, kind='atom', min_strength='medium')['wavelength_air'].data
    assert len(at) >= 8 and abs(_dip(w, f/smooth, at)) < .5
