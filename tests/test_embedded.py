"Labels from embeddings: whatever takes a network takes one with an encoder inside, and the encoder stays as it is unless asked."
import numpy as np, pytest, torch
from astropy.table import Table
from specnb.apps.command import shown
from specnb.apps.hub import load_model
from specnb.apps.predict import main
from specnb.learn import data
from specnb.learn.compare import compare, efficiency
from specnb.learn.efficiency import directions, scratch
from specnb.learn.data import Augment, SpectraLoader, loaders
from specnb.learn.pretrain import pretrain
from specnb.learn.train import fit, split_layers
from specnb.learn.transfer import RECIPES, adapt, transfer
from specnb.models.adapt import add_lora, merge_lora, trained
from specnb.models.align import aligned
from specnb.models.embedded import Embedded
from specnb.models.encoder import encoder
from specnb.physics.survey import simulate
from specnb.spectra.store import Store, write_store

SCALE = dict(mean=[5200, 3.3, -.5, .12], std=[600, 1.1, .6, .14])


@pytest.fixture(scope='module')
def stars(): return simulate('lamost', 700, seed=4).normalise()


@pytest.fixture(scope='module')
def autoencoder():
    "One that has seen some stars"
    torch.manual_seed(0)
    e = encoder('small-xp-ae', grid=simulate('lamost', 1).grid.id, lsf=None, normalise=None, hidden=48, blocks=1, bottleneck=24, basis=0)
    x, good = e.prepare(simulate('lamost', 500, seed=5))
    opt = torch.optim.Adam(e.parameters(), 2e-3)
    for i in range(60):
        k = torch.randint(500, (64,))
        opt.zero_grad()
        e.loss(x[k], good[k]).backward()
        opt.step()
    return e


@pytest.fixture(scope='module')
def base(autoencoder, stars):
    torch.manual_seed(1)
    m = Embedded(autoencoder, hidden=[48, 24], **SCALE)
    m.learn_inputs(stars)
    fit(m, stars, np.arange(500), np.arange(500, 700), 12, 5e-3, 64, None, progress=False)
    m.learn_expected(stars)
    m.set_limit(stars)
    return m.eval()


@pytest.fixture(scope='module')
def desi(base):
    "Other lines, brought to the encoder's grid"
    s = simulate('desi', 420, seed=31, mismatch=.2)
    return s.to(base.grid, s.lsf.broader(base.lsf, s.grid)).normalise(**base.normalise)


def transformer(side=False):
    torch.manual_seed(2)
    e = encoder('small-lrs', width=16, depth=2, heads=2, summary=0)
    if side: e = aligned('clip', dict(lrs=e, xp=encoder('small-xp-ae', hidden=16, blocks=1, bottleneck=8))).sides['lrs']
    return Embedded(e, hidden=[16, 8], **SCALE).eval()


def state(model, part='encoder.'): return {k: v.clone().numpy() for k, v in model.state_dict().items() if k.startswith(part)}


def same(a, b): return list(a) == list(b) and all(np.array_equal(a[k], b[k]) for k in a)


def test_it_learns_and_the_encoder_does_not(base, autoencoder, stars):
    test = simulate('lamost', 300, seed=6)
    y = np.stack([test.table[k] for k in base.labels], 1)
    off = np.abs(base.predict(test)[0] - y).mean(0)/np.abs(y - y.mean(0)).mean(0)
    assert (off[[0, 2]] < .6).all(), off
    assert same(state(base), {f'encoder.{k}': v.numpy() for k, v in autoencoder.state_dict().items()})
    assert all(p.requires_grad for p in autoencoder.parameters())
    assert base.n_parameters == trained(base) == sum(p.numel() for g in split_layers(base) for p in g)


