"""The 324 stars of MILES between 4300 and 6800 K as a store, for `specnb_showdown --target`.

    python data/miles_store.py --miles PATH/miles.npz --out miles.parquet"""
import argparse
from pathlib import Path
from build_weights import in_range, read_miles
from specnb.spectra.store import write_store

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument('--miles', type=Path, required=True)
p.add_argument('--out', type=Path, required=True)
a = p.parse_args()
miles = read_miles(a.miles)
miles = miles[in_range(miles)]
write_store(miles, a.out)
print(miles)
