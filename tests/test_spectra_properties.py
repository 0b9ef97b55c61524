"What must hold for any spectrum: of grids and resampling, of batches, of stores."
import numpy as np
import pytest
from astropy.table import Column, MaskedColumn, Table
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from specnb.spectra.container import Spectra
from specnb.spectra.grid import Grid, LSF, air_to_vacuum, convolve, doppler, resample, vacuum_to_air
from specnb.spectra.store import Store, read_store, write_store

some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
finite = st.floats(-1e4, 1e4, width=32)
anything = st.floats(width=32, allow_nan=True, allow_infinity=True)


@st.composite
def grids(draw, lo=3600, hi=9000, smallest=30, largest=200):
    "A log, linear or irregular grid somewhere in the optical."
    n, start = draw(st.integers(smallest, largest)), draw(st.floats(lo, hi))
    kind = draw(st.sampled_from(['log', 'linear', 'table']))
    if kind == 'log': return Grid.log(np.log10(start), draw(st.floats(5e-5, 5e-4)), n)
    if kind == 'linear': return Grid.linear(start, draw(st.floats(.2, 4)), n)
    steps = draw(hnp.arrays(float, n - 1, elements=st.floats(.3, 3)))
    return Grid.from_wavelength(start + np.concatenate([[0], np.cumsum(steps)]))


@st.composite
def batches(draw, grid=None, most=4):
    "Any spectra on a grid: all of NaN, infinities and negative inverse variances may occur."
    grid, n = grid or draw(grids()), draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    flux, ivar = rng.normal(1, .3, (n, grid.n)), rng.uniform(0, 100, (n, grid.n))*(rng.random((n, grid.n)) > draw(st.floats(0, .9)))
    for a in (flux, ivar):
        for _ in range(draw(st.integers(0, 5))): a[draw(st.integers(0, n - 1)), draw(st.integers(0, grid.n - 1))] = draw(anything)
    return flux, ivar, grid


def cumulative(grid, flux): return np.concatenate([[0], np.cumsum(flux*np.diff(grid.edges))])


# --- wavelengths and grids


@some
@given(st.floats(2000, 25000))
def test_air_and_vacuum_are_inverse(w):
    assert abs(vacuum_to_air(air_to_vacuum(w)) - w) < 1e-3 and 2e-4 < air_to_vacuum(w)/w - 1 < 4e-4


@some
@given(st.floats(3000, 10000), st.floats(-3000, 3000))
def test_doppler_is_undone_by_the_opposite_velocity(w, v): assert abs(doppler(doppler(w, v), -v)/w - 1) < 1e-12


@some
@given(grids())
def test_a_grid_is_rebuilt_from_its_identity(g):
    again = Grid.from_id(g.id, g.wavelength)
    assert again == g and hash(again) == hash(g) and np.abs(again.wavelength/g.wavelength - 1).max() < 1e-8
    assert Grid.from_wavelength(g.wavelength) == Grid.from_wavelength(g.wavelength.copy())
    assert (np.diff(g.edges) > 0).all() and (g.edges[:-1] < g.wavelength).all() and (g.wavelength < g.edges[1:]).all()


# --- resampling


@some
@given(grids(), grids(), st.data())
def test_every_pixel_keeps_its_integral(src, dst, data):
    flux = data.draw(hnp.arrays(np.float32, (2, src.n), elements=st.floats(-100, 100, width=32)))
    out, ivar = resample(flux, np.ones_like(flux), src, dst)
    inside = (dst.edges[:-1] >= src.edges[0]) & (dst.edges[1:] <= src.edges[-1])
    want = np.array([np.diff(np.interp(dst.edges, src.edges, cumulative(src, f)))/np.diff(dst.edges) for f in flux.astype(float)])
    assert np.allclose(out[:, inside], want[:, inside], rtol=2e-3, atol=2e-2) and (ivar[:, inside] > 0).all()
    outside = (dst.edges[1:] <= src.edges[0]) | (dst.edges[:-1] >= src.edges[-1])
    assert (ivar[:, outside] == 0).all() and (out[:, outside] == 0).all()


@some
@given(batches())
def test_resampling_to_the_same_grid_changes_nothing(batch):
    s = Spectra(*batch)
    flux, ivar = resample(s.flux, s.ivar, s.grid, s.grid)
    assert (flux == s.flux).all() and (ivar == s.ivar).all()


@some
@given(batches(), grids(), st.booleans(), st.integers(0, 99))
def test_nothing_bad_comes_out_and_order_does_not_matter(batch, dst, move, seed):
    s, rng = Spectra(*batch), np.random.default_rng(seed)
    rv = rng.uniform(-300, 300, len(s)) if move else None
    flux, ivar = resample(s.flux, s.ivar, s.grid, dst, rv)
    assert np.isfinite(flux).all() and np.isfinite(ivar).all() and (ivar >= 0).all() and (flux[ivar == 0] == 0).all()
    order = rng.permutation(len(s))
    f2, v2 = resample(s.flux[order], s.ivar[order], s.grid, dst, None if rv is None else rv[order])
    assert np.array_equal(f2, flux[order]) and np.array_equal(v2, ivar[order])
    one = [resample(s.flux[i:i + 1], s.ivar[i:i + 1], s.grid, dst, None if rv is None else rv[i:i + 1])[0] for i in range(len(s))]
    assert np.allclose(np.concatenate(one), flux, rtol=1e-4, atol=1e-5)


