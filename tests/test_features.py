"Features of XP spectra: planted ones are found, labels that only follow from others are called inferred, and what is shared out adds up."
import numpy as np, pytest, torch
from astropy.table import Table
from specnb.learn.train import fit
from specnb.models.mlp import MLP
from specnb.science.features import REGIMES, beyond, caution, correlation_check, feature_table, features, resolved
from specnb.spectra.container import Spectra
from specnb.spectra.gaia import XP_GRID, XP_LSF

LABELS = ['teff', 'fe_h', 'alpha_m']
N = 2400


def profile(name):
    "A feature as XP shows it"
    r = features()[features()['name'] == name][0]
    sigma = np.hypot(r['fwhm'], .7*(r['hi'] - r['lo']))/2.355
    return np.exp(-.5*((XP_GRID.wavelength - r['wavelength'])/sigma)**2)


def sky(carrier, seed=0, n=N):
    "Stars whose colour is their temperature, Fe 5270 their metallicity; [alpha/M] follows [Fe/H] and is in the feature `carrier`, or in none"
    rng, w = np.random.default_rng(seed), XP_GRID.wavelength
    teff, fe_h = rng.normal(5000, 500, n), rng.normal(-.3, .4, n)
    alpha = .1 - .2*fe_h + .06*rng.normal(size=n)
    flux = (w/5500)**((6000 - teff)/400)[:, None]
    flux *= 1 - (.06 + .04*fe_h[:, None])*profile('Fe 5270')
    if carrier: flux *= 1 - (.06 + .25*alpha[:, None])*profile(carrier)
    for other in ('Hα', 'Na D', 'TiO 7600', 'Ca triplet'): flux *= 1 - (.06 + .015*rng.normal(size=(n, 1)))*profile(other)
    flux *= 1 + .002*rng.normal(size=flux.shape)
    return Spectra(flux, 1/(.002*flux)**2, XP_GRID, Table(dict(teff=teff, fe_h=fe_h, alpha_m=alpha)), 'gaiaxp', XP_LSF, rest=True)


def trained(s, seed=0, **config):
    "A small network, a few seconds"
    y = np.stack([s.table[k] for k in LABELS], 1)
    torch.manual_seed(seed)
    model = MLP(labels=LABELS, grid=XP_GRID.id, normalise=dict(method='reference'), mean=y.mean(0).tolist(), std=y.std(0).tolist(),
                **{**dict(hidden=[64, 32], smooth=True, arcsinh=True, basis=30, dropout=0.), **config})
    model.learn_inputs(s[:1600])
    fit(model, s, np.arange(1400), np.arange(1400, 1600), epochs=15, lr=3e-3, bs=64, augment=None, seed=seed, progress=False)
    return model


def asked(carrier, seed=0):
    "Network, the stars it has not seen, and its [alpha/M] of them"
    s = sky(carrier, seed)
    model = trained(s, seed)
    return model, (unseen := s[1600:]), model.predict(unseen)[0][:, 2]


def others(s): return {k: np.asarray(s.table[k]) for k in LABELS[:2]}


@pytest.fixture(scope='module')
def planted(): return asked('TiO 7050')


@pytest.mark.parametrize('carrier,seed', [('MgH, Mg b', 1), ('Hβ', 2)])
def test_a_planted_feature_is_found(carrier, seed):
    found(*asked(carrier, seed), carrier)


def test_a_planted_band_is_found(planted): found(*planted, 'TiO 7050')


def found(model, s, pred, carrier):
    t = feature_table(resolved(model, s[:400], 'alpha_m').at_fixed(others(s[:400])))
    row = t[t['name'] == carrier][0]
    c = correlation_check(pred, s.table['alpha_m'], others(s), 'alpha_m', regimes={'all': REGIMES['all']})[0]
    print(carrier, *(f"{k} {row[k]:.3f}" for k in ('share', 'enrichment', 'p', 'net')), f"slope {c['slope']:.2f} +- {c['slope_err']:.2f}")
    assert row['p'] < .02 and row['enrichment'] > 4 and row['share'] == t['share'].max() and row['net'] > .3
    assert c['verdict'] == 'measured' and c['slope'] == pytest.approx(1, abs=.15)


