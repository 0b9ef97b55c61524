"The commands: their help, their exit statuses, what they promise about seeds and about stars held out."
import os, re, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest, torch
from astropy.table import Table
from safetensors.torch import load_file
from specnb.apps import simulate as simulate_room, train as train_room
from specnb.apps.simulate import write_simulated
from specnb.models.mlp import MLP
from specnb.spectra.container import Spectra
from specnb.spectra.grid import Grid, LSF
from specnb.spectra.readers import find_files, read_many
from specnb.spectra.store import Store, read_store, write_store

LABELS = ['teff', 'logg', 'fe_h', 'alpha_fe']
ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [f'specnb_{k}' for k in ('simulate', 'train', 'predict', 'fetch', 'compare', 'showdown', 'demo') if (ROOT/'specnb'/'apps'/f'{k}.py').exists()]
MAINS = dict(specnb_simulate=simulate_room.main, specnb_train=train_room.main)


def run(capsys, line, *more):
    "(status, stdout, stderr) of a command line; nothing foreseeable ends in a traceback"
    name, *args = [*line.split(), *map(str, more)]
    try: status = MAINS[name](args)
    except SystemExit as e: status = e.code
    out, err = capsys.readouterr()
    assert 'Traceback' not in err
    return status, out, err


def refused(capsys, status, words, line, *more):
    "The command fails with this status and says this; for status 1 in one line that begins with its name"
    got, out, err = run(capsys, line, *more)
    assert got == status and words in err, (got, err)
    if status == 1: assert err.startswith(line.split()[0] + ': ') and err.count('\n') == 1


@pytest.fixture(scope='module')
def store(tmp_path_factory):
    "600 simulated stars"
    path = tmp_path_factory.mktemp('cli')/'stars.parquet'
    write_simulated('lamost', 600, path, seed=3)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- as a process: console scripts


@pytest.mark.parametrize('name', COMMANDS)
def test_help(name):
    "From the installed script, with every option explained"
    o = subprocess.run([Path(sys.executable).with_name(name), '--help'], capture_output=True, text=True, env={**os.environ, 'COLUMNS': '100', 'NO_COLOR': '1'})
    assert o.returncode == 0 and o.stderr == '' and o.stdout.startswith(f'usage: {name}')
    options = o.stdout.partition('options:')[2].partition('\n\n')[0]
    for entry in re.split(r'\n  (?=-)', options)[1:]: assert len(re.sub(r'^\S+(, \S+)*( [A-Z.,\[\]a-z]+)*  ', '', entry).strip()) > 3, entry


@pytest.mark.parametrize('name', COMMANDS)
def test_unknown_option(name):
    o = subprocess.run([Path(sys.executable).with_name(name), '--nonsense'], capture_output=True, text=True)
    assert o.returncode == 2 and o.stderr.startswith(f'usage: {name}') and o.stdout == ''


def test_failure_of_a_process(tmp_path):
    "Status 1, one line, nothing drawn"
    o = subprocess.run([Path(sys.executable).with_name('specnb_train'), '--data', 'none.parquet', '--out', 'net'], capture_output=True, text=True, cwd=tmp_path)
    assert (o.returncode, o.stdout, o.stderr) == (1, '', 'specnb_train: none.parquet: there is no such file\n')


# --- simulate


def test_same_seed_same_bytes(here, capsys):
    for k in 'ab': assert run(capsys, f'specnb_simulate desi -n 300 --seed 7 --flat .5 --vary --mismatch .2 --out {k}.parquet')[0] == 0
    run(capsys, 'specnb_simulate desi -n 300 --seed 8 --flat .5 --vary --mismatch .2 --out c.parquet')
    a, b, c = (Path(f'{k}.parquet').read_bytes() for k in 'abc')
    assert a == b and a != c


