"Metrics: equivariant, robust, and quiet about what is missing."
import numpy as np, pandas as pd, pytest
from astropy.stats import biweight_scale
from astropy.table import MaskedColumn, Table
from hypothesis import given, settings, strategies as st
from specnb.learn.metrics import LABELS, bias, coverage, r2, score, sigma

RNG = np.random.default_rng(0)
TRUE = np.stack([RNG.uniform(4300, 6700, 500), RNG.uniform(1, 5, 500), RNG.uniform(-2.5, .5, 500), RNG.uniform(-.1, .4, 500)], 1)
PRED = TRUE + RNG.normal(size=TRUE.shape)*[60, .1, .1, .05]


@settings(deadline=None, max_examples=30)
@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_shift_and_scale(shift, scale):
    p, t = PRED[:, 1], TRUE[:, 1]
    assert np.isclose(sigma(scale*p + shift, scale*t), scale*sigma(p, t), rtol=1e-4)
    assert np.isclose(bias(scale*p + shift, scale*t), scale*bias(p, t) + shift, rtol=1e-4, atol=1e-6)
    assert np.isclose(r2(scale*p + shift, scale*t + shift), r2(p, t), rtol=1e-4)


def test_sigma_is_the_biweight_of_the_studies():
    assert sigma(PRED[:, 0], TRUE[:, 0]) == pytest.approx(biweight_scale(PRED[:, 0] - TRUE[:, 0], c=6))


def test_rows_and_subsets():
    t = score(PRED, TRUE)
    assert t.colnames == ['label', 'subset', 'n', 'r2', 'sigma', 'bias'] and len(t) == 12
    for r in t:
        k = {'full': slice(None), 'metal-poor': TRUE[:, 2] < -1, 'metal-rich': TRUE[:, 2] >= -1}[r['subset']]
        j = LABELS.index(r['label'])
        assert r['n'] == len(TRUE[k]) and r['sigma'] == sigma(PRED[k, j], TRUE[k, j]) and r['r2'] == r2(PRED[k, j], TRUE[k, j])


def test_what_is_missing_is_left_out_label_by_label():
    true = TRUE.copy()
    true[:100, 0] = np.nan
    t = score(PRED, true)
    assert list(t['n'][t['subset'] == 'full']) == [400, 500, 500, 500]
    masked = Table(true, names=LABELS)
    masked['teff'] = MaskedColumn(TRUE[:, 0], mask=np.isnan(true[:, 0]))
    assert (score(PRED, masked)['n'] == t['n']).all()
    del masked['alpha_fe']
    none = score(PRED, masked)[-3:]
    assert (none['n'] == 0).all() and np.isnan(none['sigma']).all()


@pytest.mark.parametrize('n', [0, 1, 2])
def test_too_few_stars(n):
    t = score(PRED[:n], TRUE[:n], err=np.ones((n, 4)), crlb=np.ones((n, 4)))
    assert all(np.isnan(t[c]).all() for c in ('r2', 'sigma', 'bias', 'cover1', 'cover2')) and (t['n'][t['subset'] == 'full'] == n).all()


def test_tables_frames_and_arrays_agree():
    a = score(PRED, TRUE, err=np.full(PRED.shape, .1))
    b = score(Table(PRED, names=LABELS), pd.DataFrame(TRUE, columns=LABELS), err={k: np.full(500, .1) for k in LABELS})
    for c in a.colnames: assert (a[c] == b[c]).all()


def test_coverage():
    assert coverage(PRED[:, 2], TRUE[:, 2], np.full(500, .1)) == pytest.approx(.6827, abs=.07)
    assert coverage(PRED[:, 2], TRUE[:, 2], np.full(500, .1), 2) == pytest.approx(.9545, abs=.03)


def test_shapes_that_differ():
    with pytest.raises(ValueError, match='differ in shape'): score(PRED, TRUE[:5])
    with pytest.raises(ValueError, match='2 columns but 4 labels'): score(PRED[:, :2], TRUE)
