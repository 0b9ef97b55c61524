"Posteriors: against one that is known on paper, against deliberately wrong ones, as files, and on real stars (run with -rP to see the figures)."
import importlib.util, json
import numpy as np
import pytest, torch
from astropy.table import Table
from scipy.stats import multivariate_normal
from specnb.apps.hub import load_model
from specnb.learn.calibration import calibration, ranks, tarp_ranks, true_labels, uniformity
from specnb.learn.data import Augment
from specnb.learn.posterior import Posterior, fit_posterior
from specnb.learn.train import fit
from specnb.models.mlp import MLP
from specnb.spectra.container import Spectra
from specnb.spectra.grid import Grid
from tree import ROOT

N_PIX, NOISE = 12, .5


def toy(n, seed):
    "Stars of two labels of which the spectrum shows the sum alone, with noise: the posterior is Gaussian and anticorrelated"
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, 2))
    flux = 1 + y.sum(1, keepdims=True)/10 + rng.normal(size=(n, N_PIX))*NOISE/10
    return Spectra(flux, np.full(flux.shape, 1e4), Grid.log(3.6, 1e-3, N_PIX), Table(y, names=('a', 'b')), rest=True, normalised='running')


def on_paper(s):
    "Mean (n, 2) and covariance of the labels given the spectrum"
    x = (s.flux.mean(1) - 1)*10
    gain = 1/(2 + NOISE**2/N_PIX)
    return np.repeat((gain*x)[:, None], 2, 1), np.eye(2) - gain


@pytest.fixture(scope='module')
def known():
    torch.manual_seed(0)
    s = toy(6000, 0)
    model = MLP(labels=['a', 'b'], errors=False, hidden=[32], grid=s.grid.id, dropout=0).eval()           # never trained: features at random lose a little
    post = fit_posterior(model, s, np.arange(5000), np.arange(5000, 6000), epochs=30, augment=None, progress=False)
    return post, toy(3000, 1)


def test_a_posterior_known_on_paper(known):
    post, s = known
    mean, cov = on_paper(s)
    y = post.sample(s, 400)
    np.testing.assert_allclose(np.mean([np.cov(a.T) for a in y], 0), cov, atol=.04)
    assert np.abs(y.mean(1) - mean).max(1).mean() < .1
    true = true_labels(['a', 'b'], s)
    exact = np.mean([multivariate_normal(m, cov).logpdf(t) for m, t in zip(mean, true)])
    print(f'mean log density {post.log_prob(s, true).mean():.3f}, on paper {exact:.3f}')
    assert exact - .15 < post.log_prob(s, true).mean() < exact + .03
    t = calibration(y, true, ['a', 'b'])
    assert (np.abs(t['cover68'] - .683) < .035).all() and (np.abs(t['cover95'] - .954) < .02).all()


def exact_samples(s, n=100):
    mean, cov = on_paper(s)
    return mean[:, None] + np.random.default_rng(2).multivariate_normal([0, 0], cov, (len(s), n))


def test_the_exact_posterior_passes(known):
    t = calibration(exact_samples(known[1]), true_labels(['a', 'b'], known[1]), ['a', 'b'])
    assert (t['p'] > 1e-3).all() and (np.abs(t['cover68'] - .683) < .03).all() and (np.abs(t['cover95'] - .954) < .015).all()


@pytest.mark.parametrize('factor', [.6, .8, 1.3])
def test_a_posterior_of_wrong_width_fails(known, factor):
    s, true = known[1], true_labels(['a', 'b'], known[1])
    y = exact_samples(s)
    middle = y.mean(1, keepdims=True)
    t = calibration(middle + factor*(y - middle), true, ['a', 'b'])
    assert (t['p'] < 1e-4).all() and (np.sign(t['cover68'] - .683) == np.sign(factor - 1)).all() and (np.abs(t['cover68'] - .683) > .05).all()


def test_a_biased_posterior_fails(known):
    r = ranks(exact_samples(known[1]) + [.2, 0], true_labels(['a', 'b'], known[1]))
    p = uniformity(r)
    assert p[0] < 1e-6 and p[1] > 1e-3


def test_only_the_joint_test_sees_a_wrong_correlation(known):
    "Each label right by itself, the pair wrong"
    s, true = known[1], true_labels(['a', 'b'], known[1])
    y = exact_samples(s)
    y[..., 1] = 2*y[..., 1].mean(1, keepdims=True) - y[..., 1]
    assert (uniformity(ranks(y, true)) > 1e-3).all() and uniformity(tarp_ranks(y, true))[0] < 1e-6


