"Floors 0 and 1 in stars per second."
import numpy as np, pytest
from scipy.ndimage import gaussian_filter1d
from clock import say, seconds
from specnb.physics.rv import measure_rv
from specnb.physics.survey import Vary, simulate
from specnb.spectra.store import Store, read_store, write_store

N = 4096


@pytest.fixture(scope='module')
def stars(): return simulate('lamost', N, seed=1)


def one_by_one(s):
    "A running mean of 50 A, star by star, as a plain script writes it: a weight a pixel pair, twice with outliers clipped"
    w, out = s.wavelength, []
    for flux, ivar in zip(s.flux, s.ivar):
        weight = ivar.astype(float)
        for _ in range(2):
            kernel = np.exp(-.5*((w[:, None] - w)/50)**2)*weight
            cont = kernel@flux/np.maximum(kernel.sum(1), 1e-30)
            weight = np.where(np.abs(flux - cont)*np.sqrt(ivar) < 5, ivar, 0) if weight.any() else weight
        out.append(flux/cont)
    return np.stack(out)


def one_by_one_filtered(s):
    "The quickest of plain ways: scipy's filter on each star, pixels taken as evenly spaced"
    out = []
    for flux, ivar in zip(s.flux, s.ivar): out.append(flux/(gaussian_filter1d(flux*ivar, 35)/np.maximum(gaussian_filter1d(ivar, 35), 1e-30)))
    return np.stack(out)


@pytest.mark.parametrize('method', ['running', 'envelope'])
def bench_normalise(stars, method):
    batch, plain, filtered = seconds(lambda: stars.normalise(method)), seconds(lambda: one_by_one(stars[:10]), 1), seconds(lambda: one_by_one_filtered(stars[:200]))
    say(f'normalise, {method} (stars/s)', f'{N/batch:,.0f}; star by star {10/plain:,.0f} (ratio {N/batch*plain/10:,.0f}), with scipy\'s filter {200/filtered:,.0f} (ratio {N/batch*filtered/200:.1f})')


@pytest.mark.parametrize('how', ['plain', 'vary'])
def bench_simulate(how):
    t = seconds(lambda: simulate('lamost', N, seed=2, vary=Vary() if how == 'vary' else None), 2)
    say(f'simulate LAMOST, {how} (stars/s)', f'{N/t:,.0f}; 90,000 in {90_000/N*t:.0f} s')


def bench_rv(stars):
    s = simulate('lamost', 1024, seed=3, rest=False)
    t = seconds(lambda: measure_rv(s), 2)
    say('radial velocities (stars/s)', f'{1024/t:,.0f}')


def bench_store(stars, tmp_path):
    path, raw = tmp_path/'s.parquet', stars.flux.nbytes + stars.ivar.nbytes
    write, read = seconds(lambda: write_store(stars, path)), seconds(lambda: read_store(path))
    some = np.sort(np.random.default_rng(0).choice(N, 100, replace=False))
    few = seconds(lambda: Store(path).read(some))
    say('store, write and read (MB/s of arrays)', f'{raw/write/1e6:,.0f} and {raw/read/1e6:,.0f}; {path.stat().st_size/raw:.2f} of the size; 100 random stars in {few:.2f} s')
