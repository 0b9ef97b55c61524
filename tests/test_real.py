"""The shipped weights on real stars (run with -rP to see the figures).

Nothing was trained on the LAMOST stars. They are not blind, though. The width of the random line strengths (`Vary.lines_width`) was chosen with prototypes scored
on these stars and on MILES; that the cores of deep lines are masked in training (`Augment.deep`), that Balmer lines keep their strength (`Vary.hydrogen`) and that
foreign stars teach the temperature was decided after looking at what goes wrong on these files.
"""
from pathlib import Path
import numpy as np
import pytest
from astropy.table import Table
from specnb.apps.predict import Flag, label, main
from specnb.learn.metrics import bias, sigma
from specnb.spectra.readers import read_many

LABELS = dict(teff='teff', logg='logg', fe_h='feh')


@pytest.fixture(scope='module')
def lamost(shared_data):
    "Labels of the LAMOST files joined with the catalogue (masked where it has none)."
    batches, failed = read_many(str(shared_data/'lamost'/'*.fits*'))
    assert not len(failed)
    t = label(batches[0])
    t['name'] = [Path(p).name for p in t['path']]
    c = {r['filename']: r for r in Table.read(shared_data/'lamost'/'labels.csv')}
    for k, v in LABELS.items(): t[f'{k}_cat'] = [c[n][v] if n in c else np.nan for n in t['name']]
    t['snr_cat'] = [c[n]['snrg'] if n in c else np.nan for n in t['name']]
    t['class'] = batches[0].table['survey_class']
    t['subclass'] = batches[0].table['survey_subclass']
    return t


def test_all_files_give_a_row(shared_data, tmp_path):
    files = sorted((shared_data/'lamost').glob('*.fits*'))
    assert main([*map(str, files), '--out', str(tmp_path/'l.ecsv')]) == 0
    t = Table.read(tmp_path/'l.ecsv')
    assert len(t) == len(files) == 36 and not (t['flag'] & Flag.NOT_READ).any()


def test_against_the_catalogue(lamost):
    fgk = (lamost['teff_cat'] >= 4300) & (lamost['teff_cat'] <= 6800)
    for name, k in (('all', fgk), ('S/N > 20', fgk & (lamost['snr_cat'] > 20)), ('S/N <= 20', fgk & (lamost['snr_cat'] <= 20))):
        print(f'{name}: {k.sum()} stars, sigma (bias)', ', '.join(f'{l} {sigma(lamost[l][k], lamost[l + "_cat"][k]):.3g} ({bias(lamost[l][k], lamost[l + "_cat"][k]):+.3g})' for l in LABELS))
        print('   within one quoted error:', ', '.join(f'{l} {np.mean(np.abs(lamost[l] - lamost[l + "_cat"])[k] < lamost[l + "_err"][k]):.2f}' for l in LABELS))
    k = fgk & (lamost['snr_cat'] > 20)
    assert sigma(lamost['teff'][k], lamost['teff_cat'][k]) < 180 and sigma(lamost['fe_h'][k], lamost['fe_h_cat'][k]) < .16 and sigma(lamost['logg'][k], lamost['logg_cat'][k]) < .4


def test_what_is_no_fgk_star_is_flagged(lamost):
    odd = (lamost['class'] == 'GALAXY') | np.char.startswith(np.asarray(lamost['subclass'], str), 'dM') | (lamost['teff_cat'] > 7000)
    lamost[odd]['name', 'class', 'subclass', 'snr', 'teff', 'flag', 'reason'].pprint(max_width=-1)
    assert odd.sum() == 7 and (lamost['flag'][odd] > 0).all()
    ordinary = (lamost['teff_cat'] >= 4500) & (lamost['teff_cat'] <= 6500)
    print(f'{np.sum(lamost["flag"][ordinary] > 0)} of {ordinary.sum()} ordinary stars flagged')
    assert np.mean(lamost['flag'][ordinary] > 0) < .3


def test_white_dwarf_is_flagged(shared_data):
    t = label(read_many(shared_data/'sdss')[0][0])
    assert t['flag'][0] > 0, t


def test_faint_desi_targets_give_rows(shared_data, tmp_path):
    main([str(shared_data/'desi'), '--out', str(tmp_path/'d.csv')])
    t = Table.read(tmp_path/'d.csv')
    assert len(t) == 10 and (t['flag'] > 0).all()
