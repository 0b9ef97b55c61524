"A network beside its alternatives: the same stars for all, none of them seen before; what is missing is said; what is done is kept."
import shutil, sys
from importlib.util import find_spec
import numpy as np, pytest
from astropy.table import Table
from specnb.apps import compare as room
from specnb.apps.command import shown
from specnb.apps.compare import compare_methods, main, star_sets, star_subsets, subset_scores
from specnb.learn.baselines import cannon, neighbours, ridge, xgboost
from specnb.learn.library import Quality
from specnb.models.mlp import MLP
from specnb.physics.survey import simulate
from specnb.spectra.container import Spectra
from specnb.spectra.grid import Grid, LSF
from specnb.spectra.store import write_store

LABELS = ['teff', 'logg', 'fe_h', 'alpha_fe']
GRID = Grid.linear(5000, 2, 150)
FAST = dict(stars=dict(train=300), xgboost=dict(trees=10, depth=3), cannon=dict(most=100))


@pytest.fixture(scope='module')
def stars():
    "900 simulated stars on a few pixels, split, [Fe/H] of some unknown"
    s = simulate('lamost', 900, seed=17).to(GRID, LSF.R(900))
    s.table['split'] = np.where(np.arange(900) < 500, 'train', np.where(np.arange(900) < 700, 'valid', 'test'))
    s.table['fe_h'][::25] = np.nan
    return s


@pytest.fixture(scope='module')
def net(stars):
    "A network that reads colours and has learnt its inputs; its labels are as good as noise"
    y = np.stack([np.asarray(stars.table[k], float) for k in LABELS], 1)
    m = MLP(labels=LABELS, hidden=[16], grid=GRID.id, lsf=LSF.R(900).to_dict(), normalise=dict(method='reference', at=[5100]), smooth=True, arcsinh=True, basis=20, mean=np.nanmean(y, 0).tolist(), std=np.nanstd(y, 0).tolist())
    m.learn_inputs(stars[:500])
    return m.eval()


@pytest.fixture
def here(tmp_path, monkeypatch, stars, net):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(room.SETTINGS, 'quick', FAST)
    write_store(stars, tmp_path/'stars.parquet')
    net.save_pretrained(tmp_path/'net')
    return tmp_path


def run(*more, methods='ridge,neighbours'): return shown(main, ['--data', 'stars.parquet', '--model', 'net', '--quick', '--threads', '1', '--methods', methods, '--out', 'out', *more])


# --- baselines


@pytest.mark.parametrize('make', [ridge, neighbours, xgboost])
def test_an_unknown_label_costs_only_itself(net, stars, make):
    "All stars teach the others: the same answers as with [Fe/H] known everywhere"
    if make is xgboost: pytest.importorskip('xgboost')
    whole = stars._with(table=stars.table.copy())
    whole.table['fe_h'] = np.nan_to_num(whole.table['fe_h'], nan=-.3)
    options = dict(trees=10) if make is xgboost else dict(leading=()) if make is neighbours else {}
    a, b = (make(net, s, np.arange(500), np.arange(500, 700), **options) for s in (stars, whole))
    assert a.facts['stars'] == 500
    keep = [0, 1, 3]
    if make is neighbours: assert [a.facts['k'][j] for j in keep] == [b.facts['k'][j] for j in keep]
    np.testing.assert_allclose(a.predict(stars[700:])[0][:, keep], b.predict(stars[700:])[0][:, keep], rtol=2e-3, atol=2e-3)
    y, e = a.predict(stars[700:])
    assert np.isfinite(y).all() and (e > 0).all()
    with pytest.raises(ValueError, match='stars have fe_h: too few'): make(net, _without(whole), np.arange(300), np.arange(500, 700))


def _without(s):
    t = s.table.copy()
    t['fe_h'] = np.nan
    return s._with(table=t)


def test_the_cannon_learns_from_stars_with_all_labels(net, stars):
    pytest.importorskip('TheCannon')
    assert cannon(net, stars, np.arange(100), most=1000).facts['stars'] == 96
    assert cannon(net, stars, np.arange(500), most=90).facts['stars'] == 90                 # drawn among those
    with pytest.raises(ValueError, match='have all of'): cannon(net, _without(stars), np.arange(100))
    with pytest.raises(ValueError, match="no column 'mg'"): cannon(net, stars, np.arange(100), labels=['mg'])


