"Dust: there and back, a planted cloud recovered within its errors, maps that lose no star, and complaints that name the fix."
import matplotlib; matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np, pytest, sys
from astropy.stats import biweight_scale
from astropy.table import MaskedColumn, Table
from hypothesis import given, settings, strategies as st
pytest.importorskip('dust_extinction'); pytest.importorskip('astropy_healpix')
from specnb.science.dust import COLOURS, PASSBANDS, IntrinsicColour, _amount, _excess, agreement, band_extinction, colour_extinction, colour_of, curve, deredden, intrinsic_colour, redden
from specnb.science.sky import _pixels, adaptive_map, dust_map, galactic, nside_for, plot_map, plot_maps
from specnb.spectra.container import Spectra
from specnb.spectra.grid import Grid

few = settings(deadline=None, max_examples=25)
GRID = Grid.linear(3360, 20, 343)
NAMES = ('teff', 'logg', 'fe_h', 'alpha_m')


def spectra(n=3, seed=0):
    rng = np.random.default_rng(seed)
    ivar = rng.uniform(1, 100, (n, GRID.n)); ivar[0, :5] = 0
    return Spectra(rng.normal(1, .3, (n, GRID.n)), ivar, GRID, Table(dict(target_id=[str(i) for i in range(n)])), survey='gaiaxp', rest=True)


def sphere(n, seed):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n))), rng


def cloud(l, b, at=(2., 10.)):
    "A layer and a cloud that straddles l = 0"
    d2 = (((l - at[0] + 180) % 360 - 180)*np.cos(np.radians(b)))**2 + (b - at[1])**2
    return .1*np.exp(-np.abs(b)/15) + .4*np.exp(-d2/(2*8**2))


@few
@given(st.lists(st.floats(-.2, 2), min_size=3, max_size=3), st.sampled_from(['G23', 'F19', 'F99', 'CCM89', 'O94']), st.floats(2.4, 5.5), st.booleans(), st.integers(0, 99))
def test_there_and_back(a, law, r_v, in_k, seed):
    s, how = spectra(seed=seed), dict(law=law, r_v=r_v, **({'a_k': np.array(a)*.1} if in_k else {'a_v': a}))
    for one, other in ((redden, deredden), (deredden, redden)):
        back = other(one(s, **how), **how)
        np.testing.assert_allclose(back.flux, s.flux, rtol=3e-6, atol=1e-7)
        np.testing.assert_allclose(back.ivar, s.ivar, rtol=3e-6)
    r = redden(s, **how)
    np.testing.assert_allclose(r.flux*np.sqrt(r.ivar), s.flux*np.sqrt(s.ivar), rtol=1e-5, atol=1e-6)
    assert (r.good == s.good).all() and r.meta == s.meta and (r.table['target_id'] == s.table['target_id']).all()


@few
@given(st.floats(0, 2), st.floats(0, 2))
def test_dust_adds_up(a, b):
    np.testing.assert_allclose(redden(redden(spectra(), a_v=a), a_v=b).flux, redden(spectra(), a_v=a + b).flux, rtol=3e-6, atol=1e-7)
    np.testing.assert_allclose(redden(spectra(), a_v=a).flux, deredden(spectra(), a_v=-a).flux, rtol=3e-6, atol=1e-7)


def test_each_star_has_its_own_dust():
    s, a = spectra(), [0., .1, .3]
    for i, r in enumerate(redden(s, a_k=a).flux): np.testing.assert_allclose(r, redden(s[i], a_k=a[i]).flux[0], rtol=1e-6)
    np.testing.assert_array_equal(redden(s, a_k=a).flux[0], s.flux[0])


@pytest.mark.parametrize('how, says', [(dict(), 'either'), (dict(a_v=1, a_k=1), 'either'), (dict(a_v=[1, 2]), 'shape'), (dict(a_v=np.ones((3, 1))), 'shape'), (dict(a_v=[0, np.nan, 1]), '1 stars have no finite'),
                                       (dict(a_v=np.ma.masked_equal([0, 1, 1], 1)), '2 stars'), (dict(a_v=1, law='none'), 'no extinction law'), (dict(a_v=1, law='BaseExtRvModel'), 'no extinction law'), (dict(a_v=1, r_v=1.), 'R_V 1.0 is outside')])
