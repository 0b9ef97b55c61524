"The commands that pre-train and align: refused before work is lost, continued where interrupted, the same bytes for the same seed."
import json
from pathlib import Path
import numpy as np, pytest, torch
from astropy.table import Table
from specnb.apps import align as room
from specnb.apps.align import check_reads, main, pair_recall, pretrain_main
from specnb.apps.command import shown
from specnb.apps.hub import load_aligned, load_encoder
from specnb.learn.pairs import pair
from specnb.learn.train import Checkpoint
from specnb.models.align import ALIGN
from specnb.models.encoder import PRESETS, AutoEncoder, Transformer, encoder
from specnb.models.mlp import MLP
from specnb.physics.survey import simulate
from specnb.spectra.gaia import XP_GRID, XP_LSF
from specnb.spectra.grid import Grid, LRS_GRID
from specnb.spectra.store import Store, write_store

TINY = {'small-lrs': dict(width=16, depth=1, heads=2, summary=0), 'small-xp-ae': dict(hidden=16, blocks=1, bottleneck=8, basis=20), 'small-xp': dict(width=16, depth=1, heads=2, summary=0)}


@pytest.fixture(scope='module')
def stars():
    "150 simulated stars as LAMOST and, at its resolution, as XP see them; their ids are also called otherwise"
    s = simulate('lamost', 150, seed=3, snr=60)
    s.table['split'] = np.where(np.arange(150) < 100, 'train', np.where(np.arange(150) < 130, 'valid', 'test'))
    s.table['obsid'] = np.arange(150) + 7
    return dict(lrs=s, xp=s.to(XP_GRID, XP_LSF))


@pytest.fixture(scope='module')
def stores(stars, tmp_path_factory):
    d = tmp_path_factory.mktemp('stores')
    for k, s in stars.items(): write_store(s, d/f'{k}.parquet', group=40)
    torch.manual_seed(0)
    for k, name in dict(lrs='small-lrs', xp='small-xp-ae').items(): encoder(name, **TINY[name]).save_pretrained(d/f'enc-{k}')
    return d


@pytest.fixture
def here(tmp_path, monkeypatch, stores):
    "A folder that sees the stores; presets are tiny"
    for f in stores.iterdir(): (tmp_path/f.name).symlink_to(f, target_is_directory=f.is_dir())
    monkeypatch.chdir(tmp_path)
    for k, v in TINY.items(): monkeypatch.setitem(PRESETS, k, PRESETS[k] | v)
    return tmp_path


def learn(*more, data='xp.parquet', name='small-xp-ae', out='out'):
    return shown(pretrain_main, [*(['--data', data] if data else []), *(['--encoder', name] if name else []), '--epochs', '2', '--bs', '32', '--out', out, *more])


def bring(*more, lrs='lrs.parquet', xp='xp.parquet', encoders=('enc-lrs', 'enc-xp'), out='out'):
    return shown(main, ['--lrs', lrs, '--xp', xp, *(['--encoders', *encoders] if encoders else []), '--epochs', '3', '--bs', '50', '--out', out, *more])


def refused(said, status, *texts, out='out'):
    assert said[0] == status and not Path(out).exists(), said
    for t in texts: assert t in said[2]
    assert len(said[2].strip().splitlines()) == 1 or status == 2


def read(folder): return {f.name: f.read_bytes() for f in Path(folder).iterdir()}


def same(folder, other, whole=False):
    "The same bytes; after an interruption but for the loss of the stars learned from, which is smoothed over all batches since the start"
    a, b, skip = read(folder), read(other), () if whole else ('history.ecsv', 'loss.png', 'terms.png')
    assert set(a) == set(b) and not [k for k in a if k not in skip and a[k] != b[k]]
    a, b = (Table.read(f'{k}/history.ecsv') for k in (folder, other))
    assert all(list(a[k]) == list(b[k]) for k in a.colnames if k != 'train')


def interrupted(monkeypatch, command):
    "A command that is stopped after an epoch"
    with monkeypatch.context() as m:
        write = Checkpoint.write
        def once(self):
            write(self)
            raise KeyboardInterrupt
        m.setattr(Checkpoint, 'write', once)
        return command()


# --- specnb_pretrain


@pytest.mark.parametrize('data, name, kind', [('xp.parquet', 'small-xp-ae', AutoEncoder), ('xp.parquet', 'small-xp', Transformer), ('lrs.parquet', 'small-lrs', Transformer)])
def test_an_encoder_from_a_store(here, data, name, kind):
    status, said, err = learn(data=data, name=name)
    assert (status, err) == (0, '') and '100 train, 30 valid, 20 test' in said and ('tokens/s' in said) == (kind is Transformer)
    assert set(read('out')) == {'README.md', 'config.json', 'history.ecsv', 'loss.png', 'model.safetensors', 'run.json'}
    e = load_encoder('out')
    assert type(e) is kind and e.card['stars'] == dict(train=100, valid=30, test=20) and e.card['simulated']
    assert np.isfinite(e.encode(Store(data).read(slice(5)))).all()
    h = Table.read('out/history.ecsv')
    assert list(h['epoch']) == [0, 1] and min(h['valid']) == e.card['loss']
    card = Path('out/README.md').read_text()
    assert 'specnb_pretrain --data' in card and str(e.grid) in card and 'trained on were simulated' in card


