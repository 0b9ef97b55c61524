"Loss landscapes: against loss surfaces known on paper, against the slow way, and that the network is left as it was."
import numpy as np
import pytest, torch
from torch.func import functional_call
from specnb.learn.train import label_loss
from specnb.models.adapt import add_residual, between
from specnb.models.mlp import MLP
from specnb.science.landscape import direction, landscape, linear_weights, path, plot_landscapes, sharpness, square_loss, top_curvature
from specnb.spectra.grid import Grid

N_PIX = 40


def network(hidden=(16, 8), errors=True, residual=None, seed=0, labels=('a', 'b')):
    "A small network whose BatchNorm has seen something"
    torch.manual_seed(seed)
    m = MLP(labels=list(labels), errors=errors, hidden=list(hidden), grid=Grid.log(3.6, 1e-3, N_PIX).id, residual=residual)
    if residual: torch.nn.init.normal_(m.residual.outer.weight, std=.3)
    m.train()
    with torch.no_grad():
        for _ in range(3): m(torch.randn(64, N_PIX))
    return m.eval()


@pytest.fixture(scope='module')
def data():
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(200, N_PIX, generator=rng), torch.randn(200, 2, generator=rng)
    y[::7, 1] = torch.nan
    return x, y


NETWORKS = dict(plain=dict(), no_errors=dict(errors=False), residual=dict(residual=dict(units=5)), features_only=dict(residual=dict(units=5, prediction=False)), linear=dict(hidden=()))
each = pytest.mark.parametrize('kind', NETWORKS)