def test_another_process_and_number_of_threads_give_the_same_bytes(here):
    for n in 1, 2:
        subprocess.run([Path(sys.executable).with_name('specnb_simulate'), *f'lamost -n 200 --out {n}.parquet'.split()], check=True, env={**os.environ, 'OMP_NUM_THREADS': str(n)})
    assert Path('1.parquet').read_bytes() == Path('2.parquet').read_bytes()


def test_batches_hold_different_stars(here):
    write_simulated('lamost', 90, 's.parquet', batch=40)
    s = read_store('s.parquet')
    assert len(s) == 90 and len(set(s.table['target_id'])) == 90 and len(np.unique(s.table['teff'])) > 80
    assert np.unique(s.flux, axis=0).shape[0] == 90


def test_simulate_options(here, capsys):
    run(capsys, 'specnb_simulate lamost -n 50 --label-noise 100,.1,.1,.05 --observed --out noisy.parquet')
    run(capsys, 'specnb_simulate lamost -n 50 --out plain.parquet')
    noisy, plain = read_store('noisy.parquet'), read_store('plain.parquet')
    assert not noisy.rest and plain.rest
    assert 50 < np.std(noisy.table['teff'] - noisy.table['teff_true']) < 200
    assert (noisy.table['teff_true'] == plain.table['teff']).all()


@pytest.mark.parametrize('form', ['lamost', 'desi', 'sdss', 'ecsv'])
def test_files_of_every_format(here, capsys, form):
    assert run(capsys, f'specnb_simulate lamost -n 3 --files {form} night --out truth.parquet')[0] == 0
    (s,), failed = read_many(find_files('night'))
    assert len(s) == 3 and len(failed) == 0 and not s.rest and not Store('truth.parquet').meta['rest']


def test_many_files_go_into_folders(here):
    write_simulated('desi', 5, files=('desi', 'night'), batch=2)
    assert [str(p) for p in sorted(Path('night').rglob('*.fits'))] == [f'night/batch-00{k}/coadd-sim-dark-0.fits' for k in (1, 2, 3)]
    (s,), _ = read_many(find_files('night'))
    assert len(s) == 5


@pytest.mark.parametrize('status, words, line', [
    (2, 'invalid choice', 'specnb_simulate galex -n 5 --out x.parquet'), (2, 'required: -n', 'specnb_simulate lamost --out x.parquet'),
    (2, 'not within', 'specnb_simulate lamost -n 0 --out x.parquet'), (2, 'invalid whole number', 'specnb_simulate lamost -n 2.5 --out x.parquet'),
    (2, 'nothing to write', 'specnb_simulate lamost -n 5'), (2, 'not within', 'specnb_simulate lamost -n 5 --flat 2 --out x.parquet'),
    (2, 'not within', 'specnb_simulate lamost -n 5 --seed -1 --out x.parquet'), (2, 'not allowed with', 'specnb_simulate lamost -n 5 --rest --observed --out x.parquet'),
    (2, 'leave out --rest', 'specnb_simulate lamost -n 5 --rest --files desi d'), (2, 'no format', 'specnb_simulate lamost -n 5 --files galex d'),
    (2, '4 numbers', 'specnb_simulate lamost -n 5 --label-noise 1,2 --out x.parquet'), (2, 'negative', 'specnb_simulate lamost -n 5 --label-noise=-1,0,0,0 --out x.parquet'),
    (1, 'no folder', 'specnb_simulate lamost -n 5 --out nowhere/x.parquet'), (1, 'is a folder', 'specnb_simulate lamost -n 5 --out .'),
    (1, 'is there already', 'specnb_simulate lamost -n 5 --files desi full')])
def test_simulate_refuses(here, capsys, status, words, line):
    (here/'full').mkdir()
    (here/'full'/'file').touch()
    refused(capsys, status, words, line)
    assert sorted(p.name for p in here.iterdir()) == ['full']


def test_nothing_is_left_of_a_run_that_fails(here, monkeypatch):
    def fails(*args, **kwargs): raise OSError(28, 'No space left on device', 'x')
    monkeypatch.setattr(simulate_room, 'simulate', fails)
    with pytest.raises(OSError): write_simulated('lamost', 5, 'x.parquet', files=('desi', 'night'))
    assert not list(here.iterdir())


