"Translations and the baselines they are held against, on two made-up surveys."
import matplotlib, numpy as np, pytest
matplotlib.use('Agg')
import matplotlib.pyplot as plt
from astropy.table import Table
from fastai.torch_core import set_seed
from specnb.learn.align import align
from specnb.learn.pairs import pair
from specnb.learn.pretrain import pretrain
from specnb.models.align import aligned
from specnb.models.encoder import AutoEncoder
from specnb.models.mlp import MLP
from specnb.physics.emulator import LABELS
from specnb.physics.survey import simulate
from specnb.science.translate import by_labels, compare_translations, emulated, nearest, normalised, plot_errors, plot_translation, regressed, translate
from specnb.spectra.container import Spectra
from specnb.spectra.grid import Grid


@pytest.fixture(scope='module')
def house():
    "Two halves of simulated spectra, a model of both, and the pairs by part"
    stars = simulate('lamost', 800, seed=1, snr=60)
    both = {'blue': stars.to(Grid.log(3.62, 2e-4, 220)), 'red': stars.to(Grid.log(3.68, 2e-4, 260))}
    for k, s in both.items(): s.survey = k
    pairs = pair(**both)
    part = {k: np.flatnonzero(pairs.split == k) for k in ('train', 'valid', 'test')}
    set_seed(0)
    tiny = {k: AutoEncoder(grid=s.grid.id, hidden=64, blocks=1, bottleneck=24) for k, s in both.items()}
    for k, e in tiny.items(): pretrain(e, both[k], part['train'], part['valid'], epochs=5, lr=3e-3, bs=32, progress=False)
    model = aligned('clip-split', tiny, units=64)
    align(model, pairs, part['train'], part['valid'], epochs=14, bs=64, progress=False)
    return model, {k: pairs[i] for k, i in part.items()}


def made(n=4, n_pix=6, flux=1., ivar=100., **table):
    "Spectra of known numbers"
    shape = np.ones((n, n_pix))
    t = Table(dict(target_id=[f's{i}' for i in range(n)], fe_h=np.linspace(-1.2, .2, n)) | table)
    return Spectra(flux*shape, ivar*shape, Grid.linear(5000, 10, n_pix), t, rest=True, normalised='running')


def test_round_trip(house):
    model, part = house
    s = part['test'].read()
    for a, b in (('blue', 'red'), ('red', 'blue')):
        there = translate(model, s[a])
        assert there.grid == model.sides[b].grid and there.normalised == model.sides[b].normalise['method'] and there.rest and there.lsf == model.sides[b].lsf
        assert list(there.table['target_id']) == list(s[a].table['target_id']) and there.table.meta['left_out'] == [] and 'left_out' not in s[a].table.meta
        back = translate(model, there)
        assert back.grid == model.sides[a].grid and len(back) == len(s[a]) and back.good.any(1).all()
        same = translate(model, s[a], to=a)
        assert same.grid == model.sides[a].grid and compare_translations({'same': same, 'back': back}, normalised(model, s[a]))['rms'][0] < .08


def test_alone_as_among_others(house):
    model, part = house
    s = part['test'].read()['blue']
    among = translate(model, s)
    for batch in (1, 7): assert np.allclose(translate(model, s[3:17], batch=batch).flux, among.flux[3:17], atol=1e-5)
    order = np.random.default_rng(0).permutation(len(s))
    assert np.allclose(translate(model, s[order]).flux, among.flux[order], atol=1e-5) and np.allclose(translate(model, s[order]).ivar, among.ivar[order], rtol=1e-3)
    assert np.allclose(translate(model, normalised(model, s)).flux, among.flux, atol=1e-5)
    assert len(translate(model, s[:0])) == 0


def test_errors_positive_and_calibrated(house):
    model, part = house
    s = part['test'].read()
    library = part['train']
    for a, b in (('blue', 'red'), ('red', 'blue')):
        ways = dict(model=translate(model, s[a]), nearest=nearest(model, library, s[a], k=5), labels=by_labels(model, None, regressed(model, library, b), s[a], part['valid']))
        t = compare_translations(ways, normalised(model, s[b]), edges=(-.5, 0, .5))
        for k, way in ways.items(): assert np.isfinite(way.ivar).all() and (way.ivar[:, 5:-5] > 0).all(), k
        first = t[t['what'] == 'all']
        assert (abs(first['within1'] - .683) < .06).all() and (abs(first['within2'] - .954) < .04).all() and (first['ratio'] > .95).all()