def test_bad_dust(how, says):
    with pytest.raises(ValueError, match=says): redden(spectra(), **how)


def test_bad_spectra():
    one = np.ones((1, 5))
    with pytest.raises(ValueError, match='outside of what F19 covers'): redden(Spectra(one, one, Grid.linear(40_000, 10, 5)), a_v=1, law='F19')
    with pytest.raises(ValueError, match='deredden them before'): deredden(Spectra(one, one, Grid.linear(4000, 10, 5), normalised='running'), a_v=1)


@pytest.mark.parametrize('name, call', [('dust_extinction', lambda: curve(5000.)), ('dust_extinction', lambda: redden(spectra(), a_v=1)),
                                        ('astropy_healpix', lambda: dust_map([1.], [1.], [.1], [.1])), ('astropy_healpix', lambda: nside_for([1.], [1.]))])
def test_missing_extra(monkeypatch, name, call):
    for k in [k for k in sys.modules if k.split('.')[0] == name]: monkeypatch.setitem(sys.modules, k, None)
    with pytest.raises(ImportError, match=rf'{name} is needed for this: pip install "specnb\[xp\]"'): call()


def stars(n, seed, per_star=.02):
    "Simulated stars with a smooth colour, label and photometric errors, all over the sky"
    l, b, rng = sphere(n, seed)
    y = np.stack([rng.uniform(4000, 6500, n), rng.uniform(.5, 4.8, n), rng.uniform(-1.5, .4, n), rng.uniform(0, .3, n)], 1)
    ak, x, size = np.where(np.abs(b) > 30, .007/np.abs(np.sin(np.radians(b))), cloud(l, b)), 5040/y[:, 0], np.array([50, .05, .03, .02])
    mags = dict(k=10 + 0*x, h=10.05 + .2*x, j=9.8 + .9*x + .03*y[:, 2]*y[:, 1]/3, g=11 + 2*x**2, rp=11 + 1.2*x, bp=10.5 + 2.9*x + .05*y[:, 2])
    return Table(dict(l=l, b=b, ak=ak, **dict(zip(NAMES, (y + size*rng.normal(size=y.shape)).T)), **{f'{k}_err': np.full(n, s) for k, s in zip(NAMES, size)},
                      **{f'{k}_mag': m + band_extinction(k, ak, y[:, 0]) + per_star*rng.normal(size=n) for k, m in mags.items()}))


@few
@given(st.sampled_from(COLOURS), st.floats(-.3, 3), st.floats(3000, 9000), st.sampled_from(['G23', 'F19']))
def test_an_excess_gives_back_its_dust(colour, a_k, teff, law):
    excess = np.array([_excess(colour, a_k, teff, law, 3.1)])
    a, per_ak = _amount(colour, excess, teff, law, 3.1)
    assert a[0] == pytest.approx(a_k, abs=2e-3) and per_ak[0] > 0


@few
@given(st.floats(3500, 8000), st.floats(.01, 2), st.floats(2.5, 5))
def test_bands_of_a_black_body(teff, a_k, r_v):
    "Against the integral done directly, and in the order of their wavelengths"
    nm = np.arange(320, 1061, 1.)
    n = np.interp(nm, *PASSBANDS['bp'], left=0, right=0)*nm**-4/np.expm1(1.438777e7/(nm*teff))
    direct = -2.5*np.log10((n*10**(-.4*a_k*curve(10*nm, r_v=r_v)/curve(21590, r_v=r_v))).sum()/n.sum())
    assert band_extinction('bp', a_k, teff, r_v=r_v) == pytest.approx(direct, rel=.005)
    assert (np.diff([band_extinction(k, a_k, teff, r_v=r_v) for k in ('bp', 'g', 'rp', 'j', 'h', 'k')]) < 0).all()


@pytest.mark.parametrize('colour', COLOURS)
def test_colour_excess_is_right_within_its_errors(colour):
    train, test = stars(8000, 1), stars(4000, 2)
    a, e = colour_extinction(test, intrinsic_colour(train, train['b'], colour))
    pull = ((a - test['ak'])/e)[np.isfinite(a)]
    assert np.isfinite(a).mean() > .97 and abs(np.median(pull)) < .1 and .9 < biweight_scale(pull) < 1.15