def test_samples_do_not_depend_on_the_company(known):
    post, s = known
    np.testing.assert_array_equal(post.sample(s[:700], 90), post.sample(s[:700], 90))
    np.testing.assert_allclose(post.sample(s[:700], 90)[:100], post.sample(s[:100], 90), atol=1e-5)


def test_what_is_written(known, tmp_path):
    post, s = known
    folder = post.save(tmp_path)
    assert sorted(o.name for o in folder.iterdir() if o.suffix != '.md') == ['config.json', 'model.safetensors']
    assert json.loads((folder/'config.json').read_text())['network'] == post.network
    again = Posterior.load(tmp_path, post.model)
    np.testing.assert_array_equal(again.sample(s[:20]), post.sample(s[:20]))
    again.recalibrate(s[:500], how='quantile').save(tmp_path)
    np.testing.assert_array_equal(Posterior.load(tmp_path, post.model).sample(s[:20]), again.sample(s[:20]))


def test_another_network_is_refused(known, tmp_path):
    post, s = known
    post.save(tmp_path)
    other = MLP(labels=['a', 'b'], errors=False, hidden=[32], grid=s.grid.id).eval()
    with pytest.raises(ValueError, match='belongs to network'): Posterior.load(tmp_path, other)
    alone = Posterior.load(tmp_path)
    with pytest.raises(ValueError, match='no network yet'): alone.sample(s)
    with torch.no_grad(): other.load_state_dict(post.model.state_dict())
    assert alone.of(other).sample(s[:3]).shape == (3, 100, 2)
    with torch.no_grad(): other.head.bias += 1e-3
    with pytest.raises(ValueError, match='belongs to network'): alone.sample(s)


def test_a_posterior_starts_from_another(known):
    post, s = known
    again = fit_posterior(post.model, s, np.arange(100), np.arange(100, 200), epochs=1, lr=1e-6, init=post, augment=None, progress=False)
    np.testing.assert_allclose(again.sample(s[200:220], 9), post.sample(s[200:220], 9), atol=1e-3)
    with pytest.raises(ValueError, match='start from'): fit_posterior(post.model, s, np.arange(100), np.arange(100, 200), labels=['a'], init=post, progress=False)


def test_fitting_leaves_the_network_and_the_dice_alone(known):
    post, s = known
    before = {k: v.clone() for k, v in post.model.state_dict().items()}
    torch.manual_seed(5); a = torch.rand(3)
    torch.manual_seed(5); fit_posterior(post.model, s, np.arange(100), np.arange(100, 200), epochs=2, progress=False); b = torch.rand(3)
    assert torch.equal(a, b) and all(torch.equal(v, before[k]) for k, v in post.model.state_dict().items())


def miles(path):
    spec = importlib.util.spec_from_file_location('build_weights', ROOT/'data'/'build_weights.py')
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    s = m.read_miles(path)
    s = s[m.in_range(s)]
    return s._with(table=Table({**{k: s.table[k] for k in s.table.colnames}, 'alpha_fe': np.full(len(s), np.nan)}))


def test_few_real_stars(shared_data):
    "lrs-sim adapted to stars of MILES, a flow fitted on the same few and recalibrated on those that chose the epoch; scored on the others, three times"
    if not (shared_data/'miles.npz').exists(): pytest.skip('no miles.npz here')
    source, labels, parts = load_model('lrs-sim'), ['teff', 'logg', 'fe_h'], []
    s = miles(shared_data/'miles.npz').normalise(**source.normalise)
    order = np.random.default_rng(0).permutation(len(s))
    for fold in range(3):
        test = order[fold::3]
        rest = np.setdiff1d(order, test, assume_unique=True)
        valid, train = rest[:70], rest[70:]
        model = source.copy(card={})
        fit(model, s, train, valid, 12, lr=slice(1e-4, 1e-3), bs=32, augment=Augment(noise=.8, rv=8, lines=.1, lines_width=8), seed=fold, progress=False)
        post = fit_posterior(model, s, train, valid, labels=labels, epochs=30, lr=1e-3, augment=Augment(noise=.8), seed=fold, progress=False).recalibrate(s[valid])
        y, e = model.predict(s[test])
        gauss = y[:, None, :3] + e[:, None, :3]*np.random.default_rng(fold).normal(size=(len(y), 200, 3))
        parts.append((post.sample(s[test], 200), gauss, true_labels(labels, s[test])))
    y, gauss, true = map(np.concatenate, zip(*parts))
    t = calibration(y, true, labels)
    for name, table in (('flow', t), ('error columns', calibration(gauss, true, labels))): print(f'{name}, {len(train)} + {len(valid)} stars of MILES to adapt on:\n{table}')
    assert (np.abs(t['cover68'] - .68) < .09).all() and (t['cover95'] > .88).all()
