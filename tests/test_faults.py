"Everything that can be wrong with a file: each is a ReadError that names the file, the problem and a way out, and none stops the others."
import builtins, gzip, os, shutil
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table
from hypothesis import HealthCheck, given, settings, strategies as st
from specnb.spectra.grid import Grid
from specnb.spectra.readers import find_files, iter_many, read, read_many
from specnb.spectra.store import ReadError, Store, read_store, write_store
from specnb.spectra.writers import example_stars, write_survey

often = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SMALL = Grid.log(3.7, 1e-4, 300)


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    "One sound file of every kind: name -> path."
    d, s = tmp_path_factory.mktemp('good'), example_stars(2, SMALL)
    desi = example_stars(2, Grid.linear(5000, .8, 200), survey='desi')
    return dict(
        lamost=write_survey(s, d/'lamost', 'lamost')[0], lamost_gz=write_survey(s, d/'gz', 'lamost', gz=True)[0],
        lamost_table=write_survey(s, d/'table', 'lamost', form='table')[0], sdss=write_survey(s, d/'sdss', 'sdss')[0],
        desi=write_survey(desi, d/'desi', 'desi')[0], ecsv=write_survey(s, d/'ecsv', 'ecsv')[0], store=write_store(s, d/'store.parquet'))


KINDS = ['lamost', 'lamost_gz', 'lamost_table', 'sdss', 'desi', 'store']


def refused(path, *words, **options):
    "The message of the ReadError that reading gives; it names the file and holds the words."
    with pytest.raises(ReadError) as e: read(path, **options)
    text = str(e.value)
    assert str(path) in text and e.value.problem and all(w in text for w in words), text
    return text


# --- cut, empty, not what it says


@pytest.mark.parametrize('kind', KINDS)
@often
@given(st.data())
def test_truncated_anywhere(good, tmp_path, kind, data):
    raw, path = good[kind].read_bytes(), tmp_path/good[kind].name
    n = data.draw(st.integers(1, len(raw) - 1))
    path.write_bytes(raw[:n])
    whole = read(good[kind])
    try: cut = read(path)
    except ReadError as e: assert str(path) in str(e) and e.fix
    else: assert raw[:6] == b'SIMPLE' and (cut.flux == whole.flux).all() and (cut.ivar == whole.ivar).all()   # only padding or a later table lost


@pytest.mark.parametrize('kind', [*KINDS, 'ecsv'])
@often
@given(st.data())
def test_damaged_bytes_never_crash(good, tmp_path, kind, data):
    raw, path = bytearray(good[kind].read_bytes()), tmp_path/good[kind].name
    for _ in range(data.draw(st.integers(1, 20))): raw[data.draw(st.integers(0, min(len(raw), 9000) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw))
    try: s = read(path)
    except ReadError as e: assert str(path) in str(e)
    else: assert np.isfinite(s.flux).all() and np.isfinite(s.ivar).all() and (s.ivar >= 0).all()


@often
@given(st.binary(min_size=1, max_size=3000))
def test_any_bytes_under_any_name(tmp_path, raw):
    for name in ('x.fits', 'x.csv', 'x.ecsv', 'x.parquet', 'x'):
        (tmp_path/name).write_bytes(raw)
        refused(tmp_path/name)


@pytest.mark.parametrize('name', ['x.fits', 'x.fits.gz', 'x.ecsv', 'x.csv', 'x.parquet'])
def test_empty(tmp_path, name):
    (tmp_path/name).write_bytes(b'')
    refused(tmp_path/name, 'empty')


def test_text_renamed_fits(tmp_path, good):
    (tmp_path/'x.fits').write_text('<html>404 not found</html>\n'*20)
    refused(tmp_path/'x.fits', 'not a FITS file', 'text')
    shutil.copy(good['ecsv'], tmp_path/'y.fits')
    refused(tmp_path/'y.fits', 'not a FITS file', 'text')


def test_missing_and_folder(tmp_path):
    refused(tmp_path/'none.fits', 'no such file')
    refused(tmp_path, 'directory', 'read_many')


def test_picture_in_fits(tmp_path):
    fits.PrimaryHDU(np.zeros((50, 50), 'f4')).writeto(tmp_path/'image.fits')
    refused(tmp_path/'image.fits', 'no kind known')


def test_unreadable(tmp_path, good, monkeypatch):
    path = shutil.copy(good['lamost'], tmp_path/'x.fits')
    real = builtins.open
    def denied(f, *a, **k):
        if str(f) == str(path): raise PermissionError(13, 'Permission denied', str(f))
        return real(f, *a, **k)
    monkeypatch.setattr(builtins, 'open', denied)
    refused(path, 'no permission', 'chmod')


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may read anything')
def test_unreadable_for_real(tmp_path, good):
    path = shutil.copy(good['lamost'], tmp_path/'x.fits')
    os.chmod(path, 0)
    refused(path, 'no permission')


# --- in order, but useless: the same faults in every format


def _lamost(path, wave, flux, ivar, keys=()):
    h = fits.Header(dict(TELESCOP='LAMOST', COEFF0=3.7, COEFF1=1e-4, CLASS='STAR', Z=0.))
    for k in keys: del h[k]
    fits.PrimaryHDU(np.stack([flux, ivar, wave, 0*wave, 0*wave]).astype('f4'), h).writeto(path.with_suffix('.fits'))
    return path.with_suffix('.fits')


def _sdss(path, wave, flux, ivar):
    t = Table(dict(flux=flux, loglam=np.log10(wave), ivar=ivar, and_mask=np.zeros(len(flux), 'i4')))
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(t, name='COADD')]).writeto(path.with_suffix('.fits'))
    return path.with_suffix('.fits')


