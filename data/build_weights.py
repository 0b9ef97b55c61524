"""Train the networks that ship with specnb.

    python data/build_weights.py --miles PATH/miles.npz [--out specnb/assets/models] [--work build/weights] [--posteriors]

Two networks, the same architecture and inputs:

lrs-sim   trained on simulated LAMOST spectra only. Every star has line strengths and a resolution of its own (domain randomisation).
lrs       lrs-sim, then adapted on real stars: the stars of `miles.npz` correct the emulator, and a mixture of newly simulated and the real
          stars trains on. How well that works is measured by cross-validation over the MILES stars; the shipped network uses all of them.

`miles.npz` holds 472 stars of MILES (Sanchez-Blazquez et al. 2006; labels of Cenarro et al. 2007), also distributed with the package sdss-mangadap.
Each gets a posterior, in the folder `posterior` beside its weights: a flow fitted to simulated stars, and for lrs stretched until it covers the MILES stars
that the networks of the cross-validation had not seen. `--posteriors` makes those alone, for networks that are there already.

Takes about 25 minutes on 2 cores, the posteriors 3 of them. Interrupted, it continues."""
import argparse, copy
from pathlib import Path
import numpy as np, torch
from astropy.table import Table, vstack
from scipy.optimize import minimize
from specnb import __version__
from specnb.spectra.grid import Grid, LRS_GRID, LSF, air_to_vacuum
from specnb.spectra.container import Spectra
from specnb.physics.correct import typical_alpha
from specnb.physics.emulator import LABELS, Emulator
from specnb.physics.survey import Vary, simulate
from specnb.models.mlp import MLP
import specnb.models.expect
from specnb.learn.data import Augment, split_by_id
from specnb.learn.metrics import score
from specnb.learn.train import fit
from specnb.learn.posterior import Posterior, _bend, network_hash
from specnb.learn.calibration import _knots, calibration, simulated_posterior

SHARE = .97             # of MILES stars that pass the test of looking like a star trained on
CHECK = simulate('lamost', 500, seed=3)
WINDOW = [4300, 5600]   # A; bluewards the synthetic spectra are least like real ones
SIM = dict(flat=.3, vary=Vary(lines=.25, lines_width=8., resolution=.15))
CORRECTED = dict(flat=.3, vary=Vary(lines=.12, lines_width=8., resolution=.15))
REAL = Augment(noise=.8, rv=8, ripple=.01, dead=.2, lines=.1, lines_width=8)

def read_miles(path):
    "The MILES stars on the networks' grid: at rest, 2.5 A FWHM or the resolution of LAMOST, whichever is broader."
    z = np.load(path)
    grid = Grid.from_wavelength(air_to_vacuum(z['wave_air']))
    flux = z['flux']/np.median(z['flux'], axis=1, keepdims=True)
    t = Table(dict(target_id=[f'miles-{i}' for i in z['id']], teff=z['labels'][:, 0], logg=z['labels'][:, 1], fe_h=z['labels'][:, 2]))
    s = Spectra(flux, np.where(flux > 0, 1e4, 0), grid, t, survey='miles', lsf=LSF.fwhm(2.5), rest=True)        # S/N about 100
    return s.to(LRS_GRID, s.lsf.broader(LSF.R(1800), grid))

def labelled(s):
    "The stars as they are trained on: beyond the synthetic spectra only a (clipped) temperature, enough to be recognised as foreign."
    t = s.table.copy()
    foreign = ~in_range(s)
    t['teff'] = np.clip(t['teff'], 3800, 9000)
    for k in ('logg', 'fe_h'): t[k] = np.where(foreign, np.nan, t[k])
    return s._with(table=t)

def in_range(s): return np.array((s.table['teff'] > 4300) & (s.table['teff'] < 6800))

