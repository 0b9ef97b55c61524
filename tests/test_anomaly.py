"The shipped detectors of anomalies: false alarms on stars they have not seen, what they find, and real spectra of LAMOST (run with -rP to see the figures)."
from dataclasses import replace
from importlib.resources import files
import numpy as np
import pytest
from specnb.apps.hub import load_model
from specnb.apps.predict import Flag, label, main, shipped_detector
from specnb.physics.survey import SURVEYS, Vary, simulate
from specnb.science.anomaly import Anomaly, calibrate, log_p, noisier
from specnb.science.inject import found, inject, least
from specnb.spectra.readers import read_many

CLEAN = replace(SURVEYS['lamost'], cosmic=0., bad=0.)
SHIPPED = files('specnb')/'assets'/'models'/'lrs-xp'
pytestmark = pytest.mark.skipif(not (SHIPPED/'anomaly-lrs.json').is_file(), reason='no detector of anomalies is shipped')


@pytest.fixture(scope='module')
def detector(): return shipped_detector(load_model('lrs'))


@pytest.fixture(scope='module')
def stars(): return simulate(CLEAN, 160, seed=77, snr=40, vary=Vary(lines=.1, resolution=.1))


def test_probabilities_are_what_they_say():
    rng = np.random.default_rng(3)
    snr = rng.uniform(5, 100, 6000)
    x = rng.normal(size=(6000, 2))*(1 + 30/snr[:, None]) + np.log(snr)[:, None]
    p = 10**log_p(x[3000:], snr[3000:], calibrate(x[:3000], snr[:3000]))
    for a in (.3, .1, .03, .01): assert np.all(np.abs((p < a).mean(0) - a) < .5*a)
    noisy = snr[3000:] < 15
    assert np.all(np.abs((p[noisy] < .1).mean(0) - .1) < .06)


def test_even_the_impossible_is_ranked():
    c = calibrate(np.random.default_rng(0).normal(size=(500, 1)), np.full(500, 30.))
    far = log_p([[1e3], [1e4], [1e5]], np.full(3, 30.), c)[:, 0]
    assert np.isfinite(far).all() and (np.diff(far) < 0).all()


def test_noise_is_no_anomaly(detector, stars):
    for snr in (10, 20, 40):
        share = detector.score(noisier(stars, np.full(len(stars), snr), seed=1))['anomalous'].mean()
        print(f'S/N {snr}: {share:.1%} called anomalous')
        assert share < .03


def test_below_the_calibration_there_is_no_probability(detector, stars):
    t = detector.score(noisier(stars[:20], np.full(20, .5)))
    assert np.isnan(t['p']).all() and np.isfinite(t['score']).all() and not t['anomalous'].any()


def test_scores_do_not_depend_on_company(detector, stars):
    a, b = detector.score(stars[:7]), detector.score(stars[3:4])
    assert abs(a['score'][3] - b['score'][0]) < .02 and len(detector.score(stars[:0])) == 0


def test_what_is_injected_is_found(detector, stars):
    t = found(detector, stars, strengths={'emission': (.8,), 'CH': (.4,), 'velocity': (300,), 'calibration': (.4,), 'cosmic rays': (.8,)})
    print(t)
    assert (t['auc'] > .95).all(), t
    assert not np.isnan(list(least(t).values())).any()


def test_the_detector_goes_with_its_model(tmp_path, detector):
    other = type(detector.model).from_pretrained(SHIPPED)
    next(other.parameters()).data += 1e-3
    with pytest.raises(ValueError, match='another model'): Anomaly.load(SHIPPED, other, 'lrs')


def test_predict_says_and_flags(detector, stars):
    odd = inject(stars[:40], 'emission', 1.)
    t, plain = label(odd, detector=detector), label(odd)
    sure = np.asarray(t['anomaly']) < .01
    assert sure.mean() > .8 and ((t['flag'][sure] & Flag.UNLIKE) > 0).all() and 'anomaly' not in plain.colnames
    assert all(np.array_equal(t[k], plain[k]) for k in ('teff', 'teff_err', 'snr'))


def test_option_of_the_command(tmp_path, stars):
    from astropy.table import Table
    from specnb.spectra.store import write_store
    write_store(stars[:10], tmp_path/'s.parquet')
    for option, there in (([], False), (['--anomaly'], True), (['--no-anomaly'], False)):
        assert main([str(tmp_path/'s.parquet'), '--out', str(tmp_path/'l.ecsv'), *option]) == 0
        assert ('anomaly' in Table.read(tmp_path/'l.ecsv').colnames) == there


def test_real_lamost(shared_data, detector):
    "Ordinary stars are not called anomalous, M dwarfs are; the galaxies are too faint to tell: S/N 0.2 and 3."
    s = read_many(str(shared_data/'lamost'/'*.fits*'))[0][0]
    t = label(s, detector=detector)
    kind, sub = np.asarray(s.table['survey_class'], str), np.asarray(s.table['survey_subclass'], str)
    dwarf, hot = np.char.startswith(sub, 'dM'), np.char.startswith(sub, 'A')
    ordinary = ~dwarf & ~hot & (kind != 'GALAXY')
    order = np.argsort(np.where(np.isnan(t['anomaly']), 2, t['anomaly']))
    print('first ranks:', ', '.join(f'{kind[i]} {sub[i]} {t["anomaly"][i]:.3g}' for i in order[:6]))
    print(f'{int((t["anomaly"][ordinary] < .01).sum())} of {ordinary.sum()} ordinary stars called anomalous')
    assert set(order[:2]) == set(np.flatnonzero(dwarf)) and (t['anomaly'][dwarf] < .01).all()
    assert (t['anomaly'][ordinary] < .01).mean() <= .07
    assert (t['flag'][kind == 'GALAXY'] > 0).all()