def test_same_seed_same_bytes_interrupted_or_not(here, monkeypatch):
    for k in ('first', 'second'):
        assert learn()[0] == 0
        Path('out').rename(k)
    same('first', 'second', whole=True)
    status, _, err = interrupted(monkeypatch, learn)
    assert status == 130 and 'the same command continues' in err and set(read('out')) == {'run.json', 'unfinished.safetensors'}
    status, said, _ = learn()
    assert status == 0 and '1 done' in said
    same('out', 'first')
    whole = read('out')
    assert 'this run is finished' in learn()[1] and read('out') == whole


def test_a_store_larger_than_memory_is_streamed(here, monkeypatch):
    "The row groups one by one, never all rows at once"
    monkeypatch.setattr('specnb.learn.stars._IN_MEMORY', 0)
    most, group = [], Store.read_group
    monkeypatch.setattr(Store, 'read_group', lambda self, *a, **k: (most.append(len(s := group(self, *a, **k))), s)[1])
    assert learn(name='small-xp')[0] == 0
    assert max(most) == 40 and len(most) >= 4


def test_test_stars_are_not_looked_at(here, stars):
    s = stars['xp']
    flux = np.where((s.table['split'] == 'test')[:, None], 1e6, s.flux)
    write_store(s._with(flux=flux.astype(np.float32)), 'odd.parquet', group=40)
    for data, out in (('xp.parquet', 'a'), ('odd.parquet', 'b')): assert learn(data=data, out=out)[0] == 0
    a, b = (load_encoder(k).state_dict() for k in 'ab')
    assert all((a[k].numpy() == b[k].numpy()).all() for k in a)


def test_without_data_lamost_is_simulated(here):
    status, said, _ = learn('--simulate', '120', data=None, name='small-lrs')
    assert status == 0 and '120 simulated LAMOST stars, seed 0' in said
    assert load_encoder('out').card['trained_on'] == '120 simulated LAMOST stars, seed 0'


def test_taught_further(here):
    status, _, _ = learn('--init', 'enc-xp', name=None)
    assert status == 0 and load_encoder('out').card['init'] == 'enc-xp' and load_encoder('out').n_features == 8
    assert load_encoder('out').card['lr'] == 5e-4


def test_pretraining_refuses_what_it_cannot_read(here, stars):
    refused(learn(data='xp.parquet', name='small-lrs'), 1, f'xp.parquet: this model expects spectra on {LRS_GRID}', str(XP_GRID))
    write_store(stars['xp'][:60].to(Grid.linear(5000, 2, 90)), 'other.parquet')
    refused(learn(data='other.parquet'), 1, f'expects spectra on {XP_GRID}')
    write_store(simulate('lamost', 30, rest=False), 'moving.parquet')
    refused(learn(data='moving.parquet', name='small-lrs'), 1, 'moving.parquet: ', 'expects spectra')
    write_store(stars['lrs'].normalise(method='running', width=50.).to(XP_GRID, XP_LSF), 'flat.parquet')
    refused(learn(data='flat.parquet'), 1, "normalised by 'reference' or not at all")
    write_store(stars['xp'][:12], 'few.parquet')
    refused(learn(data='few.parquet'), 1, 'too few spectra: 12 train, 0 valid', 'more than 20')
    refused(learn(data='none.parquet'), 1, 'none.parquet')


def test_pretraining_refuses_wrong_usage(here):
    refused(learn(name='big'), 2, 'small-lrs')
    refused(learn('--init', 'enc-xp'), 2, 'not allowed with')
    refused(learn(name=None), 2, 'required')
    refused(learn(data=None), 2, 'simulated are LAMOST')
    refused(learn('--simulate', '200'), 2, '--simulate')
    refused(learn('--init', 'nowhere', name=None), 1, 'no encoder', 'nowhere')


def test_a_folder_of_another_run_is_left_alone(here, monkeypatch):
    MLP(hidden=[4]).save_pretrained('net')
    before = read('net')
    assert 'holds a model already' in learn(out='net')[2] and 'network that says labels' in learn('--init', 'net', name=None, out='new')[2] and not Path('new').exists()
    assert read('net') == before
    interrupted(monkeypatch, learn)
    before = read('out')
    for more in (['--seed', '1'], ['--lr', '1e-4'], ['--data', 'lrs.parquet', '--encoder', 'small-lrs']): assert 'holds another run' in learn(*more)[2]
    assert 'holds another run' in bring()[2] and read('out') == before