# --- sets and scores


def test_no_star_in_two_sets(stars):
    sets = star_sets(stars.table, LABELS)
    assert [len(v) for v in sets.values()] == [480, 192, 192]                               # without those whose [Fe/H] is unknown
    other = star_sets(stars.table[['target_id', *LABELS]], LABELS)                           # without a column: by id
    assert not set(other['train']) & set(other['on']) and len(set(map(tuple, other.values()))) == 3
    t = stars.table.copy()
    t['target_id'][899] = t['target_id'][898]
    assert len(star_sets(t, LABELS)['on']) == 191                                            # one star, two spectra: counted once
    t['target_id'][899] = t['target_id'][0]
    with pytest.raises(ValueError, match='1 stars are in two'): star_sets(t, LABELS)
    t = stars.table.copy()
    t['split'][t['split'] == 'test'] = 'none'
    with pytest.raises(ValueError, match='too few'): star_sets(t, LABELS)
    assert len(star_sets(t, LABELS, on='valid')['on']) == 192
    t['teff'][3] = -9999
    with pytest.raises(ValueError, match='row 3'): star_sets(t, LABELS, on='valid')


def test_subsets_of_what_is_known(stars):
    kinds = star_subsets(stars.table, stars.snr)
    assert set(kinds) == {'full', 'dwarfs', 'giants', 'metal-poor', 'metal-rich', 'faint'} and abs(kinds['faint'].mean() - .2) < .01
    assert not (kinds['metal-poor'] & np.isnan(stars.table['fe_h'])).any()
    t = Table(dict(g_mag=[13., 15], quality=[int(Quality.NO_AK), int(Quality.HOT_OR_COOL)], teff=[5000., 5000], snr_apogee=[99., 99]))
    assert {k: v.tolist() for k, v in star_subsets(t, np.ones(2)).items()} == dict(full=[True, True], core=[True, False], faint=[False, True])


def test_perfect_labels(stars):
    t = subset_scores(dict(right=stars.table[LABELS]), stars)
    assert (t['sigma'] == 0).all() and (t['bias'] == 0).all() and (t['r2'] == 1).all()
    assert set(t['n'][t['label'] == 'fe_h']) < set(range(865)) and set(t['n'][(t['label'] == 'teff') & (t['subset'] == 'full')]) == {900}


# --- the command


def test_command_and_again(here, monkeypatch):
    "All files, whole; a second time nothing is made again, a method may be added, other settings are refused"
    status, _, err = run()
    assert (status, err) == (0, '')
    names = {'report.md', 'table.ecsv', 'speed.ecsv', 'predictions.parquet', 'sigma.png', 'fe_h.png', 'methods', 'run.json'}
    assert {p.name for p in (here/'out').iterdir()} == names
    t, speed, p = Table.read('out/table.ecsv'), Table.read('out/speed.ecsv'), Table.read('out/predictions.parquet')
    assert t.colnames == ['method', 'label', 'subset', 'n', 'sigma', 'sigma_lo', 'sigma_hi', 'r2', 'bias'] and set(t['method']) == {'network', 'ridge', 'neighbours'}
    assert list(speed['method']) == ['network', 'ridge', 'neighbours'] and (speed['stars_per_s'] > 0).all() and set(speed['threads']) == {1}
    assert len(p) == 192 and p['in full'].all() and np.isfinite(p['ridge: teff']).all()
    report = (here/'out'/'report.md').read_text()
    assert 'simulated stars' in report and 'specnb_compare --data' in report and 'test' in report
    with monkeypatch.context() as m:
        for k in ('ridge', 'neighbours'): m.setitem(room.MAKERS, k, lambda *a, **k: pytest.fail('made again'))
        assert run()[0] == 0
        assert 'earlier run' in (here/'out'/'report.md').read_text()
    again = Table.read('out/table.ecsv')
    assert all(a == b for a, b in zip(t, again))
    assert set(Table.read('out/speed.ecsv')['stars_per_s']) == set(speed['stars_per_s'])
    status, _, err = run('--seed', '9')
    assert status == 1 and 'holds another run' in err


