"""The detectors of anomalies that ship beside the aligned model: specnb/assets/models/lrs-xp/anomaly-lrs.* and anomaly-xp.*.

    python data/build_anomaly.py --miles PATH/miles.npz [--model specnb/assets/models/lrs-xp]

lrs   The density is that of simulated LAMOST spectra without cosmic rays. How far ordinary *real* stars are from what the model makes of them is learned from the MILES stars
      between 4300 and 6800 K, each twelve times with noise and
      three errors of velocity. MILES as used here begins at 4300 A; below, a spectrum simulated at the star's catalogue labels with randomly wrong lines is joined on, and the model's
      error there is taken to be at least the upper quartile of that elsewhere. It does not compare with Gaia XP: that would be learned from pairs, and no pairs of which both are real are at hand.
xp    Everything from the real spectra of the library: density of its training stars, calibration on its validation stars. Needs `pip install "specnb[xp]"`.

Takes some minutes. Without --miles the detector of LRS spectra is calibrated on simulations and will call most real stars odd."""
import argparse
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from specnb.learn.library import in_study, xp_apogee
from specnb.models.align import Aligned
from specnb.physics.correct import typical_alpha
from specnb.physics.emulator import LABELS, Emulator
from specnb.physics.survey import SURVEYS, Vary, simulate
from specnb.science.anomaly import learn_anomalies, noisier
from specnb.science.inject import KINDS, found, least
from specnb.spectra.container import Spectra
from specnb.spectra.grid import resample

CLEAN = replace(SURVEYS['lamost'], cosmic=0., bad=0.)        # cosmic rays and dead stretches are no part of an ordinary star
JOIN = 4320.                                                 # A
WRONG = Vary(lines=.25, lines_width=8., resolution=.15)      # how far the physics is from real stars, as build_weights.py has it
RV_ERR = 8.                                                  # km/s, likewise


def with_blue(miles, seed=4):
    "MILES stars with a simulated blue end, as strong as the real spectrum is beyond it, and an error of velocity; stars whose labels the physics does not reach are left out."
    y = np.stack([np.asarray(miles.table[k], float) for k in LABELS[:3]], 1)
    y = np.column_stack([y, typical_alpha(y[:, 2])])
    ok = Emulator.load().supported(y)
    miles, y = miles[ok], y[ok]
    sim = simulate(replace(CLEAN, ripple=0., rv_err=0.), len(y), seed=seed, labels=y, snr=100, vary=WRONG).flux
    w = miles.wavelength
    near, blue = (w > JOIN) & (w < JOIN + 100), w < JOIN
    scale = np.median(miles.flux[:, near], axis=1, keepdims=True)/np.median(sim[:, near], axis=1, keepdims=True)
    flux, ivar = np.where(blue, sim*scale, miles.flux), np.where(blue, np.median(miles.ivar, axis=1, keepdims=True), miles.ivar)
    return miles._with(*resample(flux, ivar, miles.grid, miles.grid, np.random.default_rng(seed).normal(0, RV_ERR, len(y))))


def lrs(model, a, miles=None):
    "The detector for LAMOST LRS."
    real = None
    if a.miles and miles is None:
        from build_weights import in_range, read_miles
        miles = read_miles(a.miles)
        miles = miles[in_range(miles)]
    if miles is not None: real = Spectra.concatenate([with_blue(miles, seed) for seed in range(3)])
    stars = simulate(CLEAN, a.stars + 1500, seed=6000, flat=.1, vary=Vary(lines=.1, resolution=.1))
    return learn_anomalies(model, stars, np.arange(a.stars), np.arange(a.stars, len(stars)), real=real, copies=4, made_up=(0, JOIN + 10))


def report(model, a):
    "Rates and strengths on stars not seen: simulated ones, and a third of the MILES stars, by a detector calibrated on the others."
    from build_weights import in_range, read_miles
    miles = read_miles(a.miles)
    miles = miles[in_range(miles)]
    seen = np.random.default_rng(0).permutation(len(miles)) % 3 > 0
    d, held = lrs(model, a, miles[seen]), with_blue(miles[~seen], 9)
    flagged, rows = ['| stars | S/N | n | called anomalous | p < 0.1 |', '|---|---|---|---|---|'], [f"| stars | S/N | {' | '.join(KINDS)} |", '|---|---' + '|---'*len(KINDS) + '|']
    for snr in (15, 40, 80):
        sims = simulate(CLEAN, 300, seed=70 + snr, snr=snr, vary=Vary(lines=.1, resolution=.1))
        for name, stars in (('simulated', sims), ('MILES', noisier(held, np.full(len(held), snr), snr))):
            t = d.score(stars)
            flagged.append(f"| {name} | {snr} | {len(t)} | {t['anomalous'].mean():.1%} | {(t['p'] < .1).mean():.1%} |")
            rows.append(f'| {name} | {snr} | ' + ' | '.join('never' if np.isnan(v) else f'{v:.2g}' for v in least(found(d, stars)).values()) + ' |')
    return '\n'.join([f'# Anomalies in LAMOST spectra: how good the detector is\n\nMade by `python data/build_anomaly.py`. The figures are of a detector calibrated like the one shipped, but on two thirds of the MILES stars only; those here are the others, with a simulated blue end.'
                      ' They are not quite blind: that the blue ends get randomly wrong lines was decided after LAMOST stars were looked at.\n\n## False alarms, 1 % wanted\n', *flagged,
                      f'\n## Strength from which on the ROC AUC is 0.95\n\n' + '; '.join(f'{k}: {v}' for k, v in KINDS.items()) + '.\n', *rows, ''])


def xp(model, a):
    "The detector for Gaia XP."
    s = xp_apogee()
    s = s[in_study(s.table)]
    part = np.asarray(s.table['split'])
    return learn_anomalies(model, s, np.flatnonzero(part == 'train'), np.flatnonzero(part == 'valid'))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--miles', type=Path)
    p.add_argument('--model', type=Path, default=Path('specnb/assets/models/lrs-xp'))
    p.add_argument('--out', type=Path, help='default: beside the model')
    p.add_argument('--only', choices=['lrs', 'xp'])
    p.add_argument('--stars', type=int, default=6000, help='simulated stars for the density')
    a = p.parse_args()
    torch.set_num_threads(2)
    model, out = Aligned.from_pretrained(a.model).eval(), a.out or a.model
    for side in [a.only] if a.only else ['lrs', 'xp']:
        d = (lrs if side == 'lrs' else xp)(model, a)
        d.save(out)
        for f in out.glob('anomaly-*'): f.chmod(0o644)
        print(d)
    if a.miles and a.only != 'xp':
        (out/'anomaly.md').write_text(report(model, a))
        print((out/'anomaly.md').read_text())


if __name__ == '__main__': main()