def _desi(path, wave, flux, ivar):
    pad = lambda a: np.pad(np.asarray(a, 'f4'), (0, 2751 - len(a)), 'edge' if len(a) == 400 else 'constant')[None]
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU(Table(dict(TARGETID=[1])), name='FIBERMAP'), fits.ImageHDU(3600 + .8*np.arange(2751), name='B_WAVELENGTH')]
    fits.HDUList(hdus + [fits.ImageHDU(pad(flux), name='B_FLUX'), fits.ImageHDU(pad(ivar), name='B_IVAR')]).writeto(path.with_suffix('.fits'))
    return path.with_suffix('.fits')


def _csv(path, wave, flux, ivar):
    Table(dict(wavelength_A=wave, flux=flux, ivar=ivar)).write(path.with_suffix('.csv'))
    return path.with_suffix('.csv')


def _parquet(path, wave, flux, ivar):
    pd.DataFrame(dict(wavelength_A=[wave], flux=[flux], ivar=[ivar])).to_parquet(path.with_suffix('.parquet'))
    return path.with_suffix('.parquet')


MAKERS = dict(lamost=_lamost, sdss=_sdss, desi=_desi, csv=_csv, parquet=_parquet)
W = 10**(3.7 + 1e-4*np.arange(400))
ONE, FEW = np.ones(400), (np.arange(400) < 60)*1.
FAULTS = {'all flux is NaN': (ONE*np.nan, ONE), 'all flux is zero': (ONE*0, ONE), 'negative everywhere': (ONE, -ONE), 'no pixel has a positive': (ONE, ONE*0),
          'only 60 good pixels': (ONE, FEW)}


@pytest.mark.parametrize('fault', FAULTS)
@pytest.mark.parametrize('kind', MAKERS)
def test_useless_spectra(tmp_path, kind, fault):
    flux, ivar = FAULTS[fault]
    refused(MAKERS[kind](tmp_path/'x', W, flux, ivar), fault)


@pytest.mark.parametrize('kind', MAKERS)
def test_too_short(tmp_path, kind): refused(MAKERS[kind](tmp_path/'x', W[:60], ONE[:60], ONE[:60]), 'only 60 good pixels')


@pytest.mark.parametrize('kind', MAKERS)
def test_some_bad_pixels_are_masked(tmp_path, kind):
    flux, ivar = 1 + .1*np.sin(np.arange(400)), ONE.copy()
    flux[10], flux[20], ivar[30], ivar[40], ivar[50] = np.nan, np.inf, np.nan, -1, np.inf
    s = read(MAKERS[kind](tmp_path/'x', W, flux, ivar))
    assert s.good.sum() == (2746 if kind == 'desi' else 395) and np.isfinite(s.flux).all() and np.isfinite(s.ivar).all()


