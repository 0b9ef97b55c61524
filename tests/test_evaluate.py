"What embeddings are worth: the same stars for all inputs, test stars that nothing has seen, chance not called a difference, runs that continue, and reasons where one cannot be."
import numpy as np, pytest
from astropy.table import Table
from hypothesis import given, settings, strategies as st
from specnb.apps import evaluate as room
from specnb.apps.command import shown
from specnb.apps.evaluate import answer, asked_labels, draw, evaluate, few_table, kind_of, main, study_table, summarise, verdicts, winners
from specnb.learn.pairs import LRS_XP, pair
from specnb.models.align import aligned
from specnb.models.encoder import AutoEncoder
from specnb.physics.survey import simulate
from specnb.spectra.grid import Grid, LRS_GRID
from specnb.spectra.store import write_store

TINY = dict(stars=None, align=2, bs=64, sizes=(100,), seeds=2, hidden=(8,), epochs=2, steps=10)
GRIDS = dict(lrs=Grid.log(3.62, 4e-4, 80), xp=Grid.log(3.68, 4e-4, 90))


@pytest.fixture(scope='module')
def surveys():
    "Two parts of 400 simulated spectra, with extinctions that nobody measured"
    s = simulate('lamost', 400, seed=4, snr=50)
    s.table['ak'] = np.random.default_rng(0).uniform(0, .3, 400)
    s.table['split'] = np.repeat(['train', 'valid', 'test'], [240, 60, 100])
    return {k: s.to(g)._with(survey=k) for k, g in GRIDS.items()}


@pytest.fixture(scope='module')
def encoders(): return {k: AutoEncoder(grid=g.id, hidden=16, blocks=1, bottleneck=6 + 2*(k == 'xp')) for k, g in GRIDS.items()}


@pytest.fixture(scope='module')
def made(surveys, encoders, tmp_path_factory):
    out, lines = tmp_path_factory.mktemp('evaluate'), []
    return out, evaluate(pair(**surveys), encoders, ['clip', 'clip-pr'], out, TINY, say=lines.append), lines


def test_tables(made):
    out, m, lines = made
    t = m['table']
    assert t.colnames == ['survey', 'input', 'label', 'subset', 'labels', 'seed', 'n', 'r2', 'sigma', 'bias']
    assert len(t) == 2*4*5*3*2*2                                                             # surveys, inputs, labels, subsets, sizes, seeds
    assert set(t['labels']) == {100, 300} and set(t['n'][t['subset'] == 'full']) == {100}     # the same test stars for all
    assert set(t['input']) == {'raw', 'pre-trained', 'clip', 'clip-pr'} and len(lines) == 1 + 2*4
    s = m['summary']
    g = t[(t['survey'] == 'xp') & (t['input'] == 'clip') & (t['label'] == 'fe_h') & (t['subset'] == 'full') & (t['labels'] == 300)]
    row = s[(s['survey'] == 'xp') & (s['input'] == 'clip') & (s['label'] == 'fe_h') & (s['subset'] == 'full') & (s['labels'] == 300)][0]
    assert row['sigma'] == np.median(g['sigma']) and row['sigma_hi'] == max(g['sigma']) and row['seeds'] == 2
    assert set(m['histories']) == {'clip', 'clip-pr'} and 'valid lrs to xp' in m['histories']['clip-pr'].colnames


def test_files(made):
    out, m, _ = made
    assert {p.name for p in out.iterdir()} == {'run.json', 'scores', 'models', 'scores.ecsv', 'summary.ecsv', 'winners.ecsv', 'report.md', 'few-lrs.png', 'few-xp.png', 'loss-clip.png', 'loss-clip-pr.png'}
    assert {p.name for p in (out/'models').iterdir()} == {'clip', 'clip-pr'} and len(list((out/'scores').iterdir())) == 2*4*2
    assert list(Table.read(out/'scores.ecsv')['sigma']) == list(m['table']['sigma']) and (out/'scores.ecsv').stat().st_size < 2e5
    text = (out/'report.md').read_text()
    for words in ('spectra and labels as given', '| [Fe/H] (dex) |', 'A_K (mag)', 'metal-poor:', '(few-xp.png)', '(loss-clip.png)', '240 stars to learn from, 60 to validate on, 100 others'): assert words in text, words