def test_embedded_once(base, stars, monkeypatch):
    "Every star once without spoiling, a few times with it, whatever the number of epochs, and not again for the next network"
    calls, embed = [], type(base.encoder).embed
    monkeypatch.setattr(type(base.encoder), 'embed', lambda self, x, good=None: calls.append(len(x)) or embed(self, x, good))
    monkeypatch.setattr(data, '_KEPT', {})
    for augment, looks in ((None, 1), (Augment(), data.LOOKS)):
        for model in (base.copy(), base.copy()):
            fit(model, stars, np.arange(300), np.arange(300, 400), 3, 1e-3, 64, augment, progress=False)
        assert sum(calls) == 300*looks + 100*(augment is None)                            # the same stars validate
        calls.clear()
    fit(base.copy(frozen=False), stars, np.arange(64), np.arange(300, 364), 2, 1e-3, 32, None, progress=False)
    assert sum(calls) >= 2*128
    x, _ = SpectraLoader(stars, base, 32).one_batch()
    np.testing.assert_allclose(x, base.project(base.prepare(stars[:32])).detach(), rtol=1e-4, atol=1e-5)


def test_from_a_store(base, stars, tmp_path):
    "The same stars, in the order of the store"
    write_store(stars, tmp_path/'s.parquet', group=100)
    rows = np.arange(0, 700, 3)
    mine, stored = (SpectraLoader(s, base, 64, rows) for s in (stars, Store(tmp_path/'s.parquet')))
    for (a, y), (b, z) in zip(mine, stored, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
        np.testing.assert_allclose(y, z, rtol=1e-5)


@pytest.mark.parametrize('side, place', [(False, 'mlp'), (False, 'encoder'), (True, 'projection'), (True, 'encoder')])
def test_lora_stays_in_its_place(stars, side, place, tmp_path):
    "Nothing at first; learns where it should, nowhere else; merged it says the same; saved and loaded too"
    model, few = transformer(side), stars[:40]
    plain, before = model.predict(few)[0], {k: v.clone().numpy() for k, v in model.state_dict().items()}
    add_lora(model, 3, 6, place=place)
    inside = {'mlp': ('body', 'head'), 'projection': ('encoder.head',), 'encoder': ('encoder.encoder.blocks',) if side else ('encoder.blocks',)}[place]
    names = [k for k, p in model.named_parameters() if p.requires_grad]
    assert names and all(k.startswith(inside) and '.parametrizations.weight.0.' in k for k in names)
    assert np.array_equal(model.predict(few)[0], plain)
    fit(model, stars, np.arange(40), np.arange(40, 60), 3, 1e-2, 16, None, progress=False)
    for k, p in model.named_parameters():
        if p.requires_grad: assert p.grad is not None and np.isfinite(p.grad.numpy()).all(), k
    said = model.predict(few)[0]
    merge_lora(model)
    np.testing.assert_allclose(model.predict(few)[0], said, rtol=1e-4, atol=1e-2)
    after = {k: v.numpy() for k, v in model.state_dict().items()}
    changed = {k for k in before if not np.array_equal(before[k], after[k])} - {'head.bias'}  # errors are calibrated by the bias
    assert set(after) == set(before) and changed and all(k.startswith(inside) and k.endswith('weight') for k in changed)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert type(again.encoder) is type(model.encoder) and np.array_equal(again.predict(few)[0], model.predict(few)[0])


def test_nothing_is_dropped_from_a_frozen_encoder():
    "From the moment it is made; one that learns is trained like any network"
    model = transformer().copy()
    assert not Embedded(model.encoder).encoder.training and not model.train().encoder.training and model.body.training
    assert Embedded(model.encoder, frozen=False).encoder.training


def test_an_encoder_that_learns(base, stars, desi):
    "Only when asked; it is the first group of the optimiser, and a copy of it may learn as well"
    free = base.copy(frozen=False)
    assert len(split_layers(free)) == len(split_layers(base)) + 1 and free.copy().requires_grad_(True).frozen is False
    fit(free, stars, np.arange(100), np.arange(100, 150), 1, 1e-3, 50, None, progress=False)
    assert not same(state(free), state(base))
    full = transfer(base.copy(frozen=False), desi[:200], 'full', steps=60, progress=False)
    assert not same(state(full), state(base))
    last = transfer(base.copy(frozen=False), desi[:100], 'last-layer', steps=10, progress=False)
    assert same(state(last), state(base)) and same(state(last, 'body.'), state(base, 'body.'))


def test_all_strategies(base, desi):
    "The encoder is the same in all, so that they can be joined"
    nets = adapt(base, desi[:250], tuple(RECIPES), steps=60, progress=False)
    assert set(nets) == {'zero-shot', *RECIPES, 'auto'} and all(type(m) is Embedded and same(m.eyes(), base.eyes()) for m in nets.values())
    t = compare(nets, desi[250:])
    off = {k: np.median(np.abs(m.predict(desi[250:])[0] - np.stack([desi.table[k] for k in base.labels], 1)[250:])/base.std.numpy()) for k, m in nets.items()}
    assert set(t['strategy']) == set(nets) and all(off[k] < off['zero-shot'] for k in ('full', 'lora', 'auto')), off
    t = efficiency(base, desi[:100], desi[100:200], (30,), 1, ('last-layer',), steps=5)
    assert len(t)


@pytest.mark.parametrize('strategies', [('lora',), ('lora', 'full')])
def test_lora_in_the_encoder_by_transfer(base, desi, strategies):
    "Alone, and beside networks that look at spectra otherwise and cannot be joined with it"
    nets = adapt(base, desi[:200], strategies, steps=60, place='encoder', progress=False)
    assert not same(state(nets['lora']), state(base)) and same(state(nets['lora'], 'body.'), state(base, 'body.'))
    assert nets['lora'].fixed and np.isfinite(nets['lora'].predict(desi[:5])[0]).all()
    if 'auto' in nets: assert np.isfinite(nets['auto'].predict(desi[:5])[0]).all()


def test_predict_reads_its_folder(base, stars, tmp_path):
    "As any network, with a flag for what does not look like a star"
    base.save_pretrained(tmp_path/'mine')
    odd = stars[:6]._with(normalised='', flux=stars.flux[:6].copy())
    odd.flux[5] = 1 + .3*np.sin(np.arange(odd.grid.n)/3)
    write_store(odd, tmp_path/'s.parquet')
    status, _, err = shown(main, [str(tmp_path/'s.parquet'), '--model', str(tmp_path/'mine'), '--out', str(tmp_path/'out.ecsv')])
    t = Table.read(tmp_path/'out.ecsv')
    assert status == 0 and len(t) == 6 and np.isfinite(t['fe_h']).all(), err
    assert (t['flag'][5] & 8) and not (np.asarray(t['flag'][:5]) & 8).any()


def test_starts_of_label_efficiency(base, stars):
    "Fresh layers on the same encoder; from scratch the scale of the embeddings is that of the stars drawn"
    nets = [start(base, steps=20)(stars[:100], 0) for start in (scratch, directions)]
    assert all(type(m) is Embedded and same(state(m), state(base)) and not same(state(m, 'body.'), state(base, 'body.')) for m in nets)
    assert same(nets[1].eyes(), base.eyes()) and not same(state(nets[0], 'spread'), state(base, 'spread'))


def test_inputs_are_standardised(base, stars):
    "A number that never changes is not blown up"
    m = base.copy()
    m.learn_inputs(stars)
    z = m.project(m.prepare(stars)).detach().numpy()
    assert np.abs(z.mean(0)).max() < .05 and np.abs(z.std(0) - 1).max() < .1
    few = stars[np.zeros(5, int)]
    m.learn_inputs(few)
    assert np.isfinite(m.predict(few)[0]).all() and (m.spread.numpy() > 0).all()


def test_bad_input(base, stars):
    with pytest.raises(ValueError, match='the encoder that learns'): pretrain(base, stars, [0, 1], [2, 3])
    with pytest.raises(ValueError, match='share stars'): loaders(stars, base, [1, 2], [2, 3])
    with pytest.raises(ValueError, match='expects spectra on'): base.predict(simulate('desi', 2))
    with pytest.raises(ValueError, match='no projection'): transfer(base, stars[:60], 'lora', place='projection', progress=False)
    with pytest.raises(ValueError, match='no encoder is of the kind'): Embedded(dict(kind='Oracle'))