@pytest.mark.parametrize('kind', ['csv', 'parquet', 'sdss'])
def test_unsorted(tmp_path, kind):
    order = np.random.default_rng(0).permutation(400)
    refused(MAKERS[kind](tmp_path/'x', W[order], ONE, ONE), 'must increase', 'sort')


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_wavelengths_not_finite(tmp_path, kind):
    w = W.copy()
    w[7] = np.nan
    refused(MAKERS[kind](tmp_path/'x', w, ONE, ONE), 'not finite')


def test_no_wavelength_header(tmp_path): refused(_lamost(tmp_path/'x', W, ONE, ONE, keys=['COEFF0', 'COEFF1']), 'no usable wavelengths', 'COEFF0')


def test_desi_without_wavelengths_or_off_its_pixels(tmp_path):
    path = _desi(tmp_path/'x', W, ONE, ONE)
    with fits.open(path) as f:
        f[2].data = f[2].data + .3
        f.writeto(tmp_path/'off.fits')
        fits.HDUList([f[0], f[1], *f[3:]]).writeto(tmp_path/'none.fits')
    refused(tmp_path/'off.fits', 'not on the 0.8 A pixels')
    refused(tmp_path/'none.fits', 'no WAVELENGTH')


# --- units of plain tables


def ecsv(path, unit, wave=W, name='wavelength', **cols):
    t = Table({name: wave, **({'flux': ONE, 'ivar': ONE} if not cols else cols)})
    if unit: t[name].unit = unit
    t.write(path, format='ascii.ecsv')
    return path


@pytest.mark.parametrize('unit,words', [('nm', ('wrong unit', 'look like Angstrom')), ('Hz', ('frequency', 'convert')), ('km/s', ('convert',)), ('', ('no unit', 'wavelength_A')), ('m', ('wrong unit',))])
def test_wrong_units(tmp_path, unit, words): refused(ecsv(tmp_path/'x.ecsv', unit), *words)


def test_nanometres_called_angstrom(tmp_path): refused(ecsv(tmp_path/'x.ecsv', 'AA', W/10), 'wrong unit', 'look like nm')


def test_csv_without_unit_and_with_one_given(tmp_path):
    Table(dict(wave=W/10, flux=ONE, error=ONE)).write(tmp_path/'x.csv')
    refused(tmp_path/'x.csv', 'no unit', "unit='nm'")
    refused(tmp_path/'x.csv', 'wrong unit', unit='AA')
    assert abs(read(tmp_path/'x.csv', unit='nm').wavelength[0] - W[0]) < .01


def test_no_uncertainty(tmp_path):
    ecsv(tmp_path/'x.ecsv', 'AA', flux=ONE)
    refused(tmp_path/'x.ecsv', 'no uncertainties', 'snr=')
    assert abs(read(tmp_path/'x.ecsv', snr=40).snr[0] - 40) < 1e-3


def test_no_columns_and_ragged_lines(tmp_path):
    (tmp_path/'a.csv').write_text('name,teff\nsun,5772\n')
    refused(tmp_path/'a.csv', 'no column called wavelength or flux', 'name, teff')
    (tmp_path/'b.csv').write_text('wavelength_A,flux,ivar\n5000,1,1\n5001,1,1,1\n')
    refused(tmp_path/'b.csv', 'not a table of numbers')


# --- stores


def test_parquet_without_spectra(tmp_path):
    pd.DataFrame(dict(teff=[1.])).to_parquet(tmp_path/'x.parquet')
    refused(tmp_path/'x.parquet', 'without spectra', 'teff')
    with pytest.raises(ReadError, match='without spectra'): Store(tmp_path/'x.parquet')


def test_parquet_lists_of_unequal_length(tmp_path):
    pd.DataFrame(dict(wavelength_A=[W, W], flux=[ONE, ONE[:9]], ivar=[ONE, ONE])).to_parquet(tmp_path/'x.parquet')
    refused(tmp_path/'x.parquet', 'unequal length in row 1')


def test_store_with_lists_of_unequal_length(tmp_path, good):
    import pyarrow as pa, pyarrow.parquet as pq
    t = pq.read_table(good['store'])
    flux = pa.array([[1.]*300, [1.]*200], pa.list_(pa.float32()))
    pq.write_table(t.set_column(t.schema.get_field_index('flux'), 'flux', flux).replace_schema_metadata(t.schema.metadata), tmp_path/'x.parquet')
    with pytest.raises(ReadError, match='unequal length'): read_store(tmp_path/'x.parquet')


