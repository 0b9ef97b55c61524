"Gaia XP: real files against the answers stored beside them and against GaiaXPy, small invented ones in every format, and everything that can be wrong with one."
import csv, gzip, subprocess, sys
import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from specnb.spectra import gaia
from specnb.spectra.gaia import XP_GRID, XP_LSF, calibrate_xp, sky_position
from specnb.spectra.readers import detect, find_files, iter_many, read, read_many
from specnb.spectra.store import ReadError, read_store, write_store

IDS = [5853498713190525696, 5405570973190252288, 5762406957886626816]
NM = XP_GRID.wavelength/10
W_NM = u.Unit('W m-2 nm-1')


# --- small invented files

def sampled(n=3, k=343, seed=0):
    "ids, flux and error of invented stars, W/m2/nm; the first has a negative flux, the second no BP, the third a bad error"
    rng = np.random.default_rng(seed)
    flux = 1e-16*rng.uniform(.5, 1.5, (n, k))
    err = .02*flux
    flux[0, 5] = -3e-18
    if n > 1: flux[1, :150], err[1, :150] = np.nan, np.nan
    if n > 2: err[2, 7], err[2, 8] = 0, -1
    return (IDS*n)[:n], flux, err


def arrays(x, form='({})', comma=', ', nan='nan'): return [form.format(comma.join(nan if np.isnan(v) else repr(v) for v in r.tolist())) for r in x]


def write_csv(path, columns):
    with open(path, 'w', newline='') as f:
        w = csv.writer(f)
        w.writerow(columns)
        w.writerows(zip(*columns.values()))
    return path


def sampled_csv(path, ids, flux, err, **how): return write_csv(path, dict(source_id=ids, flux=arrays(flux, **how), flux_error=arrays(err, **how)))


def check(s, ids, flux, err):
    "A batch holds these spectra."
    assert s.survey == 'gaiaxp' and s.rest and s.lsf == XP_LSF and s.grid == XP_GRID and list(s.table['source_id']) == list(ids) and list(s.table['target_id']) == [str(i) for i in ids]
    good = np.isfinite(flux) & (err > 0)
    assert (s.good == good).all()
    assert np.allclose(s.flux[good], 1e19*flux[good], rtol=1e-6) and np.allclose(s.ivar[good]**-.5, 1e19*err[good], rtol=1e-6)


@pytest.fixture
def stars(): return sampled()


FORMS = dict(gaiaxpy={}, brackets=dict(form='[{}]'), tight=dict(form='[{}]', comma=','), null=dict(form='[{}]', nan='null'), numpy=dict(form='[ {}]', comma='  '))


@pytest.mark.parametrize('form', FORMS)
def test_samples_in_csv(tmp_path, stars, form):
    check(read(sampled_csv(tmp_path/'x.csv', *stars, **FORMS[form])), *stars)
    assert detect(tmp_path/'x.csv') == 'gaiaxp'


def test_rows_written_in_two_ways(tmp_path, stars):
    ids, flux, err = stars
    text = [arrays(flux[:1])[0], *arrays(flux[1:], comma=',')], [arrays(err[:1])[0], *arrays(err[1:], comma=',', form='[{}]')]
    check(read(write_csv(tmp_path/'x.csv', dict(source_id=ids, flux=text[0], flux_error=text[1]))), *stars)


def test_gzip_is_read(tmp_path, stars):
    plain = sampled_csv(tmp_path/'x.csv', *stars)
    (tmp_path/'y.csv.gz').write_bytes(gzip.compress(plain.read_bytes()))
    check(read(tmp_path/'y.csv.gz'), *stars)
    assert len(find_files(tmp_path)) == 2


def table(ids, flux, err, unit=W_NM): return Table(dict(source_id=ids, flux=flux*unit, flux_error=err*unit))


@pytest.mark.parametrize('name, form', [('x.fits', 'fits'), ('x.ecsv', 'ascii.ecsv'), ('x.xml', 'votable'), ('x.vot', 'votable')])
@pytest.mark.parametrize('unit', ['W m-2 nm-1', 'erg s-1 cm-2 AA-1', 'W m-2 um-1'])
def test_stated_units_are_converted(tmp_path, stars, name, form, unit):
    ids, flux, err = stars
    scale = W_NM.to(u.Unit(unit))
    table(ids, flux*scale, err*scale, u.Unit(unit)).write(tmp_path/name, format=form)
    assert detect(tmp_path/name) == 'gaiaxp'
    check(read(tmp_path/name), *stars)