def test_a_label_in_no_feature_is_inferred():
    "The network predicts it well all the same, from [Fe/H]"
    model, s, pred = asked(None, 3)
    t = correlation_check(pred, s.table['alpha_m'], others(s), 'alpha_m')
    row = t[t['regime'] == 'all'][0]
    print(row)
    assert row['r2'] > .5 and row['r2_labels'] > .5 and abs(row['slope']) < .1 and row['verdict'] == 'inferred'
    assert list(t['regime']) == ['all', 'metal-poor', 'metal-rich', 'cool', 'warm']               # no log g, no dwarfs
    assert 'inferred' in caution(t) and '[α/M] at fixed Teff, [Fe/H] is' in caution(t)


@pytest.mark.parametrize('config', [{}, dict(arcsinh=False, basis=0)])
def test_what_is_shared_out_adds_up(config):
    "After splitting off the colour, smoothing, and removing other labels; with samples and bands missing"
    s = sky('Hα', 4, 700)
    s.ivar[:40, :150] = 0
    s.ivar[50:60, 200:210] = 0
    s = s._with(s.flux, s.ivar)
    torch.manual_seed(0)
    model = MLP(labels=LABELS, grid=XP_GRID.id, normalise=dict(method='reference'), std=[500, .4, .1],
                **{**dict(hidden=[32], smooth=True, arcsinh=True, basis=30), **config})
    model.learn_inputs(s)
    a = resolved(model, s[:300], 'fe_h', steps=200)
    scale = a.change.std()
    np.testing.assert_allclose(a.values.sum(1) + a.colour, a.change + a.delta, atol=1e-4*scale)
    assert a.error < .05
    f = a.at_fixed(others(s[:300]))
    np.testing.assert_allclose(f.values.sum(1) + f.colour, f.change + f.delta, atol=1e-4*scale)
    part, colour = a.parts
    assert part.sum() + colour == pytest.approx(1, abs=.05)
    half = a[:150]
    assert len(half) == 150 and half.lsf == XP_LSF
    np.testing.assert_array_equal(half.colour, a.colour[:150])


def test_no_finer_than_the_resolution(planted):
    "Neighbouring samples share a resolution element, so they share what they get"
    model, s, _ = planted
    v = resolved(model, s[:50], 'alpha_m').values
    rough = np.abs(np.diff(v, 2, axis=1)).mean()/np.abs(v).mean()
    assert rough < .4


def test_errors_of_the_truth_do_not_lower_the_slope():
    rng, n = np.random.default_rng(0), 3000
    o = dict(fe_h=rng.normal(size=n))
    real = -.2*o['fe_h'] + .06*rng.normal(size=n)
    err = rng.choice([.01, .08], n)
    true, pred = real + err*rng.normal(size=n), real + .01*rng.normal(size=n)
    no, yes = (correlation_check(pred, true, o, 'alpha_m', e, {'all': REGIMES['all']})['slope'][0] for e in (None, err))
    print(no, yes)
    assert no < .75 and yes == pytest.approx(1, abs=.12)


def test_stars_without_labels(planted):
    _, s, pred = planted
    true, o = np.array(s.table['alpha_m']), others(s)
    true[:100] = np.nan
    o['fe_h'] = np.where(np.arange(len(s)) % 7, o['fe_h'], np.nan)
    t = correlation_check(pred, true, o, 'alpha_m')
    assert t['n'][0] == len(s) - 100 and np.isfinite(t['slope'][0])
    few = correlation_check(pred, true, o, 'alpha_m', regimes={'all': REGIMES['all'], 'few': lambda t: t['fe_h'] < -5})
    assert few['verdict'][1] == 'too few' and np.isnan(few['slope'][1])


def test_bad_input(planted):
    model, s, pred = planted
    with pytest.raises(ValueError, match='among the other labels'): correlation_check(pred, pred, dict(alpha_m=pred), 'alpha_m')
    with pytest.raises(ValueError, match='differ in number'): correlation_check(pred, pred[1:], others(s), 'alpha_m')
    with pytest.raises(ValueError, match='rows of other labels'): correlation_check(pred, pred, others(s[1:]), 'alpha_m')
    with pytest.raises(ValueError, match='at least 100'): beyond(pred[:50], others(s[:50]))
    with pytest.raises(ValueError, match='all finite'): beyond(np.where(np.arange(len(s)) == 3, np.nan, pred), others(s))
    with pytest.raises(ValueError, match='more than 1'): resolved(model, s[:5], 'fe_h', width=.5)
    with pytest.raises(ValueError, match='too few to remove'): resolved(model, s[:10], 'fe_h').at_fixed(others(s[:10]))
    with pytest.raises(ValueError, match='does not vary'): resolved(model, s[[0, 0, 0]], 'fe_h').parts
    with pytest.raises(ValueError, match='no label'): resolved(model, s[:5], 'age')
