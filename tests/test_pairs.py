"Pairs: the same star on both sides whatever the tables look like, and a reason wherever that cannot be."
import numpy as np, pytest
from astropy.table import MaskedColumn, Table
from hypothesis import given, settings, strategies as st
from specnb.learn.pairs import LRS_XP, Pairs, pair, xp_lrs
from specnb.learn.stars import PARTS
from specnb.spectra.container import Spectra
from specnb.spectra.gaia import XP_GRID, XP_LSF
from specnb.spectra.grid import Grid
from specnb.spectra.store import Store, write_store

GRIDS = dict(a=Grid.linear(4000, 2, 5), b=Grid.linear(4000, 3, 7))


def side(name, ids, snr=None, rest=True, **cols):
    "Spectra whose flux says which star and which row they are"
    ids, m = np.asanyarray(ids), GRIDS[name].n
    flux = np.arange(len(ids))[:, None] + np.arange(m)*0.
    t = dict(target_id=ids, row=np.arange(len(ids)), **cols)
    if snr is not None: t['snr'] = np.asarray(snr, 'f4')
    return Spectra(flux, np.ones_like(flux), GRIDS[name], Table(t), survey=name, rest=rest)


stars = st.lists(st.tuples(st.integers(0, 30), st.sampled_from([np.nan, 1, 5, 5, 9])), min_size=1, max_size=40)


def check(p, a, b):
    "Every star once, the same id on both sides, the best of its rows, all others counted"
    ids = {'a': a.table['target_id'].astype(str), 'b': b.table['target_id'].astype(str)}
    assert set(p.ids) == set(ids['a']) & set(ids['b']) and len(set(p.ids)) == len(p)
    assert p.left_out == {k: len(set(v)) - len(p) for k, v in ids.items()}
    assert (np.diff(p.rows['a']) > 0).all() and (p.table['row'] == p.rows['a']).all() and (p.table['b_row'] == p.rows['b']).all()
    for k, s in p.read().items():
        assert (s.table['target_id'].astype(str) == p.ids).all() and (s.flux[:, 0] == p.rows[k]).all()
        snr = np.nan_to_num(np.asarray((a if k == 'a' else b).table['snr']), nan=-1)
        for i, row in zip(p.ids, p.rows[k]):
            mine = np.flatnonzero(ids[k] == i)
            assert row == mine[np.argmax(snr[mine])]                                # the first of equal ones


@given(stars, stars, st.booleans())
@settings(max_examples=100, deadline=None)
def test_joined(x, y, text):
    a, b = (side(k, [i for i, _ in v], [s for _, s in v]) for k, v in (('a', x), ('b', y)))
    if text: b.table['target_id'] = [f' {i} ' for i in b.table['target_id']]        # blanks do not make another star
    if not {i for i, _ in x} & {i for i, _ in y}:
        with pytest.raises(ValueError, match='no star of a is in b'): pair(a=a, b=b)
        return
    p = pair(a=a, b=b)
    if text: b.table['target_id'] = np.char.strip(b.table['target_id'])
    check(p, a, b)


@given(st.permutations(range(12)), st.data())
@settings(max_examples=15, deadline=None)
def test_from_stores_as_from_memory(tmp_path_factory, order, data):
    d = tmp_path_factory.mktemp('pairs')
    a, b = side('a', np.arange(100, 112), np.ones(12)), side('b', 100 + np.array(order), np.ones(12))
    for s in (a, b): write_store(s, d/f'{s.survey}.parquet', group=5)
    p, q = pair(a=a, b=b), pair(a=d/'a.parquet', b=Store(d/'b.parquet'))
    i = data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=20))            # in any order, some twice
    for r in (q, q.load()):
        got, want = r.read(i), p.read(i)
        for k in 'ab': assert (got[k].flux == want[k].flux).all() and (got[k].table['target_id'] == want[k].table['target_id']).all()
    assert (got['a'].table['target_id'] == got['b'].table['target_id']).all()


