"Hidden pixels are hidden, dead ones do not count, a body learns without labels, and the stars of a curve are counted honestly."
import numpy as np, pytest, torch
from astropy.table import Table
from fastai.torch_core import set_seed
from hypothesis import given, settings, strategies as st
from specnb.learn.efficiency import directions, few_shot, label_efficiency, linear, plot_efficiency, pretrained, scratch, stars_for
from specnb.learn.train import robust_loss
from specnb.learn.data import AugmentColours
from specnb.learn.pretrain import Hide, HiddenLoader, Reconstructor, hidden_loss, pretrain
from specnb.learn.compare import _drawn
from specnb.learn.stars import star_ids
from specnb.models.mlp import MLP
from specnb.spectra.container import Spectra
from specnb.spectra.grid import Grid, LSF

GRID = Grid.linear(3360, 20, 343)


def colours(n, seed=0, copies=1):
    "Simulated stars of a few smooth curves that three labels move, with noise and some dead pixels"
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, 3))
    x = np.linspace(-1, 1, GRID.n)
    flux = np.exp(.3*y[:, [0]]*x + .1*y[:, [1]]*np.sin(6*x) + .05*np.tanh(y[:, [2]] + y[:, [0]])*np.cos(15*x))
    err = np.full(flux.shape, .01)
    flux = flux + err*rng.normal(size=flux.shape)
    ivar = np.where(rng.random(flux.shape) < .02, 0, err**-2.)
    t = Table(dict(target_id=[f's{seed}-{i//copies}' for i in range(n)], teff=5500 + 400*y[:, 0], logg=3.5 + y[:, 1], fe_h=-.8 + .5*y[:, 2]))
    return Spectra(flux, ivar, GRID, t, 'simulated', LSF.fwhm(60), True, 'reference')


def network(s, basis=12, **config):
    set_seed(0)
    m = MLP(**dict(labels=['teff', 'logg', 'fe_h'], grid=GRID.id, lsf=LSF.fwhm(60).to_dict(), normalise=dict(method='reference'), hidden=[48, 24], smooth=True, arcsinh=True, basis=basis, dropout=0.) | config)
    m.learn_inputs(s)
    return m


@pytest.fixture(scope='module')
def stars(): return colours(900)


@pytest.fixture(scope='module')
def base(stars): return network(stars)


@settings(max_examples=10, deadline=None)
@given(chunks=st.integers(1, 8), width=st.integers(1, 60), seed=st.integers(0, 99))
def test_hidden_is_hidden(stars, base, chunks, width, seed):
    "What the network gets does not depend on what is in hidden or dead pixels"
    a = stars[:6]
    load = lambda s: HiddenLoader(s, base, 6, mask=Hide(chunks, width), augment=None, seed=seed)
    one = load(a)
    x, y = one.one_batch()
    hidden = one.augment.hidden.numpy()
    assert hidden.any(1).sum() <= 6 and hidden.sum(1).max() <= chunks*width
    other = a._with(flux=np.where(hidden | ~a.good, 7., a.flux))
    assert np.array_equal(load(other).one_batch()[0].numpy(), x.numpy())
    assert not x.numpy()[hidden | ~a.good].any()
    assert np.array_equal((y[:, 1] > 0).numpy(), a.good)                # asked for: everything that is alive, hidden or not


def test_noise_is_in_the_input_only(stars, base):
    lo = HiddenLoader(stars, base, 50, augment=AugmentColours(noise=.6, blind=0))
    x, y = lo.one_batch()
    seen = (~lo.augment.hidden & (y[:, 1] > 0)).numpy()
    assert (x.numpy() != y[:, 0].numpy())[seen].mean() > .9
    np.testing.assert_array_equal(y[:, 0].numpy(), base.prepare(stars[:50]).numpy())


def test_dead_pixels_do_not_count(stars, base):
    x, y = HiddenLoader(stars, base, 20).one_batch()
    net = Reconstructor(base).eval()
    with torch.no_grad():
        out = net(x)
        wrong = torch.where(y[:, 1] > 0, out, 1e6)
        assert hidden_loss(wrong, y).item() == pytest.approx(hidden_loss(out, y).item(), rel=1e-6)
    assert torch.isfinite(hidden_loss(out, torch.stack([y[:, 0], torch.zeros_like(out)], 1)))


def test_pixels_that_are_noisier_count_less(stars, base):
    s = stars[:4]._with(ivar=np.where(GRID.wavelength > 7000, stars.ivar[:4]/100, stars.ivar[:4]))
    w = HiddenLoader(s, base, 4).one_batch()[1][:, 1].numpy()
    red = GRID.wavelength > 7000
    assert 0 < w[:, red].max() < w[:, ~red][w[:, ~red] > 0].min()