def test_columns_of_the_table(tmp_path, stars):
    s = read(sampled_csv(tmp_path/'x.csv', *stars))
    assert list(s.table['bands']) == ['BP+RP', 'RP', 'BP+RP'] and not s.table['duplicate'].any()
    assert s.flux[0, 5] == pytest.approx(-30) and s.ivar[0, 5] > 0 and (s.ivar[2, 7:9] == 0).all()
    assert (s[1:2].ivar[:, :150] == 0).all()


def test_positions_come_from_the_file_or_the_ids(tmp_path, stars):
    pytest.importorskip('astropy_healpix')
    ids, flux, err = stars
    s = read(sampled_csv(tmp_path/'x.csv', *stars))
    assert np.allclose(np.c_[s.table['ra'], s.table['dec']], np.c_[sky_position(ids)])
    write_csv(tmp_path/'y.csv', dict(source_id=ids, ra=[1, 2, 3], dec=[4, 5, 6], phot_g_mean_mag=[12, '', 14], flux=arrays(flux), flux_error=arrays(err)))
    t = read(tmp_path/'y.csv').table
    assert list(t['ra']) == [1, 2, 3] and list(t['dec']) == [4, 5, 6] and t['g_mag'][0] == 12 and np.isnan(t['g_mag'][1])


def test_without_healpix_positions_are_unknown(tmp_path, stars, monkeypatch):
    monkeypatch.setitem(sys.modules, 'astropy_healpix', None)
    assert np.isnan(read(sampled_csv(tmp_path/'x.csv', *stars)).table['ra']).all()
    with pytest.raises(ImportError, match=r'specnb\[xp\]'): sky_position(IDS)


def test_positions_of_known_stars():
    pytest.importorskip('astropy_healpix')
    ra, dec = sky_position([str(IDS[0]), str(2947050466531873024)])                  # Proxima Centauri, Sirius B
    assert np.abs(dec - [-62.676, -16.721]).max() < .015 and np.abs((ra - [217.392, 101.286])*np.cos(np.deg2rad(dec))).max() < .015
    for bad in ([-5], [2**62 + 2**61], ['Vega'], [None]):
        with pytest.raises(ValueError): sky_position(bad)


def test_duplicates_are_read_and_marked(tmp_path):
    _, flux, err = sampled(4)
    s = read(sampled_csv(tmp_path/'x.csv', [IDS[0], IDS[1], IDS[0], IDS[0]], flux, err))
    assert list(s.table['duplicate']) == [False, False, True, True] and len(s) == 4


# --- other samplings

@pytest.mark.parametrize('form', ['csv', 'ecsv', 'fits', 'xml'])
def test_other_samplings_are_other_grids(tmp_path, form):
    ids, flux, err = sampled(2, 200)
    w, path = np.linspace(400, 798, 200), tmp_path/f'x.{form}'
    t = table(ids, flux, err)
    if form == 'csv':
        sampled_csv(path, ids, flux, err)
        write_csv(tmp_path/'x_sampling.csv', dict(pos=[str(tuple(w.tolist()))]))
    elif form == 'ecsv':
        t.meta['sampling'] = w.tolist()
        t.write(path, format='ascii.ecsv')
    elif form == 'fits':
        t.write(path)
        with fits.open(path, mode='update') as f: f[1].header['Sampling'] = str(tuple(w.tolist()))
    else:
        from astropy.io.votable import from_table
        from astropy.io.votable.tree import Param
        v = from_table(t)
        v.get_first_table().params.append(Param(v, name='sampling', datatype='double', arraysize='*', unit='nm', value=w.tolist()))
        v.to_xml(str(path))
    s = read(path)
    assert s.grid.id == 'linear(4000.0,20.0,200)' and np.allclose(s.flux[0], 1e19*flux[0], rtol=1e-6)


def test_the_sampling_beside_a_file_is_no_spectrum(tmp_path, stars):
    sampled_csv(tmp_path/'x.csv', *stars)
    write_csv(tmp_path/'x_sampling.csv', dict(pos=[str(tuple(NM.tolist()))]))
    batches, failed = read_many(tmp_path)
    assert len(failed) == 0 and len(batches) == 1
    check(batches[0], *stars)
    with pytest.raises(ReadError, match='wavelengths of another file.*read x.csv'): read(tmp_path/'x_sampling.csv')