def test_dead_star(house):
    model, part = house
    s = part['test'].read()['blue'][:6]
    whole = translate(model, s)
    s.ivar[[0, 4]] = 0
    for way in (translate, lambda m, s: nearest(m, part['train'][:80], s, k=3), lambda m, s: by_labels(m, None, regressed(m, part['train'], 'red'), normalised(m, s)[:], part['valid'])):
        t = way(model, s)
        assert t.table.meta['left_out'] == [0, 4] or way is not translate
        assert (t.ivar[[1, 2, 3, 5]] > 0).any(1).all()
    t = translate(model, s)
    assert not t.ivar[[0, 4]].any() and np.allclose(t.flux[1], whole.flux[1], atol=1e-5)
    assert nearest(model, part['train'][:80], s).table.meta['left_out'] == [0, 4]
    dead = s[:1]
    assert not translate(model, dead).ivar.any()


def test_refused(house):
    model, part = house
    s = part['test'].read()['blue'][:3]
    deaf = aligned('clip', {k: model.sides[k].encoder for k in model.names}, width=8)
    for call, why in ((lambda: translate(deaf, s), 'predict=True'), (lambda: translate(model, s, to='green'), "to 'green'"), (lambda: translate(model, s.to(Grid.linear(4300, 2, 300))), 'neither side'),
        (lambda: nearest(model, part['train'], s, to='blue'), 'already'), (lambda: nearest(model, part['train'], s, k=0), 'k=0'), (lambda: nearest(model, part['train'][:4], s, k=4), 'k=4'),
        (lambda: regressed(model, part['train'][:20], 'red'), 'too few'), (lambda: emulated('4most'), 'unknown survey')):
        with pytest.raises(ValueError, match=why): call()


# baselines

def test_nearest_finds_itself(house):
    model, part = house
    library = part['train'][:200]
    s = library.read()
    for a, b in (('blue', 'red'), ('red', 'blue')):
        want, got = normalised(model, s[b]), nearest(model, library, s[a], batch=64)
        assert np.allclose(got.flux[got.good], want.flux[got.good], atol=1e-5) and got.good.any(1).all()
    ten = nearest(model, library, s['blue'], k=199, check=50)
    assert ten.flux[:, 100].std() < .01                                                   # nearly everybody's mean


def test_errors_of_nearest_know_that_no_star_finds_itself(house):
    "Were each star of the library allowed to find itself, there would seem to be no error"
    model, part = house
    got = nearest(model, part['train'][:200], part['test'].read()['blue'])
    assert np.median(1/np.sqrt(got.ivar[got.good])) > .01


def test_dead_pixels_have_no_part(house):
    model, part = house
    library = part['train'][:200]
    s = normalised(model, library.read()['blue'])
    s.flux[:, 50:80], s.ivar[:, 50:80] = 0, 0
    want, got = normalised(model, library.read()['red']), nearest(model, library, s)
    assert np.allclose(got.flux[got.good], want.flux[got.good], atol=1e-5)


def test_by_labels_is_the_emulator():
    "At the true labels nothing is left but noise and the flaws of the instrument; labels out of reach are pulled back"
    from specnb.science.translate import _physical
    y = Table(dict(teff=[5000., 5800.], logg=[2.5, 4.3], fe_h=[-1., 0.], alpha_m=[.3, 0.]))
    s = emulated()(y)
    t = simulate('lamost', 2, labels=np.stack([y[k] for k in y.colnames], 1), snr=1e6)
    a, b = (x.normalise() for x in (s, t))
    k = a.good & b.good
    assert np.median(np.abs(a.flux - b.flux)[k]) < .01 and np.array_equal(_physical(y), np.stack([y[k] for k in y.colnames], 1))
    out = _physical(Table(dict(zip(LABELS, ([3000.], [9.], [4.], [2.])))))
    from specnb.physics.emulator import Emulator
    assert Emulator.load().supported(out).all()