def test_failed_write_leaves_nothing(tmp_path):
    s = example_stars(3, SMALL)
    write_store(s, tmp_path/'x.parquet')
    before = (tmp_path/'x.parquet').read_bytes()
    def breaks():
        yield s
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write_store(breaks(), tmp_path/'x.parquet', group=2)
    assert [p.name for p in tmp_path.iterdir()] == ['x.parquet'] and (tmp_path/'x.parquet').read_bytes() == before


# --- many at once


def test_good_and_bad_together(tmp_path, good):
    for k, p in good.items(): shutil.copy(p, tmp_path/f'{k}-{p.name}')
    (tmp_path/'cut.fits').write_bytes(good['sdss'].read_bytes()[:9999])
    (tmp_path/'empty.csv').write_bytes(b'')
    (tmp_path/'text.fits').write_text('hello')
    batches, failed = read_many([tmp_path, tmp_path/'nowhere.fits'])
    assert sorted(os.path.basename(p) for p in failed['path']) == ['cut.fits', 'empty.csv', 'nowhere.fits', 'text.fits'] and all(failed['reason'])
    assert sum(map(len, batches)) == 4 + 1 + 2 + 2
    paths = [p for b in batches for p in b.table['path']]
    assert len(set(paths)) == len(good) and all(list(b.table['index']) == sorted(b.table['index']) for b in batches if b.survey == 'desi')
    done = []
    pieces = list(iter_many(tmp_path, chunk=3, progress=lambda i, n: done.append((i, n))))
    assert sum(len(b) for bs, _ in pieces for b in bs) == 9 and sum(len(f) for _, f in pieces) == 3 and done[-1] == (10, 10)


def test_all_bad(tmp_path):
    (tmp_path/'a.fits').write_bytes(b'')
    batches, failed = read_many(tmp_path)
    assert batches == [] and len(failed) == 1 and failed.colnames == ['path', 'reason']


def test_duplicates(tmp_path, good):
    for d in ('a', 'b'):
        (tmp_path/d).mkdir()
        shutil.copy(good['lamost'], tmp_path/d/'x.fits')
    os.symlink(tmp_path/'a'/'x.fits', tmp_path/'link.fits')
    batches, failed = read_many([tmp_path/'a', str(tmp_path/'*'/'x.fits'), tmp_path/'a'/'x.fits', tmp_path/'link.fits', tmp_path/'a'/'..'/'a'/'x.fits'])
    assert len(batches) == 1 and len(batches[0]) == 2 and len(failed) == 0
    assert len(set(batches[0].table['path'])) == 2


def test_list_file(tmp_path, good):
    for i in range(3): shutil.copy(good['lamost'], tmp_path/f'{i}.fits')
    (tmp_path/'list').write_text('# mine\n0.fits\n\n2.fits\n0.fits\n')
    assert [os.path.basename(f) for f in find_files(f'@{tmp_path}/list')] == ['0.fits', '2.fits']


def test_processes_give_the_same_as_one(tmp_path, good):
    for i in range(6): shutil.copy(good['ecsv' if i % 2 else 'lamost'], tmp_path/f'{i}{good["ecsv" if i % 2 else "lamost"].suffix}')
    (tmp_path/'9.fits').write_bytes(b'')
    one, two = read_many(tmp_path, workers=1), [[], []]
    for b, f in iter_many(tmp_path, workers=2, chunk=2):
        two[0] += b
        two[1] += f
    assert [list(b.table['path']) for b in one[0]] == [sum((list(b.table['path']) for b in two[0] if b.survey == k), []) for k in (x.survey for x in one[0])]
    assert [tuple(r) for r in one[1]] == two[1]


def test_gzipped_text(tmp_path, good):
    (tmp_path/'x.ecsv.gz').write_bytes(gzip.compress(good['ecsv'].read_bytes()))
    assert (read(tmp_path/'x.ecsv.gz').flux == read(good['ecsv']).flux).all()


def test_wrong_usage(good):
    with pytest.raises(ValueError, match='choose from'): read(good['lamost'], survey='hubble')
    with pytest.raises(TypeError, match='unknown option'): read(good['lamost'], colour='red')
    refused(good['lamost'], "looks like 'lamost'", survey='sdss')
