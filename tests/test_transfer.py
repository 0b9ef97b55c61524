"Adapters are exact before they learn, what is frozen stays, no star is in two sets, and the showdown survives bad input."
import numpy as np, pytest, torch
from astropy.table import Table
from hypothesis import given, settings, strategies as st
from specnb.apps.command import shown
from specnb.apps.hub import load_model
from specnb.apps import showdown as room
from specnb.apps.showdown import main
from specnb.learn.compare import compare, efficiency, over_limit
from specnb.learn.transfer import RECIPES, adapt, choose, split_stars, target_stars, transfer
from specnb.models.adapt import add_lora, add_residual, between, join, merge_lora, trained
from specnb.models.mlp import MLP
from specnb.physics.survey import simulate
from specnb.spectra.store import write_store

SMALL = dict(hidden=[24, 12, 6], mean=[5200, 3.3, -.5, .12], std=[600, 1.1, .6, .14])


@pytest.fixture(scope='module')
def base(): return load_model('lrs-sim')


@pytest.fixture(scope='module')
def desi(base): return target_stars(base, simulate('desi', 400, seed=31, mismatch=.2))


def net(seed=0, **config):
    "A small network whose BatchNorm has seen something"
    torch.manual_seed(seed)
    m = MLP(**{**SMALL, **config})
    m.train()
    with torch.no_grad(): m(torch.randn(64, 1462))
    return m.eval()


@settings(max_examples=8, deadline=None)
@given(rank=st.integers(1, 16), alpha=st.floats(.1, 64), layers=st.sets(st.integers(0, 3), min_size=1), seed=st.integers(0, 99))
def test_lora_is_nothing_at_first(rank, alpha, layers, seed):
    "To the last bit; the count of what learns is rank times rows and columns; merged, it says the same"
    m, x = net(seed), torch.randn(5, 1462)
    with torch.no_grad():
        plain = m(x).numpy()
        sizes = [m.head.weight.shape if i == 3 else m.body[i][0].weight.shape for i in layers]
        add_lora(m, rank, alpha, sorted(layers))
        assert np.array_equal(m(x).numpy(), plain)
        assert trained(m) == sum(rank*sum(s) for s in sizes)
        for p in m.parameters():
            if p.requires_grad: p.add_(torch.randn_like(p)*.05)
        changed = m(x).numpy()
        merge_lora(m)
        np.testing.assert_allclose(m(x).numpy(), changed, rtol=1e-4, atol=1e-5)
    assert set(m.state_dict()) == set(net(seed).state_dict())


@settings(max_examples=8, deadline=None)
@given(units=st.integers(1, 80), prediction=st.booleans(), seed=st.integers(0, 99))
def test_residual_is_nothing_at_first(units, prediction, seed):
    m, x = net(seed), torch.randn(5, 1462)
    with torch.no_grad(): assert np.array_equal(add_residual(m, units, prediction)(x).numpy(), m(x).numpy())


def test_study_counts():
    m = MLP(labels=['fe_h'], errors=False)
    assert m.n_parameters == 2_059_009 and trained(add_lora(m, 8, 16)) == 37_304
    embedding = MLP(labels=['fe_h'], errors=False, grid='linear(1,1,768)')
    assert trained(add_lora(embedding, 8, 16)) == 31_752


@pytest.mark.parametrize('strategy', ['lora', 'residual', 'last-layer'])
def test_frozen_stays(base, desi, strategy):
    "Weights and BatchNorm statistics that are not the strategy's are the same to the bit after training"
    new = transfer(base, desi[:120], strategy, steps=20, progress=False).state_dict()
    may = {'lora': ('.0.weight', 'head.weight'), 'residual': ('residual.',), 'last-layer': ('head.',)}[strategy]
    for k, v in base.state_dict().items():
        if k.startswith('expect') or k == 'head.bias' or any(m in k for m in may): continue
        assert np.array_equal(new[k].numpy(), v.numpy()), k


