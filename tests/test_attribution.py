"Attribution: sums, a linear network by hand, a planted line found and a shuffled label not, physics unbiased and efficient."
from importlib.resources import files
import numpy as np, pytest, torch
from astropy.table import Table
from scipy.ndimage import gaussian_filter1d
from specnb.learn.train import fit
from specnb.models.mlp import MLP
from specnb.physics.emulator import LABELS
from specnb.physics.survey import simulate
from specnb.science.attribution import attribute, line_table, species_table
from specnb.science.influence import agreement, physics_weights
from specnb.spectra.container import Spectra
from specnb.spectra.grid import Grid, LSF
from specnb.spectra.lines import lines

GRID = Grid.log(3.643, 1e-4, 600)                                         # 4395 to 5046 A


def forest(name, n=1500, seed=0):
    "Stars with a forest of constant lines, thirty of them as deep as the line `name`, which alone changes with the label"
    rng, w = np.random.default_rng(seed), GRID.wavelength
    depth = np.abs(gaussian_filter1d(rng.normal(size=GRID.n), 1.5))
    t = lines()
    at = float(t['wavelength'][t['name'] == name][0])
    line = lambda c: np.exp(-.5*((w - np.atleast_1d(c)[:, None])/1.2)**2).sum(0)
    y, others = rng.normal(size=n), rng.uniform(w[0], w[-1], 40)
    others = others[np.abs(others - at) > 10][:30]
    flux = 1 - .3*depth/depth.max() - .2*line(others) - (.2 + .04*y[:, None])*line(at) + .01*rng.normal(size=(n, GRID.n))
    return Spectra(flux, np.full(flux.shape, 1e4), GRID, Table(dict(fe_h=y)), lsf=LSF.R(1800), rest=True, normalised='running')


def trained(s, seed=0):
    "A small network, a few epochs"
    torch.manual_seed(seed)
    model = MLP(labels=['fe_h'], errors=False, hidden=(64, 32), grid=GRID.id, mean=[0.], std=[1.])
    fit(model, s, np.arange(1200), np.arange(1200, 1500), epochs=8, bs=128, augment=None, seed=seed, progress=False)
    return model


@pytest.mark.parametrize('name,seed', [('Fe I 4736.8', 0), ('Mg I 4703.0', 1), ('Ba II 4554.0', 2)])
def test_a_planted_line_is_found(name, seed):
    s = forest(name, seed=seed)
    model = trained(s, seed)
    for method in ('integrated-gradients', 'saliency', 'smoothgrad'):
        t = line_table(attribute(model, s[:100], 'fe_h', method))
        row = t[t['name'] == name][0]
        print(name, method, row['share'], row['enrichment'], row['p'])
        assert row['p'] < .01 and row['enrichment'] > 5
        assert row['enrichment'] >= t['enrichment'].max()*.5                          # neighbours may share its window


def test_shuffled_labels_are_not():
    "Networks trained on labels dealt out at random do not find it: p is anything between 0 and 1"
    p, name = [], 'Fe I 4736.8'
    for seed in range(6):
        s = forest(name, seed=seed)
        s.table['fe_h'] = np.random.default_rng(100 + seed).permutation(np.asarray(s.table['fe_h']))
        model = trained(s, seed)
        tables = [line_table(attribute(model, s[:100], 'fe_h', method, tolerance=1)) for method in ('saliency', 'integrated-gradients')]
        p.append([float(t['p'][t['name'] == name][0]) for t in tables])
    print(np.sort(p, axis=0).T)
    assert (np.median(p, axis=0) > .05).all() and (np.min(p, axis=0) > .005).all()


def network(seed=0, **kwargs):
    "A network of random weights whose BatchNorm has seen something"
    torch.manual_seed(seed)
    model = MLP(hidden=(48, 16), grid=GRID.id, **kwargs)
    for _ in range(20): model.train()(torch.randn(64, GRID.n))
    return model


@pytest.mark.parametrize('label', ['teff', 'alpha_fe'])
def test_shares_add_up(label):
    "Integrated gradients sum to the change of the label, in its units, however they are chunked; the network is left alone"
    model = network(std=[600, 1, .5, .1], mean=[5000, 3, -.5, .1])
    x = torch.randn(30, GRID.n, generator=torch.Generator().manual_seed(1))
    x[:, 100:120] = 0
    before, j = {k: v.clone() for k, v in model.state_dict().items()}, model.labels.index(label)
    a = attribute(model, x, label, steps=400, tolerance=1)
    b = attribute(model, x, label, steps=400, tolerance=1, rows=37)
    y, y0 = model.predict(x)[0][:, j], model.predict(torch.full((1, GRID.n), 1e-30))[0][0, j]
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    np.testing.assert_allclose(a.change, y - y0, atol=1e-3*np.std(y))
    np.testing.assert_allclose(a.values.sum(1), y - y0, atol=.02*np.std(y))
    np.testing.assert_allclose(a.values, b.values, atol=1e-4*np.abs(a.values).max())
    assert (a.values[:, 100:120] == 0).all()


