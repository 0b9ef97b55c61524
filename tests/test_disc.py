"Discs: distances and peaks with known answers, and complaints that name the fix."
import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pytest
from astropy.table import MaskedColumn
from hypothesis import given, settings, strategies as st
from scipy.optimize import linprog
from scipy.stats import kstest
from specnb.science.disc import _dip, bimodality, dip_test, disc_recovery, is_thick, mmd, plot_discs, plot_plane, ruler, valley

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def same_draws():
    "Each test draws the same numbers, whichever others run"
    RNG.bit_generator.state = START


few = settings(deadline=None, max_examples=25)


def discs(n, seed=0, width=.03, share=.4, error=0.):
    "Two sequences 0.17 dex apart"
    rng = np.random.default_rng(seed)
    fe_h, thick = rng.uniform(-.8, 0, n), rng.random(n) < share
    return fe_h + 2*error*rng.normal(size=n), np.where(thick, .25, .08) - .1*(fe_h + .4) + width*rng.normal(size=n) + error*rng.normal(size=n)


@few
@given(st.integers(3, 12), st.integers(3, 12), st.integers(1, 3), st.floats(.2, 5), st.integers(0, 1000))
def test_mmd_is_the_sum_over_pairs(n, m, d, h, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), 1 + rng.normal(size=(m, d))
    k = lambda a, b: np.exp(-np.sum((a - b)**2)/(2*h**2))
    xx = np.mean([k(x[i], x[j]) for i in range(n) for j in range(n) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(m) for j in range(m) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert mmd(x, y, bandwidth=h, scale=1, permutations=5).mmd2 == pytest.approx(xx + yy - 2*xy, abs=1e-12)


@few
@given(st.floats(1e-3, 1e3), st.floats(-1e2, 1e2), st.integers(0, 100))
def test_mmd_knows_no_units_and_no_order(unit, zero, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(60, 2)) + .3, rng.normal(size=(70, 2))
    a, b = mmd(x, y, permutations=20), mmd(unit*x + zero, unit*y + zero, permutations=20)
    assert a.mmd2 == pytest.approx(b.mmd2, abs=1e-6) and a.bandwidth == pytest.approx(b.bandwidth, rel=1e-6)
    s, h = ruler(y)
    assert mmd(y, x, h, s, 20).mmd2 == pytest.approx(a.mmd2, abs=1e-12)                       # symmetric, given the ruler
    assert mmd(x[::-1], y, h, s, 20).mmd2 == pytest.approx(a.mmd2, abs=1e-12)


def test_mmd_p_values_are_even_and_the_estimator_unbiased():
    r = [mmd(RNG.normal(size=(60, 2)), RNG.normal(size=(90, 2)), permutations=99, seed=i) for i in range(200)]
    assert kstest([o.p for o in r], 'uniform').pvalue > .001
    mean, noise = np.mean([o.mmd2 for o in r]), np.std([o.mmd2 for o in r])
    assert abs(mean) < 4*noise/np.sqrt(200) and np.mean([o.sd for o in r]) == pytest.approx(noise, rel=.3)


def test_mmd_error_is_its_scatter():
    r = [mmd(RNG.normal(size=300) + 1, RNG.normal(size=300), 1., 1., permutations=2) for _ in range(150)]
    assert np.mean([o.err for o in r]) == pytest.approx(np.std([o.mmd2 for o in r]), rel=.2)


def test_single_precision_of_large_samples_is_enough():
    x, y = RNG.normal(size=(1300, 2)), RNG.normal(size=(1300, 2))
    large, small = mmd(x, y, permutations=100), mmd(x[:900], y[:900], permutations=100)
    assert large.sd == pytest.approx(small.sd*900/1300, rel=.5)                               # falls as 1/n
    assert large.p > .005


def test_halves_agree_and_shifts_grow():
    x, y = (np.stack(discs(800, s), 1) for s in (1, 2))
    assert mmd(x, y).p > .01
    grown = [mmd(x + [0, d], y, permutations=99) for d in (.02, .05, .1, .2)]
    assert (np.diff([r.mmd2 for r in grown]) > 0).all() and grown[-1].p == .01
    assert len({r.bandwidth for r in grown}) == 1


def test_sizes_are_stated():
    x, y = RNG.normal(size=(500, 2)), RNG.normal(size=(400, 2))
    x[:7, 0], y[:3, 1] = np.nan, np.inf
    r = mmd(x, y, permutations=10, max_stars=450)
    assert (r.n, r.m, r.lost, r.permutations) == (450, 397, 10, 10)
    assert mmd(x, y, permutations=10) == mmd(x, y, permutations=10)


def dip_by_definition(x):
    "The smallest distance to a distribution convex before a mode and concave after it: a linear programme for each mode"
    x, c = np.unique(x, return_counts=True)
    n, up, K, best = c.sum(), np.cumsum(c)/c.sum(), len(x), 1.
    low = up - c/n
    for m in range(K):
        left, right, A, b = list(range(m + 1)), list(range(m + 1, K + 1)), [], []

        def add(rhs, **terms):
            row = np.zeros(K + 2)
            for i, v in zip(terms['at'], terms['by']): row[i] += v
            A.append(row); b.append(rhs)

        near = [(left[k], up[k], low[k]) for k in range(m)] + [(left[m], low[m], low[m]), (right[0], up[m], up[m])] + [(right[k - m], up[k], low[k]) for k in range(m + 1, K)]
        for i, floor, ceiling in near: add(-floor, at=(i, -1), by=(-1, -1)); add(ceiling, at=(i, -1), by=(1, -1))
        add(0, at=(left[-1], right[0]), by=(1, -1))
        for v, at, sign in ((left, x[:m + 1], 1), (right, x[m:], -1)):
            for i in range(len(v) - 1): add(0, at=v[i:i + 2], by=(1, -1))
            for i in range(len(v) - 2):
                p, q = 1/(at[i + 1] - at[i]), 1/(at[i + 2] - at[i + 1])
                add(0, at=v[i:i + 3], by=(-sign*p, sign*(p + q), -sign*q))
        r = linprog(np.eye(K + 2)[-1], A_ub=np.array(A), b_ub=b, bounds=[(0, 1)]*(K + 2))
        best = min(best, r.fun) if r.status == 0 else best
    return max(best, .5/n)


@few
@given(st.integers(4, 14), st.floats(0, 6), st.booleans(), st.integers(0, 10_000))
def test_dip_is_the_distance_from_one_peak(n, apart, ties, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n) + apart*(rng.random(n) < .5)
    x = np.round(2*x)/2 if ties else x
    assert _dip(x) == pytest.approx(dip_by_definition(x), abs=1e-7)


@few
@given(st.integers(5, 400), st.floats(.01, 100), st.integers(0, 1000))
def test_dip_is_bounded_and_knows_no_units(n, unit, seed):
    x = np.random.default_rng(seed).normal(size=n)
    d = _dip(x)
    assert .5/n - 1e-12 <= d <= .25 + 1e-12
    assert _dip(-unit*x + 3) == pytest.approx(d, rel=1e-6)


@pytest.mark.parametrize('n, median, ninety_five', [(10, .3092, .4415), (50, .3454, .4969), (200, .3618, .5210), (1000, .3714, .5355)])
def test_dip_of_even_draws_has_the_published_quantiles(n, median, ninety_five):
    "sqrt(n) dip, as the tables of R's diptest have it"
    d = np.sqrt(n)*np.sort([_dip(RNG.random(n)) for _ in range(800)])
    assert np.quantile(d, .5) == pytest.approx(median, rel=.04) and np.quantile(d, .95) == pytest.approx(ninety_five, rel=.06)


def test_dip_p_values():
    assert kstest([dip_test(RNG.random(90), 300)[1] for _ in range(200)], 'uniform').pvalue > .001
    assert np.mean([dip_test(RNG.normal(size=200), 300)[1] > .05 for _ in range(40)]) > .9
    assert np.mean([dip_test(RNG.normal(size=200) + 5*(RNG.random(200) < .5), 300)[1] < .01 for _ in range(40)]) > .9


def test_known_mixture():
    t = bimodality(*discs(6000, 1), bins=(-.8, -.6, -.4, -.2, 0.))
    assert t['two'].all() and t['n'].sum() == 6000
    assert np.allclose(t['separation'], .17, atol=.006) and np.allclose(t['weight_high'], .4, atol=.05) and np.allclose(t['ashman'], .17/.03, rtol=.1)
    assert np.allclose(t['valley'], (t['mean_low'] + t['mean_high'])/2, atol=.01)
    assert (np.diff(t['mean_low']) < 0).all()                                                 # the sequences slope
    one = bimodality(*discs(6000, 1, share=0.))
    assert not one['two'].any() and (one['dbic'] < 0).all() and (one['p'] > .05).all()


def test_order_and_zero_do_not_matter():
    f, a = discs(2000, 2)
    t, u = bimodality(f, a), bimodality(f[::-1], a[::-1] + 1)
    assert np.allclose(t['separation'], u['separation'], rtol=.01) and np.allclose(t['dip'], u['dip']) and np.allclose(t['mean_low'] + 1, u['mean_low'], atol=.002)


def test_what_is_missing_is_left_out_and_counted():
    f, a = discs(2000, 3)
    f2, a2 = f.copy(), MaskedColumn(a, mask=np.arange(2000) >= 1990)
    f2[:30] = np.nan
    t, u = bimodality(f2, a2), bimodality(f[30:1990], a[30:1990])
    assert t.meta['lost'] == 40 and list(t['n']) == list(u['n']) and np.allclose(t['dip'], u['dip'])


def test_thick_is_above_the_valley():
    f, a = discs(4000, 4)
    t = bimodality(f, a)
    assert np.mean(is_thick(f, a, t)) == pytest.approx(.4, abs=.03)
    assert (is_thick(f, valley(f, t) + 1e-6, t)).all() and not is_thick(f, valley(f, t) - 1e-6, t).any()


def test_recovery_falls_with_errors():
    s = {'reference': discs(3000, 5)} | {f'{e}': discs(3000, 5, error=e) for e in (.02, .05, .1)}
    t = disc_recovery(s, permutations=99)
    for k in ('ashman', 'dbic', 'right'): assert (np.diff(t[k]) < 0).all(), k
    assert (np.diff(t['fine'][1:]) > 0).all() and list(t['two'])[::3] == [True, False]
    assert t['fine_p'][0] > .01 >= t['fine_p'][3] and t['right'][0] == 1 and (t['n'] == 1500).all()


def test_paired_stars_are_no_closer_than_others():
    "A star never meets its own label, so a sample equal to the reference is no closer to it than chance has it"
    r = [disc_recovery({'reference': (d := discs(300, s, share=.5)), 'same': d}, permutations=19, seed=s)['mmd2'][1] for s in range(12)]
    assert np.mean(r) == pytest.approx(0, abs=4*np.std(r)/np.sqrt(12)) and max(r) > 0


def test_complaints():
    f, a = discs(200)
    for call, text in [(lambda: mmd(np.zeros((2, 2)), np.zeros((9, 2))), 'at least 3'), (lambda: mmd(np.zeros((9, 2)), np.full((9, 2), np.nan)), '0 stars with finite labels in the reference'),
                       (lambda: mmd(f, np.stack([f, a], 1)), '1 labels a star in one sample, 2'), (lambda: mmd(f, f, scale=-1, bandwidth=1), 'must be positive'),
                       (lambda: mmd(f, np.zeros(5)), 'same for all stars'), (lambda: dip_test([1, 2]), 'at least 4'), (lambda: bimodality(f, a[:5]), '200 stars with .* but 5'),
                       (lambda: bimodality(f[:40], a[:40]), '30 are needed'), (lambda: bimodality(f, a, [0]), 'must rise'),
                       (lambda: disc_recovery({'a': (f, a)}), "no sample called 'reference' among a"), (lambda: disc_recovery({'reference': (f, a), 'b': (f[:9], a[:9])}), 'paired=False'),
                       (lambda: disc_recovery({'reference': discs(3000, share=0.)}), 'no bin of the reference has two'), (lambda: plot_plane([np.nan], [1.]), 'no star with finite')]:
        with pytest.raises(ValueError, match=text): call()


def test_a_sparse_bin_does_not_lose_the_rest():
    t = bimodality(*discs(900), bins=(-3, -.8, -.4, 0.))
    assert t['n'][0] == 0 and np.isnan(t['dip'][0]) and not t['two'][0] and np.isfinite(t['dip'][1:]).all()


def test_pictures():
    s = {'reference': discs(1500, 6), 'b': discs(1500, 7), 'c': discs(1500, 8)}
    axes = plot_discs(s, table=disc_recovery(s, paired=False, permutations=19), columns=2)
    assert len(axes) == 3 and len(axes[0].figure.axes) == 3 and all('MMD²' in a.texts[0].get_text() for a in axes)
    assert len({a.get_ylim() for a in axes}) == 1
    plt.close(axes[0].figure)