def test_one_spectrum_a_file(tmp_path):
    "DataLink, one file a source"
    _, flux, err = sampled(1)
    path = write_csv(tmp_path/f'XP_SAMPLED-Gaia DR3 {IDS[0]}.csv', dict(wavelength=NM, flux=flux[0], flux_error=err[0]))
    check(read(path), IDS[:1], flux, err)
    t = Table(dict(wavelength=NM*u.nm, flux=flux[0]*W_NM, flux_error=err[0]*W_NM))
    for ext, form in dict(fits='fits', xml='votable').items():
        p = tmp_path/f'XP_SAMPLED-{IDS[0]}.{ext}'
        t.write(p, format=form)
        check(read(p), IDS[:1], flux, err)


def test_a_plain_table_stays_one(tmp_path):
    (tmp_path/'x.csv').write_text('wavelength_nm,flux,flux_error\n' + '\n'.join(f'{w},1,.1' for w in range(400, 800)))
    assert detect(tmp_path/'x.csv') == 'table' and read(tmp_path/'x.csv').survey == 'table'


# --- what can be wrong

def refused(path, *words):
    with pytest.raises(ReadError) as e: read(path)
    text = str(e.value)
    assert str(path) in text and all(w in text for w in words), text


def test_wrong_number_of_samples(tmp_path):
    refused(sampled_csv(tmp_path/'x.csv', *sampled(2, 120)), '120 samples', '343', '_sampling.csv')
    write_csv(tmp_path/'x_sampling.csv', dict(pos=[str(tuple(range(400, 450)))]))
    refused(tmp_path/'x.csv', '120 samples', '50 wavelengths')
    write_csv(tmp_path/'x_sampling.csv', dict(pos=[str(tuple(range(4000, 4120)))]))
    refused(tmp_path/'x.csv', '4000 to 4119', 'nm')
    (tmp_path/'x_sampling.csv').write_text('')
    with pytest.raises(ReadError, match='x_sampling.csv: not the list of wavelengths'): read(tmp_path/'x.csv')


@pytest.mark.parametrize('factor, word', [(1e16, '1'), (1e19, '1e+03'), (1e-16, 'e-32')])
def test_impossible_scalings(tmp_path, stars, factor, word):
    ids, flux, err = stars
    refused(sampled_csv(tmp_path/'x.csv', ids, factor*flux, factor*err), 'cannot be W/m2/nm', 'no unit is stated')


def test_units_that_are_no_flux(tmp_path, stars):
    table(*stars, unit=u.Unit('mag')).write(tmp_path/'x.ecsv', format='ascii.ecsv')
    refused(tmp_path/'x.ecsv', "'mag'", 'no flux density')


def test_missing_columns_are_named(tmp_path, stars):
    ids, flux, err = stars
    refused(write_csv(tmp_path/'a.csv', dict(source_id=ids, flux=arrays(flux))), "no column 'flux_error'")
    refused(write_csv(tmp_path/'b.csv', dict(source_id=ids, bp_coefficients=arrays(flux))), "'bp_coefficient_errors'", "'rp_coefficients'")


def test_internally_calibrated_spectra_are_refused(tmp_path, stars):
    ids, flux, err = stars
    refused(write_csv(tmp_path/'a.csv', dict(source_id=ids, xp=['BP']*3, flux=arrays(flux), error=arrays(err))), 'pseudo-wavelengths', 'gaiaxpy.calibrate')
    t = table(ids, flux, err)
    t['xp'] = ['BP']*3
    t.write(tmp_path/'a.fits')
    refused(tmp_path/'a.fits', 'pseudo-wavelengths')


