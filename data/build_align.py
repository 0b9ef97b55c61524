"""The aligned model `lrs-xp`: LAMOST LRS and Gaia XP in one space, written to specnb/assets/models/lrs-xp.

    python data/build_align.py [--threads 2] [--out specnb/assets/models/lrs-xp]

1. `small-lrs` learns, without labels, to fill gaps in simulated LAMOST spectra.
2. `small-xp-ae` learns, without labels, to compress real Gaia XP spectra: those of the library's training stars.
3. `clip-split` aligns the two on pairs of the training stars: the XP spectrum is real, the LRS spectrum is SIMULATED at the star's APOGEE labels.

Weights are stored in half precision. Interrupted, it continues. Needs `pip install "specnb[xp]"`."""
import argparse, copy, time
from pathlib import Path
import numpy as np, torch
from safetensors.torch import load_file, save_file
from specnb.apps.align import card_text, pair_recall
from specnb.learn.align import align
from specnb.learn.library import xp_apogee
from specnb.learn.pairs import LRS_XP, xp_lrs
from specnb.learn.pretrain import pretrain
from specnb.models.align import Aligned, aligned
from specnb.models.encoder import encoder
from specnb.physics.survey import Vary, simulate

N_LRS, N_VALID, EPOCHS = 60_000, 4_000, dict(lrs=12, xp=40, align=25)


def learned(name, make, folder, say=print):
    "An encoder from its folder, made and put there if it is not, and the seconds it took"
    net, path = encoder(name), folder/f'{name}.weights'
    if not path.exists():
        start, (spectra, train, valid) = time.monotonic(), make()
        history = pretrain(net, spectra, train, valid, EPOCHS[name.split('-')[1]], lr=2e-3, bs=128, checkpoint=folder/f'{name}.run.safetensors', progress=False)
        say(name, f'{net.n_parameters:,} parameters, {len(train):,} spectra, {time.monotonic() - start:.0f} s', history[::3], sep='\n')
        save_file(net.state_dict(), path)
    net.load_state_dict(load_file(path))
    return net.eval()


def lrs_spectra():
    s = simulate('lamost', N_LRS + N_VALID, seed=5000, flat=.1, vary=Vary(lines=.1, resolution=.1)).normalise(width=50.)
    return s, np.arange(N_LRS), np.arange(N_LRS, len(s))


def xp_spectra():
    s = xp_apogee()
    return s, *(np.flatnonzero(s.table['split'] == k) for k in ('train', 'valid'))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--threads', type=int, default=2)
    p.add_argument('--out', type=Path, default=Path('specnb/assets/models/lrs-xp'))
    p.add_argument('--work', type=Path, default=Path('build/lrs-xp'), help='state of an unfinished run')
    p.add_argument('--only', choices=['lrs', 'xp'], help='pre-train one encoder and stop')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    a.work.mkdir(parents=True, exist_ok=True)
    makers = dict(lrs=('small-lrs', lrs_spectra), xp=('small-xp-ae', xp_spectra))
    encoders = {k: learned(*makers[k], a.work) for k in ([a.only] if a.only else makers)}
    if a.only: return
    pairs, start = xp_lrs(), time.monotonic()
    part = pairs.split
    model = aligned('clip-split', encoders)
    history = align(model, pairs, np.flatnonzero(part == 'train'), np.flatnonzero(part == 'valid'), EPOCHS['align'], checkpoint=a.work/'align.safetensors', progress=False)
    print(f'aligned on {(part == "train").sum():,} pairs in {time.monotonic() - start:.0f} s', history[::5], sep='\n')
    small = copy.deepcopy(model).half().float()
    test, rows = pairs[np.flatnonzero(part == 'test')], lambda t: [{k: v.item() if hasattr(v, 'item') else v for k, v in zip(t.colnames, r)} for r in t]
    small.set_card(trained_on=LRS_XP, command='python data/build_align.py', preset='clip-split', simulated=['lrs'],
        encoders=dict(lrs=f'small-lrs, masked, {N_LRS:,} simulated LAMOST spectra', xp=f'small-xp-ae, {int((xp_apogee().table["split"] == "train").sum()):,} real Gaia XP spectra'),
        pairs={k: int((part == k).sum()) for k in ('train', 'valid', 'test')}, recall=rows(pair_recall(small, pairs[np.flatnonzero(part == 'valid')])))
    small.save_pretrained(a.out)
    save_file({k: v.half() for k, v in load_file(a.out/'model.safetensors').items()}, a.out/'model.safetensors')
    again = Aligned.from_pretrained(a.out).eval()
    (a.out/'README.md').write_text(card_text(again), encoding='utf-8')
    for f in a.out.iterdir(): f.chmod(0o644)
    for name, m in (('as trained', model), ('in half precision, read back', again)): print('test stars,', name, pair_recall(m, test), sep='\n')
    print(f'{a.out}: {sum(f.stat().st_size for f in a.out.iterdir())/1e6:.1f} MB')


if __name__ == '__main__': main()
