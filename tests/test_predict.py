"specnb_predict as a user runs it: formats, exit statuses, faults, interruptions."
import subprocess, sys
from pathlib import Path
import numpy as np
import pytest
from astropy.table import Table
from specnb.apps import predict as app
from specnb.apps.predict import FORMATS, Flag, label, main, predict
from specnb.physics.survey import simulate
from specnb.spectra.grid import LRS_GRID
from specnb.spectra.store import write_store
from specnb.spectra.writers import write_survey

COLUMNS = 'path index target_id ra dec survey snr rv rv_err teff logg fe_h alpha_fe teff_err logg_err fe_h_err alpha_fe_err flag reason'.split()


@pytest.fixture(scope='module')
def stars(): return simulate('lamost', 24, seed=5, rest=False, snr=40)


@pytest.fixture
def night(tmp_path, stars):
    write_survey(stars[:6], tmp_path/'night', 'lamost')
    return tmp_path/'night'


def run(*args): return main([str(a) for a in args])


@pytest.mark.parametrize('ext', FORMATS)
def test_every_format_of_the_output(night, tmp_path, ext):
    assert run(night, '--out', tmp_path/f'labels{ext}') == 0
    t = Table.read(tmp_path/f'labels{ext}')
    assert t.colnames == COLUMNS and len(t) == 6 and np.isfinite(t['teff']).all()
    assert not list(tmp_path.glob('.*'))


def test_statuses(night, tmp_path, capsys):
    with pytest.raises(SystemExit) as e: run()
    assert e.value.code == 2
    with pytest.raises(SystemExit) as e: run(night, '--out', tmp_path/'labels.txt')
    assert e.value.code == 2 and 'extension must be one of' in capsys.readouterr().err
    with pytest.raises(SystemExit) as e: run(night, '--out', tmp_path/'no'/'labels.csv')
    assert e.value.code == 2
    assert run(tmp_path/'missing.fits', '--out', tmp_path/'a.csv') == 1
    assert run(night, '--model', 'nothing-like-that', '--out', tmp_path/'b.csv') == 1
    assert 'shipped are' in capsys.readouterr().err


def test_from_the_shell(night, tmp_path):
    r = subprocess.run([sys.executable, '-c', 'from specnb.apps.predict import main; raise SystemExit(main())', str(night), '--out', str(tmp_path/'l.csv')], capture_output=True, text=True)
    assert r.returncode == 0 and '6 of 6 spectra labelled' in r.stdout and '\r' not in r.stdout + r.stderr
    r = subprocess.run([sys.executable, '-c', 'from specnb.apps.predict import main; raise SystemExit(main())', '--help'], capture_output=True, text=True)
    assert r.returncode == 0 and 'does not look like any star trained on' in ' '.join(r.stdout.split())