def test_damaged_files(tmp_path, stars):
    ids, flux, err = stars
    whole = sampled_csv(tmp_path/'x.csv', *stars).read_text()
    for i, (text, word) in enumerate({whole[:len(whole)*2//3]: '', whole.split('\n')[0] + '\n': 'without rows', whole.replace(repr(float(flux[0, 20])), 'oops'): 'no number',
                                      whole.replace(str(ids[1]), '5.4e18'): 'not whole numbers', '\n'.join(x[:2000] for x in whole.split('\n')): ''}.items()):
        (tmp_path/f'{i}.csv').write_text(text)
        refused(tmp_path/f'{i}.csv', word)
    (tmp_path/'e.csv').write_text('')
    refused(tmp_path/'e.csv', 'empty')
    table(*stars).write(tmp_path/'x.fits')
    (tmp_path/'cut.fits').write_bytes((tmp_path/'x.fits').read_bytes()[:9000])
    refused(tmp_path/'cut.fits', 'cut short')
    table(*stars).write(tmp_path/'x.xml', format='votable')
    (tmp_path/'cut.xml').write_text((tmp_path/'x.xml').read_text()[:9000])
    refused(tmp_path/'cut.xml', 'VOTable')
    table(ids[:0], flux[:0], err[:0]).write(tmp_path/'none.fits')
    refused(tmp_path/'none.fits', 'without rows')


@pytest.mark.parametrize('cut', [3, 4, 8, 12, 25, 200])
def test_no_text_cut_short_is_read(tmp_path, stars, cut):
    text = sampled_csv(tmp_path/'x.csv', *stars).read_text().rstrip()
    (tmp_path/'y.csv').write_text(text[:-cut])
    refused(tmp_path/'y.csv', 'cut short')


def test_nothing_usable(tmp_path, stars):
    ids, flux, err = stars
    refused(sampled_csv(tmp_path/'x.csv', ids, flux, -np.abs(err)), 'no sample with a finite flux and a positive error')
    refused(sampled_csv(tmp_path/'y.csv', ids, flux*np.nan, err), 'no sample')


def test_photometry_is_no_spectrum(tmp_path):
    Table(dict(source_id=IDS, flux=[1., 2, 3], flux_error=[.1, .1, .1])).write(tmp_path/'x.fits')
    refused(tmp_path/'x.fits', 'not a spectrum')


def test_other_xml_is_refused(tmp_path):
    (tmp_path/'a.xml').write_text('<?xml version="1.0"?><html><body>503</body></html>')
    Table(dict(a=[1, 2])).write(tmp_path/'b.xml', format='votable')
    batches, failed = read_many(tmp_path)
    assert batches == [] and len(failed) == 2 and all('VOTable' in r or 'table' in r for r in failed['reason']), list(failed['reason'])


def test_among_other_files(tmp_path, stars):
    "A store of what was read is read back, and good files are not lost among bad ones"
    sampled_csv(tmp_path/'a.csv', *stars)
    table(*stars).write(tmp_path/'b.fits')
    (tmp_path/'c.csv').write_text('source_id,flux,flux_error\n1,2\n')
    batches, failed = read_many(tmp_path)
    assert len(batches) == 1 and len(batches[0]) == 6 and len(failed) == 1 and sum(len(b) for bs, _ in iter_many(tmp_path) for b in bs) == 6
    back = read_store(write_store(batches[0], tmp_path/'s.parquet'))
    assert (back.flux == batches[0].flux).all() and back.lsf == XP_LSF and back.rest and list(back.table['bands']) == list(batches[0].table['bands'])


# --- coefficients

def invented(n, seed):
    "Coefficients, errors and correlations"
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, 55, 150))
    rho = a @ a.swapaxes(1, 2)
    d = np.sqrt(np.einsum('nii->ni', rho))
    low = np.tril_indices(55, -1)
    return [rng.normal(size=(n, 55))*1000/np.arange(1, 56), rng.uniform(.5, 2, (n, 55)), (rho/d[:, :, None]/d[:, None])[:, low[0], low[1]]]


def coefficients(path, bp, rp, form='({})', none=''):
    columns = dict(source_id=IDS[:len(rp[0])])
    for b, x in dict(bp=bp, rp=rp).items():
        ok = np.isfinite(x[0]).all(1)
        columns |= {f'{b}_n_parameters': np.where(ok, '55', none), f'{b}_standard_deviation': np.where(ok, '1.5', none)}
        for k, v in zip(('coefficients', 'coefficient_errors', 'coefficient_correlations'), x): columns[f'{b}_{k}'] = [t if o else none for t, o in zip(arrays(v, form), ok)]
    return write_csv(path, columns)


@pytest.fixture(scope='module')
def bands():
    bp, rp = invented(3, 0), invented(3, 1)
    for x in bp: x[1] = np.nan
    for x in rp: x[2] = np.nan
    return bp, rp


