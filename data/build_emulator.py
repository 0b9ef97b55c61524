"""Build the emulator that ships with specnb from the grid of synthetic spectra beside this file.

    python data/build_emulator.py [--out specnb/assets/emulator.safetensors]

Takes about ten seconds; the same grid gives the same emulator. A tenth of the nodes is held out and measured (table printed)."""
import argparse
from pathlib import Path
from specnb.physics.emulator import Emulator, accuracy, read_lte_grid
from specnb.spectra.grid import LRS_GRID, LSF

here = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--grid', type=Path, default=here/'lte_grid.npz', help='synthetic spectra, as lte_grid_recipe/make_grid.py packs them')
parser.add_argument('--out', type=Path, default=here.parent/'specnb/assets/emulator.safetensors')
args = parser.parse_args()

labels, norm, cont, grid, lsf, held_out = read_lte_grid(args.grid)
em = Emulator.fit(labels[~held_out], norm[~held_out], cont[~held_out], grid, lsf)
args.out.parent.mkdir(parents=True, exist_ok=True)
em.save(args.out)
args.out.chmod(0o644)
print(f'{em}\n{args.out}: {args.out.stat().st_size/1e6:.1f} MB\nerror on {held_out.sum()} held-out nodes at R = 1800:')
accuracy(Emulator.load(args.out).on(LRS_GRID, LSF.R(1800)), labels[held_out], norm[held_out], grid, lsf).pprint(max_lines=-1)
