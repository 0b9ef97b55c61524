"Probes: the same network on any features; what is unknown is left out, what cannot be learned from is refused, nothing else is touched."
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from specnb.learn.metrics import r2
from specnb.learn.probe import Probe, probe, probe_epochs, standardised

N, TRAIN, VALID, TEST = 900, np.arange(500), np.arange(500, 600), np.arange(600, 900)
FAST = dict(hidden=(32, 16), epochs=5)


@pytest.fixture(scope='module')
def data():
    "Six features, two labels that they tell but for some noise"
    rng = np.random.default_rng(8)
    x = rng.normal(size=(N, 6))
    y = np.stack([5000 + 300*x[:, 0] + 100*x[:, 1], np.tanh(x[:, 2]) + .2*x[:, 0]], 1) + rng.normal(size=(N, 2))*(30, .1)
    return x, y


def test_labels_and_errors(data):
    x, y = data
    said, err = probe(x, y, TRAIN, VALID, seeds=(0, 1, 2), **FAST)
    assert said.shape == err.shape == (3, N, 2) and said.dtype == np.float32
    for p, e in zip(said, err):
        assert all(r2(p[TEST, j], y[TEST, j]) > .9 for j in range(2))
        assert .55 < (np.abs(p[TEST] - y[TEST]) < e[TEST]).mean() < .8
    one = probe(x, y, TRAIN, VALID, seeds=(1,), **FAST)[0]
    np.testing.assert_array_equal(one[0], said[1])                                       # a seed does not depend on those beside it


def test_units_of_features_and_labels_do_not_matter(data):
    x, y = data
    a = probe(x, y, TRAIN, VALID, **FAST)[0][0]
    b = probe(x*1e-3 + 7, y*10 - 3, TRAIN, VALID, **FAST)[0][0]
    np.testing.assert_allclose((b + 3)/10, a, atol=3e-2*y.std(0).max(), rtol=0)


def test_test_labels_are_not_looked_at(data):
    x, y = data
    blind = y.copy()
    blind[TEST] = np.nan
    np.testing.assert_array_equal(probe(x, y, TRAIN, VALID, **FAST)[0], probe(x, blind, TRAIN, VALID, **FAST)[0])


def test_unknown_features_and_labels(data):
    x, y = (a.copy() for a in data)
    x[::3, 5], x[TEST[:2]], y[1:400, 1], y[520:560, 1] = np.nan, np.nan, np.nan, np.nan
    said = probe(x, y, TRAIN, VALID, **FAST)[0][0]
    assert np.isnan(said[TEST[:2]]).all() and np.isfinite(said[TEST[2:]]).all()
    assert r2(said[TEST, 0], y[TEST, 0]) > .9 > r2(said[TEST, 1], y[TEST, 1]) > .3


def test_randomness_of_others_is_left_alone(data):
    torch.manual_seed(3)
    a = torch.rand(3)
    torch.manual_seed(3)
    probe(*data, TRAIN[:60], VALID[:30], hidden=(8,), epochs=1)
    assert torch.rand(3).tolist() == a.tolist()


@pytest.mark.parametrize('change,match', [
    (dict(x=lambda x: x[:10]), 'same n stars'), (dict(x=lambda x: x[:, 0]), 'same n stars'), (dict(x=lambda x: x*np.nan), 'no feature of the 500'),
    (dict(y=lambda y: np.where([True, False], y, np.nan)), 'too few of the 500'), (dict(y=lambda y: y[:, :0]), 'too few'), (dict(valid=lambda v: TRAIN[:5]), 'share stars'),
    (dict(valid=lambda v: v[:1]), 'too few of the 1')])
def test_refused(data, change, match):
    given = dict(x=data[0], y=data[1], valid=VALID)
    given |= {k: f(given[k]) for k, f in change.items()}
    with pytest.raises(ValueError, match=match): probe(given['x'], given['y'], TRAIN, given['valid'], **FAST)


@given(st.integers(1, 12), st.integers(2, 30), st.floats(-1e4, 1e4), st.floats(1e-3, 1e3), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_standardised(d, n, shift, scale, seed):
    rng = np.random.default_rng(seed)
    x = (shift + scale*rng.normal(size=(n + 5, d))).astype(np.float32)
    x[rng.random(x.shape) < .2] = np.nan
    z = standardised(x, np.arange(n))
    assert z.dtype == np.float32 and np.isfinite(z).all() and np.abs(z).max() <= 8 and (z[~np.isfinite(x)] == 0).all()
    known = np.isfinite(x[:n])
    for j in range(d):
        v = z[:n, j][known[:, j]]
        if (v != 0).any(): assert abs(v.mean()) < .02 + 1e-3*abs(shift)/scale and abs(v.std() - 1) < .02


@given(st.integers(1, 10**5), st.integers(1, 512), st.integers(1, 50), st.integers(1, 1000))
@settings(max_examples=50, deadline=None)
def test_epochs(n, bs, epochs, steps):
    k = probe_epochs(n, bs, epochs, steps)
    assert k >= epochs and k*max(n//bs, 1) >= steps
    assert k == epochs or (k - 1)*max(n//bs, 1) < steps


def test_network():
    net = Probe(7, 3, (10, 4))
    assert net(torch.zeros(5, 7)).shape == (5, 6) and sum(p.numel() for p in net.parameters()) == 7*10 + 10 + 20 + 10*4 + 4 + 8 + 4*6 + 6