@each
def test_the_centre_is_the_network(data, kind):
    m = network(**NETWORKS[kind])
    with torch.no_grad(): expected = float(label_loss(m(data[0]), data[1]))
    for l in (landscape(m, *data, steps=3), landscape(m, *data, dims=1, steps=5)): assert l.loss[tuple(n//2 for n in l.loss.shape)] == pytest.approx(expected, rel=1e-5)


@each
@pytest.mark.parametrize('recompute', [False, True])
def test_every_point_is_what_loading_the_weights_gives(data, kind, recompute):
    m = network(**NETWORKS[kind])
    l, d, W = landscape(m, *data, steps=3, radius=.7, recompute=recompute), [direction(m, j) for j in (0, 1)], linear_weights(m)
    if recompute:                                                            # batch statistics, dropout off
        for o in m.modules():
            if isinstance(o, torch.nn.BatchNorm1d): o.train(); o.momentum = 0.
    for i, b in enumerate(l.b):
        for j, a in enumerate(l.a):
            w = {k: v + a*d[0][k] + b*d[1][k] for k, v in W.items()}
            with torch.no_grad(): assert l.loss[i, j] == pytest.approx(float(label_loss(functional_call(m, {k: v.float() for k, v in w.items()}, data[0]), data[1])), rel=1e-4)


@each
def test_the_network_is_left_alone(data, kind):
    m, other = network(**NETWORKS[kind]), network(**NETWORKS[kind], seed=3)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    landscape(m, *data, steps=3); landscape(m, *data, steps=3, recompute=True); path(m, other, *data, steps=3); sharpness(m, *data, n=2); top_curvature(m, *data, iterations=3)
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items()) and not m.training
    assert all(p.grad is None and p.requires_grad for p in m.parameters())


@each
def test_directions_are_as_long_as_the_weights(kind):
    m = network(**NETWORKS[kind])
    d = direction(m, 4)
    assert set(d) == {k for k, v in m.named_parameters() if v.ndim == 2}
    for k, w in linear_weights(m).items(): np.testing.assert_allclose(d[k].norm(dim=1), w.norm(dim=1), rtol=1e-5)
    assert all(torch.equal(v, d[k]) for k, v in direction(m, 4).items())
    assert not torch.equal(direction(m, 5)['head.weight'], d['head.weight'])


def test_a_linear_network_has_a_parabola(data):
    m = network(hidden=(), errors=False)
    l = landscape(m, *data, steps=7, loss=square_loss)
    a, b = np.meshgrid(l.a, l.b)
    A = np.stack([np.ones(a.size), a.ravel(), b.ravel(), a.ravel()**2, a.ravel()*b.ravel(), b.ravel()**2], 1)
    c = np.linalg.lstsq(A, l.loss.ravel(), rcond=None)[0]
    np.testing.assert_allclose(A @ c, l.loss.ravel(), rtol=1e-5)


def test_rescaled_neurons_have_the_same_landscape(data):
    "The same function with the weights before a BatchNorm ten times as large: what filter normalisation is for"
    m = network()
    big = network()
    with torch.no_grad():
        bn = big.body[0][1]
        big.body[0][0].weight.mul_(10); big.body[0][0].bias.mul_(10); bn.running_mean.mul_(10); bn.running_var.add_(bn.eps).mul_(100).sub_(bn.eps)
    np.testing.assert_allclose(landscape(m, *data, steps=5).loss, landscape(big, *data, steps=5).loss, rtol=1e-4)
    assert top_curvature(m, *data, iterations=100, tolerance=1e-6) == pytest.approx(top_curvature(big, *data, iterations=100, tolerance=1e-6), rel=1e-2)


@each
def test_a_path_ends_at_the_two_networks(data, kind):
    old, new = network(**NETWORKS[kind]), network(**NETWORKS[kind], seed=3)
    l = path(old, new, *data)
    assert l.a[0] == -.25 and l.a[-1] == 1.25 and np.isfinite(l.loss).all()
    for m, t in ((old, 0), (between(old, new, .5), .5), (new, 1)):
        with torch.no_grad(): assert l.loss[np.isclose(l.a, t)][0] == pytest.approx(float(label_loss(m.eval()(data[0]), data[1])), rel=1e-4)


@pytest.mark.parametrize('old, new, said', [
    (dict(), dict(residual=dict(units=5)), 'the second has a residual head, the first has none'), (dict(residual=dict(units=5)), dict(), 'the first has a residual head'),
    (dict(hidden=(16, 8)), dict(hidden=(16, 9)), r'body.1.0.weight is \(8, 16\) in the first and \(9, 16\)'), (dict(), dict(labels=('a', 'c')), 'first says a, b, the second a, c')])
def test_no_path_between_unlike_networks(data, old, new, said):
    with pytest.raises(ValueError, match=said): path(network(**old), network(**new), *data)


def test_a_residual_head_that_is_nothing_yet(data):
    "Its outer weights are zero and so are their directions"
    m = add_residual(network(), 5)
    assert float(direction(m)['residual.outer.weight'].abs().max()) == 0
    plain, headed = landscape(network(), *data, dims=1, steps=5), landscape(m, *data, dims=1, steps=5)
    assert headed.loss[2] == pytest.approx(plain.loss[2], rel=1e-6)


def test_sharpness_of_a_known_bowl(data):
    m, x = network(hidden=(), errors=False), data[0]
    y = torch.nan_to_num(data[1])
    top = np.linalg.eigvalsh((x.T @ x/len(x)).double().numpy())[-1]*float((m.head.weight.detach()**2).sum(1).max())          # 2/k with k = 2 labels
    assert top_curvature(m, x, y, iterations=500, tolerance=1e-7, loss=square_loss) == pytest.approx(top, rel=5e-3)
    scaled = lambda out, t: 3*square_loss(out, t)
    assert top_curvature(m, x, y, iterations=500, tolerance=1e-7, loss=scaled) == pytest.approx(3*top, rel=5e-3)
    d = [direction(m, j)['head.weight'] for j in range(4)]
    rise = np.mean([.04*float(((x @ v.T)**2).mean()) for v in d])
    assert sharpness(m, x, y, radius=.2, n=4, loss=square_loss)[0] == pytest.approx(rise, rel=1e-3)
    assert sharpness(m, x, y, radius=.2, n=4, loss=scaled)[0] == pytest.approx(3*rise, rel=1e-3)


def test_a_page_of_them(data):
    nets = {'one': network(), 'two': network(seed=3)}
    axes = plot_landscapes({k: landscape(m, *data, steps=5) for k, m in nets.items()})
    assert len(axes) == 2 and 'one' in axes[0].get_title() and 'length of the weights' in axes[0].get_xlabel()
    assert len(plot_landscapes({k: landscape(m, *data, dims=1, steps=5) for k, m in nets.items()}).lines) == 2
    with pytest.raises(ValueError, match='do not fit'): plot_landscapes({'a': landscape(nets['one'], *data, steps=3), 'b': landscape(nets['one'], *data, dims=1, steps=3)})