def test_calibration_is_that_of_gaiaxpy(tmp_path, bands):
    pytest.importorskip('gaiaxpy')
    from gaiaxpy.calibrator.calibrator import _calibrate
    theirs, _ = _calibrate(str(coefficients(tmp_path/'x.csv', *bands)), save_file=False, disable_info=True)
    for mine, k in zip(calibrate_xp(*bands), ('flux', 'flux_error')):
        ref = np.stack(theirs[k])
        assert (np.isnan(mine) == np.isnan(ref)).all() and np.nanmax(np.abs(mine/ref - 1)) < 1e-6


def test_what_gaiaxpy_changes_on_import_is_put_back():
    pytest.importorskip('gaiaxpy')
    code = '''import numpy as np, matplotlib
from specnb.spectra.gaia import calibrate_xp
before = np.get_printoptions(), dict(matplotlib.rcParams)
calibrate_xp(*[[np.ones((1, k)) for k in (55, 55, 1485)]]*2)
import gaiaxpy
assert before == (np.get_printoptions(), dict(matplotlib.rcParams)), 'changed'
'''
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('form, none', [('({})', ''), ('[{}]', 'null'), ('[{}]', '[]')])
def test_missing_bands(tmp_path, bands, form, none):
    pytest.importorskip('gaiaxpy')
    s = read(coefficients(tmp_path/'x.csv', *bands, form, none))
    assert list(s.table['bands']) == ['BP+RP', 'RP', 'BP']
    assert (s.good == np.stack([NM > 0, NM > 635, NM < 643])).all()
    flux, err = calibrate_xp(*bands)
    assert np.allclose(s.flux[s.good], 1e19*flux[s.good], rtol=1e-6) and np.allclose(s.ivar[s.good]**-.5, 1e19*err[s.good], rtol=1e-6)


def test_coefficients_cut_short(tmp_path, bands):
    pytest.importorskip('gaiaxpy')
    refused(coefficients(tmp_path/'x.csv', [x[:, :20] for x in bands[0]], bands[1]), '20 numbers for BP', '55 coefficients')
    whole = coefficients(tmp_path/'y.csv', *bands).read_text()
    (tmp_path/'y.csv').write_text(whole[:-5000])
    refused(tmp_path/'y.csv', 'cut short')


def test_without_gaiaxpy_only_coefficients_fail(tmp_path, bands, stars, monkeypatch):
    gaia._design.cache_clear()
    monkeypatch.setattr(gaia, 'find_spec', lambda name: None)
    refused(coefficients(tmp_path/'x.csv', *bands), 'GaiaXPy', 'pip install "specnb[xp]"')
    check(read(sampled_csv(tmp_path/'y.csv', *stars)), *stars)
    with pytest.raises(ImportError, match=r'specnb\[xp\]'): calibrate_xp(*bands)


# --- real files

@pytest.fixture(scope='module')
def real(shared_data): return shared_data/'gaiaxp'


@pytest.fixture(scope='module')
def answer(real):
    "source_id -> flux and error, W/m2/nm, of the stored solution"
    number = lambda t: np.array(t.strip('()').split(','), dtype=float)
    with open(real/'calibrator_solution_default.csv', newline='') as f: return {int(r['source_id']): (number(r['flux']), number(r['flux_error'])) for r in csv.DictReader(f)}


@pytest.mark.parametrize('name', ['XP_CONTINUOUS_RAW.csv', 'XP_CONTINUOUS_RAW.ecsv', 'XP_CONTINUOUS_RAW.fits', 'XP_CONTINUOUS_RAW.xml', 'XP_CONTINUOUS_RAW_with_missing_BP.fits', 'calibrator_solution_default.csv'])
def test_real_files_agree_with_the_stored_answer(real, answer, name):
    if 'CONTINUOUS' in name: pytest.importorskip('gaiaxpy')
    s = read(real/name)
    assert detect(real/name) == 'gaiaxp' and s.grid == XP_GRID and set(answer) <= set(s.table['source_id'])
    for i, k in enumerate(s.table['source_id']):
        if k not in answer: continue
        flux, err = answer[k]
        assert np.abs(s.flux[i]/(1e19*flux) - 1).max() < 1e-4 and np.abs(s.ivar[i]**-.5/(1e19*err) - 1).max() < 1e-4 and s.table['bands'][i] == 'BP+RP'


