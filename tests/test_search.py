"Search: the nearest are those of brute force, whatever the blocks; nothing is found by the wrong model, side or width; what is left out is written down."
import matplotlib; matplotlib.use('Agg')
import json
import matplotlib.pyplot as plt
import numpy as np, pyarrow.parquet as pq, pytest, torch
from astropy.table import MaskedColumn, Table
from hypothesis import given, settings, strategies as st
from specnb.models.align import aligned
from specnb.models.encoder import AutoEncoder
from specnb.science.search import Index, build_index, fingerprint, label_recall, plot_found, recall
from specnb.spectra.container import Spectra
from specnb.spectra.grid import Grid
from specnb.spectra.store import Store, write_store

RED, BLUE = Grid.linear(4800, 2, 67), Grid.linear(4000, 3, 40)


def stars(n=30, seed=0, grid=RED):
    "Smooth random spectra, normalised, with ids and two labels"
    rng = np.random.default_rng(seed)
    x, a, b = np.linspace(-1, 1, grid.n), rng.normal(size=(n, 1)), rng.normal(size=(n, 1))
    flux = 1 + .1*a*np.sin(5*x) + .05*b*np.cos(17*x) + .01*rng.normal(size=(n, grid.n))
    return Spectra(flux, np.full(flux.shape, 1e4), grid, Table(dict(target_id=[f's{i}' for i in range(n)], a=a[:, 0], b=b[:, 0])), rest=True, normalised='running')


def network(seed=0, grid=RED):
    torch.manual_seed(seed)
    return AutoEncoder(grid=grid.id, hidden=24, blocks=1, bottleneck=6).eval()


def both_ways(seed=0): return aligned('clip', dict(red=network(seed), blue=network(seed, BLUE)), width=5)


def vectors(n, width, seed=0): return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def named(n): return Table(dict(target_id=[f's{i}' for i in range(n)]))


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    "200 random vectors"
    return build_index(vectors(200, 8), tmp_path_factory.mktemp('many')/'index', table=named(200))


def of(index, n, width=8): return Index(index.folder, index.vectors[:n, :width], index.about)


# the nearest

@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 200), q=st.integers(0, 20), k=st.integers(1, 200), scores=st.integers(1, 5000), batch=st.integers(1, 30), seed=st.integers(0, 99))
def test_nearest_equals_brute_force(many, n, q, k, scores, batch, seed):
    "Whatever the blocks, the batches and the lengths of the queries"
    index, k, v = of(many, n), min(k, n), vectors(q, 8, seed + 1)*np.random.default_rng(seed).uniform(.01, 100, (q, 1))
    at, sim = index.nearest(v, k, scores, batch)
    u = index.vectors.astype(float)
    true = v/np.linalg.norm(v, axis=1, keepdims=True) @ (u/np.linalg.norm(u, axis=1, keepdims=True)).T
    order = np.argsort(-true, axis=1)[:, :k]
    assert at.shape == sim.shape == (q, k) and np.allclose(sim, np.take_along_axis(true, order, 1), atol=1e-6)
    assert (np.diff(sim, axis=1) <= 0).all() and all(len(set(a)) == k for a in at)
    clear = -np.diff(np.sort(-true, axis=1), axis=1).min(initial=-1) > 1e-6          # ties go either way
    if clear: assert np.array_equal(at, order)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_order_of_queries_does_not_matter(many, seed):
    "To the last bit, alone or among others"
    v, p = vectors(12, 8, seed), np.random.default_rng(seed).permutation(12)
    at, sim = many.nearest(v, 5)
    at2, sim2 = many.nearest(v[p], 5, scores=700)
    assert np.array_equal(at[p], at2) and np.array_equal(sim[p], sim2)
    assert np.array_equal(many.nearest(v[3:4], 5)[1], sim[3:4])