def test_the_original_is_left_alone(base, desi):
    before = {k: v.clone() for k, v in base.state_dict().items()}
    adapt(base, desi[:60], tuple(RECIPES), steps=10, progress=False)
    for k, v in base.state_dict().items(): assert np.array_equal(v.numpy(), before[k].numpy()), k
    assert all(p.requires_grad for p in base.parameters())


@settings(max_examples=12, deadline=None)
@given(n=st.integers(10, 300), seed=st.integers(0, 50), copies=st.integers(1, 3))
def test_no_star_on_both_sides(desi, n, seed, copies):
    "Though some have several spectra"
    s = desi[np.repeat(np.arange(n), copies)]
    train, valid = split_stars(s, seed=seed)
    ids = np.asarray(s.table['target_id'])
    assert len(train) and len(valid) and not set(ids[train]) & set(ids[valid]) and len(train) + len(valid) == len(s)


@settings(max_examples=8, deadline=None)
@given(choice=st.lists(st.integers(0, 2), min_size=4, max_size=4), seed=st.integers(0, 20))
def test_join_says_what_each_says(choice, seed):
    nets = [net(seed), add_residual(net(seed + 1), 5), add_residual(net(seed + 2), 3, False)]
    for m in nets[1:]: torch.nn.init.normal_(m.residual.outer.weight)
    x = torch.randn(7, 1462)
    y, e = join(nets, choice).predict(x)
    for j, c in enumerate(choice):
        np.testing.assert_allclose(y[:, j], nets[c].predict(x)[0][:, j], rtol=2e-4, atol=1e-3)
        np.testing.assert_allclose(e[:, j], nets[c].predict(x)[1][:, j], rtol=2e-4)


def test_between_is_linear_in_weights():
    a, b = net(1), net(2)
    for k, v in between(a, b, .25).state_dict().items():
        if v.is_floating_point() and torch.isfinite(v).all(): np.testing.assert_allclose(v.numpy(), (.75*a.state_dict()[k] + .25*b.state_dict()[k]).numpy(), rtol=1e-5, atol=1e-6)


def test_choice_of_the_better(base, desi):
    "A network made worse for one label loses that label only"
    worse = base.copy()
    with torch.no_grad(): worse.head.bias[1] += 2
    picked, why = choose({'zero-shot': base, 'full': worse.eval()}, desi)
    assert why['strategy'][1] == 'zero-shot' and why['stars'][1] == len(desi)
    np.testing.assert_allclose(picked.predict(desi)[0], base.predict(desi)[0], rtol=1e-3, atol=1e-3)


def test_bad_input(base, desi):
    with pytest.raises(ValueError, match='unknown strategy'): transfer(base, desi, 'magic')
    with pytest.raises(ValueError, match='as observed'): transfer(base, simulate('desi', 20, rest=False))
    with pytest.raises(ValueError, match='at least 10'): transfer(base, desi[:4])
    far = desi[:40]._with(table=desi.table[:40].copy())
    far.table['teff'][3] = -9999
    with pytest.raises(ValueError, match='row 3'): transfer(base, far)
    with pytest.raises(ValueError, match='share stars'): efficiency(base, desi, desi[:10])
    with pytest.raises(ValueError, match='too small'): efficiency(base, desi[:20])