def pretrain(work, n, epochs):
    "The network that saw simulations only."
    s = simulate('lamost', n, seed=11, **SIM)
    part = split_by_id(s.table['target_id'], valid=.05, test=.05)
    y = np.stack([s.table[k] for k in LABELS], 1)[part == 'train']
    model = MLP(labels=list(LABELS), window=WINDOW, mean=y.mean(0).tolist(), std=y.std(0).tolist(), low=[4300, 0, -2.5, -.15], high=[6750, 5, .5, .5])
    fit(model, s, np.flatnonzero(part == 'train'), np.flatnonzero(part == 'valid'), epochs, lr=2e-3, augment=Augment(), checkpoint=work/'lrs-sim.safetensors', seed=1)
    model.learn_expected(s[np.flatnonzero(part == 'train')[:20000]])
    return model

def adapt(start, miles, stars, work, name, n, epochs, repeat):
    "A copy of `start` adapted on these real stars (indices into `miles`)."
    real = miles[stars]
    em = Emulator.load().corrected(real[in_range(real)])
    real = labelled(real)
    s = simulate('lamost', n, seed=12, emulator=em, **CORRECTED).normalise()
    rng, r = np.random.default_rng(13), real.normalise()
    i = np.tile(np.arange(len(r)), repeat)
    snr = np.clip(50*10**(.3*rng.normal(size=len(i))), 8, 150)[:, None]
    flux = r.flux[i] + rng.normal(size=(len(i), r.grid.n))/snr
    both = Spectra(np.concatenate([s.flux, flux]), np.concatenate([s.ivar, r.good[i]*snr**2]), LRS_GRID,
                   vstack([s.table[['target_id', *LABELS]], real.table[i][['target_id', *LABELS[:3]]]]), 'lamost and miles', s.lsf, True, s.normalised)
    model = start.copy(card={})
    valid = split_by_id(s.table['target_id'], valid=.05, test=0) == 'valid'
    train = np.concatenate([np.flatnonzero(~valid), len(s) + np.arange(len(i))])
    fit(model, both, train, np.flatnonzero(valid), epochs, lr=8e-4, augment=REAL, checkpoint=work/f'{name}.safetensors', seed=2)
    model.learn_expected(s[:20000])
    return model

def scores(pred, err, s, which):
    "Scores of dwarfs, giants and all."
    truth, out = np.stack([np.asarray(s.table[k], float) for k in LABELS[:3]], 1), []
    for name, k in (('dwarfs', truth[:, 1] >= 3.5), ('giants', truth[:, 1] < 3.5), ('all', np.ones(len(s), bool))):
        t = score(pred[k, :3], truth[k], LABELS[:3], err=err[k, :3])
        t = t[t['subset'] == 'full']
        t['stars'], t['what'] = name, which
        out.append(t)
    return vstack(out)

HEAD = """| stars | label | n | sigma | bias | R2 | within 1 error | within 2 |
|---|---|---|---|---|---|---|---|
"""

CARD = """# {name}

{what}

| | |
|---|---|
| input | flux over its running mean (Gaussian, 50 A), {window} A vacuum, at rest, on {grid} |
| resolution | {lsf} or coarser than that by at most a fifth |
| output | {labels}, each with a standard deviation |
| network | multilayer perceptron of Zhao, Ting, Wyse et al. (2026, arXiv 2602.15021), {n:,} parameters, half precision |
| trained on | {trained_on} |
| made by | `{made_by}`, specnb {version} |

## How good
{measured}

{scores}
{few}
sigma is the biweight scale of predicted minus catalogue (K for teff, dex for the others) and includes the errors of the catalogue. [alpha/Fe] has been tested on simulations only.{widened}
These figures are not blind: the settings of the simulations (wavelength window, random line strengths, what is masked) were chosen among prototypes scored on these MILES
stars and on LAMOST stars, and the limit beyond which a star is flagged as unlike any is the {share:.0%} quantile of the MILES stars themselves.
{posterior}
## Where not to use
Outside 4300 to 6750 K; on stars with emission lines, fast rotators and binaries; on spectra that are not at rest. `specnb_predict` flags what does not look like a star
trained on{flagged}. The physics behind the simulations is LTE, without TiO and rotation.
"""