def test_labels_predicted(house):
    model, part = house
    blue = model.sides['blue']
    net = MLP(grid=blue.grid.id, hidden=(8,), mean=[5000, 3, -.5, .1], std=[1e-6]*4).eval()          # says the same of every star
    s = part['test'].read()['blue'][:5]
    s.ivar[2] = 0
    got = by_labels(model, net, regressed(model, part['train'], 'red'), s, part['valid'])
    assert got.table.meta['left_out'] == [2] and np.allclose(got.flux[0], got.flux[4], atol=1e-4)


# numbers

def test_known_numbers():
    truth, rng = made(200, 40, ivar=400.), np.random.default_rng(0)
    truth.flux += rng.normal(size=truth.flux.shape).astype(np.float32)*.05
    ways = {'right': made(200, 40, 1., 1e8), 'off': made(200, 40, 1.1, 100.), 'boastful': made(200, 40, 1.1, 1e8)}
    t = compare_translations(ways, truth, n_bins=4)
    first = {r['method']: r for r in t[t['what'] == 'all']}
    assert np.isclose(first['right']['noise'], .05) and np.isclose(first['right']['rms'], .05, rtol=.03) and first['right']['error'] < .012
    assert np.isclose(first['off']['rms'], np.hypot(.1, .05), rtol=.02) and np.isclose(first['off']['error'], .1, rtol=.02) and np.isclose(first['off']['median'], .1, rtol=.03)
    assert abs(first['right']['within1'] - .683) < .02 and abs(first['right']['within2'] - .954) < .01 and first['boastful']['within1'] < .2 < first['off']['within1']
    assert len(t[t['what'] == 'wavelength']) == 12 and t['lo'][t['what'] == 'wavelength'].min() == 5000 and t['hi'][t['what'] == 'wavelength'].max() == 5390
    by = t[(t['what'] == 'fe_h') & (t['method'] == 'off')]
    assert by['stars'].sum() == 200 and list(by['lo']) == [-1.5, -1, -.5, 0]
    assert len(plot_errors(t)) == 2 and len(plot_errors(t, 'error')) == 2
    plt.close('all')


def test_same_pixels_for_all():
    "A pixel that one method lacks is left out of all; so is a cosmic ray, but not a mistake of a method"
    truth, a, b = made(), made(flux=1.2), made()
    b.ivar[:, 0] = 0
    truth.flux[:, 0] = 50
    truth.flux[1, 3] = 9
    t = compare_translations(dict(a=a, b=b), truth)
    assert t.meta['pixels'] == 4*5 - 1 and t.meta['cosmic'] == 1 and np.allclose(t['rms'][:2], [.2, 0], atol=1e-6)
    a.flux[:, 2] = -9                                                                     # far too low, but b knows better
    assert compare_translations(dict(a=a, b=b), truth).meta['pixels'] == 19


@pytest.mark.parametrize('change,why', [
    (lambda s: dict(a=s[:2]), 'has 2 stars'), (lambda s: dict(), 'no translation'), (lambda s: dict(a=s[::-1]), 'same order'), (lambda s: dict(a=made(n_pix=7)), 'the truth on'),
    (lambda s: dict(a=Spectra(s.flux, s.ivar, s.grid, s.table, normalised='envelope')), "normalised by 'envelope'"), (lambda s: dict(a=made(ivar=0.)), 'no usable pixel'),
])
def test_not_compared(change, why):
    with pytest.raises(ValueError, match=why): compare_translations(change(made()), made())
    raw = made()
    raw.normalised = ''
    with pytest.raises(ValueError, match='pass normalised'): compare_translations(dict(a=made()), raw)


def test_picture():
    truth, t = made(n_pix=40), made(n_pix=40, flux=.9)
    top, low = plot_translation(t, truth, 1, truth, what='made up')
    assert np.allclose(low.lines[0].get_ydata(), .1) and np.allclose(top.lines[0].get_ydata(), 1) and np.allclose(top.lines[2].get_ydata(), .9) and [x.get_text() for x in top.texts]
    with pytest.raises(ValueError, match='no pixel between'): plot_translation(t, truth, lo=8000, hi=9000)
    t.ivar[2] = 0
    with pytest.raises(ValueError, match='star 2 has no pixel'): plot_translation(t, truth, 2)
    plt.close('all')
