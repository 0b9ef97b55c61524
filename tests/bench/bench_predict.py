"From files to a table of labels, end to end: reading, velocities, normalising, labelling, flags, writing."
import contextlib, io
import pytest
from clock import say, seconds
from specnb.apps.simulate import write_simulated

N, FILES = 8192, dict(lamost=200, sdss=200, desi=1000)


def labelled(*args):
    "specnb_predict, quiet"
    from specnb.apps.predict import main
    with contextlib.redirect_stdout(io.StringIO()) as out: status = main([str(o) for o in args])
    assert status == 0, out.getvalue()


@pytest.mark.parametrize('form', FILES)
def bench_files(form, tmp_path):
    n, folder = FILES[form], tmp_path/form
    write_simulated(form, n, files=(form, folder))
    t = seconds(lambda: labelled(folder, '--out', tmp_path/'labels.parquet'), 2)
    say(f'predict, {n} stars in {form} files (stars/s)', f'{n/t:,.0f}')


@pytest.mark.parametrize('frame', ['rest', 'observed'])
def bench_store(frame, tmp_path):
    write_simulated('lamost', N, tmp_path/'s.parquet', rest=frame == 'rest')
    t = seconds(lambda: labelled(tmp_path/'s.parquet', '--out', tmp_path/'labels.parquet'), 2)
    say(f'predict, {N:,} stars of a store, {frame} (stars/s)', f'{N/t:,.0f}')