# --- train


def test_train_on_a_store(here, store, capsys):
    status, out, err = run(capsys, 'specnb_train --labels teff,fe_h --epochs 1 --out net --data', store)
    assert status == 0 and err == ''
    assert sorted(p.name for p in Path('net').iterdir()) == ['README.md', 'config.json', 'model.safetensors', 'scores.ecsv']
    model, scores = MLP.from_pretrained('net'), Table.read('net/scores.ecsv')
    assert model.labels == ('teff', 'fe_h') and model.grid == Store(store).grid and np.isfinite(model.low).all()
    assert scores.colnames == ['label', 'subset', 'n', 'r2', 'sigma', 'bias', 'cover1', 'cover2', 'crlb']
    assert all(k in out for k in ('sigma', 'crlb', 'metal-poor')) and f'specnb_train --labels teff,fe_h --epochs 1 --out net --data {store}' in Path('net/README.md').read_text()
    assert sum(model.card['stars'].values()) == 600


def test_same_seed_same_network(here, store, capsys):
    for k, seed in (('a', 0), ('b', 0), ('c', 1)): run(capsys, f'specnb_train --epochs 1 --seed {seed} --out {k} --data', store)
    a, b, c = ((Path(k)/'model.safetensors').read_bytes() for k in 'abc')
    assert a == b and a != c


def nonsense(path, rows, to):
    "The store with labels and spectra of some rows replaced by nonsense"
    s = read_store(path)
    for k in LABELS: s.table[k][rows] = [-9999, np.nan, 1e30][LABELS.index(k) % 3]
    s.flux[rows], s.ivar[rows] = -1e9, 1
    return write_store(s, to)


def test_held_out_stars_are_touched_by_nothing(here, store, capsys, monkeypatch):
    "Whatever their labels and spectra hold, network and scores are the same to the last bit, in memory and from disk"
    rows = np.arange(0, 600, 4)
    Path('ids.txt').write_text('# left out\n' + '\n'.join(f'lamost-3-{i:06d}' for i in rows) + '\n')
    spoiled = nonsense(store, rows, here/'spoiled.parquet')
    found = {}
    for name, data, memory in (('clean', store, 1e12), ('spoiled', spoiled, 1e12), ('clean-disk', store, 0), ('spoiled-disk', spoiled, 0)):
        monkeypatch.setattr('specnb.learn.stars._IN_MEMORY', memory)
        assert run(capsys, f'specnb_train --epochs 1 --holdout ids.txt --out {name} --data', data)[0] == 0
        found[name] = (Path(name)/'model.safetensors').read_bytes(), (Path(name)/'scores.ecsv').read_bytes(), MLP.from_pretrained(name).card['stars']
    assert found['clean'] == found['spoiled'] and found['clean-disk'] == found['spoiled-disk']
    assert found['clean'][2]['holdout'] == found['clean-disk'][2]['holdout'] == 150
    s = read_store(store)
    write_store(s[np.setdiff1d(np.arange(600), rows)], here/'without.parquet')
    run(capsys, 'specnb_train --epochs 1 --data without.parquet --out without')
    assert (Path('without')/'model.safetensors').read_bytes() == found['clean'][0]           # as if they had never been observed
    refused(capsys, 1, 'teff cannot be right in 150 of 600 stars: row 0 (lamost-3-000000) has -9999', 'specnb_train --epochs 1 --out x --data', spoiled)


def test_memory_and_disk_train_alike(here, store, capsys, monkeypatch):
    run(capsys, 'specnb_train --epochs 2 --out memory --data', store)
    monkeypatch.setattr('specnb.learn.stars._IN_MEMORY', 0)
    run(capsys, 'specnb_train --epochs 2 --out disk --data', store)
    a, b = load_file('memory/model.safetensors'), load_file('disk/model.safetensors')
    assert max((a[k].float() - b[k].float()).abs().max() for k in a if 'expect' not in k) < .05