@some
@given(st.integers(2, 6), st.integers(0, 9))
def test_fine_and_back_is_the_identity(k, seed):
    coarse, fine = Grid.linear(5000, .6*k, 60), Grid.linear(5000 - .3*(k - 1), .6, 60*k)       # k fine pixels fill a coarse one
    flux = np.random.default_rng(seed).normal(size=(3, 60)).astype('f4')
    a, v = resample(flux, np.ones_like(flux), coarse, fine)
    b, _ = resample(a, v, fine, coarse)
    assert np.allclose(b, flux, atol=1e-3)


@some
@given(batches(), st.floats(600, 1500))
def test_broadening_keeps_constants_and_stays_sane(batch, R):
    s = Spectra(*batch)
    flux, ivar = convolve(s.flux, s.ivar, s.grid, LSF.R(1600), LSF.R(R))
    assert np.isfinite(flux).all() and np.isfinite(ivar).all() and (ivar >= 0).all()
    flat, _ = convolve(s.good*3., s.ivar, s.grid, LSF.R(1600), LSF.R(R))
    assert np.allclose(flat[ivar > 0], 3, rtol=1e-4)


# --- batches


@some
@given(batches())
def test_a_batch_holds_no_bad_number(batch):
    s = Spectra(*batch)
    assert np.isfinite(s.flux).all() and np.isfinite(s.ivar).all() and (s.ivar >= 0).all() and (s.flux[~s.good] == 0).all()
    assert np.isfinite(s.snr).all() and s.flux.dtype == s.ivar.dtype == np.float32


@some
@given(batches(most=6), st.data())
def test_cutting_and_joining(batch, data):
    s = Spectra(*batch, table=Table(dict(target_id=[str(i) for i in range(len(batch[0]))])))
    k = data.draw(st.integers(0, len(s)))
    both = Spectra.concatenate([s[:k], s[k:]])
    assert (both.flux == s.flux).all() and list(both.table['target_id']) == list(s.table['target_id'])
    rows = np.array(data.draw(st.lists(st.integers(0, len(s) - 1), max_size=8)), dtype=int)
    assert (s[rows].flux == s.flux[rows]).all() and list(s[rows].table['target_id']) == [str(i) for i in rows]


@some
@given(grids(), grids())
def test_grids_do_not_mix(a, b):
    x, y = (Spectra(np.ones((1, g.n)), np.ones((1, g.n)), g) for g in (a, b))
    if a == b: assert len(Spectra.concatenate([x, y])) == 2
    else:
        with pytest.raises(ValueError, match='refusing to mix grids'): Spectra.concatenate([x, y])


# --- stores


names = st.text(st.characters(codec='utf-8', exclude_categories=['Cs', 'Cc']), min_size=1, max_size=12).filter(lambda s: s not in ('flux', 'ivar'))
values = dict(f=st.floats(allow_nan=True), i=st.integers(-2**62, 2**62), s=st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=8), b=st.booleans())


@st.composite
def tables(draw, n):
    "Any table of n rows: numbers, text, truth, some of it missing, some with units."
    cols = []
    for name in draw(st.lists(names, max_size=4, unique=True)):
        kind = draw(st.sampled_from(sorted(values)))
        data = np.array(draw(st.lists(values[kind], min_size=n, max_size=n)), dtype=dict(f=float, i='i8', s=str, b=bool)[kind])
        mask = draw(st.lists(st.booleans(), min_size=n, max_size=n))
        unit = 'km/s' if kind == 'f' and draw(st.booleans()) else None
        cols.append(MaskedColumn(data, name=name, mask=mask, unit=unit) if any(mask) else Column(data, name=name, unit=unit))
    return Table(cols)


def same(a, b):
    assert np.array_equal(a.flux, b.flux) and np.array_equal(a.ivar, b.ivar) and a.grid == b.grid and a.meta == b.meta
    assert a.table.colnames == b.table.colnames
    for k in a.table.colnames:
        x, y = (np.ma.asarray(t[k]) for t in (a.table, b.table))
        assert np.array_equal(np.ma.getmaskarray(x), np.ma.getmaskarray(y)) and a.table[k].unit == b.table[k].unit
        assert np.array_equal(x.compressed(), y.compressed(), equal_nan=x.dtype.kind == 'f')


@some
@given(st.data())
def test_a_store_gives_back_what_was_put_in(tmp_path, data):
    flux, ivar, grid = data.draw(batches(most=9))
    lsf = data.draw(st.sampled_from([None, LSF.R(1800), LSF.fwhm(2.5), LSF.table([3600, 5800], [2000, 3500])]))
    s = Spectra(flux, ivar, grid, data.draw(tables(len(flux))), 'survey é', lsf, data.draw(st.booleans()), data.draw(st.sampled_from(['', 'running'])))
    group = data.draw(st.integers(1, 12))
    path = write_store(s, tmp_path/'x.parquet', group=group)
    same(read_store(path), s)
    store = Store(path)
    assert len(store) == len(s) and max(len(b) for b in store) <= group
    same(Spectra.concatenate(list(store)), s)
    rows = data.draw(st.lists(st.integers(-len(s), len(s) - 1), min_size=1, max_size=8))
    same(store.read(rows), s[np.array(rows)])


@some
@given(st.data())
def test_the_bytes_depend_on_the_content_alone(tmp_path, data):
    flux, ivar, grid = data.draw(batches(most=9))
    s = Spectra(flux, ivar, grid, Table(dict(target_id=[f'{i}' for i in range(len(flux))])))
    group, cut = data.draw(st.integers(1, 5)), sorted(data.draw(st.lists(st.integers(0, len(s)), max_size=3)))
    pieces = (s[a:b] for a, b in zip([0, *cut], [*cut, len(s)]) if b > a)
    one, two = write_store(s, tmp_path/'1.parquet', group), write_store(pieces, tmp_path/'2.parquet', group)
    assert one.read_bytes() == two.read_bytes()