def test_pretraining_lowers_the_loss_and_resumes(tmp_path, stars, base):
    "Interrupted after some epochs it ends at the same body; the head and the directions are left alone"
    rows = np.arange(700), np.arange(700, 900)
    whole, parts = base.copy(), base.copy()
    h = pretrain(whole, stars, *rows, epochs=4, lr=3e-3, bs=64, progress=False)
    assert h['valid'][-1] < .8*h['valid'][0] and len(h) == 4
    file = tmp_path/'body.safetensors'
    first = pretrain(parts, stars, *rows, epochs=4, lr=3e-3, bs=64, checkpoint=file, progress=False)
    again = base.copy()
    resumed = pretrain(again, stars, *rows, epochs=4, lr=3e-3, bs=64, checkpoint=file, progress=False)
    assert first['valid'].tolist() == h['valid'].tolist() == resumed['valid'].tolist()
    for k, v in whole.state_dict().items():
        assert np.array_equal(v.numpy(), again.state_dict()[k].numpy()), k
        if k.endswith(('weight', 'bias', 'basis')): assert np.array_equal(v.numpy(), base.state_dict()[k].numpy()) != k.startswith('body'), k


def test_a_network_on_pixels_learns_too(stars):
    m = network(stars, basis=0)
    h = pretrain(m, stars[:300]._with(table=stars.table[:300][['target_id']]), np.arange(200), np.arange(200, 300), epochs=2, bs=32, progress=False)
    assert np.isfinite(h['valid']).all()


def test_bad_input(stars, base):
    with pytest.raises(ValueError, match='share stars'): pretrain(base.copy(), stars, [0, 1, 2], [2, 3])
    with pytest.raises(ValueError, match='too few spectra'): pretrain(base.copy(), stars, [0], [2, 3])
    with pytest.raises(ValueError, match='learn_inputs'): Reconstructor(MLP(grid=GRID.id, basis=5))
    with pytest.raises(ValueError, match='both to learn from and to test on'): label_efficiency({}, stars, [0, 1], [1, 2])
    with pytest.raises(ValueError, match='too few'): label_efficiency({}, stars, np.arange(50), np.arange(60, 90), sizes=(3,))


def test_one_strange_star_does_not_decide():
    y, out = torch.randn(30, 1), torch.zeros(30, 2)
    y[0] = torch.nan
    base = robust_loss(out, y).item()
    out[1, 0] = 1e4
    assert robust_loss(out, y).item() < base + 2


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 50), few=st.integers(10, 60), more=st.integers(0, 200))
def test_draws_are_nested(stars, seed, few, more):
    a, b = (set(star_ids(_drawn(stars, n, seed).table)) for n in (few, few + more))
    assert len(a) == few and a <= b


def test_the_curve(tmp_path, stars, base, monkeypatch):
    "Starts see the stars drawn and no other, the same ones for each; what is kept is not done again, and the table is the same"
    s, seen = colours(900, copies=2), {}
    def spy(name, start):
        def one(some, seed):
            assert not set(star_ids(some.table)) & tested
            seen.setdefault((len(np.unique(star_ids(some.table))), seed), []).append((name, frozenset(star_ids(some.table))))
            return start(some, seed)
        return one
    train, test = np.arange(600), np.arange(600, 900)
    tested = set(star_ids(s[test].table))
    starts = {'from scratch': scratch(base, steps=60), 'directions': directions(base, steps=60), 'body': pretrained(base, steps=60, lr=slice(3e-4, 3e-3), unfreeze=.3), 'ridge': linear(base)}
    run = lambda folder=None, **k: label_efficiency({k: spy(k, f) for k, f in starts.items()}, s, train, test, (20, 100, 9999), 2, folder=folder, progress=False, **k)
    t = run(tmp_path)
    assert set(t['size']) == {20, 100, 300} and set(t['draw']) == {0, 1} and set(t['start']) == set(starts) and {'teff', 'logg', 'fe_h'} == set(t['label'])
    assert all(len({stars for _, stars in v}) == 1 and len(v) == 4 for v in seen.values())
    assert all(seen[20, d][0][1] < seen[100, d][0][1] for d in (0, 1)) and seen[20, 0][0][1] != seen[20, 1][0][1]
    (tmp_path/'body-100-1.ecsv').unlink()
    seen.clear()
    again = run(tmp_path)
    assert list(seen) == [(100, 1)] and [k for k, _ in seen[100, 1]] == ['body']
    for k in t.colnames: assert all(a == b or (a != a and b != b) for a, b in zip(t[k], again[k])), k
    with pytest.raises(ValueError, match='another run'): label_efficiency(starts, s, train[:-2], test, (20,), 1, folder=tmp_path, progress=False)
    best = stars_for(t, 'logg', float(np.median(t['sigma'][(t['label'] == 'logg') & (t['subset'] == 'full')])))
    assert best['start'].tolist() == list(starts)
    import matplotlib.pyplot as plt
    assert len(plot_efficiency(t, 'logg').get_lines()) >= 4
    plt.close('all')


def test_a_label_nobody_knows(stars, base):
    "Is not learnt, and the others are"
    t = stars.table.copy()
    t['fe_h'] = np.nan
    m = few_shot(base, stars[:60]._with(table=t[:60]), steps=30)
    assert np.isfinite(m.predict(stars[:5])[0]).all() and base.mean[0] == 0 and m.mean[0] > 4000