def test_everybody_finds_themselves(many, tmp_path):
    assert np.array_equal(many.nearest(many.vectors, 1)[0][:, 0], np.arange(200))
    m, s = network(), stars()
    found = build_index(s, tmp_path/'i', m).search(s, 3, m)
    first = found[found['rank'] == 1]
    assert list(first['target_id']) == list(s.table['target_id']) and np.allclose(first['similarity'], 1)
    model, pair = both_ways(), dict(red=stars(), blue=stars(grid=BLUE))
    for k, s in pair.items():
        t = build_index(s, tmp_path/k, model).search(s, 1, model)
        assert list(t['row']) == list(range(30)) and np.allclose(t['similarity'], 1)


def test_the_same_vector_twice(tmp_path):
    "Stars that are alike to the last bit come in the order of the index"
    v = vectors(20, 4)
    index = build_index(np.concatenate([v, v]), tmp_path/'i', table=named(40))
    at, sim = index.nearest(v, 2)
    assert np.array_equal(at, np.stack([np.arange(20), np.arange(20, 40)], 1)) and np.array_equal(sim[:, 0], sim[:, 1])


@settings(max_examples=30, deadline=None)
@given(k=st.integers(1, 20), seed=st.integers(0, 99))
def test_without(many, k, seed):
    "The star not wanted is left out, wherever it would come; the others stay in order"
    own = np.random.default_rng(seed).integers(0, 200, 6)
    v = many.vectors[own] + 1*vectors(6, 8, seed)
    full, less = many.search(v, k + 1), many.search(v, k, without=[f's{i}' for i in own])
    for i in range(6):
        want = [t for t in full['target_id'][full['query'] == i] if t != f's{own[i]}'][:k]
        assert list(less['target_id'][less['query'] == i]) == want and list(less['rank'][less['query'] == i]) == list(range(1, k + 1))


# building

def test_streams_and_whole_agree(tmp_path):
    "Spectra, a store by row groups, an iterable, embeddings: the same index"
    m, s = network(), stars()
    store = Store(write_store(s, tmp_path/'s.parquet', group=7))
    made = [build_index(x, tmp_path/f'{i}', m) for i, x in enumerate((s, store, (s[i:i + 11] for i in range(0, 30, 11))))]
    made.append(build_index(m.encode(s), tmp_path/'x', m, table=s.table))
    for i in made:
        assert np.allclose(i.vectors, made[0].vectors, atol=1e-6) and list(i.table()['target_id']) == list(s.table['target_id']) and list(i.table()['row']) == list(range(30))
        assert i.about['model'] == fingerprint(m) and i.colnames == ['a', 'b'] and np.allclose(i.table()['a'], s.table['a']) and not len(i.left_out)
    assert isinstance(made[0].vectors, np.memmap) and made[0].vectors.dtype == np.float32


def test_left_out(tmp_path):
    "Dead stars, ids that came before, no ids: noted with their rows, never found, their columns in step"
    m, s = network(), stars()
    s.ivar[[4, 21]] = 0
    s.table['target_id'] = MaskedColumn(s.table['target_id'], mask=np.arange(30) == 9)
    s.table['target_id'][12], s.table['target_id'][25], s.table['target_id'][15] = 's4', 's3', ' '
    index = build_index((s[i:i + 8] for i in range(0, 30, 8)), tmp_path/'i', m)
    out = {r['row']: r['reason'] for r in index.left_out}
    assert {k: v.split(':')[0] for k, v in out.items()} == {4: 'no embedding', 21: 'no embedding', 9: 'no id', 15: 'no id', 25: 'its id comes earlier'}
    assert len(index) == 25 and index.about['left_out'] == 5 and 'its id' not in out.get(12, '')      # s4 the first is dead: the second stands
    t = index.table()
    assert not set(t['row']) & set(out) and np.allclose(t['a'], s.table['a'][t['row']]) and np.allclose(index.vectors, (lambda z: z/np.linalg.norm(z, axis=1, keepdims=True))(m.encode(s)[t['row']]), atol=1e-5)
    assert not set(index.search(s[:4], 25, m)['row']) & set(out)
    assert len(build_index(np.array([[1., 2], [0, 0], [np.inf, 1], [np.nan, 1]]), tmp_path/'z', table=named(4))) == 1


