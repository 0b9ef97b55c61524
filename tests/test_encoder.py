"Encoders of tiny size: nothing hidden or unusable is seen, attention is attention, what is saved comes back."
import math
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from specnb.models.encoder import AutoEncoder, PRESETS, QUIRKS, Transformer, encoder
from specnb.models.tokens import Block, Tokens, hide_chunks, masked_loss
from specnb.spectra.container import Spectra
from specnb.spectra.grid import Grid, LRS_GRID

GRID = Grid.linear(4000, 2, 67)


def stars(n=6, seed=0, grid=GRID, dead=.1):
    "Smooth random spectra, normalised, with dead pixels"
    rng = np.random.default_rng(seed)
    x = np.linspace(-1, 1, grid.n)
    flux = 1 + .1*rng.normal(size=(n, 1))*np.sin(5*x) + .05*rng.normal(size=(n, 1))*np.cos(17*x) + .01*rng.normal(size=(n, grid.n))
    return Spectra(flux, np.where(rng.random(flux.shape) < dead, 0, 1e4*rng.uniform(.5, 2, flux.shape)), grid, rest=True, normalised='running')


def transformer(seed=0, **config):
    torch.manual_seed(seed)
    return Transformer(**dict(grid=GRID.id, patch=6, stride=3, width=16, depth=2, heads=2, chunks=2, chunk_length=3) | config).eval()


def auto(seed=0, **config):
    torch.manual_seed(seed)
    return AutoEncoder(**dict(grid=GRID.id, hidden=24, blocks=1, bottleneck=5) | config).eval()


EACH = pytest.mark.parametrize('make', [transformer, lambda: transformer(positions='sinusoidal', stats=['mean', 'std']), lambda: transformer(stats=[], partial=False), auto])


# tokens

@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 12), stride=st.integers(1, 12), n_pix=st.integers(12, 60), partial=st.booleans())
def test_tokens(length, stride, n_pix, partial):
    "Every pixel is in the tokens it should be in, and comes back from them"
    if stride > length:
        with pytest.raises(ValueError, match='do not cover'): Tokens(n_pix, length, stride)
        return
    t = Tokens(n_pix, length, stride, partial)
    belongs = np.array([[k*stride <= i < k*stride + length for i in range(n_pix)] for k in range(t.n)])
    assert partial <= belongs.any(0).all() and belongs.any(1).all()
    assert t.n == (len(range(0, max(n_pix - length, 0) + stride, stride)) if partial else len(range(0, n_pix - length + 1, stride)))
    x = torch.arange(1., n_pix + 1)[None]
    assert np.allclose(t.join(t.split(x))[0], np.where(belongs.any(0), x[0], 0))
    one = torch.eye(t.n, dtype=torch.bool)
    assert np.array_equal(t.pixels(one).numpy(), belongs)


@settings(max_examples=40, deadline=None)
@given(chunks=st.integers(1, 6), length=st.integers(1, 20), n_token=st.integers(5, 150), seed=st.integers(0, 99))
def test_hidden_chunks(chunks, length, n_token, seed):
    "As many tokens as asked for, in stretches, the same for the same seed; refused if they do not fit"
    draw = lambda: hide_chunks(50, n_token, chunks, length, torch.Generator().manual_seed(seed)).numpy()
    if n_token//chunks < length:
        with pytest.raises(ValueError, match='do not fit'): draw()
        return
    h = draw()
    assert (h.sum(1) == chunks*length).all() and np.array_equal(h, draw())
    starts = np.diff(np.pad(h.astype(int), ((0, 0), (1, 0))), axis=1) == 1
    assert (starts.sum(1) <= chunks).all() and (starts.sum(1) >= 1).all()
    if n_token//chunks > length: assert len(np.unique(h, axis=0)) > 1


# what is hidden or unusable is not seen

