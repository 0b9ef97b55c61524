"""Few labelled stars of a new survey, spent by LoRA at three places of a network that looks through an aligned encoder.

    python data/lora_places.py [--out data/lora_places.ecsv] [--work build/lora-places] [--model lrs-xp] [--sizes 100,300,1000] [--draws 3] [--steps 200] [--test 1000] [--threads 1]

Everything is simulated but the XP spectra that the encoder was aligned with. The network is trained on 20,000 simulated LAMOST stars, on the LRS side of the aligned model,
which stays as it is. It is adapted to simulated DESI stars with wrong line strengths (those of `specnb_showdown`). LoRA, of the same rank everywhere, goes to the layers that
say the labels (`mlp`), to the head that leads to the shared space (`projection`), or to the blocks of the encoder (`encoder`).

Interrupted, it continues; the folder `--work` holds what is done."""
import argparse, time
from pathlib import Path
import numpy as np, torch
from astropy.table import Table, vstack
from specnb import __version__
from specnb.apps.command import check_folder
from specnb.apps.hub import load_aligned, load_model
from specnb.apps.inputs import train_on_encoder
from specnb.apps.showdown import MISMATCH, simulated_source, simulated_target
from specnb.apps.train import save_trained
from specnb.learn.compare import _drawn, compare
from specnb.learn.transfer import adapt
from specnb.models.adapt import add_lora, trained

PLACES = ('mlp', 'projection', 'encoder')


def network(side, n, work):
    "Trained on simulated LAMOST, through the side"
    if not (work/'source'/'model.safetensors').is_file():
        net, table = train_on_encoder(side, simulated_source(n), epochs=8, folder=work, progress=False, say=print)
        save_trained(net, table, work/'source')
    return load_model(work/'source')


def scored(path, make):
    "A table from its file, made if it is not there"
    if not path.exists():
        start, t = time.monotonic(), make()
        for k in t.colnames: t[k].info.format = None
        t.write(path.with_suffix('.part'), format='ascii.ecsv', overwrite=True)
        path.with_suffix('.part').replace(path)
        print(f'{path.stem}: {time.monotonic() - start:.0f} s', flush=True)
    return Table.read(path, format='ascii.ecsv')


def adapted(net, target, place, n, draw, steps):
    "Scores after LoRA at one place with n stars"
    some = _drawn(target.pool, n, draw)
    made = adapt(net, some, ('lora',), seed=draw, progress=False, place=place, steps=steps)['lora']
    t = compare({place: made}, target.test)
    t['size'], t['draw'], t['numbers'] = n, draw, trained(add_lora(net.copy(), place=place))
    return t


def zero_shot(net, target):
    t = compare({'zero-shot': net}, target.test)
    t['size'], t['draw'], t['numbers'] = 0, 0, 0
    return t


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=Path('data/lora_places.ecsv'))
    p.add_argument('--work', type=Path, default=Path('build/lora-places'))
    p.add_argument('--model', default='lrs-xp', help='aligned model, a name or a folder')
    p.add_argument('--source', type=int, default=20_000, help='stars to train on')
    p.add_argument('--sizes', type=lambda t: [int(k) for k in t.split(',')], default=[100, 300, 1000], help='numbers of labelled stars')
    p.add_argument('--draws', type=int, default=3, help='of each size')
    p.add_argument('--steps', type=int, default=200, help='batches for some 2,000 stars, see specnb.learn.transfer.transfer')
    p.add_argument('--test', type=int, default=1000, help='stars to test on, about')
    p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    check_folder(a.work, dict(model=a.model, source=a.source, steps=a.steps, test=a.test))
    net = network(load_aligned(a.model).sides['lrs'], a.source, a.work)
    target = simulated_target(net, int(a.test/.3))
    parts = [scored(a.work/'zero-shot.ecsv', lambda: zero_shot(net, target))]
    for n in a.sizes:
        for draw in range(a.draws):
            for place in PLACES: parts.append(scored(a.work/f'{place}-{n}-{draw}.ecsv', lambda: adapted(net, target, place, n, draw, a.steps)))
    t = vstack(parts)
    t.rename_column('strategy', 'place')
    t = t[np.isin(t['label'], ('fe_h', 'alpha_fe'))]
    t.meta = dict(made_by=f'python data/lora_places.py --model {a.model} --source {a.source} --sizes {",".join(map(str, a.sizes))} --draws {a.draws} --steps {a.steps} --test {a.test}', version=__version__,
        stars=len(target.test), source=f'simulated: LAMOST, then DESI with line strengths wrong by {MISMATCH:.0%}; the encoder was aligned with real XP spectra')
    t.write(a.out, format='ascii.ecsv', overwrite=True)
    for label in ('fe_h', 'alpha_fe'):
        print(f'\n{label}, all test stars: median sigma and R2 over the draws')
        for g in t[(t['label'] == label) & (t['subset'] == 'full')].group_by(['size', 'place']).groups:
            print(f'{g["size"][0]:5} {g["place"][0]:10} {g["numbers"][0]:7,} {np.median(g["sigma"]):.4f} {np.median(g["r2"]):.3f}')


if __name__ == '__main__': main()