def test_dead_queries(tmp_path):
    m, s = network(), stars()
    index = build_index(s, tmp_path/'i', m)
    s.ivar[[0, 5]] = 0
    t = index.search(s[:7], 2, m)
    assert t.meta['left_out'] == [0, 5] and list(t['query']) == [1, 1, 2, 2, 3, 3, 4, 4, 6, 6]
    none = index.search(s[:1], 2, m)
    assert len(none) == 0 and none.colnames == t.colnames
    with pytest.raises(ValueError, match='found nothing'): plot_found(s, t, s, star=5)
    r = recall(index, s[:7], s.table['target_id'][:7], (1,), m)
    assert r['n'][0] == 5 and r['left_out'][0] == 2 and r['recall'][0] == 1


def test_replaced_whole_or_not_at_all(tmp_path):
    m, s = network(), stars()
    first = build_index(s, tmp_path/'i', m)
    def breaks():
        yield s[:10]
        raise OSError('disk gone')
    for bad, why in ((breaks(), 'disk gone'), ((x for x in (s[:10], stars(grid=BLUE))), 'expects spectra on')):
        with pytest.raises((OSError, ValueError), match=why): build_index(bad, tmp_path/'i', m)
    assert [p.name for p in tmp_path.iterdir()] == ['i'] and len(Index.open(tmp_path/'i')) == 30
    second = build_index(s[:10], tmp_path/'i', m)
    assert [p.name for p in tmp_path.iterdir()] == ['i'] and len(second) == 10 and len(first.vectors) == 30 and np.isfinite(first.vectors).all()
    (tmp_path/'other').mkdir(); (tmp_path/'other'/'thesis.tex').write_text('x')
    with pytest.raises(ValueError, match='is no index'): build_index(s, tmp_path/'other', m)
    assert (tmp_path/'other'/'thesis.tex').exists()


def test_header_grows(tmp_path):
    "The file is one that NumPy reads by itself, though its length was not known at first"
    index = build_index(vectors(70000, 3), tmp_path/'i', table=Table(dict(target_id=np.arange(70000))))
    v = np.load(tmp_path/'i'/'vectors.npy')
    assert v.shape == (70000, 3) and np.array_equal(v, index.vectors) and len(pq.read_table(tmp_path/'i'/'rows.parquet')) == 70000


# refused

def test_damaged(tmp_path):
    folder = build_index(vectors(5, 3), tmp_path/'i', table=named(5)).folder
    about = json.loads((folder/'index.json').read_text())
    for change, why in ((dict(format=9), 'build it again'), (dict(metric='dot'), 'build it again'), (dict(n=4), 'do not belong'), (dict(width=4), 'do not belong')):
        (folder/'index.json').write_text(json.dumps(about | change))
        with pytest.raises(ValueError, match=why): Index.open(folder)
    (folder/'index.json').write_text(json.dumps(about))
    whole = (folder/'vectors.npy').read_bytes()
    for bad in (whole[:-4], b'', b'nonsense', whole[:20]):
        (folder/'vectors.npy').write_bytes(bad)
        with pytest.raises(ValueError, match='damaged'): Index.open(folder)
    np.save(folder/'vectors.npy', np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match='damaged'): Index.open(folder)
    (folder/'vectors.npy').unlink()
    with pytest.raises(ValueError, match='has no vectors.npy'): Index.open(folder)


def test_another_model(tmp_path):
    m, s = network(), stars()
    index = build_index(s, tmp_path/'i', m)
    for f in (lambda o: index.search(s[:2], model=o), lambda o: index.search(m.encode(s[:2]), model=o), lambda o: recall(index, s[:2], ['s0', 's1'], (1,), o), lambda o: label_recall(index, s[:2], s.table[:2], ('a',), (1,), o)):
        with pytest.raises(ValueError, match='built by another model'): f(network(1))
    m.save_pretrained(tmp_path/'m')
    assert len(index.search(s[:2], 3, AutoEncoder.from_pretrained(tmp_path/'m'))) == 6
    blind = build_index(m.encode(s), tmp_path/'b', table=s.table)
    with pytest.raises(ValueError, match='does not know which model'): blind.search(s[:2], model=m)