def test_bad_files_stop_nothing(night, tmp_path, capsys):
    whole = sorted(night.glob('*.fits*'))[0].read_bytes()
    (night/'truncated.fits').write_bytes(whole[:len(whole)//2])
    (night/'empty.fits').write_bytes(b'')
    (night/'text.fits').write_text('wavelength flux')
    (night/'nothing.csv').write_text('a,b\n1,2\n')
    assert run(night, '--out', tmp_path/'l.csv') == 0
    t, said = Table.read(tmp_path/'l.csv'), capsys.readouterr().out
    bad = t[t['flag'] == Flag.NOT_READ]
    assert len(t) == 10 and sorted(Path(p).name for p in bad['path']) == ['empty.fits', 'nothing.csv', 'text.fits', 'truncated.fits']
    assert all(len(r) > 10 for r in bad['reason']) and '4 files could not be read' in said


def test_a_file_and_its_folder_give_one_row(night, tmp_path):
    one = sorted(night.iterdir())[0]
    assert len(predict([night, one, str(night/'*')])) == 6


def test_store_and_files_agree(tmp_path, stars):
    rest = simulate('lamost', 24, seed=5, snr=40)
    write_store(rest, tmp_path/'s.parquet', group=10)
    a, b = predict(tmp_path/'s.parquet'), label(rest)
    assert list(a['index']) == list(range(24))
    for k in ('teff', 'fe_h', 'alpha_fe_err'): np.testing.assert_allclose(a[k], b[k], rtol=1e-3, atol=1e-3)


def test_order_of_stars_is_irrelevant(stars):
    a, b = label(stars), label(stars[::-1])
    np.testing.assert_allclose(a['teff'], b['teff'][::-1], rtol=1e-4)
    assert list(a['flag']) == list(b['flag'][::-1])


def test_interrupted_run_continues(tmp_path, stars, monkeypatch):
    write_store(simulate('lamost', 40, seed=6), tmp_path/'s.parquet', group=10)
    real, calls = app._label_group, []
    def failing(path, g, *a):
        calls.append(g)
        if g == 2 and len(calls) < 4: raise KeyboardInterrupt
        return real(path, g, *a)
    monkeypatch.setattr(app, '_label_group', failing)
    assert run(tmp_path/'s.parquet', '--out', tmp_path/'l.csv') == 130
    assert not (tmp_path/'l.csv').exists()
    assert run(tmp_path/'s.parquet', '--out', tmp_path/'l.csv') == 0
    assert calls == [0, 1, 2, 2, 3]                                        # the finished blocks were not done again
    assert len(Table.read(tmp_path/'l.csv')) == 40 and not list(tmp_path.glob('.*'))


def test_another_model_does_not_reuse_what_was_put_aside(tmp_path, stars):
    write_store(simulate('lamost', 20, seed=6), tmp_path/'s.parquet', group=10)
    a = predict(tmp_path/'s.parquet', model='lrs', aside=tmp_path/'aside')
    b = predict(tmp_path/'s.parquet', model='lrs-sim', aside=tmp_path/'aside')
    assert not np.allclose(a['teff'], b['teff'])


def test_velocity_is_measured_where_the_file_has_none():
    s = simulate('desi', 60, seed=3, rest=False, snr=40)
    true = np.array(s.table['rv'])
    del s.table['rv'], s.table['rv_err']
    t = label(s, None)
    assert np.median(np.abs(t['rv'] - true)) < 5 and np.mean((t['flag'] & Flag.BAD_RV) > 0) < .05


def test_short_spectra_get_no_labels(stars):
    t = label(stars._with(ivar=np.where(stars.wavelength < 5100, 0, stars.ivar)))
    assert ((t['flag'] & Flag.NO_LABELS) > 0).all() and np.isnan(t['teff']).all()


def test_labels_do_not_depend_on_units_or_response(stars):
    x = (LRS_GRID.wavelength - 4800)/800
    q = 1e-17*(1.2 + .5*x - .3*x**2)
    a, b = label(stars), label(stars._with(stars.flux*q, stars.ivar/q**2))
    clean = a['flag'] == 0
    assert np.median(np.abs(a['teff'] - b['teff'])[clean]) < 5 and np.median(np.abs(a['fe_h'] - b['fe_h'])[clean]) < .01


def test_cgs_units_do_not_matter(tmp_path, stars):
    from astropy import units as u
    cgs, s = u.Unit('erg s-1 cm-2 AA-1'), stars[:1]
    error = 1/np.sqrt(np.where(s.good[0], s.ivar[0], 1e-4).astype(float))
    for name, k in (('one', 1.), ('faint', 1e-19)):
        Table([s.wavelength*u.AA, s.flux[0].astype(float)*k*cgs, error*k*cgs], names=('wavelength', 'flux', 'error'), meta=dict(resolution=1800)).write(tmp_path/f'{name}.ecsv')
    t = predict(tmp_path)
    assert np.isfinite(t['teff']).all() and abs(t['teff'][0] - t['teff'][1]) < 1 and t['flag'][0] == t['flag'][1]


def test_no_velocity_is_not_zero():
    s = simulate('lamost', 3, seed=1, rest=False)
    del s.table['rv'], s.table['rv_err']
    t = label(s._with(ivar=s.ivar*0))
    assert np.isnan(t['rv']).all() and ((t['flag'] & Flag.BAD_RV) > 0).all()