def test_dust_near_the_plane_does_not_change_the_intrinsic_colour():
    train = stars(8000, 1)
    more = train.copy()
    for k in ('j_mag', 'k_mag'): more[k] = np.where(np.abs(train['b']) < 30, train[k] + 3*(k == 'j_mag'), train[k])
    assert (intrinsic_colour(train, train['b']).coef == intrinsic_colour(more, train['b']).coef).all()


def test_a_few_clouds_far_from_the_plane_are_clipped():
    train, test = stars(8000, 1), stars(3000, 2)
    train['j_mag'][::20] += 1.
    a, e = colour_extinction(test, intrinsic_colour(train, train['b']))
    assert abs(np.nanmedian(a - test['ak'])) < .005


def test_what_is_missing_is_nan():
    train = stars(6000, 1)
    model = intrinsic_colour(train, train['b'])
    t = stars(6, 3)
    t['teff'] = MaskedColumn(t['teff'], mask=[1, 0, 0, 0, 0, 0])
    t['j_mag'][1], t['fe_h'][2], t['teff'][3], t['k_mag'][4] = np.nan, -9999, 20_000, -9999.
    a, e = colour_extinction(t, model)
    assert np.isnan(a[:5]).all() and np.isnan(e[:5]).all() and np.isfinite([a[5], e[5]]).all()


def test_larger_label_errors_give_larger_errors():
    train, t = stars(6000, 1), stars(50, 3)
    model, worse = intrinsic_colour(train, train['b']), t.copy()
    worse['teff_err'] *= 4
    assert (colour_extinction(worse, model)[1] > colour_extinction(t, model)[1])[np.isfinite(colour_extinction(t, model)[0])].all()


def test_bad_tables():
    t = stars(500, 1)
    with pytest.raises(ValueError, match='200 are needed'): intrinsic_colour(t, t['b'], b_min=80)
    with pytest.raises(ValueError, match="no magnitude 'j'"): intrinsic_colour(t[['teff', 'logg', 'fe_h', 'alpha_m', 'k_mag']], t['b'])
    with pytest.raises(ValueError, match='3 values of b for 500 stars'): intrinsic_colour(t, t['b'][:3])
    with pytest.raises(ValueError, match="no colour 'j'"): colour_of(t, 'j')


@pytest.mark.parametrize('n', [3000, 20_000])
def test_a_planted_cloud_comes_back_within_its_errors(n):
    l, b, rng = sphere(n, 4)
    e = rng.uniform(.01, .05, n)
    true = cloud(l, b)*rng.lognormal(-.08, .4, n)
    m = dust_map(l, b, true + e*rng.normal(size=n), e, 8, 'galactic')
    many = sphere(400_000, 5)[:2]
    mean = dust_map(*many, cloud(*many), 1., 8, 'galactic')['ak']
    pull = (m['ak'] - mean[m['pixel']])/m['err']
    assert .85 < biweight_scale(pull) < 1.15 and abs(np.median(pull)) < .15
    top = m[np.argmax(m['ak'])]
    assert abs((top['l'] - 2 + 180) % 360 - 180) < 12 and abs(top['b'] - 10) < 12


@few
@given(st.integers(1, 400), st.sampled_from([1, 2, 4, 16, 64]), st.integers(0, 99))
def test_no_star_is_lost_and_the_mean_is_conserved(n, nside, seed):
    l, b, rng = sphere(n, seed)
    x = rng.normal(.1, .1, n)
    m = dust_map(l, b, x, .05, nside, 'galactic')
    assert m['n'].sum() == n and len(np.unique(m['pixel'])) == len(m) and (m['pixel'] < 12*nside**2).all()
    assert np.sum(m['ak']*m['n'])/n == pytest.approx(x.mean(), abs=1e-12)
    assert (m['err'] > 0).all() and np.isfinite(m['median']).all() and (m['ak'] >= x.min() - 1e-12).all() and (m['ak'] <= x.max() + 1e-12).all()