@given(stars, stars, st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_split_is_by_star_and_never_less_careful_than_a_side(x, y, seed):
    part = {k: np.array(PARTS)[np.random.default_rng([seed, j]).integers(0, 3, 31)] for j, k in enumerate('ab')}
    make = lambda k, v: side(k, [i for i, _ in v], [s for _, s in v], split=part[k][[i for i, _ in v]])
    a, b = make('a', x), make('b', y)
    if not {i for i, _ in x} & {i for i, _ in y}: return
    p = pair(a=a, b=b)
    for i, k in zip(p.ids.astype(int), p.split): assert PARTS.index(k) == max(PARTS.index(part['a'][i]), PARTS.index(part['b'][i]))
    one = pair(a=a, b=side('b', [i for i, _ in y], [s for _, s in y]))
    other = pair(a=side('a', [i for i, _ in x], [s for _, s in x]), b=b)
    assert (one.split == part['a'][one.ids.astype(int)]).all() and (other.split == part['b'][other.ids.astype(int)]).all()


def test_split_by_id_is_the_same_whatever_else_is_there():
    p, q = pair(a=side('a', range(500)), b=side('b', range(500))), pair(a=side('a', range(300, 800)), b=side('b', range(100, 500)))
    said = dict(zip(p.ids, p.split))
    assert [said[i] for i in q.ids] == q.split.tolist() and set(p.split) == set(PARTS)


def test_a_torn_star_is_refused():
    with pytest.raises(ValueError, match='has star 2 in two parts'): pair(a=side('a', [1, 2, 2], split=['train', 'train', 'test']), b=side('b', [1, 2]))


def test_columns_of_both_sides():
    a = side('a', ['p', 'q'], fe_h=[-1., 0.], gaia=[7, 8])
    b = side('b', ['x', 'y', 'z'], fe_h=MaskedColumn([.5, .6, .7], mask=[1, 0, 0]), ak=[1., 2., 3.], source_id=[8, 7, 9])
    p = pair(a=a, b=b, on=dict(a='gaia', b='source_id'))
    assert p.table.colnames == ['target_id', 'row', 'fe_h', 'gaia', 'b_target_id', 'b_row', 'b_fe_h', 'ak', 'source_id']
    assert p.table['ak'].tolist() == [2, 1] and np.ma.getmaskarray(p.table['b_fe_h']).tolist() == [False, True]
    assert p.ids.tolist() == ['7', '8'] and p.what == 'a of a, b of b, joined on gaia and source_id' and len(p[1]) == len(p[-1]) == 1 and len(p[[]]) == 0
    a.table['b_fe_h'] = 1.
    with pytest.raises(ValueError, match="'fe_h' of b would be called 'b_fe_h', which there is already"): pair(a=a, b=b, on=dict(a='gaia', b='source_id'))


def test_without_a_column_snr_it_is_measured(tmp_path):
    a, b = side('a', [1, 1, 2]), side('b', [2, 1])
    assert pair(a=a, b=b).rows['a'].tolist() == [1, 2]                              # flux is the row's number
    write_store(a, tmp_path/'a.parquet', group=2)
    assert pair(a=Store(tmp_path/'a.parquet'), b=b).rows['a'].tolist() == [1, 2]


BIG = 5853498713190525696
ids = lambda v: dict(a=side('a', v), b=side('b', [str(BIG), '5']))


@pytest.mark.parametrize('sides, words', [
    (ids([6, 7]), r"no star of a is in b: 'target_id' of a is such as '6', 'target_id' of b such as '5'"),
    (ids([float(BIG), 5.]), 'as floats, which lose the last digits'), (ids(np.array([2**25, 5], 'f4')), 'as floats'), (ids([.5, 5]), 'fractions'),
    (ids([np.nan, 5.]), "'target_id' of a is unknown in 1 of 2 rows, the first is row 0"), (ids([5, -9999]), 'unknown in 1'), (ids(['5', '']), 'row 1'), (ids(['5', '-1']), 'row 1'), (ids([b'5', b'nan']), 'unknown'),
    (ids(np.ma.array([5, 6], mask=[0, 1])), 'unknown in 1'), (ids(np.zeros((2, 2), int)), 'no column of ids'),
    (dict(a=side('a', [5]), b=side('a', [5])), 'a and b are on the same grid, .*swapped or given twice'), (dict(a=side('a', [5])), '1 sources'),
    (dict(a=side('a', [5]), b=side('b', [5]), c=side('b', [5])), '3 sources'), (dict(a=side('a', [5], rest=False), b=side('b', [5])), 'a is not at rest'),
    (dict(a=side('a', [5]), b=Table()), 'b is a Table'), (dict(a=side('a', []), b=side('b', [5])), 'a holds no stars'),
    (dict(a=side('a', [5]), b=side('b', [5]), on='source_id'), "a has no column 'source_id' to join on, it has target_id, row"), (dict(a=side('a', [5]), b=side('b', [5]), on=dict(a='row')), 'names no column of b'),
    (dict(a=side('a', [5], split=['all']), b=side('b', [5])), "column 'split' says 'all'")])
def test_refused(sides, words):
    with pytest.raises(ValueError, match=words): pair(**sides)


@pytest.mark.parametrize('good', [[5, BIG], [5., 6.], np.array([5, 6], '>i8'), [b'5', b'6'], ['5 ', 'six', '-x'], np.array(['5', 6], object)])
def test_ids_of_any_kind(good): assert '5' in pair(**ids(good)).ids


def test_one_grid_if_it_is_meant(): assert len(pair(a=side('a', [5]), b=side('a', [5]), same=True)) == 1


def test_the_sky_tells_mismatched_ids():
    n, rng = 200, np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, n), rng.uniform(-89, 89, n)
    a = side('a', range(n), ra=ra, dec=dec)
    at = lambda k: side('b', range(n), ra=(ra + 1e-4)[k] % 360, dec=dec[k])
    assert len(pair(a=a, b=at(slice(None)))) == n
    assert len(pair(a=a, b=side('b', range(n), ra=np.full(n, np.nan), dec=dec))) == n   # unknown is no reason
    with pytest.raises(ValueError, match=r'of 200 pairs, such as \d+, lie more than 60 arcsec apart'): pair(a=a, b=at(rng.permutation(n)))