# --- specnb_align


def test_two_stores_aligned(here):
    status, said, err = bring()
    assert (status, err) == (0, '') and '150 pairs of lrs and xp' in said and 'recall' in said
    assert set(read('out')) == {'README.md', 'config.json', 'history.ecsv', 'terms.png', 'model.safetensors', 'run.json'}
    m = load_aligned('out')
    assert m.names == ('lrs', 'xp') and m.card['pairs'] == dict(train=100, valid=30, test=20) and m.private_dim > 0 and len(m.routes) == 4
    t = Table(rows=m.card['recall'])
    assert list(t['k']) == [1, 10]*2 and set(t['n']) == {30}                                # 100 of 30 stars would be all of them
    p = pair(lrs='lrs.parquet', xp='xp.parquet')
    assert list(pair_recall(m, p[p.split == 'valid'])['recall']) == list(t['recall'])
    assert 'valid lrs to xp' in Table.read('out/history.ecsv').colnames and 'The spectra of lrs and xp it was trained on were simulated' in Path('out/README.md').read_text()
    start, end = (load_encoder('enc-lrs').state_dict(), m.sides['lrs'].encoder.state_dict())
    assert all((start[k].numpy() == end[k].numpy()).all() for k in start)


def test_aligned_again_from_a_model_and_by_lora(here):
    bring('--preset', 'clip')
    status, _, err = bring('--model', 'out', '--lora', '2', encoders=None, out='more')
    assert (status, err) == (0, '')
    a, b = (load_aligned(k) for k in ('out', 'more'))
    assert not a.routes and b.card['preset'] == 'clip-split' and b.card['lora'] == 2
    assert not (a.sides['xp'].encoder.encoder[0].weight == b.sides['xp'].encoder.encoder[0].weight).numpy().all()


def test_same_seed_same_aligned_bytes_interrupted_or_not(here, monkeypatch):
    for k in ('first', 'second'):
        assert bring('--lora', '2')[0] == 0
        Path('out').rename(k)
    same('first', 'second', whole=True)
    assert interrupted(monkeypatch, lambda: bring('--lora', '2'))[0] == 130
    assert bring('--lora', '2')[0] == 0
    same('out', 'first')
    assert not any(k in json.dumps(load_aligned('out').card) for k in ('seconds', 'stars_per_s', 'time'))


def test_joined_on_another_column(here):
    assert bring('--on', 'obsid')[0] == 0 and load_aligned('out').card['trained_on'].endswith('joined on obsid')
    refused(bring('--on', 'a,b,c', out='b'), 2, 'neither one column nor two', out='b')
    refused(bring('--on', 'obsid,target_id', out='b'), 1, 'no star of lrs is in xp', out='b')


def test_alignment_refuses_what_cannot_be_paired(here, stars):
    refused(bring(lrs='xp.parquet', xp='lrs.parquet'), 1, 'modality swapped')
    refused(bring(encoders=('enc-xp', 'enc-lrs')), 1, f'--lrs lrs.parquet: this model expects spectra on {XP_GRID}')
    refused(bring(xp='lrs.parquet'), 1, 'modality swapped')
    refused(bring('--on', 'gaia'), 1, "no column 'gaia' to join on")
    write_store(simulate('lamost', 20, seed=9).to(XP_GRID, XP_LSF), 'others.parquet')
    refused(bring(xp='others.parquet'), 1, 'no star of lrs is in xp')
    write_store(stars['xp'].to(Grid.linear(5000, 2, 90)), 'grid.parquet')
    refused(bring(xp='grid.parquet'), 1, f'--xp grid.parquet: this model expects spectra on {XP_GRID}')
    write_store(stars['xp'][:101], 'few.parquet')
    refused(bring(xp='few.parquet'), 1, 'too few pairs: 100 train, 1 valid')


def test_alignment_refuses_other_models_and_presets(here):
    refused(bring('--preset', 'clop'), 2, *ALIGN)
    refused(bring('--model', 'x'), 2, 'not allowed with')
    refused(bring('--model', 'lrs', encoders=None), 1, 'lrs holds no two aligned encoders')
    refused(bring(encoders=('enc-lrs', 'xp.parquet')), 1, 'no encoder')
    refused(bring('--lora', '-1'), 2, 'not within')


def test_what_an_encoder_expects_is_said(stores):
    with pytest.raises(ValueError, match='these: this model expects spectra on'): check_reads(load_encoder(stores/'enc-lrs'), Store(stores/'xp.parquet'), 'these')
    assert room.recipe(encoder('small-lrs'), True)['lr'] == room.recipe(encoder('small-lrs'))['lr']/4