def test_the_median_is_the_median():
    l, b, rng = sphere(300, 0)
    x = rng.normal(size=300)
    m = dust_map(l, b, x, .05, 2, 'galactic')
    p = _pixels(l, b, 2)
    for row in m: assert row['median'] == pytest.approx(np.median(x[p == row['pixel']]))


def test_equal_stars_have_no_scatter():
    m = dust_map([10.]*5, [20.]*5, [.1]*5, .05, 4)
    assert len(m) == 1 and m['scatter'][0] == 0 and m['err'][0] == pytest.approx(.05/5**.5) and m['ak'][0] == pytest.approx(.1)


def test_positions_agree_with_a_reference():
    "The galactic centre and poles of the IAU, and the number of an equatorial pixel worked out by hand"
    l, b = galactic([266.40499, 192.85948, 12.85948], [-28.93617, 27.12825, -27.12825])
    assert abs((l[0] + 180) % 360 - 180) < 1e-3 and b == pytest.approx([0, 90, -90], abs=1e-3)
    assert dust_map([45.], [np.degrees(np.arcsin(2/3)) + 10], [.1], .1, 1, 'galactic')['pixel'][0] == 0
    assert dust_map([10.], [-89.9], [.1], .1, 1, 'galactic')['pixel'][0] == 8


@pytest.mark.parametrize('make', [dust_map, adaptive_map])
def test_poles_and_the_wrap(make):
    l, b = np.array([0., 360, -180, 180, 77, 0, 123]), np.array([90., 90, -90, -90, 90, 0, -90])
    m = make(l, b, np.arange(7)/10, .01, frame='galactic')
    assert m['n'].sum() == 7 and (np.abs(m['b']) <= 90).all() and (m['l'] >= 0).all() and (m['l'] < 360).all()
    near = dust_map([359.999, .001, 360., 0.], [.01]*4, [.1]*4, .01, 4, 'galactic')
    assert len(near) == 1 and near['n'][0] == 4


def test_nan_stars_are_left_out_and_nothing_else():
    l, b, rng = sphere(100, 0)
    x, e = rng.normal(size=100), np.full(100, .1)
    x[:10], e[10:15] = np.nan, np.nan
    assert dust_map(l, b, x, e, 4)['n'].sum() == 85
    assert dust_map(l, b, np.ma.masked_where(np.arange(100) < 40, np.ones(100)), e, 4)['n'].sum() == 60


@pytest.mark.parametrize('nside', [0, 3, -4, 4., '8', True, 100, None])
def test_bad_nside(nside):
    for call in (lambda: dust_map([1.], [1.], [.1], .1, nside), lambda: nside_for([1.], [1.], hi=nside), lambda: adaptive_map([1.], [1.], [.1], .1, lo=nside)):
        with pytest.raises(ValueError, match='is not a power of two'): call()


@pytest.mark.parametrize('args, says', [(([1.], [91.], [.1], .1), 'not degrees on the sky'), (([361.], [1.], [.1], .1), 'not degrees'), (([1., 2], [1., np.nan], [.1, .1], .1), '1 stars have no finite position, the first in row 1'),
                                        (([1.], [1.], [.1], [-1.]), '1 errors are negative'), (([1.], [1.], [.1], 0.), '1 errors are 0'), (([1.], [1., 2], [.1], .1), '1 right ascensions but 2'),
                                        (([1.], [1.], [.1, .2], .1), '2 values of ak for 1 stars'), (([1.], [1.], [.1], [.1, .1]), '2 values of err'), (([1.], [1.], [np.nan], .1), 'no star has a finite'),
                                        (([], [], [], []), 'no star has a finite'), (([1.], [1.], [[.1]], .1), 'one number a star')])
def test_bad_stars(args, says):
    for make in (dust_map, adaptive_map):
        with pytest.raises(ValueError, match=says): make(*args)


def test_bad_frame():
    with pytest.raises(ValueError, match="'icrs' or 'galactic'"): galactic([1.], [1.], 'fk5')
    with pytest.raises(ValueError, match='coarser than the coarsest'): adaptive_map([1.], [1.], [.1], .1, lo=16, hi=8)


