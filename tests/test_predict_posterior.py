"specnb_predict --posterior as a user runs it: rows in step, faults, interruptions, and what the shipped posteriors promise."
import numpy as np
import pyarrow.parquet as pq
import pytest, torch
from astropy.table import Table
from specnb.apps import predict as app
from specnb.apps.hub import load_model, load_posterior, shipped_models
from specnb.apps.predict import Flag, label, main, predict, read_samples
from specnb.learn.calibration import calibration, true_labels
from specnb.physics.survey import Vary, simulate
from specnb.spectra.store import write_store
from specnb.spectra.writers import write_survey
from tree import ROOT


@pytest.fixture(scope='module')
def stars(): return simulate('lamost', 24, seed=5, rest=False, snr=40)


def run(*args): return main([str(a) for a in args])


def in_step(t, wide):
    "Every row of the samples belongs to the same row of the table, and is empty where that is"
    assert len(t) == len(wide)
    for k in ('path', 'index', 'target_id'): assert [str(a) for a in np.ma.filled(t[k], '')] == [str(a) for a in wide[k]]
    for k in wide.meta['labels']:
        assert (np.isnan(wide[k]).all(1) == ~np.isfinite(np.ma.filled(t[k], np.nan))).all()
        off = np.abs(np.median(wide[k], 1) - t[k])/t[f'{k}_err']
        assert np.nanmedian(off) < .35 + 1.25/np.sqrt(wide[k].shape[1]) and np.nanmax(off) < 4    # the median of few samples is itself uncertain


def test_rows_are_in_step(tmp_path, stars, capsys):
    write_survey(stars[:6], tmp_path/'night', 'lamost')
    (tmp_path/'night'/'broken.fits').write_bytes(b'')
    write_store(stars._with(ivar=stars.ivar*(np.arange(24) != 3)[:, None]), tmp_path/'s.parquet', group=10)
    assert run(tmp_path/'night', tmp_path/'s.parquet', '--out', tmp_path/'l.ecsv', '--posterior', 60) == 0
    assert 'l_posterior.parquet: 60 samples a spectrum' in capsys.readouterr().out
    t, wide = Table.read(tmp_path/'l.ecsv'), read_samples(tmp_path/'l_posterior.parquet')
    in_step(t, wide)
    assert wide['fe_h'].shape == (31, 60) and wide['fe_h'].dtype == np.float32
    assert np.isnan(wide['teff']).all(1).sum() == 2                                       # the file that could not be read, the star without a pixel
    assert sorted(o.name for o in tmp_path.iterdir()) == ['l.ecsv', 'l_posterior.parquet', 'night', 's.parquet']


def test_the_table_is_the_same_with_and_without(tmp_path, stars):
    write_survey(stars[:4], tmp_path/'night', 'lamost')
    for name, more in (('a', []), ('b', ['--posterior', 5])): assert run(tmp_path/'night', '--out', tmp_path/f'{name}.csv', *more) == 0
    assert (tmp_path/'a.csv').read_bytes() == (tmp_path/'b.csv').read_bytes()
    assert not (tmp_path/'a_posterior.parquet').exists()


def test_the_format(tmp_path, stars):
    "What another program finds: plain Parquet, a list of 32-bit numbers a label, a row group a block"
    write_store(stars, tmp_path/'s.parquet', group=10)
    predict(tmp_path/'s.parquet', posterior=7, samples=tmp_path/'p.parquet')
    f = pq.ParquetFile(tmp_path/'p.parquet')
    assert f.schema_arrow.names == ['path', 'index', 'target_id', 'teff', 'logg', 'fe_h', 'alpha_fe']
    assert all(f.schema_arrow.field(k).type.list_size == 7 and str(f.schema_arrow.field(k).type.value_type) == 'float' for k in f.schema_arrow.names[3:])
    assert [f.metadata.row_group(i).num_rows for i in range(f.num_row_groups)] == [10, 10, 4]
    assert list(read_samples(tmp_path/'p.parquet', group=1)['index']) == list(range(10, 20))


def test_samples_depend_on_the_spectra_alone(stars):
    post = load_posterior()
    a, b = (label(stars, posterior=post, n_sample=20) for _ in range(2))
    np.testing.assert_array_equal(a['fe_h_samples'], b['fe_h_samples'])
    two = [label(stars[i], posterior=post, n_sample=4000) for i in (slice(0, 2), slice(2, 4))]
    z = [(t['fe_h_samples'][0] - t['fe_h_samples'][0].mean()) for t in two]
    assert abs(np.corrcoef(*z)[0, 1]) < .08                                               # other batches, other dice