JOINT = """
## Joint posterior
`posterior/` holds a normalising flow ({kb:.0f} KB): `specnb_predict --posterior N`, or `Posterior.load`. {how} Share of {tested} within the central 68.3 and 95.4 % of it:

| stars | label | n | 68.3 % | 95.4 % |
|---|---|---|---|---|
{rows}
"""

def joint_text(folder):
    "The part of a model card that is about the posterior."
    if not (folder/'posterior').is_dir(): return ''
    c = Posterior.load(folder).card
    rows = '\n'.join('| {stars} | {label} | {n} | {cover68:.3f} | {cover95:.3f} |'.format(**{'stars': 'all', **r}) for r in c['calibration'])
    return JOINT.format(kb=(folder/'posterior/model.safetensors').stat().st_size/1e3, rows=rows, how=c['how'], tested=c['tested'])

WIDENED = """ The errors were multiplied by a factor that depends on the predicted log g until one error
held 68 % of the MILES stars that the networks of the cross-validation had not seen; in the columns 'within', each fifth of the stars is tested with factors found on the
other four. Held within one error: {:.0f} to {:.0f} %, within two: {:.0f} to {:.0f} % (a Gaussian: 68 and 95). The tails are heavier than a Gaussian's: where they matter use the posterior."""

def card_text(name, m, posterior=''):
    "The model card."
    c = m.card
    table = lambda rows: '\n'.join('| {stars} | {label} | {n} | {sigma:.3g} | {bias:+.3g} | {r2:.3f} | {cover1:.2f} | {cover2:.2f} |'.format(**r) for r in rows)
    few = '' if not c.get('few') else f'\nThe same recipe with few stars ({c["few"][0]["what"]}; not the network shipped):\n\n{HEAD}{table(c["few"])}\n'
    f = c.get('flagged_in_cross_validation')
    flagged = '' if not f else '; of MILES stars not trained on it flagged ' + ', '.join(f'{v} ({k})' for k, v in f.items())
    widened = '' if 'error_growth' not in c else WIDENED.format(*[100*f([r[k] for r in c['scores'] if r['stars'] == 'all']) for k in ('cover1', 'cover2') for f in (min, max)])
    return CARD.format(posterior=posterior, widened=widened, share=SHARE, name=name, window=f'{m.window[0]:.0f} to {m.window[1]:.0f}', grid=m.grid.id, lsf=m.lsf, labels=', '.join(m.labels), n=m.n_parameters, scores=HEAD + table(c['scores']), few=few, flagged=flagged, **{k: c[k] for k in ('what', 'trained_on', 'made_by', 'version', 'measured')})

def ship(model, out, **card):
    "Half precision, checked to change nothing, written with its card."
    model.set_card(version=__version__, made_by='python data/build_weights.py', **card)
    copy.deepcopy(model).half().save_pretrained(out)
    again = MLP.from_pretrained(out)
    (out/'README.md').write_text(card_text(out.name, again))
    for f in out.iterdir():
        if f.is_file(): f.chmod(0o644)
    change = np.abs(again.predict(CHECK)[0] - model.predict(CHECK)[0]).max(0)
    print(f'{out}: {sum(f.stat().st_size for f in out.iterdir() if f.is_file())/1e6:.1f} MB; half precision changes labels by at most', change)

def growth(r, g):
    "(a, b) of the factor exp(a + b g) that makes errors hold 68 % of residuals r (in errors): b by likelihood, with the tails of a Student t, a by quantile."
    nll = lambda p: (p[0] + p[1]*g + 2.5*np.log1p((r*np.exp(-p[0] - p[1]*g))**2/4)).sum() + p[1]**2
    b = minimize(nll, [0, 0]).x[1]
    return np.log(np.quantile(np.abs(r)*np.exp(-b*g), .6827)), b

def growths(r, g): return np.array([*(growth(x, g) for x in r.T), (0, 0)])         # nothing is known about errors in [alpha/Fe] of real stars

def grown(p, g): return np.exp(p[:, 0] + g[:, None]*p[:, 1])