def test_nside_grows_with_the_stars():
    l, b, _ = sphere(300_000, 0)
    found = [nside_for(l[:n], b[:n], frame='galactic') for n in (10, 1000, 10_000, 100_000, 300_000)]
    assert found == sorted(found) and found[0] == 4 and found[-1] >= 32
    with pytest.raises(ValueError, match='no stars'): nside_for([], [])


@few
@given(st.integers(1, 3000), st.integers(1, 50), st.integers(0, 99))
def test_adaptive_pixels_tile_and_hold_enough(n, least, seed):
    l, b, rng = sphere(n, seed)
    l, b = l*rng.random(n)**2, b*rng.random(n)
    m = adaptive_map(l, b, rng.normal(size=n), .1, least, frame='galactic')
    assert m['n'].sum() == n and (m['n'][m['nside'] > 4] >= least).all() and set(m['nside']) <= {4, 8, 16, 32, 64}
    lo, hi = (np.asarray(m['pixel'] + k)*(64//np.asarray(m['nside']))**2 for k in (0, 1))
    order = np.argsort(lo)
    assert (hi[order][:-1] <= lo[order][1:]).all()


def test_adaptive_with_one_level_is_the_plain_map():
    l, b, rng = sphere(2000, 0)
    x = rng.normal(size=2000)
    one, plain = adaptive_map(l, b, x, .1, lo=8, hi=8), dust_map(l, b, x, .1, 8)
    for k in plain.colnames: np.testing.assert_array_equal(one[k], plain[k])


def test_empty_pixels_are_shown_as_empty():
    l, b, rng = sphere(5000, 0)
    north = b > 0
    m = dust_map(l[north], b[north], np.full(north.sum(), .1), .05, 8, 'galactic')
    for region in (None, (10, 0, 20), (0, 90, 30), (359, -85, 10)):
        ax = plot_map(m, region=region)
        picture = ax.collections[0].get_array()
        assert ax.patch.get_hatch() and np.ma.is_masked(picture) == (region != (0, 90, 30))
        rows = picture.reshape(picture.shape[0], -1)
        if region is None: assert rows[:100].mask.all() and not rows[-100:].mask.any()
        if region == (359, -85, 10): assert rows.mask.all()
        plt.close(ax.figure)


def test_longitude_grows_to_the_left():
    m = dust_map([60., 300.], [0., 0.], [1., 0.], .1, 4, 'galactic')
    ax = plot_map(m, vmin=-1, vmax=1, stretch='linear')
    x = ax.collections[0].get_coordinates()[:-1, :-1, 0][~np.ma.getmaskarray(ax.collections[0].get_array())]
    value = ax.collections[0].get_array().compressed()
    assert (x[value > .5] < 0).all() and (x[value < .5] > 0).all()
    plt.close('all')
    axes = plot_maps(m, region=(60, 0, 20)); assert len(axes) == 2 and 'longitude' in axes[0].get_xlabel()
    plt.close('all')
    for stretch in ('log', 'sqrt', 'linear'): plot_map(m, stretch=stretch, vmin=.01); plt.close('all')


def test_agreement():
    rng = np.random.default_rng(0)
    ref = rng.uniform(0, .6, 3000)
    a = .01 + .9*ref + .02*rng.normal(size=3000)
    a[:30], a[30:40] = 9, np.nan
    t = agreement({'x': (a, np.full(3000, .02)), 'y': ref}, ref)
    assert len(t) == 12 and t['n'][0] == 2990 and t['n'][1:6].sum() == 2990
    assert t['slope'][0] == pytest.approx(.9, abs=.01) and np.isnan(t['slope'][1:6]).all() and t['slope'][6] == pytest.approx(1)
    assert (t['sigma'][6:] == 0).all() and t['r2'][6] == 1
    with pytest.raises(ValueError, match='no star with a finite A_K x'): agreement({'x': a*np.nan}, ref)
    with pytest.raises(ValueError, match='values of ak y for'): agreement({'y': a[:5]}, ref)


def test_a_model_can_be_shown():
    train = stars(6000, 1)
    model = intrinsic_colour(train, train['b'])
    assert isinstance(model, IntrinsicColour) and model.law == 'G23' and 'cov' not in repr(model) and model.n > 1000