def test_modality_swapped(tmp_path):
    model, red, blue = both_ways(), stars(), stars(grid=BLUE)
    index = build_index(red, tmp_path/'red', model)
    assert index.about['side'] == 'red' and len(index.search(blue, 2, model)) == 60
    for f in (lambda: build_index(red, tmp_path/'x', model, side='blue'), lambda: index.search(blue, 2, model, side='red'), lambda: recall(index, blue, blue.table['target_id'], (1,), model, 'red')):
        with pytest.raises(ValueError, match='swapped'): f()
    with pytest.raises(ValueError, match='neither side'): index.search(stars(grid=Grid.linear(9000, 2, 50)), 2, model)
    with pytest.raises(ValueError, match="no side 'green'"): build_index(red, tmp_path/'x', model, side='green')
    with pytest.raises(ValueError, match="no side 'green'"): build_index(model.encode('red', red, shared=True), tmp_path/'x', model, side='green', table=red.table)
    assert not (tmp_path/'x').exists()


@pytest.mark.parametrize('call,why', [
    (lambda i: i.nearest(vectors(1, 8), 201), 'holds 200 stars'), (lambda i: i.nearest(vectors(1, 8), 0), 'k=0'), (lambda i: i.nearest(vectors(1, 7)), 'vectors of 8 numbers'),
    (lambda i: i.search(vectors(2, 9)), 'vectors of 8 numbers'), (lambda i: i.nearest(np.zeros((1, 8))), 'no direction'), (lambda i: i.nearest(np.full((1, 8), np.nan)), 'no direction'),
    (lambda i: i.search(vectors(2, 8), 3, without=['s0']), '2 queries, but 1 ids'), (lambda i: i.search(vectors(1, 8), 200, without=['s0']), 'one of them not wanted'),
    (lambda i: i.search(vectors(1, 8), 3, names=['mass']), "no column 'mass'"), (lambda i: recall(i, vectors(2, 8), ['s0']), '1 ids'), (lambda i: recall(i, vectors(1, 8), ['x']), 'not in the index'),
    (lambda i: recall(i, vectors(1, 8), ['s0'], (1, 500)), 'k=500'), (lambda i: recall(i, np.full((1, 8), np.nan), ['s0']), 'no query has'), (lambda i: i.search(stars(2)), 'pass model='),
    (lambda i: label_recall(i, vectors(1, 8), Table(dict(a=[1.])), ['a']), "index has no column 'a'"), (lambda i: label_recall(i, vectors(1, 8), Table(dict(a=[1.])), ['b']), "no label 'b'"),
])
def test_refused(many, call, why):
    with pytest.raises(ValueError, match=why): call(many)


@pytest.mark.parametrize('args,why', [
    (dict(source=stars(3)), 'pass model='), (dict(source=vectors(3, 2)), 'table of as many rows'), (dict(source=vectors(3, 2), table=named(4)), 'table of as many rows'), (dict(source=vectors(3, 2)[0], table=named(3)), r'\(n, width\)'),
    (dict(source=vectors(3, 2), table=named(3), id='gaia'), "no column 'gaia'"), (dict(source=vectors(3, 2), table=named(3), names=['teff']), "no column 'teff'"), (dict(source=vectors(3, 2)*np.nan, table=named(3)), 'all 3 stars are left out'),
    (dict(source=vectors(0, 2), table=named(0)), 'no stars'), (dict(source=stars(3)[:0], model=network()), 'no stars'), (dict(source=vectors(2, 2), table=Table(dict(target_id=[1e18, 2e18]))), 'lose the last digits'),
    (dict(source=vectors(2, 2), table=Table(dict(target_id=['a', 'b'], rank=[1, 2])), names=['rank']), 'rename it'),
])
def test_not_built(tmp_path, args, why):
    with pytest.raises(ValueError, match=why): build_index(folder=tmp_path/'i', **args)
    assert not list(tmp_path.iterdir())


# how good