@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), stride=st.sampled_from([2, 3, 6]), stats=st.sampled_from([['log_std'], ['mean', 'std'], []]))
def test_hidden_do_not_leak(seed, stride, stats):
    "Hidden pixels shuffled among themselves (the mean and standard deviation stay) change no number that enters the network"
    m, s = transformer(stride=stride, stats=stats), stars(seed=seed)
    x, good = m.prepare(s)
    hidden = m.hide(len(x), torch.Generator().manual_seed(seed))
    shut = m.tokens.pixels(hidden) & good
    other = x.clone()
    for i in range(len(x)): other[i, shut[i]] = x[i, shut[i]].flip(0)
    (a, alive), (b, _) = m.vectors(x, good, hidden), m.vectors(other, good, hidden)
    assert np.allclose(a, b, atol=1e-5) and not np.allclose(m.vectors(x, good)[0], m.vectors(other, good)[0], atol=1e-3)
    assert not a[:, bool(stats):][hidden].any()
    with torch.no_grad(): assert np.allclose(m(x, good, hidden), m(other, good, hidden), atol=1e-4)


@EACH
def test_unusable_pixels_do_not_matter(make):
    "Neither in what comes out nor in the loss; NaN marks them as well as the mask does"
    m = make()
    x, good = m.prepare(stars())
    good[:, 30:50] = False                                                       # whole tokens too
    hidden = [m.hide(len(x), torch.Generator().manual_seed(1))] if isinstance(m, Transformer) else []
    for fill in (7., torch.nan, torch.inf):
        other = torch.where(good, x, fill)
        with torch.no_grad():
            assert np.allclose(m.embed(other, good), m.embed(x, good), atol=1e-6)
            assert math.isclose(m.loss(other, good, None, *hidden), m.loss(x, good, None, *hidden), rel_tol=1e-5)
    with torch.no_grad(): assert np.allclose(m.embed(torch.where(good, x, torch.nan)), m.embed(x, good), atol=1e-6)


def test_dead_tokens():
    "A token without a usable pixel is looked at by nobody; a star without one is finite and its loss 0"
    m = transformer(stride=6)
    x, good = m.prepare(stars(dead=0))
    good[:, 12:18] = False                                                       # token 2, which comes fourth
    alive = m.vectors(x, good)[1]
    assert alive[0].tolist() == [True]*3 + [False] + [True]*(m.n_tokens - 4)
    with torch.no_grad():
        before = m(x, good)
        m.position[3, 0] += 5                                                    # would change all tokens, were it looked at
        after = m(x, good)
        assert np.allclose(np.delete(before.numpy(), 3, 1), np.delete(after.numpy(), 3, 1), atol=1e-6) and not np.allclose(before[:, 3], after[:, 3], atol=1e-2)
        for make in (transformer, lambda: transformer(stats=[])): assert make().embed(x, good & False).isfinite().all()
        assert m.loss(x, good & False) == 0 and auto().loss(x, good & False) == 0
    s = stars()
    s.ivar[1] = 0
    assert np.isnan(m.encode(s)).all(1).tolist() == [False, True] + [False]*4


def test_window():
    "Pixels outside the window are as if they were dead"
    m = transformer(window=[4020, 4100])
    x, good = m.prepare(stars())
    out = (GRID.wavelength < 4020) | (GRID.wavelength > 4100)
    assert not good.numpy()[:, out].any() and not m.usable(x, torch.ones_like(good)).numpy()[:, out].any()


# the loss

def test_masked_loss_by_hand():
    assert masked_loss(torch.tensor([[1., 3.]]), torch.tensor([[0., 1.]]), torch.tensor([[1., 3.]])).item() == pytest.approx((1 + 3*4)/4)
    assert masked_loss(torch.ones(3), torch.zeros(3), torch.zeros(3)) == 0


@pytest.mark.parametrize('with_ivar', [False, True])
def test_loss_is_of_hidden_and_usable_pixels(with_ivar):
    "The transformer's loss, pixel by pixel"
    m, s = transformer(), stars()
    flux, ivar = m.normalised(s)
    x, good = m.prepare(s)
    hidden = m.hide(len(x), torch.Generator().manual_seed(3))
    z, out = m.standardise(x, good)[0], m.reconstruct(x, good, hidden).detach()
    std = np.array([np.std(x[i][good[i]].numpy(), ddof=1) for i in range(len(x))])
    total = count = 0.
    for i in range(len(x)):
        for k in range(m.tokens.n):
            for j in range(6):
                p = 3*k + j
                if not hidden[i, k] or p >= GRID.n or not good[i, p]: continue
                w = 1/(1/float(ivar[i, p])/std[i]**2 + .01) if with_ivar else 1.
                total, count = total + w*float(out[i, k, j] - z[i, p])**2, count + w
    assert m.loss(x, good, ivar if with_ivar else None, hidden).item() == pytest.approx(total/count, rel=1e-4)