def test_continues(made, surveys, encoders, monkeypatch):
    "What is lost is made again, and that alone; the same comes out"
    out, m, _ = made
    before = (out/'report.md').read_text()
    (out/'scores'/'xp-clip-all.ecsv').unlink()
    calls, real = [], room.probe
    monkeypatch.setattr(room, 'probe', lambda *a, **k: calls.append(1) or real(*a, **k))
    monkeypatch.setattr(room, 'align', None)
    again = evaluate(pair(**surveys), encoders, ['clip', 'clip-pr'], out, TINY)
    assert len(calls) == 2 and list(again['table']['sigma']) == list(m['table']['sigma']) and (out/'report.md').read_text() == before


def test_a_folder_of_another_run_is_left_alone(made, surveys, encoders):
    out = made[0]
    p, other = pair(**surveys), {**encoders, 'xp': AutoEncoder(grid=GRIDS['xp'].id, hidden=16, blocks=1, bottleneck=8)}
    for args, change in (((p, encoders, ['clip']), {}), ((p, encoders, ['clip', 'clip-pr']), dict(seeds=3)), ((p[:390], encoders, ['clip', 'clip-pr']), {}), ((p, other, ['clip', 'clip-pr']), {})):
        with pytest.raises(ValueError, match='holds another run'): evaluate(*args, out, TINY | change)


@pytest.mark.parametrize('change,match', [
    (dict(variants=['clap']), 'unknown alignment'), (dict(pairs=lambda p: p[:250]), '20 at least'), (dict(encoders=lambda e: dict(lrs=e['xp'], xp=e['lrs'])), 'swapped'),
    (dict(encoders=lambda e: dict(a=e['lrs'], xp=e['xp'])), 'name them alike'), (dict(encoders=lambda e: {**e, 'lrs': AutoEncoder(grid=LRS_GRID.id, hidden=8, blocks=1, bottleneck=4)}), 'convert them')])
def test_refused(surveys, encoders, tmp_path, change, match):
    p, e = (change.get(k, lambda v: v)(v) for k, v in (('pairs', pair(**surveys)), ('encoders', encoders)))
    with pytest.raises(ValueError, match=match): evaluate(p, e, change.get('variants', ['clip']), tmp_path/'out', TINY)
    assert not (tmp_path/'out').exists()


def test_impossible_labels_are_refused(surveys, encoders, tmp_path):
    p = pair(**surveys)
    p.table['fe_h'][5] = -9999.
    with pytest.raises(ValueError, match='fe_h cannot be right in 1'): evaluate(p, encoders, ['clip'], tmp_path/'out', TINY)


def test_what_is_real_is_said(surveys):
    "Extinction is not asked of spectra that were simulated without it"
    p = pair(**surveys, what=LRS_XP)
    assert 'SIMULATED' in kind_of(p, 'lrs') and 'real Gaia XP' in kind_of(p, 'xp')
    labels = asked_labels(p, np.arange(400))
    assert labels['xp'] == [*labels['lrs'], 'ak'] and 'ak' in asked_labels(pair(**surveys), np.arange(400))['lrs']
    q = pair(**{k: s._with(survey='lamost') for k, s in surveys.items()})
    assert kind_of(q, 'xp') == 'lamost spectra, all SIMULATED' and 'ak' not in asked_labels(q, np.arange(400))['xp']


@given(st.integers(40, 300), st.integers(20, 100), st.integers(0, 99), st.data())
@settings(max_examples=40, deadline=None)
def test_draw(n_train, n_valid, seed, data):
    parts = dict(train=np.arange(n_train), valid=np.arange(1000, 1000 + n_valid), test=np.arange(2000, 2100))
    n = data.draw(st.integers(10, n_train + n_valid))
    train, valid = draw(parts, n, seed)
    assert len(train) + len(valid) == n and len(valid) == n//5 and len(np.unique(np.r_[train, valid])) == n and np.isin(np.r_[train, valid], np.r_[parts['train'], parts['valid']]).all()
    assert (draw(parts, n, seed)[0] == train).all() and draw(parts, None, seed) == (parts['train'], parts['valid'])


