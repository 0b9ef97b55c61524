"Real files of LAMOST, DESI and SDSS through the readers, compared with astropy and specutils."
import csv, gzip, shutil, warnings
import numpy as np
import pytest
from astropy.io import fits
from specnb.spectra.grid import C_KMS
from specnb.spectra.readers import detect, find_files, read, read_many, register_specutils
from specnb.spectra.store import read_store, write_store
from specnb.spectra.writers import SURVEY_GRID, write_survey


@pytest.fixture(scope='module')
def lamost(shared_data): return sorted((shared_data/'lamost').glob('*.fits*'))


@pytest.fixture(scope='module')
def batch(lamost):
    batches, failed = read_many(lamost)
    assert len(failed) == 0 and len(batches) == 1
    return batches[0]


def specutils_read(path):
    from specutils import SpectrumList
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return SpectrumList.read(str(path))


def test_every_lamost_file_gives_a_row(lamost, batch):
    assert len(batch) == len(lamost) >= 36
    assert list(batch.table['path']) == [str(p) for p in lamost]
    assert batch.grid == SURVEY_GRID['lamost'] and batch.survey == 'lamost' and not batch.rest and not batch.normalised
    assert np.isfinite(batch.flux).all() and (batch.ivar >= 0).all() and (batch.good.sum(1) > 2000).all()


def test_lamost_pixels_are_those_astropy_reads(lamost, batch):
    for i, path in enumerate(lamost):
        with fits.open(path, memmap=False) as f: h, (flux, ivar, row2, mask, _) = f[0].header, f[0].data
        w = 10**(h['COEFF0'] + h['COEFF1']*np.arange(len(flux)))
        first = np.searchsorted(batch.wavelength, w[0] - .2)
        on = slice(first, first + len(w))
        assert np.abs(batch.wavelength[on] - w).max() < .01
        good = (ivar > 0) & (mask == 0) & (flux != 0)
        assert (batch.good[i, on] == good).all() and not batch.good[i, :first].any() and not batch.good[i, on.stop:].any()
        assert (batch.flux[i, on][good] == flux[good]).all() and (batch.ivar[i, on][good] == ivar[good]).all()
        if row2[100] > 1000: assert np.abs(row2 - w).max() < .1


def test_both_meanings_of_the_third_row_occur(lamost):
    third = [fits.getdata(p)[2, 100] for p in lamost]
    assert any(x > 1000 for x in third) and any(x < 1000 for x in third)


def test_lamost_velocities_are_those_of_the_catalogue(shared_data, batch):
    with open(shared_data/'lamost'/'labels.csv') as f: labels = {r['filename'].removesuffix('.gz'): r for r in csv.DictReader(f)}
    names = [p.rsplit('/', 1)[1].removesuffix('.gz') for p in batch.table['path']]
    known = [(i, labels[n]) for i, n in enumerate(names) if n in labels]
    assert len(known) == len(labels) == 24
    for i, r in known:
        row = batch.table[i]
        assert abs(row['ra'] - float(r['ra'])) < 1e-4 and abs(row['dec'] - float(r['dec'])) < 1e-4
        assert row['survey_class'] == 'STAR' and row['rv_err'] > 0
    off = [batch.table['rv'][i] - float(r['rv']) for i, r in known]
    assert np.sum(np.abs(off) > .1) <= 1 and np.abs(off).max() < 10        # one A4III star was classified anew in the catalogue


def test_galaxies_have_a_redshift_and_no_velocity(batch):
    galaxy = batch.table['survey_class'] == 'GALAXY'
    assert galaxy.sum() == 2 and np.isnan(batch.table['rv'][galaxy]).all() and (batch.table['redshift'][galaxy] > .05).all()
    star = batch.table['survey_class'] == 'STAR'
    assert np.allclose(batch.table['rv'][star], batch.table['redshift'][star]*C_KMS)


def test_gzip_changes_nothing(lamost, tmp_path):
    plain = next(p for p in lamost if p.suffix == '.fits')
    (tmp_path/'x.fits.gz').write_bytes(gzip.compress(plain.read_bytes()))
    assert (read(tmp_path/'x.fits.gz').flux == read(plain).flux).all()


def test_lamost_through_specutils(lamost):
    register_specutils()
    register_specutils()
    from specutils import Spectrum
    s, x = read(lamost[0]), Spectrum.read(str(lamost[0]))
    assert (np.asarray(x.flux.value) == s.flux[0]).all() and (x.mask == ~s.good[0]).all()
    assert x.meta['table']['target_id'][0] == s.table['target_id'][0]


