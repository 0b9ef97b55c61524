"""Build the package, install its wheel outside the project with the newest libraries it allows, and label spectra there.

The other checks run on the versions of constraints.txt; this one meets what a plain `pip install specnb` gets today. Only torch is held back, since
a newer one may be a download of gigabytes. `python tools/check_wheel.py [--keep DIR]`"""
import argparse, csv, math, os, subprocess, sys, tempfile, venv
from pathlib import Path
from tree import ROOT, copy

N, LABELS = 20, ('teff', 'logg', 'fe_h', 'alpha_fe')
LOOK = """import sys, specnb, specnb.spectra
from importlib.metadata import version
print('specnb', specnb.__version__, 'with', ', '.join(f'{o} {version(o)}' for o in ('fastai', 'fastcore', 'torch', 'numpy', 'astropy', 'pyarrow')))
assert 'torch' not in sys.modules, 'importing specnb.spectra imported torch'
print(specnb.__file__)
"""


def sh(
    *cmd,  # program and arguments
    cwd: Path,  # where
    **kw,
) -> str:  # standard output
    "Run a command away from the project: none of this environment's Python settings reach it"
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON') and k not in ('VIRTUAL_ENV', 'SPECNB_SHARED_DATA')}
    print('$', Path(cmd[0]).name, *(str(o).strip().partition('\n')[0] for o in cmd[1:]), flush=True)
    run = subprocess.run([str(o) for o in cmd], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, **kw)
    if run.returncode: sys.exit(f'{run.stdout}\nexit status {run.returncode}')
    return run.stdout


def build(
    out: Path,  # folder
) -> Path:  # the wheel
    "The source archive from a copy of the tree, and the wheel from the archive: what is missing from either shows"
    with copy() as tree: sh(sys.executable, '-m', 'build', '--outdir', out, tree, cwd=out)
    return next(out.glob('*.whl'))


def install(
    wheel: Path,  # what to install
    where: Path,  # the new environment
) -> Path:  # its folder of programs
    "A second environment with the newest of everything but torch"
    held = where.with_suffix('.txt')
    held.write_text('\n'.join(o for o in (ROOT/'constraints.txt').read_text().splitlines() if o.startswith('torch==')) + '\n')
    venv.create(where, with_pip=True, symlinks=True)
    python = where/'bin'/'python'
    sh(python, '-m', 'pip', 'install', '-qq', '--constraint', held, wheel, cwd=where)
    return python.parent


def check_table(
    path: Path,  # labels.csv
):
    "One row a spectrum, every label finite"
    with path.open() as f: rows = list(csv.DictReader(o for o in f if not o.startswith('#')))
    if len(rows) != N: sys.exit(f'{path.name}: {len(rows)} rows, not {N}')
    for k in LABELS:
        bad = [o[k] for o in rows if not math.isfinite(float(o[k] or 'nan'))]
        if bad: sys.exit(f'{path.name}: {len(bad)} of {N} values of {k} are not finite')
    teff = [float(o['teff']) for o in rows]
    print(f'{len(rows)} stars labelled, Teff {min(teff):.0f} to {max(teff):.0f} K')


def main(
    tmp: Path,  # a folder outside the project
):
    "Build, install, import, simulate, label"
    (tmp/'dist').mkdir(), (tmp/'work').mkdir()
    bin = install(build(tmp/'dist'), tmp/'venv')
    looked = sh(bin/'python', '-c', LOOK, cwd=tmp/'work').split('\n')
    print('\n'.join(looked[:-2]))
    if not Path(looked[-2]).resolve().is_relative_to((tmp/'venv').resolve()): sys.exit(f'imported from {looked[-2]}, not from the wheel')
    sh(bin/'specnb_simulate', 'lamost', '-n', N, '--seed', 1, '--out', tmp/'work'/'sim.parquet', cwd=tmp/'work')
    sh(bin/'specnb_predict', tmp/'work'/'sim.parquet', '--out', tmp/'work'/'labels.csv', cwd=tmp/'work')
    check_table(tmp/'work'/'labels.csv')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--keep', type=Path, help='a new folder to work in, which is left as it is')
    keep = p.parse_args().keep
    if keep:
        keep.mkdir(parents=True)
        main(keep.resolve())
    else:
        with tempfile.TemporaryDirectory(prefix='specnb-wheel-') as tmp: main(Path(tmp).resolve())