def gravity(model, y): return (y[:, 1] - model.mean[1].item())/model.std[1].item()

def widen(model, p):
    "Multiply the errors by exp(a + b g), g the scaled log g the network predicts: the last layer can do that."
    k, (w, c) = len(model.labels), (model.head.weight, model.head.bias)
    with torch.no_grad():
        for j, (a, b) in enumerate(p):
            w[k + j] += 2*b*w[1]
            c[k + j] += 2*(a + b*c[1])

def carried(post, model, p):
    "The posterior of a network for the same network with wider errors: the flow is told what it was told before, and what it says is widened."
    new = Posterior(**{**{k: v for k, v in post._hub_mixin_config.items() if k != 'card'}, 'network': network_hash(model)})
    state, n, k = {i: v.clone() for i, v in post.state_dict().items()}, len(post.shift), len(model.labels)
    for j, (a, b) in enumerate(p):
        g, e = n - 2*k + 1, n - k + j                                            # where log g and the log variance of label j are
        state['embed.0.weight'][:, g] -= state['embed.0.weight'][:, e]*2*b*state['spread'][g]/state['spread'][e]
        state['shift'][e] += 2*(a + b*state['shift'][g])
    new.load_state_dict(state)
    new.set_card(**post.card)
    return new.eval().of(model)

def deviations(post, s, n=400):
    "Of real stars: samples (n, n_star, 3) and truth (n_star, 3) about the middle of the posterior and the middle itself, in errors quoted."
    c, y, w = post._of_stars(s)
    with torch.inference_mode(): D, middle = post._draw(c, torch.randn(n, len(s), len(post.labels), generator=torch.Generator().manual_seed(0)))
    truth = np.stack([np.asarray(s.table[k], float) for k in LABELS[:3]], 1)
    return D[..., :3].numpy(), ((truth - y[:, :3].numpy())/w[:, :3].numpy()), middle[:, :3].numpy()

def knots(D, d): return np.stack([np.stack(_knots('quantile', D[..., j].T, d[:, j], None)) for j in range(3)], 1).astype(np.float32)

def sim_posterior(model, emulator=None, n=12_000, vary=SIM['vary']):
    post = simulated_posterior(model, n=n, vary=vary, emulator=emulator, progress=False)
    post.set_card(made_by='python data/build_weights.py', version=__version__, tested=f'{post.card["calibration"][0]["n"]} other simulated stars', how=f'Fitted to {post.card["stars"]["train"] + post.card["stars"]["valid"]} simulated stars.')
    return post

def corrected(miles): return Emulator.load().corrected(miles[in_range(miles)])

def real_posterior(adapted, model, nets, miles, fold, r, g, p):
    "The posterior of the network adapted on all MILES stars; each fold's is tested on the stars left out, widened and stretched as the stars of the other folds ask for."
    s, each = miles[in_range(miles)], fold[in_range(miles)]
    D, d, mid = np.empty((400, len(s), 3), np.float32), np.empty((len(s), 3)), np.empty((len(s), 3))
    for k, net in enumerate(nets):
        post = sim_posterior(net, corrected(miles[np.flatnonzero(fold != k)]), vary=CORRECTED['vary'])
        D[:, each == k], d[each == k], mid[each == k] = deviations(post, s[np.flatnonzero(each == k)])
    off = lambda p: d/grown(p, g)[:, :3] - mid
    bent, truth = np.empty_like(D), np.empty_like(d)
    for k in range(len(nets)):
        fit, test = each != k, each == k
        o = off(growths(r[fit], g[fit]))
        bent[:, test], truth[test] = _bend(torch.tensor(D[:, test]), *torch.tensor(knots(D[:, fit], o[fit])))[0].numpy(), o[test]
    rows, dwarf = [], np.asarray(s.table['logg']) >= 3.5
    for name, which in (('dwarfs', dwarf), ('giants', ~dwarf), ('all', dwarf | True)):
        t = calibration(bent[:, which].transpose(1, 0, 2), truth[which], LABELS[:3])
        rows += [dict(stars=name, **{c: v.item() for c, v in zip(t.colnames, row)}) for row in t]
    post = carried(sim_posterior(adapted, corrected(miles), vary=CORRECTED['vary']), model, p)
    post.knots[:, :3] = torch.tensor(knots(D, off(p)))
    post.set_card(made_by='python data/build_weights.py', version=__version__, simulated=True, survey='lamost', recalibrated='quantile', calibration=rows,
                  how=f'Fitted to {post.card["stars"]["train"] + post.card["stars"]["valid"]} simulated stars with corrected physics, widened as the errors were, then stretched (five quantiles a label) until it covered {len(s)} MILES stars, each seen by a network that was adapted without it. [alpha/Fe] is as in the simulations: nothing real has tested it. The form of the widening and of the stretching was chosen among a few that were compared on these same stars, so the table is not blind.',
                  tested='MILES stars of one fifth, widened and stretched as the other four ask for (for the posterior as shipped, which knows all five, coverage of these stars is by construction)')
    return post