@pytest.mark.parametrize('name', ['coadd-sv3-dark-26065.fits', 'spectra-sv3-dark-26065.fits'])
def test_desi_merges_what_specutils_reads(shared_data, name):
    path = shared_data/'desi'/name
    s, arms = read(path), specutils_read(path)
    assert detect(path) == 'desi' and len(s) == 5 and s.grid == SURVEY_GRID['desi']
    assert list(s.table['target_id'][2:3]) == ['39627866878511337'] and (s.snr > 0).sum() == (2 if 'coadd' in name else 1)
    total, weight = np.zeros(s.flux.shape), np.zeros(s.flux.shape)
    for a in arms:
        i = np.searchsorted(s.wavelength, a.spectral_axis.value[0] - .1)
        on = slice(i, i + len(a.spectral_axis))
        assert np.abs(s.wavelength[on] - a.spectral_axis.value).max() < .01
        v = np.where(a.mask, 0, a.uncertainty.array)
        total[:, on] += v*a.flux.value
        weight[:, on] += v
    assert np.allclose(s.ivar, weight, rtol=1e-5)
    k = s.good
    assert np.allclose(s.flux[k], total[k]/weight[k], rtol=1e-4, atol=1e-4)


def test_desi_resolution_is_read_off_the_matrix(shared_data):
    s = read(shared_data/'desi'/'spectra-sv3-dark-26065.fits')
    assert 3000 < s.table['resolution'][0] < 6000 and 2000 < 4000/s.lsf.fwhm_at(4000.) < 3000
    assert list(s.table['survey_flag']) == [1, 1033, 0, 520, 512]


def test_sdss_is_what_specutils_reads(shared_data):
    path = next((shared_data/'sdss').glob('spec-*.fits'))
    s, x = read(path), specutils_read(path)[0]
    i = np.searchsorted(s.wavelength, x.spectral_axis.value[0] - .2)
    on = slice(i, i + len(x.spectral_axis))
    assert s.grid == SURVEY_GRID['sdss'] and np.abs(s.wavelength[on]/x.spectral_axis.value - 1).max() < 2e-6
    good = s.good[0, on]
    assert (s.flux[0, on][good] == x.flux.value[good]).all() and (s.ivar[0, on][good] == x.uncertainty.array[good]).all()
    assert not (good & (x.uncertainty.array <= 0)).any() and (~x.mask & ~good & (x.uncertainty.array > 0)).sum() == 0
    row = s.table[0]
    assert row['survey_class'] == 'STAR' and row['survey_subclass'] == 'WD' and abs(row['rv'] + 11.07) < .1 and abs(row['ra'] - 147.32107) < 1e-4


def test_everything_at_once_and_back(shared_data, tmp_path):
    files = find_files([shared_data/'lamost', str(shared_data/'desi'/'*.fits'), shared_data/'sdss', shared_data/'lamost'/'*.gz'])
    batches, failed = read_many(files)
    assert [b.survey for b in batches] == ['desi', 'lamost', 'sdss'] and [len(b) for b in batches] == [10, 36, 1]
    assert [p.rsplit('/', 1)[1] for p in failed['path']] == ['labels.csv'] and 'no column called wavelength' in failed['reason'][0]
    for b in batches:
        back = read_store(write_store(b, tmp_path/f'{b.survey}.parquet'))
        assert (back.flux == b.flux).all() and (back.ivar == b.ivar).all() and back.meta == b.meta and back.table.colnames == b.table.colnames


@pytest.mark.parametrize('survey', ['lamost', 'sdss', 'desi', 'ecsv'])
def test_real_spectra_survive_our_writers(batch, tmp_path, survey):
    some = batch[4:7]
    some.table = some.table['ra', 'dec', 'rv', 'rv_err']
    back, failed = read_many(write_survey(some, tmp_path, survey))
    assert len(failed) == 0 and len(back) == 1 and len(back[0]) == 3
    a, b = some.to(SURVEY_GRID['desi']) if survey == 'desi' else some, back[0].to(batch.grid) if survey != 'desi' else back[0]
    k = a.good & b.good
    assert k.sum() > .97*a.good.sum() and np.allclose(a.flux[k], b.flux[k], rtol=1e-4)


def test_a_renamed_file_is_still_known(shared_data, tmp_path):
    shutil.copy(next((shared_data/'sdss').glob('*.fits')), tmp_path/'star.dat')
    assert detect(tmp_path/'star.dat') == 'sdss'