def test_showdown_of_a_small_survey_resumes(tmp_path, base):
    "Stages that are there are not repeated; another run in the same folder is refused"
    write_store(simulate('desi', 150, seed=8, mismatch=.2), tmp_path/'mine.parquet')
    line = ['--model', 'lrs-sim', '--target', str(tmp_path/'mine.parquet'), '--stars', '60', '--sizes', '30', '--seeds', '1', '--threads', '1', '--out', str(tmp_path/'out')]
    status, text, err = shown(main, line)
    assert status == 0 and 'report.md' in text, err
    made = {p: p.stat().st_mtime_ns for p in (tmp_path/'out'/'networks').rglob('model.safetensors')}
    assert len(made) == len(RECIPES) + 2
    first = (tmp_path/'out'/'report.md').read_text()
    assert shown(main, line)[0] == 0 and (tmp_path/'out'/'report.md').read_text() == first
    assert all(p.stat().st_mtime_ns == t for p, t in made.items())
    status, _, err = shown(main, [*line[:-4], '--seed', '3', *line[-4:]])
    assert status == 1 and 'holds another run' in err
    t = Table.read(tmp_path/'out'/'table1.ecsv')
    assert t.colnames == ['input', 'strategy', 'label', 'subset', 'n', 'r2', 'sigma', 'bias', 'crlb']
    assert {'zero-shot', 'auto', 'Ridge', 'classical fit', *RECIPES} <= set(t['strategy']) and np.isfinite(t['crlb']).all()


@pytest.mark.parametrize('args, status, words', [
    (['--source', 'a', '--model', 'b'], 2, 'either pre-train or name'),
    (['--stars', '3'], 2, 'not within 10'),
    (['--model', 'no-such'], 1, 'no model'),
    (['--model', 'lrs-sim', '--target', 'none.parquet'], 1, 'there is no such file')])
def test_showdown_says_what_is_wrong(tmp_path, monkeypatch, args, status, words):
    monkeypatch.chdir(tmp_path)
    got, _, err = shown(main, args)
    assert got == status and words in err


def test_a_bad_target_is_found_before_anything_is_trained(tmp_path, monkeypatch):
    "Missing, as observed, or without a single label; nothing is left behind"
    monkeypatch.setattr(room, '_pretrained', lambda *a: pytest.fail('a network was trained'))
    s = simulate('desi', 60, seed=8)
    write_store(s._with(rest=False), tmp_path/'moving.parquet')
    write_store(s._with(table=s.table[['target_id']]), tmp_path/'bare.parquet')
    for name, words in (('none', 'there is no such file'), ('moving', 'as observed'), ('bare', 'none of the labels')):
        status, _, err = shown(main, ['--target', str(tmp_path/f'{name}.parquet'), '--out', str(tmp_path/'out')])
        assert status == 1 and words in err and f'{name}.parquet' in err, err
    assert not (tmp_path/'out').exists()


def test_showdown_of_a_handful(tmp_path):
    "Sixty stars, too few in any bin of S/N for a scatter over the limit"
    write_store(simulate('desi', 60, seed=8), tmp_path/'few.parquet')
    status, _, err = shown(main, ['--model', 'lrs-sim', '--target', str(tmp_path/'few.parquet'), '--stars', '30', '--sizes', '30', '--seeds', '1', '--threads', '1', '--out', str(tmp_path/'out')])
    assert status == 0 and (tmp_path/'out'/'report.md').exists(), err


def test_limits_belong_to_their_labels(desi):
    "Whatever labels a method says, in whatever order"
    said = {'all': desi.table[['teff', 'logg', 'fe_h', 'alpha_fe']], 'some': desi.table[['fe_h', 'teff']]}
    crlb = Table({k: np.full(len(desi), v) for k, v in (('teff', 30.), ('logg', .1), ('fe_h', .05), ('alpha_fe', .02))})
    t = compare(said, desi, crlb)
    for k in ('teff', 'fe_h'): assert set(t['crlb'][t['label'] == k]) == {crlb[k][0]}
    few = {k: v[:5] for k, v in said.items()}
    assert len(over_limit(said, desi, crlb)) > 0 == len(over_limit(few, desi[:5], crlb[:5]))
    with pytest.raises(ValueError, match='labels of other stars'): compare(said, desi[:5])


@pytest.mark.parametrize('sizes', ['10,many', '5', '100,-3', ''])
def test_sizes_that_are_none(tmp_path, sizes):
    status, _, err = shown(main, ['--sizes', sizes, '--out', str(tmp_path/'out')])
    assert status == 2 and '--sizes' in err