def test_saliency_is_the_derivative():
    "Against differences, in the units of the label per unit of flux"
    model = network(std=[600, 1, .5, .1], mean=[5000, 3, -.5, .1]).double()
    x = torch.randn(4, GRID.n, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).float()
    g = attribute(model.float(), x, 'fe_h', 'saliency').values
    model.double().eval()
    for pixel in (3, 77, 500):
        up, down = x.double().clone(), x.double().clone()
        up[:, pixel] += 5e-6; down[:, pixel] -= 5e-6
        with torch.no_grad(): by_hand = (model(up) - model(down))[:, 2]*model.std[2]/2e-6
        np.testing.assert_allclose(g[:, pixel], by_hand.numpy(), rtol=1e-3, atol=1e-5*np.abs(g).max())


def test_groups_are_the_sum_of_their_lines():
    a = attribute(network(), torch.randn(20, GRID.n), 'fe_h', 'saliency')
    t = species_table(a, {'both': ['Zn', 'Eu'], 'Zn': 'Zn', 'Ba': 'Ba'}).to_pandas().set_index('species')
    assert t.loc['both', 'share'] == pytest.approx(t.loc['Zn', 'share'])                # no line of Eu here
    assert t.loc['Zn', 'share'] == pytest.approx(line_table(a, 'Zn')['share'].sum())
    assert t['p'].between(0, 1).all()


@pytest.fixture(scope='module')
def twins():
    "A model and the same star many times, simulated"
    model = MLP.from_pretrained(files('specnb')/'assets'/'models'/'lrs-sim')
    return model, simulate('lamost', 12, seed=3, labels=np.tile([5400, 4.2, -.4, .15], (12, 1)))


@pytest.mark.parametrize('noise', ['survey', 'white'])
@pytest.mark.parametrize('label', LABELS)
def test_physics_is_unbiased(twins, label, noise):
    model, s = twins
    w = physics_weights(model, s, label, noise=noise).values
    for other in LABELS:
        J = physics_weights(model, s, other, 'jacobian').values
        scale = {'teff': 500, 'logg': 1, 'fe_h': .5, 'alpha_fe': .2}
        np.testing.assert_allclose((w*J).sum(1)*scale[other]/scale[label], float(label == other), atol=5e-3)
    n = 1 + np.divide(c := physics_weights(model, s, label, 'contribution', noise=noise).values, w, where=w != 0, out=np.zeros_like(c))
    x = np.linspace(-1, 1, n.shape[1])
    for smooth in (np.ones_like(x), x, x**2):
        size = np.abs(w*n*smooth).sum(1)
        assert (np.abs((w*n*smooth).sum(1)) < .02*size).all()


def test_a_network_of_the_best_weights_agrees(twins):
    "And one of the weights for another label does not"
    model, s = twins
    w = {k: physics_weights(model, s, k, noise='white').values.mean(0)/5 for k in ('fe_h', 'alpha_fe')}
    net = MLP(labels=['fe_h', 'alpha_fe'], errors=False, hidden=(), window=model.window)
    net.head.weight.data = torch.from_numpy(np.stack([w['fe_h'], w['alpha_fe']]).astype(np.float32))
    t = agreement(net, s, noise='white')
    t = t[t['subset'] == 'metal-rich']
    assert (t['gradient'] > .99).all() and (t['smoothed'] > .99).all() and (t['p'] < .01).all()
    np.testing.assert_allclose(t['response'], 1, atol=.05)
    net.head.weight.data = net.head.weight.data.flip(0)
    assert (agreement(net, s, noise='white')['gradient'].data[:1] < .8).all()


def test_what_physics_cannot_say(twins):
    "Stars without labels, or with impossible ones, are NaN and left out; nothing at all is an error"
    model, s = twins
    x = np.tile([5400, 4.2, -.4, .15], (12, 1))
    x[0], x[1] = np.nan, [30000, 4, 0, 0]
    w = physics_weights(model, s, 'fe_h', labels=x)
    assert np.isnan(w.values[:2]).all() and np.isfinite(w.values[2:]).all() and np.isfinite(w.mean).all()
    assert agreement(model, s, 'fe_h', labels=x, steps=16)['n'][0] == 10
    with pytest.raises(ValueError, match='no star'): physics_weights(model, s, 'fe_h', labels=np.full((12, 4), np.nan))