@EACH
def test_gradients_flow(make):
    "To every weight that the loss depends on, finite, also with dead stars in the batch; and training lowers the loss"
    m = make().train()
    x, good = m.prepare(stars(32))
    good[0] = False
    rng = torch.Generator().manual_seed(0)
    opt, losses = torch.optim.Adam(m.parameters(), 3e-3), []
    for _ in range(40):
        l = m.loss(x, good, None, *([m.hide(len(x), rng)] if isinstance(m, Transformer) else []))
        opt.zero_grad(); l.backward(); opt.step()
        losses.append(l.item())
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in m.parameters())
    assert np.mean(losses[-5:]) < .9*np.mean(losses[:5])


# attention

def by_hand(a, x, alive, factor):
    "Attention of the published description, head by head"
    n, t, w = x.shape
    d, q, out = w//a.heads, a.qkv(x), torch.empty_like(x)
    for i in range(n):
        for h in range(a.heads):
            part = [q[i, :, j*w + h*d:j*w + (h + 1)*d] for j in range(3)]
            score = part[0] @ part[1].T*factor
            score[:, ~alive[i]] = -torch.inf
            out[i, :, h*d:(h + 1)*d] = torch.softmax(score, 1) @ part[2]
    return a.out(out)


@pytest.mark.parametrize('double', [False, True])
def test_attention_equals_reference(double):
    "With and without the queries scaled twice"
    torch.manual_seed(0)
    b, x = Block(12, 3, double_scale=double).eval(), torch.randn(2, 7, 12)
    with torch.no_grad(): b.attention.qkv.weight.mul_(5)                         # looks that differ
    alive = torch.rand(2, 7) < .7
    alive[:, 0] = True
    factor = 1/4 if double else 1/2
    with torch.no_grad():
        ref = by_hand(b.attention, x, alive, factor)
        assert np.allclose(b.attention(x, alive), ref, atol=1e-5)
        assert np.allclose(b.attention(x), by_hand(b.attention, x, alive | True, factor), atol=1e-5)
        assert not np.allclose(ref, by_hand(b.attention, x, alive, .75 - factor), atol=1e-3)
        y = x + by_hand(b.attention, b.norm1(x), alive, factor)
        f = nn.functional
        z = y + f.linear(f.gelu(f.linear(b.norm2(y), b.mlp[0].weight, b.mlp[0].bias)), b.mlp[2].weight, b.mlp[2].bias)
        assert np.allclose(b(x, alive), z, atol=1e-5)


def test_forward_equals_description():
    "A whole tiny transformer, written down from the published description: pieces of the standardised spectrum behind log10 of its standard deviation"
    m = transformer(double_scale=True, partial=False, limit=None)
    x, good = m.prepare(stars(3, dead=0))
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    z = (x - mean)/std
    v = torch.zeros(3, 1 + (GRID.n - 6)//3 + 1, 7)
    v[:, 0, 0] = std[:, 0].log10()
    for k in range(v.shape[1] - 1): v[:, k + 1, 1:] = z[:, 3*k:3*k + 6]
    with torch.no_grad():
        h = m.inner(v) + m.position[:v.shape[1]]
        for b in m.blocks:
            h = h + by_hand(b.attention, b.norm1(h), torch.ones(3, v.shape[1], dtype=torch.bool), 1/8)
            h = h + b.mlp(b.norm2(h))
        assert np.allclose(m(x, good), m.norm(h), atol=1e-4)
        assert not np.allclose(transformer(partial=False, limit=None)(x, good), m.norm(h), atol=1e-3)


@EACH
def test_alone_and_in_a_batch(make):
    m, s = make(), stars(40)
    assert np.allclose(m.encode(s, batch=7), m.encode(s, batch=40), atol=1e-5)
    assert np.allclose(m.encode(s[np.array([5])]), m.encode(s)[5], atol=1e-5)
    assert m.encode(s[:0]).shape == (0, m.n_features)


def test_dropout_is_for_training():
    m, s = transformer(dropout=.5), stars()
    x, good = m.prepare(s)
    m.train()
    assert not np.allclose(m.embed(x, good).detach(), m.embed(x, good).detach())
    assert np.array_equal(m.encode(s), m.encode(s)) and m.training


# keeping and refusing

@EACH
def test_checkpoint(make, tmp_path):
    m, s = make(), stars()
    m.set_card(trained_on='nothing', stars=6)
    m.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != '.md') == ['config.json', 'model.safetensors']
    again = type(m).from_pretrained(tmp_path)
    assert np.array_equal(again.encode(s), m.encode(s)) and again.card == m.card and again.grid == m.grid and again.limit == m.limit