values = st.lists(st.floats(.01, 1), min_size=3, max_size=3)


@given(st.lists(values, min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_winners(sigmas):
    "The best median wins; better and worse are beyond the range over the seeds; the order of rows does not matter"
    names = ['raw', 'pre-trained', 'clip', 'clip-r', 'clip-p', 'clip-pr'][:len(sigmas)]
    rows = [('xp', k, 'fe_h', 'full', 300, i, 90, 1 - v, v, 0.) for k, s in zip(names, sigmas) for i, v in enumerate(s)]
    t = Table(rows=rows, names=['survey', 'input', 'label', 'subset', 'labels', 'seed', 'n', 'r2', 'sigma', 'bias'])
    w = winners(summarise(t))
    med, width = np.median(sigmas, 1), np.ptp(sigmas, 1)
    assert len(w) == 2 and list(w['by']) == ['sigma', 'r2'] and w['value'][0] == med.min() and w['best'][0] == names[int(np.argmin(med))] or np.sum(med == med.min()) > 1
    limit = np.maximum(width[1:], width[0])
    assert w['better'][0] == (med[0] - med[1:] > limit).sum() and w['worse'][0] == (med[1:] - med[0] > limit).sum() and w['of'][0] == len(names) - 1
    better, worse, of = w['better', 'worse', 'of'][0]
    assert w['verdict'][0] == ('embeddings' if better and not worse else 'mixed' if better else 'raw' if worse == of else 'alike')
    r = winners(summarise(t[np.random.default_rng(1).permutation(len(t))]))
    assert list(r['better']) == list(w['better']) and list(r['value']) == list(w['value'])
    for f in (study_table(summarise(t), 'xp'), few_table(summarise(t), 'xp', 'fe_h'), verdicts(w)): assert len(f)
    assert '[Fe/H]' in answer(w, 'xp')


@pytest.fixture
def here(tmp_path, monkeypatch, surveys, encoders):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(room.SETTINGS, 'quick', TINY)
    for k, s in surveys.items(): write_store(s, f'{k}.parquet')
    aligned('clip', encoders).save_pretrained('model')
    return tmp_path


def run(*more): return shown(main, ['--quick', '--model', 'model', '--threads', '1', '--variants', 'clip', '--out', 'out', *more])


def test_command(here):
    status, said, err = run('--lrs', 'lrs.parquet', '--xp', 'xp.parquet', '--on', 'target_id', '--seeds', '1', '--stars', '300', '--sizes', '60')
    assert (status, err) == (0, '') and 'out/report.md' in said and 'clip' in said
    assert 'specnb_evaluate --quick' in (here/'out'/'report.md').read_text() and set(Table.read('out/scores.ecsv')['labels']) > {60}
    status, said, err = run('--lrs', 'lrs.parquet', '--xp', 'xp.parquet', '--seeds', '1')
    assert status == 1 and 'holds another run' in err and err.count('\n') == 1


@pytest.mark.parametrize('args,status,words', [
    (['--lrs', 'lrs.parquet'], 2, 'the same stars in both'), (['--on', 'x'], 2, '--on is for'), (['--sizes', '300,x'], 2, 'sizes'), (['--variants', ','], 2, 'no alignment named'), (['--seeds', '0'], 2, 'not within'),
    (['--lrs', 'xp.parquet', '--xp', 'lrs.parquet'], 1, 'swapped'), (['--lrs', 'lrs.parquet', '--xp', 'xp.parquet', '--on', 'nothing'], 1, "no column 'nothing'"),
    (['--lrs', 'lrs.parquet', '--xp', 'none.parquet'], 1, 'none.parquet'), (['--model', 'lrs'], 1, 'no two aligned'), (['--out', 'lrs.parquet'], 2, 'not a folder')])
def test_wrong_usage(here, args, status, words):
    got, _, err = run(*args)
    assert got == status and words in err and 'Traceback' not in err
    assert not (here/'out').exists()