def test_training_further(here, store, capsys):
    "Grid and scaling stay, other surveys are brought to them"
    run(capsys, 'specnb_train --epochs 1 --window 4300,5500 --out net --data', store)
    write_simulated('desi', 300, 'desi.parquet', seed=1)
    assert run(capsys, 'specnb_train --epochs 1 --data desi.parquet --init net --out more')[0] == 0
    a, b = MLP.from_pretrained('net'), MLP.from_pretrained('more')
    assert a.grid == b.grid and a.window == b.window and torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std) and b.card['init'] == 'net'
    assert not torch.equal(a.head.weight, b.head.weight) and (b.low <= a.low).all() and (b.high >= a.high).all()
    s = read_store(store)
    write_store(s.to(Grid.log(3.7, 1e-4, 300)), here/'short.parquet')
    write_store(s.to(s.grid, LSF.R(900)), here/'blurred.parquet')
    refused(capsys, 1, 'cover ', 'specnb_train --epochs 1 --data short.parquet --init net --out x')
    refused(capsys, 1, 'cannot be brought to the grid and resolution', 'specnb_train --epochs 1 --data blurred.parquet --init net --out x')
    refused(capsys, 1, 'not fe_h', 'specnb_train --epochs 1 --labels fe_h --init net --out x --data', store)
    refused(capsys, 1, 'no model', 'specnb_train --epochs 1 --init nowhere --out x --data', store)


def with_column(path, to, **columns):
    "The store with columns replaced, None to remove"
    s = read_store(path)
    for k, v in columns.items():
        s.table.remove_columns([k] if k in s.table.colnames else [])
        if v is not None: s.table[k] = v
    return write_store(s, to)


def test_labels_of_the_user(here, store, capsys):
    "Any columns, null or NaN where not known; no crlb for what the physics does not know; another star id a row"
    t = read_store(store).table
    unknown = np.arange(600) % 5 == 0
    path = with_column(store, here/'null.parquet', mass=np.ma.array(t['logg']*2 - 3, mask=unknown), target_id=np.arange(600), alpha_fe=None)
    assert run(capsys, 'specnb_train --epochs 1 --labels mass,teff --out net --data', path)[0] == 0       # null says itself that it is unknown
    path = with_column(store, here/'mass.parquet', mass=np.where(unknown, np.nan, t['logg']*2 - 3), target_id=np.arange(600), alpha_fe=None)
    refused(capsys, 1, 'mass cannot be right in 120 of 600 stars: row 0 (0) has nan', 'specnb_train --epochs 1 --labels mass --out net --data', path)
    assert run(capsys, 'specnb_train --epochs 1 --labels mass,teff --allow-missing --out net --data', path)[0] == 0
    assert 'crlb' not in Table.read('net/scores.ecsv').colnames
    refused(capsys, 1, "no column 'alpha_fe'", 'specnb_train --epochs 1 --out net --data', path)


@pytest.mark.parametrize('label, value, shown', [('teff', -9999, '-9999'), ('teff', 0, '0'), ('teff', np.inf, 'inf'), ('logg', 99, '99'), ('fe_h', -9999, '-9999'), ('alpha_fe', np.nan, 'nan')])
def test_labels_that_cannot_be(here, store, capsys, label, value, shown):
    t = read_store(store).table[label].copy()
    t[[17, 40]] = value
    path = with_column(store, here/'bad.parquet', **{label: t})
    refused(capsys, 1, f'{label} cannot be right in 2 of 600 stars: row 17 (lamost-3-000017) has {shown}, row 40 ', 'specnb_train --epochs 1 --out net --data', path)