def test_table_grid_travels(tmp_path):
    grid = Grid.from_wavelength(np.sort(np.random.default_rng(0).uniform(4000, 5000, 40)))
    m = transformer(grid=grid.id, wavelength=grid.wavelength.tolist(), lsf=dict(kind='R', value=500), normalise=dict(method='running', width=80.))
    m.save_pretrained(tmp_path)
    again = Transformer.from_pretrained(tmp_path)
    assert again.grid == grid and again.lsf.value == 500 and again.normalise == m.normalise


@EACH
def test_refused(make):
    m, s = make(), stars()
    for bad, why in ((stars(grid=Grid.linear(4000, 3, 67)), 'expects spectra on'), (s._with(rest=False), 'at rest'), (s._with(normalised='envelope'), 'normalised by')):
        for f in (m.check, m.prepare, m.encode):
            with pytest.raises(ValueError, match=why): f(bad)


def test_bad_arguments():
    for bad, why in ((dict(stats=['skew']), 'unknown statistic'), (dict(stride=9), 'do not cover'), (dict(heads=3), 'evenly'), (dict(positions='rotary'), 'learned'), (dict(max_tokens=4), 'as many positions')):
        with pytest.raises(ValueError, match=why): transformer(**bad)
    with pytest.raises(ValueError, match='do not fit'): transformer(chunks=9).hide(1)
    with pytest.raises(ValueError, match='unknown encoder'): encoder('huge')
    with pytest.raises(ValueError, match='published'): encoder('small-lrs', published=True)


# presets

@pytest.mark.parametrize('name,million,exact', [('specclip-lrs', 42.7, 42_677_013), ('specclip-xp', 42.8, 42_802_947), ('specclip-xp-ae', 42.9, 42_846_129)])
def test_published_sizes(name, million, exact):
    "The last, of the published layout, is what is called 42.9 million, though it is 42.85"
    for published in (False, True):
        with torch.device('meta'): m = encoder(name, published)
        assert m.n_parameters == exact and abs(exact/1e6 - million) < (.06 if name.endswith('ae') else .05)
    assert m.n_features == 768


def test_presets():
    "Tokens as published; every one can draw what to hide; the small ones work"
    with torch.device('meta'): all_of = {k: encoder(k) for k in PRESETS}
    assert {k: m.n_tokens for k, m in all_of.items() if isinstance(m, Transformer)} == {'specclip-lrs': 147, 'specclip-xp': 344, 'small-lrs': 20, 'small-xp': 50}
    with torch.device('meta'): assert encoder('specclip-lrs', published=True).tokens.n == 145 and encoder('specclip-lrs', published=True).blocks[0].attention.scale == 1/128
    for k, m in all_of.items():
        if isinstance(m, Transformer): assert hide_chunks(2, m.tokens.n, m.chunks, m.chunk_length).sum(1).tolist() == [m.chunks*m.chunk_length]*2
    for k in ('small-lrs', 'small-xp', 'small-xp-ae'):
        m = encoder(k)
        s = stars(3, grid=m.grid)._with(normalised=m.normalise['method'])
        assert np.isfinite(m.encode(s)).all() and m.n_parameters < 4e6
    assert set(QUIRKS) < set(PRESETS) and encoder('small-lrs', depth=1).grid == LRS_GRID


@pytest.mark.parametrize('dtype', [torch.bfloat16])
def test_half_precision(dtype):
    "Loss and embeddings under autocast are those of single precision, roughly"
    m = transformer()
    x, good = m.prepare(stars())
    hidden = m.hide(len(x), torch.Generator().manual_seed(0))
    with torch.no_grad():
        full, e = m.loss(x, good, hidden=hidden).item(), m.embed(x, good)
        with torch.autocast('cpu', dtype): half, h = m.loss(x, good, hidden=hidden), m.embed(x, good)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(full, rel=.05) and np.allclose(e, h.float(), atol=.05)