def test_interrupted_and_resumed(here, monkeypatch):
    def stop(*a, **k): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setitem(room.MAKERS, 'neighbours', stop)
        status, _, err = run()
    assert status == 130 and 'the same command continues' in err and not (here/'out'/'report.md').exists()
    done = {p.name.split('-')[0] for p in (here/'out'/'methods').iterdir()}
    assert done == {'network', 'ridge'}
    for p in (here/'out'/'methods').glob('ridge*'): p.write_bytes(p.read_bytes()[:300])     # cut short by a full disk, say
    status, out, _ = run()
    assert status == 0 and 'network: from an earlier run' in out and 'ridge: from an earlier run' not in out
    assert set(Table.read('out/table.ecsv')['method']) == {'network', 'ridge', 'neighbours'}


def test_without_a_package_the_others_go_on(here, monkeypatch):
    monkeypatch.setitem(sys.modules, 'xgboost', None)
    status, out, err = run(methods='xgboost,ridge')
    assert (status, err) == (0, '') and 'without xgboost: XGBoost is not installed: pip install "specnb[baselines]"' in out
    assert '- without xgboost' in (here/'out'/'report.md').read_text()
    assert set(Table.read('out/table.ecsv')['method']) == {'network', 'ridge'}


def test_all_methods(here):
    pytest.importorskip('xgboost'), pytest.importorskip('TheCannon')
    status, _, err = run('--on', 'valid', methods='ridge,xgboost,neighbours,cannon')
    assert (status, err) == (0, '')
    assert set(Table.read('out/table.ecsv')['method']) == {'network', 'ridge', 'xgboost', 'neighbours', 'cannon'}
    assert len(Table.read('out/predictions.parquet')) == 192


def test_same_seed_same_labels(net, stars):
    methods = ('ridge', 'neighbours', *(['xgboost'] if find_spec('xgboost') else []))
    a, b = (compare_methods(net, stars, methods, setting=FAST)['predictions'] for _ in range(2))
    for k in a.colnames: np.testing.assert_array_equal(a[k], b[k])


def test_another_network_is_asked_anew(here, net):
    "The same folder name, other weights"
    assert run(methods='ridge')[0] == 0
    other = net.copy()
    other.head.bias.data += .5
    shutil.rmtree(here/'net')
    other.save_pretrained(here/'net')
    before = Table.read('out/table.ecsv')
    assert run(methods='ridge')[0] == 0
    after = Table.read('out/table.ecsv')
    network = before['method'] == 'network'
    assert not np.allclose(before['bias'][network], after['bias'][network])


@pytest.mark.parametrize('args, status, words', [
    (['--methods', 'ridge,magic'], 2, "unknown method 'magic'"),
    (['--on', 'train'], 2, 'invalid choice'),
    (['--threads', '0'], 2, 'not within 1'),
    (['--stars', '3'], 2, 'not within 20'),
    (['--data', 'none.parquet'], 1, 'none.parquet: there is no such file'),
    (['--model', 'no-such'], 1, 'no model'),
    (['--out', 'stars.parquet'], 2, 'is not a folder')])
def test_wrong_use(here, args, status, words):
    got, _, err = run(*args)
    assert got == status and words in err and 'Traceback' not in err
    assert not (here/'out').exists()


def test_bad_stores(here, stars, net):
    "As observed, without labels, with a sentinel, on another grid"
    table = stars.table.copy()
    table['logg'][5] = -9999
    bad = dict(moving=stars._with(rest=False), bare=stars._with(table=stars.table[['target_id']]), sentinel=stars._with(table=table), far=simulate('lamost', 30, seed=1).to(Grid.linear(4000, 2, 100)))
    for (name, s), words in zip(bad.items(), ('as observed', 'none of the labels', 'row 5', 'too few')):
        write_store(s, here/f'{name}.parquet')
        status, _, err = run('--data', f'{name}.parquet', '--out', f'out-{name}')
        assert status == 1 and words in err and err.count('\n') == 1, err
    with pytest.raises(ValueError, match='cover'): compare_methods(net, _elsewhere(stars), ())


def _elsewhere(s):
    return Spectra(s.flux, s.ivar, Grid.linear(6000, 2, 150), s.table, **s.meta)