def test_train_refuses(here, store, capsys):
    Path('ids.txt').write_text('4711\n')
    Path('text.parquet').write_text('no Parquet')
    Path('binary.txt').write_bytes(b'\xff\xfe\x00\x81')
    s = read_store(store)
    write_store(s[:10], 'few.parquet')
    write_simulated('lamost', 20, 'moving.parquet', rest=False)
    write_store(Spectra(s.flux, s.ivar, s.grid, s.table, rest=True), 'unknown.parquet')
    same = with_column(store, here/'same.parquet', teff=np.full(600, 5000.))
    for status, words, line in [
        (2, 'required: --out', 'specnb_train'), (2, 'no range', f'specnb_train --window 5000,4000 --out x --data {store}'), (2, '2 numbers', 'specnb_train --window 4000 --out x'),
        (2, 'not within', 'specnb_train --epochs 0 --out x'), (2, 'for a new network', 'specnb_train --init net --window 4300,5500 --out x'),
        (2, 'for simulated stars', f'specnb_train -n 500 --out x --data {store}'),
        (1, 'no such file', 'specnb_train --data none.parquet --out x'), (1, 'not a Parquet file', 'specnb_train --data text.parquet --out x'),
        (1, 'needs them at rest', 'specnb_train --data moving.parquet --out x'), (1, 'too few stars', 'specnb_train --data few.parquet --out x'),
        (1, 'none of the 1 ids', f'specnb_train --holdout ids.txt --out x --data {store}'), (1, 'No such file', f'specnb_train --holdout no.txt --out x --data {store}'),
        (1, 'not a text file', f'specnb_train --holdout binary.txt --out x --data {store}'), (1, '--resolution', 'specnb_train --data unknown.parquet --out x'),
        (1, 'is the same for all', f'specnb_train --data {same} --out x'), (1, 'ids.txt', f'specnb_train --out ids.txt --data {store}')]:
        refused(capsys, status, words, line)
    assert run(capsys, 'specnb_train --data unknown.parquet --resolution 1800 --epochs 1 --out x')[0] == 0


def test_without_data_it_simulates(here, capsys):
    status, out, _ = run(capsys, 'specnb_train --quick -n 400 --epochs 1 --out net')
    model = MLP.from_pretrained('net')
    assert status == 0 and '400 simulated LAMOST stars' in out and model.window == (4300, 5600) and model.card['simulated']


def test_an_interrupted_run_continues(here, store, capsys, monkeypatch):
    "Ctrl-C after two epochs of four: the same command ends at the same network, and tidies up"
    from specnb.learn.train import Checkpoint
    line, write = f'specnb_train --epochs 4 --data {store} --out', Checkpoint.write
    assert run(capsys, f'{line} whole')[0] == 0
    def broken(self):
        write(self)
        if self.epoch == 1: raise KeyboardInterrupt
    monkeypatch.setattr(Checkpoint, 'write', broken)
    status, _, err = run(capsys, f'{line} net')
    assert status == 130 and 'the same command continues' in err
    assert [p.name.split('-')[0] for p in Path('net').iterdir()] == ['unfinished']
    done = []
    monkeypatch.setattr(Checkpoint, 'write', lambda self: (done.append(self.epoch), write(self)))
    assert run(capsys, f'{line} net --seed 1')[0] == 0 and done == [0, 1, 2, 3]              # another run starts anew
    monkeypatch.setattr(Checkpoint, 'write', broken)
    run(capsys, f'{line} two')
    done.clear()
    monkeypatch.setattr(Checkpoint, 'write', lambda self: (done.append(self.epoch), write(self)))
    assert run(capsys, f'{line} two')[0] == 0 and done == [2, 3]
    assert Path('two/model.safetensors').read_bytes() == Path('whole/model.safetensors').read_bytes()
    assert len(list(Path('two').iterdir())) == 4


def test_interrupted_from_outside(here):
    "SIGINT to the process"
    p = subprocess.Popen([Path(sys.executable).with_name('specnb_simulate'), *'lamost -n 3000000 --out big.parquet'.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(here.glob('.*.part')) and p.poll() is None: time.sleep(.1)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and err == 'specnb_simulate: interrupted\n' and not list(here.iterdir())