def ship_posterior(post, folder):
    "Written beside its network, and both cards."
    path = post.save(folder)
    (path/'README.md').write_text(f'# Posterior of {folder.name}\n\n{joint_text(folder).partition("## Joint posterior")[2].strip()}\n')
    (folder/'README.md').write_text(card_text(folder.name, MLP.from_pretrained(folder), joint_text(folder)))
    for f in path.iterdir(): f.chmod(0o644)
    print((path/'README.md').read_text())

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--miles', type=Path, required=True)
parser.add_argument('--out', type=Path, default=Path(__file__).parent.parent/'specnb/assets/models')
parser.add_argument('--work', type=Path, default=Path('build/weights'), help='checkpoints and reports')
parser.add_argument('--stars', type=int, default=90_000)
parser.add_argument('--epochs', type=int, default=14)
parser.add_argument('--adapt-stars', type=int, default=30_000)
parser.add_argument('--adapt-epochs', type=int, default=6)
parser.add_argument('--folds', type=int, default=5)
parser.add_argument('--posteriors', action='store_true', help='of networks that are there, nothing else')
parser.add_argument('--repeat', type=int, default=15, help='copies of each real star in the mixture, each with noise of its own')

def main():
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    miles = read_miles(a.miles)
    fgk = miles[in_range(miles)]
    done = a.work/'pretrained'
    if not done.exists(): pretrain(a.work, a.stars, a.epochs).save_pretrained(done)
    sim = MLP.from_pretrained(done)
    known = in_range(miles)
    report = [scores(*sim.predict(fgk), fgk, 'MILES, zero-shot')]
    report[-1].pprint(max_lines=-1, max_width=-1)

    fold = np.random.default_rng(5).permutation(len(miles)) % a.folds
    nets, pred, err, excess = [], np.full((len(miles), 4), np.nan), np.full((len(miles), 4), np.nan), np.full(len(miles), np.nan)
    for k in range(a.folds):
        folder = a.work/f'fold{k}'
        if not folder.exists(): adapt(sim, miles, np.flatnonzero(fold != k), a.work, f'run{k}', a.adapt_stars, a.adapt_epochs, a.repeat).save_pretrained(folder)
        model, test = MLP.from_pretrained(folder), np.flatnonzero(fold == k)
        pred[test], err[test] = model.predict(miles[test])
        nets.append(model.eval())
        excess[test] = model.excess(miles[test])
    limit = float(np.quantile(excess[known], SHARE))
    flagged = (excess > limit) | ((pred < model.low.numpy()) | (pred > model.high.numpy())).any(1)
    teff = np.asarray(miles.table['teff'])
    foreign = {name: f'{int(flagged[k].sum())} of {int(k.sum())}' for name, k in (('4300 to 6800 K', known), ('below 4000 K', teff < 4000), ('4000 to 4300 K', (teff >= 4000) & (teff <= 4300)),
               ('6800 to 7500 K', (teff >= 6800) & (teff < 7500)), ('7500 to 10000 K', (teff >= 7500) & (teff < 10000)), ('above 10000 K', teff >= 10000))}
    print(f'flagged in cross-validation (limit {limit:.3f}):', foreign)
    r, g = np.stack([(pred[:, j] - miles.table[k])/err[:, j] for j, k in enumerate(LABELS[:3])], 1), gravity(model, pred)
    wider = growths(r[known], g[known])                     # errors as large as the cross-validation on real stars shows them to be
    for k in range(a.folds): err[fold == k] *= grown(growths(r[known & (fold != k)], g[known & (fold != k)]), g[fold == k])
    report.append(scores(pred[known], err[known], fgk, f'MILES, adapted, {a.folds}-fold cross-validation'))
    report[-1].pprint(max_lines=-1, max_width=-1)

    adapted, source = a.work/'adapted', MLP.from_pretrained
    if not a.posteriors: ship_networks(a, sim, miles, known, report, limit, foreign, wider, r, g)
    model = source(a.out/'lrs').eval()
    change = np.abs(np.log(model.predict(fgk)[1]/(source(adapted).predict(fgk)[1]*grown(wider, gravity(model, model.predict(fgk)[0]))))).max()
    if change > .02: raise SystemExit(f'{a.out/"lrs"} is not the network of {adapted} with wider errors: leave out --posteriors')
    ship_posterior(sim_posterior(source(a.out/'lrs-sim').eval(), n=24_000), a.out/'lrs-sim')
    ship_posterior(real_posterior(source(adapted).eval(), model, nets, miles, fold, r[known], g[known], wider), a.out/'lrs')