def test_rows_must_agree():
    with pytest.raises(ValueError, match='2 ids, but 3 rows'): Pairs(dict(a=None, b=None), dict(a=[1, 2], b=[1, 2, 3]), ['x', 'y'], Table(dict(i=[1, 2])))


# --- XP and a simulated LRS; the XP here is no real one


@pytest.fixture(scope='module')
def library():
    n, rng = 60, np.random.default_rng(2)
    t = Table(dict(target_id=[str(BIG + i) for i in range(n)], teff=rng.uniform(4500, 6000, n), logg=rng.uniform(2.5, 4, n), fe_h=rng.uniform(-.5, .2, n), alpha_m=np.full(n, .1), ak=MaskedColumn(rng.uniform(0, 1, n), mask=np.arange(n) == 7),
        quality=np.zeros(n, int), split=rng.choice(PARTS, n)))
    t['teff'][3], t['fe_h'][4], t['quality'][5] = 9000, np.nan, 1
    t['target_id'][5] = t['target_id'][6]
    t['split'][5] = t['split'][6]
    return Spectra(np.ones((n, XP_GRID.n)), np.full((n, XP_GRID.n), 1e4), XP_GRID, t, survey='gaiaxp', lsf=XP_LSF, rest=True)


def test_xp_lrs(library):
    p = xp_lrs(library=library, seed=3)
    assert len(p) == 57 and p.left_out == dict(lrs=0, xp=2) and p.what == LRS_XP and 'xp real' in LRS_XP and 'lrs simulated' in LRS_XP
    both, mine = p.read(), library.table[np.searchsorted(library.table['target_id'], p.ids, side='right') - 1]
    assert (both['lrs'].table['target_id'] == p.ids).all() and (both['xp'].table['target_id'] == p.ids).all()
    for k in ('teff', 'logg', 'fe_h', 'alpha_m'): assert np.allclose(both['lrs'].table[k], mine[k], rtol=1e-6)
    assert np.allclose(p.table['alpha_fe'], mine['alpha_m']) and (p.split == mine['split']).all() and np.ma.getmaskarray(p.table['ak']).sum() == 1
    again, few, other = xp_lrs(library=library, seed=3), xp_lrs(10, library=library, snr=80), xp_lrs(10, seed=1, library=library)
    assert (again.sources['lrs'].flux == p.sources['lrs'].flux).all()
    assert len(few) == 10 and few.left_out == p.left_out and (few.table['snr'] == 80).all() and set(few.ids) != set(other.ids)


def test_the_simulated_star_is_the_one_paired(library):
    "Hydrogen of a hotter star is deeper: labels and spectra go together on both sides"
    p = xp_lrs(library=library, snr=300)
    s = p.read()['lrs']
    line, side_ = np.abs(s.wavelength - 4862.7) < 3, np.abs(np.abs(s.wavelength - 4862.7) - 40) < 15
    depth = 1 - np.array([f[line & g].mean()/f[side_ & g].mean() if (line & g).any() else np.nan for f, g in zip(s.flux, s.good)])
    ok = np.isfinite(depth)
    assert np.corrcoef(depth[ok], np.asarray(p.table['teff'])[ok])[0, 1] > .7


def test_no_library_of_this_kind(library):
    with pytest.raises(ValueError, match='58 pairs asked for, 57 can be had'): xp_lrs(58, library=library)
    with pytest.raises(ValueError, match='0 pairs asked for'): xp_lrs(0, library=library)
    with pytest.raises(ValueError, match='none of 1 stars'): xp_lrs(library=library[3])
    bare = library[:]
    bare.table.remove_column('quality')
    with pytest.raises(ValueError, match="no column 'quality'"): xp_lrs(library=bare)