def test_interrupted_run_continues(tmp_path, stars, monkeypatch):
    write_store(simulate('lamost', 40, seed=6), tmp_path/'s.parquet', group=10)
    run(tmp_path/'s.parquet', '--out', tmp_path/'whole.csv', '--posterior', 8)
    real, calls = app._label_group, []
    def failing(path, g, *a):
        calls.append(g)
        if g == 2 and len(calls) < 4: raise KeyboardInterrupt
        return real(path, g, *a)
    monkeypatch.setattr(app, '_label_group', failing)
    assert run(tmp_path/'s.parquet', '--out', tmp_path/'l.csv', '--posterior', 8) == 130
    assert not (tmp_path/'l.csv').exists() and not (tmp_path/'l_posterior.parquet').exists()
    assert run(tmp_path/'s.parquet', '--out', tmp_path/'l.csv', '--posterior', 8) == 0
    assert calls == [0, 1, 2, 2, 3]
    in_step(Table.read(tmp_path/'l.csv'), read_samples(tmp_path/'l_posterior.parquet'))
    assert (tmp_path/'l_posterior.parquet').read_bytes() == (tmp_path/'whole_posterior.parquet').read_bytes()
    assert not list(tmp_path.glob('.*'))


def test_what_was_put_aside_with_other_samples_is_not_used(tmp_path):
    write_store(simulate('lamost', 20, seed=6), tmp_path/'s.parquet', group=10)
    for n in (0, 3, 5): predict(tmp_path/'s.parquet', aside=tmp_path/'aside', posterior=n, samples=tmp_path/f'{n}.parquet')
    assert read_samples(tmp_path/'3.parquet')['logg'].shape == (20, 3) and read_samples(tmp_path/'5.parquet')['logg'].shape == (20, 5)


def test_without_a_posterior_nothing_is_begun(tmp_path, stars, capsys, monkeypatch):
    write_survey(stars[:2], tmp_path/'night', 'lamost')
    load_model('lrs-sim').save_pretrained(tmp_path/'mine')
    monkeypatch.setattr(app, '_blocks', lambda *a: pytest.fail('work was begun'))
    assert run(tmp_path/'night', '--model', tmp_path/'mine', '--out', tmp_path/'l.csv', '--posterior', 5) == 1
    said = capsys.readouterr().err
    assert 'has no posterior' in said and f"simulated_posterior(load_model('{tmp_path/'mine'}')).save('{tmp_path/'mine'}')" in said
    for bad in ('0', '-3', 'many'):
        with pytest.raises(SystemExit) as e: run(tmp_path/'night', '--posterior', bad)
        assert e.value.code == 2


def test_a_posterior_of_another_network_is_refused(tmp_path, stars, capsys):
    write_survey(stars[:2], tmp_path/'night', 'lamost')
    model = load_model('lrs-sim')
    model.save_pretrained(tmp_path/'mine')
    load_posterior('lrs-sim').save(tmp_path/'mine')
    assert run(tmp_path/'night', '--model', tmp_path/'mine', '--out', tmp_path/'l.csv', '--posterior', 5) == 0
    with torch.no_grad(): model.head.bias += .1
    model.save_pretrained(tmp_path/'mine')
    assert run(tmp_path/'night', '--model', tmp_path/'mine', '--out', tmp_path/'l.csv', '--posterior', 5) == 1
    assert 'belongs to network' in capsys.readouterr().err


@pytest.mark.parametrize('name', [k for k in shipped_models()['name'] if (ROOT/'specnb/assets/models'/k/'posterior').is_dir()])
def test_shipped_posteriors(name):
    "They belong to their networks, are small, and the cards say how well they cover"
    post, folder = load_posterior(name), ROOT/'specnb/assets/models'/name
    assert post.labels == post.model.labels and sum(f.stat().st_size for f in (folder/'posterior').iterdir()) < 70_000
    for r in post.card['calibration']: assert f'| {r["label"]} | {r["n"]} | {r["cover68"]:.3f} | {r["cover95"]:.3f} |' in (folder/'README.md').read_text()
    rows = [r for r in post.card['calibration'] if r.get('stars', 'all') == 'all' and r['label'] != 'joint']
    assert all(.63 < r['cover68'] < .73 and .92 < r['cover95'] < .98 for r in rows)


def test_simulated_stars_are_covered():
    "By the samples and by the error columns of the network that knows simulations only; stars it has not seen"
    model, post = load_model('lrs-sim'), load_posterior('lrs-sim')
    s = simulate('lamost', 2500, seed=777, flat=.3, vary=Vary(), chunk=128)
    s = s.to(model.grid, s.lsf.broader(model.lsf, s.grid)).normalise(**model.normalise)
    true, (y, e) = true_labels(model.labels, s), model.predict(s)
    t, inside = calibration(post.sample(s), true, model.labels), np.abs(y - true)/e
    print(t, f'error columns: {np.mean(inside < 1, 0).round(3)} {np.mean(inside < 1.96, 0).round(3)}', sep='\n')
    assert (np.abs(t['cover68'] - .68) <= .035).all() and (np.abs(t['cover95'] - .95) <= .02).all()
    assert (np.abs(np.mean(inside < 1, 0) - .68) <= .035).all() and (np.abs(np.mean(inside < 1.96, 0) - .945) <= .02).all()