def test_recall_by_hand(many):
    v, truth = vectors(40, 8, 5), np.random.default_rng(1).integers(0, 200, 40)
    order = np.argsort(-(v @ many.vectors.T), axis=1)
    rank = np.argmax(order == truth[:, None], axis=1)
    t = recall(many, v, [f's{i}' for i in truth], (1, 50, 200))
    assert np.allclose(t['recall'], [(rank < k).mean() for k in (1, 50, 200)]) and np.allclose(t['chance'], [1/200, .25, 1]) and t['recall'][-1] == 1


@pytest.mark.parametrize('exclude', [False, True])
def test_label_recall_by_hand(tmp_path, exclude):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(60, 2))*[1000, .1]
    y[7, 0] = np.nan
    v = vectors(60, 5)
    index = build_index(v, tmp_path/'i', table=Table(dict(target_id=np.arange(60), a=y[:, 0], b=y[:, 1])))
    t = label_recall(index, v[:20], Table(dict(a=y[:20, 0], b=y[:20, 1])), ('a', 'b'), (1, 5), without=np.arange(20) if exclude else None)
    scaled, u, want = y/np.nanstd(np.delete(y, 7, 0), 0), index.vectors, []
    for i in set(range(20)) - {7}:
        like = [j for j in np.argsort(np.linalg.norm(scaled - scaled[i], axis=1)) if not (exclude and j == i) and j != 7]
        near = [j for j in np.argsort(-(u @ u[i])) if not (exclude and j == i)]
        want.append([len(set(like[:k]) & set(near[:k]))/k for k in (1, 5)])
    assert np.allclose(t['recall'], np.mean(want, 0)) and list(t['left_out']) == [1, 1] and np.allclose(t['chance'], [k/(60 - exclude) for k in (1, 5)])


def test_chance_is_chance(tmp_path):
    "Embeddings that know nothing find as much as chance says, and those that are the labels nearly all"
    rng = np.random.default_rng(2)
    y = rng.uniform(-1, 1, (2000, 2))
    table = Table(dict(target_id=np.arange(2000), a=y[:, 0], b=y[:, 1]))
    blind = label_recall(build_index(vectors(2000, 6), tmp_path/'i', table=table), vectors(300, 6, 1), table[:300], ('a', 'b'), (100,))
    assert abs(blind['recall'][0] - blind['chance'][0]) < 5*blind['err'][0] + .005
    sphere = np.concatenate([.1*y/y.std(0), np.ones((2000, 1))], 1)
    assert label_recall(build_index(sphere, tmp_path/'j', table=table), sphere[:300], table[:300], ('a', 'b'), (100,))['recall'][0] > .9


def test_counterpart_left_out(tmp_path):
    m, s = network(), stars()
    dark = s[:]
    dark.ivar[2] = 0
    index = build_index(dark, tmp_path/'i', m)
    t = recall(index, s, s.table['target_id'], (1,), m)
    assert t['n'][0] == 29 and t['left_out'][0] == 1


# pictures

def test_picture(tmp_path):
    m, s = network(), stars()
    store = Store(write_store(s, tmp_path/'s.parquet', group=7))
    found = build_index(store, tmp_path/'i', m).search(s[:2], 3, m, names=['a'])
    ax = plot_found(s, found, store, star=1, n=2, labels=('a', 'b'))
    assert len(ax) == 3 and np.allclose(ax[1].lines[1].get_ydata(), s.flux[found['row'][3]]) and f"a {found['a'][4]:.2f}" in ax[2].texts[0].get_text() and 'b ' not in ax[2].texts[0].get_text()
    blue = plot_found(stars(grid=BLUE), found, s, lo=4000)
    assert blue[0].get_xlim()[0] == 4000 and len(blue) == 4
    with pytest.raises(ValueError, match='no usable pixel between'): plot_found(stars(grid=BLUE), found, s)
    plt.close('all')


def test_fingerprint():
    "Of values, dtypes and names; half precision too"
    m = network()
    assert fingerprint(m) == fingerprint(network()) != fingerprint(network(1)) and len(fingerprint(m)) == 40
    half = network().bfloat16()
    assert fingerprint(half) not in (fingerprint(m), fingerprint(network().half()))
