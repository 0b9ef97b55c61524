"Cramér-Rao bounds: attained, raised by whatever is lost, the same for any batch."
import numpy as np, pytest, torch
from scipy.interpolate import BSpline
from specnb.physics.bound import cramer_rao, fisher, survey_bound
from specnb.physics.emulator import Emulator, LABELS
from specnb.physics.survey import simulate
from specnb.spectra.grid import LRS_GRID, LSF

LAMOST = Emulator.load().on(LRS_GRID, LSF.R(1800))
STARS = np.array([[5772, 4.44, 0, 0], [4600, 2.2, -.4, .1], [6300, 4.1, -.5, .1], [4700, 1.6, -1.8, .3], [6250, 4.2, -2.2, .3], [4500, 4.6, 0, 0]])
SNR = 30


def gauss_newton(y, ivar, start, B, steps=3):
    "Labels by least squares, with a free continuum; nothing of the library but the emulator"
    x, c = np.tile(start, (len(y), 1)).astype(float), np.ones((len(y), 1))
    for _ in range(steps):
        f = LAMOST(torch.as_tensor(x)).double().numpy()*c
        A = np.concatenate([LAMOST.jacobian(x).double().numpy()*c[..., None], f[..., None]*B], -1)
        step = np.linalg.solve((A.swapaxes(1, 2)*ivar) @ A, A.swapaxes(1, 2) @ (ivar*(y - f))[..., None])[..., 0]
        x, c = x + step[:, :4], c*(1 + step[:, 4:] @ B.T)
    return x


@pytest.mark.parametrize('star', [1, 2])
def test_attained_by_least_squares(star):
    "Monte Carlo: noise, a random smooth response and lost pixels; the scatter is the bound within a few standard errors"
    rng, w = np.random.default_rng(star), LRS_GRID.wavelength
    t = np.concatenate([[w[0]]*3, np.linspace(w[0], w[-1], 13), [w[-1]]*3])
    B = BSpline.design_matrix(w, t, 3).toarray()
    f = LAMOST.flux(STARS[[star]]).astype(float)
    ivar = np.where(rng.random(LRS_GRID.n) < .2, 0, 100.**2)*np.linspace(.3, 1.5, LRS_GRID.n)
    n = 500
    y = f*(1 + .05*rng.normal(size=(n, B.shape[1])) @ B.T) + rng.normal(size=(n, LRS_GRID.n))/np.sqrt(np.where(ivar > 0, ivar, 1))
    found = np.concatenate([gauss_newton(y[i:i + 100], ivar, STARS[star], B) for i in range(0, n, 100)])
    ratio = found.std(0)/cramer_rao(LAMOST, STARS[[star]], ivar=ivar)[0]
    print(dict(zip(LABELS, ratio.round(3))))
    assert np.all(np.abs(ratio - 1) < 4/np.sqrt(2*n))
    assert np.all(np.abs(found.mean(0) - STARS[star]) < .3*found.std(0))


def test_whatever_is_lost_raises_it():
    rng = np.random.default_rng(0)
    base = cramer_rao(LAMOST, STARS, snr=SNR)
    ivar = np.repeat((SNR/np.median(LAMOST.flux(STARS), axis=1, keepdims=True))**2, LRS_GRID.n, 1)
    np.testing.assert_allclose(cramer_rao(LAMOST, STARS, ivar=ivar), base, rtol=1e-3)
    assert (cramer_rao(LAMOST, STARS, ivar=ivar*(rng.random(ivar.shape) > .3)) > base).all()
    assert (cramer_rao(LAMOST, STARS, ivar=np.where(LRS_GRID.wavelength > 4600, ivar, 0)) > base).all()
    assert (cramer_rao(LAMOST, STARS, snr=SNR, rv_err=20) >= base*(1 - 1e-4)).all()
    widths = [cramer_rao(LAMOST, STARS, snr=SNR, width=w) for w in (np.inf, 200, 50, 25)]
    for a, b in zip(widths, widths[1:]): assert (b >= a*(1 - 1e-4)).all()


def test_scale():
    snr = np.array([5, 10, 20, 40, 80, 160])
    a = cramer_rao(LAMOST, np.tile(STARS[:1], (6, 1)), snr=snr)
    np.testing.assert_allclose(a*snr[:, None], np.repeat(a[:1]*5, 6, 0), rtol=1e-3)


def test_known_labels_and_priors():
    base = cramer_rao(LAMOST, STARS, snr=SNR)
    for i, k in enumerate(LABELS):
        one = cramer_rao(LAMOST, STARS, snr=SNR, free=(k,))
        assert (one[:, i] <= base[:, i]).all() and (np.delete(one, i, 1) == 0).all()
    tight = cramer_rao(LAMOST, STARS, snr=SNR, prior=[1e-3, 1e-6, 1e-6, 1e-6])
    np.testing.assert_allclose(tight, np.tile([1e-3, 1e-6, 1e-6, 1e-6], (len(STARS), 1)), rtol=1e-3)
    with pytest.raises(ValueError, match='unknown labels'): cramer_rao(LAMOST, STARS, snr=SNR, free=('vsini',))


def test_order_chunks_and_nothing():
    a = fisher(LAMOST, STARS, snr=SNR)
    p = np.random.default_rng(0).permutation(len(STARS))
    np.testing.assert_allclose(fisher(LAMOST, STARS[p], snr=SNR, chunk=2), a[p], rtol=1e-3, atol=1e-5*np.abs(a).max())
    assert cramer_rao(LAMOST, np.zeros((0, 4)), snr=SNR).shape == (0, 4)
    ivar = np.zeros((len(STARS), LRS_GRID.n)); ivar[1:] = 900; ivar[2] = np.nan; ivar[3, 5:] = 0
    s = cramer_rao(LAMOST, STARS, ivar=ivar)
    assert np.isinf(s[[0, 2, 3]]).all() and np.isfinite(s[[1, 4, 5]]).all()


@pytest.mark.parametrize('survey', ['lamost', 'desi', 'sdss'])
def test_surveys(survey):
    "Normalised or not, the bound is the same; stars without labels have none"
    s = simulate(survey, 40, seed=1, snr=40)
    a, b = survey_bound(s), survey_bound(s.normalise())
    np.testing.assert_allclose(b, a, rtol=.1)
    assert np.isfinite(a).all()
    s.table['teff'][3] = np.nan
    assert np.isinf(survey_bound(s)[3]).all()