def ship_networks(a, sim, miles, known, report, limit, foreign, wider, r, g):
    "The last trainings, on few and on all stars, and the two networks with their cards."
    fgk = miles[known]
    order = np.random.default_rng(6).permutation(np.flatnonzero(known))
    few, rest = order[:200], order[200:]                    # the question a user has: two hundred labelled stars, what about the others?
    folder = a.work/'few'
    if not folder.exists(): adapt(sim, miles, few, a.work, 'run-few', a.adapt_stars, a.adapt_epochs, a.repeat).save_pretrained(folder)
    model = MLP.from_pretrained(folder)
    y, e = model.predict(miles[rest])
    report.append(scores(y, e*grown(growths(r[few], g[few]), gravity(model, y)), miles[rest], f'MILES, adapted on {len(few)} stars, tested on the {len(rest)} others'))
    report[-1].pprint(max_lines=-1, max_width=-1)

    folder = a.work/'adapted'
    if not folder.exists(): adapt(sim, miles, np.arange(len(miles)), a.work, 'run', a.adapt_stars, a.adapt_epochs, a.repeat).save_pretrained(folder)
    model = MLP.from_pretrained(folder)
    widen(model, wider)
    model.expect_limit.fill_(limit)
    sim.set_limit(fgk, SHARE)
    t = vstack(report)
    t.write(a.work/'scores.ecsv', overwrite=True)
    rows = [dict(zip(t.colnames, [v.item() if hasattr(v, 'item') else v for v in r])) for r in t]
    ship(sim, a.out/'lrs-sim', what='Knows simulations only: to be carried to other surveys, and to show what simulation alone is worth on real stars.', measured='On real stars of MILES, zero-shot:', trained_on=f'{a.stars} simulated LAMOST stars', scores=[r for r in rows if 'zero-shot' in r['what']])
    ship(model, a.out/'lrs', what='The network to use on real spectra of LAMOST, DESI, SDSS and the like.', measured='On real stars of MILES, by cross-validation:', trained_on=f'lrs-sim, then {a.adapt_stars} simulated stars with corrected physics and {len(miles)} stars of MILES, {len(fgk)} of them with all labels', flagged_in_cross_validation=foreign, error_growth=wider.round(3).tolist(), scores=[r for r in rows if 'cross-validation' in r['what']], few=[r for r in rows if 'adapted on' in r['what']])

if __name__ == '__main__': main()