def test_the_real_source_without_bp(real):
    pytest.importorskip('gaiaxpy')
    from gaiaxpy.calibrator.calibrator import _calibrate
    path = real/'XP_CONTINUOUS_RAW_with_missing_BP.fits'
    s, ref = read(path), np.stack(_calibrate(str(path), save_file=False, disable_info=True)[0]['flux'])
    assert list(s.table['bands']) == ['BP+RP', 'RP', 'BP+RP'] and (s.good == np.isfinite(ref)).all() and s.good[1].sum() == 193
    assert np.nanmax(np.abs(s.flux/np.where(s.good, 1e19*ref, np.nan) - 1)) < 1e-6


@pytest.mark.parametrize('ext', ['csv', 'fits'])
def test_real_samples_of_the_archive(real, answer, ext):
    s = read(real/f'XP_SAMPLED_RAW_dr3int6.{ext}')
    assert list(s.table['source_id']) == [6, 4] and abs(s.table['ra'][0] - 217.39232) < 1e-5
    with fits.open(real/'XP_SAMPLED_RAW_dr3int6.fits') as f: flux, err = (np.stack(f[1].data[k]).astype(float) for k in ('flux', 'flux_error'))
    assert np.abs(s.flux/(1e19*flux) - 1).max() < 1e-6 and np.abs(s.ivar**-.5/(1e19*err) - 1).max() < 1e-6
    for i, (f, e) in enumerate(answer.values()):                                       # the archive's own sampling, to single precision of the largest flux
        assert np.abs(s.flux[i] - 1e19*f).max() < 1e-4*1e19*np.median(f) and np.abs(s.ivar[i]**-.5/(1e19*e) - 1).max() < 1e-4


def test_the_real_internal_spectra_are_refused(real): refused(real/'SampledMeanSpectrum.csv', 'pseudo-wavelengths')


def test_the_real_folder(real):
    pytest.importorskip('gaiaxpy')
    batches, failed = read_many(real)
    assert [len(b) for b in batches] == [17] and [p.rsplit('/', 1)[1] for p in failed['path']] == ['SampledMeanSpectrum.csv']


# --- labels


def test_the_suited_network_is_taken(tmp_path, stars, capsys):
    "Without --model files of Gaia XP get labels of the network xp, a source that comes twice its flag, and other paths the default"
    from specnb.apps.hub import DEFAULT
    from specnb.apps.predict import Flag, main, suited
    from specnb.physics.survey import simulate
    from specnb.spectra.store import write_store
    ids, flux, err = stars
    sampled_csv(tmp_path/'a.csv', [*ids, ids[0]], np.vstack([flux, flux[:1]]), np.vstack([err, err[:1]]))
    assert main([str(tmp_path/'a.csv'), '--out', str(tmp_path/'a.ecsv')]) == 0
    t = Table.read(tmp_path/'a.ecsv')
    assert {'alpha_m', 'ak', 'ak_err'} <= set(t.colnames) and np.isfinite(t['teff']).all()
    assert ((t['flag'] & Flag.DUPLICATE) > 0).tolist() == [False]*len(ids) + [True] and 'source comes earlier in the file' in t['reason'][-1]
    write_store(simulate('lamost', 3), tmp_path/'s.parquet')
    (tmp_path/'broken.fits').write_text('SIMPLE  = cut short')
    assert suited(tmp_path/'s.parquet') == DEFAULT == suited(tmp_path/'broken.fits')
    assert suited([tmp_path/'broken.fits', tmp_path/'a.csv']) == 'xp' and suited([tmp_path/'a.csv'], 'table') == DEFAULT


def test_labels_with_a_band_missing_or_nothing(tmp_path, stars):
    "A source without BP gets labels and a flag; one without anything none"
    from specnb.apps.hub import load_model
    from specnb.apps.predict import Flag, label
    ids, flux, err = stars
    flux, err = flux.copy(), err.copy()
    err[1, :150], err[2] = np.nan, np.nan
    sampled_csv(tmp_path/'a.csv', ids, flux, err)
    t = label(read(tmp_path/'a.csv'), load_model('xp'))
    assert np.isfinite(t['teff']).tolist() == [True, True, False]
    assert [bool(f & Flag.MISSING_PIXELS) for f in t['flag']] == [False, True, True] and t['flag'][2] & Flag.NO_LABELS
